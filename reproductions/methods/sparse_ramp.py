"""Sparse ramps, a recipe of our own: one spike per ReLU, and a price on every spike.

Ramp neurons in consecutive windows (Stanojevic et al. 2024, B1-model): layer k collects the ramps of its
inputs until its window starts, then V rises with slope 1, so that start + threshold - t is the
clipped ReLU of the weighted ramps, and the gradient is exact everywhere. Only positive
activations make spikes. A price on how early they come keeps most neurons silent; outputs are trained
with the cross-entropy on -t, and the first one decides.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from ssnn_plugin import ReLPSP
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear

from .. import config
from ..config import Config, Fraction
from . import Method, minibatch
from .architecture import Convolution, Layers, build_stages, neuron_layers
from .minibatch import Minibatch


class Network(config.Network):
    """Inputs spike in 0 ... 1; then each hidden layer has a window; the outputs fire until `t_max`."""

    layers: Layers
    hidden_window: PositiveFloat

    @property
    def name(self) -> str:
        return "-".join(self.layers)

    def neuron(self, number: int) -> tuple[ReLPSP, float]:
        """The neuron of a layer, silent for activations that are not positive, and its window's end."""
        start = 1 + number * self.hidden_window
        end = start + self.hidden_window if number < neuron_layers(self.layers) else self.t_max
        return ReLPSP(end - start, start=start), end

    @model_validator(mode="after")
    def _outputs_have_a_window(self) -> Network:
        start = 1 + neuron_layers(self.layers) * self.hidden_window
        if self.t_max <= start:
            raise ValueError(f"t_max must lie after {start}, the end of the hidden windows, got {self.t_max}")
        return self


class Training(minibatch.Training):
    """`spike_price`: cost of a hidden spike for each unit of time that it comes before its window's end.

    `temperature`: difference in time that makes a class e times likelier. `input_dropout` is of the
    spikes of the image, `dropout` of those into the fully connected layers behind.
    """

    temperature: PositiveFloat = 1.0
    spike_price: NonNegativeFloat = 0.0
    dropout: Fraction = 0.0
    input_dropout: Fraction = 0.0


class Settings(Config):
    network: Network
    training: Training


class SparseRamp(Minibatch):
    """Cross-entropy on the times of the outputs, and the price of the hidden spikes."""

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        self.windows, self.recipe = settings.network, settings.training
        stages = build_stages(settings.network.layers, shape, classes, self._linear, self._convolution)
        super().__init__(settings, stages, shape, seed, device)
        self.price: Tensor | float = 0.0

    def _linear(self, number: int, in_features: int, out_features: int) -> nn.Module:
        neuron, end = self.windows.neuron(number)
        dropout = self.recipe.dropout if number else self.recipe.input_dropout
        dtype = self.windows.torch_dtype
        return he_normal(
            SpikeLinear(in_features, out_features, neuron, t_max=end, bias=True, dropout=dropout, dtype=dtype)
        )

    def _convolution(self, number: int, channels: int, layer: Convolution) -> nn.Module:
        neuron, end = self.windows.neuron(number)
        return he_normal(
            SpikeConv2d(
                channels,
                layer.channels,
                layer.kernel,
                neuron,
                t_max=end,
                stride=layer.stride,
                padding=layer.padding,
                bias=True,
                dropout=0.0 if number else self.recipe.input_dropout,
                dtype=self.windows.torch_dtype,
            )
        )

    def forward(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        layers, potential = super().forward(times)
        ends = (self.windows.neuron(number)[1] for number in range(len(layers)))
        lead = sum((end - hidden).relu().sum() for end, hidden in zip(ends, layers[:-1], strict=False))
        self.price = self.recipe.spike_price * lead / len(times)
        return layers, potential

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy on -t; V rises with slope 1, so a silent output's time is known, after the window."""
        neuron, end = self.windows.neuron(len(self.stages) - 1)
        times = torch.where(outputs.isfinite(), outputs, end + neuron.threshold - potential)
        return nn.functional.cross_entropy(-times / self.recipe.temperature, labels)

    def costs(self) -> Tensor | float:
        return self.price


def he_normal(layer: SpikeLinear | SpikeConv2d) -> SpikeLinear | SpikeConv2d:
    """The initial weights of a ReLU network, which this is (He et al. 2015)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def build(settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """Sparse ramps on images [channels, height, width]."""
    return SparseRamp(settings, shape, classes, seed, device)
