"""The web page of all records, without a browser: what is in it is what the records say."""

import base64
import gzip
import json
import re
from statistics import mean, stdev

import html5lib
import pytest
from report_runs import runs, written
from tiny_runs import record

from reproductions import columns, records, report, tables
from reproductions.errors import SuiteError
from reproductions.report import charts
from reproductions.report.listings import comparison, identity
from ssnn_plugin.metrics import RULES

PARSER = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
RUNS = runs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def page(folder):
    report.write(folder, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(page):
    return PARSER.parse(page)


def _unpacked(tree, name):
    (script,) = tree.findall(f".//script[@id='{name}']")
    return json.loads(gzip.decompress(base64.b64decode(script.text)))


def _rows(tree, dataset, table=0):
    """The cells of a table of a data set, hidden ones, too."""
    found = tree.find(f".//section[@id='data-{dataset}']").findall(".//table")[table]
    return [row.findall("td") for row in found.find("tbody")]


def _text(cell):
    return "".join(cell.itertext()).strip()


def test_the_page_is_valid_html(tree):
    assert tree.find("body") is not None
    assert not PARSER.errors
    names = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(set(names)) == len(names)


def test_the_page_names_nothing_outside_itself(tree):
    targets = [element.get(key) for element in tree.iter() for key in ("src", "href") if element.get(key)]
    assert [target for target in targets if not target.startswith(("#", "data:"))] == []
    assert "@import" not in tree.find(".//style").text
    assert "url(" not in tree.find(".//style").text


def test_every_record_is_in_the_page_as_it_is_on_disk(tree, folder):
    kept = _unpacked(tree, "records")
    assert len(kept) == len(RUNS)
    for run in RUNS:
        assert kept[identity(run)] == records.record_path(folder, run.name, run.seed).read_text(
            encoding="utf-8"
        )


def test_two_records_of_one_run_are_refused(folder, tmp_path):
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(next(folder.glob("*.json")).read_text(encoding="utf-8"))
    with pytest.raises(SuiteError, match=r"one\.json and .*two\.json are records of one run"):
        report.write(tmp_path, tmp_path / "report.html")


def test_rows_are_found_by_method_and_network(tree):
    section = tree.find(".//section[@id='data-mnist']")
    recorded, every, published = (
        {row.get("data-found").strip() for row in table.findall(".//tbody/tr")}
        for table in section.findall(".//table")
    )
    assert "few 784-400-10" in recorded & every
    assert "s4nn 784-400-10" in published


def test_every_record_is_linked(tree):
    links = {link.get("href").removeprefix("#") for link in tree.findall(".//td/a")}
    assert links == {identity(run) for run in RUNS}


def test_runs_are_listed_with_seed_config_and_commit(tree):
    rows = [[_text(cell) for cell in row] for row in _rows(tree, "digits", 1)]
    assert [row[0] for row in rows] == ["fast", "silent"]
    assert rows[0][1:3] == ["784-400-10", "0"]
    assert rows[0][-2:] == ["c" * 12, "unknown"]


@pytest.mark.parametrize("rule", RULES)
def test_numbers_to_sort_by_are_those_of_the_records(tree, rule):
    by_method = {_text(row[0]): row for row in _rows(tree, "mnist")}
    assert set(by_method) == {"few", "s4nn"}
    for method, row in by_method.items():
        group = [run for run in RUNS if run.name == f"{method}-mnist"]
        accuracies = [100 * run.test.accuracy[rule] for run in group]
        (cell,) = [
            cell for cell in row if (cell.get("data-column"), cell.get("data-rule")) == ("accuracy", rule)
        ]
        assert float(cell.get("data-value")) == pytest.approx(mean(accuracies), abs=1e-12)
        assert _text(cell) == f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f}"
        (spikes,) = [cell for cell in row if cell.get("data-column") == "spikes"]
        assert float(spikes.get("data-value")) == mean(sum(run.test.total) for run in group)


def test_a_cell_without_a_number_has_none_to_sort_by(tree):
    for row in _rows(tree, "digits"):
        (cell,) = [cell for cell in row if cell.get("data-column") == "published"]
        assert (_text(cell), cell.get("data-value")) == ("", None)


def test_the_page_has_the_columns_that_the_table_has():
    found = comparison(RUNS, "mnist")
    assert list(dict.fromkeys(column.name for column in found)) == list(columns.COLUMNS)
    shown = [column.name for column in found if column.shown]
    assert shown == [name for name in columns.COLUMNS if name in columns.BRIEF]


def test_layers_are_sorted_by_their_sum():
    (column,) = [column for column in comparison(RUNS, "mnist") if column.name == "spikes-by-layer"]
    assert [cell.value for cell in column.cells] == [91, 232]


