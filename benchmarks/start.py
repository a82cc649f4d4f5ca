"""Start-up: how long an import takes in a fresh interpreter."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

from rich.table import Table

from benchmarks.printing import add_row
from benchmarks.timing import alternate

TIMES = "wall time, below it CPU time of the interpreter: p10 / median (quartiles)"


def table(repeats: int) -> Table:
    """`import ssnn_plugin` against `import torch`."""
    found = Table("", "ssnn_plugin (ms)", "torch (ms)", "ratio", title="import in a fresh interpreter")
    both = _start("ssnn_plugin"), _start("torch")
    add_row(found, ("import",), alternate(*both, [None] * repeats, _of_children))
    return found


def _start(module: str) -> Callable[[None], object]:
    return lambda _: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def _of_children() -> float:
    """CPU seconds of the processes that this one has started, and which have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
