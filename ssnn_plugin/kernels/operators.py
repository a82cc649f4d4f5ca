"""The kernels as registered `torch.library` operators: one set per backend, interchangeable.

`if_linear(times, weight, bias, threshold, delay, t_max, silent) -> (spikes, potential)`
    `times` [batch, in], `weight` [out, in], `bias` [out] or None. `spikes` [batch, out] are the
    times of the output spikes, `delay` included, `inf` where there is no crossing or where the
    spike would reach `t_max`. `potential` [batch, out] is V at the crossing, and V at the end of
    the window (every input before `t_max` counted) for a silent neuron. `silent` says whether a
    gradient that arrives at a silent neuron counts.
`causal_weight_grad(grad, spikes, times, delay, t_max, silent)` and
`causal_input_grad(grad, spikes, times, weight, delay, t_max, silent)`
    The two halves of its backward pass; `grad` is dL/dt of the output spikes.

The autograd rule of `spikes` is dt/dV = -1 (Kheradpisheh & Masquelier 2020), that of `potential`
is exact in the weights; both treat an input spike that comes one bin earlier as +w.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]

FORWARD = (
    "(Tensor times, Tensor weight, Tensor? bias, float threshold, float delay, float t_max, bool silent)"
    " -> (Tensor, Tensor)"
)
WEIGHT_GRAD = "(Tensor grad, Tensor spikes, Tensor times, float delay, float t_max, bool silent) -> Tensor"
INPUT_GRAD = (
    "(Tensor grad, Tensor spikes, Tensor times, Tensor weight, float delay, float t_max, bool silent)"
    " -> Tensor"
)


class Backend(NamedTuple):
    """One implementation of the kernels."""

    if_linear: CustomOpDef
    causal_weight_grad: CustomOpDef
    causal_input_grad: CustomOpDef


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

    def forward(
        times: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        threshold: float,
        delay: float,
        t_max: float,
        silent: bool,
    ) -> tuple[Tensor, Tensor]:
        return kernel("first_spike_if")(times, weight, bias, threshold, delay, t_max)  # type: ignore[no-any-return]

    def weight_grad(*args: Any) -> Tensor:
        return kernel("causal_weight_grad")(*args)  # type: ignore[no-any-return]

    def input_grad(*args: Any) -> Tensor:
        return kernel("causal_input_grad")(*args)  # type: ignore[no-any-return]

    operators = Backend(
        define("if_linear", forward, FORWARD),
        define("causal_weight_grad", weight_grad, WEIGHT_GRAD),
        define("causal_input_grad", input_grad, INPUT_GRAD),
    )

    @operators.if_linear.register_fake
    def _(times, weight, bias, threshold, delay, t_max, silent):  # type: ignore[no-untyped-def]
        shape = times.shape[0], weight.shape[0]
        return times.new_empty(shape), times.new_empty(shape)

    @operators.causal_weight_grad.register_fake
    def _(grad, spikes, times, delay, t_max, silent):  # type: ignore[no-untyped-def]
        return grad.new_empty(grad.shape[1], times.shape[1])

    @operators.causal_input_grad.register_fake
    def _(grad, spikes, times, weight, delay, t_max, silent):  # type: ignore[no-untyped-def]
        return torch.empty_like(times, memory_format=torch.contiguous_format)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        times, weight, _, _, ctx.delay, ctx.t_max, ctx.silent = inputs
        ctx.save_for_backward(times, weight, output[0])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad_spikes: Tensor | None, grad_potential: Tensor | None) -> tuple[Any, ...]:
        times, weight, spikes = ctx.saved_tensors
        grad, silent = _join_gradients(spikes, grad_spikes, grad_potential, ctx.silent)
        rest = ctx.delay, ctx.t_max, silent
        grad_times = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_times = operators.causal_input_grad(grad, spikes, times, weight, *rest)
        if ctx.needs_input_grad[1]:
            grad_weight = operators.causal_weight_grad(grad, spikes, times, *rest)
        if ctx.needs_input_grad[2]:
            counted = silent | spikes.isfinite()
            bins = torch.where(spikes.isfinite(), spikes - ctx.delay + 1, ctx.t_max)
            grad_bias = -(grad * bins * counted).sum(0)
        return grad_times, grad_weight, grad_bias, None, None, None, None

    operators.if_linear.register_autograd(backward, setup_context=setup_context)
    return operators


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
