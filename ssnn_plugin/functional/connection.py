"""Connections: spike times in, first-spike times out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..engine import How, Synapses
from ..kernels.geometry import Geometry, output_size
from ..neurons import Neuron
from ..neurons.base import SeparableNeuron
from ..rules import RULES, Rule, rule_of

Size2d: TypeAlias = "int | tuple[int, ...] | list[int]"


@overload
def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    neuron: Neuron,
    *,
    t_max: float,
    bias: Tensor | None = None,
    gradient: str | Rule | None = None,
    silent_gradient: bool = False,
    return_potential: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...
@overload
def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    neuron: Neuron,
    *,
    t_max: float,
    bias: Tensor | None = None,
    gradient: str | Rule | None = None,
    silent_gradient: bool = False,
    return_potential: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    neuron: Neuron,
    *,
    t_max: float,
    bias: Tensor | None = None,
    gradient: str | Rule | None = None,
    silent_gradient: bool = False,
    return_potential: bool,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...
def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    neuron: Neuron,
    *,
    t_max: float,
    bias: Tensor | None = None,
    gradient: str | Rule | None = None,
    silent_gradient: bool = False,
    return_potential: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """First-spike times of fully connected neurons that fire at most once.

    Args:
        times: input spike times [*, in], float32 or float64, `inf` = silent; in bins for `IF`, in the
            units of their time constant for the neurons in continuous time. Inputs at `t_max` or later
            are outside the window and count as silent.
        weight: [out, in], of the dtype and on the device of `times`.
        neuron: what happens between the input spikes and the output spike: `IF`, or in continuous time
            `ReLPSP`, `WindowedRamp`, `ExpPSP`, `AlphaPSP`, `LIF` or a `CurrentNeuron` of your own.
            Thresholds, leaks and time constants may be tensors [out] of the dtype of the weights, one
            value per neuron, and get a gradient if they ask for one.
        t_max: length of the window; a spike that would come at `t_max` or later, delay included,
            is silence.
        bias: [out] or None. For `IF` a constant current added to the potential in every bin; with it,
            or with a leak (`neuron.beta` < 1), spike times and `t_max` have to be whole bins. For the
            others the weight of a spike at time 0, but for `WindowedRamp` an addition to V.
        gradient: a rule of `ssnn_plugin.rules`, its short name, or None for the neuron's own. `IF` has no
            slope at its crossing, and a choice of rules, all with dV/dw = 1 for every input spike that
            was counted when the neuron fired:
            "latency", dt/dV = -1 (Kheradpisheh & Masquelier 2020);
            "surrogate", dt/dV minus the derivative of an arctan at the firing time's V - threshold;
            "local_slope", dt/dV minus the inverse of a slope of V measured around the crossing, within
            4 bins; `rules.LocalSlope(reach)` takes others.
            The others have "exact", by the implicit function theorem.
        silent_gradient: whether a gradient that arrives at a silent `IF` changes its weights, all
            inputs in the window being causal (S4NN's released code), or is dropped.
        return_potential: also return the potential [*, out] at the crossing of a neuron that
            fired, at the end of the window for a silent one.
        backend: "cpu" (numba), "triton" (CUDA), "reference" (plain PyTorch, any device), None for the fastest
            that runs the neuron; leaks and time constants per neuron are plain PyTorch.

    Returns:
        Times [*, out], or (times, potential).

    Raises:
        TypeError: a dtype other than float32 or float64, or dtypes that differ.
        ValueError: shapes or devices that do not fit, NaN or negative times, NaN potentials, a
            `t_max` that is not positive or of more than 80 time constants, a rule or backend that does
            not fit the neuron.

    Hand-checked: weights 60 and 50, threshold 100, one bin of delay.

    >>> import torch, ssnn_plugin
    >>> neuron = ssnn_plugin.IF(threshold=100.0, delay=1)
    >>> weight = torch.tensor([[60.0, 50.0]])
    >>> first_spike_linear(torch.tensor([[3.0, 7.0], [3.0, 3.0]]), weight, neuron, t_max=256)
    tensor([[8.],
            [4.]])
    """
    how = how_to_fire(neuron, gradient, silent_gradient, t_max, bias is not None, backend)
    _check_tensors(times, weight, bias, neuron, t_max, how.rule)
    if times.ndim == 0 or weight.ndim != 2 or times.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"times must have shape [*, in] for a weight of shape [out, in], "
            f"got {list(times.shape)} and {list(weight.shape)}"
        )
    flat = times.reshape(math.prod(times.shape[:-1]), times.shape[-1])
    spikes, potential = neuron.fire(flat, Synapses(weight, bias), t_max, how)
    shape = *times.shape[:-1], weight.shape[0]
    return (spikes.reshape(shape), potential.reshape(shape)) if return_potential else spikes.reshape(shape)


@overload
def first_spike_conv2d(
    times: Tensor,
    weight: Tensor,
    neuron: Neuron,
    *,
    t_max: float,
    bias: Tensor | None = None,
    stride: Size2d = 1,
    padding: Size2d | str = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    gradient: str | Rule | None = None,
    silent_gradient: bool = False,
    return_potential: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...
@overload
def first_spike_conv2d(
    times: Tensor,
    weight: Tensor,
    neuron: Neuron,
    *,
    t_max: float,
    bias: Tensor | None = None,
    stride: Size2d = 1,
    padding: Size2d | str = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    gradient: str | Rule | None = None,
    silent_gradient: bool = False,
    return_potential: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def first_spike_conv2d(
    times: Tensor,
    weight: Tensor,
    neuron: Neuron,
    *,
    t_max: float,
    bias: Tensor | None = None,
    stride: Size2d = 1,
    padding: Size2d | str = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    gradient: str | Rule | None = None,
    silent_gradient: bool = False,
    return_potential: bool,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...
def first_spike_conv2d(
    times: Tensor,
    weight: Tensor,
    neuron: Neuron,
    *,
    t_max: float,
    bias: Tensor | None = None,
    stride: Size2d = 1,
    padding: Size2d | str = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    gradient: str | Rule | None = None,
    silent_gradient: bool = False,
    return_potential: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """First-spike times of convolutional neurons that fire at most once.

    Args:
        times: input spike times [batch, in, height, width], as for `first_spike_linear`.
        weight: [out, in / groups, *kernel_size].
        neuron, t_max, gradient, silent_gradient, backend: as for `first_spike_linear`.
        bias: [out] or None, as for `first_spike_linear`.
        stride, dilation, groups: as `torch.nn.functional.conv2d`.
        padding: silent inputs around the border; a number, a pair, "same" or "valid".
        return_potential: also return the potential, shaped as the times.

    Returns:
        Times [batch, out, height_out, width_out], or (times, potential).

    Raises:
        TypeError, ValueError: as `first_spike_linear`; a kernel that does not fit the input.

    A spike in a corner, seen through a kernel of ones, drives the outputs around it.

    >>> import torch
    >>> from ssnn_plugin import IF
    >>> times = torch.full((1, 1, 3, 3), torch.inf)
    >>> times[0, 0, 0, 0] = 4
    >>> first_spike_conv2d(times, torch.ones(1, 1, 2, 2), IF(0.5), t_max=8, padding="same")
    tensor([[[[4., inf, inf],
              [inf, inf, inf],
              [inf, inf, inf]]]])
    """
    how = how_to_fire(neuron, gradient, silent_gradient, t_max, bias is not None, backend)
    _check_tensors(times, weight, bias, neuron, t_max, how.rule)
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    _checks.whole_and_positive("groups", groups)
    if times.ndim != 4 or weight.ndim != 4 or times.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"times must have shape [batch, in, height, width] for a weight of shape "
            f"[out, in / groups, height, width] and groups = {groups}, "
            f"got {list(times.shape)} and {list(weight.shape)}"
        )
    if weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} output channels, got {groups}")
    if min(weight.shape[2:]) < 1:
        raise ValueError(f"weight's kernel must be at least 1 x 1, got {list(weight.shape[2:])}")
    padded = surrounded(times, borders(padding, weight.shape[2:], strides, dilations))
    height, width = output_size(padded.shape[2:], weight.shape[2:], strides, dilations)
    if min(height, width) < 1:
        raise ValueError(
            f"weight's kernel {list(weight.shape[2:])} with dilation {dilations} must fit the padded input, "
            f"got {list(padded.shape[2:])}"
        )
    synapses = Synapses(weight, bias, Geometry(strides, dilations, groups))
    outputs = neuron.fire(padded, synapses, t_max, how)
    shape = len(times), len(weight), height, width
    spikes, potential = (output.transpose(1, 2).reshape(shape) for output in outputs)
    return (spikes, potential) if return_potential else spikes


def pair(name: str, value: Size2d, least: int) -> list[int]:
    """Height and width from a number or a pair of them."""
    values = list(value) if isinstance(value, tuple | list) else [value] * 2
    whole = all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not whole or min(values) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, or two of them, got {value!r}")
    return [int(v) for v in values]


def pool_window(
    kernel_size: Size2d, stride: Size2d | None, padding: Size2d
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel, stride, which defaults to it, and padding of a pool, each as a pair."""
    kernel = tuple(pair("kernel_size", kernel_size, 1))
    step = kernel if stride is None else tuple(pair("stride", stride, 1))
    return kernel, step, tuple(pair("padding", padding, 0))


def check_padding(padding: str, stride: list[int]) -> None:
    """Refuse a word for the padding that does not exist, or does not fit the stride."""
    _checks.one_of("padding", padding, ("same", "valid"))
    if padding == "same" and stride != [1, 1]:
        raise ValueError(f"padding 'same' needs a stride of 1, got {stride}")


def borders(
    padding: Size2d | str, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Silent inputs on the left, right, above and below; of an even kernel's "same" more at the end."""
    if isinstance(padding, str):
        check_padding(padding, list(stride))
        spans = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel_size, dilation, strict=True)]
        (top, bottom), (left, right) = ((span // 2, span - span // 2) for span in spans)
    else:
        top, left = bottom, right = pair("padding", padding, 0)
    return left, right, top, bottom


def surrounded(times: Tensor, border: tuple[int, int, int, int]) -> Tensor:
    """Times [batch, in, height, width] with silence around them."""
    return torch.nn.functional.pad(times, border, value=math.inf) if any(border) else times


def how_to_fire(
    neuron: Neuron,
    gradient: str | Rule | None,
    silent_gradient: bool,
    t_max: float,
    bias: bool,
    backend: str | None = None,
) -> How:
    """Refuse options that do not go together."""
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be one of ssnn_plugin's neurons, such as IF(), got {neuron!r}")
    neuron.check(t_max)
    rule = rule_of(gradient, neuron)
    if not isinstance(neuron, SeparableNeuron) and rule != RULES["exact"]:
        raise ValueError(
            f"gradient must be 'exact' for {neuron!r}, which autograd differentiates, got {rule}"
        )
    rule.check(neuron, bias)
    if silent_gradient and not neuron.jumps:
        raise ValueError(f"silent_gradient has no meaning for the exact gradient of {neuron!r}: use False")
    return How(rule, silent_gradient, backend)


def _check_tensors(
    times: Tensor, weight: Tensor, bias: Tensor | None, neuron: Neuron, t_max: float, rule: Rule
) -> None:
    _checks.floating("times", times)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {list(weight.shape[:1])}, got {list(bias.shape)}")
    neuron.check_parameters(weight)
    neuron.check_times(times, t_max, bias is not None)
    rule.check_times(times)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != times.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, times are {times.dtype}: they must be the same")
        if tensor.device != times.device:
            raise ValueError(f"{name} is on {tensor.device}, times are on {times.device}")
