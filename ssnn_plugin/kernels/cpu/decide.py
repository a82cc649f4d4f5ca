"""A stack of fully connected layers of neurons whose V jumps, sample by sample, until it has decided.

A layer reads its input spikes a few at a time, as far as all of them are known: up to the horizon that the
next spike of the layer before sets. Deep layers go first, and none goes on once all spikes up to the first
output spike are known. Within one time a layer takes its inputs in the order of their index, before the
threshold counts, so that potentials are those of the layers one by one, bit by bit.

A view of an array costs as much as a few additions, so what belongs to a layer is a row of an array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry import whole_lanes
from .compile import jit, lean_jit, where_given
from .events import UNSIGNED, count_buckets, find_events, place, sort_events
from .lanes import TILES, any_of, least, load, load_at, pack, pack_numbers, splat, store, where
from .parallel import as_arrays, share_out
from .steps import bins_of_current, hold_potential, level_of

LANES = 16
# That a layer reads at once, and as many more as come at the time of the last one.
EVENTS = 32
# Bins that are always sorted by counting.
SHORT = 1024
# Numbers of rules in `decode.TIES`.
BY_POTENTIAL, UNIQUE = 1, 2


class Layer(NamedTuple):
    """A fully connected layer: weights [in, out] in units of its threshold if that is 1, its bias or None."""

    weight_t: Tensor
    bias: Tensor | None
    threshold: float
    beta: float
    delay: float
    t_max: float


class Ranks(NamedTuple):
    """How bytes are sorted: the rank of the spike time of each, the last one for silence; times by rank.

    Ranks have the type of the times, so that they can be compared as lanes.
    """

    rank: np.ndarray
    times: np.ndarray


def ranks(code: Tensor) -> Ranks:
    """Of a code [256] that has the spike time of each byte."""
    times, rank = torch.unique(code, return_inverse=True)
    return Ranks(rank.to(code.dtype).numpy(), times[times.isfinite()].numpy())


def decide(
    inputs: Tensor,
    layers: Sequence[Layer],
    ranks: Ranks | None,
    scale: Tensor | None,
    tie: int,
    by_potential: bool,
) -> tuple[Tensor, ...] | None:
    """What samples [batch, in] decide; None where a time or a V is not a number.

    Args:
        inputs: spike times, or bytes with their `ranks`.
        layers: first layer first, all of one dtype.
        scale: by which V of each output is multiplied in the end.
        tie: number of a rule in `decode.TIES`.
        by_potential: whether V decides where no output fires.

    Returns:
        Winner and time of the first output spike [batch]; the times of the outputs that fire then, `inf` for
        others, and their V, 0 for others [batch, classes]; the spikes of inputs and layers until then
        [batch, layers + 1]. Without any output spike V is that of all outputs at the end of the window.
    """
    batch, n_out = len(inputs), layers[-1].weight_t.shape[1]
    weights = [whole_lanes(layer.weight_t, LANES).contiguous() for layer in layers]
    network = _network(layers, weights)
    dtype = network[2].dtype
    decided = (
        np.empty(batch, np.int64),
        np.empty(batch, dtype),
        np.empty((batch, n_out), dtype),
        np.empty((batch, n_out), dtype),
        np.empty((batch, len(layers) + 1), np.int64),
    )
    scaled = np.ones(n_out, dtype) if scale is None else scale.numpy()
    settled = np.ones(batch, np.bool_)
    coded: tuple[Any, Any, int]
    if ranks is None:
        # Clearing a longer table would cost more than comparing the times of its few inputs.
        coded = None, None, min(math.ceil(layers[0].t_max), max(SHORT, 4 * inputs.shape[1])) + 1
    else:
        coded = *ranks, len(ranks.times) + 1
    work = inputs.numel() * len(weights[0][0]) // 8
    arrays = *as_arrays(inputs), *coded, (*network, scaled), tie, by_potential, decided
    share_out(batch, work, _decide, *arrays, settled)
    return tuple(map(torch.from_numpy, decided)) if settled.all() else None


def _network(layers: Sequence[Layer], weights: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    """Layers as the kernel reads them, a row each.

    Addresses of weights, which have to stay alive, their widths, biases, thresholds, leaks, delays, windows,
    and whether there is a bias.
    """
    widths = [weight.shape[1] for weight in weights]
    dtype = np.dtype(np.float32 if weights[0].dtype == torch.float32 else np.float64)
    currents = np.zeros((len(layers), max(widths)), dtype)
    for layer, current in zip(layers, currents, strict=True):
        if layer.bias is not None:
            current[: len(layer.bias)] = layer.bias.numpy()
    return (
        np.array([weight.data_ptr() for weight in weights]),
        np.array(widths),
        currents,
        np.array([layer.threshold for layer in layers], dtype),
        np.array([layer.beta for layer in layers]),
        np.array([layer.delay for layer in layers], dtype),
        np.array([layer.t_max for layer in layers], dtype),
        np.array([layer.bias is not None for layer in layers]),
    )


@jit
def _decide(begin, end, inputs, rank, times_of, bins, network, tie, by_potential, decided, settled):
    n_in, currents = inputs.shape[1], network[2]
    sorting = np.empty(n_in, currents.dtype), np.empty(n_in, np.uint32), np.empty(bins, np.uint32)
    scratch, reading = _scratch(currents, n_in), _reading(currents, n_in)
    _decide_each(
        begin, end, inputs, rank, times_of, network, tie, by_potential, decided, settled,
        sorting, scratch, reading,
    )  # fmt: skip


@lean_jit
def _decide_each(
    begin, end, inputs, rank, times_of, network, tie, by_potential, decided, settled,
    sorting, scratch, reading,
):  # fmt: skip
    """Sample by sample, in scratch space that is there; `sorting` is that of `sort_events`."""
    addresses, widths, currents, thresholds, betas, delays, windows, rising, scale = network
    ranks, spiking, table = sorting
    order, when, limit, head, tail, horizon, v, seen, clock = scratch
    numbers, arrivals, level, fired, event, counts = reading
    winner, first, times, potential, spikes = decided
    for b in range(begin, end):
        n = sort(rank, times_of, inputs[b], windows[0], order, when, ranks, spiking, table)
        if n < 0:
            settled[b] = False
            continue
        _run(
            b, n,
            addresses, widths, currents, thresholds, betas, delays, windows, rising, scale,
            order, when, limit, head, tail, horizon, v, seen, clock,
            numbers, arrivals, level, fired, event, counts,
            first, times, potential, spikes,
        )  # fmt: skip
        settled[b] = are_numbers(v)
        winner[b] = winner_of(b, first, times, potential, tie, by_potential)


@jit
def _scratch(currents, n_in):
    """Room for what is known of one sample, a row for each layer.

    The spikes that go into it, the outputs' in the last row: their neurons, their times, and the limit of V
    once they are added, `inf` where more come at their time; the first that is still to be read, and their
    number. Up to when all of them are known. V of the neurons, -inf of those that have fired; with a leak or
    a bias it is what was left of the inputs at the time of the last one. That time, and the last one that
    the neurons were looked at.
    """
    depth, width = currents.shape
    spikes, dtype = (depth + 1, max(n_in, width) + 1), currents.dtype
    return (
        np.empty(spikes, np.uint32),
        np.empty(spikes, dtype),
        np.empty(spikes, dtype),
        np.empty(depth + 1, np.int64),
        np.empty(depth + 1, np.int64),
        np.empty(depth + 1, dtype),
        np.empty((depth, width), dtype),
        np.empty(depth, dtype),
        np.empty(depth, dtype),
    )


@jit
def _reading(currents, n_in):
    """Room for the events that a layer reads at once, and for what comes of them.

    The number of each event, counted from 0, and when a spike at its time arrives. V of each output at its
    crossing. A list of the neurons that cross, the events they do so at, and how many do at each event.
    """
    width, dtype = currents.shape[1], currents.dtype
    events = max(n_in, width)
    return (
        np.arange(events).astype(dtype),
        np.empty(events, dtype),
        np.empty(width, dtype),
        np.empty(width, np.uint32),
        np.empty(width, dtype),
        np.empty(events, np.uint32),
    )


def sort_times(rank, times_of, times, t_max, order, when, ranks, spiking, counts):
    """`sort_events` of times into the first rows of `order` and `when`."""
    return sort_events(times, t_max, order[0], when[0], spiking, counts)


@where_given(sort_times)
def sort(rank, times_of, image, t_max, order, when, ranks, spiking, counts):
    """As `sort_times`, of bytes with a rank each."""
    for i in range(image.size):
        ranks[i] = rank[image[i]]
    silent, one = ranks.dtype.type(counts.size - 1), ranks.dtype.type(1)
    n = find_events(ranks, silent, spiking)
    count_buckets(ranks, one, silent, spiking, n, counts)
    place(ranks, one, silent, spiking, n, order[0], when[0], counts)
    for k in range(n):
        when[0, k] = times_of[UNSIGNED(when[0, k])]
    return n


@jit
def are_numbers(v):
    """Whether no potential is NaN; there are whole `LANES` of them."""
    nan = splat(v.dtype.type(0), LANES) > splat(v.dtype.type(0), LANES)
    for at in range(0, v.size, LANES):
        part = load(v, at, LANES)
        nan = nan | ~(part <= part)
    return not any_of(nan)


@lean_jit
def _run(
    b, n,
    addresses, widths, currents, thresholds, betas, delays, windows, rising, scale,
    order, when, limit, head, tail, horizon, v, seen, clock,
    numbers, arrivals, level, fired, event, counts,
    first, times, potential, spikes,
):  # fmt: skip
    """Let `n` input spikes through the network and note what it decides.

    The arrays are those of `_network`, `_scratch`, `_reading` and `decide`.
    """
    depth, decision = widths.size, v.dtype.type(np.inf)
    v[:] = 0
    head[:] = 0
    tail[:] = 0
    tail[0] = n
    horizon[0] = np.inf
    seen[:] = 0
    clock[:] = -1
    set_limits(0, 0, n, thresholds[0], delays[0], windows[0], when, limit)
    while True:
        layer = next_layer(decision, when, head, tail, horizon, clock, delays, windows, rising)
        if layer < 0:
            break
        last = layer == depth - 1
        if betas[layer] == 1 and not rising[layer]:
            begin = head[layer]
            n_events = read(layer, delays[layer], windows[layer], when, head, tail, horizon, arrivals)
            if last:
                n_fired = cross_with_level(
                    layer, begin, head[layer], addresses[layer], widths[layer], order, v,
                    limit, numbers, level, fired, event,
                )  # fmt: skip
            else:
                n_fired = cross(
                    layer, begin, head[layer], addresses[layer], widths[layer], order, v,
                    limit, numbers, fired, event,
                )  # fmt: skip
        else:
            n_events = 1
            n_fired = drift(
                layer, addresses[layer], widths[layer], last, currents, thresholds[layer], betas[layer],
                delays[layer], windows[layer], rising[layer], order, when, head, tail, v, seen, clock,
                arrivals, level, fired, event,
            )  # fmt: skip
        if n_fired > 0:
            behind = layer + 1
            begin = hand_on(behind, n_fired, n_events, arrivals, fired, event, counts, order, when, tail)
            if last:
                decision = when[depth, 0]
            else:
                set_limits(
                    behind, begin, tail[behind], thresholds[behind], delays[behind], windows[behind],
                    when, limit,
                )  # fmt: skip

    first[b] = decision
    for layer in range(depth + 1):
        spikes[b, layer] = until(decision, when, layer, tail[layer])
    for j in range(times.shape[1]):
        times[b, j] = np.inf
        potential[b, j] = 0
    if decision < np.inf:
        for k in range(spikes[b, depth]):
            output = order[depth, k]
            times[b, output] = decision
            potential[b, output] = level[output] * scale[output]
    else:
        layer, n_out = depth - 1, times.shape[1]
        hold_potential(
            windows[layer] - 1, seen[layer], v[layer, :n_out], currents[layer], betas[layer],
            times[b], potential[b],
        )  # fmt: skip
        for j in range(n_out):
            potential[b, j] *= scale[j]


@lean_jit
def set_limits(layer, begin, end, threshold, delay, window, when, limit):
    """Of V once each of a layer's events from `begin` on is added: a spike does not come before the last."""
    never = when.dtype.type(np.inf)
    when[layer, end] = never
    for k in range(UNSIGNED(begin), UNSIGNED(end)):
        t = when[layer, k]
        complete = when[layer, k + UNSIGNED(1)] != t
        limit[layer, k] = threshold if complete & (t + delay < window) else never


