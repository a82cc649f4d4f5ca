"""Pooling of spike times."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..kernels.geometry import output_size
from ..kernels.precision import full_precision
from .connection import Size2d, pool_window


def earliest_spike_pool2d(
    times: Tensor, kernel_size: Size2d, stride: Size2d | None = None, padding: Size2d = 0
) -> Tensor:
    """The earliest spike of each window, silence if there is none: the max-pooling of latency codes.

    The gradient goes to the earliest input; of inputs that tie to the first one, row by row.

    Args:
        times: spike times [batch, channels, height, width], `inf` = silent.
        kernel_size, stride: as `torch.nn.functional.max_pool2d`; the stride defaults to the kernel.
        padding: silent inputs around the border, at most half a kernel.

    Returns:
        Times [batch, channels, height_out, width_out].

    Raises:
        TypeError: a dtype other than float32 or float64.
        ValueError: NaN or negative times, shapes or a padding that do not fit.

    >>> import torch
    >>> earliest_spike_pool2d(torch.tensor([[[[5.0, 2.0], [torch.inf, 9.0]]]]), 2)
    tensor([[[[2.]]]])
    """
    _checks.floating("times", times)
    _check_images("times", times)
    _checks.spike_times("times", times)
    size, step, edge = map(list, pool_window(kernel_size, stride, padding))
    if any(2 * e > k for e, k in zip(edge, size, strict=True)):
        raise ValueError(f"padding must be at most half the kernel_size {size}, got {edge}")
    _check_size(size, times, edge)
    return -torch.nn.functional.max_pool2d(-times, size, step, edge)


def lateral_inhibition2d(times: Tensor, kernel_size: Size2d) -> Tensor:
    """Silence all but the earliest spike of each window: what a max-pool lets through stays the same.

    The first neuron of a window to fire inhibits the others of its channel there, so that spikes which
    `earliest_spike_pool2d` with this kernel would hold back never come. Spikes at the same time come too late
    to inhibit each other. In Kheradpisheh et al. (2018) the first spike of a place inhibits all channels;
    here it inhibits its own alone, which changes nothing that a later layer sees.

    Args:
        times: spike times [batch, channels, height, width], `inf` = silent.
        kernel_size: of the windows, which lie side by side. Rows and columns at the end that fill none are
            silenced, as no pool reads them.

    Returns:
        Times of the same shape.

    Raises:
        TypeError: a dtype other than float32 or float64.
        ValueError: NaN or negative times, shapes that do not fit.

    >>> import torch
    >>> lateral_inhibition2d(torch.tensor([[[[5.0, 2.0], [torch.inf, 9.0]]]]), 2)
    tensor([[[[inf, 2.],
              [inf, inf]]]])
    """
    _checks.floating("times", times)
    _check_images("times", times)
    _checks.spike_times("times", times)
    return times.masked_fill(~highest_in_windows2d(-times, kernel_size), math.inf)


def highest_in_windows2d(values: Tensor, kernel_size: Size2d) -> Tensor:
    """Which values a max-pool lets through: those that are the highest of their window.

    Of potentials, or of how early spikes come, it says which neurons `lateral_inhibition2d` leaves.

    Args:
        values: [batch, channels, height, width].
        kernel_size: of the windows, which lie side by side.

    Returns:
        A mask of the same shape, false in rows and columns at the end that fill no window.

    Raises:
        ValueError: shapes that do not fit.

    >>> import torch
    >>> highest_in_windows2d(torch.tensor([[[[1.0, 3.0, 2.0], [0.0, 3.0, 1.0]]]]), 2)
    tensor([[[[False,  True, False],
              [False,  True, False]]]])
    """
    _check_images("values", values)
    size, *_ = pool_window(kernel_size, None, 0)
    _check_size(list(size), values, [0, 0])
    highest = torch.nn.functional.max_pool2d(values, size)
    mask = torch.zeros_like(values, dtype=torch.bool)
    ends = [n * k for n, k in zip(highest.shape[2:], size, strict=True)]
    # Place by place in the windows, as spreading the maxima over them takes twice as long.
    for row, column in itertools.product(*map(range, size)):
        place = ..., slice(row, ends[0], size[0]), slice(column, ends[1], size[1])
        mask[place] = values[place] >= highest
    return mask


def _check_images(name: str, values: Tensor) -> None:
    if values.ndim != 4:
        raise ValueError(f"{name} must have shape [batch, channels, height, width], got {list(values.shape)}")


def _check_size(size: list[int], values: Tensor, padding: list[int]) -> None:
    if any(n + 2 * e < k for n, e, k in zip(values.shape[2:], padding, size, strict=True)):
        raise ValueError(f"kernel_size {size} must fit the padded input, got {list(values.shape[2:])}")


def drop_spikes(times: Tensor, p: float) -> Tensor:
    """Silence each spike with probability `p`, independently.

    Scale the weights of the layer behind by 1 / (1 - p), as `nn.SpikeLinear` and `nn.SpikeConv2d`
    do, and it is what `torch.nn.Dropout` does to a spike train.

    Args:
        times: spike times of any shape.
        p: probability, 0 <= p < 1.

    Raises:
        ValueError: a `p` out of range.

    >>> import torch
    >>> drop_spikes(torch.tensor([3.0, torch.inf]), 0.0)
    tensor([3., inf])
    """
    _checks.dropout("p", p)
    return times.masked_fill(torch.rand_like(times) < p, math.inf) if p > 0 else times


@dataclass(frozen=True)
class AveragePool:
    """An average pool without padding, as part of a connection: it is a linear map.

    Args:
        kernel_size, stride: as `torch.nn.AvgPool2d`; the stride defaults to the kernel.

    Raises:
        ValueError: sizes that are not whole numbers above 0, or pairs of them.

    >>> AveragePool(2)
    AveragePool(kernel_size=(2, 2), stride=(2, 2))
    """

    kernel_size: Size2d
    stride: Size2d | None = None

    def __post_init__(self) -> None:
        kernel, stride, _ = pool_window(self.kernel_size, self.stride, 0)
        object.__setattr__(self, "kernel_size", kernel)
        object.__setattr__(self, "stride", stride)

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(kernel_size, stride) as pairs."""
        return self.kernel_size, self.stride  # type: ignore[return-value]

    def output_size(self, times: Tensor) -> list[int]:
        """Height and width behind the pool, for times [batch, channels, height, width]."""
        if times.ndim != 4 or any(n < k for n, k in zip(times.shape[2:], self.window[0], strict=True)):
            raise ValueError(
                f"times must be [batch, channels, height, width], at least as large as {self}, "
                f"got {list(times.shape)}"
            )
        kernel, step = self.window
        return output_size(times.shape[2:], list(kernel), list(step), [1, 1])

    def crop(self, times: Tensor) -> Tensor:
        """Leave out the rows and columns at the end that fill no window."""
        pooled = self.output_size(times)
        height, width = ((n - 1) * s + k for n, k, s in zip(pooled, *self.window, strict=True))
        return times[..., :height, :width]


