"""What the README and the pages show is what the code does."""

import re
import sys
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import docstrings  # noqa: E402
import tables  # noqa: E402

from reproductions import records  # noqa: E402

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
SELF_CONTAINED = [
    README,
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "from-relu",
            "getting-started",
            "hosts",
            "learning-in-depth",
            "needs/at-chance",
            "needs/fires-once",
            "needs/first-spike-loss",
        )
    ),
]


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_fits_a_few_screens():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_ci_runs_the_command_of_the_readme():
    (command,) = [block.strip() for block in blocks("sh") if "pytest" in block]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{name_of(page)}-{number}")
        for page in SELF_CONTAINED
        for number, code in enumerate(blocks("python", page))
    ],
)
def test_python_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})


def test_every_page_of_results_has_tables():
    assert [name_of(page) for page in tables.pages()] == [
        "README.md",
        *(
            f"docs/results/{name}.md"
            for name in ("caltech-face-motorbike", "cifar10", "eth80", "fashion-mnist", "few-labels", "mnist")
        ),
    ]


@pytest.fixture(scope="module")
def runs():
    return records.read_all(records.RESULTS)


@pytest.mark.parametrize("page", tables.pages(), ids=name_of)
def test_tables_are_those_of_the_records(page, runs):
    text = page.read_text(encoding="utf-8")
    assert tables.renewed(text, runs) == text, "python docs/tables.py writes them"


def test_a_table_is_written_between_its_marks(runs):
    text = "before\n<!-- table: short mnist -->\nwhat stood there\n<!-- end of table -->\nafter\n"
    new = tables.renewed(text, runs)
    assert new.startswith("before\n<!-- table: short mnist -->\n\n| method ")
    assert new.endswith("|\n\n<!-- end of table -->\nafter\n")
    assert "what stood there" not in new
    assert tables.renewed(new, runs) == new


COMMAND_LINE = re.compile(
    r"(python -m (?:reproductions|ssnn_plugin|benchmarks)|ssnn-plugin) +([a-z][\w-]*)([^`\n#|]*)"
)


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_every_command_line_exists(page):
    import benchmarks.__main__
    import reproductions.__main__

    for program, name, rest in COMMAND_LINE.findall(page.read_text(encoding="utf-8")):
        module = benchmarks if "benchmarks" in program else reproductions
        command = get_command(module.__main__.app).commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known | {"--help"}, f"{program} {name}{rest}"


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_links_to_files_resolve(page):
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_examples_and_shapes_of_docstrings_become_code():
    text = "Times [batch, *] or `[1]` of x[0], [a](b) (docs/nir.md).\n\n>>> f([0, 1])\n[0, 1]\n\nSource: me."
    assert docstrings.as_markdown(text) == (
        "Times `[batch, *]` or `[1]` of x[0], [a](b) "
        "([NIR: to other simulators and back][nir-to-other-simulators-and-back]).\n\n"
        "```pycon\n>>> f([0, 1])\n[0, 1]\n```\n\nSource: me."
    )
