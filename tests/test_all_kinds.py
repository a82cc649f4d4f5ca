"""Networks that fire once, repeatedly or never, on images or on features: in one table and one figure."""

import sys
from pathlib import Path

import pytest
from tiny_runs import record

from reproductions import figures
from reproductions.report import charts
from reproductions.tables import comparison, shown
from ssnn_plugin.metrics import RULES

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import tables as pages


def run(name, accuracy, spikes, *, repeatedly=False, extractor=None):
    """A record whose spikes, before the decision and in all, add up to a number."""
    made = record(name=f"{name}-mnist")
    test = {"accuracy": dict.fromkeys(RULES, accuracy)}
    test |= {"total": [0.0, 0.0, spikes], "until_decision": [0.0, 0.0, spikes]}
    if repeatedly:
        histogram = [0] * len(made.test.response_histogram)
        histogram[-2] = made.test.samples
        test |= {"response_histogram": histogram, "right_histogram": None, "multiplications": 7}
    changes = {"test": made.test.model_copy(update=test)}
    if extractor:
        changes["config"] = {**made.config, "features": {"extractor": extractor}}
    return made.model_copy(update=changes)


@pytest.fixture
def runs():
    return [
        run("sparse", 0.96, 100.0),
        run("worse", 0.95, 200.0),
        run("deep", 0.98, 300.0),
        run("several", 0.99, 900.0, repeatedly=True),
        run("on-features", 0.99, 50.0, extractor="cnn:some"),
        run("regression", 0.97, 0.0, repeatedly=True, extractor="stdp"),
    ]


def test_a_record_tells_how_often_its_neurons_fire(runs):
    told = {made.name.removesuffix("-mnist"): made.test.neurons_fire for made in runs}
    once = dict.fromkeys(["sparse", "worse", "deep", "on-features"], "once")
    assert told == once | {"several": "repeatedly", "regression": "never"}
    assert [made.counts_all_spikes for made in runs] == [True, True, True, True, False, False]
    table = shown(comparison(runs, "mnist")).set_index("method")
    assert table["features"].to_dict() == dict.fromkeys(["sparse", "worse", "deep", "several"], "none") | {
        "on-features": "cnn:some",
        "regression": "stdp",
    }


def test_a_page_has_all_kinds_in_one_table(runs):
    table = pages._all(runs, "mnist").set_index("method")
    assert list(table.index) == ["on-features", "deep", "sparse", "worse", "several", "regression"]
    assert table.loc["several", ["spikes", "until the decision"]].tolist() == ["900", "900"]


def test_the_front_is_of_networks_on_images_that_no_other_beats(runs):
    front = pages._front(runs, "mnist")
    assert list(front["method"]) == ["sparse", "deep", "several"]
    assert list(front["neurons fire"]) == ["once", "once", "repeatedly"]


def test_the_figure_tells_the_kinds_apart_and_draws_the_same_front(runs):
    (axes,) = figures.accuracy_against_spikes(runs).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert "regression (no spikes)" in lines
    front = list(zip(*lines["front"].get_data(), strict=True))
    assert front == [(100, pytest.approx(96)), (300, pytest.approx(98)), (900, pytest.approx(99))]
    assert len(axes.get_legend().get_texts()) == len(runs) + 4


def test_the_report_leaves_out_what_has_no_spikes(runs):
    assert "regression" not in {row["method"] for row in charts._spike_rows(runs, "mnist")}
    front = [row["spikes"] for row in charts._front_rows(runs, "mnist") if row["rule"] == "potential"]
    assert front == [100, 300, 900]
