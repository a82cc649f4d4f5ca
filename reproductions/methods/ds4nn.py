"""DS4NN (Mirsadeghi, Shalchian & Kheradpisheh 2023), re-implemented; the architecture is ours.

Convolutional integrate-and-fire neurons that fire at most once, a surrogate for dt/dV at the firing
time, and desired firing times relative to the other outputs. Network, thresholds, learning rate and
the exact relative encoding are not in the text that we could read: S4NN's relative targets, and
spikes in the bin of their crossing, without S4NN's delay of one bin, are our reading; `gradient` and
`reference` offer others, the rest was chosen on held-out images. Outputs that are silent learn, too, and
channels that died are not drawn anew.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ssnn_plugin import IF
from ssnn_plugin.losses import RelativeTargetLoss

from ..config import Part
from . import centered, layered
from .centered import Centered
from .layered import check_gamma


class Network(layered.Network):
    """Integrate-and-fire neurons of threshold 1 in T = `t_max` bins.

    Initial weights are normal with a mean of `init_mean` standard deviations, scaled so that the
    fraction `firing` of each layer's neurons fires on the first training images.
    """

    t_max: PositiveInt
    init_mean: float = 0.2
    firing: Part = 0.5


class Training(centered.Training):
    """`gradient` and `reference` are those of the layers and of `RelativeTargetLoss`."""

    gamma: PositiveFloat
    reference: Literal["earliest", "mean", "mean_two_sided"] = "earliest"
    gradient: Literal["latency", "surrogate", "local_slope"] = "latency"
    center_gradients: bool = True


class Settings(layered.Settings):
    network: Network
    training: Training

    @model_validator(mode="after")
    def _gamma_within_window(self) -> Settings:
        check_gamma(self.training.gamma, self.network)
        return self


class DS4NN(Centered):
    """Relative targets through layers of integrate-and-fire neurons."""

    settings: Settings
    training: Training

    def options(self, number: int) -> dict[str, Any]:
        return {"neuron": IF(), "t_max": self.settings.network.t_max, "gradient": self.training.gradient}

    def initialize(self, number: int, weight: Tensor) -> None:
        std = weight[0].numel() ** -0.5
        nn.init.normal_(weight, self.settings.network.init_mean * std, std)

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if epoch == 0:
            self.calibrate(times, self.settings.network.firing)
        super().before_epoch(epoch, times)

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        gamma, reference = self.training.gamma, self.training.reference
        loss: Tensor = RelativeTargetLoss(gamma, self.settings.t_max, reference=reference)(outputs, labels)
        return loss


build = DS4NN
