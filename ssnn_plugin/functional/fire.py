"""From a neuron's description to the operators that fire it, and the gradient rule that goes with it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..kernels.operators import Backend, Connection, latency_rule, select
from ..kernels.psp import ALPHA, DOUBLE, EXPONENTIAL, RAMP
from ..kernels.reference import patches_by_group
from ..kernels.status import NAN_POTENTIAL, refuse_bad_samples
from ..neurons import IF, LIF, AlphaPSP, ExpPSP, Neuron, ReLPSP

# The first rule of a neuron is its default.
GRADIENTS_OF_IF = "latency", "surrogate", "local_slope"
GRADIENTS_OF_PSP = ("exact",)
# e^(t / tau) and its product with t stay finite in single precision.
MOST_TIME_CONSTANTS = 80
# Half width in bins of the window in which "local_slope" measures the slope of V.
REACH = 4


class Synapses(NamedTuple):
    """A linear layer (no geometry), or a convolution (stride, dilation, groups)."""

    weight: Tensor
    bias: Tensor | None
    geometry: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return "conv2d" if self.geometry else "linear"


def gradients_of(neuron: Neuron) -> tuple[str, ...]:
    """The gradient rules that a neuron has, the default first."""
    return GRADIENTS_OF_IF if isinstance(neuron, IF) else GRADIENTS_OF_PSP


def check_neuron(
    neuron: Neuron, gradient: str | None, silent_gradient: bool, t_max: float, bias: bool = False
) -> str:
    """Refuse options that do not go together; return the gradient rule."""
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be one of ssnn_plugin's neurons, such as IF(), got {neuron!r}")
    _checks.positive("t_max", t_max)
    rules = gradients_of(neuron)
    gradient = rules[0] if gradient is None else gradient
    _checks.one_of("gradient", gradient, rules)
    if silent_gradient and not isinstance(neuron, IF):
        raise ValueError(f"silent_gradient has no meaning for the exact gradient of {neuron!r}: use False")
    if gradient == "local_slope" and isinstance(neuron, IF) and (bias or neuron.beta != 1):
        raise ValueError("gradient 'local_slope' takes neither a bias nor a leak")
    tau = neuron.tau_syn if isinstance(neuron, LIF) else getattr(neuron, "tau", math.inf)
    if t_max > MOST_TIME_CONSTANTS * tau:
        raise ValueError(
            f"t_max must be at most {MOST_TIME_CONSTANTS} time constants of {tau}, got {t_max!r}"
        )
    if isinstance(neuron, ReLPSP) and neuron.start is not None and neuron.start >= t_max:
        raise ValueError(f"t_max must lie after the neuron's start = {neuron.start}, got {t_max!r}")
    return gradient


def fire(
    times: Tensor,
    synapses: Synapses,
    neuron: Neuron,
    *,
    t_max: float,
    gradient: str,
    silent_gradient: bool,
    with_potential: bool,
    backend: str | None,
) -> tuple[Tensor, ...]:
    """Spike times, and potentials if wanted: [batch, out], or [batch, locations, out] of a convolution."""
    # As the times can hold it, so that all comparisons with it agree.
    end = float(np.float32(t_max)) if times.dtype == torch.float32 else float(t_max)
    operators = select(times.device, backend)
    if isinstance(neuron, ReLPSP) and neuron.start is not None:
        return _fire_from_start(times, synapses, neuron.threshold, neuron.start, end, with_potential)
    if isinstance(neuron, IF):
        numbers = float(neuron.threshold), float(neuron.beta), float(neuron.delay), end, silent_gradient
        outputs = _fire_if(operators, times, synapses, numbers, gradient)
        return outputs if with_potential else outputs[:1]
    psp, tau, unit = _psp(neuron)
    spikes, potential, _ = getattr(operators, f"psp_{synapses.name}").first_spike(
        times, *synapses[:2], *synapses.geometry, psp, tau, neuron.threshold / unit, end
    )
    if not with_potential:
        return (spikes,)
    return spikes, potential * unit if unit != 1 else potential


def _psp(neuron: ReLPSP | ExpPSP | AlphaPSP | LIF) -> tuple[int, float, float]:
    """Kind, time constant, and by how much the kernel's response is too small."""
    if isinstance(neuron, ReLPSP):
        return RAMP, 1.0, 1.0
    if isinstance(neuron, ExpPSP):
        return EXPONENTIAL, float(neuron.tau), 1.0
    if isinstance(neuron, AlphaPSP):
        return ALPHA, float(neuron.tau), float(neuron.tau)
    return (ALPHA if neuron.tau_mem == neuron.tau_syn else DOUBLE), float(neuron.tau_syn), 1.0