@lean_jit
def next_layer(decision, when, head, tail, horizon, clock, delays, windows, rising):
    """The deepest layer that can read on, and has to for the decision; -1 for none. Sets the horizons."""
    found, never = -1, when.dtype.type(np.inf)
    for layer in range(windows.size):
        t, window = never, windows[layer]
        if rising[layer]:
            t = clock[layer] + when.dtype.type(1)
        elif head[layer] < tail[layer]:
            t = when[layer, head[layer]]
        t = t if t < window else never
        arrival = min(t, horizon[layer]) + delays[layer]
        horizon[layer + 1] = arrival if arrival < window else never
        if t < horizon[layer] and horizon[layer + 1] <= decision:
            found = layer
    return found


@lean_jit
def read(layer, delay, window, when, head, tail, horizon, arrivals):
    """Take the next events of a layer, whole times, up to what is known; return how many."""
    begin, known = head[layer], min(horizon[layer], window)
    end = min(begin + EVENTS, tail[layer])
    while not when[layer, end - 1] < known:
        end -= 1
    while end < tail[layer] and when[layer, end] == when[layer, end - 1]:
        end += 1
    for k in range(UNSIGNED(end - begin)):
        arrivals[k] = when[layer, UNSIGNED(begin) + k] + delay
    head[layer] = end
    return end - begin


