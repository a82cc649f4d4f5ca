"""Sparse ramps, a recipe of our own: one spike per ReLU, and a price on every spike.

Ramp neurons in consecutive windows (Stanojevic et al. 2024, B1-model): layer k collects the ramps of its
inputs until its window starts, then V rises with slope 1, so that start + threshold - t is the
clipped ReLU of the weighted ramps, and the gradient is exact everywhere. Only positive
activations make spikes. A price on how early they come keeps most neurons silent; outputs are trained
with the cross-entropy on -t, and the first one decides.
"""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from ssnn_plugin import WindowedRamp
from ssnn_plugin.functional import overdue_times

from ..config import Config, Linear
from . import layered
from .architecture import neuron_layers
from .layered import Layered


class Network(layered.Network):
    """Inputs spike in 0 ... 1; then each hidden layer has a window; the outputs fire until `t_max`."""

    hidden_window: PositiveFloat

    def neuron(self, number: int) -> tuple[WindowedRamp, float]:
        """The neuron of a layer, silent for activations that are not positive, and its window's end."""
        start = 1 + number * self.hidden_window
        end = start + self.hidden_window if number < neuron_layers(self.layers) else self.t_max
        return WindowedRamp(end - start, start=start), end

    @model_validator(mode="after")
    def _outputs_have_a_window(self) -> Network:
        start = 1 + neuron_layers(self.layers) * self.hidden_window
        if self.t_max <= start:
            raise ValueError(f"t_max must lie after {start}, the end of the hidden windows, got {self.t_max}")
        return self


class Training(layered.Training):
    """`temperature`: difference in time that makes a class e times likelier.

    A spike is as early as it comes before the end of its window.
    """

    temperature: PositiveFloat = 1.0


class Settings(Config):
    encoding: Linear
    network: Network
    training: Training

    @model_validator(mode="after")
    def _inputs_within_their_window(self) -> Settings:
        if self.encoding.scale > 1:
            raise ValueError(
                f"encoding.scale must be at most 1, where the first window begins, got {self.encoding.scale}"
            )
        return self


class SparseRamp(Layered):
    """Cross-entropy on the times of the outputs, and the price of the hidden spikes."""

    settings: Settings
    training: Training

    def options(self, number: int) -> dict[str, Any]:
        neuron, end = self.settings.network.neuron(number)
        return {"neuron": neuron, "t_max": end, "bias": True}

    def initialize(self, number: int, weight: Tensor) -> None:
        """As a ReLU network, which this is (He et al. 2015)."""
        nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def lead(self, number: int, spikes: Tensor) -> Tensor:
        return (self.settings.network.neuron(number)[1] - spikes).relu()

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy on -t; V rises with slope 1, so a silent output's time is known, after the window."""
        neuron, end = self.settings.network.neuron(len(self.stages) - 1)
        times = overdue_times(outputs, potential, neuron, end)
        return nn.functional.cross_entropy(-times / self.training.temperature, labels)


build = SparseRamp
