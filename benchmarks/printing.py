"""What the benchmarks print: tables of timings, and the machine that they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Timing

console = Console()
# The columns of `cells`, before the ratios.
TAKEN = "p10 (ms)", "median (ms)", "thread p10 (ms)"


def cells(taken: Timing, base: Timing) -> list[str]:
    """Milliseconds, and how many times as long as the other run."""
    pairs = [(taken.p10, base.p10), (taken.median, base.median), (taken.thread_p10, base.thread_p10)]
    ratios = [one / other for one, other in pairs]
    return [f"{1e3 * one:.4g}" for one, _ in pairs] + [f"{r:.2f}" if r < 20 else f"{r:.0f}" for r in ratios]


def add_row(table: Table, labels: tuple[str, ...], seconds: tuple[list[float], list[float]]) -> None:
    """Medians and quartiles of two sides in milliseconds, and the ratio of the medians."""
    medians = [statistics.median(part) for part in seconds]
    quartiles = [statistics.quantiles(part, n=4) for part in seconds]
    told = [
        f"{1e3 * m:.2f} ({1e3 * q[0]:.2f} ... {1e3 * q[2]:.2f})"
        for m, q in zip(medians, quartiles, strict=True)
    ]
    table.add_row(*labels, *told, f"{medians[0] / medians[1]:.2f}")


def show(table: Table, what: str = "median (quartiles); ") -> None:
    """Print a table, what is in its cells, and the machine's state."""
    console.print(table)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{what}torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{os.cpu_count()} cores {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{processor()}, load {load}"
    )


def processor() -> str:
    """Its name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"
