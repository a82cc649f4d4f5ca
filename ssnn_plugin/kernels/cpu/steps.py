"""Compiled forward pass of neurons whose V jumps with an input.

A sample costs (input spikes) x (outputs). How work is shared out is told in `parallel`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..status import NAN_POTENTIAL
from .compile import exact_jit, jit
from .events import MOST_EVENTS, judge, sort_batch
from .lanes import (
    any_of,
    at_least_a_tile,
    current_of,
    leading,
    least,
    load,
    splat,
    store_where,
    tile_of,
    where,
)

# Above this many bins the counting sort's table would cost more than comparing times.
MOST_BINS = 1 << 10
# Events after which it is seen whether any output still waits.
LOOK_AFTER = 16


def numbers_of(neuron: Any, t_max: float) -> tuple[float, float, float, float, int]:
    """Threshold, leak, delay, window, and size of the counting sort's table."""
    numbers = float(neuron.threshold), float(neuron.beta), float(neuron.delay), t_max
    return *numbers, min(math.ceil(t_max), MOST_BINS) + 1


def kernel_of(neuron: Any, bias: bool, rows: np.ndarray) -> tuple[Any, tuple[int, ...]]:
    """Of a fully connected layer, and the tile of outputs that it is compiled for, if it has tiles."""
    if not bias and neuron.beta == 1:
        return fire_linear, tile_of(rows)
    return fire_linear_with_drift, ()


