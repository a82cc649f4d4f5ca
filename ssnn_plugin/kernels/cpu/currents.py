"""Compiled forward pass of neurons with a synaptic current.

Between input spikes the state (V, I) moves on by itself,

    V(t + d) = alpha V + beta I,    I(t + d) = gamma I,

and V' = x V + y I, with numbers that the neuron's compiled response knows (`neurons.CurrentNeuron`). A
neuron is looked at after each input spike, for a crossing on the way to the next one; a neuron that has
fired is ruled out with V = -inf.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .compile import jit, method, told_apart
from .events import MOST_EVENTS, sort_batch, status_of
from .lanes import TILES, any_of, at_least_a_tile, current_of, leading, load, splat, store, tile_of, where

LANES = 32  # whole of these hold the outputs of a convolution
PAIR = TILES[1]  # of registers: no more than `LANES`
# Buckets of the counting sort; times are continuous, and a bucket should hold a few.
BUCKETS = 1 << 10
# Of Newton's method; near a tangent each halves the error.
MOST_ITERATIONS = 100


def rise_to_crossing(response, threshold, v, current):
    """Newton's method: V rises along a concave arc, so that it comes to the crossing and never beyond."""
    of_v, of_current = rates(response)
    if of_current * current <= -of_v * max(v, threshold):  # V falls, or is drawn to less than the threshold
        return np.inf
    d = 0.0
    for _ in range(MOST_ITERATIONS):
        alpha, beta, gamma = propagators(response, d)
        level = alpha * v + beta * current
        missing, slope = threshold - level, of_v * level + of_current * gamma * current
        if not missing > 0:
            break
        if not slope > 0:  # past the peak, where V only touched the threshold, or never came near it
            return d if missing <= 1e-15 * threshold else np.inf
        step = missing / slope
        d += step
        if not step > 1e-15 * (1 + d):
            break
    return d


# Of a response: alpha, beta and gamma over a time, and x and y of V' = x V + y I.
propagators, rates = method("propagators"), method("rates")
# The time until V rises through the threshold without further input; `inf` if it does not.
time_to_crossing = method("crossing", rise_to_crossing)


def leak_of(response):
    """The response if V can pass a peak between two inputs, else None: then numba leaves out the search."""
    raise NotImplementedError


@overload(leak_of)
def _(response):
    monotone = getattr(response.instance_class, "monotone", None)
    if monotone is not None and monotone():
        return lambda response: None
    return lambda response: response


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
    width = len(splat(rows.dtype.type(0), tile))
    state = np.empty((5, width), rows.dtype)
    for a in range(first, end, block):
        part = slice(a, min(a + block, end))
        events = sort_batch(times[part], t_max, BUCKETS + 1, status[part])
        moves = moves_of(events, response, t_max)
        for start in range(0, n_out, width):
            lane, begin = min(start, rows.shape[1] - width), 0
            for b in range(len(events.ends)):
                last = events.ends[b]
                fire_tile(
                    events.inputs[begin:last], events.when[begin:last], rows, current, response, threshold,
                    t_max, moves[3 * (begin + b) : 3 * (last + b + 1)], lane, min(width, n_out - lane), state,
                    spikes[a + b], potential[a + b], slope[a + b], tile,
                )  # fmt: skip
                begin = last
        for b in range(part.start, part.stop):
            status[b] = max(status[b], status_of(potential[b]))


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


@jit
def fire_tile(
    rows, when, weight_rows, bias, response, threshold, t_max, moves, lane, n_out, state,
    fired, potential, slope, tile,
):  # fmt: skip
    """First crossings of `n_out` outputs from `lane` on: `fired` is `inf` where there is none before `t_max`.

    Args:
        rows: those of `weight_rows` [in, width] whose inputs spike, earliest first, at the times `when`.
        bias: [width], the current at time 0.
        moves: what `propagate` writes.
        state: scratch space [5, width of the tile].
        fired, potential, slope: [out], of which these are overwritten.
    """
    note_crossings(
        rows, when, weight_rows, bias, leak_of(response), threshold, t_max, moves, lane, n_out, state, tile
    )
    solve_crossings(when, response, threshold, t_max, state, lane, n_out, fired, potential, slope)


