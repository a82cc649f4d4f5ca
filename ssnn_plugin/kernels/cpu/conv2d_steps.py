"""Locations of convolutions of neurons whose V jumps with an input; see `conv2d`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from .compile import jit
from .lanes import any_of, leading, least, load, splat, store, store_where, tile_of, where, width_of
from .parallel import as_arrays
from .patches import BEYOND
from .steps import LOOK_AFTER, fire_if_with_drift, numbers_of

#: numbers of registers that the outputs of a group may take at a time, as tuples
ONE, TWO, FOUR = (0,), (0,) * 2, (0,) * 4
#: spikes that are added without a look at how many there are
AT_A_TIME = 2


class Jumps(NamedTuple):
    """Weights [groups, rows, `width`] that fill whole registers, the last row without weights; numbers."""

    rows: np.ndarray
    threshold: float
    delay: float
    table: int
    width: int
    registers: tuple[int, ...]

    def scratch(self):
        return np.empty(self.rows.shape[1] + BEYOND, self.rows.dtype)

    def fire(self, room, seen, limit, t_max, b, location, group, spikes, potential, slope):
        _, n_rows, width = self.rows.shape
        _, locations, groups, n_out = spikes.shape
        set_limits(room.rows, room.when, seen, self.threshold, self.delay, t_max, (n_rows - 1) * width, limit)
        to = ((b * locations + location) * groups + group) * n_out
        arrays = room.rows, room.when, limit, seen, self.rows[group], self.registers, n_out, to, spikes
        if potential.size > 0:
            fire(*arrays, potential)
        else:
            cross(*arrays)


class JumpsAndDrift(NamedTuple):
    """Weights [groups, rows, out / groups], a current of every bin, which may be 0, and numbers."""

    rows: np.ndarray
    current: np.ndarray
    rising: bool
    threshold: float
    beta: float
    delay: float
    table: int
    width: int = 1

    def scratch(self):
        return np.empty(self.rows.shape[2], self.rows.dtype)

    def fire(self, room, seen, v, t_max, b, location, group, spikes, potential, slope):
        fire_if_with_drift(
            room.rows, room.when, seen, self.rows[group], self.current[group], self.rising, self.beta,
            self.threshold, self.delay, t_max, v, spikes[b, location, group], potential[b, location, group],
        )  # fmt: skip


def layer_of(rows: Tensor, current: Tensor, rising: bool, neuron: Any, t_max: float) -> Jumps | JumpsAndDrift:
    """Of these weights and currents, `rising` if there are any."""
    threshold, beta, delay, _, table = numbers_of(neuron, t_max)
    if rising or beta != 1:
        weights, currents = as_arrays(rows, current)
        return JumpsAndDrift(weights, currents, rising, threshold, beta, delay, table)
    registers = tile_of(rows, (ONE, TWO, FOUR))
    (padded,) = as_arrays(pad(rows, (0, -rows.shape[2] % width_of(registers, rows.itemsize), 0, 1)))
    return Jumps(padded, threshold, delay, table, padded.shape[2], registers)


@jit
def set_limits(rows, when, n, threshold, delay, t_max, nothing, limit):
    """What V has to exceed after each spike: `inf` until all of one time have come, and if it is too late.

    `nothing` is a row without weights, which up to `AT_A_TIME` more spikes have.
    """
    number = limit.dtype.type
    for k in range(n, n + AT_A_TIME):
        rows[k], when[k] = nothing, np.inf
    low, never = splat(number(threshold), ONE), splat(number(np.inf), ONE)
    later, end = splat(number(delay), ONE), splat(number(t_max), ONE)
    for k in range(0, n, len(low)):
        t = load(when, k, ONE)
        complete = load(when, k + 1, ONE) > t
        store(limit, k, where(complete & (end > t + later), low, never))


@jit
def fire(rows, when, limit, n, weights, registers, n_out, to, fired, potential):
    """First crossing of each output of a location; `fired` is `inf` where there is none.

    Potentials stay in registers, and no branch depends on a crossing: an output keeps time and
    potential of the last spike that came before it crossed, or with which it did.
    """
    number = weights.dtype.type
    none, silent = splat(number(0), registers), splat(number(np.inf), registers)
    for lane in range(0, n_out, len(none)):
        outputs = leading(none, n_out - lane)
        v, level, at = none, none, where(outputs, silent, none)
        for begin in range(0, n, AT_A_TIME):
            for k in range(begin, begin + AT_A_TIME):
                v = v + load(weights, np.int64(rows[np.uintp(k)]) + lane, registers)
                level = where(silent <= at, v, level)
                earlier = least(at, splat(when[np.uintp(k)], registers))
                at = where(v > splat(limit[np.uintp(k)], registers), earlier, at)
            if begin % LOOK_AFTER == LOOK_AFTER - AT_A_TIME and not any_of(silent <= at):
                break
        store_where(outputs, fired, to + lane, at)
        store_where(outputs, potential, to + lane, level)


@jit
def cross(rows, when, limit, n, weights, registers, n_out, to, fired):
    """As `fire`, the times alone: V goes on after a crossing; NaN where V is, instead of a crossing."""
    number = weights.dtype.type
    none, silent = splat(number(0), registers), splat(number(np.inf), registers)
    for lane in range(0, n_out, len(none)):
        outputs = leading(none, n_out - lane)
        v, at = none, where(outputs, silent, none)
        for begin in range(0, n, AT_A_TIME):
            for k in range(begin, begin + AT_A_TIME):
                v = v + load(weights, np.int64(rows[np.uintp(k)]) + lane, registers)
                earlier = least(at, splat(when[np.uintp(k)], registers))
                at = where(v > splat(limit[np.uintp(k)], registers), earlier, at)
            if begin % LOOK_AFTER == LOOK_AFTER - AT_A_TIME and not any_of(silent <= at):
                break
        at = where((silent <= at) & ~(v <= silent), v, at)
        store_where(outputs, fired, to + lane, at)
