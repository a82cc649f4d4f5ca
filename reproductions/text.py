"""Tables as text that fits a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Container

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

# What is broken into lines where a table would be too wide, and how far.
LONG = "network", "metric", "source"
NARROW = 12
# Of a name: what fits a line, where there is one up to a hyphen.
PART = re.compile(rf".{{1,{NARROW}}}$|.{{1,{NARROW - 1}}}-|.{{1,{NARROW}}}")


def fitted(words: pd.DataFrame, numbers: Container[str], width: int) -> str:
    """Text within a width, as far as breaking the `LONG` columns goes: nothing is cut off.

    `numbers` names the columns that are aligned to the right.
    """
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in words:
        justify, whole = "right" if name in numbers else "left", name not in LONG
        grid.add_column(name, justify=justify, overflow="fold", no_wrap=whole)  # type: ignore[arg-type]
    for row in words.to_dict("records"):
        grid.add_row(*(broken(text) if name == "network" else text for name, text in row.items()))
    least = sum(2 + (NARROW if name in LONG else max(map(len, (name, *words[name])))) for name in words)
    file = io.StringIO()
    Console(file=file, width=max(width, least), markup=False, highlight=False, color_system=None).print(grid)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")


def broken(network: str) -> str:
    """The name of a network in short lines; rich itself breaks at spaces alone.

    >>> print(broken("784-32C5-A2-64C5-A2-300-10"))
    784-32C5-A2-
    64C5-A2-300-
    10
    """
    return network if " " in network or "-" not in network else "\n".join(PART.findall(network))