@jit
def fire_linear(
    first, end, times, weight_t, bias, spikes, potential, slope, status,
    threshold, beta, delay, t_max, table, tile,
):  # fmt: skip
    """First crossings of a fully connected layer without leak or `bias`; `weight_t` is [in, out]."""
    rows, block = at_least_a_tile(weight_t, tile), max(1, MOST_EVENTS // max(1, times.shape[1]))
    for b in range(first, end, block):
        part = slice(b, min(b + block, end))
        events = sort_batch(times[part], t_max, table, status[part])
        limits = limits_of(events, threshold, delay, t_max)
        fire_tiles(events, limits, rows, spikes[part], potential[part], status[part], tile)


@jit
def limits_of(events, threshold, delay, t_max):
    """What V has to exceed after each event: nothing exceeds `inf`, before all of one time have come."""
    limits = np.empty(events.ends[-1] + 1, events.when.dtype)
    write_limits(events, threshold, delay, t_max, limits)
    return limits


@jit
def write_limits(events, threshold, delay, t_max, limits):
    """As `limits_of`, into an array."""
    number, n = events.when.dtype.type, np.uint64(events.ends[-1])
    for k in range(n):
        in_time = number(events.when[k] + number(delay)) < number(t_max)
        limits[k] = number(threshold) if in_time else number(np.inf)
    begin = np.uint64(0)
    for end in events.ends:
        for k in range(begin + np.uint64(1), np.uint64(end)):
            more_to_come = events.when[k] == events.when[k - np.uint64(1)]
            limits[k - np.uint64(1)] = number(np.inf) if more_to_come else limits[k - np.uint64(1)]
        begin = np.uint64(end)


@jit
def fire_tiles(events, limits, rows, spikes, potential, status, tile):
    """A tile of outputs at a time, in registers: all samples while its weights are at hand.

    An empty `potential` is not written, which saves up to a seventh of the time.
    """
    (n_samples, n_out), width = spikes.shape, len(splat(rows.dtype.type(0), tile))
    for start in range(0, n_out, width):
        lane = min(start, rows.shape[1] - width)
        first = np.uint64(0)
        for b in range(n_samples):
            last, at = np.uint64(events.ends[b]), b * n_out + lane
            if potential.size > 0:
                good = fire_tile(events, limits, rows, first, last, lane, n_out, at, spikes, potential, tile)
            else:
                good = cross_tile(events, limits, rows, first, last, lane, n_out, at, spikes, tile)
            if not good:
                status[b] = NAN_POTENTIAL
            first = last


@jit
def fire_tile(events, limits, rows, first, last, lane, n_out, at, spikes, potential, tile):
    """First crossings of a tile, from output `lane` on, and V; False if a V is NaN.

    There is no branch at a crossing: a neuron that no longer waits keeps its V and its time.
    """
    zero, silent = splat(rows.dtype.type(0), tile), splat(rows.dtype.type(np.inf), tile)
    present = leading(zero, n_out - lane)
    total, v, crossing, waiting = zero, zero, silent, present
    while first < last and any_of(waiting):
        pause = min(first + np.uint64(8), last)
        for k in range(first, pause):
            row = load(rows, np.int64(events.inputs[k]) * rows.shape[1] + lane, tile)
            # A lone register would stand still until it is known which of its neurons wait.
            total = total + row if len(tile) == 1 else where(waiting, v + row, v)
            v = where(waiting, total, v) if len(tile) == 1 else total
            crossing = where(waiting, splat(events.when[k], tile), crossing)
            waiting = waiting & ~(v > splat(limits[k], tile))
        first = pause
    store_where(present, spikes, at, where(waiting, silent, crossing))
    store_where(present, potential, at, v)
    return not any_of(~(v <= silent))


@jit
def cross_tile(events, limits, rows, first, last, lane, n_out, at, spikes, tile):
    """As `fire_tile`, the times alone: V goes on after a crossing, and may come to anything."""
    zero, silent = splat(rows.dtype.type(0), tile), splat(rows.dtype.type(np.inf), tile)
    present, v, crossing = leading(zero, n_out - lane), zero, silent
    while first < last and any_of(present & (silent <= crossing)):
        pause = min(first + np.uint64(LOOK_AFTER), last)
        for k in range(first, pause):
            v = v + load(rows, np.int64(events.inputs[k]) * rows.shape[1] + lane, tile)
            earlier = least(crossing, splat(events.when[k], tile))
            crossing = where(v > splat(limits[k], tile), earlier, crossing)
        first = pause
    store_where(present, spikes, at, crossing)
    return not any_of(~(v <= silent) & (silent <= crossing))


@jit
def fire_linear_with_drift(
    first, end, times, weight_t, bias, spikes, potential, slope, status,
    threshold, beta, delay, t_max, table, tile,
):  # fmt: skip
    """As `fire_linear`, with a leak or a constant current `bias` [out], empty if there is none."""
    v, current = np.empty(weight_t.shape[1], weight_t.dtype), current_of(bias, weight_t)
    for b in range(first, end):
        events = sort_batch(times[b : b + 1], t_max, table, status[b : b + 1])
        fire_if_with_drift(
            events.inputs, events.when, events.ends[0], weight_t, current, bias.size > 0, beta, threshold,
            delay, t_max, v, spikes[b], potential[b],
        )  # fmt: skip
        judge(b, potential, status)


@jit
def fire_if_with_drift(
    inputs, when, n, weight_t, current, rising, beta, threshold, delay, t_max, v, fired, potential
):  # fmt: skip
    """First crossings of one sample with a leak or a current: V is an exponential or a line between inputs.

    `v` holds what the input spikes contribute, `current` is added in every bin from bin 0 on;
    `rising` says whether there is any. Times are whole bins.
    """
    v[:] = 0
    fired[:] = np.inf
    waiting = fired.size
    k = 0
    t = 0.0
    while t < t_max and waiting > 0:
        k = add_rows_of_time(t, k, inputs, when, n, weight_t, v)
        t_next = min(when[k] if k < n else np.inf, t_max)
        last = max(min(t_next, t_max - delay) - 1, t) if rising else t
        if t + delay < t_max:
            waiting -= cross_until(last, t, v, current, beta, threshold, fired, potential)
        if t_next < t_max:
            decay(v, beta, t_next - t)
            t = t_next
        else:
            hold_potential(t_max - 1, t, v, current, beta, fired, potential)
            t = t_max


@jit
def decay(v, beta, bins):
    """Let the contributions of past input spikes leak away."""
    if beta != 1:
        kept = v.dtype.type(beta**bins)
        for j in range(v.size):
            v[j] *= kept


@jit
def bins_of_current(beta, t):
    """What a unit current from bin 0 to bin t leaves in V: the sum of beta^k over k = 0 ... t."""
    if beta == 1:
        return t + 1
    return -np.expm1((t + 1) * np.log(beta)) / (1 - beta)


@jit
def cross_until(last, t, v, current, beta, threshold, fired, potential):
    """Note the outputs that cross in the bins t ... last, no input coming after t; return how many.

    V is monotone in between, so that its two ends show whether it crosses.
    """
    threshold = v.dtype.type(threshold)
    kept = v.dtype.type(1 if beta == 1 else beta ** (last - t))
    now, later = v.dtype.type(bins_of_current(beta, t)), v.dtype.type(bins_of_current(beta, last))
    above, whole = np.int32(0), v.dtype.type(1)
    for j in range(v.size):
        at_last = level_of(v[j], current[j], kept, later)
        highest = max(level_of(v[j], current[j], whole, now), at_last)
        above += np.int32(1) if (highest > threshold) & (fired[j] == np.inf) else np.int32(0)
    if above > 0:
        for j in range(v.size):
            if fired[j] == np.inf:
                level = level_of(v[j], current[j], whole, now)
                if level > threshold:
                    fired[j] = t
                    potential[j] = level
                elif level_of(v[j], current[j], kept, later) > threshold:
                    crossing = first_bin_above(v, current, j, beta, threshold, t, last)
                    fired[j] = crossing
                    potential[j] = potential_after(v, current, j, beta, t, crossing)
    return above


@jit
def hold_potential(end, t, v, current, beta, fired, potential):
    """Write V after bin `end` for the outputs that have not fired."""
    kept = v.dtype.type(1 if beta == 1 else beta ** (end - t))
    bins = v.dtype.type(bins_of_current(beta, end))
    for j in range(v.size):
        level = level_of(v[j], current[j], kept, bins)
        potential[j] = level if fired[j] == np.inf else potential[j]


@exact_jit
def level_of(v, current, kept, bins):
    """V, of the part of the inputs' v that is kept and of a current; rounded alike wherever it is asked."""
    return v * kept + current * bins


@jit
def potential_after(v, current, j, beta, t_event, t):
    """V of output j after bin t, no input having come since t_event, when they contributed v[j]."""
    kept = v.dtype.type(1 if beta == 1 else beta ** (t - t_event))
    return level_of(v[j], current[j], kept, v.dtype.type(bins_of_current(beta, t)))


@jit
def first_bin_above(v, current, j, beta, threshold, start, last):
    """First bin with V > threshold, where V is below in bin `start` and above in bin `last`.

    Without a leak V is the line v + current (t + 1); with one it approaches
    rest = current / (1 - beta) as rest - (rest - V(start)) beta^(t - start).
    """
    if beta == 1:
        t = np.floor((threshold - v[j]) / current[j])
    else:
        rest = current[j] / (1 - beta)
        gap = (rest - threshold) / (rest - potential_after(v, current, j, beta, start, start))
        t = start + np.floor(np.log(gap) / np.log(beta)) + 1
    # The closed form rounds: settle on the first bin in which V itself exceeds the threshold.
    t = start if t != t else min(max(t, start), last)
    while t > start and potential_after(v, current, j, beta, start, t - 1) > threshold:
        t -= 1
    while t < last and not potential_after(v, current, j, beta, start, t) > threshold:
        t += 1
    return t


@jit
def add_rows_of_time(t, k, inputs, when, n, weight_t, v):
    """Add the weights of every input spike of time `t` to `v`; return the first event after them.

    Rows are added in pairs: reading `v` costs as much as reading a row.
    """
    while k < n and when[k] == t:
        row = weight_t[inputs[k]]
        if k + 1 < n and when[k + 1] == t:
            other = weight_t[inputs[k + 1]]
            for j in range(v.size):
                v[j] = (v[j] + row[j]) + other[j]
            k += 2
        else:
            for j in range(v.size):
                v[j] += row[j]
            k += 1
    return k
