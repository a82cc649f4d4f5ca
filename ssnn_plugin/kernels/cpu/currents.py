"""Compiled forward pass of neurons with a synaptic current.

Between input spikes the state (V, I) moves on by itself,

    V(t + d) = alpha V + beta I,    I(t + d) = gamma I,

and V' = x V + y I, with numbers that the neuron's compiled response knows (`neurons.CurrentNeuron`). A
neuron is looked at after each input spike, for a crossing on the way to the next one; a neuron that has
fired is ruled out with V = -inf.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from ..geometry import Geometry, whole_lanes
from ..status import BAD_TIMES
from .compile import jit, told_apart
from .events import sort_events, status_of
from .lanes import any_of, load, splat, store, where
from .parallel import as_arrays, share_out

LANES = 32  # of the vectors that hold V and I: two chains of additions at a time on a wide machine
# Buckets of the counting sort; times are continuous, and a bucket should hold a few.
BUCKETS = 1 << 10
# Of Newton's method; near a tangent each halves the error.
MOST_ITERATIONS = 100


def propagators(response, d):
    """alpha, beta and gamma over a time d."""
    raise NotImplementedError


def rates(response):
    """The numbers x and y of V' = x V + y I."""
    raise NotImplementedError


def time_to_crossing(response, threshold, v, current):
    """Time until V rises through the threshold without further input; `inf` if it does not."""
    raise NotImplementedError


@lru_cache
def _method(response: type, name: str) -> Callable[..., Any]:
    return jit(getattr(response, name))  # type: ignore[no-any-return]


@overload(propagators)
def _(response, d):
    method = _method(response.instance_class, "propagators")
    return lambda response, d: method(response, d)


@overload(rates)
def _(response):
    method = _method(response.instance_class, "rates")
    return lambda response: method(response)


@overload(time_to_crossing)
def _(response, threshold, v, current):
    if not hasattr(response.instance_class, "crossing"):
        return rise_to_crossing
    method = _method(response.instance_class, "crossing")
    return lambda response, threshold, v, current: method(response, threshold, v, current)


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


