"""Writes the tables of results into README.md and the pages from the records: `python docs/tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. NAME is "first page", or a kind
and a data set, such as "short mnist".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

import ssnn_plugin.suite  # noqa: F401  (finds the suite when this file is run by itself)
from reproductions import records
from reproductions.records import Record
from reproductions.tables import comparison, few_labels_table, references, shown

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
SHORT = {
    "method": "method",
    "potential %": "accuracy %, `potential`",
    "published %": "published %",
    "network": "network",
    "spikes: input + hidden + output": "spikes: input + hidden + output",
    "response": "response",
}
FIRST_PAGE = {
    "mnist": ["s4nn", "s4nn-every-bin", "mostafa", "ts4tl-every-bin", "ds4nn-every-bin", "sparse-ramp"],
    "fashion-mnist": ["bs4nn-every-bin", "ds4nn-every-bin", "sparse-ramp-conv"],
    "eth80": ["ts4tl", "sparse-ramp"],
}


def pages() -> list[Path]:
    """The pages that have tables of results."""
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in candidates if BLOCK.search(page.read_text(encoding="utf-8"))]


def renewed(text: str) -> str:
    """A page with the tables that the records give."""
    runs = records.read_all(records.RESULTS)
    return BLOCK.sub(lambda match: f"{match[1]}\n{_table(match[2], runs)}\n\n{match[3]}", text)


def _table(name: str, runs: Sequence[Record]) -> str:
    kind, _, dataset = name.rpartition(" ")
    return KINDS[kind](runs, dataset).to_markdown(index=False, disable_numparse=True)


def _short(runs: Sequence[Record], dataset: str) -> pd.DataFrame:
    return shown(comparison(runs, dataset))[list(SHORT)].rename(columns=SHORT)


def _full(runs: Sequence[Record], dataset: str) -> pd.DataFrame:
    return shown(comparison(runs, dataset))


def _published(_: Sequence[Record], dataset: str) -> pd.DataFrame:
    return shown(references(dataset))


def _few_labels(_: Sequence[Record], dataset: str) -> pd.DataFrame:
    path = records.RESULTS / "few-labels" / f"{dataset}.json"
    return shown(few_labels_table(records.read_few_labels(path)))


def _first_page(runs: Sequence[Record], _: str) -> pd.DataFrame:
    """A few rows of several data sets, with the sum of all spikes of an image."""
    rows = []
    for dataset, methods in FIRST_PAGE.items():
        numbers = comparison(runs, dataset)
        words = shown(numbers).set_index("method")
        spikes = numbers.set_index("method").filter(regex="^spikes: ").sum(axis=1)
        for method in methods:
            row = words.loc[method]
            rows.append(
                {
                    "data set": dataset,
                    "method": method,
                    "network": row["network"],
                    "accuracy %, `potential`": row["potential %"],
                    "spikes an image": f"{spikes[method]:.0f}",
                    "published %": row["published %"],
                }
            )
    return pd.DataFrame(rows)


KINDS: dict[str, Callable[[Sequence[Record], str], pd.DataFrame]] = {
    "short": _short,
    "full": _full,
    "published": _published,
    "few labels": _few_labels,
    "first": _first_page,
}


def main() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := renewed(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
