"""The input spikes of every patch, earliest first."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .patches import Patches

# Of a patch, up to which its spikes are ranked by comparing all pairs; beyond, torch sorts all its inputs.
MOST_RANKED = 1 << 13
# What a program looks at at once.
TABLE = 1024
RANKED = 64


class Events(NamedTuple):
    """The spikes of patches: `inputs` [rows, size] of which the first `counts` [rows] spike."""

    patches: Patches
    inputs: Tensor
    counts: Tensor


def bytes_of_row(size: int) -> int:
    """What sorting the spikes of one patch takes."""
    return size * (2 * _index_type(size).itemsize if size <= MOST_RANKED else 32)


def _index_type(size: int) -> torch.dtype:
    return torch.int16 if size < 1 << 15 else torch.int32


def sort_events(patches: Patches, t_max: float) -> Events:
    """Those before `t_max` by time, and those of one time in the order of the inputs."""
    if patches.size > MOST_RANKED:
        times, inputs = _times_of(patches).sort(dim=1, stable=True)
        counts = (times < t_max).sum(1, dtype=torch.int32)
        return Events(patches, inputs.to(_index_type(patches.size)), counts)
    found = find_events(patches, t_max)
    order = torch.empty_like(found.inputs)
    block = min(RANKED, triton.next_power_of_2(patches.size))
    at_once = RANKED**2 // block**2
    _rank_events[(triton.cdiv(patches.rows, at_once),)](*_arrays(found), patches.rows, order, at_once, block)
    return found._replace(inputs=order)


def find_events(patches: Patches, t_max: float) -> Events:
    """Those before `t_max` in the order of the inputs."""
    rows, size = patches.rows, patches.size
    inputs = torch.empty(rows, size, dtype=_index_type(size), device=patches.times.device)
    events = Events(patches, inputs, torch.empty(rows, dtype=torch.int32, device=inputs.device))
    block = min(TABLE, triton.next_power_of_2(size))
    at_once = TABLE // block
    _find_events[(triton.cdiv(rows, at_once),)](*_arrays(events), rows, float(t_max), at_once, block)
    return events


def _times_of(patches: Patches) -> Tensor:
    """[rows, size]."""
    times = patches.times
    start = start_of.fn(torch.arange(patches.rows, device=times.device), patches.layout)
    span = 1 + sum((n - 1) * stride for n, stride in zip(times.shape, times.stride(), strict=True))
    return times.as_strided((span,), (1,))[start.unsqueeze(1) + patches.offsets]


def _arrays(events: Events) -> tuple[object, ...]:
    (times, offsets, layout, _), inputs, counts = events
    return times, offsets, layout, len(offsets), inputs, counts


@triton.jit
def start_of(row, layout):
    """The input that the patch of a row (int64) begins with."""
    row += layout.first
    unit, group = row // layout.groups, row % layout.groups
    line, column = unit // layout.width, unit % layout.width
    sample, line = line // layout.height, line % layout.height
    return sample * layout.sample + group * layout.group + line * layout.line + column * layout.column


@triton.jit
def _find_events(
    times, offsets, layout, size, inputs, counts, rows, t_max: tl.float64,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program: the patches of `ROWS` rows, `BLOCK` inputs at a time."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start, end = start_of(row, layout), tl.full([1, 1], t_max, times.dtype.element_ty)
    found = tl.zeros([ROWS], tl.int32)
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        offset = tl.load(offsets + i, mask=i < size, other=0)
        inside = (row < rows)[:, None] & (i < size)[None, :]
        t = tl.load(times + start[:, None] + offset[None, :], mask=inside, other=float("inf"))
        spikes = (t < end).to(tl.int32)
        place = found[:, None] + tl.cumsum(spikes, 1) - spikes
        which = tl.broadcast_to(i[None, :], [ROWS, BLOCK])
        tl.store(inputs + row[:, None] * size + place, which, mask=t < end)
        found += tl.sum(spikes, 1)
    tl.store(counts + row, found, mask=row < rows)


@triton.jit
def _rank_events(
    times, offsets, layout, size, inputs, counts, rows, order, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program: `ROWS` rows. The place of a spike is how many come before it."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.where(row < rows, row, rows - 1)[:, None]
    start, count = start_of(row, layout), tl.load(counts + row)
    most = tl.max(count)
    for begin in range(0, most, BLOCK):
        k = begin + tl.arange(0, BLOCK)[None, :]
        i, t = event(k, times, offsets, start, size, inputs, row, count)
        place = tl.zeros([ROWS, BLOCK], tl.int32)
        for other_begin in range(0, most, BLOCK):
            other_k = other_begin + tl.arange(0, BLOCK)[None, :]
            _, other_t = event(other_k, times, offsets, start, size, inputs, row, count)
            tied = (other_t[:, None, :] == t[:, :, None]) & (other_k[:, None, :] < k[:, :, None])
            place += tl.sum(((other_t[:, None, :] < t[:, :, None]) | tied).to(tl.int32), 2)
        tl.store(order + row * size + place, i, mask=k < count)


@triton.jit
def event(k, times, offsets, start, size, inputs, row, count):
    """The k-th spike of each row: its input, and its time, which is `inf` after the last."""
    i = tl.load(inputs + row * size + k, mask=k < count, other=0).to(tl.int32)
    return i, tl.load(times + start + tl.load(offsets + i), mask=k < count, other=float("inf"))
