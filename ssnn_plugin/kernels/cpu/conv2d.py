"""Compiled event-driven primitives of convolutions, on one sample.

Channels come last: times are [height * width, in], outputs [locations, groups, width], with `width`
outputs per group, padded to whole `LANES`. The weights are [groups * taps * in / groups, width]: one row
for each tap of the kernel and input channel. `synapses` are the tables `start`, `taps` and `locations`
of `geometry.SynapseTable`, `position_of` holds the position of each input.
"""

from __future__ import annotations

import numpy as np

from .compile import jit

LANES = 16  # of the vectors that hold the outputs of one location


@jit
def positions_of_inputs(times):
    """The position of each input of a sample, [batch, height * width, in] being flattened."""
    return (np.arange(times.shape[1] * times.shape[2]) // times.shape[2]).astype(np.int32)


@jit
def place_of(i, position_of, n_rows, channels, groups):
    """Position, group and first row of an input; the rows of its other taps follow at in / groups each."""
    position = position_of[i]
    channel = i - position * channels
    if groups == 1:
        return position, 0, channel
    group = channel // (channels // groups)
    return position, group, channel + group * (n_rows - channels) // groups


@jit
def find_spikes_by_location(
    order, n, times, synapses, position_of, n_rows, groups, n_events, ends, rows, when
):
    """Tell each group of outputs at each location what it sees, earliest first.

    The events of unit u = location * groups + group are rows[ends[u - 1]:ends[u]] at the times `when`.
    `order` holds the `n` inputs that spike, earliest first; `n_events` [height * width, groups] is
    scratch space, `ends` is overwritten. `rows` and `when` have an element per spike and location that
    sees it; they are returned, made anew where they are too short.
    """
    start, taps, locations = synapses
    flat, channels = times.reshape(-1), times.shape[1]
    n_events[:] = 0
    for k in range(n):
        position, group, _ = place_of(order[k], position_of, n_rows, channels, groups)
        n_events[position, group] += 1
    n_seen = begin_by_location(n_events, start, locations, ends)
    if n_seen > rows.size:
        rows, when = np.empty(n_seen, rows.dtype), np.empty(n_seen, when.dtype)
    for k in range(n):
        position, group, first_row = place_of(order[k], position_of, n_rows, channels, groups)
        for s in range(start[position], start[position + 1]):
            unit = locations[s] * groups + group
            slot = ends[unit]
            rows[slot] = taps[s] * (channels // groups) + first_row
            when[slot] = flat[order[k]]
            ends[unit] = slot + 1
    return rows, when


@jit
def begin_by_location(n_events, start, locations, begin):
    """Write where the events of each unit begin; return how many there are in all."""
    begin[:] = 0
    groups = n_events.shape[1]
    for position in range(len(n_events)):
        for group in range(groups):
            if n_events[position, group] > 0:
                for s in range(start[position], start[position + 1]):
                    begin[locations[s] * groups + group] += n_events[position, group]
    before = 0
    for unit in range(begin.size):
        before, begin[unit] = before + begin[unit], before
    return before
