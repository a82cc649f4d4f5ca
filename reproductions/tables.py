"""The comparison table: recorded runs beside published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from ssnn_plugin.metrics import RULES

from .errors import SuiteError

PUBLISHED = Path(__file__).parent / "published.csv"
FORMATS = ("md", "tex", "csv", "html")
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


def comparison(records: Sequence[dict[str, Any]], dataset: str) -> pd.DataFrame:
    """One row per method, network and config on a data set, mean ± standard deviation over seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        if record["dataset"] == dataset:
            groups.setdefault((record["name"], record["config_hash"]), []).append(record)
    return pd.DataFrame([_row(group) for _, group in sorted(groups.items())]).fillna("")


def few_labels_table(record: dict[str, Any]) -> pd.DataFrame:
    """Accuracy by labelled images per class, mean ± standard deviation over seeds; spikes per image."""
    rows = []
    for per_class in dict.fromkeys(result["per_class"] for result in record["results"]):
        results = [result for result in record["results"] if result["per_class"] == per_class]
        row = {"labelled per class": str(per_class or "all")}
        for name in dict.fromkeys(result["classifier"] for result in results):
            values = [100 * result["accuracy"] for result in results if result["classifier"] == name]
            row[f"{name} %"] = _spread(values, 2)
        spiking = [result for result in results if "spikes" in result]
        row["spikes: input + hidden + output"] = _counts(spiking, "spikes")
        row["of these until the decision"] = _counts(spiking, "spikes_until_decision")
        rows.append(row)
    return pd.DataFrame(rows)


def references(dataset: str) -> pd.DataFrame:
    """Published numbers on a data set."""
    table = published()
    table = table[table["dataset"] == dataset]
    return pd.DataFrame(
        {
            "method": table["method"],
            "network": table["network"],
            "metric": table["metric"],
            "value": table["value"],
            "source": table["source"],
            "how sure": [f"{tag}: {CERTAINTY[tag]}" for tag in table["certainty"]],
            "note": table["note"],
        }
    )


def render(table: pd.DataFrame, style: str) -> str:
    """A table as Markdown, LaTeX, CSV or HTML.

    Raises:
        SuiteError: an unknown format.
    """
    if style == "md":
        return str(table.to_markdown(index=False, disable_numparse=True))
    if style == "tex":
        return str(_escaped_for_latex(table).to_latex(hrules=True)).rstrip()
    if style == "csv":
        return str(table.to_csv(index=False)).rstrip()
    if style == "html":
        return str(table.to_html(index=False))
    raise SuiteError(f"--format must be one of {', '.join(FORMATS)}, got {style!r}")


def render_all(records: Sequence[dict[str, Any]], style: str) -> str:
    """Recorded runs and published numbers of every data set; CSV holds the recorded runs alone."""
    datasets = sorted({record["dataset"] for record in records})
    if style == "csv":
        tables = [comparison(records, dataset).assign(**{"data set": dataset}) for dataset in datasets]
        return render(pd.concat(tables).fillna(""), style) + "\n"
    parts = []
    for dataset in datasets:
        parts.append((f"{dataset}: recorded runs", render(comparison(records, dataset), style)))
        if len(known := references(dataset)):
            parts.append((f"{dataset}: published", render(known, style)))
    heading = {"md": "### {}\n\n", "tex": "% {}\n", "html": "<h3>{}</h3>\n"}[style]
    return "\n\n".join(heading.format(title) + body for title, body in parts) + "\n"


def _escaped_for_latex(table: pd.DataFrame) -> Any:
    return table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")


def _row(runs: list[dict[str, Any]]) -> dict[str, str]:
    config, tests = runs[0]["config"], [run["test"] for run in runs]
    classes = len(tests[0]["example"]["times"][-1])
    inputs = len(tests[0]["example"]["times"][0])
    network = "-".join(filter(None, [str(inputs), runs[0]["network_name"], str(classes)]))
    row = {"method": runs[0]["name"].removesuffix(f"-{runs[0]['dataset']}"), "network": network}
    row["seeds"] = str(len(runs))
    row["epochs"] = str(config["training"]["epochs"])
    for rule in RULES:
        row[f"{rule.replace('_', ' ')} %"] = _spread([100 * test["accuracy"][rule] for test in tests], 2)
    best = [100 * run["best_test_epoch"]["accuracy"]["lenient"] for run in runs if "best_test_epoch" in run]
    if len(best) == len(runs):
        row[f"{BEST_EPOCH} %"] = _spread(best, 2)
    row["spikes: input + hidden + output"] = _counts(tests, "total")
    row["of these until the decision"] = _counts(tests, "until_decision")
    unit, digits = ("bins", 1) if isinstance(runs[0]["t_max"], int) else ("time constants", 3)
    row["response"] = f"{_spread([test['response_time'] for test in tests], digits)} {unit}"
    row["ties / silent %"] = " / ".join(
        f"{100 * mean(test[key] for test in tests):.1f}" for key in ("tied", "silent")
    )
    row["published %"], row["lenient against published"] = _against_published(runs, network)
    return row


def _against_published(runs: list[dict[str, Any]], network: str) -> tuple[str, str]:
    """The number that the method's paper prints, and how ours compares under the papers' own rule."""
    table = published()
    method = _paper(runs[0]["method"], set(table["method"]))
    rows = table[
        (table["method"] == method) & (table["dataset"] == runs[0]["dataset"])
        & (table["metric"] == "accuracy") & table["certainty"].str.startswith(("P", "X"))
    ]  # fmt: skip
    if rows.empty:
        return "", ""
    first = rows.iloc[0]
    elsewhere = "" if first["network"] == network else f", {first['network']}"
    gap = round(100 * mean(run["test"]["accuracy"]["lenient"] for run in runs) - float(first["value"]), 2)
    verdict = f"falls short by {-gap:.2f}" if gap < 0 else f"reached, +{abs(gap):.2f}"
    return f"{first['value']} [{first['certainty']}{elsewhere}]", verdict


def _paper(method: str, papers: set[str]) -> str:
    """The paper's method that a recipe belongs to: its name, or what that begins with, as of "s4nn-tuned"."""
    words = method.split("-")
    beginnings = ("-".join(words[:count]) for count in range(len(words), 0, -1))
    return next((name for name in beginnings if name in papers), method)


def _spread(values: Sequence[float], digits: int) -> str:
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def _counts(tests: Sequence[dict[str, Any]], key: str) -> str:
    layers = zip(*(test[key] for test in tests), strict=True)
    return " + ".join(f"{mean(layer):.1f}" for layer in layers)
