"""Writes the tables of results, and their figures, from the records: `python docs/tables.py`.

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
from reproductions.columns import COLUMNS
from reproductions.records import Record
from reproductions.tables import comparison, few_labels_table, front, references, shown

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
ALL = {
    "method": "method",
    "features": "features",
    "neurons fire": "neurons fire",
    "steps": "steps",
    "potential %": "accuracy %, `potential`",
    "spikes": "spikes",
    "until decision": "until the decision",
    "spikes per neuron": "per neuron",
    "multiplications": "multiplications of pixels",
    "network": "network",
    "seeds": "seeds",
    "published %": "published %",
}
SHORT = {
    "method": "method",
    "potential %": "accuracy %, `potential`",
    "published %": "published %",
    "network": "network",
    "spikes: input + hidden + output": "spikes: input + hidden + output",
    "response": "response",
}
FIRST_PAGE = {
    "mnist": [
        "s4nn",
        "s4nn-every-bin",
        "mostafa",
        "ts4tl-every-bin",
        "ds4nn-every-bin",
        "sparse-ramp",
        "converted-relu",
        "s2stdp-ncg",
        "tebn",
    ],
    "fashion-mnist": [
        "bs4nn-every-bin",
        "ts4tl-conv-every-bin",
        "ds4nn-every-bin-taught",
        "converted-relu",
    ],
    "cifar10": ["converted-relu"],
    "eth80": ["ts4tl"],
}


def pages() -> list[Path]:
    """The pages that have tables of results."""
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in candidates if BLOCK.search(page.read_text(encoding="utf-8"))]


def renewed(text: str, runs: Sequence[Record]) -> str:
    """A page with the tables that the records give."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{_table(match[2], runs)}\n\n{match[3]}", text)


def _table(name: str, runs: Sequence[Record]) -> str:
    kind, _, dataset = name.rpartition(" ")
    return KINDS[kind](runs, dataset).to_markdown(index=False, disable_numparse=True)


def _all(runs: Sequence[Record], dataset: str) -> pd.DataFrame:
    """Methods of all kinds, their spikes summed over the layers; neurons that fire once first, best first."""
    return shown(_ranked(runs, dataset))[list(ALL)].rename(columns=ALL)


def _front(runs: Sequence[Record], dataset: str) -> pd.DataFrame:
    kept = ["method", "neurons fire", "potential %", "until decision", "network"]
    return shown(front(comparison(runs, dataset)))[kept].rename(columns=ALL)


def _ranked(runs: Sequence[Record], dataset: str) -> pd.DataFrame:
    table = comparison(runs, dataset)
    sums = [COLUMNS[name](table, "potential") for name in ("spikes", "until-decision")]
    order = table["neurons fire"].map(["once", "repeatedly", "never"].index)
    table = pd.concat([table, *sums], axis="columns").assign(order=order)
    table = table.sort_values(["order", "potential %"], ascending=[True, False])
    return table.drop(columns="order")


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
                    "method": method if row["neurons fire"] == "once" else f"{method}, fires repeatedly",
                    "network": row["network"],
                    "accuracy %, `potential`": row["potential %"],
                    "spikes an image": f"{spikes[method]:.0f}",
                    "published %": row["published %"],
                }
            )
    return pd.DataFrame(rows)


KINDS: dict[str, Callable[[Sequence[Record], str], pd.DataFrame]] = {
    "all": _all,
    "front": _front,
    "short": _short,
    "full": _full,
    "published": _published,
    "few labels": _few_labels,
    "first": _first_page,
}


def draw(runs: Sequence[Record]) -> None:
    """The figures of all records of a data set that the pages show."""
    from reproductions import figures  # matplotlib, which tables do without

    of = {dataset: [run for run in runs if run.dataset == dataset] for dataset in ("mnist", "fashion-mnist")}
    drawn = {f"accuracy-spikes-{dataset}": figures.accuracy_against_spikes(of[dataset]) for dataset in of}
    drawn["decision-times-mnist"] = figures.decision_times(of["mnist"])
    for name, figure in drawn.items():
        figure.savefig(ROOT / "docs" / "figures" / f"{name}.png", dpi=150)


def main() -> None:
    runs = records.read_all(records.RESULTS)
    draw(runs)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := renewed(text, runs)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
