"""Compiled backward pass of convolutions, by the factors of their response.

Each location is a small fully connected layer: all inputs that it sees, for each of its outputs with an
error; where there is no error nothing is done. Every sum has a fixed order, whatever the number of
threads: the input gradient belongs to one sample, and the weight gradient gives each thread a range of
outputs.

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
from ..geometry import Geometry, output_size, whole_lanes
from .bits import bits_of, trailing_zeros
from .compile import jit, where_given
from .gradients import _optional_arrays, only_with, response, splat_of
from .lanes import leading, load, load_where, splat, store, store_where, where, width_of
from .parallel import as_arrays, share_out
from .patches import by_position

#: registers of inputs at a time, as tuples: of the weight gradient, and of the input gradient, which sums up
ONE, TWO = (0,), (0,) * 2


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


def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    out, in_group, *_ = geometry.weight_shape(times, factors.p.shape[2], kernel_size)
    arrays, runs, work = _prepared(factors, times, kernel_size, geometry)
    grad = times.new_zeros(out, runs.run.size, runs.length + -runs.length % width_of(ONE, arrays[0]))
    share_out(out, work, _weights, *arrays, *as_arrays(grad), runs)
    return grad[:, :, : runs.length].reshape(out, *kernel_size, in_group).permute(0, 3, 1, 2).contiguous()


def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`; in memory channels come last within a group."""
    batch, channels, height, width = times.shape
    arrays, runs, work = _prepared(factors, times, weight.shape[2:], geometry)
    by_run = weight.permute(0, 2, 3, 1).reshape(len(weight), runs.run.size, runs.length)
    grad = torch.zeros_like(by_position(times, geometry.groups), memory_format=torch.contiguous_format)
    rows = whole_lanes(by_run, width_of(TWO, arrays[0]))
    share_out(batch, work, _times, *arrays, *as_arrays(rows, grad), runs)
    images = grad.reshape(batch, geometry.groups, height, width, channels // geometry.groups)
    return images.permute(0, 1, 4, 2, 3).reshape(times.shape)


def _prepared(
    factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry
) -> tuple[tuple[Any, ...], Runs, int]:
    """The arrays of factors and times, where they lie, and about how many additions it takes."""
    stride, dilation, groups = geometry
    outputs = (x if x is None else x.flatten() for x in factors[:3])
    inputs = (x if x is None else by_position(x, groups) for x in (factors.a, factors.b, times))
    runs = runs_of(*times.shape[2:], times.shape[1] // groups, *kernel_size, *stride, *dilation)
    return _optional_arrays(*outputs, *inputs), runs, factors.p.numel() * runs.run.size * runs.length // 8


@where_given(lambda factor, size: None)
def room_like(factor, size):
    """Scratch space for so many values of a factor; None stays."""
    return np.empty(size, factor.dtype)


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
        some = may_differ(q, load_where(inside, p, at + block, none), at + block, inside, none)
        found = bits_of(some & (ends <= ends))
        while found != 0:
            j = block + np.int64(trailing_zeros(found))
            found &= found - np.uint64(1)
            outputs[n], of_p[n], last[n] = j, p[at + j], until[at + j]
            keep_value(q, at + j, n, of_q)
            n += 1
    return n


@where_given(lambda q, p, at, inside, none: ~same(p, none))
def may_differ(q, p, at, inside, none):
    """Where any factor of the outputs is not 0."""
    return ~(same(p, none) & same(load_where(inside, q, at, none), none))


@jit
def same(lanes, others):
    return (lanes <= others) & (others <= lanes)


@where_given(lambda factor, at, inside, none: 1)
def factor_at(factor, at, inside, none):
    """A factor of neighbouring inputs; 1 where there is none."""
    return load_where(inside, factor, at, none)


@jit
def _weights(first, end, p, q, until, a, b, times, grad, runs):
    """The gradient of the weights of the outputs first ... end."""
    (groups, n_inputs), locations = times.shape[1:], runs.first.size
    out_group = len(grad) // groups
    errors = room_for_errors(q, p, end - first)
    for n in range(len(times)):
        for group in range(first // out_group, (end - 1) // out_group + 1):
            begin, last = max(first, group * out_group), min(end, (group + 1) * out_group)
            image = (n * groups + group) * n_inputs
            for location in range(locations):
                at = (n * locations + location) * len(grad)
                found = find_errors(p, q, until, at, begin, last, errors)
                if found > 0:
                    subtract_errors(errors, found, image + runs.first[location], runs, times, a, b, grad)


@jit
def subtract_errors(errors, found, first, runs, times, a, b, grad):
    """Subtract what a location whose inputs begin at `first` adds to the weights of outputs with an error."""
    outputs, p, q, until = errors
    none, silent = splat(p.dtype.type(0), ONE), splat(p.dtype.type(np.inf), ONE)
    _, n_runs, width = grad.shape
    for k in range(n_runs):
        for lane in range(0, runs.length, len(none)):
            at, inside = first + runs.run[k] + lane, leading(none, runs.length - lane)
            t = load_where(inside, times, at, silent)
            of_a, of_b = factor_at(a, at, inside, none), factor_at(b, at, inside, none)
            for e in range(found):
                to, counts = (outputs[e] * n_runs + k) * width + lane, splat(until[e], ONE) > t
                change = response(splat_of(q, e, ONE), splat(p[e], ONE), of_a, of_b)
                store(grad, to, load(grad, to, ONE) - where(counts, change, none))


@jit
def _times(first, end, p, q, until, a, b, times, rows, grad, runs):
    """The inputs' gradient of the samples first ... end."""
    (groups, n_inputs), locations = times.shape[1:], runs.first.size
    out_group = len(rows) // groups
    errors = room_for_errors(q, p, out_group)
    for n in range(first, end):
        for group in range(groups):
            begin, image = group * out_group, (n * groups + group) * n_inputs
            for location in range(locations):
                at = (n * locations + location) * len(rows)
                found = find_errors(p, q, until, at, begin, begin + out_group, errors)
                if found > 0:
                    add_errors(errors, found, image + runs.first[location], runs, times, a, b, rows, grad)


@jit
def add_errors(errors, found, first, runs, times, a, b, rows, grad):
    """Add the errors of a location to the inputs, from `first` on, that its outputs counted."""
    outputs, p, q, until = errors
    none, silent = splat(p.dtype.type(0), TWO), splat(p.dtype.type(np.inf), TWO)
    _, n_runs, width = rows.shape
    for k in range(n_runs):
        for lane in range(0, runs.length, len(none)):
            at, inside = first + runs.run[k] + lane, leading(none, runs.length - lane)
            t, sum_p, sum_q = load_where(inside, times, at, silent), none, none
            for e in range(found):
                weights = load(rows, (outputs[e] * n_runs + k) * width + lane, TWO)
                counts = splat(until[e], TWO) > t
                sum_p = sum_p + where(counts, splat(p[e], TWO) * weights, none)
                sum_q = add_where(q, sum_q, e, counts, weights, none)
            of_a, of_b = factor_at(a, at, inside, none), factor_at(b, at, inside, none)
            change = response(only_with(q, sum_q), sum_p, of_a, of_b)
            store_where(inside, grad, at, load_where(inside, grad, at, none) + change)


@where_given(lambda factor, so_far, e, counts, weights, none: so_far)
def add_where(factor, so_far, e, counts, weights, none):
    """Add what a factor of an output contributes, if there is one."""
    return so_far + where(counts, splat(factor[e], TWO) * weights, none)