@lean_jit
def cross(layer, first, last, address, width, order, v, limit, numbers, fired, event):
    """Add the weights of the events to all neurons; list those that cross, return how many."""
    tile = len(splat(v[0, 0], TILES[-1]))
    tiled = width - width % tile
    n_fired = cross_part(
        layer, first, last, address, width, 0, tiled, TILES[-1], order, v,
        limit, numbers, fired, event, 0,
    )  # fmt: skip
    return cross_part(
        layer, first, last, address, width, tiled, width, TILES[0], order, v,
        limit, numbers, fired, event, n_fired,
    )  # fmt: skip


@lean_jit
def cross_part(
    layer, first, last, address, width, begin, end, tile, order, v,
    limit, numbers, fired, event, n_fired,
):  # fmt: skip
    """As `cross`, of the neurons from `begin` to `end`, which are whole tiles; they add to the list."""
    number = v.dtype.type
    silent, out = splat(number(np.inf), tile), splat(number(-np.inf), tile)
    for j in range(begin, end, len(out)):
        a, p = load(v, layer * v.shape[1] + j, tile), silent
        for k in range(UNSIGNED(first), UNSIGNED(last)):
            a = a + load_at(v, address, order[layer, k] * width + j, tile)
            above = a > splat(limit[layer, k], tile)
            p = where(above, least(p, splat(numbers[k - UNSIGNED(first)], tile)), p)
        crossed = silent > p
        store(v, layer * v.shape[1] + j, where(crossed, out, a))
        if any_of(crossed):
            pack(crossed, p, event, n_fired)
            n_fired += pack_numbers(crossed, fired, n_fired, j)
    return n_fired