class Convolution(NamedTuple):
    """A convolution's weight [out, in / groups, *kernel] and where it is applied."""

    weight: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]

    def after(self, pool: AveragePool) -> Convolution:
        """This convolution on the output of an average pool, as one convolution.

        Exact if the pool's windows do not reach over the padding: no padding, or no overlap.
        """
        kernel, step = pool.window
        box = self.weight.new_full((1, 1, *kernel), 1 / math.prod(kernel))
        spacing = [s * d for s, d in zip(step, self.dilation, strict=True)]
        taps = self.weight.flatten(0, 1).unsqueeze(1)
        with full_precision(taps.device):
            weight = torch.nn.functional.conv_transpose2d(taps, box, stride=spacing)
        stride, padding = (
            [s * n for s, n in zip(step, own, strict=True)] for own in (self.stride, self.padding)
        )
        return Convolution(self._shaped(weight), stride, padding, [1, 1])

    def before(self, pool: AveragePool) -> Convolution:
        """An average pool on the output of this convolution, as one convolution."""
        kernel, step = pool.window
        box = self.weight.new_full((1, 1, *kernel), 1 / math.prod(kernel))
        taps = self.weight.flatten(0, 1).unsqueeze(0)
        with full_precision(taps.device):
            weight = torch.nn.functional.conv_transpose2d(
                box, taps, stride=self.stride, dilation=self.dilation
            )
        stride = [s * n for s, n in zip(step, self.stride, strict=True)]
        return Convolution(self._shaped(weight), stride, self.padding, [1, 1])

    def _shaped(self, taps: Tensor) -> Tensor:
        return taps.reshape(*self.weight.shape[:2], *taps.shape[2:])
