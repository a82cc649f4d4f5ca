"""DS4NN (Mirsadeghi, Shalchian & Kheradpisheh 2023), re-implemented; the architecture is ours.

Convolutional integrate-and-fire neurons that fire at most once, a surrogate for dt/dV at the firing
time, and desired firing times relative to the other outputs. Network, thresholds, learning rate and
the exact relative encoding are not in the text that we could read: S4NN's relative targets
are our reading, `gradient` and `reference` offer others, the rest was chosen on held-out images.
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ssnn_plugin import IF
from ssnn_plugin.functional import normalize_error
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear, calibrate

from .. import config
from ..config import Config, Fraction
from . import Method, minibatch
from .architecture import Convolution, Layers, build_stages
from .minibatch import Minibatch

# Images on which the initial weights are scaled.
CALIBRATION = 500


class Network(config.Network):
    """Integrate-and-fire neurons of threshold 1 in T = `t_max` bins.

    Initial weights are normal with a mean of `init_mean` standard deviations, scaled so that the
    fraction `firing` of each layer's neurons fires on the first training images.
    """

    t_max: PositiveInt
    layers: Layers
    init_mean: float = 0.2
    firing: Fraction = 0.5

    @property
    def name(self) -> str:
        return "-".join(self.layers)


class Training(minibatch.Training):
    """`gradient` and `reference` are those of the layers and of `RelativeTargetLoss`.

    `spike_price`: cost of a hidden spike that comes at once, falling to 0 at the end of the window.
    """

    gamma: PositiveFloat
    reference: Literal["earliest", "mean", "mean_two_sided"] = "earliest"
    gradient: Literal["latency", "surrogate", "local_slope"] = "latency"
    normalize_errors: bool = True
    center_gradients: bool = True
    spike_price: NonNegativeFloat = 0.0
    dropout: Fraction = 0.0
    input_dropout: Fraction = 0.0


class Settings(Config):
    network: Network
    training: Training


class DS4NN(Minibatch):
    """Relative targets through layers of integrate-and-fire neurons."""

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        self.recipe, self.sizes = settings.training, settings.network
        stages = build_stages(settings.network.layers, shape, classes, self._linear, self._convolution)
        super().__init__(settings, stages, shape, seed, device)
        self.connections = [
            module for module in self.network.modules() if isinstance(module, SpikeLinear | SpikeConv2d)
        ]
        self.connections[-1].silent_gradient = True
        self.relative = RelativeTargetLoss(self.recipe.gamma, settings.t_max, reference=self.recipe.reference)
        self.price: Tensor | float = 0.0

    def _linear(self, number: int, in_features: int, out_features: int) -> nn.Module:
        return self._initial(
            SpikeLinear(
                in_features,
                out_features,
                IF(),
                t_max=self.sizes.t_max,
                gradient=self.recipe.gradient,
                dropout=self.recipe.dropout if number else self.recipe.input_dropout,
                dtype=self.sizes.torch_dtype,
            )
        )

    def _convolution(self, number: int, channels: int, layer: Convolution) -> nn.Module:
        return self._initial(
            SpikeConv2d(
                channels,
                layer.channels,
                layer.kernel,
                IF(),
                t_max=self.sizes.t_max,
                stride=layer.stride,
                padding=layer.padding,
                gradient=self.recipe.gradient,
                dropout=0.0 if number else self.recipe.input_dropout,
                dtype=self.sizes.torch_dtype,
            )
        )

    def _initial(self, layer: SpikeLinear | SpikeConv2d) -> nn.Module:
        std = layer.weight[0].numel() ** -0.5
        nn.init.normal_(layer.weight, self.sizes.init_mean * std, std)
        return layer

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if epoch == 0:
            network = nn.Sequential(*(nn.Sequential(stage.neurons, *stage.after) for stage in self.stages))
            calibrate(network, times[:CALIBRATION].to(self.device), self.sizes.firing)

    def forward(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        if not (self.network.training and self.recipe.normalize_errors):
            layers, potential = super().forward(times)
        else:
            layers, potential = self._forward_with_unit_errors(times)
        lead = sum((1 - hidden / self.sizes.t_max).relu().sum() for hidden in layers[:-1])
        self.price = self.recipe.spike_price * lead / len(times)
        return layers, potential

    def _forward_with_unit_errors(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        layers = []
        for stage in self.stages[:-1]:
            layers.append(normalize_error(stage.neurons(times)))
            times = stage.after(layers[-1])
        outputs, potential = self.stages[-1].neurons(times, return_potential=True)
        return [*layers, normalize_error(outputs)], potential

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.relative(outputs, labels)
        return loss

    def costs(self) -> Tensor | float:
        return self.price

    def after_backward(self) -> None:
        """Gradient centralization of the hidden layers (Yong et al., ECCV 2020): no common shift of a
        neuron's weights, which would only make it fire ever earlier, or never."""
        if self.recipe.center_gradients:
            for layer in self.connections[:-1]:
                grad = layer.weight.grad
                assert grad is not None
                grad -= grad.flatten(1).mean(1).reshape(-1, *[1] * (grad.ndim - 1))


def build(settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """DS4NN on images [channels, height, width]."""
    return DS4NN(settings, shape, classes, seed, device)