@lean_jit
def cross_with_level(
    layer, first, last, address, width, order, v, limit, numbers, level, fired, event
):  # fmt: skip
    """As `cross`, of outputs, with V at the crossing: few cross, so that theirs is summed up once more."""
    number, n_fired = v.dtype.type, 0
    silent, out = splat(number(np.inf), LANES), splat(number(-np.inf), LANES)
    for j in range(0, width, LANES):
        before = load(v, layer * v.shape[1] + j, LANES)
        a, p = before, silent
        for k in range(UNSIGNED(first), UNSIGNED(last)):
            a = a + load_at(v, address, order[layer, k] * width + j, LANES)
            above = a > splat(limit[layer, k], LANES)
            p = where(above, least(p, splat(numbers[k - UNSIGNED(first)], LANES)), p)
        crossed = silent > p
        store(v, layer * v.shape[1] + j, where(crossed, out, a))
        if any_of(crossed):
            a = before
            for k in range(UNSIGNED(first), UNSIGNED(last)):
                row = load_at(v, address, order[layer, k] * width + j, LANES)
                a = where(splat(numbers[k - UNSIGNED(first)], LANES) <= p, a + row, a)
            store(level, j, where(crossed, a, load(level, j, LANES)))
            pack(crossed, p, event, n_fired)
            n_fired += pack_numbers(crossed, fired, n_fired, j)
    return n_fired


