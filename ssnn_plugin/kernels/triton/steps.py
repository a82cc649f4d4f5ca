"""Forward pass of neurons whose V jumps with an input.

A program takes `ROWS` rows of outputs x `OUTPUTS` outputs, whose V stay in registers, and adds a row of
weights per input spike, until all of its outputs have fired or no spike is left. No branch is taken at a
crossing. Products and sums are not fused, so that they round as the reference's do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.steps import _bins_of_current
from .events import Events, event, start_of

# Spikes between two looks at whether all outputs have fired.
UNROLLED = 4
OUTPUTS = 128


def tile(width: int) -> tuple[int, int]:
    """How many rows and outputs a program, which is one warp, takes."""
    outputs = max(4, min(OUTPUTS, triton.next_power_of_2(width)))
    return OUTPUTS // outputs, outputs


def fire(
    events: Events, weight: Tensor, bias: Tensor | None, neuron: Any, t_max: float,
    crossing: Tensor, potential: Tensor, slope: Tensor,
) -> None:  # fmt: skip
    """Write crossings and potentials [rows, width]; weights are [groups, size, width]; there is no slope."""
    (times, offsets, layout, rows), inputs, counts = events
    width = weight.shape[2]
    arrays = times, offsets, layout, len(offsets), inputs, counts, rows, weight, width, crossing, potential
    numbers = float(neuron.threshold), float(neuron.delay), float(t_max)
    n_rows, n_outputs = tile(width)
    grid = triton.cdiv(rows, n_rows), triton.cdiv(width, n_outputs)
    how = {"ROWS": n_rows, "OUTPUTS": n_outputs, "num_warps": 1, "enable_fp_fusion": False}
    if bias is None and neuron.beta == 1:
        _fire[grid](*arrays, *numbers, UNROLLED=UNROLLED, **how)
    else:
        tables = bins_of(float(neuron.beta), int(t_max), times.dtype, times.device)
        _fire_with_drift[grid](*arrays, bias, *tables, *numbers, **how)


@lru_cache(maxsize=64)
def bins_of(beta: float, t_max: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What is left of V after so many bins, and what a unit current leaves in V from bin 0 to a bin."""
    bins = torch.arange(t_max + 1, dtype=dtype, device=device)
    return beta**bins, _bins_of_current(beta, bins)


