"""Compiled event-driven primitives of the neurons with a synaptic current, on one sample.

Between input spikes the state (V, I) of `ssnn_plugin.kernels.psp` moves on by itself:

    V(t + d) = alpha V + beta I,    I(t + d) = gamma I,    with beta = K(d).

A neuron is looked at once per distinct input time: only where it can have crossed on the way to
the next one is the crossing solved for. A neuron that has fired is ruled out with V = -inf.
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
    d = 0.0
    for _ in range(100):
        grown = threshold * np.exp(d)
        step = (grown - v - current * d) / (current - grown)
        if not step > 1e-15 * (1 + d):
            break
        d += step
    return d


@jit
def advance(psp, tau, threshold, t, d, t_max, v, current, fired, potential, slope):
    """Move (V, I) from t to t + d, no input coming between; note crossings, return how many."""
    alpha, beta, gamma = propagators(psp, tau, d)
    crossings = 0
    if may_cross(psp, tau, threshold, d, alpha, beta, v, current) > 0:
        for j in range(v.size):
            if fired[j] == np.inf:
                wait = time_to_crossing(psp, tau, threshold, float(v[j]), float(current[j]))
                # Where V ends above the threshold it has crossed, even if the root rounds to beyond d.
                if alpha * v[j] + beta * current[j] > threshold:
                    wait = min(wait, d)
                at = fired.dtype.type(t + wait)
                if wait <= d and at < t_max:
                    fired[j] = at
                    potential[j] = threshold
                    slope[j] = slope_after(psp, tau, threshold, float(current[j]), wait)
                    v[j] = -np.inf
                    crossings += 1
    alpha, beta, gamma = v.dtype.type(alpha), v.dtype.type(beta), v.dtype.type(gamma)
    for j in range(v.size):
        v[j] = alpha * v[j] + beta * current[j]
        current[j] *= gamma
    return crossings


@jit
def may_cross(psp, tau, threshold, d, alpha, beta, v, current):
    """How many neurons can cross within d: end above the threshold, or peak above it on the way."""
    threshold, d, tau = v.dtype.type(threshold), v.dtype.type(d), v.dtype.type(tau)
    alpha, beta = v.dtype.type(alpha), v.dtype.type(beta)
    some = np.int32(0)
    if psp in (RAMP, EXPONENTIAL):
        for j in range(v.size):
            some += np.int32(1) if alpha * v[j] + beta * current[j] > threshold else np.int32(0)
    elif psp == ALPHA:
        for j in range(v.size):
            peaks = (current[j] > threshold) & ((current[j] - v[j]) * tau <= current[j] * d)
            ends_above = alpha * v[j] + beta * current[j] > threshold
            some += np.int32(1) if peaks | ends_above else np.int32(0)
    else:
        for j in range(v.size):
            total = v[j] + current[j]
            high = (current[j] > 0) & (total > 0) & (total * total >= 4 * current[j] * threshold)
            peaks = high & (total >= 2 * current[j] * alpha)
            ends_above = alpha * v[j] + beta * current[j] > threshold
            some += np.int32(1) if peaks | ends_above else np.int32(0)
    return some


@jit
def slope_after(psp, tau, threshold, current, wait):
    """dV/dt at a crossing that comes `wait` after a moment with this current."""
    if psp == RAMP:
        return current
    current *= np.exp(-wait / tau)
    if psp == EXPONENTIAL:
        return current / tau
    return (current - threshold) / (tau if psp == ALPHA else 2 * tau)


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
    hold_silent(v, fired, potential)


@jit
def hold_silent(v, fired, potential):
    """The potential of the neurons that have not fired."""
    for j in range(v.size):
        potential[j] = v[j] if fired[j] == np.inf else potential[j]


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
        hold_silent(v[at], fired[at], potential[at])
