"""Compiled backward pass of all neurons, by the factors of their response.

It follows the spikes of the side that has fewer: all outputs for each input spike, or all inputs for
each output with an error. Where a factor is None, the response is a step; numba leaves out what it
would be needed for. Every sum has a fixed order, whatever the number of threads: the input gradient
belongs to one sample, and the weight gradient gives each thread a range of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..backends import Factors
from ..geometry import (
    Geometry,
    by_group,
    channels_last,
    synapse_table,
    weight_of_rows,
    weight_rows,
    whole_lanes,
)
from .compile import jit, where_given
from .conv2d import LANES, place_of, positions_of_inputs
from .events import Events, find_events, write_times
from .lanes import (
    any_of,
    at_least_a_tile,
    load,
    splat,
    store,
    tile_of,
    total,
    where,
    width_of,
)
from .parallel import as_arrays, share_out

# What a row of a response with two factors costs beside its additions, in additions.
ROW = 48


def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    if not geometry.linear:
        return _conv2d_weight_grad(factors, times, kernel_size, geometry)
    n_out, n_in = factors.p.shape[1], times.shape[1]
    outputs, inputs = _optional_arrays(*factors[:3]), _optional_arrays(*factors[3:], times)
    tile = tile_of(outputs[0])
    width = width_of(tile, times.itemsize)
    grad_weight_t = times.new_empty(n_in, max(n_out, width))
    tiles, work = -(-n_out // width), times.numel() * n_out // 4
    share_out(tiles, work, subtract_tiles, *outputs, *inputs, grad_weight_t.numpy(), tile)
    return grad_weight_t[:, :n_out].contiguous().t()


def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`."""
    if not geometry.linear:
        return _conv2d_input_grad(factors, times, weight, geometry)
    grad_times = torch.zeros_like(times, memory_format=torch.contiguous_format)
    arrays = *_optional_arrays(*factors), *as_arrays(times)
    along_inputs, work = _cheaper_direction(arrays, weight.is_contiguous())
    kernel, matrix = (_times_along_inputs, weight) if along_inputs else (_times_along_outputs, weight.t())
    share_out(len(times), work, kernel, *arrays, *as_arrays(matrix, grad_times))
    return grad_times


def _optional_arrays(*tensors: Tensor | None) -> tuple[np.ndarray | None, ...]:
    return tuple(None if tensor is None else as_arrays(tensor)[0] for tensor in tensors)


def _cheaper_direction(arrays: tuple[np.ndarray | None, ...], by_outputs: bool) -> tuple[bool, int]:
    """Whether to take all inputs for each error, rather than all outputs for each input spike.

    Returns it with the number of multiplications. The weights are at hand `by_outputs` or by inputs.
    """
    p, q, until, _, _, times = arrays
    assert p is not None
    assert times is not None
    n_errors, n_events = _count(p, q, until, times)
    (n_in, n_out), row = (times.shape[1], p.shape[1]), 0 if q is None else ROW
    along_inputs, along_outputs = n_errors * (n_in + row), n_events * (n_out + row)
    copied = n_in * n_out
    cheaper = along_inputs + (0 if by_outputs else copied) <= along_outputs + (copied if by_outputs else 0)
    return cheaper, 2 * min(along_inputs, along_outputs)


@jit
def _count(p, q, until, times):
    """Number of outputs with an error, and of input spikes."""
    n_errors = n_events = 0
    for n in range(len(p)):
        of_p, of_q, last = p[n], row_of(q, n), until[n]
        for j in range(of_p.size):
            n_errors += has_error(of_q, of_p, last, j)
        for i in range(times.shape[1]):
            n_events += times[n, i] < np.inf
    return n_errors, n_events


@where_given(lambda q, p, until, j: (p[j] != 0) & (until[j] == until[j]))
def has_error(q, p, until, j):
    """Whether an output has an error, and inputs that count."""
    return (p[j] != 0) | (q[j] != 0)


