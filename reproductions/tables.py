"""The comparison table: recorded runs beside published numbers.

Tables are frames of numbers; `shown` makes of them, last, what people read.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from ssnn_plugin.metrics import RULES

from . import citations, columns
from .columns import DEVIATION, accuracy_column
from .errors import SuiteError
from .records import Evaluation, FewLabels, Record
from .text import fitted

PUBLISHED = Path(__file__).parent / "published.csv"
FORMATS = ("text", "md", "tex", "csv", "html")
WIDTH = 100
Row = dict[str, Any]
BEST_EPOCH = "best test epoch, lenient (chooses nothing)"
CERTAINTY = {
    "R": "read in the authors' repository",
    "P": "the authors' own text",
    "P derived": "computed from the authors' own text",
    "T": "a third party's text or code",
    "M": "measured on what the authors released, outside this repository",
    "X": "from memory, unchecked",
}


def published() -> pd.DataFrame:
    """Published numbers with their source and how sure we are of them."""
    return pd.read_csv(PUBLISHED, keep_default_na=False, dtype=str)


def by_config(records: Sequence[Record], dataset: str) -> list[tuple[str, list[Record]]]:
    """Method and runs of each config on a data set; methods of one name show the hash of their config.

    Methods of one's own with one config and other code show the hash of that.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record.dataset == dataset:
            groups.setdefault(record.made_of, []).append(record)
    short = Counter(name.removesuffix(f"-{dataset}") for name in {name for name, *_ in groups})
    names = {key: key[0].removesuffix(f"-{dataset}") for key in groups}
    return [
        ((name if short[name] == 1 else key[0]) + _told_apart(key, groups), groups[key])
        for key, name in sorted(names.items())
    ]


def _told_apart(key: tuple[str, ...], keys: Iterable[tuple[str, ...]]) -> str:
    """The hashes, shortened, by which a method differs from others of its name."""
    alike = [other for other in keys if other[0] == key[0]]
    told = [part[:12] or "-" for part, *others in zip(key, *alike, strict=True) if len(set(others)) > 1]
    return f" ({', '.join(told)})" if told else ""


def comparison(records: Sequence[Record], dataset: str) -> pd.DataFrame:
    """One row per method, network and config on a data set: means, and standard deviations, over seeds."""
    depth = max((len(record.test.total) for record in records), default=2)
    named = by_config(records, dataset)
    return pd.DataFrame([{"method": name} | _row(runs, depth) for name, runs in named])


def front(table: pd.DataFrame, rule: str = columns.RULE) -> pd.DataFrame:
    """Networks of a comparison, on images, that no other beats in both accuracy and spikes, sparsest first.

    Spikes are those until the decision, a column `all until decision` more.
    """
    spikes = columns.COLUMNS["until-decision"](table, rule)
    accuracy, (sum_of_all,) = accuracy_column(rule), spikes.columns
    counted = table.join(spikes)[table["counts all spikes"]]
    ranked = counted.sort_values([sum_of_all, accuracy], ascending=[True, False])
    return ranked[ranked[accuracy] > ranked[accuracy].cummax().shift(fill_value=-1.0)]


def few_labels_table(record: FewLabels) -> pd.DataFrame:
    """Accuracy by labelled images per class, none for all of them, over seeds; spikes per image."""
    rows = []
    for per_class in dict.fromkeys(result.per_class for result in record.results):
        results = [result for result in record.results if result.per_class == per_class]
        row: Row = {"labelled per class": per_class}
        for name in dict.fromkeys(result.classifier for result in results):
            row |= _spread(f"{name} %", [100 * r.accuracy for r in results if r.classifier == name])
        row |= _by_layer("spikes", [r.spikes for r in results if r.spikes])
        early = [r.spikes_until_decision for r in results if r.spikes_until_decision]
        row |= _by_layer("until decision", early)
        rows.append(row)
    return pd.DataFrame(rows).astype({"labelled per class": "Int64"})


