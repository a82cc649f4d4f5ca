"""Locks that die with their process, and what a killed process left behind."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import SuiteError


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock, which is a file while it is held; its folder must exist.

    Args:
        busy: what to say if another process holds it; None waits until it does not.

    Raises:
        SuiteError: another process holds it, or the file system has no locks.
    """
    try:
        lock = FileLock(path, timeout=-1 if busy is None else 0)
        lock.acquire()
    except Timeout as error:
        raise SuiteError(f"{path}: {busy}") from error
    except (OSError, NotImplementedError) as error:
        raise SuiteError(f"{path}: cannot be locked ({error}); name another folder") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove temporary files and folders; to be called by the only one who could be writing them."""
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