@jit
def latest_of(p, q, until):
    """Until when inputs count for any output with an error; the others can be skipped."""
    latest = -np.inf
    for j in range(until.size):
        latest = max(latest, until[j] if has_error(q, p, until, j) else -np.inf)
    return latest


@where_given(lambda factor, n: None)
def row_of(factor, n):
    """What a factor is in a sample; None stays."""
    return factor[n]


@where_given(lambda row, k: 1)
def value_of(row, k):
    """A factor of one input or output; 1 where there is none."""
    return row[k]


@where_given(lambda row, k: None)
def element_of(row, k):
    """A factor of one input or output; None stays."""
    return row[k]


@where_given(lambda factor, value: None)
def only_with(factor, value):
    """A value, or None where there is no such factor."""
    return value


@where_given(lambda row, so_far, k, weight: so_far)
def add_product(row, so_far, k, weight):
    """Add what a factor of an output contributes, if there is one."""
    return so_far + row[k] * weight


@where_given(lambda factor, so_far, counts, at, weight, none: so_far)
def add_where(factor, so_far, counts, at, weight, none):
    """As `add_product`, for the outputs of a location that count."""
    return so_far + where(counts, load(factor, at, LANES) * weight, none)


@where_given(lambda row, k, tile: None)
def splat_in(row, k, tile):
    """A factor of one input in all lanes; None stays."""
    return splat(row[k], tile)


@where_given(lambda factor, at, tile: None)
def load_in(factor, at, tile):
    """A factor of a tile of outputs; None stays."""
    return load(factor, at, tile)


@where_given(lambda factor, tile: None)
def at_least_a_tile_of(factor, tile):
    """A factor of the outputs, padded; None stays."""
    return at_least_a_tile(factor, tile)


@where_given(lambda q, p, a, b: p)
def response(q, p, a, b):
    """p a - q b, or p alone."""
    return p * a - q * b


@jit
def subtract_tiles(first, end, p, q, until, a, b, times, grad_weight_t, tile):
    """Weight gradient of the tiles `first` ... `end` of outputs, sample by sample."""
    none, stride = splat(p.dtype.type(0), tile), grad_weight_t.shape[1]
    events = events_with_errors(p, q, until, times)
    p, q, until = at_least_a_tile(p, tile), at_least_a_tile_of(q, tile), at_least_a_tile(until, tile)
    for start in range(first * len(none), min(end * len(none), stride), len(none)):
        lane, begin = min(start, stride - len(none)), np.uint64(0)
        for i in range(len(grad_weight_t)):
            store(grad_weight_t, i * stride + lane, none)
        for n in range(len(p)):
            at, end_n = n * stride + lane, np.uint64(events.ends[n])
            p_n, q_n, until_n = load(p, at, tile), load_in(q, at, tile), load(until, at, tile)
            if may_matter(q_n, p_n, none):
                of_a, of_b = row_of(a, n), row_of(b, n)
                for k in range(begin, end_n):
                    i = events.inputs[k]
                    to, counts = np.int64(i) * stride + lane, until_n > splat(events.when[k], tile)
                    change = response(q_n, p_n, splat_in(of_a, i, tile), splat_in(of_b, i, tile))
                    so_far = load(grad_weight_t, to, tile)
                    store(grad_weight_t, to, where(counts, so_far - change, so_far))
            begin = end_n


@where_given(lambda q, p, none: any_of(p > none) or any_of(none > p))
def may_matter(q, p, none):
    """Whether any output of a tile has an error."""
    return any_of(p > none) or any_of(none > p) or any_of(q > none) or any_of(none > q)


