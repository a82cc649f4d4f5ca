"""The one engine behind all layers on spike times: crossings forwards, a gradient rule backwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._autograd import Function, call_once
from .kernels import ops
from .kernels.backends import BACKENDS, select
from .kernels.geometry import Geometry
from .rules import Crossing, Rule, error_of, has_own_input_grad, of_fired

if TYPE_CHECKING:
    from .neurons.base import SeparableNeuron


class Synapses(NamedTuple):
    """Weights and a bias, laid out as a fully connected layer or a convolution."""

    weight: Tensor
    bias: Tensor | None
    geometry: Geometry = Geometry()

    def dense(self, inputs: Tensor) -> Tensor:
        """What they make of ordinary inputs."""
        weight = self.weight
        if not self.geometry.linear and ops.plain(inputs):
            # As the outputs lie in memory: so torch is up to three times as fast, pools behind it four times.
            inputs, weight = (x.to(memory_format=torch.channels_last) for x in (inputs, weight))
        return self.geometry.dense(inputs, weight, self.bias)


class How(NamedTuple):
    """What does not belong to a neuron or its synapses: how its gradient and its kernels are chosen."""

    rule: Rule
    silent_gradient: bool = False
    backend: str | None = None


def fire(
    neuron: SeparableNeuron, times: Tensor, synapses: Synapses, t_max: float, how: How
) -> tuple[Tensor, Tensor]:
    """Spike times and potentials of a layer: [batch, out], of a convolution [batch, locations, out]."""
    # As the times can hold it, so that all comparisons with it agree.
    end = float(np.float32(t_max)) if times.dtype == torch.float32 else float(t_max)
    weight, bias, geometry = synapses
    threshold = neuron.threshold if isinstance(neuron.threshold, Tensor) else None
    if neuron.parameters.keys() - {"threshold"}:
        crossing, potential = _fire_by_definition(times, synapses, neuron, end, how)
    else:
        backend = select(how.backend, times.device, times.dtype, neuron)
        call = _Call(_without_threshold(neuron), how.rule, geometry, end, how.silent_gradient, backend)
        crossing, potential, _ = _Fire.fit(times, weight).apply(times, weight, bias, threshold, call)
    return crossing + neuron.delay if neuron.delay else crossing, potential


def _without_threshold(neuron: SeparableNeuron) -> SeparableNeuron:
    """With the threshold 1 if each neuron has its own, in which its weights are measured then."""
    return replace(neuron, threshold=1.0) if isinstance(neuron.threshold, Tensor) else neuron  # type: ignore[type-var]


def _fire_by_definition(
    times: Tensor, synapses: Synapses, neuron: SeparableNeuron, t_max: float, how: How
) -> tuple[Tensor, Tensor]:
    """Neurons with time constants of their own, in plain torch."""
    if how.backend not in (None, "reference"):
        raise ValueError(
            f"backend must be None or 'reference' with a time constant per neuron, got {how.backend!r}"
        )
    if has_own_input_grad(how.rule):
        raise ValueError(
            f"gradient {how.rule} has an input gradient of its own: use one leak for all neurons"
        )
    weight, bias, geometry = synapses
    groups = geometry.groups
    values = {name: value.chunk(groups) for name, value in neuron.parameters.items()}
    biases = [None] * groups if bias is None else bias.chunk(groups)
    patches, weights = geometry.patches(times, weight.shape[2:]), weight.chunk(groups)
    parts = []
    for g, (patch, w, b) in enumerate(zip(patches, weights, biases, strict=True)):
        of_group = replace(neuron, **{name: value[g] for name, value in values.items()})  # type: ignore[type-var]
        parts.append(_trace(patch, Synapses(w.flatten(1), b), of_group, t_max, how))
    shape = geometry.output_shape(times, weight)
    crossing, potential = (geometry.outputs(part, shape) for part in zip(*parts, strict=True))
    return crossing, potential


def _trace(
    times: Tensor, synapses: Synapses, neuron: SeparableNeuron, t_max: float, how: How
) -> tuple[Tensor, Tensor]:
    weight, bias, geometry = synapses
    with torch.no_grad():
        at, potential, slope = neuron.crossings(times, weight, bias, t_max)
        crossing = Crossing(
            times, weight, at, at, potential, slope, neuron, geometry, t_max, how.silent_gradient, "reference"
        )
        rate = how.rule.rate(crossing)
        if rate is not None and not how.silent_gradient:
            rate = rate.masked_fill(at.isinf(), 0)
    v, fired = neuron.traced_potential(at, times, weight, bias, t_max), at.isfinite()
    # What is added is 0, and has the derivatives of the crossing.
    change, threshold = v - v.detach(), torch.as_tensor(neuron.threshold)
    missing = threshold - threshold.detach() - change
    moved = at + (missing if rate is None else rate * missing)
    spikes = torch.where(fired | how.silent_gradient, moved, at)
    at_crossing = change if neuron.jumps else threshold - threshold.detach()
    potential = potential + torch.where(fired, at_crossing, change)
    inputs = [x for x in (times, weight, bias, *neuron.parameters.values()) if x is not None]
    return _FirstDerivative.apply(spikes, *inputs), _FirstDerivative.apply(potential, *inputs)


class _FirstDerivative(torch.autograd.Function):
    """Values as they are, whose derivative by these inputs cannot be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, *inputs: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        return call_once(lambda grad, *_: grad.clone(), grads[0], *inputs), *[None] * len(inputs)


