"""The kernels as registered `torch.library` operators, which a backend carries out.

Shapes are those of `geometry.Geometry`; a convolution's times are already padded with silence.

Every neuron that they run is separable: V(t) = sum_i w_i K(t - t_i) over the inputs before t, and
K(t - s) = p(t) a(s) - q(t) b(s), so that all that the backward pass takes are these four factors and
until when an input of an output counts. A step response has p = a = 1, no q and no b.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import BACKENDS, Factors
from .geometry import Geometry

#: the neurons by their `kind`, made from their numbers
NEURONS: dict[str, Callable[..., Any]] = {}


def _described(neuron: str, numbers: Sequence[float]) -> Any:
    """A saved program may name a neuron whose module nothing has imported yet."""
    if neuron not in NEURONS:
        importlib.import_module(neuron.partition(":")[0])
    return NEURONS[neuron](*numbers)


@torch.library.custom_op("ssnn_plugin::first_spike", mutates_args=())
def first_spike(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    neuron: str,
    numbers: Sequence[float],
    t_max: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """When V crosses the threshold, V, and dV/dt: each [batch, out], or [batch, locations, out].

    The crossing is `inf` where there is none before `t_max`, the neuron's delay included. V is that at
    the crossing, or at the end of the window (every input before `t_max` counted) for a silent neuron.
    The slope is 0 without a crossing; of a step response there is none, and the tensor is empty.
    """
    described, geometry = _described(neuron, numbers), Geometry(stride, dilation, groups)
    return BACKENDS[backend].kernels.first_spike(times, weight, bias, geometry, described, t_max)  # type: ignore[no-any-return]


@first_spike.register_fake
def _(times, weight, bias, stride, dilation, groups, neuron, numbers, *rest):  # type: ignore[no-untyped-def]
    shape = Geometry(stride, dilation, groups).output_shape(times, weight)
    slope = (0,) if _described(neuron, numbers).jumps else shape
    return times.new_empty(shape), times.new_empty(shape), times.new_empty(slope)


@torch.library.custom_op("ssnn_plugin::weight_grad", mutates_args=())
def weight_grad(
    p: Tensor,
    q: Tensor | None,
    until: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    times: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str,
) -> Tensor:
    """-sum_n (p[n, j] a[n, i] - q[n, j] b[n, i]) [input i spiked before until[n, j]], shaped as the weights.

    Errors are in the factors `p` and `q` of the outputs; where there is none, both are 0 or
    `until` is NaN. `a` and `b` are those of the inputs.
    """
    factors, geometry = Factors(p, q, until, a, b), Geometry(stride, dilation, groups)
    grad: Tensor = BACKENDS[backend].kernels.weight_grad(factors, times, kernel_size, geometry)
    return grad.contiguous()


@weight_grad.register_fake
def _(p, q, until, a, b, times, kernel_size, stride, dilation, groups, backend):  # type: ignore[no-untyped-def]
    return p.new_empty(Geometry(stride, dilation, groups).weight_shape(times, p.shape[-1], kernel_size))


@torch.library.custom_op("ssnn_plugin::input_grad", mutates_args=())
def input_grad(
    p: Tensor,
    q: Tensor | None,
    until: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    times: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str,
) -> Tensor:
    """sum_j w[j, i] (p[n, j] a[n, i] - q[n, j] b[n, i]) [input i spiked before until[n, j]], as the times."""
    factors, geometry = Factors(p, q, until, a, b), Geometry(stride, dilation, groups)
    grad: Tensor = BACKENDS[backend].kernels.input_grad(factors, times, weight, geometry)
    like = torch.empty_like(times, device="meta")
    return grad if grad.stride() == like.stride() else torch.empty_like(times).copy_(grad)


@input_grad.register_fake
def _(p, q, until, a, b, times, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(times)


def plain(times: Tensor) -> bool:
    """Whether a kernel may be called by itself: no graph is recorded, mapped or traced."""
    return (
        type(times) in (Tensor, torch.nn.Parameter)
        and times.device.type != "meta"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )
