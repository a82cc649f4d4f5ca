"""Mostafa 2018: neurons with exponential currents, the exact gradient, cross-entropy on z = e^t.

Every neuron has to be able to spike, which the weight-sum cost asks for; gradients are rescaled
where a neuron is about to fall silent and they explode. Batch size, schedule and initial weights
of the paper were not available: those of `configs/mostafa-*.toml` are ours, as are the weight of that cost
(100 in others' code), no L2 (1e-3 there) and the window.
"""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from ssnn_plugin import ExpPSP
from ssnn_plugin.functional import weight_sum_cost
from ssnn_plugin.losses import ExponentialCrossEntropyLoss

from . import layered
from .layered import Drawn, Layered

# Of a window, in time constants: z = exp(t) of a later spike leaves no digits for the others.
LONGEST = 80


class Training(layered.Training):
    """`weight_sum_cost`: the paper's K. `l2`: price of the squared weights. `max_norm`: of the gradient
    of a neuron's weights, which is scaled down to it. The dropout of spikes is ours.
    """

    weight_sum_cost: NonNegativeFloat
    l2: NonNegativeFloat = 0.0
    max_norm: PositiveFloat


class Settings(layered.Settings):
    """Neurons of threshold 1 and time constant 1, as in the paper; a spike after `t_max` is none."""

    network: Drawn
    training: Training

    @model_validator(mode="after")
    def _exponentials_have_room(self) -> Settings:
        if self.network.t_max > LONGEST:
            raise ValueError(
                f"network.t_max must be at most {LONGEST} time constants, got {self.network.t_max}"
            )
        return self


class Mostafa(Layered):
    """Cross-entropy on z, and the costs of the weights."""

    settings: Settings
    training: Training

    def options(self, number: int) -> dict[str, Any]:
        return {"neuron": ExpPSP(), "t_max": self.settings.t_max}

    def initialize(self, number: int, weight: Tensor) -> None:
        self.settings.network.init[number].fill(weight)

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = ExponentialCrossEntropyLoss(self.settings.t_max)(outputs, labels)
        return loss

    def costs(self, layers: list[Tensor]) -> Tensor | float:
        lacking = sum(weight_sum_cost(layer.weight, layer.neuron.threshold) for layer in self.connections)
        squares = sum(layer.weight.square().sum() for layer in self.connections)
        of_weights = self.training.weight_sum_cost * lacking + self.training.l2 * squares
        return super().costs(layers) + of_weights

    def after_backward(self) -> None:
        for layer in self.connections:
            assert layer.weight.grad is not None
            grad = layer.weight.grad.flatten(1)
            norm = grad.norm(dim=1, keepdim=True)
            layer.weight.grad = (grad * (self.training.max_norm / norm).clamp(max=1)).view_as(layer.weight)


build = Mostafa
