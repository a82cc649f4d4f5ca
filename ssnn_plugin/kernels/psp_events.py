"""Compiled event-driven primitives of the neurons with a synaptic current, on one sample.

Between input spikes the state (V, I) of `ssnn_plugin.kernels.psp` moves on by itself:

    V(t + d) = alpha V + beta I,    I(t + d) = gamma I,    with beta = K(d).

A neuron is looked at once per distinct input time, for a crossing on the way to the next one; a
neuron that has fired is ruled out with V = -inf.
"""

from __future__ import annotations

import numpy as np

from .events import jit
from .psp import ALPHA, EXPONENTIAL, RAMP


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
def advance(psp, tau, threshold, t, d, t_max, v, current, fired, potential, slope):
    """Move (V, I) from t to t + d, no input coming between; note crossings, return how many.

    For a crossing, time, V and I at t are kept in `fired`, `potential` and `slope`, from which
    `solve_crossings` finds the crossing in the end: one branch less where much is done.
    """
    alpha, beta, gamma = propagators(psp, tau, d)
    crossings = 0
    if psp not in (RAMP, EXPONENTIAL) and may_peak(psp, tau, threshold, d, alpha, v, current) > 0:
        crossings += note_peaks(psp, tau, threshold, t, d, t_max, v, current, fired, potential, slope)
    threshold, t = v.dtype.type(threshold), v.dtype.type(t)
    alpha, beta, gamma = v.dtype.type(alpha), v.dtype.type(beta), v.dtype.type(gamma)
    above = np.int32(0)
    for j in range(v.size):
        above += np.int32(1) if alpha * v[j] + beta * current[j] > threshold else np.int32(0)
    if above > 0:
        for j in range(v.size):
            fired[j] = t if alpha * v[j] + beta * current[j] > threshold else fired[j]
        for j in range(v.size):
            slope[j] = current[j] if alpha * v[j] + beta * current[j] > threshold else slope[j]
        for j in range(v.size):
            crosses = alpha * v[j] + beta * current[j] > threshold
            potential[j] = v[j] if crosses else potential[j]
            v[j] = -np.inf if crosses else v[j]
    for j in range(v.size):
        v[j] = alpha * v[j] + beta * current[j]
    if gamma != 1:
        for j in range(v.size):
            current[j] *= gamma
    return crossings + above


@jit
def may_peak(psp, tau, threshold, d, alpha, v, current):
    """How many neurons can reach the threshold on the way and be below it again after d."""
    threshold, d, tau, alpha = (
        v.dtype.type(threshold), v.dtype.type(d), v.dtype.type(tau), v.dtype.type(alpha)
    )  # fmt: skip
    some = np.int32(0)
    if psp == ALPHA:
        for j in range(v.size):
            peaks = (current[j] >= threshold) & ((current[j] - v[j]) * tau <= current[j] * d)
            some += np.int32(1) if peaks else np.int32(0)
    else:
        for j in range(v.size):
            total = v[j] + current[j]
            high = (current[j] > 0) & (total > 0) & (total * total >= 4 * current[j] * threshold)
            some += np.int32(1) if high & (total >= 2 * current[j] * alpha) else np.int32(0)
    return some


@jit
def note_peaks(psp, tau, threshold, t, d, t_max, v, current, fired, potential, slope):
    """As `advance` notes crossings, for neurons that end below the threshold after a peak above it."""
    crossings = np.int32(0)
    for j in range(v.size):
        if fired[j] == np.inf:
            wait = time_to_crossing(psp, tau, threshold, float(v[j]), float(current[j]))
            if wait < d and fired.dtype.type(t + wait) < t_max:
                fired[j], potential[j], slope[j] = t, v[j], current[j]
                v[j] = -np.inf
                crossings += np.int32(1)
    return crossings


