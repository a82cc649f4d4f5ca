"""The kernels as registered `torch.library` operators: one set per backend, interchangeable.

For each connection (`linear`, `conv2d`) there are three operators:

`first_spike(times, weight, bias, *geometry, threshold, beta, delay, t_max, silent) -> (spikes, potential)`
    `times` [batch, in], `weight` [out, in], `bias` [out] or None. `spikes` [batch, out] are the
    times of the output spikes, `delay` included, `inf` where there is no crossing or where the
    spike would reach `t_max`. `potential` [batch, out] is V at the crossing, and V at the end of
    the window (every input before `t_max` counted) for a silent neuron. `silent` says whether a
    gradient that arrives at a silent neuron counts.
`weight_grad(grad, spikes, times, *geometry, delay, t_max, silent)` and
`input_grad(grad, spikes, times, weight, *geometry, delay, t_max, silent)`
    The two halves of its backward pass; `grad` is dL/dt of the output spikes.

A convolution has times [batch, in, height, width], already padded with silence, weights
[out, in / groups, *kernel_size], outputs [batch, locations, out] and the geometry `stride`,
`dilation`, `groups` (`weight_grad` also needs the `kernel_size`). A linear layer has none.

The autograd rule of `spikes` is dt/dV = -1 (Kheradpisheh & Masquelier 2020). Every counted input
spike stands for +w in V, whatever its age, and an input spike that comes one bin earlier for +w too;
`potential` is differentiated alike, which is exact in the weights unless there is a leak.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]

GEOMETRY = {"linear": "", "conv2d": "int[] stride, int[] dilation, int groups, "}
NEURON = "float threshold, float beta, float delay, float t_max, bool silent"
CAUSALITY = "float delay, float t_max, bool silent"


class Connection(NamedTuple):
    """The operators of one connection."""

    first_spike: CustomOpDef
    weight_grad: CustomOpDef
    input_grad: CustomOpDef


class Backend(NamedTuple):
    """One implementation of the kernels."""

    linear: Connection
    conv2d: Connection


def _register(backend: str, device_types: str | None) -> Backend:
    def kernel(name: str) -> Callable[..., Any]:
        """The kernel's module is imported when it first runs: importing numba is slow."""
        return getattr(importlib.import_module(f"{__package__}.{backend}"), name)  # type: ignore[no-any-return]

    def define(name: str, function: Callable[..., Any], schema: str) -> Any:
        return torch.library.custom_op(
            f"ssnn_plugin::{name}_{backend}",
            function,
            mutates_args=(),
            device_types=device_types,
            schema=schema,
        )

    def connection(name: str, grad_prefix: str, kernel_size: str) -> Connection:
        def first_spike(*args: Any) -> tuple[Tensor, Tensor]:
            *tensors_and_neuron, _silent = args
            return kernel(f"first_spike_{name}")(*tensors_and_neuron)  # type: ignore[no-any-return]

        def weight_grad(*args: Any) -> Tensor:
            return kernel(f"{grad_prefix}_weight_grad")(*args)  # type: ignore[no-any-return]

        def input_grad(*args: Any) -> Tensor:
            return kernel(f"{grad_prefix}_input_grad")(*args)  # type: ignore[no-any-return]

        geometry = GEOMETRY[name]
        given = "Tensor grad, Tensor spikes, Tensor times, "
        return Connection(
            define(
                f"first_spike_{name}",
                first_spike,
                f"(Tensor times, Tensor weight, Tensor? bias, {geometry}{NEURON}) -> (Tensor, Tensor)",
            ),
            define(
                f"{grad_prefix}_weight_grad",
                weight_grad,
                f"({given}{kernel_size}{geometry}{CAUSALITY}) -> Tensor",
            ),
            define(
                f"{grad_prefix}_input_grad",
                input_grad,
                f"({given}Tensor weight, {geometry}{CAUSALITY}) -> Tensor",
            ),
        )

    linear = connection("linear", "causal", "")
    conv2d = connection("conv2d", "causal_conv2d", "int[] kernel_size, ")

    @linear.first_spike.register_fake
    def _(times, weight, bias, *neuron):  # type: ignore[no-untyped-def]
        shape = times.shape[0], weight.shape[0]
        return times.new_empty(shape), times.new_empty(shape)

    @linear.weight_grad.register_fake
    def _(grad, spikes, times, *causality):  # type: ignore[no-untyped-def]
        return grad.new_empty(grad.shape[1], times.shape[1])

    @conv2d.first_spike.register_fake
    def _(times, weight, bias, stride, dilation, groups, *neuron):  # type: ignore[no-untyped-def]
        height, width = output_size(times.shape[2:], weight.shape[2:], stride, dilation)
        shape = times.shape[0], height * width, weight.shape[0]
        return times.new_empty(shape), times.new_empty(shape)

    @conv2d.weight_grad.register_fake
    def _(grad, spikes, times, kernel_size, stride, dilation, groups, *causality):  # type: ignore[no-untyped-def]
        return grad.new_empty(grad.shape[2], times.shape[1] // groups, *kernel_size)

    def like_times(grad, spikes, times, *rest):  # type: ignore[no-untyped-def]
        return torch.empty_like(times, memory_format=torch.contiguous_format)

    for operators in (linear, conv2d):
        operators.input_grad.register_fake(like_times)
        _attach_latency_rule(operators)
    return Backend(linear, conv2d)


def output_size(
    size: torch.Size | list[int], kernel_size: torch.Size | list[int], stride: list[int], dilation: list[int]
) -> list[int]:
    """Height and width of the output of a convolution without padding."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    return [(n - span) // s + 1 for n, span, s in zip(size, spans, stride, strict=True)]


def _attach_latency_rule(operators: Connection) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        times, weight, _, *geometry, _, _, ctx.delay, ctx.t_max, ctx.silent = inputs
        ctx.geometry = tuple(geometry)
        ctx.save_for_backward(times, weight, output[0])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad_spikes: Tensor | None, grad_potential: Tensor | None) -> tuple[Any, ...]:
        times, weight, spikes = ctx.saved_tensors
        grad, silent = _join_gradients(spikes, grad_spikes, grad_potential, ctx.silent)
        rest = *ctx.geometry, ctx.delay, ctx.t_max, silent
        grad_times = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_times = operators.input_grad(grad, spikes, times, weight, *rest)
        if ctx.needs_input_grad[1]:
            kernel_size = (list(weight.shape[2:]),) if weight.ndim > 2 else ()
            grad_weight = operators.weight_grad(grad, spikes, times, *kernel_size, *rest)
        if ctx.needs_input_grad[2]:
            counted = silent | spikes.isfinite()
            bins = torch.where(spikes.isfinite(), spikes - ctx.delay + 1, ctx.t_max)
            grad_bias = -(grad * bins * counted).flatten(0, -2).sum(0)
        return grad_times, grad_weight, grad_bias, *[None] * (len(ctx.geometry) + 5)

    operators.first_spike.register_autograd(backward, setup_context=setup_context)


def _join_gradients(
    spikes: Tensor, grad_spikes: Tensor | None, grad_potential: Tensor | None, silent: bool
) -> tuple[Tensor, bool]:
    """One error per output: dL/dt - dL/dV, since dt/dV = -1; V of a silent neuron always counts."""
    if grad_spikes is None:
        grad_spikes = torch.zeros_like(spikes)
    if grad_potential is None:
        return grad_spikes, silent
    if not silent:
        grad_spikes = grad_spikes.masked_fill(spikes.isinf(), 0)
    return grad_spikes - grad_potential, True


BACKENDS = {"reference": _register("reference", None), "cpu": _register("cpu", "cpu")}


def select(device: torch.device, backend: str | None) -> Backend:
    """The backend that was asked for, or the fastest one of the device."""
    if backend is None:
        backend = "cpu" if device.type == "cpu" else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {sorted(BACKENDS)} or None, got {backend!r}")
    if backend == "cpu" and device.type not in ("cpu", "meta"):
        raise ValueError(f"backend 'cpu' takes tensors on the CPU, times are on {device}")
    return BACKENDS[backend]