@lean_jit
def hand_on(layer, n_fired, n_events, arrivals, fired, event, counts, order, when, tail):
    """Append the neurons that have crossed to the spikes that go into a layer, by time and neuron.

    Returns from which of its events on limits have to be set.
    """
    begin = tail[layer]
    for g in range(UNSIGNED(n_events)):
        counts[g] = 0
    for k in range(UNSIGNED(n_fired)):
        counts[UNSIGNED(event[k])] += 1
    at = UNSIGNED(begin)
    for g in range(UNSIGNED(n_events)):
        here = counts[g]
        counts[g] = at
        at += here
    for k in range(UNSIGNED(n_fired)):
        g = UNSIGNED(event[k])
        at = counts[g]
        order[layer, at], when[layer, at] = fired[k], arrivals[g]
        counts[g] = at + UNSIGNED(1)
    end = tail[layer] = begin + n_fired
    behind = max(begin - 1, 0)
    put_in_order(order, when, layer, behind, end)
    return behind


@lean_jit
def put_in_order(order, when, layer, begin, end):
    """Put spikes of one time in the order of their neurons: rounding may have made different times one."""
    wrong = np.int32(0)
    for k in range(UNSIGNED(begin), UNSIGNED(end - 1)):
        after = k + UNSIGNED(1)
        tied = when[layer, k] == when[layer, after]
        wrong += np.int32(1) if tied & (order[layer, k] > order[layer, after]) else np.int32(0)
    if wrong == 0:
        return
    for last in range(begin + 1, end):
        k = last
        while k > 0 and when[layer, k - 1] == when[layer, k] and order[layer, k - 1] > order[layer, k]:
            order[layer, k - 1], order[layer, k] = order[layer, k], order[layer, k - 1]
            k -= 1


@lean_jit
def drift(
    layer, address, width, last, currents, threshold, beta, delay, window, rising,
    order, when, head, tail, v, seen, clock, arrivals, level, fired, event,
):  # fmt: skip
    """One time of a layer with a leak or a bias: that of its next event, or with a bias the next bin."""
    number, k = v.dtype.type, head[layer]
    t = clock[layer] + number(1) if rising else when[layer, k]
    clock[layer] = t
    if k < tail[layer] and when[layer, k] == t:
        kept = number(beta ** (t - seen[layer]))
        for j in range(width):  # -inf stays, also where nothing is kept
            v[layer, j] = v[layer, j] * kept if v[layer, j] > -np.inf else v[layer, j]
        while k < tail[layer] and when[layer, k] == t:
            for j in range(0, width, LANES):
                at = layer * v.shape[1] + j
                row = load_at(v, address, order[layer, k] * width + j, LANES)
                store(v, at, load(v, at, LANES) + row)
            k += 1
        head[layer], seen[layer] = k, t
    arrivals[0] = t + delay
    if not arrivals[0] < window:
        return 0
    kept = number(1 if beta == 1 else beta ** (t - seen[layer]))
    bins, n_fired = number(bins_of_current(beta, t)), 0
    for j in range(width):
        reached = level_of(v[layer, j], currents[layer, j], kept, bins)
        if reached > threshold:
            v[layer, j] = -np.inf
            fired[n_fired], event[n_fired] = j, 0
            n_fired += 1
            if last:
                level[j] = reached
    return n_fired


@lean_jit
def until(first, when, layer, tail):
    """How many of a layer's spikes come up to a time."""
    while tail > 0 and when[layer, tail - 1] > first:
        tail -= 1
    return tail


@lean_jit
def winner_of(b, first, times, potential, tie, by_potential):
    """`decode.first_to_fire` of one sample."""
    silent, best, tied = first[b] == np.inf, -1, 0
    if silent and not by_potential:
        return -1
    for j in range(times.shape[1]):
        if silent or times[b, j] == first[b]:
            tied += 1
            if best < 0 or ((silent or tie == BY_POTENTIAL) and potential[b, j] > potential[b, best]):
                best = j
    return -1 if tie == UNIQUE and tied > 1 and not silent else best
