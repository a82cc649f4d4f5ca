"""Start-up: how long an import takes in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from rich.table import Table

from benchmarks.printing import add_row
from benchmarks.timing import alternate


def table(repeats: int) -> Table:
    """`import ssnn_plugin` against `import torch`."""
    found = Table(
        "", "ssnn_plugin (ms)", "torch (ms)", "ratio of medians", title="import in a fresh interpreter"
    )
    add_row(found, ("import",), alternate(_start("ssnn_plugin"), _start("torch"), [None] * repeats))
    return found


def _start(module: str) -> Callable[[None], object]:
    return lambda _: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