def test_published_numbers_have_source_and_certainty(tree):
    known = tables.references("mnist")
    rows = _rows(tree, "mnist", 2)
    assert len(rows) == len(known)
    for row, (_, expected) in zip(rows, known.iterrows(), strict=True):
        assert [_text(cell) for cell in row] == [expected[name].strip() for name in known]
        assert float(row[3].get("data-value")) == float(expected["value"])
    assert len(tree.findall(".//section[@id='data-digits']//table")) == 2


def _values(specification):
    """The rows of a chart that tell of runs."""
    return next(rows for rows in specification["datasets"].values() if "method" in rows[0])


def test_the_chart_of_spikes_has_every_run_twice(tree):
    rows = _values(_unpacked(tree, "charts")["mnist"]["Accuracy against spikes"])
    assert len(rows) == 8
    (row,) = [row for row in rows if (row["method"], row["seed"], row["when"]) == ("s4nn", 1, charts.WHOLE)]
    assert row["spikes"] == 232
    assert {rule: row[rule] for rule in RULES} == RUNS[1].test.accuracy


def test_the_curve_of_decisions_ends_at_the_right_ones(tree):
    histogram = [0, 3, 0, 2, *[0] * 12, 5]
    run = record(t_max=16)
    run = run.model_copy(update={"test": run.test.model_copy(update={"right_histogram": histogram})})
    rows = _values(charts.decision_times([run], "mnist"))
    assert [(row["at"], row["right"]) for row in rows] == [(0, 0), (2, 30), (4, 50), (16, 50)]
    assert {row["unit"] for row in rows} == {"bins"}


def test_without_histograms_there_is_no_curve_of_decisions():
    run = record()
    run = run.model_copy(update={"test": run.test.model_copy(update={"right_histogram": None})})
    assert "Accuracy if stopped at time t" not in charts.all_charts([run], "mnist")


def test_learning_curves_have_every_epoch_and_set_of_images():
    history = [
        {"epoch": epoch, "train": {"loss": 0.1, "accuracy": epoch / 10, "spikes": [1.0]},
         "validation": dict.fromkeys(RULES, epoch / 20), "test": dict.fromkeys(RULES, epoch / 30)}
        for epoch in (1, 2)
    ]  # fmt: skip
    rows = _values(charts.learning_curves([record(history=history)], "mnist"))
    told = {(row["images"], row["epoch"]): row["unique"] for row in rows}
    assert told == {
        (charts.TRAINING, 1): 0.1, (charts.TRAINING, 2): 0.2, ("held out", 1): 0.05, ("held out", 2): 0.1,
        ("test, tracked", 1): 1 / 30, ("test, tracked", 2): 2 / 30,
    }  # fmt: skip


def test_what_records_say_is_escaped(tmp_path):
    run = record(name="</script><b>-mnist", config={"description": "</script><b>"}, commit="<b>")
    records.write_record(tmp_path / "some.json", run)
    report.write(tmp_path, tmp_path / "report.html")
    tree = PARSER.parse((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert tree.find(".//b") is None
    assert _text(_rows(tree, "mnist")[0][0]) == "</script><b>"


def test_configs_of_one_name_are_told_apart():
    group = [record(), record(config_hash="b" * 12)]
    assert [row["method"] for row in _values(charts.accuracy_against_spikes(group, "mnist"))][::2] == [
        f"s4nn ({'a' * 12})", f"s4nn ({'b' * 12})",
    ]  # fmt: skip


def test_the_page_is_the_same_each_time(folder, page):
    report.write(folder, folder / "again.html")
    assert (folder / "again.html").read_text(encoding="utf-8") == page


def test_a_users_own_page_has_the_records_that_come_with_the_suite(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDED", tmp_path / "suite")
    monkeypatch.setattr(records, "RESULTS", tmp_path / "own")
    for folder, seed in (("suite", 0), ("own", 1)):
        run = record(seed=seed)
        records.write_record(records.record_path(tmp_path / folder, run.name, seed), run)
    report.write(tmp_path / "own", tmp_path / "report.html")
    tree = PARSER.parse((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert set(_unpacked(tree, "records")) == {identity(run) for run in records.read_all(records.RESULTS)}
    assert len(_unpacked(tree, "records")) == 2


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(SuiteError, match="no records there"):
        report.write(tmp_path, tmp_path / "report.html")
    (tmp_path / "some.json").write_text("{")
    with pytest.raises(SuiteError, match=r"some\.json: not a complete record"):
        report.write(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_the_page_of_all_recorded_runs_is_small_and_valid(tmp_path):
    report.write(records.RESULTS, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) <= 6_000_000  # of 340 records, most of them times of an example
    assert len(_unpacked(PARSER.parse(text), "records")) == len(list(records.RESULTS.glob("*.json")))
    assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"(?s)<script.*?</script>", "", text))
