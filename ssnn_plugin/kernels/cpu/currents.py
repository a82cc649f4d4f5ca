"""Compiled forward pass of neurons with a synaptic current.

Between input spikes the state (V, I) moves on by itself,

    V(t + d) = alpha V + beta I,    I(t + d) = gamma I,

and V' = x V + y I, with numbers that the neuron's compiled response knows (`neurons.CurrentNeuron`). A
neuron is looked at after each input spike, for a crossing on the way to the next one; a neuron that has
fired is ruled out with V = -inf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import elementary
from .compile import chosen, jit, lean_jit, method, part_of_callers, told_apart
from .events import MOST_EVENTS, UNSIGNED, sort_batch, status_of
from .lanes import (
    TILES,
    any_of,
    at_least_a_tile,
    current_of,
    leading,
    load,
    load_where,
    splat,
    store_where,
    tile_of,
    where,
)

LANES = 32  # whole of these hold the outputs of a convolution
PAIR = TILES[1]  # of registers: no more than `LANES`
# Buckets of the counting sort; times are continuous, and a bucket should hold a few.
BUCKETS = 1 << 10
# Of Newton's method; near a tangent each halves the error.
MOST_ITERATIONS = 100
# Part of a threshold or a time that is lost in rounding.
ROUNDING = 1e-15

elementary.register()


def rise_to_crossing(response, threshold, v, current):
    """Newton's method: V rises along a concave arc, so that it comes to the crossing and never beyond."""
    if never_rises(response, threshold, v, current):
        return np.inf
    d = 0.0
    for _ in range(MOST_ITERATIONS):
        before, d = d, closer(response, threshold, v, current, d)
        if not has_moved(before, d):
            break
    return d


@part_of_callers
def never_rises(response, threshold, v, current):
    """Whether V falls, or is drawn to less than the threshold."""
    of_v, of_current = rates(response)
    return of_current * current <= -of_v * max(v, threshold)


@part_of_callers
def closer(response, threshold, v, current, d):
    """The time to the crossing, a step closer than `d`; `inf` past the peak of a V that never came near."""
    of_v, of_current = rates(response)
    alpha, beta, gamma = propagators(response, d)
    level = alpha * v + beta * current
    missing, slope = threshold - level, of_v * level + of_current * gamma * current
    at_peak = d if missing <= ROUNDING * threshold else np.inf
    ahead = d + missing / slope if slope > 0 else at_peak
    return ahead if missing > 0 else d


@part_of_callers
def has_moved(before, d):
    """Whether there is a crossing to come closer to."""
    return (d - before > ROUNDING * (1 + before)) & (d < np.inf)


# Of a response: alpha, beta and gamma over a time, and x and y of V' = x V + y I.
propagators, rates = method("propagators"), method("rates")
# The time until V rises through the threshold without further input; `inf` if it does not.
time_to_crossing = method("crossing", rise_to_crossing)


def solve_each(response, threshold, fired, potential, slope, waits):
    """By the response's own formula. That without a current is of no interest, but no branch is needed."""
    for j in range(fired.size):
        current = float(slope[j]) if fired[j] < np.inf else 0.0
        waits[j] = time_to_crossing(response, threshold, float(potential[j]), current)


def rise_together(response, threshold, fired, potential, slope, waits):
    """As `rise_to_crossing`, all neurons a step at a time, which LLVM can vectorise."""
    for j in range(fired.size):
        v, current = float(potential[j]), float(slope[j])
        silent = (fired[j] == np.inf) | never_rises(response, threshold, v, current)
        waits[j] = np.inf if silent else 0.0
    for _ in range(MOST_ITERATIONS):
        moving = 0
        for j in range(fired.size):
            before, v, current = waits[j], float(potential[j]), float(slope[j])
            ahead = closer(response, threshold, v, current, before if before < np.inf else 0.0)
            waits[j] = ahead if before < np.inf else np.inf
            moving += np.int64(has_moved(before, waits[j]))
        if moving == 0:
            break


# The times from the last input to each crossing that was noted; `inf` for silent neurons.
write_waits = chosen(lambda of: solve_each if hasattr(of.instance_class, "crossing") else rise_together)


@chosen
def leak_of(response):
    """The response if V can pass a peak between two inputs, else None: then numba leaves out the search."""
    monotone = getattr(response.instance_class, "monotone", lambda: False)()
    return (lambda response: None) if monotone else (lambda response: response)


def lasting(response):
    """Of the type of a response: whether alpha, and gamma, are 1 whatever the time."""
    return getattr(response.instance_class, "lasting", lambda: (False, False))()


