"""Tables of the report: text to read beside numbers to sort by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd

from ssnn_plugin.metrics import RULES

from .. import tables
from ..columns import BRIEF, COLUMNS, RULE, accuracy_column, selected
from ..records import Record
from ..tables import by_config

# What is different under each decision rule.
RULED = "accuracy", "difference"


@dataclass(frozen=True)
class Cell:
    """What is read, what is sorted by if that is a number, and what it leads to: targets by their text."""

    text: str
    value: float | None = None
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column; under one decision rule alone if it names one."""

    heading: str
    cells: list[Cell]
    name: str = ""
    rule: str | None = None
    shown: bool = True

    @property
    def numeric(self) -> bool:
        return any(cell.value is not None for cell in self.cells)


def identity(run: Record) -> str:
    """What a record is found by within a page."""
    name, *hashes = run.made_of
    return "-".join([f"{name}-seed{run.seed}", *filter(None, hashes)])


def comparison(records: Sequence[Record], dataset: str) -> list[Column]:
    """The comparison table with every column that can be chosen, and those of every rule."""
    table = tables.comparison(records, dataset)
    configs = by_config(records, dataset)
    found = list(_chosen(table))
    seeds = next(index for index, column in enumerate(found) if column.name == "seeds")
    links = [{str(run.seed): identity(run) for run in runs} for _, runs in configs]
    cells = [Cell("", cell.value, link) for cell, link in zip(found[seeds].cells, links, strict=True)]
    found[seeds] = Column("seeds", cells, "seeds")
    return found


def runs(records: Sequence[Record], dataset: str) -> list[Column]:
    """One row per run: what it gave, and where it comes from."""
    named = [(method, run) for method, group in by_config(records, dataset) for run in group]
    every = [run for _, run in named]
    return [
        Column("method", [Cell(method) for method, _ in named]),
        Column("network", [Cell(tables.network_of(run)) for run in every]),
        Column("seed", [Cell("", run.seed, {str(run.seed): identity(run)}) for run in every]),
        *(
            Column(
                accuracy_column(rule),
                _numbers((100 * run.test.accuracy[rule] for run in every), 2),
                rule=rule,
                shown=rule == RULE,
            )
            for rule in RULES
        ),
        Column("spikes", _numbers((sum(run.test.total) for run in every), 1)),
        Column("until decision", _numbers((sum(run.test.until_decision) for run in every), 1)),
        Column("silent %", _numbers((100 * run.test.silent for run in every), 2)),
        Column("training s", _numbers((run.wall_time_s for run in every), 1)),
        Column("config", [Cell(run.config_hash) for run in every]),
        Column("commit", [Cell(_short(run.commit)) for run in every]),
    ]


def published(dataset: str) -> list[Column]:
    """Published numbers with their source and how sure they are."""
    table = tables.references(dataset)
    return [
        Column(
            name,
            [Cell(text, float(text)) if name == "value" else Cell(text) for text in table[name]],
        )
        for name in table
    ]


def _chosen(table: pd.DataFrame) -> Iterator[Column]:
    for name in COLUMNS:
        for rule in RULES if name in RULED else (None,):
            numbers = selected(table, [name], rule or RULE)
            words = tables.shown(numbers)
            for heading in words:
                values = _sorted_by(numbers if len(words.columns) == 1 else numbers[[heading]])
                cells = [Cell(text, value) for text, value in zip(words[heading], values, strict=True)]
                yield Column(heading, cells, name, rule, name in BRIEF and rule in (None, RULE))


def _sorted_by(numbers: pd.DataFrame) -> list[float | None]:
    """The first column, or the sum over the layers; none where there is no number."""
    by_layer = numbers.columns.str.contains(": ").all()
    values = numbers.sum(axis="columns") if by_layer else numbers.iloc[:, 0]
    if not pd.api.types.is_numeric_dtype(values):
        return [None] * len(values)
    return [None if pd.isna(value) else float(value) for value in values]


def _numbers(values: Iterable[float], digits: int) -> list[Cell]:
    return [Cell(f"{value:.{digits}f}", value) for value in values]


def _short(commit: str) -> str:
    """The first digits of a commit, and whether code was changed since."""
    digest, _, dirty = commit.partition("-")
    return digest[:10] + ("-dirty" if dirty else "")
