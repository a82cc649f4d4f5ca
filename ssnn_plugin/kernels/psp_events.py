"""Compiled event-driven primitives of the neurons with a synaptic current, on one sample.

Between input spikes the state (V, I) of `ssnn_plugin.kernels.psp` moves on by itself:

    V(t + d) = alpha V + beta I,    I(t + d) = gamma I,    with beta = K(d).

A neuron is looked at after each input spike, for a crossing on the way to the next one; a neuron that
has fired is ruled out with V = -inf.
"""

from __future__ import annotations

import numpy as np

from .conv2d_events import place_of
from .events import find_events, jit
from .lanes import any_of, load, splat, store, total, where
from .psp import ALPHA, EXPONENTIAL, RAMP

LANES = 32  # of the vectors that hold V and I: two chains of additions at a time on a wide machine


@jit
def propagators(psp, tau, d):
    """alpha, beta and gamma over a time d."""
    if psp == RAMP:
        return 1.0, d, 1.0
    decay = np.exp(-d / tau)
    if psp == EXPONENTIAL:
        return 1.0, 1 - decay, decay
    if psp == ALPHA:
        return decay, d / tau * decay, decay
    slow = np.exp(-d / (2 * tau))
    return slow, slow - decay, decay


@jit
def time_to_crossing(psp, tau, threshold, v, current):
    """Time until V rises through the threshold without further input; `inf` if it does not."""
    missing = max(threshold - v, 0.0)
    if current <= 0:
        return np.inf
    if psp == RAMP:
        return missing / current
    if psp == EXPONENTIAL:
        return -tau * np.log1p(-missing / current) if current > missing else np.inf
    if psp == ALPHA:
        return tau * crossing_of_alpha(threshold, v, current)
    # With x = e^{-d / (2 tau)}: (V + I) x - I x^2 = threshold, first reached at the larger root.
    square = (v + current) ** 2 - 4 * current * threshold
    if current <= v or v + current <= 0 or square < 0:
        return np.inf
    return max(-2 * tau * np.log((v + current + np.sqrt(square)) / (2 * current)), 0.0)


@jit
def crossing_of_alpha(threshold, v, current):
    """First root of v + I d = threshold e^d, d >= 0: Lambert's W, found by Newton's method.

    The difference of the two sides is concave, so that from d = 0, where it is negative, the
    iteration rises to the first root and never beyond.
    """
    if current < threshold or current <= v or np.log(current / threshold) < 1 - v / current:
        return np.inf
    d, peak = 0.0, 1 - v / current
    for _ in range(100):
        grown = threshold * np.exp(d)
        step = (grown - v - current * d) / (current - grown)
        if not step > 1e-15 * (1 + d):
            break
        d += step
    return min(d, peak)  # close to a tangent the last step rounds


@jit
def slope_after(psp, tau, threshold, v, current, wait):
    """dV/dt at a crossing that comes `wait` after a moment with this state."""
    if psp == RAMP:
        return current
    if psp == EXPONENTIAL:
        return (v + current - threshold) / tau
    if psp == ALPHA:
        return max(current * threshold / (v + current * wait / tau) - threshold, 0.0) / tau
    return max(current * np.exp(-wait / tau) - threshold, 0.0) / (2 * tau)


