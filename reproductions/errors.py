"""The error that the command lines show without a traceback."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from rich.console import Console


class SuiteError(Exception):
    """Something the user can mend: a config, a data folder, a record, a results folder."""


def run_command_line(app: Callable[[], object]) -> None:
    """Run a command line; what the user can mend ends it with a message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a terminal that does not have every character
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (SuiteError, OSError) as error:
        Console(stderr=True).print("error:", error, soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