def choose_product(of: int) -> Callable[..., Any]:
    """A function (response, value, factor): their product, if that is not the value itself."""
    value, product = (lambda response, value, factor: value), (lambda response, value, factor: value * factor)
    return chosen(lambda response: value if lasting(response)[of] else product)


# What becomes of V without a current, and of a current without input.
v_kept, current_kept = choose_product(0), choose_product(1)


@jit
def slope_after(response, threshold, current, wait):
    """V' at a crossing that comes `wait` after a moment with this current."""
    (of_v, of_current), (_, _, gamma) = rates(response), propagators(response, wait)
    return max(of_v * threshold + of_current * gamma * current, 0.0)


def numbers_of(neuron: Any, t_max: float) -> tuple[Any, ...]:
    """The compiled response, threshold and window."""
    return told_apart(neuron.compiled()), float(neuron.threshold), t_max


def kernel_of(neuron: Any, bias: bool, rows: np.ndarray) -> tuple[Any, tuple[int, ...]]:
    """Of a fully connected layer, and the tile of outputs that it is compiled for."""
    return fire_linear, tile_of(rows)


@jit
def fire_linear(
    first, end, times, weight_t, bias, spikes, potential, slope, status, response, threshold, t_max, tile
):  # fmt: skip
    """First crossings of a fully connected layer; `weight_t` is [in, out], `bias` [out], or empty."""
    rows, n_out = at_least_a_tile(weight_t, tile), spikes.shape[1]
    current, block = current_of(bias, rows), max(1, MOST_EVENTS // max(1, times.shape[1]))
    width, scratch = len(splat(rows.dtype.type(0), tile)), room_to_solve(*rows.shape, rows.dtype)
    for a in range(first, end, block):
        part = slice(a, min(a + block, end))
        events = sort_batch(times[part], t_max, BUCKETS + 1, status[part])
        moves = moves_of(events, response, t_max)
        for start in range(0, n_out, width):
            lane, begin = min(start, rows.shape[1] - width), 0
            for b in range(len(events.ends)):
                last = events.ends[b]
                note_crossings(
                    events.inputs[begin:last], events.when[begin:last], rows, current, response,
                    leak_of(response), threshold, t_max, moves[3 * (begin + b) : 3 * (last + b + 1)], lane,
                    spikes[a + b], potential[a + b], slope[a + b], tile,
                )  # fmt: skip
                begin = last
        begin = 0
        for b in range(len(events.ends)):
            last = events.ends[b]
            when, found = events.when[begin:last], (spikes[a + b], potential[a + b], slope[a + b])
            solve_crossings(when, response, threshold, t_max, scratch, *found)
            status[a + b] = max(status[a + b], status_of(potential[a + b]))
            begin = last


@jit
def moves_of(events, response, t_max):
    """The propagators of each sample, one after the other, three numbers at a time; see `propagate`."""
    n_samples = len(events.ends)
    n_events = events.ends[n_samples - 1] if n_samples > 0 else 0
    moves, begin = np.empty(3 * (n_events + n_samples), events.when.dtype), 0
    for b in range(n_samples):
        end = events.ends[b]
        propagate(events.when[begin:end], response, t_max, moves[3 * (begin + b) : 3 * (end + b + 1)])
        begin = end
    return moves


@jit
def propagate(when, response, t_max, moves):
    """Write the propagators to the first of the times `when`, from each to the next one, and to the end."""
    for k in range(len(when) + 1):
        t, t_next = segment(k, when, t_max)
        moves[3 * k], moves[3 * k + 1], moves[3 * k + 2] = propagators(response, t_next - t)


@jit
def segment(k, when, t_max):
    """The time of the k-th input, or 0, and of the next one, or the end of the window."""
    return float(when[k - 1]) if k > 0 else 0.0, float(when[k]) if k < len(when) else float(t_max)


@lean_jit
def note_crossings(
    rows, when, weight_rows, bias, response, leak, threshold, t_max, moves, lane, fired, potential, slope,
    tile,
):  # fmt: skip
    """Integrate a tile of outputs from `lane` on, to be solved for where they cross.

    `fired` tells how many inputs come before an output reaches the threshold, `inf` if it does not (a
    float32 tells 2^24 apart); `potential` and `slope` hold V and I as they were before that, or at the end.
    So there is no branch, and little to do, where much is done.

    Args:
        rows: those of `weight_rows` [in, width] whose inputs spike, earliest first, at the times `when`.
        bias: [width], the current at time 0.
        leak: what `leak_of` makes of the response: None if V cannot pass a peak between inputs.
        moves: what `propagate` writes.
        fired, potential, slope: [out].
    """
    number = weight_rows.dtype.type
    limit, silent = splat(number(threshold), tile), splat(number(np.inf), tile)
    v, current, crossing = splat(number(0), tile), load(bias, lane, tile), silent
    present, move = leading(v, fired.size - lane), np.uint64(0)
    waiting = present
    for k in range(np.uint64(len(rows) + 1)):
        if k > 0:
            row = np.int64(rows[k - np.uint64(1)]) * bias.size + lane
            current = where(waiting, current + load(weight_rows, row, tile), current)
        alpha, beta, gamma = (
            splat(moves[move], tile),
            splat(moves[move + np.uint64(1)], tile),
            splat(moves[move + np.uint64(2)], tile),
        )
        v_next = v_kept(response, v, alpha) + beta * current
        current_next, move = current_kept(response, current, gamma), move + np.uint64(3)
        if leak is not None and any_of(
            waiting & may_peak(leak, threshold, current, v_next, current_next, number, tile)
        ):
            crossing = where(waiting, silent, crossing)
            store_where(present, fired, lane, crossing)
            store_where(present, potential, lane, v)
            store_where(present, slope, lane, current)
            outputs = slice(lane, min(lane + len(v), fired.size))
            found = fired[outputs], potential[outputs], slope[outputs]
            note_peaks(leak, threshold, *segment(np.int64(k), when, t_max), k, t_max, *found)
            crossing = load_where(present, fired, lane, crossing)
            waiting = waiting & (silent <= crossing)
        crossing = where(waiting, splat(number(k), tile), crossing)
        waiting = waiting & ~(v_next > limit)
        v, current = where(waiting, v_next, v), where(waiting, current_next, current)
        if k % np.uint64(8) == 0 and not any_of(waiting):
            break
    store_where(present, fired, lane, where(waiting, silent, crossing))
    store_where(present, potential, lane, v)
    store_where(present, slope, lane, current)


@jit
def may_peak(leak, threshold, current, v_next, current_next, number, tile):
    """Which neurons can reach the threshold on the way and be below it again at the next input.

    At a peak of x V + y I = 0, V is at most what it would be with the current as it is now.
    """
    of_v, of_current = rates(leak)
    loss, gain = splat(number(-of_v), tile), splat(number(of_current), tile)
    reached = splat(number(-of_v * threshold), tile) <= gain * current
    return reached & (gain * current_next <= loss * v_next)


@jit
def note_peaks(leak, threshold, t, t_next, k, t_max, fired, potential, slope):
    """As crossings are noted, for neurons that end below the threshold after a peak above it."""
    for j in range(fired.size):
        if fired[j] == np.inf:
            wait = time_to_crossing(leak, threshold, float(potential[j]), float(slope[j]))
            if wait < t_next - t and fired.dtype.type(t + wait) < t_max:
                fired[j] = k


@jit
def solve_crossings(when, response, threshold, t_max, scratch, fired, potential, slope):
    """Time, potential and slope of each crossing that was noted; V of the silent neurons.

    A crossing does not come after the next input, however the closed form rounds: that input would
    count as causal. One that rounds to `t_max` is none; its V ends at the threshold. All is computed for
    silent neurons too, so that LLVM can vectorise the last loop. `scratch` is what `room_to_solve` makes.
    """
    bounds, start, end, waits = scratch
    bounds[0], bounds[len(when) + 1], number = 0, t_max, fired.dtype.type
    for k in range(UNSIGNED(len(when))):  # what assigns them all at once could allocate
        bounds[k + UNSIGNED(1)] = when[k]
    for j in range(fired.size):
        k = UNSIGNED(fired[j] if fired[j] < np.inf else number(0))
        start[j], end[j] = bounds[k], bounds[k + UNSIGNED(1)]
    write_waits(response, threshold, fired, potential, slope, waits)
    for j in range(fired.size):
        crosses, t, t_next = fired[j] < np.inf, float(start[j]), float(end[j])
        wait = min(waits[j], t_next - t)
        crossing = number(min(t + wait, t_next))
        rising = number(slope_after(response, threshold, float(slope[j]), wait))
        fires = crosses & (crossing < t_max)
        fired[j], slope[j] = crossing if fires else number(np.inf), rising if fires else number(0)
        potential[j] = number(threshold) if crosses else potential[j]


@jit
def room_to_solve(n_in, n_out, dtype):
    """Scratch: times of a sample's inputs and both ends of its window, those about each crossing, waits."""
    about_crossings = np.empty(n_out, dtype), np.empty(n_out, dtype)
    return np.empty(n_in + 2, dtype), *about_crossings, np.empty(n_out, np.float64)
