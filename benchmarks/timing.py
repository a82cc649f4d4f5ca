"""How long calls take, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Input = TypeVar("Input")


def seconds(function: Callable[..., object], *args: Any) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


def alternate(
    first: Callable[[Input], object], second: Callable[[Input], object], inputs: Sequence[Input]
) -> tuple[list[float], list[float]]:
    """Seconds that each takes on each input, in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for x in inputs:
        for function, kept in zip((first, second), taken, strict=True):
            kept.append(seconds(function, x))
    return taken


@dataclass
class Timing:
    """Seconds of calls: by the clock, and of the calling thread, to which other processes do not add."""

    wall: list[float] = field(default_factory=list)
    thread: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def p10(self) -> float:
        """A tenth of the calls took less: what the machine can do when it is calm."""
        return tenth(self.wall)

    @property
    def thread_p10(self) -> float:
        return tenth(self.thread)


def tenth(values: list[float]) -> float:
    """The value that a tenth of them are below; of one value, itself."""
    return statistics.quantiles(values, n=10, method="inclusive")[0] if len(values) > 1 else values[0]


def in_turn(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    calls: Mapping[str, int] | None = None,
    warm_up: int = 1,
) -> dict[str, Timing]:
    """Time calls in rounds, each function once in every round; `calls` of it at a time, one if not said."""
    taken = {name: Timing() for name in functions}
    for number in range(warm_up + rounds):
        for name, function in functions.items():
            several = (calls or {}).get(name, 1)
            wall, thread = time.perf_counter(), time.thread_time()
            for _ in range(several):
                function()
            wall, thread = time.perf_counter() - wall, time.thread_time() - thread
            if number >= warm_up:
                taken[name].wall.append(wall / several)
                taken[name].thread.append(thread / several)
    return taken
