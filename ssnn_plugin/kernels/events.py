"""Compiled event-driven primitives that work on one sample; the CPU kernels are built of them.

Every function costs (input spikes) x (outputs). Times are compared as they are, so bins and
continuous times are both served; whole-numbered times take the counting sort.
"""

from __future__ import annotations

import numba as nb
import numpy as np

# Re-association lets sums vectorise. It leaves `inf` alone, which stands for silence.
jit = nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")


@jit
def has_bad_times(times):
    """Whether any time is NaN or negative."""
    bad = np.int32(0)
    for i in range(times.size):
        bad += np.int32(0) if times[i] >= 0 else np.int32(1)
    return bad > 0


@jit
def find_events(times, t_max, spiking):
    """Write the inputs that spike before `t_max` to `spiking`; return how many."""
    n = 0
    for i in range(times.size):
        spiking[n] = i
        n += times[i] < t_max
    return n


@jit
def sort_events(times, t_max, order, spiking, counts):
    """Write the inputs that spike before `t_max` to `order`, earliest first; return how many.

    Equal times keep the order of their index, so that sums are reproducible. `spiking` is scratch
    space for all inputs, `counts` for the buckets of a counting sort: with ceil(t_max) + 1 of them
    whole bins have one each, otherwise the few spikes of a bucket are put in order in the end.
    Returns -1 for a NaN or negative time.
    """
    if has_bad_times(times):
        return -1
    n = find_events(times, t_max, spiking)
    last = counts.size - 2
    scale = (counts.size - 1) / t_max
    counts[:] = 0
    for k in range(n):
        counts[min(int(times[spiking[k]] * scale), last) + 1] += 1
    for bucket in range(1, counts.size):
        counts[bucket] += counts[bucket - 1]
    for k in range(n):
        i = spiking[k]
        bucket = min(int(times[i] * scale), last)
        order[counts[bucket]] = i
        counts[bucket] += 1
    if not insertion_sort(times, order, n):
        order[:n] = spiking[:n][np.argsort(times[spiking[:n]], kind="mergesort")]
    return n


@jit
def insertion_sort(times, order, n):
    """Put an almost sorted order right; gives up, and returns False, where it is far from sorted."""
    moves = 16 * n
    for k in range(1, n):
        i, t, at = order[k], times[order[k]], k
        while at > 0 and times[order[at - 1]] > t:
            order[at] = order[at - 1]
            at -= 1
            moves -= 1
        order[at] = i
        if moves < 0:
            return False
    return True


@jit
def fire_if(order, n, times, weight_t, threshold, delay, t_max, v, fired, potential):
    """First crossing of a step-PSP neuron for each output; `fired` is `inf` where there is none.

    `weight_t` is [in, out], so that an input spike adds one contiguous row. The threshold is
    looked at once per distinct time, after all spikes of that time; nothing is read once every
    output has fired.
    """
    v[:] = 0
    fired[:] = np.inf
    threshold = v.dtype.type(threshold)  # a wider type would halve the width of the comparison
    waiting = fired.size
    k = 0
    while k < n and waiting > 0:
        t = times[order[k]]
        k, crossings = add_rows_of_time(t, k, order, n, times, weight_t, threshold, v)
        if crossings > 0 and times.dtype.type(t + delay) < t_max:
            waiting -= crossings
            record_crossings(v, threshold, t, fired, potential)
    for j in range(v.size):
        potential[j] = v[j] if fired[j] == np.inf else potential[j]


@jit
def fire_if_with_drift(
    order, n, times, weight_t, current, rising, beta, threshold, delay, t_max, v, fired, potential
):  # fmt: skip
    """As `fire_if`, with a leak or a constant current: V is an exponential or a line between inputs.

    `v` holds what the input spikes contribute, `current` is added in every bin from bin 0 on;
    `rising` says whether there is any. Times are whole bins.
    """
    v[:] = 0
    fired[:] = np.inf
    waiting = fired.size
    k = 0
    t = 0.0
    while t < t_max and waiting > 0:
        if k < n and times[order[k]] == t:
            k, _ = add_rows_of_time(t, k, order, n, times, weight_t, threshold, v)
        t_next = min(times[order[k]] if k < n else np.inf, t_max)
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
    above = np.int32(0)
    for j in range(v.size):
        highest = max(v[j] + current[j] * now, v[j] * kept + current[j] * later)
        above += np.int32(1) if (highest > threshold) & (fired[j] == np.inf) else np.int32(0)
    if above > 0:
        for j in range(v.size):
            if fired[j] == np.inf:
                level = v[j] + current[j] * now
                if level > threshold:
                    fired[j] = t
                    potential[j] = level
                elif v[j] * kept + current[j] * later > threshold:
                    crossing = first_bin_above(v[j], current[j], beta, threshold, t, last)
                    fired[j] = crossing
                    potential[j] = potential_after(v[j], current[j], beta, t, crossing)
    return above


@jit
def hold_potential(end, t, v, current, beta, fired, potential):
    """Write V after bin `end` for the outputs that have not fired."""
    kept = v.dtype.type(1 if beta == 1 else beta ** (end - t))
    bins = v.dtype.type(bins_of_current(beta, end))
    for j in range(v.size):
        level = v[j] * kept + current[j] * bins
        potential[j] = level if fired[j] == np.inf else potential[j]


@jit
def potential_after(v, current, beta, t_event, t):
    """V after bin t, no input having come since t_event, when it contributed v."""
    kept = 1.0 if beta == 1 else beta ** (t - t_event)
    return v * kept + current * bins_of_current(beta, t)


@jit
def first_bin_above(v, current, beta, threshold, start, last):
    """First bin with V > threshold, where V is below in bin `start` and above in bin `last`.

    Without a leak V is the line v + current (t + 1); with one it approaches
    rest = current / (1 - beta) as rest - (rest - V(start)) beta^(t - start).
    """
    if beta == 1:
        t = np.floor((threshold - v) / current)
    else:
        rest = current / (1 - beta)
        gap = (rest - threshold) / (rest - potential_after(v, current, beta, start, start))
        t = start + np.floor(np.log(gap) / np.log(beta)) + 1
    # The closed form rounds: settle on the first bin in which V itself exceeds the threshold.
    t = start if t != t else min(max(t, start), last)
    while t > start and potential_after(v, current, beta, start, t - 1) > threshold:
        t -= 1
    while t < last and not potential_after(v, current, beta, start, t) > threshold:
        t += 1
    return t


@jit
def add_rows_of_time(t, k, order, n, times, weight_t, threshold, v):
    """Add the weights of every input spike of time `t` to `v`.

    Returns the first event after them, and how many outputs are above threshold now. They are
    counted in passing, and rows are added in pairs: reading `v` costs as much as reading a row.
    """
    while True:
        above = np.int32(0)
        row = weight_t[order[k]]
        if k + 1 < n and times[order[k + 1]] == t:
            other = weight_t[order[k + 1]]
            for j in range(v.size):
                v[j] = (v[j] + row[j]) + other[j]
                above += np.int32(1) if v[j] > threshold else np.int32(0)
            k += 2
        else:
            for j in range(v.size):
                v[j] += row[j]
                above += np.int32(1) if v[j] > threshold else np.int32(0)
            k += 1
        if k == n or times[order[k]] != t:
            return k, above


@jit
def record_crossings(v, threshold, t, fired, potential):
    """Note time and potential of the outputs above threshold, and rule them out with V = -inf."""
    for j in range(v.size):
        above = v[j] > threshold
        fired[j] = t if above else fired[j]
        potential[j] = v[j] if above else potential[j]
        v[j] = -np.inf if above else v[j]
