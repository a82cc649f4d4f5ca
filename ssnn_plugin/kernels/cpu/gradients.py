"""Compiled backward pass of all neurons, by the factors of their response.

It follows the spikes of the side that has fewer: all outputs for each input spike, or all inputs for
each output with an error. Where a factor is None, the response is a step; numba leaves out what it
would be needed for. Every sum has a fixed order, whatever the number of threads: the input gradient
belongs to one sample, and the weight gradient gives each thread tiles of outputs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..backends import Factors
from ..geometry import Geometry
from .compile import jit, optional, where_given
from .events import Events, find_events, write_times
from .lanes import any_of, in_whole_tiles, leading, load, load_where, splat, store, tile_of, where, width_of
from .parallel import as_arrays, share_out

#: p, q, until, a, b and times; what a response does not have is None
Arrays: TypeAlias = "tuple[np.ndarray | None, ...]"
# What a row of a response with two factors costs beside its additions, in additions.
ROW = 48


def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    n_out, tile = factors.p.shape[1], tile_of(factors.p)
    grad_weight_t = times.new_empty(times.shape[1], in_whole_tiles(n_out, tile, times.itemsize))
    write_weight_grad(optional_arrays(*factors, times), grad_weight_t.numpy(), tile)
    return grad_weight_t[:, :n_out].contiguous().t()


def write_weight_grad(arrays: Arrays, grad_weight_t: np.ndarray, tile: tuple[int, ...]) -> None:
    """Write the gradient [in, out], whose columns fill whole tiles: those behind the outputs mean nothing."""
    p, times = arrays[0], arrays[5]
    assert p is not None
    assert times is not None
    tiles, work = grad_weight_t.shape[1] // width_of(tile, p.itemsize), times.size * p.shape[1] // 4
    share_out(tiles, work, subtract_tiles, *arrays, grad_weight_t, tile)


def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`."""
    grad_times = torch.zeros_like(times, memory_format=torch.contiguous_format)
    add_input_grad(optional_arrays(*factors, times), weight.detach().numpy(), grad_times.numpy())
    return grad_times


def add_input_grad(arrays: Arrays, weight: np.ndarray, grad_times: np.ndarray) -> None:
    """Add the gradient of the times to zeros; weights [out, in] may lie in memory either way."""
    along_inputs, work = _cheaper_direction(arrays, weight.flags.c_contiguous)
    kernel, matrix = (_times_along_inputs, weight) if along_inputs else (_times_along_outputs, weight.T)
    share_out(len(grad_times), work, kernel, *arrays, np.ascontiguousarray(matrix), grad_times)


def optional_arrays(*tensors: Tensor | None) -> Arrays:
    """As `as_arrays`; None stays."""
    return tuple(None if tensor is None else as_arrays(tensor)[0] for tensor in tensors)


def _cheaper_direction(arrays: Arrays, by_outputs: bool) -> tuple[bool, int]:
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
        n_errors += count_errors(p[n], item_of(q, n), until[n], 0, p.shape[1])
        for i in range(times.shape[1]):
            n_events += times[n, i] < np.inf
    return n_errors, n_events


@where_given(lambda q, p, until, j: (p[j] != 0) & (until[j] == until[j]))
def has_error(q, p, until, j):
    """Whether an output has an error, and inputs that count."""
    return (p[j] != 0) | (q[j] != 0)


@jit
def count_errors(p, q, until, first, end):
    """How many of the outputs `first` ... `end` have an error."""
    n_errors = np.int32(0)
    for j in range(first, end):
        n_errors += np.int32(has_error(q, p, until, j))
    return n_errors


@jit
def latest_of(p, q, until, first, end):
    """Until when inputs count for any of these outputs that has an error; -inf if none has."""
    latest = p.dtype.type(-np.inf)
    for j in range(first, end):
        latest = max(latest, until[j] if has_error(q, p, until, j) else latest)
    return latest


# A factor of one sample, input or output; a value that there is with a factor; a factor of one input in all
# lanes; one of those of a tile of outputs that there are.
item_of = optional(lambda factor, k: factor[k])
only_with = optional(lambda factor, value: value)
splat_in = optional(lambda factor, k, tile: splat(factor[k], tile))  # type: ignore[call-arg]
part_of = optional(lambda factor, at, inside, none: load_where(inside, factor, at, none))  # type: ignore[call-arg]


