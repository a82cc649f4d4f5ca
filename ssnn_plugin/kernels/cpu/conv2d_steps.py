"""Compiled forward pass of convolutions of neurons whose V jumps with an input; arrays as in `patches`."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..geometry import Geometry, by_group, weight_rows
from ..status import BAD_TIMES
from .compile import jit
from .events import has_bad_times, judge
from .lanes import any_of, leading, load, splat, store, store_where, where, width_of
from .parallel import as_arrays, share_out
from .patches import BEYOND, by_position, rank_spikes, read_patch, room_for, tiles_of
from .steps import fire_if_with_drift, numbers_of

#: numbers of registers that the outputs of a group may take at a time, as tuples
ONE, TWO, FOUR = (0,), (0,) * 2, (0,) * 4
#: spikes that are added without a look at how many there are
AT_A_TIME = 2
#: spikes after which it is seen whether any output still waits
LOOK_AFTER = 16


def first_spike(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    neuron: Any,
    t_max: float,
    status: np.ndarray,
) -> tuple[Tensor, Tensor, Tensor]:
    """Crossings and potentials of a convolution; `status` [batch] tells what is wrong."""
    groups, shape = geometry.groups, geometry.output_shape(times, weight)
    crossing, potential = times.new_empty(shape), times.new_empty(shape)
    tiles = tiles_of(times, weight, geometry)
    rows = weight_rows(weight, groups).flatten(1, 2)
    threshold, beta, *rest = numbers_of(neuron, t_max)
    work, outputs = crossing.numel() * rows.shape[1] // 4, (*as_arrays(crossing, potential), status)
    if bias is None and beta == 1:
        registers = _registers(rows)
        inputs = as_arrays(by_position(times, groups), _padded(rows, registers))
        share_out(len(times), work, _fire, *inputs, *outputs, tiles, threshold, *rest, registers)
    else:
        current = by_group(weight.new_zeros(len(weight)) if bias is None else bias, groups)
        inputs = as_arrays(by_position(times, groups), rows, current)
        numbers = threshold, beta, *rest, bias is not None
        share_out(len(times), work, _fire_with_drift, *inputs, *outputs, tiles, *numbers)
    return crossing, potential, crossing.new_empty(0)


def _registers(rows: Tensor) -> tuple[int, ...]:
    """As few as hold the outputs of a group, or the most."""
    return next(
        (registers for registers in (ONE, TWO) if rows.shape[2] <= width_of(registers, rows.itemsize)), FOUR
    )


def _padded(rows: Tensor, registers: tuple[int, ...]) -> Tensor:
    """With outputs that fill whole registers, and a last row without weights."""
    groups, n_rows, n_out = rows.shape
    padded = rows.new_zeros(groups, n_rows + 1, n_out + -n_out % width_of(registers, rows.itemsize))
    padded[:, :n_rows, :n_out] = rows
    return padded


@jit
def _fire(
    begin, end, times, rows, spikes, potential, status, tiles, threshold, delay, t_max, table, registers
):  # fmt: skip
    groups, n_rows, width = rows.shape
    locations, n_out = spikes.shape[1], spikes.shape[2] // groups
    room, limit = room_for(times, tiles, n_rows, table), np.empty(n_rows + BEYOND, times.dtype)
    for b in range(begin, end):
        for group in range(groups):
            image = times[b, group]
            if has_bad_times(image):
                status[b] = BAD_TIMES
                continue
            for tile in range(tiles.top.size):
                n = rank_spikes(image, tile, tiles, t_max, width, room)
                late = first_late(room.when_of_rank, n, delay, t_max)
                for at in range(tiles.after.size):
                    seen = read_patch(at, n, tiles, width, room)
                    set_limits(room.rows, room.when, seen, threshold, late, (n_rows - 1) * width, limit)
                    location = b * locations + np.int64(tiles.location[tile] + tiles.after[at])
                    to = (location * groups + group) * n_out
                    fire(
                        room.rows,
                        room.when,
                        limit,
                        seen,
                        rows[group],
                        registers,
                        n_out,
                        to,
                        spikes,
                        potential,
                    )
        judge(b, potential, status)


@jit
def first_late(when, n, delay, t_max):
    """The first of `n` times at which a crossing is too late to be a spike; `inf` if there is none."""
    late = np.inf
    for k in range(n - 1, -1, -1):
        if when.dtype.type(when[k] + delay) < t_max:
            break
        late = when[k]
    return late


@jit
def set_limits(rows, when, n, threshold, late, nothing, limit):
    """What V has to exceed after each spike: `inf` until all of one time have come, and once it is late.

    `nothing` is a row without weights, which up to `AT_A_TIME` more spikes have.
    """
    number = limit.dtype.type
    for k in range(n, n + AT_A_TIME):
        rows[k], when[k] = nothing, np.inf
    low, never, last = (
        splat(number(threshold), ONE),
        splat(number(np.inf), ONE),
        splat(number(late), ONE),
    )
    for k in range(0, n, len(low)):
        t = load(when, k, ONE)
        complete = load(when, k + 1, ONE) > t
        store(limit, k, where(complete & (last > t), low, never))


@jit
def fire(rows, when, limit, n, weights, registers, n_out, to, fired, potential):
    """First crossing of each output of a location; `fired` is `inf` where there is none.

    Potentials stay in registers, and no branch depends on a crossing: an output keeps time and
    potential of the last spike that came before it crossed, or with which it did.
    """
    number = weights.dtype.type
    none, silent = splat(number(0), registers), splat(number(np.inf), registers)
    for lane in range(0, n_out, len(none)):
        v, level, at, waiting = none, none, none, none <= none
        for begin in range(0, n, AT_A_TIME):
            for k in range(begin, begin + AT_A_TIME):
                v = v + load(weights, np.int64(rows[np.uintp(k)]) + lane, registers)
                at = where(waiting, splat(when[np.uintp(k)], registers), at)
                level = where(waiting, v, level)
                waiting = waiting & (v <= splat(limit[np.uintp(k)], registers))
            if begin % LOOK_AFTER == LOOK_AFTER - AT_A_TIME and not any_of(waiting):
                break
        outputs = leading(none, n_out - lane)
        store_where(outputs, fired, to + lane, where(waiting, silent, at))
        store_where(outputs, potential, to + lane, level)


@jit
def _fire_with_drift(
    begin, end, times, rows, current, spikes, potential, status, tiles,
    threshold, beta, delay, t_max, table, rising,
):  # fmt: skip
    """With a leak or a current every patch is a linear layer of its own."""
    groups, n_rows, n_out = rows.shape
    room, patch, v = (
        room_for(times, tiles, n_rows, table),
        np.empty(n_rows, times.dtype),
        np.empty(n_out, rows.dtype),
    )
    for b in range(begin, end):
        for group in range(groups):
            image, outputs = times[b, group], slice(group * n_out, (group + 1) * n_out)
            if has_bad_times(image):
                status[b] = BAD_TIMES
                continue
            for tile in range(tiles.top.size):
                n = rank_spikes(image, tile, tiles, t_max, 1, room)
                for at in range(tiles.after.size):
                    seen = read_patch(at, n, tiles, 1, room)
                    for k in range(seen):
                        patch[room.rows[k]] = room.when[k]
                    location = np.int64(tiles.location[tile] + tiles.after[at])
                    fire_if_with_drift(
                        room.rows, seen, patch, rows[group], current[group], rising, beta, threshold, delay,
                        t_max, v, spikes[b, location, outputs], potential[b, location, outputs],
                    )  # fmt: skip
        judge(b, potential, status)
