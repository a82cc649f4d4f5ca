"""The one engine behind all layers on spike times: crossings forwards, a gradient rule backwards."""

from __future__ import annotations

from dataclasses import dataclass
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
    weight, bias, geometry = synapses
    # As the times can hold it, so that all comparisons with it agree.
    end = float(np.float32(t_max)) if times.dtype == torch.float32 else float(t_max)
    backend = select(how.backend, times.device, neuron)
    call = _Call(neuron, how.rule, geometry, end, how.silent_gradient, backend)
    crossing, potential, _ = _Fire.apply(times, weight, bias, None, call)
    return crossing + neuron.delay if neuron.delay else crossing, potential


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
