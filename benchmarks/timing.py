"""How long calls take, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Input = TypeVar("Input")


@dataclass
class Timing:
    """Seconds of calls: by the clock, and of CPU time, to which other processes do not add.

    Args:
        clock: of the CPU time; that of the calling thread if not said.
    """

    clock: Callable[[], float] = time.thread_time
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, function: Callable[..., object], *args: Any, calls: int = 1) -> None:
        """Time calls in a row, of which each counts as a part."""
        wall, cpu = time.perf_counter(), self.clock()
        for _ in range(calls):
            function(*args)
        wall, cpu = time.perf_counter() - wall, self.clock() - cpu
        self.wall.append(wall / calls)
        self.cpu.append(cpu / calls)


def tenth(values: list[float]) -> float:
    """The value that a tenth of them are below; of one value, itself."""
    return statistics.quantiles(values, n=10, method="inclusive")[0] if len(values) > 1 else values[0]


def alternate(
    first: Callable[[Input], object],
    second: Callable[[Input], object],
    inputs: Sequence[Input],
    clock: Callable[[], float] = time.thread_time,
) -> tuple[Timing, Timing]:
    """Time each on each input, in turn."""
    taken = Timing(clock), Timing(clock)
    for x in inputs:
        for function, kept in zip((first, second), taken, strict=True):
            kept.add(function, x)
    return taken


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
            kept = taken[name] if number >= warm_up else Timing()
            kept.add(function, calls=(calls or {}).get(name, 1))
    return taken
