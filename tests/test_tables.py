import csv
import io
import re

import pandas as pd
import pytest
from tiny_runs import record

from reproductions import tables
from reproductions.errors import SuiteError
from ssnn_plugin.metrics import RULES

PUBLISHED = list(csv.DictReader(tables.PUBLISHED.open(encoding="utf-8")))
SPECIAL = pd.DataFrame({"share_a %": ["50 % & more", "a_b #1"], "{x}": ["1 $", "<b>"]})


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Published numbers of S4NN on MNIST: 97.4 in the paper, 96.69 measured elsewhere."""
    path = tmp_path / "published.csv"
    path.write_text(
        "method,dataset,network,metric,value,rule,source,certainty,note\n"
        "s4nn,mnist,784-400-10,accuracy,96.69,lenient,weights,M,\n"
        "s4nn,mnist,784-400-10,response_time,83.2,,paper,P,\n"
        "s4nn,mnist,784-400-10,accuracy,97.4,,paper,P,\n"
        "other,mnist,784-400-10,accuracy,89.9,first_index,paper,P,\n"
    )
    monkeypatch.setattr(tables, "PUBLISHED", path)


def _rows(*records, dataset="mnist"):
    return tables.shown(tables.comparison(records, dataset)).to_dict("records")


def test_seeds_are_averaged_with_their_standard_deviation():
    (row,) = _rows(*(record(lenient, seed=seed) for seed, lenient in enumerate([0.95, 0.96, 0.97])))
    assert (row["method"], row["network"], row["seeds"], row["epochs"]) == ("s4nn", "784-400-10", "3", "1")
    assert row["lenient %"] == "96.00 ± 1.00"
    assert row["first index %"] == "90.00 ± 0.00"
    assert row["spikes: input + hidden + output"] == "150.0 + 80.0 + 2.0"
    assert row["of these until the decision"] == "90.0 + 60.0 + 1.0"
    assert row["ties / silent %"] == "10.0 / 0.0"


def test_one_seed_has_no_deviation():
    (row,) = _rows(record(0.95))
    assert (row["seeds"], row["lenient %"]) == ("1", "95.00")


def test_other_configs_names_and_data_sets_are_kept_apart():
    records = [record(0.95), record(0.93, config_hash="b" * 12), record(0.91, name="s4nn-tuned-mnist"),
               record(0.5, dataset="digits", name="s4nn-digits")]  # fmt: skip
    rows = _rows(*records)
    assert [(row["method"], row["lenient %"]) for row in rows] == [
        (f"s4nn ({'a' * 12})", "95.00"), (f"s4nn ({'b' * 12})", "93.00"), ("s4nn-tuned", "91.00"),
    ]  # fmt: skip
    assert [row["lenient %"] for row in _rows(*records, dataset="digits")] == ["50.00"]


def test_names_that_the_data_set_alone_tells_apart_keep_it():
    rows = _rows(record(0.95, name="s4nn"), record(0.91, name="s4nn-mnist"), record(0.9, name="ts4tl-mnist"))
    assert [row["method"] for row in rows] == ["s4nn", "s4nn-mnist", "ts4tl"]


def test_the_best_test_epoch_has_a_column_that_says_so():
    tracked = record(0.95, best_test_epoch={"epoch": 1, "accuracy": dict.fromkeys(RULES, 0.97)})
    (row,) = _rows(tracked)
    (column,) = [key for key in row if "best test epoch" in key]
    assert "chooses nothing" in column
    assert (row[column], row["lenient %"]) == ("97.00", "95.00")
    assert not any("best test epoch" in key for key in _rows(record())[0])


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("lenient", "verdict"),
    [
        ([0.964], "falls short by 1.00 (lenient, assumed)"),
        ([0.984], "reached, +1.00 (lenient, assumed)"),
        ([0.974], "reached, +0.00 (lenient, assumed)"),
        ([0.973, 0.975], "reached, +0.00 (lenient, assumed)"),
        ([0.970, 0.974], "falls short by 0.20 (lenient, assumed)"),
    ],
)
def test_the_verdict_has_the_right_sign(lenient, verdict):
    (row,) = _rows(*(record(value, seed=seed) for seed, value in enumerate(lenient)))
    assert row["published %"] == "97.4 [P]"
    assert row["against published"] == verdict


@pytest.mark.usefixtures("published")
def test_a_paper_is_compared_under_its_own_rule():
    (row,) = _rows(record(0.95, name="other-mnist", method="other"))
    assert (row["first index %"], row["against published"]) == ("90.00", "reached, +0.10 (first index)")


@pytest.mark.usefixtures("published")
def test_a_published_number_of_another_network_is_marked():
    other = record(network_name="1000")
    (row,) = _rows(other)
    assert (row["network"], row["published %"]) == ("784-1000-10", "97.4 [P, 784-400-10]")


def test_the_published_number_is_that_of_the_same_network_if_there_is_one(published):
    with tables.PUBLISHED.open("a") as file:
        file.write("s4nn,mnist,784-1000-10,accuracy,97.9,lenient,paper,P,\n")
    for name, number in (("400", "97.4 [P]"), ("1000", "97.9 [P]"), ("50", "97.4 [P, 784-400-10]")):
        assert _rows(record(network_name=name))[0]["published %"] == number


def test_outputs_that_are_the_only_neurons_and_silent():
    run = record()
    example = run.test.example.model_copy(update={"times": [[1.0] * 784, [None] * 10]})
    silent = {"total": [150.0, 0.0], "until_decision": [150.0, 0.0], "example": example, "silent": 1.0}
    run = run.model_copy(update={"network_name": "", "test": run.test.model_copy(update=silent)})
    assert _rows(run)[0]["spikes per neuron"] == "0"


def test_a_method_with_an_underscore_is_cited(published):
    table = pd.DataFrame({"method": ["own_method", "s4nn"]})
    text = tables.render(table, "tex", cited={"own_method": "s4nn"})
    assert text.count("kheradpisheh") == 2
    assert r"own\_method \cite{" in text


@pytest.mark.parametrize(("name", "network"), [("", "784-10"), ("16C5s2-128", "784-16C5s2-128-10")])
def test_a_network_is_named_from_inputs_to_outputs(name, network):
    assert _rows(record(network_name=name))[0]["network"] == network


def test_response_times_have_their_unit():
    rows = _rows(record(t_max=16), record(t_max=4.0, name="continuous-mnist"))
    assert [row["response"] for row in rows] == ["7.000 units", "7.0 bins"]


@pytest.mark.usefixtures("published")
def test_without_a_published_number_there_is_no_verdict():
    (row,) = _rows(record(dataset="digits"), dataset="digits")
    assert (row["published %"], row["against published"]) == ("", "")


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row['method']}-{row['dataset']}-{row['value']}")
def test_published_rows_carry_source_and_a_known_certainty(row):
    assert all(row[key] for key in ("method", "dataset", "network", "metric", "source"))
    assert row["certainty"] in tables.CERTAINTY
    assert float(row["value"]) > 0
    assert row["rule"] in ("", *RULES)


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_references_show_value_source_and_certainty_as_written(dataset):
    shown = tables.references(dataset).to_dict("records")
    expected = [row for row in PUBLISHED if row["dataset"] == dataset]
    assert [str(row["value"]) for row in shown] == [row["value"] for row in expected]
    assert [row["source"] for row in shown] == [row["source"] for row in expected]
    assert [row["note"] for row in shown] == [row["note"] for row in expected]
    for row, written in zip(shown, expected, strict=True):
        assert row["how sure"] == f"{written['certainty']}: {tables.CERTAINTY[written['certainty']]}"


@pytest.mark.parametrize("style", tables.FORMATS)
def test_every_format_shows_rows_and_references(style):
    text = tables.render(tables.comparison([record(0.95), record(0.97, seed=1)], "mnist"), style)
    assert ("96,1.41421" if style == "csv" else "96.00 ± 1.41") in text
    assert "784-400-10" in tables.render(tables.references("mnist"), style)


def test_an_unknown_format_is_refused_with_those_there_are():
    with pytest.raises(SuiteError, match="text, md, tex, csv, html, got 'xyz'"):
        tables.render(SPECIAL, "xyz")


@pytest.mark.parametrize(
    "table",
    [SPECIAL, tables.comparison([record()], "mnist"), tables.references("mnist")],
    ids=["special", "runs", "published"],
)
def test_latex_special_characters_are_escaped(table):
    text = tables.render(table, "tex")
    body = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == len(table) + 1
    for line in body:
        assert not re.search(r"(?<!\\)[%#_$]", line)
        assert len(re.findall(r"(?<!\\)&", line)) == tables.shown(table).shape[1] - 1


def test_csv_parses_back():
    read = pd.read_csv(io.StringIO(tables.render(SPECIAL, "csv")))
    pd.testing.assert_frame_equal(read, SPECIAL)


def test_a_cell_of_csv_holds_a_number():
    deep = record(0.9, name="deep-mnist")
    layers = {"total": [150.0, 80.0, 20.0, 2.0], "until_decision": [90.0, 60.0, 10.0, 1.0]}
    deep = deep.model_copy(update={"test": deep.test.model_copy(update=layers)})
    read = pd.read_csv(
        io.StringIO(tables.render_all([record(0.95), record(0.97, seed=1), deep], "csv")), index_col="method"
    )
    words = {
        "network",
        "features",
        "neurons fire",
        "counts all spikes",
        "response unit",
        "published certainty",
        "published network",
        "published rule",
        "data set",
    }
    assert set(read.select_dtypes(exclude="number")) <= words
    assert read.loc["s4nn", "lenient %"] == pytest.approx(96)
    assert read.loc["s4nn", "lenient % deviation"] == pytest.approx(2**0.5, abs=1e-5)
    assert read.loc["s4nn", "minus published"] == pytest.approx(96 - 97.4)
    spikes = [column for column in read if column.startswith("spikes: ")]
    assert spikes == ["spikes: input", "spikes: hidden 1", "spikes: hidden 2", "spikes: output"]
    assert read.loc["deep", spikes].tolist() == [150, 80, 20, 2]
    assert read.loc["s4nn", spikes].isna().tolist() == [False, False, True, False]


def test_html_is_escaped():
    assert "&lt;b&gt;" in tables.render(SPECIAL, "html")


def test_a_recipe_is_compared_with_the_paper_that_its_name_begins_with():
    from reproductions.tables import _paper

    papers = {"s4nn", "ts4tl", "ds4nn", "stdp-ncg"}
    assert _paper("s4nn-tuned", papers) == "s4nn"
    assert _paper("ds4nn-every-bin", papers) == "ds4nn"
    assert _paper("stdp-ncg", papers) == "stdp-ncg"
    assert _paper("sparse-ramp-conv", papers) == "sparse-ramp-conv"


def test_a_readout_of_the_authors_is_what_is_compared_with_their_paper(published):
    run = record(0.99)
    test = run.test.model_copy(update={"readouts": {"fair": 0.99, "authors": 0.95}})
    (row,) = _rows(run.model_copy(update={"test": test}))
    assert row["against published"] == "falls short by 2.40 (authors' readout)"


def test_the_front_is_what_nothing_beats_in_both_accuracy_and_spikes():
    def network(name, accuracy, spikes):
        run = record(name=f"{name}-mnist")
        test = {
            "accuracy": run.test.accuracy | {"potential": accuracy},
            "until_decision": [spikes - 1.0, 0.0, 1.0],
        }
        return run.model_copy(update={"test": run.test.model_copy(update=test)})

    drawn = [("a", 0.97, 100), ("b", 0.96, 200), ("c", 0.98, 300), ("d", 0.98, 400), ("e", 0.975, 300)]
    table = tables.comparison([network(*each) for each in drawn], "mnist")
    front = tables.front(table)
    assert front["method"].tolist() == ["a", "c"]
    assert front["all until decision"].tolist() == [100, 300]
    assert tables.front(table, "lenient")["method"].tolist() == ["a"]
