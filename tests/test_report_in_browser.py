"""The web page of all records, driven in a real browser; left out where there is none."""

import json

import pytest
from report_runs import runs, written

from reproductions import records, report
from reproductions.report.listings import identity


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("records"))
    report.write(folder, folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def page(open_page, file):
    return open_page(file)


def _column(page, dataset, name):
    """The visible texts of a column of the first table of a data set."""
    cells = page.locator(f"#data-{dataset} table").first.locator(f"tbody td[data-column={name}]")
    return [text.strip() for text in cells.evaluate_all(VISIBLE_TEXTS)]


VISIBLE_TEXTS = "cells => cells.filter(cell => cell.checkVisibility()).map(cell => cell.textContent)"


def _heading(page, dataset, name):
    return page.locator(f"#data-{dataset} table").first.locator(f"th[data-column={name}]:visible button")


def _drawn(page, dataset, title):
    place = page.locator(f"#data-{dataset} [data-chart='{title}']")
    place.scroll_into_view_if_needed()
    place.locator("canvas").wait_for()
    page.wait_for_function("place => views.has(place)", arg=place.element_handle())
    return place


def test_numbers_are_sorted_as_numbers(page):
    assert _column(page, "mnist", "spikes") == ["91", "232"]
    _heading(page, "mnist", "spikes").click()
    assert _column(page, "mnist", "spikes") == ["232", "91"]
    assert page.locator("#data-mnist th[data-column=spikes]").first.get_attribute("aria-sort") == "descending"
    _heading(page, "mnist", "spikes").click()
    assert _column(page, "mnist", "spikes") == ["91", "232"]
    assert _column(page, "mnist", "method") == ["few", "s4nn"]


@pytest.mark.slow
def test_rows_without_a_number_stay_last(page):
    for expected in (["s4nn", "few"], ["s4nn", "few"]):
        _heading(page, "mnist", "published").click()
        assert _column(page, "mnist", "method") == expected


def test_the_filter_leaves_rows_of_its_name(page):
    page.locator("#filter").fill("S4N")
    assert _column(page, "mnist", "method") == ["s4nn"]
    assert _column(page, "digits", "method") == []
    page.locator("#filter").fill("784-400")
    assert _column(page, "mnist", "method") == ["few", "s4nn"]


@pytest.mark.slow
def test_the_rule_chooses_accuracy_and_difference(page):
    assert _column(page, "mnist", "accuracy") == ["91.00 ± 0.00", "91.00 ± 0.00"]
    place = _drawn(page, "mnist", "Accuracy against spikes")
    page.locator("#rule").select_option("lenient")
    assert _column(page, "mnist", "accuracy") == ["96.00 ± 0.00", "96.00 ± 1.41"]
    assert _column(page, "mnist", "difference") == ["", "-1.40"]
    assert page.evaluate("place => views.get(place).signal('rule')", place.element_handle()) == "lenient"


@pytest.mark.slow
def test_columns_are_chosen(page):
    assert _column(page, "mnist", "epochs") == []
    page.locator("#columns summary").click()
    page.locator("#columns input[value=epochs]").check()
    page.locator("#columns input[value=network]").uncheck()
    assert _column(page, "mnist", "epochs") == ["1", "3"]
    assert _column(page, "mnist", "network") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "point"),
    [
        ("Accuracy against spikes", [91, 91]),
        ("Accuracy if stopped at time t", [1 / 16, 100]),
        ("Learning curves", [2, 30]),
    ],
)
def test_a_point_is_told_when_the_pointer_is_over_it(page, title, point):
    place = _drawn(page, "mnist", title)
    x, y = place.evaluate(
        # Vega counts the origin from inside the padding of the canvas.
        "(place, [x, y]) => {"
        " const view = views.get(place), [left, top] = view.origin(), padding = view.padding();"
        " return [padding.left + left + view.scale('x')(x), padding.top + top + view.scale('y')(y)]; }",
        point,
    )
    place.locator("canvas").hover(position={"x": x, "y": y})
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=5000)
    told = tooltip.inner_text()
    assert any(method in told for method in ("s4nn", "few"))
    assert "seed" in told


def test_a_seed_opens_its_record(page, file):
    run = runs()[1]
    page.locator("#data-mnist tbody tr", has_text="s4nn").first.locator("a", has_text="1").click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert page.locator("#record-name").inner_text() == "s4nn-mnist, seed 1"
    facts = page.locator("#record-facts").inner_text()
    assert all(fact in facts for fact in ("lenient 97 %", run.config_hash, run.commit, "1 threads"))
    assert json.loads(page.locator("#record-config").inner_text()) == run.config
    kept = records.record_path(file.parent, run.name, run.seed).read_text(encoding="utf-8")
    saved = page.evaluate("fetch(document.getElementById('record-file').href).then(file => file.text())")
    assert saved == kept
    page.wait_for_function("views.has(document.getElementById('record-raster'))")
    spikes = page.evaluate("views.get(document.getElementById('record-raster')).data('spikes')")
    assert len(spikes) == 784 + 400 + 1
    assert [spike["time"] for spike in spikes if spike["layer"] == "output"] == [3]
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert page.evaluate("location.hash") == ""


@pytest.mark.slow
def test_the_address_of_a_record_opens_it(open_page, file):
    silent = runs()[-1]
    page = open_page(file, anchor=f"#{identity(silent)}")
    page.locator("dialog[open]").wait_for()
    page.wait_for_function("views.has(document.getElementById('record-raster'))")
    told = page.evaluate("views.get(document.getElementById('record-raster')).signal('told')")
    assert told == "label 3, no output spike"


@pytest.mark.slow
def test_the_raster_of_a_method_is_drawn(page):
    choice = page.locator("#data-digits [data-raster]")
    choice.scroll_into_view_if_needed()
    for method, count in (("silent", 64), ("fast", 784 + 400 + 1)):
        choice.select_option(label=method)
        page.wait_for_function(
            "count => views.get(document.querySelector('#data-digits [data-raster]').closest('figure')"
            ".querySelector('.chart'))?.data('spikes').length === count",
            arg=count,
        )


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_screen(open_page, file, width):
    page = open_page(file, width)
    for title in ("Accuracy against spikes", "Learning curves"):
        _drawn(page, "mnist", title)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_all_recorded_runs_open_sort_and_filter(open_page, tmp_path):
    report.write(records.RESULTS, tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    for dataset in {run.dataset for run in records.read_all(records.RESULTS)}:
        _drawn(page, dataset, "Accuracy against spikes")
        _heading(page, dataset, "accuracy").click()
        values = [float(text.split()[0]) for text in _column(page, dataset, "accuracy")]
        assert values == sorted(values, reverse=True)
    page.locator("#filter").fill("sparse-ramp")
    assert {method.startswith("sparse-ramp") for method in _column(page, "mnist", "method")} == {True}