def references(dataset: str) -> pd.DataFrame:
    """Published numbers on a data set."""
    table = published()
    table = table[table["dataset"] == dataset]
    sure = [f"{tag}: {CERTAINTY[tag]}" for tag in table["certainty"]]
    columns = ["method", "network", "metric", "value", "rule", "source", "how sure", "note"]
    return table.assign(**{"how sure": sure})[columns]


def render(
    table: pd.DataFrame, style: str, width: int = WIDTH, cited: Mapping[str, str] | None = None
) -> str:
    """A table as Markdown, LaTeX, HTML or, within a width, text, as people read it; as CSV with a number
    in every cell. In LaTeX, what a method follows is cited behind its name, if `cited` is given: the methods
    of names that are none.

    Raises:
        SuiteError: an unknown format.
    """
    if style == "text":
        numbers = {SHOWN[name][0] if name in SHOWN else name for name in table.select_dtypes("number")}
        return fitted(shown(table), numbers, width)
    if style == "csv":
        return str(table.to_csv(index=False, float_format="%.6g")).rstrip()
    if style == "md":
        return str(shown(table).to_markdown(index=False, disable_numparse=True))
    if style == "tex":
        return str(_escaped_for_latex(shown(table), cited).to_latex(hrules=True)).rstrip()
    if style == "html":
        return str(shown(table).to_html(index=False))
    raise SuiteError(f"--format must be one of {', '.join(FORMATS)}, got {style!r}")


def render_all(
    records: Sequence[Record],
    style: str,
    names: Sequence[str] | None = None,
    rule: str | None = None,
    width: int = WIDTH,
    cite: bool = False,
) -> str:
    """Recorded runs and published numbers of every data set; CSV holds the recorded runs alone.

    Text has the columns of `columns.BRIEF`, the other formats have all; names of columns, or a decision
    rule, choose for any format.

    Raises:
        SuiteError: there is no such format, column or rule.
    """
    tables = {dataset: comparison(records, dataset) for dataset in sorted({run.dataset for run in records})}
    brief = style == "text" or names is not None or rule is not None
    names, rule = names or columns.BRIEF, rule or columns.RULE
    if brief:
        tables = {dataset: columns.selected(table, names, rule) for dataset, table in tables.items()}
    if style == "csv":
        return (
            render(pd.concat(table.assign(**{"data set": name}) for name, table in tables.items()), style)
            + "\n"
        )
    parts = []
    for dataset, table in tables.items():
        cited = {name: runs[0].method for name, runs in by_config(records, dataset)} if cite else None
        parts.append(_heading(f"{dataset}: recorded runs", style) + render(table, style, width, cited))
        if len(known := references(dataset)):
            known = _short(known) if style == "text" else known
            parts.append(_heading(f"{dataset}: published", style) + render(known, style, width, cited))
    if brief:
        parts.append(_footing(columns.legend(names, rule) + " " + _tags(), style, width))
    return "\n\n".join(parts) + "\n"


def _heading(title: str, style: str) -> str:
    return {"text": "{}\n", "md": "### {}\n\n", "tex": "% {}\n", "html": "<h3>{}</h3>\n"}[style].format(title)


def _footing(legend: str, style: str, width: int) -> str:
    if style == "text":
        return textwrap.fill(legend, width)
    return {"md": "{}", "tex": "% {}", "html": "<p>{}</p>"}[style].format(legend)


def _tags() -> str:
    return "; ".join(f"{tag}: {meaning}" for tag, meaning in CERTAINTY.items()) + "."


def _short(references: pd.DataFrame) -> pd.DataFrame:
    """Published numbers without rules and remarks, the certainty as a tag."""
    tags, metrics = references["how sure"].str.partition(":")[0], references["metric"].str.replace("_", " ")
    return references.assign(metric=metrics, sure=tags).drop(columns=["how sure", "note", "rule"])


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table in words: "mean ± deviation", "input + hidden + output"; nothing where there is no number."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    columns = [column for column in table if column not in PARTS and DEVIATION not in column]
    columns = [column for column in columns if ": " not in column or column in SHOWN]
    return pd.DataFrame([dict(_cell(row, column) for column in columns) for row in rows])


