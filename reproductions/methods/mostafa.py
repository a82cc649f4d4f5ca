"""Mostafa 2018: neurons with exponential currents, the exact gradient, cross-entropy on z = e^t.

Every neuron has to be able to spike, which the weight-sum cost asks for; gradients are rescaled
where a neuron is about to fall silent and they explode. Batch size, schedule and initial weights
of the paper were not available: those of `configs/mostafa-*.toml` are ours.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from ssnn_plugin import ExpPSP
from ssnn_plugin.functional import weight_sum_cost
from ssnn_plugin.losses import ExponentialCrossEntropyLoss
from ssnn_plugin.nn import SpikeLinear

from ..config import Config, Fraction, FullyConnected, Normal
from . import Method, minibatch
from .minibatch import Minibatch


class Network(FullyConnected):
    """Neurons of threshold 1 and time constant 1, as in the paper; a spike after `t_max` is none."""


class Training(minibatch.Training):
    """`weight_sum_cost`: the paper's K. `l2`: price of the squared weights. `max_norm`: of the gradient
    of a neuron's weights, which is scaled down to it. The dropout of spikes is ours.
    """

    weight_sum_cost: NonNegativeFloat
    l2: NonNegativeFloat = 0.0
    max_norm: PositiveFloat
    dropout: Fraction = 0.0
    input_dropout: Fraction = 0.0


class Settings(Config):
    network: Network
    training: Training


class Mostafa(Minibatch):
    """Cross-entropy on z, and the costs of the weights."""

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        self.recipe = settings.training
        self.cross_entropy = ExponentialCrossEntropyLoss(settings.t_max)
        self.layers = spike_layers(settings.network, shape, classes)
        for layer in self.layers:
            layer.dropout = self.recipe.input_dropout if layer is self.layers[0] else self.recipe.dropout
        super().__init__(settings, self.layers, shape, seed, device)

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.cross_entropy(outputs, labels)
        return loss

    def costs(self, layers: list[Tensor]) -> Tensor | float:
        lacking = sum(weight_sum_cost(layer.weight, layer.neuron.threshold) for layer in self.layers)
        squares = sum(layer.weight.square().sum() for layer in self.layers)
        return self.recipe.weight_sum_cost * lacking + self.recipe.l2 * squares

    def after_backward(self) -> None:
        for layer in self.layers:
            assert layer.weight.grad is not None
            norm = layer.weight.grad.norm(dim=1, keepdim=True)
            layer.weight.grad *= (self.recipe.max_norm / norm).clamp(max=1)


def spike_layers(network: Network, shape: tuple[int, ...], classes: int) -> list[SpikeLinear]:
    """Layers of a fully connected network with its initial weights."""
    sizes = [torch.Size(shape).numel(), *network.hidden, classes]
    layers = []
    for n_in, n_out, init in zip(sizes, sizes[1:], network.init, strict=False):
        layer = SpikeLinear(n_in, n_out, ExpPSP(), t_max=network.t_max, dtype=network.torch_dtype)
        if isinstance(init, Normal):
            nn.init.normal_(layer.weight, *init.normal)
        else:
            nn.init.uniform_(layer.weight, *init.uniform)
        layers.append(layer)
    return layers


def build(settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """Mostafa's network on flat images."""
    return Mostafa(settings, shape, classes, seed, device)