@jit
def note_crossings(
    rows, when, weight_rows, bias, leak, threshold, t_max, moves, lane, n_out, state, tile
):  # fmt: skip
    """Integrate a tile of outputs from `lane` on, of which `n_out` are no padding.

    `leak` is the response, or None if V cannot pass a peak between inputs.

    `state` ends as [V, I, crossing]: `crossing` is how many inputs come before the output reaches the
    threshold, `inf` if it does not (a float32 tells 2^24 apart). There V and I stay as they were before it,
    so that it can be solved for in the end: no branch, and little to do, where much is done.
    """
    number = weight_rows.dtype.type
    limit, silent = splat(number(threshold), tile), splat(number(np.inf), tile)
    v, current, crossing = splat(number(0), tile), load(bias, lane, tile), silent
    waiting, move = leading(v, n_out), np.uint64(0)
    for k in range(np.uint64(len(rows) + 1)):
        if k > 0:
            row = np.int64(rows[k - np.uint64(1)]) * bias.size + lane
            current = where(waiting, current + load(weight_rows, row, tile), current)
        alpha, beta, gamma = (
            splat(moves[move], tile),
            splat(moves[move + np.uint64(1)], tile),
            splat(moves[move + np.uint64(2)], tile),
        )
        v_next, current_next, move = alpha * v + beta * current, current * gamma, move + np.uint64(3)
        if leak is not None and any_of(
            waiting & may_peak(leak, threshold, current, v_next, current_next, number, tile)
        ):
            keep(v, current, where(waiting, silent, crossing), state)
            note_peaks(leak, threshold, *segment(np.int64(k), when, t_max), k, n_out, t_max, state)
            crossing = load(state, 2 * state.shape[1], tile)
            waiting = waiting & (silent <= crossing)
        crossing = where(waiting, splat(number(k), tile), crossing)
        waiting = waiting & ~(v_next > limit)
        v, current = where(waiting, v_next, v), where(waiting, current_next, current)
        if k % np.uint64(8) == 0 and not any_of(waiting):
            break
    keep(v, current, where(waiting, silent, crossing), state)


@jit
def keep(v, current, crossing, state):
    """Write what is in registers to memory."""
    store(state, 0, v)
    store(state, state.shape[1], current)
    store(state, 2 * state.shape[1], crossing)


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
def note_peaks(leak, threshold, t, t_next, k, n_out, t_max, state):
    """As crossings are noted, for neurons that end below the threshold after a peak above it."""
    v, current, crossing = state[0], state[1], state[2]
    for j in range(n_out):
        if crossing[j] == np.inf:
            wait = time_to_crossing(leak, threshold, float(v[j]), float(current[j]))
            if wait < t_next - t and state.dtype.type(t + wait) < t_max:
                crossing[j] = k


@jit
def solve_crossings(when, response, threshold, t_max, state, lane, n_out, fired, potential, slope):
    """Time, potential and slope of each crossing, from the state before it; V of the silent neurons.

    A crossing does not come after the next input, however the closed form rounds: that input would
    count as causal. One that rounds to `t_max` is none; its V ends at the threshold.
    """
    for j in range(n_out):
        at = lane + j
        fired[at], potential[at], slope[at] = np.inf, state[0, j], 0
        if state[2, j] < np.inf:
            potential[at] = threshold
            v, current = float(state[0, j]), float(state[1, j])
            t, t_next = segment(int(state[2, j]), when, t_max)
            wait = min(time_to_crossing(response, threshold, v, current), t_next - t)
            crossing = fired.dtype.type(min(t + wait, t_next))
            if crossing < t_max:
                fired[at], slope[at] = crossing, slope_after(response, threshold, current, wait)