@jit
def solve_crossings(psp, tau, threshold, t_max, v, fired, potential, slope):
    """Time, potential and slope of each crossing, from the state before it; V of the silent neurons.

    A crossing that rounds to `t_max` is none; its V ends at the threshold.
    """
    for j in range(v.size):
        if fired[j] == np.inf:
            potential[j] = v[j]
        else:
            before, current = float(potential[j]), float(slope[j])
            wait = time_to_crossing(psp, tau, threshold, before, current)
            fired[j] += wait
            slope[j] = slope_after(psp, tau, threshold, before, current, wait)
            potential[j] = threshold
            if not fired[j] < t_max:
                fired[j], slope[j] = np.inf, 0


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
    order, n, times, weight_t, bias, psp, tau, threshold, t_max, v, current, fired, potential, slope
):  # fmt: skip
    """First crossing of each output: `fired` is `inf` where there is none before `t_max`.

    `weight_t` is [in, out], so that an input spike adds one contiguous row to the currents.
    """
    v[:] = 0
    current[:] = bias
    fired[:] = np.inf
    slope[:] = 0
    waiting = fired.size
    k = 0
    t = 0.0
    while t < t_max and waiting > 0:
        while k < n and times[order[k]] == t:
            row = weight_t[order[k]]
            for j in range(current.size):
                current[j] += row[j]
            k += 1
        t_next = min(times[order[k]] if k < n else np.inf, t_max)
        waiting -= advance(psp, tau, threshold, t, t_next - t, t_max, v, current, fired, potential, slope)
        t = t_next
    solve_crossings(psp, tau, threshold, t_max, v, fired, potential, slope)


@jit
def fire_psp_narrow(
    order, n, times, weight_t, bias, psp, tau, threshold, t_max, moves, fired, potential, slope
):  # fmt: skip
    """As `fire_psp` for few outputs: one after the other, which stops when it has fired.

    `moves` is scratch space [3, inputs + 1] for the propagators from each event to the next.
    """
    for k in range(n + 1):
        t = times[order[k - 1]] if k > 0 else 0.0
        t_next = times[order[k]] if k < n else t_max
        moves[0, k], moves[1, k], moves[2, k] = propagators(psp, tau, t_next - t)
    for j in range(fired.size):
        fired[j] = np.inf
        slope[j] = 0
        v, current = 0.0, float(bias[j])
        for k in range(n + 1):
            if k > 0:
                current += weight_t[order[k - 1], j]
            v_next = moves[0, k] * v + moves[1, k] * current
            if v_next > threshold or (psp > EXPONENTIAL and current > 0):
                t = times[order[k - 1]] if k > 0 else 0.0
                t_next = times[order[k]] if k < n else t_max
                wait = time_to_crossing(psp, tau, threshold, v, current)
                wait = min(wait, t_next - t) if v_next > threshold else wait
                # Before the next input, which may come in the same moment.
                in_time = v_next > threshold or wait < t_next - t
                if in_time and fired.dtype.type(t + wait) < t_max:
                    fired[j] = t + wait
                    slope[j] = slope_after(psp, tau, threshold, v, current, wait)
                    break
            v = v_next
            current *= moves[2, k]
        potential[j] = threshold if fired[j] < np.inf else v


@jit
def fire_psp_conv2d(
    order, n, times, rows, bias, psp, tau, start, taps, locations, threshold, t_max,
    v, current, since, waiting, fired, potential, slope,
):  # fmt: skip
    """As `fire_psp` for convolutional neurons [locations, out]; geometry as in `events.fire_if_conv2d`.

    A location is brought up to date when a spike reaches it: `since` holds the time it stands at,
    `waiting` how many of its neurons have not fired.
    """
    v[:] = 0
    current[:] = bias
    since[:] = 0
    waiting[:] = v.shape[1]
    fired[:] = np.inf
    slope[:] = 0
    positions = times.shape[1]
    out = rows.shape[2]
    in_group = times.shape[0] * out // fired.shape[1]
    flat = times.reshape(-1)
    for k in range(n):
        t = flat[order[k]]
        channel, position = order[k] // positions, order[k] % positions
        base = channel // in_group * out
        for s in range(start[position], start[position + 1]):
            at = locations[s]
            if waiting[at] > 0:
                if since[at] < t:
                    waiting[at] -= advance(
                        psp, tau, threshold, since[at], t - since[at], t_max,
                        v[at], current[at], fired[at], potential[at], slope[at],
                    )  # fmt: skip
                    since[at] = t
                row = rows[channel, taps[s]]
                for j in range(out):
                    current[at, base + j] += row[j]
    for at in range(v.shape[0]):
        if waiting[at] > 0:
            advance(
                psp, tau, threshold, since[at], t_max - since[at], t_max,
                v[at], current[at], fired[at], potential[at], slope[at],
            )  # fmt: skip
        solve_crossings(psp, tau, threshold, t_max, v[at], fired[at], potential[at], slope[at])
