"""The folder in which data sets are kept that were extracted or downloaded."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_dir

from ..errors import SuiteError
from ..locks import locked, remove_leftovers


def default_cache() -> Path:
    """Where extracted data sets are kept: $SSNN_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SSNN_CACHE") or user_cache_dir("ssnn_plugin")) / "data"


def fill(cache: Path, folder: str, make: Callable[[Path], None], intact: Callable[[], bool]) -> None:
    """Let `make` write `folder` into a temporary folder first, so that the cache never holds half of it.

    Args:
        intact: whether the cache holds it, and undamaged; then nothing is made.

    Raises:
        SuiteError: what `make` raises; a cache that cannot be written.
    """
    if intact():
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f".{folder}.lock"):
            remove_leftovers(cache, f".{folder}-*")
            if intact():  # another process was faster
                return
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".{folder}-") as temporary:
                make(Path(temporary))
                if (cache / folder).exists():
                    (cache / folder).rename(Path(temporary, "damaged"))
                Path(temporary, folder).rename(cache / folder)
    except OSError as error:
        raise SuiteError(
            f"{cache}: the cache cannot be written ({error.strerror}); set SSNN_CACHE to a folder of yours"
        ) from error


def sha256(*paths: Path) -> str:
    """Hash of the contents of files, one after the other; while none of them changes, read once a process."""
    return _sha256(tuple(Stamped.of(path) for path in paths))


class Stamped(NamedTuple):
    """A file, and what differs after it was written anew."""

    path: Path
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamped:
        """A file as it is now."""
        found = path.stat()
        return cls(path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=32)
def _sha256(files: tuple[Stamped, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.path.read_bytes())
    return digest.hexdigest()
