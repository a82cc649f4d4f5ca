"""What the README shows is what the code does."""

import re
from pathlib import Path

import pytest

from reproductions import records
from reproductions.tables import comparison, few_labels_table, render

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


IN_DEPTH = blocks("python", (ROOT / "docs" / "learning-in-depth.md").read_text())


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_links_to_lines_of_code_lead_to_what_they_name(page):
    for name, path, line in re.findall(r"\[`(\w+)`\]\(([\w./]+\.py)#L(\d+)\)", page.read_text()):
        lines = (page.parent / path).read_text().splitlines()
        assert re.match(rf"(def|class) {name}\b", lines[int(line) - 1]), f"{name} is not at {path}#L{line}"


def test_ci_runs_the_command_of_the_readme():
    (command,) = [block.strip() for block in blocks("sh") if "pytest" in block]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("code", [*blocks("python"), *IN_DEPTH])
def test_python_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize(
    "dataset", ["mnist", "fashion-mnist", "eth80", "eth80-leave-objects-out", "caltech-face-motorbike"]
)
def test_table_is_the_one_of_the_records(dataset):
    table = render(comparison(records.read_all(records.RESULTS), dataset), "md")
    assert table in README


@pytest.mark.parametrize("dataset", ["eth80", "caltech-face-motorbike"])
def test_few_labels_table_is_the_one_of_the_record(dataset):
    record = records.read_few_labels(records.RESULTS / "few-labels" / f"{dataset}.json")
    assert render(few_labels_table(record), "md") in README


def test_every_command_line_in_the_readme_exists():
    from typer.main import get_command

    from reproductions.__main__ import app

    commands = set(get_command(app).commands)
    named = set(re.findall(r"python -m reproductions ([\w-]+)", README))
    assert named
    assert named <= commands


def test_links_to_files_resolve():
    for document in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
