"""Integrate-and-fire networks that learn in every bin and decide by events, a recipe of our own.

DS4NN, S4NN, BS4NN and TS4TL read V at the moment of firing alone. Here the same networks, with the
same losses, learn over all bins at once (`ssnn_plugin.nn.InBins`), with a surrogate gradient in each, and
are measured event by event, on spike times.

Weights are standardised per neuron with a learned gain (Qiao et al. 2019; for single spikes Che et
al. 2024), average pools are part of the next layer. Inputs and hidden layers share the bins of the encoding;
the outputs may go on for longer, up to `t_max`, driven by a constant current. What V is at the end of the
hidden window is then told by when the neuron fires, and ties are rare.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssnn_plugin import IF, surrogate
from ssnn_plugin.functional import bins_to_times
from ssnn_plugin.functional.bins import potential_at_crossing, times_to_bins
from ssnn_plugin.losses import RelativeTargetLoss, SingleTargetLoss, TemporalCrossEntropyLoss
from ssnn_plugin.nn import WeightStandardization, calibrate
from ssnn_plugin.nn.bins import in_bins
from ssnn_plugin.nn.connection import SpikeConnection

from ..config import Config, Fraction, Latency, Strict
from . import Method, layered
from .architecture import neuron_layers
from .layered import Layered

# Images on which the initial weights are scaled.
CALIBRATION = 500


class CrossEntropy(Strict):
    """Cross-entropy on -t; `temperature` is the difference in bins that makes a class e times likelier."""

    kind: Literal["cross-entropy"]
    temperature: PositiveFloat

    def build(self, t_max: int) -> nn.Module:
        return TemporalCrossEntropyLoss(t_max, self.temperature / t_max)


class SingleTarget(Strict):
    """TS4TL: only the label fires, at `t_target`."""

    kind: Literal["single-target"]
    t_target: NonNegativeFloat
    variant: Literal["one-sided", "fixed", "own"] = "one-sided"

    def build(self, t_max: int) -> nn.Module:
        return SingleTargetLoss(self.t_target, t_max, self.variant)


class RelativeTarget(Strict):
    """S4NN: the label first, all others `gamma` bins later."""

    kind: Literal["relative-target"]
    gamma: PositiveFloat

    def build(self, t_max: int) -> nn.Module:
        return RelativeTargetLoss(self.gamma, t_max)


Loss = Annotated[CrossEntropy | SingleTarget | RelativeTarget, Field(discriminator="kind")]


class Network(layered.Network):
    """Integrate-and-fire neurons of threshold 1 in bins.

    Initial weights are scaled so that a fraction of each layer's neurons fires on the first training
    `output_current` is added to V of every output in every bin.
    """

    t_max: PositiveInt
    firing: Fraction = 0.15
    output_current: NonNegativeFloat = 0.0


class Training(layered.Training):
    """`sharpness` is that of the arctan; `spike_price` is that of a hidden spike, whenever it comes."""

    loss: Loss
    sharpness: PositiveFloat = 2.0
    precision: Literal["float32", "bfloat16"] = "float32"


class Settings(Config):
    network: Network
    training: Training

    @property
    def bins(self) -> int:
        """Of the inputs and hidden layers."""
        assert isinstance(self.encoding, Latency)
        return self.encoding.bins or self.network.t_max

    @model_validator(mode="after")
    def _bins_within_window(self) -> Settings:
        if not isinstance(self.encoding, Latency):
            raise ValueError(f"encoding.kind must be 'latency', got {self.encoding.kind!r}")
        if self.bins > self.network.t_max:
            raise ValueError(
                f"encoding.bins must be at most network.t_max = {self.network.t_max}, got {self.bins}"
            )
        return self


class EveryBin(Layered):
    """In training a dense network on all bins, else layers on spike times."""

    settings: Settings
    training: Training

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        self.last = neuron_layers(settings.network.layers)
        super().__init__(settings, shape, classes, seed, device)
        self.timing = settings.training.loss.build(settings.network.t_max)
        self.gradient = surrogate.Arctan(settings.training.sharpness)
        self.fired: list[Tensor] = []

    def options(self, number: int) -> dict[str, Any]:
        network = self.settings.network
        if number < self.last:
            return {"neuron": IF(), "t_max": self.settings.bins}
        return {"neuron": IF(), "t_max": network.t_max, "bias": network.output_current > 0}

    def initialize(self, weight: Tensor) -> None:
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5)

    def _linear(self, *args: Any) -> nn.Module:
        return _standardized(super()._linear(*args))

    def _convolution(self, *args: Any) -> nn.Module:
        return _standardized(super()._convolution(*args))

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if epoch:
            return
        network = nn.Sequential(*(nn.Sequential(stage.neurons, *stage.after) for stage in self.stages))
        calibrate(network, times[:CALIBRATION].to(self.device), self.settings.network.firing)
        with torch.no_grad():
            for layer in self._connections():
                direction = layer.get_parameter("parametrizations.weight.original0")
                # Of equal length in all layers and neurons, so that a step turns all alike.
                direction.div_(direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (direction.ndim - 1)))
                if layer.bias is not None:
                    layer.bias.requires_grad_(False).fill_(self.settings.network.output_current)

    def forward(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        if not self.network.training:
            return super().forward(times)
        half = self.training.precision == "bfloat16"
        activations, self.fired = times_to_bins(times, self.settings.bins), []
        layers: list[Tensor] = []
        with torch.autocast(times.device.type, torch.bfloat16, enabled=half):
            for stage in self.stages[:-1]:
                activations, _ = in_bins(stage.neurons, activations, None, self.gradient)
                self.fired.append(activations[-1])
                # That they fired is all that is asked of hidden neurons while learning.
                layers.append(torch.where(activations[-1] > 0, 0.0, torch.inf))
                activations, _ = in_bins(stage.after, activations, None, self.gradient)
        activations, potentials = in_bins(
            self.stages[-1].neurons, activations.to(times.dtype), None, self.gradient
        )
        assert potentials is not None
        return [*layers, bins_to_times(activations)], potential_at_crossing(potentials, activations)

    def costs(self, layers: list[Tensor]) -> Tensor | float:
        if not self.training.spike_price:
            return 0.0
        spikes = sum(fired.sum(dtype=torch.float32) for fired in self.fired)
        return self.training.spike_price * spikes / len(layers[-1])

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.timing(outputs, labels)
        return loss

    def _connections(self) -> list[SpikeConnection]:
        return [module for module in self.network.modules() if isinstance(module, SpikeConnection)]


def _standardized(layer: nn.Module) -> nn.Module:
    """Zero-mean weights of a learned norm: a common shift would only make a neuron fire ever earlier."""
    parametrize.register_parametrization(layer, "weight", WeightStandardization(shift=0.0))
    layer.get_parameter("parametrizations.weight.original2").requires_grad_(False)
    return layer


def build(settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """Networks that learn in every bin, on images [channels, height, width]."""
    return EveryBin(settings, shape, classes, seed, device)
