"""Shortcuts past a layer, on spike times."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from .. import _checks
from .connection import Size2d, check_padding, pair


def earliest_spike(*times: Tensor) -> Tensor:
    """The earliest of several spikes, element by element; silence if there is none.

    The gradient goes to the earliest; of spikes that tie, or if all are silent, to the first argument.

    Args:
        times: one or more tensors of spike times, all of one shape, `inf` = silent.

    Raises:
        TypeError, ValueError: none given, shapes or dtypes that differ, NaN or negative times.

    >>> import torch
    >>> earliest_spike(torch.tensor([3.0, torch.inf, 5.0]), torch.tensor([4.0, 2.0, torch.inf]))
    tensor([3., 2., 5.])
    """
    if not times:
        raise ValueError("times must hold at least one tensor, got none")
    for number, tensor in enumerate(times):
        _checks.floating(f"times[{number}]", tensor)
        if tensor.shape != times[0].shape or tensor.dtype != times[0].dtype:
            raise ValueError(
                f"times[{number}] must be {times[0].dtype} of shape {list(times[0].shape)}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
        _checks.spike_times(f"times[{number}]", tensor)
    return reduce(lambda first, second: torch.where(first <= second, first, second), times)


def add_shortcut_linear(
    times: Tensor, weight: Tensor, shortcut: Tensor, gain: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Inputs and weights with which neurons get the shortcut's spikes, one each, as further current.

    Args:
        times: [*, in], what the weights see.
        weight: [out, in].
        shortcut: [*, out], the spikes that are added.
        gain: weight of a shortcut spike.

    Returns:
        (times, weight) of shapes [*, in + out] and [out, in + out], for `first_spike_linear`.

    Raises:
        ValueError: shapes that do not fit, a gain out of range.

    >>> import torch
    >>> weight, shortcut = torch.tensor([[2.0], [4.0]]), torch.tensor([[5.0, 6.0]])
    >>> add_shortcut_linear(torch.tensor([[3.0]]), weight, shortcut)
    (tensor([[3., 5., 6.]]), tensor([[2., 1., 0.],
            [4., 0., 1.]]))
    """
    _checks.positive("gain", gain)
    if times.ndim == 0 or weight.ndim != 2 or times.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"times must have shape [*, in] for a weight of shape [out, in], "
            f"got {list(times.shape)} and {list(weight.shape)}"
        )
    expected = [*times.shape[:-1], len(weight)]
    if list(shortcut.shape) != expected:
        raise ValueError(f"shortcut must have shape {expected}, one per neuron, got {list(shortcut.shape)}")
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return torch.cat([times, shortcut], dim=-1), torch.cat([weight, gain * identity], dim=1)


def add_shortcut_conv2d(
    times: Tensor,
    weight: Tensor,
    shortcut: Tensor,
    gain: float = 1.0,
    *,
    padding: Size2d | str = 0,
    dilation: Size2d = 1,
) -> tuple[Tensor, Tensor]:
    """As `add_shortcut_linear`, for a convolution of stride 1 whose output is as large as its input.

    Args:
        times: [batch, in, height, width].
        weight: [out, in, *kernel_size], without groups.
        shortcut: [batch, out, height, width].
        gain: weight of a shortcut spike.
        padding, dilation: of the convolution; the padding has to keep height and width.

    Returns:
        (times, weight) of shapes [batch, in + out, height, width] and [out, in + out, *kernel_size],
        for `first_spike_conv2d`.

    Raises:
        ValueError: a padding that does not keep the size, shapes that do not fit, a gain out of range.

    >>> import torch
    >>> times, shortcut = torch.full((1, 1, 4, 4), 2.0), torch.full((1, 1, 4, 4), 3.0)
    >>> _, weight = add_shortcut_conv2d(times, torch.zeros(1, 1, 3, 3), shortcut, 0.5, padding=1)
    >>> weight[0, 1]
    tensor([[0.0000, 0.0000, 0.0000],
            [0.0000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    _checks.positive("gain", gain)
    if times.ndim != 4 or weight.ndim != 4 or times.shape[1] != weight.shape[1]:
        raise ValueError(
            f"times must have shape [batch, in, height, width] for a weight of shape "
            f"[out, in, height, width], got {list(times.shape)} and {list(weight.shape)}"
        )
    out, kernel_size = len(weight), weight.shape[2:]
    row, column = (
        _centre(k, d, edge, padding)
        for k, d, edge in zip(kernel_size, pair("dilation", dilation, 1), _edges(padding), strict=True)
    )
    expected = [len(times), out, *times.shape[2:]]
    if list(shortcut.shape) != expected:
        raise ValueError(f"shortcut must have shape {expected}, one per neuron, got {list(shortcut.shape)}")
    dirac = weight.new_zeros(out, out, *kernel_size)
    dirac[:, :, row, column] = gain * torch.eye(out, dtype=weight.dtype, device=weight.device)
    return torch.cat([times, shortcut], dim=1), torch.cat([weight, dirac], dim=1)


def _edges(padding: Size2d | str) -> list[int] | list[None]:
    """Padding per dimension, None for "same"."""
    if not isinstance(padding, str):
        return pair("padding", padding, 0)
    check_padding(padding, [1, 1])
    return [None, None] if padding == "same" else [0, 0]


def _centre(kernel: int, dilation: int, edge: int | None, padding: Size2d | str) -> int:
    """Which tap of a kernel sees the position that an output stands at."""
    span = dilation * (kernel - 1)
    if edge is None:
        edge = span // 2
    elif 2 * edge != span:
        raise ValueError(
            f"padding must keep the size of the input for a shortcut, as 'same' does, got {padding!r} "
            f"with a kernel of {kernel} and a dilation of {dilation}"
        )
    if edge % dilation:
        raise ValueError(
            f"weight's kernel must have a tap at its centre for a shortcut, "
            f"got a kernel of {kernel} with a dilation of {dilation}"
        )
    return edge // dilation