def _fire_from_start(
    times: Tensor, synapses: Synapses, threshold: float, start: float, t_max: float, with_potential: bool
) -> tuple[Tensor, ...]:
    """Stanojevic et al. 2024, B1-model: t = start + threshold - V(start), by the ordinary dense operators."""
    _checks.spike_times("times", times)
    ramps = (start - times).relu()
    weight, bias, geometry = synapses
    if geometry:
        stride, dilation, groups = geometry
        v = torch.nn.functional.conv2d(ramps, weight, bias, tuple(stride), 0, tuple(dilation), groups)
        v = v.flatten(2).transpose(1, 2)
    else:
        v = torch.nn.functional.linear(ramps, weight, bias)
    if _checks.has_values(v) and bool(v.isnan().any()):
        refuse_bad_samples(NAN_POTENTIAL)
    least = start + threshold - t_max
    advance = torch.nn.functional.threshold(v.clamp(max=threshold), least, -math.inf)
    spikes = start + threshold - advance
    if not with_potential:
        return (spikes,)
    return spikes, (v + (t_max - start)).masked_fill(v > least, threshold)


def _fire_if(
    backend: Backend, times: Tensor, synapses: Synapses, numbers: tuple[Any, ...], gradient: str
) -> tuple[Tensor, Tensor]:
    operators: Connection = getattr(backend, synapses.name)
    if gradient == "local_slope":
        both = operators, backend.linear
        return _LocalSlope.apply(times, synapses.weight, both, synapses.geometry, numbers)  # type: ignore[no-any-return]
    arguments = times, *synapses[:2], *synapses.geometry, *numbers
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        spikes, potential = operators.first_spike(*arguments)
    else:
        spikes, potential = _FirstSpike.apply(*arguments, lambda: operators)
    if gradient == "surrogate":
        spikes = _ScaleError.apply(spikes, _surrogate(potential.detach(), numbers[0]))
    return spikes, potential


def _surrogate(potential: Tensor, threshold: float) -> Tensor:
    """-dt/dV at the firing time: the derivative of an arctan at the distance of V from the threshold.

    1 / (1 + (pi u)^2) with u the distance in thresholds (Fang et al. 2021, alpha = 2, scaled to 1 at
    u = 0); a neuron that overshoots, or stays silent far below, moves little with its potential.
    """
    distance = (potential - threshold) / (threshold or 1)
    return 1 / (1 + (math.pi * distance).square())


