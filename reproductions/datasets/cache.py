"""The folder in which data sets are kept that were extracted or downloaded."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_dir

from ..errors import SuiteError


def default_cache() -> Path:
    """Where extracted data sets are kept: $SSNN_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SSNN_CACHE") or user_cache_dir("ssnn_plugin")) / "data"


def fill(cache: Path, folder: str, make: Callable[[Path], None]) -> None:
    """Let `make` write `folder` into a temporary folder first, so that the cache never holds half of it.

    Raises:
        SuiteError: what `make` raises; a cache that cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            make(Path(temporary))
            # Another process may have been faster; its copy is as good.
            with contextlib.suppress(OSError):
                Path(temporary, folder).rename(cache / folder)
    except OSError as error:
        raise SuiteError(
            f"{cache}: the cache cannot be written ({error.strerror}); set SSNN_CACHE to a folder of yours"
        ) from error
