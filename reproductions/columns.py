"""Columns of the comparison table that people choose by short names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan

import pandas as pd

from ssnn_plugin.metrics import RULES

from .errors import SuiteError

DEVIATION = " deviation"
RULE = "potential"
# Takes columns of a comparison, under a decision rule.
Pick = Callable[[pd.DataFrame, str], pd.DataFrame]


def accuracy_column(rule: str) -> str:
    """Name of the column with the accuracy under a rule.

    >>> accuracy_column("first_index")
    'first index %'
    """
    return f"{rule.replace('_', ' ')} %"


def readout_column(name: str) -> str:
    """Name of the column with the accuracy of another readout of the same spikes.

    >>> readout_column("authors")
    'readout authors %'
    """
    return f"readout {name} %"


def selected(table: pd.DataFrame, names: Sequence[str], rule: str = RULE) -> pd.DataFrame:
    """Columns of a comparison by their short names, in that order, accuracy and difference under a rule.

    Raises:
        SuiteError: there is no such column or rule.
    """
    require_known(names, rule)
    picked = pd.concat([COLUMNS[name](table, rule) for name in names], axis="columns")
    return picked.loc[:, ~picked.columns.duplicated()]


def require_known(names: Sequence[str], rule: str) -> None:
    """Refuse names that `selected` does not know.

    Raises:
        SuiteError: tells which columns or rules there are.
    """
    if rule not in RULES:
        raise SuiteError(f"--rule must be one of {', '.join(RULES)}, got {rule!r}")
    if unknown := [name for name in names if name not in COLUMNS]:
        raise SuiteError(f"--columns must be of {', '.join(COLUMNS)}, got {', '.join(map(repr, unknown))}")


def meanings(names: Sequence[str], rule: str) -> list[str]:
    """What chosen columns mean, a text each where their names do not say it."""
    return [LEGEND[name].format(rule=accuracy_column(rule)) for name in names if name in LEGEND]


def legend(names: Sequence[str], rule: str) -> str:
    """The meanings of chosen columns in one text."""
    return " ".join(meanings(names, rule))


def _kept(first: str, *others: str, renamed: str | None = None) -> Pick:
    return lambda table, rule: table[[first, *others]].rename(columns={first: renamed or first})


def _accuracy(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    return table[[accuracy_column(rule), accuracy_column(rule) + DEVIATION]]


def _accuracy_under(rule: str) -> Pick:
    return lambda table, _: _accuracy(table, rule)


def _by_layer(name: str) -> Pick:
    return lambda table, rule: table.loc[:, table.columns.str.startswith(f"{name}: ")]


def _of_all_layers(name: str) -> Pick:
    return lambda table, rule: _by_layer(name)(table, rule).sum(axis="columns").to_frame(f"all {name}")


def _readouts(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Of all other readouts; an empty column, where no record has any."""
    found = table.loc[:, table.columns.str.startswith("readout ")]
    return found if len(found.columns) else pd.DataFrame({"readouts": nan}, index=table.index)


def _difference(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    ours = table[accuracy_column(rule)]
    if (authors := readout_column("authors")) in table:
        ours = table[authors].fillna(ours)
    return (ours - table["published %"]).to_frame("difference")


COLUMNS: dict[str, Pick] = {
    "method": _kept("method"),
    "network": _kept("network"),
    "features": _kept("features"),
    "neurons-fire": _kept("neurons fire"),
    "seeds": _kept("seeds"),
    "epochs": _kept("epochs"),
    "accuracy": _accuracy,
    **{rule: _accuracy_under(rule) for rule in RULES},
    "spikes": _of_all_layers("spikes"),
    "spikes-by-layer": _by_layer("spikes"),
    "per-neuron": _kept("spikes per neuron"),
    "until-decision": _of_all_layers("until decision"),
    "until-decision-by-layer": _by_layer("until decision"),
    "response": _kept("response", "response unit", renamed="mean response"),
    "steps": _kept("steps"),
    "multiplications": _kept("multiplications"),
    "readouts": _readouts,
    "ties": _kept("ties %", "silent %"),
    "published": _kept("published %", "published certainty", "published network", renamed="published"),
    "difference": _difference,
}
LEGEND = {
    "accuracy": "{rule}: accuracy on the test set under this rule, mean ± deviation over seeds.",
    "spikes": "Spikes: per image, of all layers.",
    "per-neuron": "Spikes per neuron: of hidden and output neurons, per image.",
    "response": "Response: time of the first output spike, for silence the end of the window; where neurons "
    "fire repeatedly, all steps; unit: a time constant, or the span of the inputs.",
    "steps": "Steps: of the window, in discrete time.",
    "readouts": "Readout: accuracy of other readouts of the same spikes.",
    "multiplications": "Multiplications: of real-valued pixels, per image; none with spikes.",
    "published": "Published: under the paper's own rule, mostly lenient; *: of another network.",
    "difference": "Difference: {rule} less published accuracy, in points; of the authors' readout, if any.",
}
BRIEF = ("method", "network", "seeds", "accuracy", "spikes", "response", "published", "difference")
