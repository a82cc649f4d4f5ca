"""Where the inputs are that a row of outputs sees.

A row is a sample, a location and a group, in this order of the outputs [batch, locations, out]; its patch
are the inputs [in / groups, kernel] that reach it. A fully connected layer is a convolution over one
location. Nothing is copied: an input of a patch is where the patch begins, and an offset from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry import Geometry, output_size


class Layout(NamedTuple):
    """Where patches begin: the first row of a part of them, and strides of the inputs in elements."""

    first: int
    groups: int
    height: int
    width: int
    sample: int
    group: int
    line: int
    column: int


class Patches(NamedTuple):
    """The patches of `rows` rows of outputs: inputs, where they begin, and offsets of their inputs [size]."""

    times: Tensor
    offsets: Tensor
    layout: Layout
    rows: int

    @classmethod
    def of(cls, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Patches:
        """Of all outputs of a layer."""
        images, (kernel, stride, dilation) = as_convolution(times, kernel_size, geometry)
        height, width = output_size(images.shape[2:], kernel, stride, dilation)
        of_sample, of_channel, of_line, of_column = images.stride()
        in_group = images.shape[1] // geometry.groups
        layout = Layout(
            0, geometry.groups, height, width, of_sample, in_group * of_channel,
            stride[0] * of_line, stride[1] * of_column,
        )  # fmt: skip
        steps = of_channel, dilation[0] * of_line, dilation[1] * of_column
        offsets = _offsets((in_group, *kernel), steps, times.device)
        return cls(times, offsets, layout, len(times) * height * width * geometry.groups)

    @property
    def size(self) -> int:
        """Inputs of a patch."""
        return len(self.offsets)

    def parts(self, rows: int) -> Iterator[tuple[slice, Patches]]:
        """Of so many rows each."""
        for first in range(0, self.rows, rows):
            last = min(first + rows, self.rows)
            layout = self.layout._replace(first=first)
            yield slice(first, last), self._replace(layout=layout, rows=last - first)


def as_convolution(
    times: Tensor, kernel_size: Sequence[int], geometry: Geometry
) -> tuple[Tensor, tuple[Any, Any, Any]]:
    """Inputs [batch, in, height, width], and kernel, stride and dilation of a layer."""
    if geometry.linear:
        return times[:, :, None, None], ((1, 1), (1, 1), (1, 1))
    return times, (tuple(kernel_size), tuple(geometry.stride), tuple(geometry.dilation))


@lru_cache(maxsize=64)
def _offsets(size: tuple[int, ...], steps: tuple[int, ...], device: torch.device) -> Tensor:
    """Of each input of a patch, channels first, as weights are."""
    axes = np.ix_(*(step * np.arange(n) for n, step in zip(size, steps, strict=True)))
    offsets = np.asarray(sum(axes[1:], axes[0]), dtype=np.int32)
    return torch.from_numpy(offsets.reshape(math.prod(size))).to(device)


def rows_of_weights(weight: Tensor, groups: int) -> Tensor:
    """[out, in / groups, *kernel] -> [groups, in / groups * kernel, out / groups]: outputs side by side."""
    inputs = math.prod(weight.shape[1:])
    return weight.reshape(groups, len(weight) // groups, inputs).transpose(1, 2).contiguous()
