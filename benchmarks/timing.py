"""How long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def seconds(function: Callable[..., object], *args: Any) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started
