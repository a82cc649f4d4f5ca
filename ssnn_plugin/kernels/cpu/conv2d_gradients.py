"""Compiled backward pass of convolutions, by the factors of their response.

Each location is a small fully connected layer. It follows the side that has fewer: all inputs that it
sees for each of its outputs with an error, or all outputs for each input spike that any of them counted.
Where there is no error nothing is done. Every sum has a fixed order, whatever the number of threads: the
input gradient belongs to one sample, and the weight gradient gives each thread a range of outputs.

Channels come last: inputs are [batch, groups, height * width * in / groups], outputs [batch, locations,
out], weights [out, runs, whole registers].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backends import Factors
from ..geometry import Geometry, output_size, weight_rows, whole_lanes
from .bits import bits_of, trailing_zeros
from .compile import jit, lean_jit, optional, where_given
from .gradients import (
    count_errors,
    in_error,
    item_of,
    latest_of,
    only_with,
    optional_arrays,
    part_of,
    response,
    splat_in,
)
from .lanes import (
    REGISTER,
    TILES,
    any_of,
    leading,
    load,
    load_where,
    splat,
    store,
    store_where,
    total,
    where,
    width_of,
)
from .parallel import as_arrays, share_out
from .patches import by_position

#: numbers of registers of inputs or outputs at a time, as tuples; of inputs more only where there are enough
ONE, TWO = (0,), (0,) * 2
OF_INPUTS = (ONE, TWO, TILES[-1]) if REGISTER == 64 else (ONE, TWO)
#: of so many locations one is looked at to tell whether errors or spikes are fewer
ONE_OF = 67


class Runs(NamedTuple):
    """Where the inputs lie that a location sees: in runs of `length` neighbours.

    Those of a location begin at `first[location] + run[k]`.
    """

    first: np.ndarray
    run: np.ndarray
    length: int


@lru_cache(maxsize=64)
def runs_of(height: int, width: int, channels: int, *kernel: int) -> Runs:
    """Of `channels` inputs per position; `kernel` is size, stride and dilation, two numbers each."""
    size, stride, dilation = kernel[:2], kernel[2:4], kernel[4:]
    n_y, n_x = output_size([height, width], size, stride, dilation)
    # Taps that lie side by side are one run.
    taps, together = (1, size[1]) if dilation[1] == 1 else (size[1], 1)
    first = np.add.outer(np.arange(n_y) * stride[0] * width, np.arange(n_x) * stride[1])
    run = np.add.outer(np.arange(size[0]) * dilation[0] * width, np.arange(taps) * dilation[1])
    return Runs(first.reshape(-1) * channels, run.reshape(-1) * channels, together * channels)


class Backward(NamedTuple):
    """What both gradients are made of: factors and times, and which side is followed, as it has fewer."""

    #: p, q, until, a, b and times; what a response does not have is None
    arrays: tuple[Any, ...]
    runs: Runs
    along_errors: bool
    #: about how many additions
    work: int


def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    backward = prepared(factors, times, kernel_size, geometry)
    return weight_grad_of(backward, times, factors.p.shape[2], kernel_size, geometry.groups)


def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`; in memory channels come last within a group."""
    backward = prepared(factors, times, weight.shape[2:], geometry)
    return input_grad_of(backward, times, weight, geometry.groups)


