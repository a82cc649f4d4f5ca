"""Charts of the report, as Vega-Lite specifications with their numbers.

Two signals reach each chart of runs: `rule`, the decision rule, and `filter`, a part of the names of methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import altair as alt

from ssnn_plugin.metrics import RULES

from ..columns import RULE, accuracy_column
from ..records import Accuracies, Record
from ..tables import by_config, comparison, front, network_of
from .listings import identity

Spec = dict[str, Any]
Layers = alt.LayerChart | alt.FacetChart
HEIGHT = 340
EARLY, WHOLE = "until the decision", "whole window"
TRAINING, PARTS = "training (lenient)", {"validation": "held out", "test": "test, tracked"}
# Steps of an error axis that reaches zero.
ERRORS = [0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]


def all_charts(records: Sequence[Record], dataset: str) -> dict[str, Spec]:
    """The charts of a data set, by title."""
    found = {
        "Accuracy against spikes": accuracy_against_spikes(records, dataset),
        "Accuracy if stopped at time t": decision_times(records, dataset),
        "Learning curves": learning_curves(records, dataset),
    }
    return {title: chart for title, chart in found.items() if chart}


def accuracy_against_spikes(records: Sequence[Record], dataset: str) -> Spec:
    """Test accuracy against the spikes of all layers, with the front through the means over the seeds."""
    rows = list(_spike_rows(records, dataset))
    seen = _filtered(_chart(rows)).transform_calculate(accuracy="100 * datum[rule]")
    picked = _picked()
    x = alt.X("spikes:Q", title="spikes per image, all layers").scale(type="log", nice=False, padding=20)
    x = x.axis(labelOverlap="greedy", labelSeparation=8, format=",~f")
    y = alt.Y("accuracy:Q", title="test accuracy (%)").scale(zero=False)
    color = _color(records, dataset)
    shape = alt.Shape("when:N", title=None).legend(orient="top")
    shape = shape.scale(domain=[EARLY, WHOLE], range=["circle", "triangle-up"])
    links = seen.mark_line(strokeWidth=1).encode(
        x,
        y,
        color,
        detail="record:N",
        opacity=alt.when(picked).then(alt.value(0.4)).otherwise(alt.value(0.05)),
    )
    marks = seen.mark_point(filled=True, size=70).encode(
        x, y, color,
        shape=shape,
        opacity=alt.when(picked).then(alt.value(0.9)).otherwise(alt.value(0.1)),
        tooltip=[
            "method:N", "seed:Q", "network:N", "when:N", alt.Tooltip("spikes:Q", format=".1f"),
            alt.Tooltip("accuracy:Q", format=".2f", title="accuracy (%)"),
        ],
    ).add_params(picked)  # fmt: skip
    steps = (
        _chart(list(_front_rows(records, dataset)))
        .transform_filter("datum.rule == rule")
        .mark_line(interpolate="step-after", strokeDash=[5, 4], strokeWidth=1, color="gray")
        .encode(x, y)
    )
    return _of_runs(alt.layer(steps, links, marks), "Test accuracy against spikes per image, one mark a run.")


def decision_times(records: Sequence[Record], dataset: str) -> Spec | None:
    """Share of images whose first output spike has come, and is right, at each moment of the window."""
    rows = list(_decision_rows(records, dataset))
    if not rows:
        return None
    x = alt.X("time:Q", title="stopped at (fraction of the window)").scale(domain=[0, 1])
    y = alt.Y("right:Q", title="right decisions (% of the test images)")
    curves = _filtered(_chart(rows)).encode(x, y, _color(records, dataset), detail="record:N")
    tooltip = [
        "method:N",
        "seed:Q",
        alt.Tooltip("at:Q", format=".4~g", title="time"),
        "unit:N",
        alt.Tooltip("right:Q", format=".2f", title="right (%)"),
    ]
    lines = curves.mark_line(interpolate="step-after", strokeWidth=1.3)
    return _with_hover(lines, curves, tooltip, "Accuracy if stopped at time t, one curve a run.")


def learning_curves(records: Sequence[Record], dataset: str) -> Spec:
    """Error by epoch: on the training images while learning, on others where that was recorded."""
    rows = list(_learning_rows(records, dataset))
    x = alt.X("epoch:Q", title="epoch").scale(nice=False)
    y = (
        alt.Y("error:Q", title="error (%)")
        .scale(type="symlog", constant=0.1)
        .axis(values=ERRORS, format="~g")
    )
    parts = [TRAINING, *PARTS.values()]
    curves = (
        _filtered(_chart(rows))
        .transform_calculate(error="100 * (1 - datum[rule])")
        .encode(x, y, _color(records, dataset), detail=["record:N", "images:N"])
    )
    dash = (
        alt.StrokeDash("images:N", title=None)
        .legend(orient="top")
        .scale(domain=parts, range=[[1, 0], [5, 3], [1.5, 2]])
    )
    tooltip = [
        "method:N", "seed:Q", "epoch:Q", "images:N", alt.Tooltip("error:Q", format=".2f", title="error (%)"),
    ]  # fmt: skip
    lines = curves.mark_line(strokeWidth=1.2).encode(dash)
    return _with_hover(lines, curves, tooltip, "Error by epoch, one curve a run and set of images.")


def raster() -> Spec:
    """Every spike of one image, layer above layer.

    The page fills in, of a record: the data `spikes` and `decision`, and the signals `layers`, names from the
    input on, `window`, and `told`, what was decided. A layer is a band of height 1, whatever its size.
    """
    names = alt.Axis(
        title=None,
        grid=False,
        ticks=False,
        values=alt.ExprRef("sequence(0.5, length(layers))"),
        labelExpr="layers[floor(datum.value)]",
    )
    x = alt.X("time:Q").scale(domain=alt.ExprRef("[0, window]"), nice=False)
    y = alt.Y("place:Q", axis=names).scale(domain=alt.ExprRef("[0, length(layers)]"), nice=False)
    tooltip = ["layer:N", "neuron:Q", alt.Tooltip("time:Q", format=".4~g")]
    spikes = alt.Chart(alt.NamedData(name="spikes")).mark_tick(orient="vertical", thickness=1.5, size=5)
    decision = alt.Chart(alt.NamedData(name="decision")).mark_rule(strokeDash=[4, 3], color="crimson")
    chart = alt.layer(spikes.encode(x, y, tooltip=tooltip), decision.encode(x))
    chart = chart.properties(
        title=alt.TitleParams(alt.ExprRef("told"), anchor="start", fontWeight="normal", fontSize=11)
    )
    signals = [
        alt.param(name=name, value=value) for name, value in (("layers", []), ("window", 1), ("told", ""))
    ]
    return _finished(chart, "Spikes of one image by layer; the dashed line is the decision.", *signals)


def _spike_rows(records: Sequence[Record], dataset: str) -> Iterator[Spec]:
    for row, run in _runs(records, dataset):
        if run.test.neurons_fire == "never":  # which a logarithmic axis has no place for
            continue
        for when, spikes in ((EARLY, run.test.until_decision), (WHOLE, run.test.total)):
            yield row | {"when": when, "spikes": sum(spikes)} | run.test.accuracy


def _front_rows(records: Sequence[Record], dataset: str) -> Iterator[Spec]:
    table = comparison(records, dataset)
    for rule in RULES:
        best = front(table, rule)
        points = zip(best["all until decision"], best[accuracy_column(rule)], strict=True)
        yield from ({"rule": rule, "spikes": spikes, "accuracy": accuracy} for spikes, accuracy in points)


def _decision_rows(records: Sequence[Record], dataset: str) -> Iterator[Spec]:
    """Where a curve begins, rises and ends."""
    for row, run in _runs(records, dataset):
        if not run.test.right_histogram:
            continue
        *fired, _ = run.test.right_histogram
        rising = [(part + 1, right) for part, right in enumerate(accumulate(fired)) if fired[part]]
        last = rising[-1][1] if rising else 0
        for part, right in ((0, 0), *rising, (len(fired), last)):
            time = part / len(fired)
            share = 100 * right / run.test.samples
            at = None if run.window is None else time * run.window
            yield row | {"time": time, "at": at, "unit": run.time_unit, "right": share}


def _learning_rows(records: Sequence[Record], dataset: str) -> Iterator[Spec]:
    for row, run in _runs(records, dataset):
        for entry in run.history:
            at = row | {"epoch": entry.epoch}
            yield at | {"images": TRAINING} | _under_every_rule(entry.train.accuracy)
            for part, images in PARTS.items():
                accuracy: Accuracies | None = getattr(entry, part)
                if accuracy:
                    yield at | {"images": images} | accuracy


def _under_every_rule(accuracy: float) -> Accuracies:
    return dict.fromkeys(RULES, accuracy)


def _runs(records: Sequence[Record], dataset: str) -> Iterator[tuple[Spec, Record]]:
    """What every row says of its run, and the run."""
    for method, runs in by_config(records, dataset):
        for run in runs:
            told = {"method": method, "network": network_of(run), "seed": run.seed}
            yield told | {"record": identity(run)}, run


def _chart(rows: Sequence[Spec]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def _filtered(chart: alt.Chart) -> alt.Chart:
    """Without the methods and networks that the filter leaves out."""
    return chart.transform_filter("indexof(lower(datum.method + ' ' + datum.network), lower(filter)) >= 0")


def _color(records: Sequence[Record], dataset: str) -> alt.Color:
    methods = [method for method, _ in by_config(records, dataset)]
    return alt.Color("method:N", title=None).scale(domain=methods, scheme="tableau20")


def _picked() -> alt.Parameter:
    """The methods clicked at in the legend; all, if none is."""
    return alt.selection_point(name="picked", fields=["method"], bind="legend")


def _with_hover(lines: alt.Chart, curves: alt.Chart, tooltip: list[Any], description: str) -> Spec:
    """Lines, and marks with a tooltip at their points, seen where the pointer is."""
    picked = _picked()
    near = alt.selection_point(name="near", on="pointerover", clear="pointerout", empty=False)
    marks = curves.mark_point(filled=True, size=120).encode(
        tooltip=tooltip, opacity=alt.when(near).then(alt.value(1)).otherwise(alt.value(0))
    )
    shade = alt.when(picked).then(alt.value(0.9)).otherwise(alt.value(0.08))
    return _of_runs(
        alt.layer(lines.encode(opacity=shade).add_params(picked), marks.add_params(near)), description
    )


def _finished(chart: Layers, description: str, *signals: alt.Parameter) -> Spec:
    return (
        chart.add_params(*signals)
        .properties(width="container", height=HEIGHT, description=description)
        .to_dict()
    )


def _of_runs(chart: Layers, description: str) -> Spec:
    return _finished(
        chart, description, alt.param(name="rule", value=RULE), alt.param(name="filter", value="")
    )
