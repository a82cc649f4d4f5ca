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

Neurons with a synaptic current (`psp_linear`, `psp_conv2d`; see `ssnn_plugin.kernels.psp`) have

`first_spike(times, weight, bias, *geometry, psp, tau, threshold, t_max) -> (spikes, potential, slope)`
    `bias` is the weight of a spike at time 0, `slope` is dV/dt at the crossing and 0 without one.
`weight_grad(p, q, until, a, b, times, *geometry)` and
`input_grad(p, q, until, a, b, times, weight, *geometry)`
    A synapse counts if its input spikes before `until`, which is -inf where there is no error;
    errors are in the factors `p` and `q` of the outputs, `a` and `b` are those of the inputs.

Their autograd rule is exact, by the implicit function theorem: dt/dx = -(dV/dx) / (dV/dt).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]

from .psp import input_factors, output_factors, output_slopes

GEOMETRY = {"linear": "", "conv2d": "int[] stride, int[] dilation, int groups, "}
NEURON = "float threshold, float beta, float delay, float t_max, bool silent"
CAUSALITY = "float delay, float t_max, bool silent"
PSP = "int psp, float tau, float threshold, float t_max"
CAUSAL_FACTORS = "Tensor p, Tensor q, Tensor until, Tensor a, Tensor b, Tensor times"


class Connection(NamedTuple):
    """The operators of one connection."""

    first_spike: CustomOpDef
    weight_grad: CustomOpDef
    input_grad: CustomOpDef


class Backend(NamedTuple):
    """One implementation of the kernels."""

    linear: Connection
    conv2d: Connection
    psp_linear: Connection
    psp_conv2d: Connection


def _register(backend: str, device_types: str | None) -> Backend:
    module = f"{__package__}.{backend}"

    def define(name: str, function: Callable[..., Any], schema: str) -> Any:
        return _define(f"{name}_{backend}", function, schema, device_types)

    def connection(name: str, grad_prefix: str, kernel_size: str) -> Connection:
        def first_spike(*args: Any) -> tuple[Tensor, Tensor]:
            *tensors_and_neuron, _silent = args
            return _kernel(module, f"first_spike_{name}")(*tensors_and_neuron)  # type: ignore[no-any-return]

        def weight_grad(*args: Any) -> Tensor:
            return _kernel(module, f"{grad_prefix}_weight_grad")(*args)  # type: ignore[no-any-return]

        def input_grad(*args: Any) -> Tensor:
            return _kernel(module, f"{grad_prefix}_input_grad")(*args)  # type: ignore[no-any-return]

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
    return Backend(linear, conv2d, *_register_psp(backend, device_types))


def _kernel(module: str, name: str) -> Callable[..., Any]:
    """A kernel's module is imported when it first runs: importing numba is slow."""
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _define(name: str, function: Callable[..., Any], schema: str, device_types: str | None) -> Any:
    return torch.library.custom_op(
        f"ssnn_plugin::{name}", function, mutates_args=(), device_types=device_types, schema=schema
    )


