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
def sort_events(times, t_max, order, spiking, counts):
    """Write the inputs that spike before `t_max` to `order`, earliest first; return how many.

    Equal times keep the order of their index, so that sums are reproducible. `spiking` is scratch
    space for all inputs, `counts` for ceil(t_max) + 1 bins; with fewer bins, or times between
    bins, the times are compared instead of counted. Returns -1 for a NaN or negative time.
    """
    bad = np.int32(0)
    for i in range(times.size):
        bad += np.int32(0) if times[i] >= 0 else np.int32(1)
    if bad > 0:
        return -1
    n = 0
    for i in range(times.size):
        spiking[n] = i
        n += times[i] < t_max
    whole = counts.size > t_max
    if whole:
        counts[:] = 0
        for k in range(n):
            t = times[spiking[k]]
            bin_ = int(t)
            whole &= t == bin_
            counts[bin_ + 1] += 1
    if not whole:
        order[:n] = spiking[:n][np.argsort(times[spiking[:n]], kind="mergesort")]
        return n
    for bin_ in range(1, counts.size):
        counts[bin_] += counts[bin_ - 1]
    for k in range(n):
        i = spiking[k]
        bin_ = int(times[i])
        order[counts[bin_]] = i
        counts[bin_] += 1
    return n


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
