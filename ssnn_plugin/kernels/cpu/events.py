"""Compiled primitives on the events of one sample: which inputs spike, and in which order.

Times are compared as they are, so bins and continuous times are both served; whole-numbered times take
the counting sort.
"""

from __future__ import annotations

import numpy as np

from ..status import NAN_POTENTIAL
from .compile import jit


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
def status_of(potential):
    """Whether all potentials of a sample are numbers."""
    nans = np.int32(0)
    for j in range(potential.size):
        nans += np.int32(0) if potential[j] == potential[j] else np.int32(1)
    return NAN_POTENTIAL if nans > 0 else 0
