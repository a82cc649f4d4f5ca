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

    Input position p (row-major) has the entries start[p] ... start[p + 1] of `taps` and `locations`.
    """

    start: np.ndarray
    taps: np.ndarray
    locations: np.ndarray
    locations_out: int


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
    position = seen.reshape(-1)
    order = np.argsort(position, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(position, minlength=height * width))])
    location, tap = np.divmod(order, size[0] * size[1])
    return Synapses(start.astype(np.int32), tap.astype(np.int32), location.astype(np.int32), out[0] * out[1])


def weight_rows(weight: Tensor, groups: int) -> Tensor:
    """[out, in / groups, *kernel] -> [in, kernel, out / groups]: one contiguous row per input and tap."""
    out, in_group = weight.shape[:2]
    taps = math.prod(weight.shape[2:])
    by_group = weight.reshape(groups, out // groups, in_group, taps)
    return by_group.permute(0, 2, 3, 1).reshape(groups * in_group, taps, out // groups)