@dataclass(frozen=True)
class _Call:
    """What a call is besides its tensors."""

    neuron: SeparableNeuron
    rule: Rule
    geometry: Geometry
    t_max: float
    silent: bool
    backend: str


class _Fire(Function):
    """Crossings, potentials and slopes, differentiated by a rule."""

    @staticmethod
    def forward(
        times: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        if threshold is not None:  # in units of its threshold each neuron has the threshold 1
            weight = weight / threshold.reshape(-1, *[1] * (weight.ndim - 1))
            bias = None if bias is None else bias / threshold
        neuron, geometry, t_max = call.neuron, call.geometry, call.t_max
        if ops.plain(times):
            kernels = BACKENDS[call.backend].kernels
            at, potential, slope = kernels.first_spike(times, weight, bias, geometry, neuron, t_max)
        else:
            described = *geometry, neuron.kind, neuron.numbers, t_max, call.backend
            at, potential, slope = ops.first_spike(times, weight, bias, *described)
        if threshold is None:
            return at, potential, slope
        return at, potential * threshold, slope * threshold if slope.numel() else slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        times, weight, _, threshold, ctx.call = inputs
        crossing, potential, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.save_for_backward(times, weight, threshold, crossing, potential, slope)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call, (times, weight, threshold, at, potential, slope) = ctx.call, ctx.saved_tensors
        grad_spikes, grad_potential, _ = grads
        # V at the end of the window is an output of a silent neuron, whether its spike learns or not.
        silent = call.silent or grad_potential is not None
        until = call.neuron.until(at, call.t_max, silent)
        neuron = call.neuron if threshold is None else replace(call.neuron, threshold=threshold)
        how = call.geometry, call.t_max, silent, call.backend
        crossing = Crossing(times, weight, at, until, potential, slope, neuron, *how)
        # Of neurons that jump no input counts where they are silent.
        deaf = not call.silent and (silent or not neuron.jumps or has_own_input_grad(call.rule))
        if grad_spikes is not None and deaf:
            grad_spikes = of_fired(grad_spikes, at)
        of_spikes, error = _errors(crossing, call.rule, grad_spikes, grad_potential, deaf)
        of_times, of_weight, of_bias, of_threshold, _ = ctx.needs_input_grad
        return (
            call.rule.input_grad(crossing, error, grad_spikes) if of_times else None,
            crossing.weight_grad(error) if of_weight else None,
            crossing.bias_grad(error) if of_bias else None,
            _threshold_grad(crossing, of_spikes, grad_potential) if of_threshold else None,
            None,
        )


def _errors(
    crossing: Crossing, rule: Rule, grad_spikes: Tensor | None, grad_potential: Tensor | None, deaf: bool
) -> tuple[Tensor | None, Tensor]:
    """-dL/dV at the crossing, or at the end of the window for a silent neuron: of its spike, and in all.

    A continuous V is the threshold at the crossing whatever the inputs, one that jumps is not. The rate of a
    rule may be infinite for a silent neuron, whose spike has no error if it is `deaf`.
    """
    of_spikes = None if grad_spikes is None else error_of(rule, crossing, grad_spikes)
    if of_spikes is not None and deaf and of_spikes is not grad_spikes:
        of_spikes = of_fired(of_spikes, crossing.at)
    error = torch.zeros_like(crossing.at) if of_spikes is None else of_spikes
    if grad_potential is not None:
        error = error - (grad_potential if crossing.neuron.jumps else grad_potential * crossing.at.isinf())
    return of_spikes, error


def _threshold_grad(crossing: Crossing, of_spikes: Tensor | None, grad_potential: Tensor | None) -> Tensor:
    """A threshold that rises by what V lacks delays a spike, and is what a continuous V crosses at."""
    grad = torch.zeros_like(crossing.at) if of_spikes is None else crossing.counted(of_spikes)
    if grad_potential is not None and not crossing.neuron.jumps:
        grad = grad + grad_potential * crossing.fired
    return grad.flatten(0, -2).sum(0)