@jit
def fire_psp(
    rows, when, weight_rows, bias, psp, tau, threshold, t_max, moves, state, fired, potential, slope
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
        moves[0, k], moves[1, k], moves[2, k] = propagators(psp, tau, t_next - t)
    for lane in range(0, bias.size, LANES):
        n_out = min(LANES, fired.size - lane)
        if psp > EXPONENTIAL:
            note_crossings(
                rows, when, weight_rows, bias, psp, tau, threshold, t_max, moves, lane, n_out, state
            )
        else:
            note_crossings(
                rows, when, weight_rows, bias, psp, None, threshold, t_max, moves, lane, n_out, state
            )
        solve_crossings(when, psp, tau, threshold, t_max, state, lane, n_out, fired, potential, slope)


@jit
def segment(k, when, t_max):
    """The time of the k-th input, or 0, and of the next one, or the end of the window."""
    return float(when[k - 1]) if k > 0 else 0.0, float(when[k]) if k < len(when) else float(t_max)


@jit
def note_crossings(rows, when, weight_rows, bias, psp, tau, threshold, t_max, moves, lane, n_out, state):
    """Integrate `LANES` outputs from `lane` on, of which `n_out` are no padding.

    `tau` is None for the potentials that cannot pass a peak between inputs: numba leaves the branch out.

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
        if tau is not None:
            t, t_next = segment(k, when, t_max)
            d = number(t_next - t)
            if any_of(may_peak(psp, number(tau), number(threshold), d, moves[0, k], v, current)):
                keep(v, current, crossing, v_before, current_before, state)
                note_peaks(psp, tau, threshold, k, t, d, t_max, state)
                v, crossing = load(state, 0, LANES), load(state, 2 * LANES, LANES)
                v_before, current_before = load(state, 3 * LANES, LANES), load(state, 4 * LANES, LANES)
        v_next = splat(moves[0, k], LANES) * v + splat(moves[1, k], LANES) * current
        above = v_next > limit
        if any_of(above):
            crossing = where(above, splat(number(k), LANES), crossing)
            v_before, current_before = where(above, v, v_before), where(above, current, current_before)
            v_next = where(above, out, v_next)
            # Rarely true of many outputs: a look at every crossing would cost more than it saves.
            if n_out < LANES and not any_of(silent <= crossing):
                break
        v, current = v_next, current * splat(moves[2, k], LANES)
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
def may_peak(psp, tau, threshold, d, alpha, v, current):
    """Which neurons can reach the threshold on the way and be below it again after d."""
    if psp == ALPHA:
        return (splat(threshold, LANES) <= current) & (
            (current - v) * splat(tau, LANES) <= current * splat(d, LANES)
        )
    both, twice = v + current, current + current
    reached = (twice + twice) * splat(threshold, LANES) <= both * both
    return (twice > current) & reached & (twice * splat(alpha, LANES) <= both)


@jit
def note_peaks(psp, tau, threshold, k, t, d, t_max, state):
    """As crossings are noted, for neurons that end below the threshold after a peak above it."""
    v, current, crossing, v_before, current_before = state
    for j in range(LANES):
        if crossing[j] == np.inf:
            wait = time_to_crossing(psp, tau, threshold, float(v[j]), float(current[j]))
            if wait < d and state.dtype.type(t + wait) < t_max:
                crossing[j], v_before[j], current_before[j] = k, v[j], current[j]
                v[j] = -np.inf


@jit
def solve_crossings(when, psp, tau, threshold, t_max, state, lane, n_out, fired, potential, slope):
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
            wait = min(time_to_crossing(psp, tau, threshold, v, current), t_next - t)
            crossing = fired.dtype.type(min(t + wait, t_next))
            if crossing < t_max:
                fired[at], slope[at] = crossing, slope_after(psp, tau, threshold, v, current, wait)


@jit
def subtract_causal_factors_conv2d(
    p, q, until, a, b, times, synapses, position_of, first, end, spiking, grad_rows
):  # fmt: skip
    """Weight gradient of a convolution; arrays as in `conv2d_events`."""
    start, taps, locations = synapses
    channels, (groups, width) = times.shape[1], until.shape[1:]
    none = splat(p.dtype.type(0), LANES)
    for i in spiking[: find_events(times.reshape(-1), np.inf, spiking)]:
        position, group, first_row = place_of(i, position_of, len(grad_rows), channels, groups)
        channel = i - position * channels
        t, of_a, of_b = (
            splat(times[position, channel], LANES),
            splat(a[position, channel], LANES),
            splat(b[position, channel], LANES),
        )
        for s in range(start[position], start[position + 1]):
            row, unit = taps[s] * (channels // groups) + first_row, locations[s] * groups + group
            if first <= row < end:
                for lane in range(0, width, LANES):
                    at, to = unit * width + lane, row * width + lane
                    change = load(p, at, LANES) * of_a - load(q, at, LANES) * of_b
                    causal = where(load(until, at, LANES) > t, change, none)
                    store(grad_rows, to, load(grad_rows, to, LANES) - causal)


@jit
def sum_causal_factors_conv2d(
    p, q, until, a, b, times, synapses, position_of, spiking, weight_rows, grad_times
):  # fmt: skip
    """Input gradient of a convolution; arrays as in `conv2d_events`."""
    start, taps, locations = synapses
    channels, (groups, width) = times.shape[1], until.shape[1:]
    none = splat(p.dtype.type(0), LANES)
    for i in spiking[: find_events(times.reshape(-1), np.inf, spiking)]:
        position, group, first_row = place_of(i, position_of, len(weight_rows), channels, groups)
        channel = i - position * channels
        t, of_a, of_b = splat(times[position, channel], LANES), none, none
        for s in range(start[position], start[position + 1]):
            row, unit = taps[s] * (channels // groups) + first_row, locations[s] * groups + group
            for lane in range(0, width, LANES):
                at = unit * width + lane
                w = where(load(until, at, LANES) > t, load(weight_rows, row * width + lane, LANES), none)
                of_a, of_b = of_a + load(p, at, LANES) * w, of_b + load(q, at, LANES) * w
        grad_times[position, channel] = a[position, channel] * total(of_a) - b[position, channel] * total(
            of_b
        )
