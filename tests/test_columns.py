"""The columns of the table that one chooses by name, and text that fits a terminal."""

import io
from collections import Counter

import pandas as pd
import pytest
from tiny_runs import record

from reproductions import columns, tables, text
from reproductions.errors import SuiteError
from ssnn_plugin.metrics import RULES

RUNS = [record(0.95), record(0.97, seed=1), record(0.90, t_max=4.0, name="other-digits", dataset="digits")]


def _selected(*names, rule="potential", runs=RUNS, dataset="mnist"):
    return columns.selected(tables.comparison(runs, dataset), names, rule)


def _shown(*names, **options):
    (row,) = tables.shown(_selected(*names, **options)).to_dict("records")
    return row


@pytest.mark.parametrize(("rule", "accuracy", "gap"), [("lenient", 96, -1.4), ("unique", 80, -17.4)])
def test_accuracy_and_difference_are_those_of_the_rule(rule, accuracy, gap):
    (row,) = _selected("accuracy", "difference", rule=rule).to_dict("records")
    assert row[f"{rule} %"] == pytest.approx(accuracy)
    assert row["difference"] == pytest.approx(gap)


def test_columns_come_in_the_order_asked_for_and_once():
    table = _selected("seeds", "accuracy", "potential", "method")
    assert list(table) == ["seeds", "potential %", "potential % deviation", "method"]


def test_spikes_are_the_sum_over_the_layers():
    (row,) = _selected("spikes", "until-decision").to_dict("records")
    assert row == {"all spikes": 232, "all until decision": 151}
    assert _shown("spikes", "until-decision") == {"spikes": "232", "until decision": "151"}


def test_spikes_per_neuron_are_those_of_hidden_and_output_neurons():
    """80 + 2 spikes of 400 + 10 neurons."""
    (row,) = _selected("per-neuron").to_dict("records")
    assert row == {"spikes per neuron": pytest.approx(82 / 410)}
    passing_on = RUNS[0].model_copy(update={"test": RUNS[0].test.model_copy(update={"total": [150, 80, 0]})})
    assert tables.comparison([passing_on], "mnist")["spikes per neuron"].item() == 80 / 400
    assert _shown("per-neuron") == {"spikes per neuron": "0.2"}


def test_brief_columns_in_words():
    assert _shown(*columns.BRIEF, rule="lenient") == {
        "method": "s4nn", "network": "784-400-10", "seeds": "2", "lenient %": "96.00 ± 1.41", "spikes": "232",
        "response": "7.0 bins", "published": "97.4 P", "difference": "-1.40",
    }  # fmt: skip


def test_brief_columns_without_a_published_number():
    row = _shown(*columns.BRIEF, dataset="digits")
    assert (row["response"], row["published"], row["difference"]) == ("7.00 units", "", "")


def test_a_published_number_of_another_network_has_a_star():
    row = _shown("published", runs=[record(network_name="1000")])
    assert row == {"published": "97.4 P*"}
    assert "*: of another network" in columns.legend(["published"], "potential")


@pytest.mark.parametrize("name", columns.COLUMNS)
def test_every_column_can_be_shown_alone_in_every_format(name):
    for style in tables.FORMATS:
        assert tables.render_all(RUNS, style, [name]).strip()
    (row,) = tables.shown(_selected(name)).to_dict("records")
    assert len(row) == 1
    assert all(row.values()) or name == "readouts"  # which only the sleeping network has


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_column(rule):
    pd.testing.assert_frame_equal(_selected(rule, rule="potential"), _selected("accuracy", rule=rule))


def test_what_is_unknown_is_refused_with_what_there_is():
    with pytest.raises(SuiteError, match=r"--columns must be of method, network.*, got 'speed'"):
        _selected("method", "speed")
    with pytest.raises(SuiteError, match=r"--rule must be one of lenient, .*, got 'best'"):
        _selected("method", rule="best")


def test_the_other_formats_keep_all_columns_unless_some_are_chosen():
    every = {"lenient %", "unique %", "ties %", "spikes: hidden 1", "minus published"}
    full = pd.read_csv(io.StringIO(tables.render_all(RUNS, "csv")))
    assert every <= set(full)
    for chosen in ({"names": ["method"]}, {"rule": "lenient"}):
        some = pd.read_csv(io.StringIO(tables.render_all(RUNS, "csv", **chosen)))
        assert not every - {"lenient %"} & set(some)


def test_a_column_of_csv_holds_numbers():
    chosen = ["spikes", "response", "published", "difference"]
    table = pd.read_csv(io.StringIO(tables.render_all(RUNS, "csv", chosen)))
    assert set(table.select_dtypes("number")) >= {"all spikes", "mean response", "published", "difference"}


@pytest.mark.parametrize("width", [30, 60, 100])
def test_text_loses_nothing_however_narrow(width):
    row = {
        "method": "a-method-of-a-long-name",
        "network": "784-32C5-A2-64C5-A2-300-10",
        "%": "96.00 ± 1.41",
        "source": "Kheradpisheh, Mirsadeghi & Masquelier 2021 (BS4NN), doi 10.22060/eej.2023.21991.5502",
    }
    heading, _, *body = text.fitted(pd.DataFrame([row]), {"%"}, width).splitlines()
    assert heading.split() == list(row)
    assert "a-method-of-a-long-name" in body[0]
    assert "96.00 ± 1.41" in body[0]
    assert Counter("".join("".join(body).split())) == Counter("".join("".join(row.values()).split()))


def test_text_fits_and_aligns_numbers_to_the_right():
    words = pd.DataFrame({"n": ["5", "1234"], "source": ["word " * 40, "short"]})
    lines = text.fitted(words, {"n"}, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("   n  source")
    assert lines[2].startswith("   5  word")
    assert lines[-1] == "1234  short"


@pytest.mark.parametrize(
    "name", ["784-10", "fully connected", "4704-1000-10", "784-" + "9" * 30, "convolutional-and-more"]
)
def test_a_broken_name_has_all_its_characters(name):
    assert text.broken(name).replace("\n", "") == name
