"""BibTeX of what the suite runs, on the command line and in LaTeX tables."""

import re
from pathlib import Path

import pytest
from tiny_runs import record
from typer.testing import CliRunner

from reproductions import catalog, citations, tables
from reproductions.__main__ import app
from reproductions.errors import SuiteError

ROOT = Path(citations.__file__).parents[1]


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def fields(text):
    """Fields of an entry, read by a rule of their own."""
    return dict(re.findall(r"^  (\w+) = \{(.*?)\},$", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("s4nn", ["kheradpisheh2020temporal"]),
        ("s4nn-every-bin", ["kheradpisheh2020temporal", "qiao2019microbatch", "che2024ettfs"]),
        ("bs4nn-every-bin", ["kheradpisheh2021bs4nn"]),
        ("ts4tl-conv-every-bin", ["moqadasi2025temporal", "qiao2019microbatch", "che2024ettfs"]),
        (
            "ds4nn-every-bin-taught",
            [
                "mirsadeghi2023ds4nn",
                "qiao2019microbatch",
                "che2024ettfs",
                "hinton2015distilling",
                "anil2018large",
            ],
        ),
        ("ds4nn", ["mirsadeghi2023ds4nn"]),
        ("mostafa", ["mostafa2018supervised"]),
        ("s2stdp-ncg", ["goupy2024competition", "goupy2024paired", "falez2019multilayered"]),
        ("s2stdp-pcn", ["goupy2024paired", "falez2019multilayered"]),
        ("sstdp-ncg", ["goupy2024competition", "liu2021sstdp", "falez2019multilayered"]),
        ("readout-s4nn-ncg", ["goupy2024competition", "falez2019multilayered"]),
        ("logistic-stdp", ["falez2019multilayered"]),
        ("sparse-ramp-stdp", ["falez2019multilayered", "stanojevic2024high"]),
        ("converted-relu", ["stanojevic2024high", "jordan2024cifar"]),
        ("tebn", ["duan2022temporal"]),
        ("ltmd", ["wang2022ltmd"]),
        ("count-plus", ["zhu2023exploring"]),
        ("rate-backprop", ["yu2024advancing"]),
        ("sleep-short-textbook-20", ["massey2026sleep"]),
        ("sparse-ramp-conv", ["stanojevic2024high"]),
        ("my-own", []),
    ],
)
def test_a_method_follows_works(method, keys):
    assert [work.key for work in citations.works(method)] == keys


def test_every_method_of_the_suite_follows_some_work():
    assert all(citations.works(method) for method, _ in catalog.available())


def test_every_entry_is_complete_and_has_a_key_of_its_own():
    works = citations.references()
    assert len({work.key for work in works}) == len(works)
    assert len(works) == (ROOT / "reproductions" / "references.bib").read_text().count("\n@")
    for work in works:
        found = fields(work.text)
        assert {"author", "title", "year"} <= set(found), work.key
        assert work.text.count("{") == work.text.count("}"), work.key
        assert "methods" not in found
        assert work.methods or work.key == citations.SUITE


def test_entries_agree_with_the_citation_file():
    text = (ROOT / "CITATION.cff").read_text()
    works = {work.key: fields(work.text) for work in citations.references()}
    suite = works[citations.SUITE]
    assert f"version: {suite['version']}\n" in text
    assert f'date-released: "{suite["year"]}-' in text
    assert suite["title"].replace("\\", "") in text
    for found in works.values():
        title = re.sub(r"\s+", " ", re.sub(r"[{}\\]", "", found["title"]))
        if "doi" in found and f"doi: {found['doi']}" in text:
            assert title in text
    of_file = set(re.findall(r"doi: (\S+)|arXiv:(\S+)\"", text))
    identifiers = {found.get("doi", found.get("eprint")) for found in works.values()}
    assert {doi or arxiv for doi, arxiv in of_file} <= identifiers


def test_cite_prints_each_work_once_and_the_suite():
    result = run("cite", "s4nn", "s4nn-tuned", "eventprop", "bs4nn")
    assert result.exit_code == 0
    keys = re.findall(r"^@\w+\{(\S+),", result.stdout, re.MULTILINE)
    assert keys == [citations.SUITE, "kheradpisheh2020temporal", "kheradpisheh2021bs4nn"]
    assert result.stdout.startswith("% no other work is known for: eventprop\n")


def test_cite_refuses_a_method_that_nobody_knows():
    result = run("cite", "s4nn", "s5nn")
    assert result.exit_code != 0
    assert isinstance(result.exception, SuiteError)
    assert "got s5nn" in str(result.exception)


def test_a_table_in_latex_cites():
    runs = [record(), record(name="my-own-mnist", method="my-own")]
    plain = tables.render_all(runs, "tex")
    cited = tables.render_all(runs, "tex", cite=True)
    assert "cite{" not in plain
    assert r"s4nn \cite{kheradpisheh2020temporal} & 784-400-10" in cited
    assert "my-own & 784-400-10" in cited
    assert r"ettfs \cite{che2024ettfs} & convolutional" in cited
    assert "eventprop & 784-350-10" in cited


def test_cite_is_an_option_of_latex_alone():
    result = run("table", "--cite")
    assert "--cite goes with --format tex, got 'text'" in str(result.exception)


def test_other_readouts_have_columns():
    run_ = record(name="sleep-20-mnist", method="sleep-20")
    other = run_.model_copy(update={"test": run_.test.model_copy(update={"readouts": {"authors": 0.5}})})
    table = tables.comparison([other, record()], "mnist").set_index("method")
    assert table["readout authors %"]["sleep-20"] == 50
    text = tables.render_all([other, record()], "md", ("method", "readouts"))
    assert "50.00" in text