def _cell(row: Row, column: str) -> tuple[str, str]:
    """Heading and text of a column, which may tell of the ones behind it, too."""
    if column in SHOWN:
        heading, text = SHOWN[column]
        return heading, text(row)
    if isinstance(row[column], float):
        return column, _with_deviation(row, column, 2)
    return column, "" if row[column] is None else str(row[column])


def _with_deviation(row: Row, column: str, digits: int) -> str:
    deviation = row.get(column + DEVIATION)
    return f"{row[column]:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _layers(name: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        counts = [value for column, value in row.items() if column.startswith(f"{name}: ")]
        return " + ".join(f"{count:.1f}" for count in counts if count is not None)

    return text


def _response(row: Row) -> str:
    unit = row["response unit"]
    return f"{_with_deviation(row, 'response', 1 if unit == 'bins' else 3)} {unit}"


def _published(row: Row) -> str:
    if row["published %"] is None:
        return ""
    tags = ", ".join(filter(None, (row["published certainty"], row["published network"])))
    return f"{row['published %']} [{tags}]"


def _mean_response(row: Row) -> str:
    value, unit = row["mean response"], row["response unit"]
    return f"{value:.{1 if unit == 'bins' else 2}f} {unit}"


def _published_in_brief(row: Row) -> str:
    if row["published"] is None:
        return ""
    return f"{row['published']} {row['published certainty']}" + ("*" if row["published network"] else "")


def _per_neuron_in_brief(row: Row) -> str:
    return "" if row["spikes per neuron"] is None else f"{row['spikes per neuron']:.3g}"


def _verdict(row: Row) -> str:
    if (gap := row["minus published"]) is None:
        return ""
    gap = round(gap, 2)
    verdict = f"falls short by {-gap:.2f}" if gap < 0 else f"reached, +{abs(gap):.2f}"
    return f"{verdict} ({row['published rule'].replace('_', ' ')})"


# Columns that are shown in other words, and those that these tell of.
SHOWN: dict[str, tuple[str, Callable[[Row], str]]] = {
    "features": ("features", lambda row: row["features"] or "none"),
    "labelled per class": ("labelled per class", lambda row: str(row["labelled per class"] or "all")),
    "spikes: input": ("spikes: input + hidden + output", _layers("spikes")),
    "spikes per neuron": ("spikes per neuron", _per_neuron_in_brief),
    "until decision: input": ("of these until the decision", _layers("until decision")),
    "response": ("response", _response),
    "steps": ("steps", lambda row: "" if row["steps"] is None else f"{row['steps']:.0f}"),
    "ties %": ("ties / silent %", lambda row: f"{row['ties %']:.1f} / {row['silent %']:.1f}"),
    "published %": ("published %", _published),
    "minus published": ("against published", _verdict),
    "all spikes": ("spikes", lambda row: f"{row['all spikes']:.0f}"),
    "all until decision": ("until decision", lambda row: f"{row['all until decision']:.0f}"),
    "mean response": ("response", _mean_response),
    "published": ("published", _published_in_brief),
    "difference": (
        "difference",
        lambda row: "" if row["difference"] is None else f"{row['difference']:+.2f}",
    ),
}
PARTS = (
    "counts all spikes",
    "response unit",
    "silent %",
    "published certainty",
    "published network",
    "published rule",
)


def _escaped_for_latex(table: pd.DataFrame, cited: Mapping[str, str] | None) -> Any:
    style = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    if cited is not None and "method" in table:

        def with_citation(name: str) -> str:
            plain = name.replace(r"\_", "_")  # it comes escaped
            return f"{name} {citations.command(cited.get(plain, plain))}".rstrip()

        style.format(with_citation, subset=["method"], escape="latex")
    return style


