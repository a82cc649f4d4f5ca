"""What the benchmarks print: tables of timings, and the machine that they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Timing, tenth

console = Console()
# What is in cells.
TIMES = "wall time, below it CPU time of the calling thread: p10 / median"
WITH_QUARTILES = f"{TIMES} (quartiles)"


def cell(taken: Timing) -> str:
    """Milliseconds."""
    return "\n".join(map(_milliseconds, (taken.wall, taken.cpu)))


def ratio(taken: Timing, base: Timing) -> str:
    """How many times as long as the other run."""
    lines = []
    for one, other in ((taken.wall, base.wall), (taken.cpu, base.cpu)):
        ratios = tenth(one) / tenth(other), statistics.median(one) / statistics.median(other)
        lines.append(" / ".join(f"{value:.2f}" if value < 20 else f"{value:.0f}" for value in ratios))
    return "\n".join(lines)


def add_row(table: Table, labels: tuple[str, ...], both: tuple[Timing, Timing]) -> None:
    """Two sides with quartiles, and how many times as long the first one takes."""
    cells = ["\n".join(map(_with_quartiles, (taken.wall, taken.cpu))) for taken in both]
    table.add_row(*labels, *cells, ratio(*both))


def _milliseconds(seconds: list[float]) -> str:
    return f"{_in_ms(tenth(seconds))} / {_in_ms(statistics.median(seconds))}"


def _with_quartiles(seconds: list[float]) -> str:
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return f"{_milliseconds(seconds)} ({_in_ms(low)} ... {_in_ms(high)})"


def _in_ms(seconds: float) -> str:
    """Four digits, or all before the point."""
    return f"{1e3 * seconds:.4g}" if seconds < 10 else f"{1e3 * seconds:.0f}"


def show(table: Table, what: str = TIMES) -> None:
    """Print a table, what is in its cells, and the machine's state."""
    console.print(table)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{what}; torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{os.cpu_count()} cores {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{processor()}, load {load}"
    )


def processor() -> str:
    """Its name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"
