"""DS4NN (Mirsadeghi, Shalchian & Kheradpisheh 2023), re-implemented; the architecture is ours.

Convolutional integrate-and-fire neurons that fire at most once, a surrogate for dt/dV at the firing
time, and desired firing times relative to the other outputs. Network, thresholds, learning rate and
the exact relative encoding are not in the text that we could read: S4NN's relative targets
are our reading, `gradient` and `reference` offer others, the rest was chosen on held-out images.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ssnn_plugin import IF
from ssnn_plugin.functional import normalize_error
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear, calibrate

from ..config import Config, Fraction
from . import Method, layered
from .layered import Layered

# Images on which the initial weights are scaled.
CALIBRATION = 500


class Network(layered.Network):
    """Integrate-and-fire neurons of threshold 1 in T = `t_max` bins.

    Initial weights are normal with a mean of `init_mean` standard deviations, scaled so that the
    fraction `firing` of each layer's neurons fires on the first training images.
    """

    t_max: PositiveInt
    init_mean: float = 0.2
    firing: Fraction = 0.5


class Training(layered.Training):
    """`gradient` and `reference` are those of the layers and of `RelativeTargetLoss`.

    A spike that comes at once is early by 1, one at the end of the window by 0.
    """

    gamma: PositiveFloat
    reference: Literal["earliest", "mean", "mean_two_sided"] = "earliest"
    gradient: Literal["latency", "surrogate", "local_slope"] = "latency"
    normalize_errors: bool = True
    center_gradients: bool = True
    center_along: Literal["ones", "mean input"] = "ones"

    @model_validator(mode="after")
    def _center_along_is_used(self) -> Training:
        if self.center_along != "ones" and not self.center_gradients:
            raise ValueError(f"center_along needs center_gradients = true, got {self.center_along!r}")
        return self


class Settings(Config):
    network: Network
    training: Training


class DS4NN(Layered):
    """Relative targets through layers of integrate-and-fire neurons."""

    settings: Settings
    training: Training

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        super().__init__(settings, shape, classes, seed, device)
        self.connections = [
            module for module in self.network.modules() if isinstance(module, SpikeLinear | SpikeConv2d)
        ]
        self.connections[-1].silent_gradient = True
        training = settings.training
        self.relative = RelativeTargetLoss(training.gamma, settings.t_max, reference=training.reference)
        self.directions: list[Tensor] = []

    def options(self, number: int) -> dict[str, Any]:
        return {"neuron": IF(), "t_max": self.settings.network.t_max, "gradient": self.training.gradient}

    def initialize(self, weight: Tensor) -> None:
        std = weight[0].numel() ** -0.5
        nn.init.normal_(weight, self.settings.network.init_mean * std, std)

    def lead(self, number: int, spikes: Tensor) -> Tensor:
        return (1 - spikes / self.settings.network.t_max).relu()

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if epoch == 0:
            network = nn.Sequential(*(nn.Sequential(stage.neurons, *stage.after) for stage in self.stages))
            calibrate(network, times[:CALIBRATION].to(self.device), self.settings.network.firing)
        self.directions = self._common_directions(times[:CALIBRATION].to(self.device))

    def passed_on(self, spikes: Tensor) -> Tensor:
        return normalize_error(spikes) if self.training.normalize_errors else spikes

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.relative(outputs, labels)
        return loss

    def after_backward(self) -> None:
        """Gradient centralization of the hidden layers (Yong et al., ECCV 2020): no common shift of a
        neuron's weights, which would only make it fire ever earlier, or never."""
        if not self.training.center_gradients:
            return
        for layer, direction in zip(self.connections, self.directions, strict=False):
            assert layer.weight.grad is not None
            grad = layer.weight.grad.flatten(1)
            layer.weight.grad = (grad - torch.outer(grad @ direction, direction)).view_as(layer.weight)

    def _common_directions(self, times: Tensor) -> list[Tensor]:
        """Unit vectors of the common shift in each hidden layer: all weights alike, or, fully connected, as
        often as each input spikes."""
        self.network.eval()
        directions = [torch.ones_like(layer.weight[0]).flatten() for layer in self.connections[:-1]]
        if self.training.center_along == "mean input":
            for number, stage in enumerate(self.stages[:-1]):
                if isinstance(self.connections[number], SpikeLinear):
                    directions[number] = times.isfinite().to(directions[number]).mean(0)
                with torch.no_grad():
                    times = stage.after(stage.neurons(times))
        return [direction / direction.norm() for direction in directions]


def build(settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """DS4NN on images [channels, height, width]."""
    return DS4NN(settings, shape, classes, seed, device)
