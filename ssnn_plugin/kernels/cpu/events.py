"""Compiled primitives on the events of one sample: which inputs spike, and in which order.

Times are compared as they are, so bins and continuous times are both served; whole-numbered times take
the counting sort.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..status import BAD_TIMES, NAN_POTENTIAL
from .compile import jit
from .lanes import TILES, load, pack_numbers, splat

# Numba looks whether a signed index is negative, which takes longer than to read what it stands for.
UNSIGNED = np.uint32
# That are kept at a time, so that they stay in the cache.
MOST_EVENTS = 1 << 17


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
    n, limit = 0, splat(times.dtype.type(t_max), TILES[0])
    whole = times.size - times.size % len(limit)
    for i in range(0, whole, len(limit)):
        n += pack_numbers(limit > load(times, i, TILES[0]), spiking, n, i)
    for i in range(whole, times.size):
        spiking[UNSIGNED(n)] = i
        n += np.int64(times[i] < t_max)
    return n


@jit
def sort_events(times, t_max, order, when, spiking, counts):
    """Write the inputs that spike before `t_max` to `order`, earliest first, and when; return how many.

    Equal times keep the order of their index, so that sums are reproducible. `spiking` is scratch
    space for all inputs, `counts` for the buckets of a counting sort: with ceil(t_max) + 1 of them
    whole bins have one each, otherwise the few spikes of a bucket are put in order in the end.
    Returns -1 for a NaN or negative time.
    """
    n = sort_by_bucket(times, t_max, order, when, spiking, counts)
    if not are_in_order(when, n):
        sort_within_buckets(times, order, n)
        write_times(times, order[:n], when)
    return n


@jit
def sort_by_bucket(times, t_max, order, when, spiking, counts):
    """As `sort_events`, all inputs of a bucket in the order of their index."""
    if has_bad_times(times):
        return -1
    number, scale, last = times.dtype.type, (counts.size - 1) / t_max, counts.size - 2
    n = find_events(times, number(t_max), spiking)
    highest = count_buckets(times, number(scale), number(last), spiking, n, counts)
    if n > 0 and 2 * highest < last:  # all spikes are early: spread them over the table
        scale *= last / (highest + 1)
        count_buckets(times, number(scale), number(last), spiking, n, counts)
    place(times, number(scale), number(last), spiking, n, order, when, counts)
    return n


@jit
def bucket_of(t, scale, last):
    """The bucket of a time, at most `last`."""
    bucket = t * scale
    return UNSIGNED(bucket if bucket < last else last)  # 0 at an infinite scale is NaN


@jit
def count_buckets(times, scale, last, spiking, n, counts):
    """Count the `n` inputs in each bucket; return the highest bucket that has one."""
    highest = UNSIGNED(0)
    counts[:] = 0
    for k in range(UNSIGNED(n)):
        bucket = bucket_of(times[UNSIGNED(spiking[k])], scale, last)
        counts[bucket] += 1
        highest = max(highest, bucket)
    return np.int64(highest)


@jit
def place(times, scale, last, spiking, n, order, when, counts):
    """Write the `n` inputs that were counted to `order`, by bucket and then as they come, and when."""
    before = UNSIGNED(0)
    for bucket in range(counts.size):
        here = UNSIGNED(counts[bucket])
        counts[bucket] = before
        before += here
    for k in range(UNSIGNED(n)):
        i = UNSIGNED(spiking[k])
        bucket = bucket_of(times[i], scale, last)
        at = UNSIGNED(counts[bucket])
        order[at], when[at] = i, times[i]
        counts[bucket] = at + UNSIGNED(1)


@jit
def are_in_order(when, n):
    """Whether none of the first `n` times is before the last one."""
    early = np.int32(0)
    for k in range(np.uintp(1), np.uintp(max(n, 1))):
        early += np.int32(when[k] < when[k - np.uintp(1)])
    return early == 0


@jit
def sort_within_buckets(times, order, n):
    """Put an almost sorted order right by insertion, one that is far from sorted by Shell's method."""
    if not insert(times, order, n, 1, 16 * n):
        gap = 1
        while gap < n // 3:
            gap = 3 * gap + 1
        while gap > 0:
            insert(times, order, n, gap, n * n)
            gap //= 3


@jit
def insert(times, order, n, gap, most_moves):
    """Sort every sequence of inputs that are `gap` apart, by time and index; False if it takes too long."""
    moves = 0
    for k in range(gap, n):
        i, t, at = order[k], times[order[k]], k
        while at >= gap:
            before = order[at - gap]
            if times[before] < t or (times[before] == t and before < i):
                break
            order[at] = before
            at -= gap
            moves += 1
        order[at] = i
        if moves > most_moves:
            return False
    return True


class Events(NamedTuple):
    """The input spikes of some samples, one sample after the other, earliest first.

    Sample b has those up to ends[b]; the `inputs` spike at the times `when`.
    """

    inputs: np.ndarray
    when: np.ndarray
    ends: np.ndarray


@jit
def sort_batch(times, t_max, table, status):
    """The events of the samples `times`; `status` tells of those with bad times, which have none.

    `table` is the size of the counting sort's table.
    """
    events = room_for_events(times)
    spiking, counts = np.empty(times.shape[1], np.int32), np.empty(table, np.int32)
    write_events(times, t_max, spiking, counts, status, events)
    return events


@jit
def room_for_events(times):
    """Arrays that hold the events of as many samples and inputs."""
    inputs, when = np.empty(times.size, np.int32), np.empty(times.size, times.dtype)
    return Events(inputs, when, np.empty(len(times), np.int64))


@jit
def write_events(times, t_max, spiking, counts, status, events):
    """As `sort_batch`, into the arrays of events; `spiking` and `counts` are scratch space."""
    at, (inputs, when, ends) = 0, events
    for b in range(len(times)):
        n = sort_events(times[b], t_max, inputs[at:], when[at:], spiking, counts)
        if n < 0:
            status[b], n = BAD_TIMES, 0
        at += n
        ends[b] = at


@jit
def write_times(times, inputs, when):
    """When inputs spike."""
    for k in range(UNSIGNED(inputs.size)):
        when[k] = times[UNSIGNED(inputs[k])]


@jit
def status_of(potential):
    """Whether all potentials of a sample are numbers."""
    nans = np.int32(0)
    for j in range(potential.size):
        nans += np.int32(0) if potential[j] == potential[j] else np.int32(1)
    return NAN_POTENTIAL if nans > 0 else 0


@jit
def judge(b, potential, status):
    """Note whether all potentials of a sample are numbers; bad times left them unwritten."""
    if status[b] != BAD_TIMES:
        status[b] = status_of(potential[b].reshape(-1))
