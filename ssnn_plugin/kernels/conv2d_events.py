"""Compiled event-driven primitives of convolutions, on one sample.

Channels come last: times are [height * width, in], outputs [locations, groups, width], with `width`
outputs per group, padded to whole `LANES`. The weights are [groups * taps * in / groups, width]: one row
for each tap of the kernel and input channel. `synapses` are the tables `start`, `taps` and `locations`
of `geometry.Synapses`, `position_of` holds the position of each input.
"""

from __future__ import annotations

import numpy as np

from .events import find_events, jit
from .lanes import any_of, load, splat, store, total, where

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


@jit
def fire_if_conv2d(ends, rows, when, weight_rows, threshold, delay, t_max, fired, potential):
    """First crossing of step-PSP neurons at every location; `fired` is `inf` where there is none.

    Potentials stay in registers while a location's spikes come in. The threshold counts once all
    spikes of one time have come.
    """
    number = weight_rows.dtype.type
    limit, silent, out = (
        splat(number(threshold), LANES),
        splat(number(np.inf), LANES),
        splat(number(-np.inf), LANES),
    )
    width = weight_rows.shape[1]
    for unit in range(ends.size):
        first, last = ends[unit - 1] if unit > 0 else 0, ends[unit]
        for lane in range(0, width, LANES):
            v, crossing, level = splat(number(0), LANES), silent, silent
            for k in range(first, last):
                v = v + load(weight_rows, rows[k] * width + lane, LANES)
                if any_of(v > limit):
                    complete = k + 1 == last or when[k + 1] != when[k]
                    if complete and when.dtype.type(when[k] + delay) < t_max:
                        above = v > limit
                        crossing = where(above, splat(when[k], LANES), crossing)
                        level = where(above, v, level)
                        v = where(above, out, v)
            store(fired, unit * width + lane, crossing)
            store(potential, unit * width + lane, where(silent <= crossing, v, level))


@jit
def errors_that_count(grad, spikes, silent, error):
    """Copy the errors, those of silent neurons only if wanted."""
    none, never = splat(error.dtype.type(0), LANES), splat(error.dtype.type(np.inf), LANES)
    for at in range(0, error.size, LANES):
        skipped = never <= load(spikes, at, LANES)
        store(error, at, load(grad, at, LANES) if silent else where(skipped, none, load(grad, at, LANES)))


@jit
def subtract_causal_errors_conv2d(
    error, spikes, times, t_max, delay, synapses, position_of, first, end, spiking, grad_rows
):  # fmt: skip
    """Weight gradient: the rows first ... end of `grad_rows` lose the causal errors."""
    start, taps, locations = synapses
    channels, (groups, width) = times.shape[1], spikes.shape[1:]
    flat, in_group, none = times.reshape(-1), channels // groups, splat(error.dtype.type(0), LANES)
    for i in spiking[: find_events(flat, t_max, spiking)]:
        t = splat(flat.dtype.type(flat[i] + delay), LANES)
        position, group, first_row = place_of(i, position_of, len(grad_rows), channels, groups)
        for s in range(start[position], start[position + 1]):
            row, unit = taps[s] * in_group + first_row, locations[s] * groups + group
            if first <= row < end:
                for lane in range(0, width, LANES):
                    at, to = unit * width + lane, row * width + lane
                    causal = where(t <= load(spikes, at, LANES), load(error, at, LANES), none)
                    store(grad_rows, to, load(grad_rows, to, LANES) - causal)


@jit
def sum_causal_errors_conv2d(
    error, spikes, times, t_max, delay, synapses, position_of, spiking, weight_rows, grad_times
):  # fmt: skip
    """Input gradient: each input spike gets the errors of the outputs that counted it, weighted."""
    start, taps, locations = synapses
    channels, (groups, width) = times.shape[1], spikes.shape[1:]
    flat, in_group, none = times.reshape(-1), channels // groups, splat(error.dtype.type(0), LANES)
    for i in spiking[: find_events(flat, t_max, spiking)]:
        t = splat(flat.dtype.type(flat[i] + delay), LANES)
        position, group, first_row = place_of(i, position_of, len(weight_rows), channels, groups)
        weighted = none
        for s in range(start[position], start[position + 1]):
            row, unit = taps[s] * in_group + first_row, locations[s] * groups + group
            for lane in range(0, width, LANES):
                at = unit * width + lane
                of_row = load(error, at, LANES) * load(weight_rows, row * width + lane, LANES)
                weighted = weighted + where(t <= load(spikes, at, LANES), of_row, none)
        grad_times[position, i - position * channels] = total(weighted)