@where_given(lambda row, so_far, k, weight: so_far)
def add_product(row, so_far, k, weight):
    """Add what a factor of an output contributes, if there is one."""
    return so_far + row[k] * weight


@where_given(lambda q, p, a, b: p)
def response(q, p, a, b):
    """p a - q b, or p alone."""
    return p * a - q * b


@jit
def subtract_tiles(first, end, p, q, until, a, b, times, grad_weight_t, tile):
    """Weight gradient of the tiles `first` ... `end` of outputs, sample by sample."""
    none, stride, n_out = splat(p.dtype.type(0), tile), grad_weight_t.shape[1], p.shape[1]
    events = events_with_errors(p, q, until, times)
    for lane in range(first * len(none), end * len(none), len(none)):
        inside, begin = leading(none, n_out - lane), np.uint64(0)
        for i in range(len(grad_weight_t)):
            store(grad_weight_t, i * stride + lane, none)
        for n in range(len(p)):
            at, end_n = n * n_out + lane, np.uint64(events.ends[n])
            p_n, q_n = load_where(inside, p, at, none), part_of(q, at, inside, none)
            until_n = load_where(inside, until, at, none)
            if any_of(in_error(q_n, p_n, none)):
                of_a, of_b = item_of(a, n), item_of(b, n)
                for k in range(begin, end_n):
                    i = events.inputs[k]
                    to, counts = np.int64(i) * stride + lane, until_n > splat(events.when[k], tile)
                    change = response(q_n, p_n, splat_in(of_a, i, tile), splat_in(of_b, i, tile))
                    so_far = load(grad_weight_t, to, tile)
                    store(grad_weight_t, to, where(counts, so_far - change, so_far))
            begin = end_n


@jit
def is_zero(lanes, none):
    return (lanes <= none) & (none <= lanes)


@where_given(lambda q, p, none: ~is_zero(p, none))
def in_error(q, p, none):
    """Which outputs of a tile have an error, NaN too."""
    return ~(is_zero(p, none) & is_zero(q, none))


@jit
def events_with_errors(p, q, until, times):
    """The input spikes of the samples in which an output has an error, in the order of the inputs."""
    inputs, when = np.empty(times.size, np.int32), np.empty(times.size, times.dtype)
    ends, at = np.empty(len(times), np.int64), 0
    for n in range(len(times)):
        if count_errors(p[n], item_of(q, n), until[n], 0, p.shape[1]) > 0:
            latest = latest_of(p[n], item_of(q, n), until[n], 0, p.shape[1])
            found = find_events(times[n], latest, inputs[at:])
            write_times(times[n], inputs[at : at + found], when[at : at + found])
            at += found
        ends[n] = at
    return Events(inputs, when, ends)


@jit
def _times_along_inputs(first, end, p, q, until, a, b, times, weight, grad_times):
    zero = p.dtype.type(0)
    for n in range(first, end):
        t, last, sums = times[n], until[n], grad_times[n]
        of_p, of_q, of_a, of_b = p[n], item_of(q, n), item_of(a, n), item_of(b, n)
        for j in range(until.shape[1]):
            if has_error(of_q, of_p, last, j):
                row, end_j, p_j, q_j = weight[j], last[j], of_p[j], item_of(of_q, j)
                for i in range(row.size):
                    change = response(q_j, p_j, item_of(of_a, i), item_of(of_b, i)) * row[i]
                    sums[i] += change if t[i] < end_j else zero


@jit
def _times_along_outputs(first, end, p, q, until, a, b, times, weight_t, grad_times):
    zero = p.dtype.type(0)
    for n in range(first, end):
        last, of_p, of_q, of_a, of_b = until[n], p[n], item_of(q, n), item_of(a, n), item_of(b, n)
        latest = latest_of(of_p, of_q, last, 0, last.size)
        for i in range(times.shape[1]):
            t = times[n, i]
            if t < latest:
                row, sum_p, sum_q = weight_t[i], zero, zero
                for j in range(row.size):
                    sum_p += of_p[j] * row[j] if t < last[j] else zero
                    sum_q = add_product(of_q, sum_q, j, row[j] if t < last[j] else zero)
                grad_times[n, i] = response(only_with(of_q, sum_q), sum_p, item_of(of_a, i), item_of(of_b, i))