class _FirstSpike(torch.autograd.Function):
    """An operator with its latency rule in the form that `torch.func` takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        *given, operators = arguments
        spikes, potential = operators().first_spike(*given)
        return spikes, potential

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *given, operators = inputs
        once = {
            name: partial(_Once.apply, getattr(operators(), name)) for name in ("input_grad", "weight_grad")
        }
        setup_context, ctx.rule = latency_rule(operators()._replace(**once))
        setup_context(ctx, tuple(given), output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return (*ctx.rule(ctx, *grads), None)


class _Once(torch.autograd.Function):
    """An operator of a backward, which has no derivative of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator: Any, *arguments: Any) -> Tensor:
        return operator(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("the latency rule has no second derivative")


class _ScaleError(torch.autograd.Function):
    """Pass values on unchanged, and their gradient multiplied by a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, factor: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class _LocalSlope(torch.autograd.Function):
    """IF neurons whose error is divided by a local slope of V around the crossing.

    V is a staircase, so its slope is measured over a window of REACH bins to either side:
    s_j = sum_i w_ji [|t_i - t_j| <= REACH] / (2 REACH + 1), and at least threshold / t_max, the mean
    slope of a neuron that fires at the very end. Then dt_j/dw_ji = -1 / s_j for the causal inputs,
    and dt_j/dt_i = w_ji / (2 REACH + 1) / s_j for those in the window: the implicit function
    theorem for steps that are smoothed to ramps of that width. A silent neuron that learns has the
    slope threshold / t_max over the whole window, and so dt_j/dt_i = w_ji / threshold for all inputs.
    """

    @staticmethod
    def forward(
        times: Tensor,
        weight: Tensor,
        operators: tuple[Connection, Connection],
        geometry: tuple[Any, ...],
        numbers: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        spikes, potential = operators[0].first_spike(times, weight, None, *geometry, *numbers)
        return spikes, potential

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        times, weight, (ctx.operators, ctx.linear), ctx.geometry, ctx.numbers = inputs
        ctx.save_for_backward(times, weight, output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        times, weight, spikes = ctx.saved_tensors
        grad_spikes, grad_potential = grads
        threshold, _, delay, t_max, silent = ctx.numbers
        error = torch.zeros_like(spikes) if grad_spikes is None else grad_spikes
        least = threshold / t_max or 1 / t_max
        slope = _local_slope(times, weight, spikes - delay, t_max, ctx.geometry, ctx.linear)
        slope = torch.where(spikes.isfinite(), slope, least).clamp(min=least)
        error = error / slope if silent else torch.where(spikes.isfinite(), error / slope, 0)
        if grad_potential is not None:
            error = error - grad_potential
        rest = *ctx.geometry, delay, t_max, True
        grad_times = grad_weight = None
        if ctx.needs_input_grad[0]:
            early, late = (
                ctx.operators.input_grad(error, spikes + shift, times, weight, *rest)
                for shift in (-REACH - 1, REACH)
            )
            grad_times = (late - early) / (2 * REACH + 1)
            if silent and grad_spikes is not None:
                of_silent = torch.where(spikes.isfinite(), 0, grad_spikes / (least * t_max))
                grad_times = grad_times + ctx.operators.input_grad(of_silent, spikes, times, weight, *rest)
        if ctx.needs_input_grad[1]:
            kernel_size = (list(weight.shape[2:]),) if weight.ndim > 2 else ()
            grad_weight = ctx.operators.weight_grad(error, spikes, times, *kernel_size, *rest)
        return grad_times, grad_weight, None, None, None


def _local_slope(
    times: Tensor,
    weight: Tensor,
    crossing: Tensor,
    t_max: float,
    geometry: tuple[Any, ...],
    linear: Connection,
) -> Tensor:
    """Mean step of V per bin in the window around each crossing, of the shape of `crossing`."""
    times = times.masked_fill(times >= t_max, math.inf)
    inputs, groups = [times], 1
    if geometry:
        stride, dilation, groups = geometry
        inputs = patches_by_group(times, weight.shape[2:], stride, dilation, groups)
    weights, outputs = weight.flatten(1).chunk(groups), crossing.flatten(0, -2).chunk(groups, dim=1)
    parts = []
    for t, w, at in zip(inputs, weights, outputs, strict=True):
        # V at the times `at + shift` is an input gradient with inputs and outputs exchanged, time reversed.
        early, late = (
            linear.input_grad(torch.ones_like(t), -t, -(at + shift), w.t().contiguous(), 0.0, math.inf, True)
            for shift in (-REACH - 1, REACH)
        )
        parts.append((late - early) / (2 * REACH + 1))
    return torch.cat(parts, dim=-1).reshape(crossing.shape)
