"""The one engine behind all layers on spike times: crossings forwards, a gradient rule backwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .kernels import ops
from .kernels.backends import BACKENDS, select
from .kernels.geometry import Geometry
from .rules import Crossing, Rule

if TYPE_CHECKING:
    from .neurons.base import SeparableNeuron


class Synapses(NamedTuple):
    """Weights and a bias, laid out as a fully connected layer or a convolution."""

    weight: Tensor
    bias: Tensor | None
    geometry: Geometry = Geometry()

    def dense(self, inputs: Tensor) -> Tensor:
        """What they make of ordinary inputs."""
        return self.geometry.dense(inputs, self.weight, self.bias)


class How(NamedTuple):
    """What does not belong to a neuron or its synapses: how its gradient and its kernels are chosen."""

    rule: Rule
    silent_gradient: bool = False
    backend: str | None = None


def fire(
    times: Tensor, synapses: Synapses, neuron: SeparableNeuron, t_max: float, how: How
) -> tuple[Tensor, Tensor]:
    """Spike times and potentials of a separable neuron: [batch, out], or [batch, locations, out]."""
    # As the times can hold it, so that all comparisons with it agree.
    end = float(np.float32(t_max)) if times.dtype == torch.float32 else float(t_max)
    neuron, synapses, unit = _in_thresholds(neuron, synapses)
    if neuron.parameters:
        crossing, potential = _fire_by_definition(times, synapses, neuron, end, how, unit)
    else:
        weight, bias, geometry = synapses
        backend = select(how.backend, times.device, neuron)
        call = _Call(neuron, how.rule, geometry, end, how.silent_gradient, backend)
        crossing, potential, _ = _Fire.apply(
            times, weight, bias, None if unit is None else unit.detach(), call
        )
    spikes = crossing + neuron.delay if neuron.delay else crossing
    return spikes, potential if unit is None else potential * unit


def _in_thresholds(
    neuron: SeparableNeuron, synapses: Synapses
) -> tuple[SeparableNeuron, Synapses, Tensor | None]:
    """Where each neuron has a threshold of its own, weights and V in units of it, and that unit."""
    unit = neuron.threshold
    if not isinstance(unit, Tensor):
        return neuron, synapses, None
    weight, bias, geometry = synapses
    scaled = weight / unit.reshape(-1, *[1] * (weight.ndim - 1))
    return (
        replace(neuron, threshold=1.0),  # type: ignore[type-var]
        Synapses(scaled, None if bias is None else bias / unit, geometry),
        unit,
    )


def _fire_by_definition(
    times: Tensor, synapses: Synapses, neuron: SeparableNeuron, t_max: float, how: How, unit: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Neurons with time constants of their own, in plain torch."""
    if how.backend not in (None, "reference"):
        raise ValueError(
            f"backend must be None or 'reference' with a time constant per neuron, got {how.backend!r}"
        )
    weight, bias, geometry = synapses
    groups = geometry.groups
    described = [
        replace(neuron, **{name: value.chunk(groups)[g] for name, value in neuron.parameters.items()})  # type: ignore[type-var]
        for g in range(groups)
    ]
    units = [None] * groups if unit is None else unit.detach().chunk(groups)
    biases = [None] * groups if bias is None else bias.chunk(groups)
    patches = geometry.patches(times, weight.shape[2:])
    parts = [
        _trace(patch, Synapses(w.flatten(1), b), n, t_max, how, u)
        for patch, w, b, n, u in zip(patches, weight.chunk(groups), biases, described, units, strict=True)
    ]
    shape = geometry.output_shape(times, weight)
    crossing, potential = (geometry.outputs(part, shape) for part in zip(*parts, strict=True))
    return crossing, potential


def _trace(
    times: Tensor, synapses: Synapses, neuron: SeparableNeuron, t_max: float, how: How, unit: Tensor | None
) -> tuple[Tensor, Tensor]:
    weight, bias, geometry = synapses
    with torch.no_grad():
        at, potential, slope = neuron.crossings(times, weight, bias, t_max)
    v = neuron.traced_potential(at, times, weight, bias, t_max)
    change, fired = v - v.detach(), at.isfinite()
    crossing = Crossing(
        times,
        weight,
        at,
        at,
        potential,
        slope,
        unit,
        neuron,
        geometry,
        t_max,
        how.silent_gradient,
        "reference",
    )
    rate = how.rule.rate(crossing)
    # What is added is 0, and has the derivatives of the crossing.
    moved = at - (change if rate is None else rate * change)
    spikes = torch.where(fired | how.silent_gradient, moved, at)
    return spikes, potential + torch.where(fired & (not neuron.jumps), 0, change)


@dataclass(frozen=True)
class _Call:
    """What a call is besides its tensors."""

    neuron: SeparableNeuron
    rule: Rule
    geometry: Geometry
    t_max: float
    silent: bool
    backend: str


class _Fire(torch.autograd.Function):
    """Crossings, potentials and slopes, differentiated by a rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        times: Tensor, weight: Tensor, bias: Tensor | None, unit: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        neuron, geometry, t_max = call.neuron, call.geometry, call.t_max
        if ops.plain(times):
            kernels = BACKENDS[call.backend].kernels
            return kernels.first_spike(times, weight, bias, geometry, neuron, t_max)  # type: ignore[no-any-return]
        described = neuron.kind, neuron.numbers
        return ops.first_spike(times, weight, bias, *geometry, *described, t_max, call.backend)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        times, weight, _, unit, ctx.call = inputs
        crossing, potential, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.save_for_backward(times, weight, crossing, potential, slope, unit)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call, (times, weight, at, potential, slope, unit) = ctx.call, ctx.saved_tensors
        grad_spikes, grad_potential, _ = grads
        # V at the end of the window is an output of a silent neuron, whether its spike learns or not.
        silent = call.silent or grad_potential is not None
        crossing = Crossing(
            times, weight, at, call.neuron.until(at, call.t_max, silent), potential, slope, unit,
            call.neuron, call.geometry, call.t_max, silent, call.backend,
        )  # fmt: skip
        if grad_spikes is not None and not call.silent and (silent or not call.neuron.jumps):
            grad_spikes = grad_spikes.masked_fill(at.isinf(), 0)
        error = _errors(crossing, call.rule, grad_spikes, grad_potential)
        of_times, of_weight, of_bias, *_ = ctx.needs_input_grad
        return (
            call.rule.input_grad(crossing, error, grad_spikes) if of_times else None,
            crossing.weight_grad(error) if of_weight else None,
            crossing.bias_grad(error) if of_bias else None,
            None,
            None,
        )


def _errors(
    crossing: Crossing, rule: Rule, grad_spikes: Tensor | None, grad_potential: Tensor | None
) -> Tensor:
    """-dL/dV at the crossing, or at the end of the window for a silent neuron.

    A continuous V is the threshold at the crossing whatever the inputs, one that jumps is not.
    """
    if grad_spikes is None:
        error = torch.zeros_like(crossing.at)
    else:
        rate = rule.rate(crossing)
        error = grad_spikes if rate is None else grad_spikes * rate
    if grad_potential is not None:
        error = error - (grad_potential if crossing.neuron.jumps else grad_potential * crossing.at.isinf())
    return error
