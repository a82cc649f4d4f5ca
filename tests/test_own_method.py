"""The page on extending: its method of the suite, in a folder outside the package."""

import re
import sys
from pathlib import Path

import pytest

from reproductions import catalog, methods, records
from reproductions.errors import SuiteError

pytestmark = pytest.mark.usefixtures("cheap_runs")
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTION = PAGE.partition("## A new method of the suite\n")[2].partition("\n## ")[0]


def _block(language, number=0):
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)[number]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files as the page has them, in the working directory."""
    (tmp_path / "margin.py").write_text(_block("python"))
    (tmp_path / "margin-digits.toml").write_text(_block("toml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_page_train_record_and_show_it(folder, call):
    for command in _block("sh").splitlines():
        assert command.startswith("python -m reproductions ")
        code, out, err = call(*command.removeprefix("python -m reproductions ").split())
        assert code == 0, err
    (record,) = records.read_all(folder / "results")
    assert (record.name, record.method, record.network_name) == ("margin-digits", "margin", "100")
    assert record.method_sha256 == methods.load(folder / "margin.py").sha256()
    assert record.test.accuracy["potential"] > 0.8
    assert re.search(r"margin +64-100-10 ", out)


def test_it_is_as_short_as_the_page_says():
    assert sum(bool(line.strip()) for line in _block("python").splitlines()) <= 20


def test_an_installed_method_is_found_by_its_entry_point(folder, call, monkeypatch):
    info = folder / "margin_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: margin-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{methods.GROUP}]\nmargin = margin\n")
    assert f'"{methods.GROUP}"' in _block("toml", 1)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "margin", None)  # to be restored
    del sys.modules["margin"]
    _, out, _ = call("list", "--results-dir", "results")
    assert re.search(r"margin +│ digits", out)
    code, _, err = call("run", "margin", "--dataset", "digits", "--epochs", "1", "--results-dir", "results")
    assert code == 0, err
    (record,) = records.read_all(folder / "results")
    assert record.method_sha256 == methods.load(folder / "margin.py").sha256()


def test_a_broken_entry_point_is_named(monkeypatch):
    entry = methods.metadata.EntryPoint("gone", "no_such_module", methods.GROUP)
    monkeypatch.setattr(methods, "installed", lambda: {"gone": entry})
    with pytest.raises(
        SuiteError, match=r"entry point gone = no_such_module of ssnn_plugin\.methods: No module"
    ):
        methods.find("gone")


def test_a_method_that_there_is_not_is_named():
    with pytest.raises(SuiteError, match=r"implementation: must be one of 's4nn', .*, got 'nothing'"):
        methods.find("nothing")


def test_a_file_without_a_method_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("Settings = 3\n")
    with pytest.raises(SuiteError, match=r"empty\.py: a method's file must have a class `Settings"):
        methods.load(tmp_path / "empty.py")


def test_a_config_of_another_implementation_is_refused(folder):
    own = methods.load(folder / "margin.py")
    path = own.config("digits")
    assert catalog.read(path, own).training.margin == 0.1
    path.write_text(path.read_text().replace('implementation = "margin"', 'implementation = "ds4nn"'))
    with pytest.raises(SuiteError, match="implementation: must be one of 'margin', got 'ds4nn'"):
        catalog.read(path, own)


def test_without_its_config_the_file_that_is_missing_is_named(folder, call):
    code, _, err = call("run", "--method", "margin.py", "--dataset", "mnist")
    assert code == 2
    assert "margin-mnist.toml: No such file" in err