@triton.jit
def _fire(
    times, offsets, layout, size, inputs, counts, rows, weight, width, crossing, potential,
    threshold: tl.float64, delay: tl.float64, t_max: tl.float64,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """Without a leak and a current. The threshold counts once all spikes of one time have come."""
    dtype: tl.constexpr = times.dtype.element_ty
    silent: tl.constexpr = float("inf")
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = (row < rows)[:, None] & (j < width)[None, :]
    limit, late, end = tl.full([1], threshold, dtype), tl.full([1], delay, dtype), tl.full([1], t_max, dtype)
    start, count = start_of(row, layout), tl.load(counts + row, mask=row < rows, other=0)
    first_weight = weight + (row + layout.first)[:, None] % layout.groups * size * width + j[None, :]
    v = tl.zeros([ROWS, OUTPUTS], dtype)
    fired, level = tl.full([ROWS, OUTPUTS], silent, dtype), tl.zeros([ROWS, OUTPUTS], dtype)
    k, most, waiting = 0, tl.max(count), 1
    i, t = event(k, times, offsets, start, size, inputs, row, count)
    while (k < most) & (waiting > 0):
        for _ in tl.static_range(UNROLLED):
            there = inside & (k < count)[:, None]
            v += tl.load(first_weight + i[:, None].to(tl.int64) * width, mask=there, other=0)
            next_i, next_t = event(k + 1, times, offsets, start, size, inputs, row, count)
            looked_at = (t < next_t) & (t + late < end)
            new = (v > tl.where(looked_at, limit, silent)[:, None]) & (fired == silent)
            fired, level = tl.where(new, t[:, None], fired), tl.where(new, v, level)
            i, t, k = next_i, next_t, k + 1
        waiting = tl.max((inside & (fired == silent)).to(tl.int32))
    at = row[:, None] * width + j[None, :]
    tl.store(crossing + at, fired, mask=inside)
    tl.store(potential + at, tl.where(fired == silent, v, level), mask=inside)


@triton.jit
def _fire_with_drift(
    times, offsets, layout, size, inputs, counts, rows, weight, width, crossing, potential, bias, kept, bins,
    threshold: tl.float64, delay: tl.float64, t_max: tl.float64, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """With a leak or a constant current, times being whole bins.

    V is monotone between two spikes, so that its two ends show whether it crosses; in which bin is
    searched in the end. `kept` and `bins` are the tables of `bins_of`.
    """
    dtype: tl.constexpr = times.dtype.element_ty
    silent: tl.constexpr = float("inf")
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = (row < rows)[:, None] & (j < width)[None, :]
    limit, late, end = tl.full([1], threshold, dtype), tl.full([1], delay, dtype), tl.full([1], t_max, dtype)
    start, count = start_of(row, layout), tl.load(counts + row, mask=row < rows, other=0)
    group = (row + layout.first)[:, None] % layout.groups
    first_weight = weight + group * size * width + j[None, :]
    current = tl.zeros([ROWS, OUTPUTS], dtype)
    if bias is not None:
        current = tl.load(bias + group * width + j[None, :], mask=inside, other=0)
    # What the spikes contribute to V; the same after the last spike before a crossing, when that
    # spike came, and a bin from then on in which V is above the threshold.
    v, t = tl.zeros([ROWS, OUTPUTS], dtype), tl.zeros([ROWS], dtype)
    before, since, above = v, tl.full([ROWS, OUTPUTS], silent, dtype), v
    k, most, waiting = -1, tl.max(count), 1
    i, next_t = event(0, times, offsets, start, size, inputs, row, count)
    while (k < most) & (waiting > 0):
        next_t = tl.minimum(next_t, end)
        last = tl.maximum(tl.minimum(next_t, end - late) - 1, t)
        at_start = v + current * at_bin(bins, t)[:, None]
        at_last = v * at_bin(kept, last - t)[:, None] + current * at_bin(bins, last)[:, None]
        looked_at = (k < count) & (t < next_t) & (t + late < end)
        new = looked_at[:, None] & ((at_start > limit) | (at_last > limit)) & (since == silent)
        before, since = tl.where(new, v, before), tl.where(new, t[:, None], since)
        above = tl.where(new, last[:, None], above)
        waiting = tl.max((inside & (since == silent)).to(tl.int32))
        k += 1
        there = k < count
        v *= at_bin(kept, tl.where(there, next_t - t, 0))[:, None]
        v += tl.load(first_weight + i[:, None].to(tl.int64) * width, mask=inside & there[:, None], other=0)
        t = tl.where(there, next_t, t)
        i, next_t = event(k + 1, times, offsets, start, size, inputs, row, count)
    fires = since < silent
    begin = tl.where(fires, since, 0)
    fired = first_bin_above(before, current, kept, bins, limit, begin, tl.where(fires, above, 0))
    level = before * at_bin(kept, fired - begin) + current * at_bin(bins, fired)
    at_end = v * at_bin(kept, end - 1 - t)[:, None] + current * at_bin(bins, end - 1)
    at = row[:, None] * width + j[None, :]
    tl.store(crossing + at, tl.where(fires, fired, silent), mask=inside)
    tl.store(potential + at, tl.where(fires, level, at_end), mask=inside)


@triton.jit
def at_bin(table, t):
    """The entry of a number of bins; negative times, which are refused in the end, read none outside."""
    return tl.load(table + tl.maximum(t, 0).to(tl.int32))


@triton.jit
def first_bin_above(v, current, kept, bins, limit, begin, above):
    """The first bin with V above the limit, which it is in the bin `above`; v is of the bin `begin`."""
    crosses_at_once = v + current * at_bin(bins, begin) > limit
    below, above = begin, tl.where(crosses_at_once, begin, above)
    while tl.max(above - below) > 1:
        between = tl.floor((below + above) / 2)
        is_above = v * at_bin(kept, between - begin) + current * at_bin(bins, between) > limit
        above = tl.where(is_above, between, above)
        below = tl.where(is_above, below, between)
    return above
