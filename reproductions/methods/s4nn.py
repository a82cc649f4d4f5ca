"""S4NN (Kheradpisheh & Masquelier 2020): the authors' online protocol, and mini-batches.

Integrate-and-fire neurons with one bin of delay per layer, relative target times, dt/dV = -1,
errors normalised to unit L2 norm in every layer. `configs/s4nn-mnist.toml` is the released
recipe; dropout, learning-rate schedules, weight averaging and centred gradients are additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ssnn_plugin import IF, online
from ssnn_plugin.functional import first_spike_linear, normalize_error
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeLinear

from .. import config
from ..config import Config, Fraction, FullyConnected, Normal, Uniform
from ..errors import SuiteError
from . import EpochStatistics, Method, minibatch, random_seed
from .minibatch import DROPPING, REDRAWING, SHUFFLING, Minibatch, WeightAverage

# Samples that one compiled call learns from. Part of the protocol: the learning rate moves, and the
# random numbers of the dropout are drawn, once per chunk.
CHUNK = 2000


class Network(FullyConnected):
    """Fully connected integrate-and-fire neurons in discrete time."""

    threshold: PositiveFloat
    t_max: PositiveInt


class Recipe(config.Training):
    """What both protocols share, for this method and those that build on it."""

    learning_rates: list[PositiveFloat]
    weight_decay: Fraction = 0.0
    dropout: Fraction = 0.0
    scale_dropout: bool = False
    input_dropout: Fraction = 0.0
    redraw_below: Fraction = 0.0

    @model_validator(mode="after")
    def _dropout_is_used(self) -> Recipe:
        if self.scale_dropout and not self.dropout:
            raise ValueError("scale_dropout needs a dropout above 0")
        return self


class MinibatchRecipe(Recipe, minibatch.Training):
    """Mini-batches through the ordinary layers, autograd and a torch optimiser."""

    normalize_errors: bool = True
    center_gradients: bool = False
    center_along: Literal["ones", "mean input"] = "ones"

    @model_validator(mode="after")
    def _center_along_is_used(self) -> MinibatchRecipe:
        if self.center_along != "ones" and not self.center_gradients:
            raise ValueError(f"center_along needs center_gradients = true, got {self.center_along!r}")
        return self


class OnlineTraining(Recipe):
    """One sample at a time, as S4NN's authors train."""

    protocol: Literal["online"]
    gamma: PositiveFloat
    shuffle: bool = False


class MinibatchTraining(MinibatchRecipe):
    """The same rule in mini-batches."""

    protocol: Literal["minibatch"]
    gamma: PositiveFloat


class BaseSettings(Config):
    """Settings of this method and of those that build on it."""

    network: Network
    training: Recipe

    @model_validator(mode="after")
    def _training_fits_network(self) -> BaseSettings:
        layers, rates = len(self.network.hidden) + 1, len(self.training.learning_rates)
        if layers != rates:
            raise ValueError(
                f"training.learning_rates must hold {layers} numbers, one per layer, got {rates}"
            )
        if self.training.dropout and not self.network.hidden:
            raise ValueError("training.dropout needs a hidden layer")
        if self.training.redraw_below and any(isinstance(init, Normal) for init in self.network.init[:-1]):
            raise ValueError("training.redraw_below needs uniform initial weights in the hidden layers")
        return self


class Settings(BaseSettings):
    """S4NN by either protocol."""

    training: Annotated[OnlineTraining | MinibatchTraining, Field(discriminator="protocol")]

    @model_validator(mode="after")
    def _gamma_within_window(self) -> Settings:
        check_gamma(self.training.gamma, self.network)
        return self


def check_gamma(gamma: float, network: Network) -> None:
    """The wanted gap has to fit the window."""
    if gamma > network.t_max:
        raise ValueError(f"training.gamma must be at most network.t_max = {network.t_max}, got {gamma}")


