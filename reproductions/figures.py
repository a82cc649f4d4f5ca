"""Figures of recorded runs, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .records import require_writable


def draw_all(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw every figure; return the files written."""
    require_writable(folder)
    written = []
    for dataset in sorted({record["dataset"] for record in records}):
        runs = [record for record in records if record["dataset"] == dataset]
        figures = {
            "learning-curves": learning_curves(runs),
            "accuracy-spikes": accuracy_against_spikes(runs),
            "response-times": response_times(runs),
        }
        for name in sorted({run["name"] for run in runs}):
            figures[f"raster-{name}"] = raster(next(run for run in runs if run["name"] == name))
        for kind, figure in figures.items():
            stem = kind if kind.endswith(dataset) else f"{kind}-{dataset}"
            for ending in ("png", "svg"):
                path = folder / f"{stem}.{ending}"
                figure.savefig(path, dpi=150)
                written.append(path)
            plt.close(figure)
    return written


def learning_curves(runs: Sequence[dict[str, Any]]) -> Figure:
    """Error over epochs: training (lenient, while learning) and, where it was kept, held-out data."""
    figure, axes = _figure()
    for color, (name, group) in zip(_colors(), _by_name(runs), strict=False):
        for number, run in enumerate(group):
            epochs = [entry["epoch"] for entry in run["history"]]
            training = [100 * (1 - entry["train"]["accuracy"]) for entry in run["history"]]
            axes.plot(epochs, training, color=color, lw=1, label=f"{name}, training" if number == 0 else None)
            for part, style in (("validation", "--"), ("test", ":")):
                if part in run["history"][0]:
                    error = [100 * (1 - entry[part]["lenient"]) for entry in run["history"]]
                    label = f"{name}, {part}" if number == 0 else None
                    axes.plot(epochs, error, style, color=color, lw=1, label=label)
    axes.set(xlabel="epoch", ylabel="error (%), lenient rule", yscale="log", title=_title(runs, "learning curves"))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def accuracy_against_spikes(runs: Sequence[dict[str, Any]]) -> Figure:
    """Test accuracy (potential rule) against all spikes until the decision; open marks: whole window."""
    figure, axes = _figure()
    for color, (name, group) in zip(_colors(), _by_name(runs), strict=False):
        accuracy = [100 * run["test"]["accuracy"]["potential"] for run in group]
        for key, face, label in (("until_decision", color, name), ("total", "none", None)):
            spikes = [sum(run["test"][key]) for run in group]
            axes.scatter(spikes, accuracy, edgecolors=color, facecolors=face, s=36, label=label)
    axes.scatter([], [], edgecolors="0.4", facecolors="none", s=36, label="whole window")
    axes.set(xlabel="spikes per image, input + hidden + output", ylabel="test accuracy (%), potential rule",
             title=_title(runs, "accuracy against spikes; filled: until the decision"))  # fmt: skip
    axes.legend(frameon=False, fontsize=8)
    return figure


def response_times(runs: Sequence[dict[str, Any]]) -> Figure:
    """Distribution of the time of the first output spike; the last bin holds the silent samples."""
    figure, axes = _figure()
    for color, (name, group) in zip(_colors(), _by_name(runs), strict=False):
        counts = np.sum([run["test"]["response_histogram"] for run in group], axis=0)
        share = 100 * counts[:-1] / counts.sum()
        silent = 100 * counts[-1] / counts.sum()
        width = 8
        usable = len(share) // width * width
        bars = share[:usable].reshape(-1, width).sum(1)
        label = f"{name} (silent: {silent:.1f} %)"
        axes.stairs(bars, np.arange(0, usable + 1, width), color=color, fill=True, alpha=0.35, label=label)
    axes.set(xlabel="first output spike (bins of 8)", ylabel="share of test images (%)",
             title=_title(runs, "response times"))  # fmt: skip
    axes.legend(frameon=False, fontsize=8)
    return figure


def raster(run: dict[str, Any]) -> Figure:
    """Every spike of one test image, layer above layer, with the moment of decision."""
    times = run["test"]["example"]["times"]
    t_max = run["config"]["network"]["t_max"]
    names = ["input", *(f"hidden {k}" if len(times) > 3 else "hidden" for k in range(1, len(times) - 1)), "output"]
    figure, axes = plt.subplots(
        len(times), 1, sharex=True, figsize=(7, 5.5), layout="constrained", height_ratios=[3, *[3] * (len(times) - 2), 2]
    )
    output = [t_max if t is None else t for t in times[-1]]
    decision, label = min(output), run["test"]["example"]["label"]
    for axis, layer, name in zip(axes, times, names, strict=True):
        spikes = [(t, neuron) for neuron, t in enumerate(layer) if t is not None]
        x, y = zip(*spikes, strict=True) if spikes else ((), ())
        axis.scatter(x, y, s=30 if name == "output" else 4, marker="|", color="C0", linewidths=1)
        axis.set(ylabel=f"{name}\n({len(spikes)} of {len(layer)})", ylim=(-1, len(layer)), xlim=(-2, t_max + 2))
        if decision < t_max:
            axis.axvline(decision, color="C3", lw=1)
    axes[-1].set_yticks(range(len(output)))
    axes[-1].tick_params(axis="y", labelsize=6)
    axes[-1].set_xlabel("time (bins)")
    first = [str(k) for k, t in enumerate(output) if t == decision]
    told = f"class {' and '.join(first)} at bin {decision:g}" if decision < t_max else "no output spike"
    figure.suptitle(f"{run['name']}, seed {run['seed']}: first test image, label {label}; decision: {told}", fontsize=10)
    return figure


def _figure() -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(7, 4.5), layout="constrained")


def _colors() -> list[str]:
    return [f"C{number}" for number in range(10)]


def _by_name(runs: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(name, [run for run in runs if run["name"] == name]) for name in sorted({run["name"] for run in runs})]


def _title(runs: Sequence[dict[str, Any]], what: str) -> str:
    return f"{runs[0]['dataset']}: {what}"
