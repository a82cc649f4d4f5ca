"""Connections: spike times in, first-spike times out."""

from __future__ import annotations

import math
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..kernels.operators import select
from ..neurons import IF

GRADIENTS = ("latency",)


@overload
def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    neuron: IF,
    *,
    t_max: float,
    bias: Tensor | None = None,
    gradient: str = "latency",
    silent_gradient: bool = False,
    return_potential: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...
@overload
def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    neuron: IF,
    *,
    t_max: float,
    bias: Tensor | None = None,
    gradient: str = "latency",
    silent_gradient: bool = False,
    return_potential: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    neuron: IF,
    *,
    t_max: float,
    bias: Tensor | None = None,
    gradient: str = "latency",
    silent_gradient: bool = False,
    return_potential: bool,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...
def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    neuron: IF,
    *,
    t_max: float,
    bias: Tensor | None = None,
    gradient: str = "latency",
    silent_gradient: bool = False,
    return_potential: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """First-spike times of fully connected neurons that fire at most once.

    Args:
        times: input spike times [*, in] in bins, float32 or float64, `inf` = silent. Inputs at
            `t_max` or later are outside the window and count as silent.
        weight: [out, in], of the dtype and on the device of `times`.
        neuron: what happens between the input spikes and the output spike.
        t_max: length of the window; a spike that would come at `t_max` or later, delay included,
            is silence.
        bias: [out], a constant current added to the potential in every bin, or None. Spike times
            have to be whole bins with it.
        gradient: "latency", dt/dV = -1 and dV/dw = 1 for every input spike that was counted when
            the neuron fired (Kheradpisheh & Masquelier 2020).
        silent_gradient: whether a gradient that arrives at a silent neuron changes its weights,
            all inputs in the window being causal (S4NN's released code), or is dropped.
        return_potential: also return the potential [*, out] at the crossing of a neuron that
            fired, at the end of the window for a silent one.
        backend: "cpu" (numba), "reference" (plain PyTorch, any device), None for the fastest.

    Returns:
        Times [*, out], or (times, potential).

    Raises:
        TypeError: a dtype other than float32 or float64, or dtypes that differ.
        ValueError: shapes or devices that do not fit, NaN or negative times, NaN potentials, a
            `t_max` that is not positive.

    Hand-checked: weights 60 and 50, threshold 100, one bin of delay.

    >>> import torch, ssnn_plugin
    >>> neuron = ssnn_plugin.IF(threshold=100.0, delay=1)
    >>> weight = torch.tensor([[60.0, 50.0]])
    >>> first_spike_linear(torch.tensor([[3.0, 7.0], [3.0, 3.0]]), weight, neuron, t_max=256)
    tensor([[8.],
            [4.]])
    """
    _check_connection(times, weight, bias, neuron, t_max)
    _checks.one_of("gradient", gradient, GRADIENTS)
    kernels = select(times.device, backend)
    flat = times.reshape(math.prod(times.shape[:-1]), times.shape[-1])
    spikes, potential = kernels.if_linear(
        flat,
        weight,
        bias,
        float(neuron.threshold),
        float(neuron.delay),
        _rounded(t_max, times),
        silent_gradient,
    )
    shape = (*times.shape[:-1], weight.shape[0])
    return (spikes.reshape(shape), potential.reshape(shape)) if return_potential else spikes.reshape(shape)


def _rounded(t_max: float, times: Tensor) -> float:
    """The end of the window as the dtype of the times can hold it, so that every kernel compares alike."""
    return float(np.float32(t_max)) if times.dtype == torch.float32 else float(t_max)


def _check_connection(times: Tensor, weight: Tensor, bias: Tensor | None, neuron: IF, t_max: float) -> None:
    if not isinstance(neuron, IF):
        raise TypeError(f"neuron must be an ssnn_plugin.IF, got {neuron!r}")
    _checks.positive("t_max", t_max)
    _checks.floating("times", times)
    if times.ndim == 0 or weight.ndim != 2 or times.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"times must have shape [*, in] for a weight of shape [out, in], "
            f"got {list(times.shape)} and {list(weight.shape)}"
        )
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape [{weight.shape[0]}], got {list(bias.shape)}")
        if t_max != int(t_max):
            raise ValueError(f"t_max must be a whole number of bins with a bias, got {t_max!r}")
        _checks.whole_bins("times", times)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != times.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, times are {times.dtype}: they must be the same")
        if tensor.device != times.device:
            raise ValueError(f"{name} is on {tensor.device}, times are on {times.device}")