def _row(runs: Sequence[Record], depth: int) -> Row:
    first, tests = runs[0], [run.test for run in runs]
    row: Row = {"network": network_of(first)}
    row |= {"features": first.features, "neurons fire": tests[0].neurons_fire}
    row |= {"counts all spikes": first.counts_all_spikes, "seeds": len(runs), "epochs": len(first.history)}
    for rule in RULES:
        row |= _spread(accuracy_column(rule), [100 * test.accuracy[rule] for test in tests])
    best = [100 * run.best_test_epoch.accuracy["lenient"] for run in runs if run.best_test_epoch]
    if len(best) == len(runs):
        row |= _spread(f"{BEST_EPOCH} %", best)
    row |= _by_layer("spikes", [test.total for test in tests], depth)
    row["spikes per neuron"] = mean(_per_neuron(test) for test in tests)
    row |= _by_layer("until decision", [test.until_decision for test in tests], depth)
    row |= _spread("response", [test.response_time for test in tests])
    row["response unit"] = first.time_unit
    row["steps"] = first.t_max if isinstance(first.t_max, int) else nan
    row["multiplications"] = tests[0].multiplications or 0
    for name in tests[0].readouts or {}:
        row |= _spread(columns.readout_column(name), [100 * (test.readouts or {})[name] for test in tests])
    row["ties %"] = 100 * mean(test.tied for test in tests)
    row["silent %"] = 100 * mean(test.silent for test in tests)
    return row | _against_published(runs)


def network_of(run: Record) -> str:
    """A network as papers write it, inputs and outputs included."""
    inputs, *_, outputs = map(len, run.test.example.times)
    return "-".join(filter(None, [str(inputs), run.network_name, str(outputs)]))


def _against_published(runs: Sequence[Record]) -> Row:
    """The number that the method's paper prints, and how ours compares under the paper's rule.

    Of the same network, if the paper has it; with the authors' own readout, where there is one besides. Where
    the rule of a paper is not known it is taken to be the one that most print, "lenient".
    """
    table = published()
    method = _paper(runs[0].method, set(table["method"]))
    rows = table[
        (table["method"] == method) & (table["dataset"] == runs[0].dataset)
        & (table["metric"] == "accuracy") & (table["certainty"] != "M")
    ]  # fmt: skip
    network = network_of(runs[0])
    alike = network, network.rpartition("-")[0]  # some leave the outputs out
    rows = rows.sort_values("network", key=lambda written: ~written.isin(alike), kind="stable")
    known = None if rows.empty else rows.iloc[0]
    rule = "" if known is None else str(known["rule"])
    accuracies, by = [run.test.accuracy[rule or "lenient"] for run in runs], rule or "lenient, assumed"
    others = [run.test.readouts or {} for run in runs]
    if all("authors" in readouts for readouts in others):
        accuracies, by = [readouts["authors"] for readouts in others], "authors' readout"
    ours = 100 * mean(accuracies)
    return {
        "published %": nan if known is None else float(known["value"]),
        "published rule": None if known is None else by,
        "published certainty": None if known is None else known["certainty"],
        "published network": None if known is None or known["network"] in alike else known["network"],
        "minus published": nan if known is None else ours - float(known["value"]),
    }


def _paper(method: str, papers: set[str]) -> str:
    """The paper's method that a recipe belongs to: its name, or what that begins with, as of "s4nn-tuned"."""
    return next((name for name in citations.beginnings(method) if name in papers), method)


def _per_neuron(test: Evaluation) -> float:
    """Spikes of hidden and output neurons, by their number; of a classifier without spikes, none.

    Outputs that never fire, as those that pass on a potential, are no neurons.
    """
    if test.neurons_fire == "never":
        return nan
    *hidden, outputs = map(len, test.example.times[1:])
    return sum(test.total[1:]) / (sum(hidden) + (outputs if test.total[-1] or not hidden else 0))


def _spread(column: str, values: Sequence[float]) -> Row:
    return {column: mean(values), column + DEVIATION: stdev(values) if len(values) > 1 else nan}


def _by_layer(name: str, counts: Sequence[Sequence[float]], depth: int = 0) -> Row:
    """A column for each layer of neurons, up to the depth of the deepest network."""
    inputs, *hidden, outputs = (mean(layer) for layer in zip(*counts, strict=True))
    hidden += [nan] * (depth - len(hidden) - 2)
    between = {f"{name}: hidden {number}": count for number, count in enumerate(hidden, 1)}
    return {f"{name}: input": inputs, **between, f"{name}: output": outputs}
