"""Backward pass of all neurons, by the factors of their response.

Every sum has a fixed order, which depends on shapes alone: there are no atomic operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import Factors
from ..geometry import Geometry
from .events import find_events, start_of
from .patches import Patches, as_convolution, rows_of_weights

# Inputs and outputs of a program.
INPUTS = 32
OUTPUTS = 64
SPIKES = 8
# A sum over many rows is cut into parts, so that there is enough to do at once.
PROGRAMS = 1024
ROWS_OF_A_PART = 256


def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    times, factors = times.contiguous(), contiguous(factors)
    patches, groups = Patches.of(times, kernel_size, geometry), geometry.groups
    n_out = factors.p.shape[-1]
    width, size, units = n_out // groups, patches.size, patches.rows // groups
    tiles = triton.cdiv(width, OUTPUTS) * triton.cdiv(size, INPUTS)
    if not tiles:
        return times.new_empty(geometry.weight_shape(times, n_out, kernel_size))
    n_parts = max(1, min(triton.cdiv(units, ROWS_OF_A_PART), PROGRAMS // (tiles * groups)))
    parts = times.new_empty(n_parts, groups, width, size)
    _weight_grad[tiles, groups, n_parts](
        *factors, *patches[:3], size, width, units, triton.cdiv(units, n_parts), parts, INPUTS, OUTPUTS
    )
    total = parts[0] if n_parts == 1 else parts.sum(0)
    return total.reshape(geometry.weight_shape(times, n_out, kernel_size))


def contiguous(factors: Factors) -> Factors:
    q, a, b = (x if x is None else x.contiguous() for x in (factors.q, factors.a, factors.b))
    return Factors(factors.p.contiguous(), q, factors.until.contiguous(), a, b)


@triton.jit
def _weight_grad(
    p, q, until, a, b, times, offsets, layout, size, width, units, units_of_part, grad,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """A program: a tile of the gradient of one group, over its part of the samples and locations."""
    i = tl.program_id(0) % tl.cdiv(size, INPUTS) * INPUTS + tl.arange(0, INPUTS)
    j = tl.program_id(0) // tl.cdiv(size, INPUTS) * OUTPUTS + tl.arange(0, OUTPUTS)
    group, part = tl.program_id(1), tl.program_id(2)
    offset = tl.load(offsets + i, mask=i < size, other=0)
    sums = tl.zeros([OUTPUTS, INPUTS], p.dtype.element_ty)
    first = part * units_of_part
    for unit in range(first, tl.minimum(first + units_of_part, units)):
        row = tl.full([1], unit, tl.int64) * layout.groups + group
        output = row * width + j
        of_p = tl.load(p + output, mask=j < width, other=0)
        erring = of_p != 0
        if q is not None:
            of_q = tl.load(q + output, mask=j < width, other=0)
            erring = erring | (of_q != 0)
        if tl.max(erring.to(tl.int32)) > 0:
            end = tl.load(until + output, mask=j < width, other=-float("inf"))
            at = start_of(row, layout) + offset
            t = tl.load(times + at, mask=i < size, other=float("inf"))
            change = tl.broadcast_to(of_p[:, None], [OUTPUTS, INPUTS])
            if a is not None:
                change = change * tl.load(a + at, mask=i < size, other=0)[None, :]
            if q is not None:
                change -= of_q[:, None] * tl.load(b + at, mask=i < size, other=0)[None, :]
            sums -= tl.where(t[None, :] < end[:, None], change, 0)
    to = ((part * layout.groups + group).to(tl.int64) * width + j[:, None]) * size + i[None, :]
    tl.store(grad + to, sums, mask=(j < width)[:, None] & (i < size)[None, :])


def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`."""
    times, factors = times.contiguous(), contiguous(factors)
    images, (kernel, stride, dilation) = as_convolution(times, weight.shape[2:], geometry)
    outputs = Patches.of(times, kernel, geometry).layout
    positions = Patches.of(images, (1, 1), Geometry((1, 1), (1, 1), geometry.groups))
    _, inputs, counts = find_events(positions, math.inf)
    width, grad = len(weight) // geometry.groups, torch.zeros_like(times)
    slices = max(1, min(PROGRAMS // max(1, positions.rows), triton.cdiv(positions.size, SPIKES)))
    n_outputs = min(OUTPUTS, triton.next_power_of_2(width))
    _input_grad[positions.rows, slices](
        *factors, *positions[:3], positions.size, inputs, counts,
        rows_of_weights(weight, geometry.groups), width, *kernel, *stride, *dilation,
        outputs.height, outputs.width, grad, SPIKES, n_outputs,
    )  # fmt: skip
    return grad


@triton.jit
def _input_grad(
    p, q, until, a, b, times, offsets, layout, channels, inputs, counts, weight, width,
    kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x, height_out, width_out, grad,
    SPIKES: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """A program: spikes of one position and group, `SPIKES` at a time. Inputs are not padded with rows."""
    row = tl.program_id(0).to(tl.int64)
    start, count = start_of(row, layout), tl.load(counts + row)
    unit, group = row // layout.groups, row % layout.groups
    sample = unit // (layout.height * layout.width)
    y, x = unit // layout.width % layout.height, unit % layout.width
    taps = kernel_y * kernel_x
    for begin in range(tl.program_id(1) * SPIKES, count, tl.num_programs(1) * SPIKES):
        k = begin + tl.arange(0, SPIKES)
        channel = tl.load(inputs + row * channels + k, mask=k < count, other=0).to(tl.int32)
        at = start + tl.load(offsets + channel)
        t = tl.load(times + at, mask=k < count, other=float("inf"))
        sum_p = tl.zeros([SPIKES, OUTPUTS], p.dtype.element_ty)
        sum_q = tl.zeros([SPIKES, OUTPUTS], p.dtype.element_ty)
        for tap in range(0, taps):
            up, left = y - tap // kernel_x * dilation_y, x - tap % kernel_x * dilation_x
            line, column = up // stride_y, left // stride_x
            seen = (up >= 0) & (left >= 0) & (up % stride_y == 0) & (left % stride_x == 0)
            if seen & (line < height_out) & (column < width_out):
                location = (sample * height_out + line) * width_out + column
                for begin_j in range(0, width, OUTPUTS):
                    j = begin_j + tl.arange(0, OUTPUTS)
                    output = (location * layout.groups + group) * width + j
                    of_p = tl.load(p + output, mask=j < width, other=0)
                    erring = of_p != 0
                    if q is not None:
                        of_q = tl.load(q + output, mask=j < width, other=0)
                        erring = erring | (of_q != 0)
                    if tl.max(erring.to(tl.int32)) > 0:
                        end = tl.load(until + output, mask=j < width, other=-float("inf"))
                        counts_for = t[:, None] < end[None, :]
                        from_row = (group * channels + channel) * taps + tap
                        w = tl.load(weight + from_row[:, None] * width + j[None, :], mask=counts_for, other=0)
                        sum_p += tl.where(counts_for, w * of_p[None, :], 0)
                        if q is not None:
                            sum_q += tl.where(counts_for, w * of_q[None, :], 0)
        total = tl.sum(sum_p, 1)
        if a is not None:
            total *= tl.load(a + at, mask=k < count, other=0)
        if q is not None:
            total -= tl.sum(sum_q, 1) * tl.load(b + at, mask=k < count, other=0)
        tl.store(grad + at, total, mask=k < count)
