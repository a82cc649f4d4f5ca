"""Figures of recorded runs, each as PNG and SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullFormatter

from .columns import DEVIATION, RULE, accuracy_column
from .records import FewLabels, Record, atomic_write, require_writable
from .tables import by_config, comparison, few_labels_table, front

# Of the histogram of response times, over the whole window.
BARS = 32
# Ticks of the axis of accuracies (%), of which the many are for a narrow range; 100 has a place on it.
FEW = [10, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9]
MANY = [
    81,
    83,
    85,
    87,
    88,
    89,
    90,
    91,
    92,
    93,
    94,
    95,
    96,
    97,
    97.5,
    98,
    98.5,
    99,
    99.3,
    99.5,
    99.7,
    99.8,
    99.9,
]
PERFECT = 100.01
# Of a figure in inches, at least, and how many entries a column of its legend has at most.
SIZE, MOST_ENTRIES = (8.5, 4.5), 45


def draw_all(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw every figure; return the files written."""
    require_writable(folder)
    written = []
    for dataset in sorted({record.dataset for record in records}):
        runs = [record for record in records if record.dataset == dataset]
        figures = {
            "learning-curves": learning_curves(runs),
            "accuracy-spikes": accuracy_against_spikes(runs),
            "response-times": response_times(runs),
        }
        if any(run.test.right_histogram for run in runs):
            figures["decision-times"] = decision_times(runs)
        for name in sorted({run.name for run in runs}):
            figures[f"raster-{name}"] = raster(next(run for run in runs if run.name == name))
        for kind, figure in figures.items():
            written += _save(figure, folder, kind if kind.endswith(dataset) else f"{kind}-{dataset}")
    return written


def draw_few_labels(record: FewLabels, folder: Path) -> list[Path]:
    """Draw accuracy against labelled images per class; return the files written."""
    require_writable(folder)
    return _save(few_labels(record), folder, f"few-labels-{record.dataset}")


def few_labels(record: FewLabels) -> Figure:
    """Accuracy against labelled images per class, mean and standard deviation over seeds."""
    figure, axes = _figure()
    table = few_labels_table(record)
    ticks = [str(result) for result in table["labelled per class"].astype(object).fillna("all")]
    names = list(dict.fromkeys(result.classifier for result in record.results))
    for number, name in enumerate(names):
        places = np.arange(len(ticks)) + 0.08 * (number - (len(names) - 1) / 2)
        means, deviations = table[f"{name} %"], table[f"{name} %{DEVIATION}"].fillna(0)
        axes.errorbar(places, means, deviations, marker="o", ms=4, capsize=3, lw=1, label=name)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(
        xlabel="labelled images per class", ylabel="test accuracy (%)",
        title=f"{record.dataset}, {record.features['extractor']}",
    )  # fmt: skip
    axes.legend()
    return figure


def learning_curves(runs: Sequence[Record]) -> Figure:
    """Error over epochs: training (lenient, while learning) and, where it was kept, held-out data."""
    figure, axes = _figure()
    for color, name, group in _colored_groups(runs):
        for number, run in enumerate(group):
            epochs = [entry.epoch for entry in run.history]
            training = [100 * (1 - entry.train.accuracy) for entry in run.history]
            style: dict[str, Any] = {"color": color, "lw": 1, "marker": "." if len(epochs) == 1 else None}
            axes.plot(epochs, training, label=f"{name}, training" if number == 0 else None, **style)
            for part, dashes in (("validation", "--"), ("test", ":")):
                if getattr(run.history[0], part):
                    error = [100 * (1 - getattr(entry, part)["lenient"]) for entry in run.history]
                    label = f"{name}, {part}" if number == 0 else None
                    axes.plot(epochs, error, dashes, label=label, **style)
    axes.set(
        xlabel="epoch", ylabel="error (%), lenient rule", yscale="log", title=_title(runs, "learning curves")
    )
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else range(1, 10)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    _legend_beside(axes)
    return figure


