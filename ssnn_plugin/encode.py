"""Encoders: values -> spike times, each sample on its own, never by the rest of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks


def latency(x: Tensor, t_max: int = 256, *, x_max: float = 1.0) -> Tensor:
    """Intensity to latency: t = floor((x_max - x) t_max / x_max), the brighter the earlier.

    A value without intensity does not spike (`inf`). Whole-numbered images are encoded in
    integers and so exactly; pass `x_max=255` for 8-bit images. Times have no gradient.

    Args:
        x: intensities between 0 and `x_max`, any shape; floating or integer.
        t_max: number of bins.
        x_max: intensity that spikes in bin 0.

    Returns:
        Times of the shape of `x`; its dtype if that is float32 or float64, else the default dtype.

    Raises:
        ValueError: NaN, values outside 0 ... x_max, a `t_max` or `x_max` that is not positive, an `x_max`
            that is not whole for integer `x`, a `t_max` of more bins than the dtype of the times has.
        TypeError: boolean or complex `x`.

    Source: Kheradpisheh & Masquelier 2020, time-to-first-spike coding.

    >>> import torch
    >>> latency(torch.tensor([255, 254, 1, 0], dtype=torch.uint8), x_max=255)
    tensor([  0.,   1., 254.,  inf])
    """
    _checks.positive("t_max", t_max)
    _checks.positive("x_max", x_max)
    _checks.distinct_bins(t_max, _dtype_of_times(x))
    _intensities(x, x_max)
    x = x.detach()
    if x.is_floating_point():
        times = _floor((x_max - x.double()) * t_max / x_max, x.dtype, t_max)
    else:
        if x_max != int(x_max) or t_max != int(t_max):
            raise ValueError(f"x_max and t_max must be whole for integer x, got {x_max!r} and {t_max!r}")
        if x_max * t_max >= 2**63:
            raise ValueError(f"x_max * t_max must be below 2**63 for integer x, got {x_max!r} and {t_max!r}")
        times = (int(x_max) - x.long()) * int(t_max) // int(x_max)
    last = math.ceil(t_max) - 1  # also of an intensity that is lost beside x_max
    return times.clamp(max=last).to(_dtype_of_times(x)).masked_fill(x == 0, math.inf)


def _floor(times: Tensor, dtype: torch.dtype, t_max: float) -> Tensor:
    """The bins of times of intensities of a dtype, whose rounding may have taken one below a whole bin.

    Not at the end of the window, where little intensity would become silence.
    """
    near, lost = times.round(), torch.finfo(dtype).eps * t_max
    rounded = ((near - times).abs() <= min(lost, 1e-3)) & (near < t_max)
    return torch.where(rounded, near, times).floor()


def rank_order(x: Tensor, t_max: float | None = None) -> Tensor:
    """Rank-order code: the strongest feature of a sample spikes first, the next one second, ...

    Equal intensities share the earliest of their ranks; a feature without intensity is silent.

    Args:
        x: intensities >= 0 [batch, *features]; the ranks are those within a sample.
        t_max: if given, rank r of n features becomes floor(r t_max / n), so that every code fits
            the window; if None, the time is the rank.

    Returns:
        Times of the shape of `x`.

    Raises:
        ValueError: NaN or negative intensities, no batch dimension, a `t_max` of more bins than the dtype of
            the times has.

    Source: Thorpe & Gautrais, "Rank order coding", 1998.

    >>> import torch
    >>> rank_order(torch.tensor([[0.2, 0.9, 0.0, 0.2]]))
    tensor([[1., 0., inf, 1.]])
    """
    _intensities(x, math.inf)
    if x.ndim < 2:
        raise ValueError(f"x must have shape [batch, *features], got {list(x.shape)}")
    flat = x.flatten(1)
    negative = -(flat.double() if flat.is_floating_point() else flat.long())  # each holds all its values
    # The rank of a value is the number of greater values, so that ties share it.
    rank = torch.searchsorted(negative.sort(dim=1).values, negative.contiguous()).double()
    if t_max is not None:
        _checks.positive("t_max", t_max)
        _checks.distinct_bins(t_max, _dtype_of_times(x))
        rank = (rank * t_max / max(1, flat.shape[1])).floor()
    return rank.to(_dtype_of_times(x)).masked_fill(flat == 0, math.inf).reshape(x.shape)


def binary(
    x: Tensor, early: float = 0.0, late: float = math.log(6.0), *, at: float = 0.5, bright_early: bool = True
) -> Tensor:
    """Two spike times: one for values above `at`, the other for the rest. Every input spikes.

    Args:
        x: values of any shape.
        early, late: the two times; the defaults are z = e^t = 1 and 6.
        at: threshold; values strictly above it are bright.
        bright_early: whether bright values take the early time or the late one.

    Returns:
        Times of the shape of `x`; its dtype if that is float32 or float64, else the default dtype.

    Raises:
        ValueError: NaN, or times that are negative or not `early` <= `late`.

    Source: Mostafa, "Supervised learning based on temporal coding in spiking neural networks",
    IEEE TNNLS 29(7), 2018.

    >>> import torch
    >>> binary(torch.tensor([0.9, 0.5, 0.0]), 0.0, 2.0)
    tensor([0., 2., 2.])
    """
    if not 0 <= early <= late < math.inf:
        raise ValueError(f"0 <= early <= late must hold and be finite, got {early!r} and {late!r}")
    _no_nan(x)
    bright = x > at
    dtype = _dtype_of_times(x)
    return torch.full_like(x, late, dtype=dtype).masked_fill(bright == bright_early, early)


def _dtype_of_times(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype in _checks.DTYPES else torch.get_default_dtype()


def _no_nan(x: Tensor) -> None:
    if x.is_floating_point() and _checks.has_nan(x):
        raise ValueError("x must not hold NaN")


def _intensities(x: Tensor, x_max: float) -> None:
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"x must hold real or whole numbers, got {x.dtype}")
    _no_nan(x)
    if x.numel() == 0 or not _checks.has_values(x):
        return
    low, high = (extreme.item() for extreme in (x if x.is_floating_point() else x.long()).aminmax())
    if low < 0 or high > x_max:
        raise ValueError(f"x must lie in 0 ... {x_max}, got values in {low} ... {high}")