@jit
def events_with_errors(p, q, until, times):
    """The input spikes of the samples in which an output has an error, in the order of the inputs."""
    inputs, when = np.empty(times.size, np.int32), np.empty(times.size, times.dtype)
    ends, at = np.empty(len(times), np.int64), 0
    for n in range(len(times)):
        n_errors, of_p, of_q, last = np.int32(0), p[n], row_of(q, n), until[n]
        for j in range(of_p.size):
            n_errors += np.int32(has_error(of_q, of_p, last, j))
        if n_errors > 0:
            found = find_events(times[n], np.inf, inputs[at:])
            write_times(times[n], inputs[at : at + found], when[at : at + found])
            at += found
        ends[n] = at
    return Events(inputs, when, ends)


@jit
def _times_along_inputs(first, end, p, q, until, a, b, times, weight, grad_times):
    zero = p.dtype.type(0)
    for n in range(first, end):
        t, last, sums = times[n], until[n], grad_times[n]
        of_p, of_q, of_a, of_b = p[n], row_of(q, n), row_of(a, n), row_of(b, n)
        for j in range(until.shape[1]):
            if has_error(of_q, of_p, last, j):
                row, end_j, p_j, q_j = weight[j], last[j], of_p[j], element_of(of_q, j)
                for i in range(row.size):
                    change = response(q_j, p_j, value_of(of_a, i), value_of(of_b, i)) * row[i]
                    sums[i] += change if t[i] < end_j else zero


@jit
def _times_along_outputs(first, end, p, q, until, a, b, times, weight_t, grad_times):
    zero = p.dtype.type(0)
    for n in range(first, end):
        last, of_p, of_q, of_a, of_b = until[n], p[n], row_of(q, n), row_of(a, n), row_of(b, n)
        latest = latest_of(of_p, of_q, last)
        for i in range(times.shape[1]):
            t = times[n, i]
            if t < latest:
                row, sum_p, sum_q = weight_t[i], zero, zero
                for j in range(row.size):
                    sum_p += of_p[j] * row[j] if t < last[j] else zero
                    sum_q = add_product(of_q, sum_q, j, row[j] if t < last[j] else zero)
                grad_times[n, i] = response(
                    only_with(of_q, sum_q), sum_p, value_of(of_a, i), value_of(of_b, i)
                )


def _conv2d_weight_grad(
    factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry
) -> Tensor:
    synapses = synapse_table(*times.shape[2:], *kernel_size, *geometry.stride, *geometry.dilation)
    shape = geometry.weight_shape(times, factors.p.shape[2], kernel_size)
    arrays, width = _by_location(factors, times, geometry.groups)
    grad_rows = times.new_zeros(geometry.groups * math.prod(shape[1:]), width)
    work = len(times) * len(synapses.taps) * shape[0] * shape[1] // 2
    share_out(len(grad_rows), work, _rows_conv2d, *arrays, *as_arrays(grad_rows), synapses[:3])
    return weight_of_rows(grad_rows, shape, geometry.groups)


def _conv2d_input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    synapses = synapse_table(*times.shape[2:], *weight.shape[2:], *geometry.stride, *geometry.dilation)
    rows = whole_lanes(weight_rows(weight, geometry.groups), LANES).flatten(0, 2)
    grad_times = times.new_zeros(len(times), math.prod(times.shape[2:]), times.shape[1])
    arrays, _ = _by_location(factors, times, geometry.groups)
    work = len(times) * len(synapses.taps) * weight.shape[1] * len(weight) // 2
    share_out(len(times), work, _times_conv2d, *arrays, *as_arrays(rows, grad_times), synapses[:3])
    return grad_times.transpose(1, 2).reshape(times.shape).contiguous()


def _by_location(factors: Factors, times: Tensor, groups: int) -> tuple[tuple[np.ndarray | None, ...], int]:
    """Factors and times with channels last, those of the outputs in whole lanes; and how many these are."""
    outputs = [x if x is None else whole_lanes(by_group(x, groups), LANES) for x in factors[:3]]
    inputs = [x if x is None else channels_last(x) for x in (factors.a, factors.b, times)]
    assert outputs[2] is not None
    return _optional_arrays(*outputs, *inputs), outputs[2].shape[-1]


