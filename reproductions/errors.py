"""The error that the command lines show without a traceback."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console


class SuiteError(Exception):
    """Something the user can mend: a config, a data folder, a record, a results folder."""


class Diverged(SuiteError):
    """Training came to numbers that are not finite."""


def run_command_line(app: Callable[[], object]) -> None:
    """Run a command line; what the user can mend ends it with a message and exit code 2.

    Asked to end (SIGTERM) it ends as by Ctrl-C, with the processes that work for it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a terminal that does not have every character
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (SuiteError, OSError) as error:
        Console(stderr=True).print("error:", error, soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)


@contextlib.contextmanager
def must_fit(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Say of a file what its content does not fit, whatever taking it up fails with."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SuiteError(f"{path}: does not fit {what} ({why}){remedy}") from error