def prepared(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Backward:
    """Of these factors of outputs [batch, locations, out]."""
    stride, dilation, groups = geometry
    out = factors.p.shape[2]
    outputs = optional_arrays(*(x if x is None else x.flatten() for x in factors[:3]))
    inputs = optional_arrays(
        *(x if x is None else by_position(x, groups) for x in (factors.a, factors.b, times))
    )
    runs = runs_of(*times.shape[2:], times.shape[1] // groups, *kernel_size, *stride, *dilation)
    along_errors, along_spikes = compare_directions(
        *outputs, inputs[2], runs, out // groups, width_of(ONE, times.itemsize)
    )
    work = 2 * ONE_OF * min(along_errors, along_spikes)
    return Backward((*outputs, *inputs), runs, along_errors <= along_spikes, work)


def weight_grad_of(
    backward: Backward, times: Tensor, out: int, kernel_size: Sequence[int], groups: int
) -> Tensor:
    """[out, in / groups, *kernel_size]."""
    (arrays, runs, along_errors, work), in_group = backward, times.shape[1] // groups
    n_runs, n_out = runs.run.size, out // groups
    if along_errors:
        tile = _tile_of_inputs(runs.length, times.itemsize)
        grad = times.new_zeros(out, n_runs, runs.length + -runs.length % width_of(tile, times.itemsize))
        share_out(out, work, _weights_along_errors, *arrays, *as_arrays(grad), runs, tile)
        rows = grad[:, :, : runs.length].reshape(out, *kernel_size, in_group)
        return rows.permute(0, 3, 1, 2).contiguous()
    tile = ONE if n_out <= width_of(ONE, times.itemsize) else TWO
    width = width_of(tile, times.itemsize)
    tiles = -(-n_out // width)
    grad = times.new_zeros(groups, n_runs * runs.length, tiles * width)
    share_out(groups * tiles, work, _weights_along_spikes, *arrays, *as_arrays(grad), runs, n_out, tile)
    rows = grad[:, :, :n_out].reshape(groups, *kernel_size, in_group, n_out)
    return rows.permute(0, 4, 3, 1, 2).reshape(out, in_group, *kernel_size)


def input_grad_of(backward: Backward, times: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Of the shape of the times."""
    batch, channels, height, width = times.shape
    (arrays, runs, along_errors, work), out = backward, len(weight)
    if along_errors:
        kernel, tile = _times_along_errors, _tile_of_inputs(runs.length, times.itemsize)
        rows = weight.permute(0, 2, 3, 1).reshape(out, runs.run.size, runs.length)
    else:
        kernel, tile, rows = _times_along_spikes, TWO, weight_rows(weight, groups).flatten(1, 2)
    rows = whole_lanes(rows, width_of(tile, times.itemsize))
    grad = torch.zeros_like(by_position(times, groups), memory_format=torch.contiguous_format)
    share_out(batch, work, kernel, *arrays, *as_arrays(rows, grad), runs, out // groups, tile)
    images = grad.reshape(batch, groups, height, width, channels // groups)
    return images.permute(0, 1, 4, 2, 3).reshape(times.shape)


def _tile_of_inputs(length: int, itemsize: int) -> tuple[int, ...]:
    """That goes through a run of so many in the least time: a tile costs about two registers by itself."""
    return min(OF_INPUTS, key=lambda tile: -(-length // width_of(tile, itemsize)) * (len(tile) + 2))


@jit
def compare_directions(p, q, until, times, runs, n_out, width):
    """Additions along errors and along spikes of one location of `ONE_OF`; a register has `width` numbers."""
    (groups, n_inputs), locations, flat = times.shape[1:], runs.first.size, times.reshape(-1)
    padded, along_errors, along_spikes = runs.length + -runs.length % width, 0, 0
    for unit in range(0, len(times) * locations * groups, ONE_OF):
        group, place = unit % groups, unit // groups
        first, n_causal = unit * n_out, 0
        n_errors = count_errors(p, q, until, first, first + n_out)
        latest = latest_of(p, q, until, first, first + n_out)
        image = (place // locations * groups + group) * n_inputs + runs.first[place % locations]
        if n_errors > 0:
            for run in runs.run:
                for i in range(image + run, image + run + runs.length):
                    n_causal += flat[i] < latest
        along_errors += n_errors * runs.run.size * padded
        along_spikes += n_causal * (n_out + 2 * width)
    return along_errors, along_spikes


# Scratch space for so many values of a factor; one of all inputs in a row; what one of a tile of outputs
# contributes.
room_like = optional(lambda factor, size: np.empty(size, factor.dtype))
flat_of = optional(lambda factor: factor.reshape(-1))
total_of = optional(lambda factor, counts, weights, none: total(where(counts, factor * weights, none)))  # type: ignore[call-arg]


@jit
def room_for_errors(q, p, size):
    """Scratch space for outputs with an error: which, their factors, and until when inputs count."""
    return np.empty(size, np.int64), np.empty(size, p.dtype), room_like(q, size), np.empty(size, p.dtype)


@where_given(lambda factor, k, n, values: None)
def keep_value(factor, k, n, values):
    """Note a factor of an output, if there is one."""
    values[n] = factor[k]


@jit
def find_errors(p, q, until, at, first, end, errors):
    """Note the outputs from `first` to `end` of a location that have an error; return how many.

    The outputs of the location begin at `at`.
    """
    outputs, of_p, of_q, last = errors
    none = splat(p.dtype.type(0), ONE)
    n = 0
    for block in range(first, end, len(none)):
        inside = leading(none, end - block)
        ends = load_where(inside, until, at + block, none)
        here = part_of(q, at + block, inside, none), load_where(inside, p, at + block, none)
        found = bits_of(in_error(*here, none) & (ends <= ends))
        while found != 0:
            j = block + np.int64(trailing_zeros(found))
            found &= found - np.uint64(1)
            outputs[n], of_p[n], last[n] = j, p[at + j], until[at + j]
            keep_value(q, at + j, n, of_q)
            n += 1
    return n


@jit
def _weights_along_errors(first, end, p, q, until, a, b, times, grad, runs, tile):
    """The gradient of the weights of the outputs first ... end."""
    errors = room_for_errors(q, p, end - first)
    add_along_errors(first, end, p, q, until, a, b, times, grad, runs, tile, errors)


@lean_jit
def add_along_errors(first, end, p, q, until, a, b, times, grad, runs, tile, errors):
    """In scratch space that is there."""
    (groups, n_inputs), locations = times.shape[1:], runs.first.size
    out_group = len(grad) // groups
    for n in range(len(times)):
        for group in range(first // out_group, (end - 1) // out_group + 1):
            begin, last = max(first, group * out_group), min(end, (group + 1) * out_group)
            image = (n * groups + group) * n_inputs
            for location in range(locations):
                at = (n * locations + location) * len(grad)
                found = find_errors(p, q, until, at, begin, last, errors)
                if found > 0:
                    subtract_errors(
                        errors, found, image + runs.first[location], runs, times, a, b, grad, tile
                    )  # fmt: skip


@jit
def subtract_errors(errors, found, first, runs, times, a, b, grad, tile):
    """Subtract what a location whose inputs begin at `first` adds to the weights of outputs with an error."""
    outputs, p, q, until = errors
    none, silent = splat(p.dtype.type(0), tile), splat(p.dtype.type(np.inf), tile)
    _, n_runs, width = grad.shape
    for k in range(n_runs):
        for lane in range(0, runs.length, len(none)):
            at, inside = first + runs.run[k] + lane, leading(none, runs.length - lane)
            t = load_where(inside, times, at, silent)
            of_a, of_b = part_of(a, at, inside, none), part_of(b, at, inside, none)
            for e in range(found):
                to, counts = (outputs[e] * n_runs + k) * width + lane, splat(until[e], tile) > t
                change = response(splat_in(q, e, tile), splat(p[e], tile), of_a, of_b)
                store(grad, to, load(grad, to, tile) - where(counts, change, none))


@jit
def _times_along_errors(first, end, p, q, until, a, b, times, rows, grad, runs, n_out, tile):
    """The inputs' gradient of the samples first ... end."""
    errors = room_for_errors(q, p, n_out)
    give_back_errors(first, end, p, q, until, a, b, times, rows, grad, runs, n_out, tile, errors)


@lean_jit
def give_back_errors(first, end, p, q, until, a, b, times, rows, grad, runs, n_out, tile, errors):
    """In scratch space that is there."""
    (groups, n_inputs), locations = times.shape[1:], runs.first.size
    for n in range(first, end):
        for group in range(groups):
            begin, image = group * n_out, (n * groups + group) * n_inputs
            for location in range(locations):
                at = (n * locations + location) * len(rows)
                found = find_errors(p, q, until, at, begin, begin + n_out, errors)
                if found > 0:
                    add_errors(
                        errors, found, image + runs.first[location], runs, times, a, b, rows, grad, tile
                    )  # fmt: skip


@jit
def add_errors(errors, found, first, runs, times, a, b, rows, grad, tile):
    """Add the errors of a location to the inputs, from `first` on, that its outputs counted."""
    outputs, p, q, until = errors
    none, silent = splat(p.dtype.type(0), tile), splat(p.dtype.type(np.inf), tile)
    _, n_runs, width = rows.shape
    for k in range(n_runs):
        for lane in range(0, runs.length, len(none)):
            at, inside = first + runs.run[k] + lane, leading(none, runs.length - lane)
            t, sum_p, sum_q = load_where(inside, times, at, silent), none, none
            for e in range(found):
                weights = load(rows, (outputs[e] * n_runs + k) * width + lane, tile)
                counts = splat(until[e], tile) > t
                sum_p = sum_p + where(counts, splat(p[e], tile) * weights, none)
                sum_q = add_where(q, sum_q, e, counts, weights, none, tile)
            of_a, of_b = part_of(a, at, inside, none), part_of(b, at, inside, none)
            change = response(only_with(q, sum_q), sum_p, of_a, of_b)
            store_where(inside, grad, at, load_where(inside, grad, at, none) + change)


@where_given(lambda factor, so_far, e, counts, weights, none, tile: so_far)
def add_where(factor, so_far, e, counts, weights, none, tile):
    """Add what a factor of an output contributes, if there is one."""
    return so_far + where(counts, splat(factor[e], tile) * weights, none)


@jit
def room_for_spikes(p, runs):
    """Scratch space for what a location sees: rows of weights, places, times."""
    n = runs.run.size * runs.length + 1
    return np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, p.dtype)


@jit
def find_causal(first, runs, times, latest, spikes):
    """Note row of weights, place and time of each input of a location before `latest`; return how many."""
    rows, places, when = spikes
    last, silent = splat(latest, ONE), splat(times.dtype.type(np.inf), ONE)
    flat, n = times.reshape(-1), 0
    for k in range(runs.run.size):
        for lane in range(0, runs.length, len(last)):
            begin, inside = first + runs.run[k] + lane, leading(last, runs.length - lane)
            causal = bits_of(last > load_where(inside, times, begin, silent))
            while causal != 0:
                i = np.int64(trailing_zeros(causal))
                causal &= causal - np.uint64(1)
                rows[n], places[n] = k * runs.length + lane + i, begin + i
                when[n] = flat[np.uint64(begin + i)]
                n += 1
    return n


@jit
def _weights_along_spikes(first, end, p, q, until, a, b, times, grad, runs, n_out, tile):
    """The gradient of the weights of tiles of outputs, which are counted through all groups."""
    spikes = room_for_spikes(p, runs)
    add_along_spikes(first, end, p, q, until, flat_of(a), flat_of(b), times, grad, runs, n_out, tile, spikes)


@lean_jit
def add_along_spikes(first, end, p, q, until, a, b, times, grad, runs, n_out, tile, spikes):
    """In scratch space that is there, factors of inputs in a row."""
    (groups, n_inputs), locations, none = times.shape[1:], runs.first.size, splat(p.dtype.type(0), tile)
    tiles, is_short = grad.shape[2] // len(none), runs.length <= len(splat(p.dtype.type(0), ONE))
    for n in range(len(times)):
        for number in range(first, end):
            group, lane = number // tiles, number % tiles * len(none)
            n_lanes, image = min(len(none), n_out - lane), (n * groups + group) * n_inputs
            to = group * grad.shape[1] * grad.shape[2] + lane
            for location in range(locations):
                at = ((n * locations + location) * groups + group) * n_out + lane
                outputs = outputs_of(p, q, until, at, n_lanes, none)
                begin = image + runs.first[location]
                if not any_of(in_error(outputs[1], outputs[0], none)):
                    continue
                if is_short:
                    subtract_inputs(outputs, begin, runs, times, a, b, to, grad, tile)
                else:
                    latest = latest_of(p, q, until, at, at + n_lanes)
                    found = find_causal(begin, runs, times, latest, spikes)
                    subtract_spikes(outputs, spikes, found, a, b, to, grad, tile)


@jit
def outputs_of(p, q, until, at, n_lanes, none):
    """Factors of a tile of a location's outputs, and before when inputs count for them."""
    inside = leading(none, n_lanes)
    last = load_where(inside, until, at, none)
    return load_where(inside, p, at, none), part_of(q, at, inside, none), last, none


@jit
def subtract_inputs(outputs, begin, runs, times, a, b, to, grad, tile):
    """Subtract what all inputs of a location add to the weights of a tile, one after the other: if few."""
    of_p, of_q, last, none = outputs
    flat = times.reshape(-1)
    for k in range(runs.run.size):
        for i in range(runs.length):
            place, row = begin + runs.run[k] + i, to + (k * runs.length + i) * grad.shape[2]
            change = response(of_q, of_p, splat_in(a, place, tile), splat_in(b, place, tile))
            counts = last > splat(flat[np.uint64(place)], tile)
            store(grad, row, load(grad, row, tile) - where(counts, change, none))


@jit
def subtract_spikes(outputs, spikes, found, a, b, to, grad, tile):
    """Subtract what the spikes of a location add to the weights of a tile of its outputs."""
    (of_p, of_q, last, none), (rows, places, when) = outputs, spikes
    for k in range(found):
        row, place = to + rows[k] * grad.shape[2], places[k]
        change = response(of_q, of_p, splat_in(a, place, tile), splat_in(b, place, tile))
        store(grad, row, load(grad, row, tile) - where(last > splat(when[k], tile), change, none))


@jit
def _times_along_spikes(first, end, p, q, until, a, b, times, rows, grad, runs, n_out, tile):
    """The inputs' gradient of the samples first ... end."""
    spikes = room_for_spikes(p, runs)
    give_back_along_spikes(
        first, end, p, q, until, flat_of(a), flat_of(b), times, rows, grad, runs, n_out, spikes
    )


@lean_jit
def give_back_along_spikes(first, end, p, q, until, a, b, times, rows, grad, runs, n_out, spikes):
    """In scratch space that is there, factors of inputs in a row."""
    (groups, n_inputs), locations = times.shape[1:], runs.first.size
    for n in range(first, end):
        for group in range(groups):
            image = (n * groups + group) * n_inputs
            for location in range(locations):
                at = ((n * locations + location) * groups + group) * n_out
                latest = latest_of(p, q, until, at, at + n_out)
                if latest > -np.inf:
                    found = find_causal(image + runs.first[location], runs, times, latest, spikes)
                    add_spikes(p, q, until, at, n_out, spikes, found, a, b, rows[group], grad)


@jit
def add_spikes(p, q, until, at, n_out, spikes, found, a, b, weights, grad):
    """Give each spike of a location the errors of the outputs that counted it."""
    rows, places, when = spikes
    none, flat = splat(p.dtype.type(0), TWO), grad.reshape(-1)
    for lane in range(0, n_out, len(none)):
        inside = leading(none, n_out - lane)
        of_p, of_q = load_where(inside, p, at + lane, none), part_of(q, at + lane, inside, none)
        last = load_where(inside, until, at + lane, none)
        for k in range(found):
            counts = last > splat(when[k], TWO)
            of_row = load(weights, rows[k] * weights.shape[1] + lane, TWO)
            sum_p, sum_q = total(where(counts, of_p * of_row, none)), total_of(of_q, counts, of_row, none)
            of_a, of_b = item_of(a, places[k]), item_of(b, places[k])
            flat[places[k]] += response(sum_q, sum_p, of_a, of_b)