def build(settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """S4NN by the protocol of its settings."""
    if settings.training.protocol == "minibatch":
        layers = spike_layers(settings, shape, classes, seed)
        loss = RelativeTargetLoss(settings.training.gamma, settings.network.t_max)
        return S4NNMinibatch(settings, layers, loss, shape, seed, device)
    if device != "cpu":
        raise SuiteError(
            f"--device: the online protocol of {settings.method} runs on the CPU, got {device!r}"
        )
    return S4NNOnline(settings, shape, classes, seed)


def draw_weights(network: Network, features: int, classes: int, seed: int) -> list[Tensor]:
    """As the authors draw them: NumPy's RandomState, first layer first."""
    random = np.random.RandomState(seed)
    sizes = [features, *network.hidden, classes]
    weights = []
    for n_in, n_out, init in zip(sizes, sizes[1:], network.init, strict=False):
        draw = random.uniform if isinstance(init, Uniform) else random.normal
        a, b = init.uniform if isinstance(init, Uniform) else init.normal
        weights.append(torch.from_numpy(draw(a, b, (n_out, n_in))).to(network.torch_dtype))
    return weights


def redraw_dead(
    settings: BaseSettings, weights: Sequence[Tensor], spikes: Sequence[Tensor], samples: int, seed: int
) -> None:
    """Redraw hidden neurons that hardly fired in the last epoch, after it was evaluated."""
    least = settings.training.redraw_below * samples
    if not least or not spikes:
        return
    generator = torch.Generator().manual_seed(seed)
    for weight, fired, init in zip(weights[:-1], spikes, settings.network.init, strict=False):
        assert isinstance(init, Uniform)
        online.redraw_dead(weight, fired, least, *init.uniform, generator)


def training_thresholds(settings: BaseSettings) -> list[float]:
    """Thresholds while learning: with a fraction of the input spikes left out, less is enough."""
    training, threshold = settings.training, settings.network.threshold
    reduced = threshold * (1 - training.dropout) if training.scale_dropout else threshold
    return [threshold] + [reduced] * len(settings.network.hidden)


def drop(times: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Silence each spike with probability p; without p, no random number is drawn."""
    if not p:
        return times
    dropped = torch.rand(times.shape, generator=generator) < p
    return times.masked_fill(dropped.to(times.device), torch.inf)


def fire(times: Tensor, weights: Sequence[Tensor], network: Network) -> tuple[list[Tensor], Tensor]:
    """Spike times by layer; the potential of a silent output is the one at bin T - 3, as published."""
    neuron, t_max = IF(network.threshold, delay=1), network.t_max
    layers: list[Tensor] = []
    for weight in weights[:-1]:
        times = first_spike_linear(times, weight, neuron, t_max=t_max)
        layers.append(times)
    output, potential = first_spike_linear(times, weights[-1], neuron, t_max=t_max, return_potential=True)
    if bool(output.isinf().all(1).any()):
        early = times.masked_fill(times > t_max - 3, torch.inf)
        _, at_bin = first_spike_linear(early, weights[-1], neuron, t_max=t_max, return_potential=True)
        potential = torch.where(output.isinf(), at_bin, potential)
    return [*layers, output], potential


class S4NNOnline:
    """One sample at a time, in file order unless the config shuffles."""

    def __init__(self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int) -> None:
        assert isinstance(settings.training, OnlineTraining)
        self.settings, self.training, self.seed = settings, settings.training, seed
        self.weights = draw_weights(settings.network, math.prod(shape), classes, seed)
        self.average = WeightAverage(self.training)
        self.spikes: list[Tensor] = []

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        training = self.training
        redraw_dead(self.settings, self.weights, self.spikes, len(times), self._seed(epoch, REDRAWING))
        order = torch.arange(len(times))
        if training.shuffle:
            shuffling = torch.Generator().manual_seed(self._seed(epoch, SHUFFLING))
            order = torch.randperm(len(times), generator=shuffling)
        dropping = torch.Generator().manual_seed(self._seed(epoch, DROPPING))
        loss = right = 0.0
        spikes = [torch.zeros(len(weight), dtype=torch.long) for weight in self.weights]
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            factor = training.schedule.factor(epoch + start / len(order), training.epochs)
            done = online.s4nn_train(
                self.weights,
                drop(times[chunk], training.input_dropout, dropping),
                labels[chunk],
                thresholds=training_thresholds(self.settings),
                learning_rates=[rate * factor for rate in training.learning_rates],
                weight_decay=training.weight_decay,
                gamma=training.gamma,
                t_max=self.settings.network.t_max,
                dropout=[training.dropout] * (len(self.weights) - 1) + [0.0],
                seed=int(torch.randint(2**31, (), generator=dropping)),
            )
            loss += done.loss * len(chunk)
            right += done.accuracy * len(chunk)
            spikes = [a + b for a, b in zip(spikes, done.spikes, strict=True)]
            advance(len(chunk))
        self.spikes = spikes
        self.average.update(epoch, self.weights)
        return EpochStatistics.of(loss, right, spikes, len(order))

    def _seed(self, epoch: int, purpose: int) -> int:
        return random_seed(self.seed, epoch, purpose)

    def predict(self, times: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        layers, potential = fire(times, self.average.of(self.weights), self.settings.network)
        return tuple(layers), potential

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "average": self.average.state_dict(), "spikes": self.spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self.spikes = state["weights"], state["spikes"]
        self.average.load_state_dict(state["average"])


def spike_layers(
    settings: BaseSettings, shape: tuple[int, ...], classes: int, seed: int
) -> list[SpikeLinear]:
    """Layers with fresh weights; silent outputs learn, as in the released code."""
    network = settings.network
    layers: list[SpikeLinear] = []
    weights = draw_weights(network, math.prod(shape), classes, seed)
    for weight, threshold in zip(weights, training_thresholds(settings), strict=True):
        layer = SpikeLinear(
            weight.shape[1],
            weight.shape[0],
            IF(threshold, delay=1),
            t_max=network.t_max,
            silent_gradient=len(layers) == len(network.hidden),
            dtype=weight.dtype,
        )
        layer.load_state_dict({"weight": weight})
        layers.append(layer)
    return layers


class S4NNMinibatch(Minibatch):
    """Mini-batches through `nn.SpikeLinear`, autograd and a torch optimiser.

    Methods with other targets pass another criterion on (times, labels).
    """

    settings: BaseSettings
    training: MinibatchRecipe

    def __init__(
        self,
        settings: BaseSettings,
        layers: Sequence[SpikeLinear],
        criterion: nn.Module,
        shape: tuple[int, ...],
        seed: int,
        device: str,
    ) -> None:
        self.layers, self.criterion = layers, criterion
        super().__init__(settings, layers, shape, seed, device)
        self.directions: list[Tensor] = []

    @property
    def learned(self) -> list[Tensor]:
        """Weights as the optimiser has them; those of `layers` are what the neurons see."""
        return [layer.weight for layer in self.layers]

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.criterion(outputs, labels)
        return loss

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        seed = random_seed(self.seed, epoch, REDRAWING)
        redraw_dead(self.settings, self.learned, self.spikes, len(times), seed)
        self.directions = self.directions or self._common_directions(times)

    def forward(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        if not self.network.training:
            return fire(times, [layer.weight for layer in self.layers], self.settings.network)
        times = drop(times, self.training.input_dropout, self.dropping)
        fired: list[Tensor] = []
        for layer in self.layers:
            times, potential = layer(times, return_potential=True)
            if self.training.normalize_errors:
                times = normalize_error(times)
            fired.append(times)
            if layer is not self.layers[-1]:
                times = drop(times, self.training.dropout, self.dropping)
        return fired, potential

    def after_backward(self) -> None:
        """Gradient centralization (Yong et al., ECCV 2020) of the hidden layers.

        Every counted input has the same dV/dw = 1, so that a hidden neuron's gradient is mostly a
        common shift of all its weights: it fires ever earlier, or dies. Without that shift in the
        gradient the pattern is learned instead.
        """
        if not self.training.center_gradients:
            return
        for weight, direction in zip(self.learned[:-1], self.directions, strict=True):
            assert weight.grad is not None
            weight.grad -= torch.outer(weight.grad @ direction, direction)

    def _common_directions(self, times: Tensor) -> list[Tensor]:
        """Unit vectors of the common shift: all weights alike, or as often as each input spikes."""
        directions = [torch.ones_like(weight[0]) for weight in self.learned[:-1]]
        if self.training.center_along == "mean input":
            directions[0] = times.isfinite().to(directions[0]).mean(0)
        return [direction / direction.norm() for direction in directions]