def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    neuron: Any,
    t_max: float,
    status: np.ndarray,
) -> tuple[Tensor, Tensor, Tensor]:
    """Crossings, potentials and slopes of a fully connected layer; `status` [batch] tells what is wrong."""
    n_out = len(weight)
    spikes = times.new_empty(len(times), n_out)
    potential, slope = torch.empty_like(spikes), torch.empty_like(spikes)
    current = whole_lanes(weight.new_zeros(n_out) if bias is None else bias, LANES)
    arrays = as_arrays(times, whole_lanes(weight.t(), LANES), current, spikes, potential, slope)
    numbers = told_apart(neuron.compiled()), float(neuron.threshold), t_max
    share_out(len(times), times.numel() * n_out // 2, _first_spike_linear, *arrays, status, *numbers)
    return spikes, potential, slope


@jit
def _first_spike_linear(
    begin, end, times, rows, bias, spikes, potential, slope, status, response, threshold, t_max
):  # fmt: skip
    n_in = times.shape[1]
    order, spiking = np.empty(n_in, np.int32), np.empty(n_in, np.int32)
    counts = np.empty(BUCKETS + 1, np.int32)
    moves, state = np.empty((3, n_in + 1), rows.dtype), np.empty((5, LANES), rows.dtype)
    for b in range(begin, end):
        n = sort_events(times[b], t_max, order, spiking, counts)
        if n < 0:
            status[b] = BAD_TIMES
            continue
        fire_currents(
            order[:n], times[b][order[:n]], rows, bias, response, threshold, t_max, moves, state,
            spikes[b], potential[b], slope[b],
        )  # fmt: skip
        status[b] = status_of(potential[b])


@jit
def fire_currents(
    rows, when, weight_rows, bias, response, threshold, t_max, moves, state, fired, potential, slope
):  # fmt: skip
    """First crossing of each output: `fired` is `inf` where there is none before `t_max`.

    Args:
        rows: those of `weight_rows` [in, width] whose inputs spike, earliest first, at the times `when`.
        bias: [width], the current at time 0. Outputs are padded to a `width` of whole `LANES`.
        moves, state: scratch space [3, at least len(rows) + 1] and [5, LANES].
        fired, potential, slope: [out], overwritten.
    """
    for k in range(len(rows) + 1):
        t, t_next = segment(k, when, t_max)
        moves[0, k], moves[1, k], moves[2, k] = propagators(response, t_next - t)
    for lane in range(0, bias.size, LANES):
        n_out = min(LANES, fired.size - lane)
        note_crossings(
            rows, when, weight_rows, bias, leak_of(response), threshold, t_max, moves, lane, n_out, state
        )
        solve_crossings(when, response, threshold, t_max, state, lane, n_out, fired, potential, slope)


@jit
def segment(k, when, t_max):
    """The time of the k-th input, or 0, and of the next one, or the end of the window."""
    return float(when[k - 1]) if k > 0 else 0.0, float(when[k]) if k < len(when) else float(t_max)


@jit
def note_crossings(rows, when, weight_rows, bias, leak, threshold, t_max, moves, lane, n_out, state):
    """Integrate `LANES` outputs from `lane` on, of which `n_out` are no padding.

    `leak` is the response, or None if V cannot pass a peak between inputs.

    `state` ends as [V, I, crossing, V before it, I before it]: `crossing` is how many inputs come
    before the output reaches the threshold, `inf` if it does not (a float32 tells 2^24 apart). From
    there the crossing is solved in the end: one branch less where much is done.
    """
    number = weight_rows.dtype.type
    limit, silent, out = (
        splat(number(threshold), LANES),
        splat(number(np.inf), LANES),
        splat(number(-np.inf), LANES),
    )
    for j in range(LANES):
        state[2, j] = np.inf if j < n_out else 0
    v, current, crossing = splat(number(0), LANES), load(bias, lane, LANES), load(state, 2 * LANES, LANES)
    v_before, current_before = v, v
    for k in range(len(rows) + 1):
        if k > 0:
            current = current + load(weight_rows, rows[k - 1] * bias.size + lane, LANES)
        alpha, beta = splat(moves[0, k], LANES), splat(moves[1, k], LANES)
        v_next, current_next = alpha * v + beta * current, current * splat(moves[2, k], LANES)
        if leak is not None and any_of(may_peak(leak, threshold, current, v_next, current_next, state)):
            keep(v, current, crossing, v_before, current_before, state)
            note_peaks(leak, threshold, *segment(k, when, t_max), k, t_max, state)
            v, crossing = load(state, 0, LANES), load(state, 2 * LANES, LANES)
            v_before, current_before = load(state, 3 * LANES, LANES), load(state, 4 * LANES, LANES)
            v_next = alpha * v + beta * current
        above = v_next > limit
        if any_of(above):
            crossing = where(above, splat(number(k), LANES), crossing)
            v_before, current_before = where(above, v, v_before), where(above, current, current_before)
            v_next = where(above, out, v_next)
            # Rarely true of many outputs: a look at every crossing would cost more than it saves.
            if n_out < LANES and not any_of(silent <= crossing):
                break
        v, current = v_next, current_next
    keep(v, current, crossing, v_before, current_before, state)


@jit
def keep(v, current, crossing, v_before, current_before, state):
    """Write what is in registers to memory."""
    store(state, 0, v)
    store(state, LANES, current)
    store(state, 2 * LANES, crossing)
    store(state, 3 * LANES, v_before)
    store(state, 4 * LANES, current_before)


@jit
def may_peak(leak, threshold, current, v_next, current_next, state):
    """Which neurons can reach the threshold on the way and be below it again at the next input.

    At a peak of x V + y I = 0, V is at most what it would be with the current as it is now.
    """
    (of_v, of_current), number = rates(leak), state.dtype.type
    loss, gain = splat(number(-of_v), LANES), splat(number(of_current), LANES)
    reached = splat(number(-of_v * threshold), LANES) <= gain * current
    return reached & (gain * current_next <= loss * v_next)


@jit
def note_peaks(leak, threshold, t, t_next, k, t_max, state):
    """As crossings are noted, for neurons that end below the threshold after a peak above it."""
    v, current, crossing, v_before, current_before = state
    for j in range(LANES):
        if crossing[j] == np.inf:
            wait = time_to_crossing(leak, threshold, float(v[j]), float(current[j]))
            if wait < t_next - t and state.dtype.type(t + wait) < t_max:
                crossing[j], v_before[j], current_before[j] = k, v[j], current[j]
                v[j] = -np.inf


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
            v, current = float(state[3, j]), float(state[4, j])
            t, t_next = segment(int(state[2, j]), when, t_max)
            wait = min(time_to_crossing(response, threshold, v, current), t_next - t)
            crossing = fired.dtype.type(min(t + wait, t_next))
            if crossing < t_max:
                fired[at], slope[at] = crossing, slope_after(response, threshold, current, wait)