@where_given(lambda row, k: None)
def splat_of(row, k):
    """A factor of one input in all lanes; None stays."""
    return splat(row[k], LANES)


@where_given(lambda factor, at: None)
def load_of(factor, at):
    """A factor of the outputs of a location; None stays."""
    return load(factor, at, LANES)


@jit
def _rows_conv2d(first, end, p, q, until, a, b, times, grad_rows, synapses):
    """Weight gradient of a convolution: the rows first ... end of `grad_rows`; arrays as in `conv2d`."""
    position_of = positions_of_inputs(times)
    spiking = np.empty(position_of.size, np.int32)
    for n in range(len(times)):
        subtract_rows_conv2d(
            p[n], row_of(q, n), until[n], flat_row_of(a, n), flat_row_of(b, n), times[n], synapses,
            position_of, first, end, spiking, grad_rows,
        )  # fmt: skip


@jit
def subtract_rows_conv2d(
    p, q, until, a, b, times, synapses, position_of, first, end, spiking, grad_rows
):  # fmt: skip
    start, taps, locations = synapses
    channels, (groups, width) = times.shape[1], until.shape[1:]
    flat, in_group, none = times.reshape(-1), channels // groups, splat(p.dtype.type(0), LANES)
    for i in spiking[: find_events(flat, np.inf, spiking)]:
        position, group, first_row = place_of(i, position_of, len(grad_rows), channels, groups)
        t, a_i, b_i = splat(flat[i], LANES), splat_of(a, i), splat_of(b, i)
        for s in range(start[position], start[position + 1]):
            row, unit = taps[s] * in_group + first_row, locations[s] * groups + group
            if first <= row < end:
                for lane in range(0, width, LANES):
                    at, to = unit * width + lane, row * width + lane
                    change = response(load_of(q, at), load(p, at, LANES), a_i, b_i)
                    causal = where(load(until, at, LANES) > t, change, none)
                    store(grad_rows, to, load(grad_rows, to, LANES) - causal)


@where_given(lambda factor, n: None)
def flat_row_of(factor, n):
    """What a factor of the inputs is in a sample, position by position; None stays."""
    return factor[n].reshape(-1)


@jit
def _times_conv2d(first, end, p, q, until, a, b, times, weight_rows, grad_times, synapses):
    """Input gradient of a convolution: each input spike gets the errors of the outputs that counted it."""
    position_of = positions_of_inputs(times)
    spiking = np.empty(position_of.size, np.int32)
    for n in range(first, end):
        sum_errors_conv2d(
            p[n], row_of(q, n), until[n], flat_row_of(a, n), flat_row_of(b, n), times[n], synapses,
            position_of, spiking, weight_rows, grad_times[n],
        )  # fmt: skip


@jit
def sum_errors_conv2d(
    p, q, until, a, b, times, synapses, position_of, spiking, weight_rows, grad_times
):  # fmt: skip
    start, taps, locations = synapses
    channels, (groups, width) = times.shape[1], until.shape[1:]
    flat, in_group, none = times.reshape(-1), channels // groups, splat(p.dtype.type(0), LANES)
    for i in spiking[: find_events(flat, np.inf, spiking)]:
        position, group, first_row = place_of(i, position_of, len(weight_rows), channels, groups)
        t, sum_p, sum_q = splat(flat[i], LANES), none, none
        for s in range(start[position], start[position + 1]):
            row, unit = taps[s] * in_group + first_row, locations[s] * groups + group
            for lane in range(0, width, LANES):
                at = unit * width + lane
                counts, w = load(until, at, LANES) > t, load(weight_rows, row * width + lane, LANES)
                sum_p = sum_p + where(counts, load(p, at, LANES) * w, none)
                sum_q = add_where(q, sum_q, counts, at, w, none)
        grad_times[position, i - position * channels] = response(
            only_with(q, total(sum_q)), total(sum_p), value_of(a, i), value_of(b, i)
        )
