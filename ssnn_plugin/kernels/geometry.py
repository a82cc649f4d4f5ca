"""Where the synapses of a convolution lead: tables for kernels that follow the spikes."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .operators import output_size


class Synapses(NamedTuple):
    """Which output locations an input position reaches, and through which tap of the kernel.

    Input position p (row-major) has the entries start[p] ... start[p + 1] of `taps` and `locations`;
    `seen` [locations, taps] holds the position that each location sees through each tap.
    """

    start: np.ndarray
    taps: np.ndarray
    locations: np.ndarray
    seen: np.ndarray


@lru_cache(maxsize=64)
def synapse_table(height: int, width: int, *kernel: int) -> Synapses:
    """Of a convolution without padding; `kernel` is size, stride and dilation, two numbers each."""
    size, stride, dilation = kernel[:2], kernel[2:4], kernel[4:]
    out = output_size([height, width], list(size), list(stride), list(dilation))
    (y, ky), (x, kx) = (
        np.ix_(np.arange(n) * s, np.arange(k) * d)
        for n, k, s, d in zip(out, size, stride, dilation, strict=True)
    )
    seen = (y + ky)[:, None, :, None] * width + (x + kx)[None, :, None, :]
    seen = seen.reshape(out[0] * out[1], size[0] * size[1])
    position = seen.reshape(-1)
    start = np.concatenate([[0], np.cumsum(np.bincount(position, minlength=height * width))])
    location, tap = np.divmod(np.argsort(position, kind="stable"), seen.shape[1])
    return Synapses(*(table.astype(np.uint32) for table in (start, tap, location, seen)))


def weight_rows(weight: Tensor, groups: int) -> Tensor:
    """[out, in / groups, *kernel] -> [groups, taps, in / groups, out / groups]: a row per tap and input."""
    out, in_group, *kernel = weight.shape
    return weight.reshape(groups, out // groups, in_group, math.prod(kernel)).permute(0, 3, 2, 1)


def weight_of_rows(rows: Tensor, shape: tuple[int, ...], groups: int) -> Tensor:
    """The inverse of `weight_rows`, of [groups * taps * in / groups, width]; padding is left out."""
    out, in_group, *kernel = shape
    table = rows[:, : out // groups].reshape(groups, math.prod(kernel), in_group, out // groups)
    return table.permute(0, 3, 2, 1).reshape(shape).contiguous()


def by_group(outputs: Tensor, groups: int) -> Tensor:
    """[..., out] -> [..., groups, out / groups]."""
    return outputs.reshape(*outputs.shape[:-1], groups, outputs.shape[-1] // groups)


def whole_lanes(outputs: Tensor, lanes: int) -> Tensor:
    """Pad the last dimension with zeros to whole vectors."""
    *shape, n = outputs.shape
    if n % lanes == 0:
        return outputs
    padded = outputs.new_empty(*shape, n + -n % lanes)
    padded[..., :n] = outputs
    padded[..., n:] = 0
    return padded


def channels_last(images: Tensor) -> Tensor:
    """[batch, channels, height, width] -> [batch, height * width, channels]."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)