def accuracy_against_spikes(runs: Sequence[Record]) -> Figure:
    """Test accuracy (potential rule) against all spikes until the decision; open marks: whole window.

    Squares are networks whose neurons fire repeatedly, triangles those on features, in front of which more
    goes on than is counted; a dotted line has no spikes. The front is drawn through the means over the seeds:
    no other network on the images themselves is both better and sparser.
    """
    figure, axes = _figure()
    _stretch(axes)
    for color, name, group in _colored_groups(runs):
        accuracy = [100 * run.test.accuracy["potential"] for run in group]
        kind = group[0].test.neurons_fire
        if kind == "never":
            axes.axhline(mean(accuracy), color=color, lw=1, ls=":", label=f"{name} (no spikes)")
            continue
        early, all_ = ([sum(getattr(run.test, key)) for run in group] for key in ("until_decision", "total"))
        shape = "^" if group[0].features else "s" if kind == "repeatedly" else "o"
        mark: dict[str, Any] = {"marker": shape, "s": 36}
        axes.plot([early, all_], [accuracy, accuracy], color=color, lw=0.6, alpha=0.5)
        axes.scatter(all_, accuracy, edgecolors=color, facecolors="white", zorder=3, **mark)
        whole = early == all_
        axes.scatter(early, accuracy, color=color, zorder=4 if whole else 2, label=name, **mark)
    axes.scatter([], [], edgecolors="0.4", facecolors="none", s=36, label="whole window")
    axes.scatter([], [], color="0.4", marker="s", s=36, label="fires repeatedly")
    axes.scatter([], [], color="0.4", marker="^", s=36, label="on features")
    best = front(comparison(runs, runs[0].dataset))
    line: dict[str, Any] = {"color": "0.6", "lw": 1, "ls": "--", "label": "front", "zorder": 0}
    axes.step(best["all until decision"], best[accuracy_column(RULE)], where="post", **line)
    axes.set_title(_title(runs, "accuracy against spikes; filled: until the decision"))
    _scale_accuracy_against_spikes(axes)
    _legend_beside(axes)
    return figure


def _scale_accuracy_against_spikes(axes: Axes) -> None:
    """Labels and ticks for what has been drawn."""
    axes.set(
        xlabel="spikes per image, input + hidden + output",
        xscale="log",
        ylabel="test accuracy (%), potential rule",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k: longer labels would overlap
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    ticks = [tick for tick in (MANY if low > 80 else FEW) if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks) if len(ticks) > 1 else MaxNLocator(4))
    axes.yaxis.set_major_formatter("{x:g}")


def _stretch(axes: Axes) -> None:
    """Halving the error takes the same way up everywhere, so that networks at 70 % and at 99 % fit in."""
    axes.set_yscale(
        "function", functions=(lambda y: -np.log10(np.maximum(PERFECT - y, 1e-3)), lambda z: PERFECT - 10**-z)
    )


def decision_times(runs: Sequence[Record]) -> Figure:
    """Accuracy if stopped at time t: images whose first output spike has come, and is right."""
    figure, axes = _figure()
    for color, name, group in _colored_groups([run for run in runs if run.test.right_histogram]):
        for number, run in enumerate(group):
            right = np.cumsum((run.test.right_histogram or [])[:-1]) / run.test.samples
            moments = np.linspace(0, 1, len(right) + 1)
            label = name if number == 0 else None
            axes.step(moments, [0, *(100 * right)], where="post", color=color, lw=1, label=label)
    axes.set(xlabel="stopped at (fraction of the window)", ylabel="test accuracy (%), silence is an error",
             title=_title(runs, "accuracy if stopped at time t"))  # fmt: skip
    # The curves fill the axes.
    _legend_beside(axes)
    return figure


def response_times(runs: Sequence[Record]) -> Figure:
    """Distribution of the time of the first output spike; silent samples are in the legend."""
    figure, axes = _figure()
    for color, name, group in _colored_groups(runs):
        counts = np.sum([run.test.response_histogram for run in group], axis=0)
        share = 100 * counts / counts.sum()
        earlier = np.concatenate([[0], share[:-1].cumsum()])
        edges = np.linspace(0, 1, BARS + 1)
        bars = np.diff(np.interp(edges, np.linspace(0, 1, len(earlier)), earlier))
        label = f"{name} (silent: {share[-1]:.1f} %)"
        axes.stairs(bars, edges, color=color, fill=True, alpha=0.35, label=label)
    axes.set(xlabel="first output spike (fraction of the window)", ylabel="share of test images (%)",
             title=_title(runs, "response times"))  # fmt: skip
    _legend_beside(axes)
    return figure


