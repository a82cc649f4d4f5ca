"""Networks written layer by layer: building them, initial weights, dropout, and a price on spikes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from pydantic import AliasChoices, Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from ssnn_plugin.nn import AveragePool, SpikeConv2d, SpikeLinear, calibrate

from .. import config
from ..config import Config, Fraction, Latency, SpikeTimes, Strict
from ..errors import SuiteError
from . import minibatch
from .architecture import Convolution, Layers, build_stages, neuron_layers
from .minibatch import Minibatch, in_a_row

# Training images on which initial weights are scaled, and deeper layers are looked at.
SAMPLE = 500


class Uniform(Strict):
    """Weights uniform between two bounds."""

    uniform: tuple[float, float]

    @model_validator(mode="after")
    def _low_before_high(self) -> Uniform:
        low, high = self.uniform
        if low > high:
            raise ValueError(f"uniform must be [low, high] with low <= high, got [{low}, {high}]")
        return self

    def fill(self, weight: Tensor) -> None:
        """Draw weights from torch's random numbers."""
        nn.init.uniform_(weight, *self.uniform)

    def drawn(self, random: np.random.RandomState, shape: tuple[int, int]) -> Any:
        """Weights from NumPy's random numbers."""
        return random.uniform(*self.uniform, shape)


class Normal(Strict):
    """Weights normal, given mean and standard deviation."""

    normal: tuple[float, NonNegativeFloat]

    def fill(self, weight: Tensor) -> None:
        """As `Uniform.fill`."""
        nn.init.normal_(weight, *self.normal)

    def drawn(self, random: np.random.RandomState, shape: tuple[int, int]) -> Any:
        """As `Uniform.drawn`."""
        return random.normal(*self.normal, shape)


class Settings(Config):
    """Of a method whose neurons take spike times."""

    encoding: SpikeTimes = Latency(kind="latency")

    @model_validator(mode="after")
    def _inputs_within_window(self) -> Settings:
        latest, t_max = self.encoding.latest(self.network.t_max), self.network.t_max
        if latest >= t_max:
            raise ValueError(
                f"encoding must have its spikes before network.t_max = {t_max}, got {latest:.6g}"
            )
        return self


class Network(config.Network):
    """The hidden layers, as `architecture` reads them; the output layer comes from the data set."""

    layers: Layers

    @property
    def name(self) -> str:
        return "-".join(self.layers)


class Drawn(Network):
    """Initial weights by `init`, one entry per layer of neurons."""

    # Records of the suite's first versions say `hidden`.
    layers: Layers = Field(validation_alias=AliasChoices("layers", "hidden"))
    init: list[Uniform | Normal]

    @model_validator(mode="after")
    def _one_init_per_layer(self) -> Drawn:
        check_one_per_layer("init", self.init, self.layers)
        return self

    def hashed(self) -> dict[str, Any]:
        content = super().hashed()
        widths = [int(layer) if layer.isdigit() else layer for layer in content.pop("layers")]
        return content | {"hidden": widths}


def check_gamma(gamma: float, network: config.Network) -> None:
    """The wanted gap has to fit the window."""
    if gamma > network.t_max:
        raise ValueError(f"training.gamma must be at most network.t_max = {network.t_max}, got {gamma}")


def check_one_per_layer(name: str, values: list[Any], layers: Layers) -> None:
    """Refuse a list of settings that has not one entry per layer of neurons."""
    if len(values) != (count := neuron_layers(layers) + 1):
        raise ValueError(f"{name} must hold {count} entries, one per layer, got {len(values)}")


class Dropout(config.Training):
    """`input_dropout` is of the spikes of the image, `dropout` of those into the fully connected layers
    behind.
    """

    dropout: Fraction = 0.0
    input_dropout: Fraction = 0.0

    def drop_before(self, number: int) -> float:
        """The dropout of the spikes into a layer with that number."""
        return self.dropout if number else self.input_dropout


class Training(Dropout, minibatch.Training):
    """`spike_price`: cost of a hidden spike, times how early it comes."""

    spike_price: NonNegativeFloat = 0.0


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

    @cached_property
    def connections(self) -> list[SpikeLinear | SpikeConv2d]:
        """The layers of neurons, in order."""
        return [layer for layer in self.network.modules() if isinstance(layer, SpikeLinear | SpikeConv2d)]

    def options(self, number: int) -> dict[str, Any]:
        """Arguments of the layer of neurons with that number: `neuron`, `t_max` and more."""
        raise NotImplementedError

    def initialize(self, number: int, weight: Tensor) -> None:
        """Draw the initial weights of the layer with that number."""
        raise NotImplementedError

    def lead(self, number: int, spikes: Tensor) -> Tensor:
        """How early each spike of a hidden layer comes: 1 at once, 0 at the end of the window, or silent."""
        return (1 - spikes / self.settings.t_max).relu()

    def costs(self, layers: list[Tensor]) -> Tensor | float:
        if not self.training.spike_price:
            return 0.0
        leads = [self.lead(number, spikes).sum() for number, spikes in enumerate(layers[:-1])]
        return self.training.spike_price * sum(leads) / len(layers[-1])

    def calibrate(self, times: Tensor, firing: float) -> None:
        """Scale the weights so that a fraction of each layer's neurons fires on the first samples.

        Raises:
            SuiteError: no weights let so many fire.
        """
        try:
            calibrate(in_a_row(self.stages), times[:SAMPLE].to(self.device), firing)
        except ValueError as error:
            raise SuiteError(f"network.firing: {error}") from error

    def _linear(
        self, number: int, in_features: int, out_features: int, pool: AveragePool | None
    ) -> nn.Module:
        dropout = self.training.drop_before(number)
        layer = SpikeLinear(in_features, out_features, **self._options(number, pool, dropout))
        self._draw(number, layer.weight)
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
            **self._options(number, pool, 0.0 if number else self.training.drop_before(0)),
        )
        self._draw(number, layer.weight)
        return layer

    def _draw(self, number: int, weight: Tensor) -> None:
        """Initial weights that do not depend on how they lie in memory."""
        drawn = weight.detach().clone(memory_format=torch.contiguous_format)
        self.initialize(number, drawn)
        with torch.no_grad():
            weight.copy_(drawn)

    def _options(self, number: int, pool: AveragePool | None, dropout: float) -> dict[str, Any]:
        dtype = self.settings.network.torch_dtype
        return {"input_pool": pool, "dropout": dropout, "dtype": dtype, **self.options(number)}
