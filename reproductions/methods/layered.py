"""What the methods share whose networks are written layer by layer: building them, and a price on spikes."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from ssnn_plugin.nn import AveragePool, SpikeConv2d, SpikeLinear

from .. import config
from ..config import Config, Fraction
from . import minibatch
from .architecture import Convolution, Layers, build_stages
from .minibatch import Minibatch


class Network(config.Network):
    """The hidden layers, as `architecture` reads them."""

    layers: Layers

    @property
    def name(self) -> str:
        return "-".join(self.layers)


class Training(minibatch.Training):
    """`spike_price`: cost of a hidden spike, times how early it comes.

    `input_dropout` is of the spikes of the image, `dropout` of those into the fully connected layers
    behind.
    """

    spike_price: NonNegativeFloat = 0.0
    dropout: Fraction = 0.0
    input_dropout: Fraction = 0.0


class Layered(Minibatch):
    """Networks written layer by layer; a method says what its layers are like and when a spike is early."""

    training: Training

    def __init__(
        self, settings: Config, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        assert isinstance(settings.network, Network)
        assert isinstance(settings.training, Training)
        self.settings, self.training = settings, settings.training
        stages = build_stages(settings.network.layers, shape, classes, self._linear, self._convolution)
        super().__init__(settings, stages, shape, seed, device)

    def options(self, number: int) -> dict[str, Any]:
        """Arguments of the layer of neurons with that number: `neuron`, `t_max` and more."""
        raise NotImplementedError

    def initialize(self, weight: Tensor) -> None:
        """Draw the initial weights of a layer."""
        raise NotImplementedError

    def lead(self, number: int, spikes: Tensor) -> Tensor:
        """How early each spike of a hidden layer comes; 0 for silence."""
        raise NotImplementedError

    def costs(self, layers: list[Tensor]) -> Tensor | float:
        if not self.training.spike_price:
            return 0.0
        leads = [self.lead(number, spikes).sum() for number, spikes in enumerate(layers[:-1])]
        return self.training.spike_price * sum(leads) / len(layers[-1])

    def _linear(
        self, number: int, in_features: int, out_features: int, pool: AveragePool | None
    ) -> nn.Module:
        dropout = self.training.dropout if number else self.training.input_dropout
        layer = SpikeLinear(
            in_features,
            out_features,
            input_pool=pool,
            dropout=dropout,
            dtype=self.settings.network.torch_dtype,
            **self.options(number),
        )
        self.initialize(layer.weight)
        return layer

    def _convolution(
        self, number: int, channels: int, convolution: Convolution, pool: AveragePool | None
    ) -> nn.Module:
        layer = SpikeConv2d(
            channels,
            convolution.channels,
            convolution.kernel,
            stride=convolution.stride,
            padding=convolution.padding,
            input_pool=pool,
            dropout=0.0 if number else self.training.input_dropout,
            dtype=self.settings.network.torch_dtype,
            **self.options(number),
        )
        self.initialize(layer.weight)
        return layer