def raster(run: Record) -> Figure:
    """Every spike of one test image, layer above layer, with the moment of decision."""
    times = run.test.example.times
    # In continuous time `t_max` may be a bound that no spike comes near.
    latest = max((t for layer in times for t in layer if t is not None), default=run.t_max)
    t_max = latest if run.time_unit == "units" else run.t_max
    names = [
        "input",
        *(f"hidden {k}" if len(times) > 3 else "hidden" for k in range(1, len(times) - 1)),
        "output",
    ]
    figure, axes = plt.subplots(
        len(times),
        1,
        sharex=True,
        figsize=(7, 5.5),
        layout="constrained",
        height_ratios=[3, *[3] * (len(times) - 2), 2],
    )
    decision, told = _decision(run)
    for axis, layer, name in zip(axes, times, names, strict=True):
        spikes = [(t, neuron) for neuron, t in enumerate(layer) if t is not None]
        x, y = zip(*spikes, strict=True) if spikes else ((), ())
        mark = {"marker": "o", "s": 30} if name == "output" else {"marker": "|", "s": 6}
        axis.scatter(x, y, color="C0", linewidths=1, zorder=3, **mark)
        axis.set(
            ylabel=f"{name}\n({len(spikes)} of {len(layer)})",
            ylim=(-1, len(layer)),
            xlim=(-0.01 * t_max, 1.01 * t_max),
        )
        if decision is not None:
            axis.axvline(decision, color="C3", lw=1, ls="--")
    axes[-1].set_yticks(range(len(times[-1])))
    axes[-1].tick_params(axis="y", labelsize=6)
    axes[-1].set_xlabel(f"time ({run.time_unit})")
    label = run.test.example.label
    figure.suptitle(f"{run.name}, seed {run.seed}: first test image, label {label}, {told}", fontsize=10)
    return figure


def _decision(run: Record) -> tuple[float | None, str]:
    """When the example of a record is decided, if by a first spike, and how."""
    if run.test.neurons_fire != "once":
        return None, "decided after all steps"
    fired = {neuron: t for neuron, t in enumerate(run.test.example.times[-1]) if t is not None}
    if not fired:
        return None, "no output spike"
    time = min(fired.values())
    several = run.outputs_per_class
    of_class = {neuron: f" (class {neuron // several})" if several > 1 else "" for neuron in fired}
    first = " and ".join(f"{neuron}{of_class[neuron]}" for neuron, t in fired.items() if t == time)
    return time, f"first spike of output {first} at {time:.4g}"


def _save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    written = [folder / f"{stem}.{ending}" for ending in ("png", "svg")]
    for path in written:
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:], dpi=150)
    plt.close(figure)
    return written


def _legend_beside(axes: Axes) -> None:
    """To the right of the axes, where it covers nothing that is drawn, on a figure with room for it."""
    entries = len(axes.get_legend_handles_labels()[1])
    columns = max(1, math.ceil(entries / MOST_ENTRIES))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), ncols=columns)
    (width, height), figure = SIZE, axes.figure
    assert isinstance(figure, Figure)
    figure.set_size_inches(width + 2.5 * (columns - 1), max(height, 0.21 * math.ceil(entries / columns)))


def _figure() -> tuple[Figure, Axes]:
    return plt.subplots(figsize=SIZE, layout="constrained")


def _colored_groups(runs: Sequence[Record]) -> Iterator[tuple[str, str, list[Record]]]:
    """Color, name and runs of each config."""
    if not runs:
        return
    shades, more, last = (
        [to_hex(color) for color in colormaps[name].colors]  # type: ignore[attr-defined]
        for name in ("tab20", "tab20b", "tab20c")
    )
    # The ten usual colors, their lighter shades, then forty others.
    colors = itertools.cycle(shades[::2] + shades[1::2] + more + last)
    for color, (name, group) in zip(colors, by_config(runs, runs[0].dataset), strict=False):
        yield color, name, group


def _title(runs: Sequence[Record], what: str) -> str:
    return f"{runs[0].dataset}: {what}"
