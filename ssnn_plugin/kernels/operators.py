"""The kernels as registered `torch.library` operators: one set per backend, interchangeable.

`if_linear(times, weight, bias, threshold, delay, t_max) -> (fired, potential)`
    `times` [batch, in], `weight` [out, in], `bias` [out] or None. `fired` [batch, out] is the bin
    of the crossing, without `delay`, and `inf` where there is none or where the delayed spike
    would reach `t_max`. `potential` [batch, out] is V at the crossing, and V at the end of the
    window (every input before `t_max` counted) for a silent neuron.
`causal_weight_grad(error, last, times, t_max)` and `causal_input_grad(error, last, times, weight,
t_max)` are the two halves of its backward pass; `error` is dL/dV.

The autograd rule of `fired` is dt/dV = -1 (Kheradpisheh & Masquelier 2020), that of `potential`
is exact in the weights; both treat an input spike that comes one bin earlier as +w.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

FORWARD = (
    "(Tensor times, Tensor weight, Tensor? bias, float threshold, float delay, float t_max)"
    " -> (Tensor, Tensor)"
)
WEIGHT_GRAD = "(Tensor error, Tensor last, Tensor times, float t_max) -> Tensor"
INPUT_GRAD = "(Tensor error, Tensor last, Tensor times, Tensor weight, float t_max) -> Tensor"


class Backend(NamedTuple):
    """One implementation of the kernels."""

    if_linear: Callable[..., tuple[Tensor, Tensor]]
    causal_weight_grad: Callable[..., Tensor]
    causal_input_grad: Callable[..., Tensor]


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
        times: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, delay: float, t_max: float
    ) -> tuple[Tensor, Tensor]:
        return kernel("first_spike_if")(times, weight, bias, threshold, delay, t_max)  # type: ignore[no-any-return]

    def weight_grad(error: Tensor, last: Tensor, times: Tensor, t_max: float) -> Tensor:
        return kernel("causal_weight_grad")(error, last, times, t_max)  # type: ignore[no-any-return]

    def input_grad(error: Tensor, last: Tensor, times: Tensor, weight: Tensor, t_max: float) -> Tensor:
        return kernel("causal_input_grad")(error, last, times, weight, t_max)  # type: ignore[no-any-return]

    operators = Backend(
        define("if_linear", forward, FORWARD),
        define("causal_weight_grad", weight_grad, WEIGHT_GRAD),
        define("causal_input_grad", input_grad, INPUT_GRAD),
    )

    @operators.if_linear.register_fake
    def _(times, weight, bias, threshold, delay, t_max):  # type: ignore[no-untyped-def]
        shape = times.shape[0], weight.shape[0]
        return times.new_empty(shape), times.new_empty(shape)

    @operators.causal_weight_grad.register_fake
    def _(error, last, times, t_max):  # type: ignore[no-untyped-def]
        return error.new_empty(error.shape[1], times.shape[1])

    @operators.causal_input_grad.register_fake
    def _(error, last, times, weight, t_max):  # type: ignore[no-untyped-def]
        return torch.empty_like(times, memory_format=torch.contiguous_format)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        times, weight, bias, _, _, ctx.t_max = inputs
        ctx.save_for_backward(times, weight, output[0])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad_fired: Tensor | None, grad_potential: Tensor | None) -> tuple[Any, ...]:
        times, weight, fired = ctx.saved_tensors
        error = _potential_error(fired, grad_fired, grad_potential)
        grad_times = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_times = operators.causal_input_grad(error, fired, times, weight, ctx.t_max)
        if ctx.needs_input_grad[1]:
            grad_weight = operators.causal_weight_grad(error, fired, times, ctx.t_max)
        if ctx.needs_input_grad[2]:
            steps = torch.where(fired.isinf(), ctx.t_max, fired + 1)
            grad_bias = (error * steps).sum(0)
        return grad_times, grad_weight, grad_bias, None, None, None

    operators.if_linear.register_autograd(backward, setup_context=setup_context)
    return operators


def _potential_error(fired: Tensor, grad_fired: Tensor | None, grad_potential: Tensor | None) -> Tensor:
    """dL/dV = -dL/dt + dL/dV, of which either may be absent."""
    if grad_fired is None and grad_potential is None:
        return torch.zeros_like(fired)
    if grad_fired is None:
        assert grad_potential is not None
        return grad_potential
    return -grad_fired if grad_potential is None else grad_potential - grad_fired


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