def _register_psp(backend: str, device_types: str | None) -> tuple[Connection, Connection]:
    """The operators of the neurons with a synaptic current."""
    module = f"{__package__}.{backend}_psp"

    def define(name: str, kernel: str, schema: str) -> Any:
        def function(*args: Any) -> Any:
            return _kernel(module, kernel)(*args)

        return _define(f"{name}_{backend}", function, schema, device_types)

    def connection(name: str, causal: str, kernel_size: str) -> Connection:
        geometry = GEOMETRY[name]
        of_grad = f", {kernel_size}{geometry}".rstrip(", ")
        return Connection(
            define(
                f"psp_first_spike_{name}",
                f"first_spike_{name}",
                f"(Tensor times, Tensor weight, Tensor? bias, {geometry}{PSP}) -> (Tensor, Tensor, Tensor)",
            ),
            define(
                f"psp_{causal}_weight_grad", f"{causal}_weight_grad", f"({CAUSAL_FACTORS}{of_grad}) -> Tensor"
            ),
            define(
                f"psp_{causal}_input_grad",
                f"{causal}_input_grad",
                f"({CAUSAL_FACTORS}, Tensor weight, {geometry}".rstrip(", ") + ") -> Tensor",
            ),
        )

    linear = connection("linear", "causal", "")
    conv2d = connection("conv2d", "causal_conv2d", "int[] kernel_size, ")

    @linear.first_spike.register_fake
    def _(times, weight, bias, *neuron):  # type: ignore[no-untyped-def]
        shape = times.shape[0], weight.shape[0]
        return tuple(times.new_empty(shape) for _ in range(3))

    @linear.weight_grad.register_fake
    def _(p, q, until, a, b, times):  # type: ignore[no-untyped-def]
        return p.new_empty(p.shape[1], times.shape[1])

    @conv2d.first_spike.register_fake
    def _(times, weight, bias, stride, dilation, groups, *neuron):  # type: ignore[no-untyped-def]
        height, width = output_size(times.shape[2:], weight.shape[2:], stride, dilation)
        shape = times.shape[0], height * width, weight.shape[0]
        return tuple(times.new_empty(shape) for _ in range(3))

    @conv2d.weight_grad.register_fake
    def _(p, q, until, a, b, times, kernel_size, stride, dilation, groups):  # type: ignore[no-untyped-def]
        return p.new_empty(p.shape[2], times.shape[1] // groups, *kernel_size)

    def like_times(p, q, until, a, b, times, *rest):  # type: ignore[no-untyped-def]
        return torch.empty_like(times, memory_format=torch.contiguous_format)

    for operators in (linear, conv2d):
        operators.input_grad.register_fake(like_times)
        _attach_exact_rule(operators)
    return linear, conv2d


def _attach_exact_rule(operators: Connection) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        times, weight, _, *geometry, ctx.psp, ctx.tau, _, ctx.t_max = inputs
        ctx.geometry = tuple(geometry)
        spikes, _, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.save_for_backward(times, weight, spikes, slope)
        ctx.set_materialize_grads(False)

    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_potential: Tensor | None, _: Any
    ) -> tuple[Any, ...]:
        times, weight, spikes, slope = ctx.saved_tensors
        error, until = _implicit_errors(spikes, slope, ctx.t_max, grad_spikes, grad_potential)
        # Inputs at or after the end of the window are before no `until`.
        a, b = input_factors(ctx.psp, ctx.tau, times.clamp(max=ctx.t_max))
        at = until.clamp(min=0)
        grad_times = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            p, q = (error * factor for factor in output_slopes(ctx.psp, ctx.tau, at))
            grad_times = operators.input_grad(p, q, until, a, b, times, weight, *ctx.geometry)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            p, q = (error * factor for factor in output_factors(ctx.psp, ctx.tau, at))
        if ctx.needs_input_grad[1]:
            kernel_size = (list(weight.shape[2:]),) if weight.ndim > 2 else ()
            grad_weight = operators.weight_grad(p, q, until, a, b, times, *kernel_size, *ctx.geometry)
        if ctx.needs_input_grad[2]:
            a0, b0 = input_factors(ctx.psp, ctx.tau, times.new_zeros(()))
            grad_bias = (q * b0 - p * a0).flatten(0, -2).sum(0)
        return grad_times, grad_weight, grad_bias, *[None] * (len(ctx.geometry) + 4)

    operators.first_spike.register_autograd(backward, setup_context=setup_context)


def _implicit_errors(
    spikes: Tensor, slope: Tensor, t_max: float, grad_spikes: Tensor | None, grad_potential: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-dL/dV at the output spike, or at the end of the window for a silent neuron; and that time.

    A neuron that fired has V = threshold whatever its inputs, a silent one has no spike to move.
    """
    # Same shapes throughout: `where` and `masked_fill` with numbers are several times slower.
    zero = torch.zeros_like(spikes)
    # The slope is 0 where V only touches the threshold; no error stays none.
    least = torch.finfo(slope.dtype).tiny
    of_spikes = zero if grad_spikes is None else grad_spikes / slope.clamp(min=least)
    of_silent = zero if grad_potential is None else -grad_potential
    error = torch.where(spikes < t_max, of_spikes, of_silent)
    never = torch.full_like(spikes, -math.inf)
    return error, torch.where(error == 0, never, spikes.clamp(max=t_max))


def output_size(
    size: torch.Size | list[int], kernel_size: torch.Size | list[int], stride: list[int], dilation: list[int]
) -> list[int]:
    """Height and width of the output of a convolution without padding."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    return [(n - span) // s + 1 for n, span, s in zip(size, spans, stride, strict=True)]


def latency_rule(operators: Connection) -> tuple[Callable[..., None], Callable[..., tuple[Any, ...]]]:
    """What the rule keeps of a call of `first_spike`, and its backward."""

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

    return setup_context, backward


def _attach_latency_rule(operators: Connection) -> None:
    setup_context, backward = latency_rule(operators)
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
