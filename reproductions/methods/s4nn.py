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
from torch.optim.swa_utils import AveragedModel

from ssnn_plugin import IF, online
from ssnn_plugin.functional import drop_spikes, first_spike_linear
from ssnn_plugin.losses import RelativeTargetLoss

from ..config import Fraction
from ..records import EpochStatistics
from . import Method, centered, layered, random_seed, require_cpu
from .centered import Centered
from .layered import Drawn, Dropout, Normal, Uniform, check_gamma
from .minibatch import DROPPING, REDRAWING, SHUFFLING, restore_average

# Samples that one compiled call learns from. Part of the protocol: the learning rate moves, and the
# random numbers of the dropout are drawn, once per chunk.
CHUNK = 2000


class Network(Drawn):
    """Fully connected integrate-and-fire neurons in discrete time."""

    threshold: PositiveFloat
    t_max: PositiveInt

    @model_validator(mode="after")
    def _fully_connected(self) -> Network:
        if not all(layer.isdigit() for layer in self.layers):
            raise ValueError(f'layers must all be fully connected, such as ["400"], got {self.layers}')
        return self


class Recipe(Dropout):
    """What both protocols share, for this method and those that build on it."""

    learning_rates: list[PositiveFloat]
    weight_decay: Fraction = 0.0
    scale_dropout: bool = False
    redraw_below: Fraction = 0.0

    @model_validator(mode="after")
    def _dropout_is_used(self) -> Recipe:
        if self.scale_dropout and not self.dropout:
            raise ValueError("scale_dropout needs a dropout above 0")
        return self


class MinibatchRecipe(Recipe, centered.Training):
    """Mini-batches through the ordinary layers, autograd and a torch optimiser."""

    def criterion(self, t_max: float) -> nn.Module:
        """The loss on (times, labels)."""
        raise NotImplementedError


class RelativeRecipe(MinibatchRecipe):
    """The label first, all others `gamma` bins later."""

    gamma: PositiveFloat

    def criterion(self, t_max: float) -> nn.Module:
        return RelativeTargetLoss(self.gamma, t_max)


class OnlineTraining(Recipe):
    """One sample at a time, as S4NN's authors train."""

    protocol: Literal["online"]
    gamma: PositiveFloat
    shuffle: bool = False


class MinibatchTraining(RelativeRecipe):
    """The same rule in mini-batches."""

    protocol: Literal["minibatch"]


class BaseSettings(layered.Settings):
    """Settings of this method and of those that build on it."""

    network: Network
    training: Recipe

    @model_validator(mode="after")
    def _training_fits_network(self) -> BaseSettings:
        layers, rates = len(self.network.layers) + 1, len(self.training.learning_rates)
        if layers != rates:
            raise ValueError(
                f"training.learning_rates must hold {layers} numbers, one per layer, got {rates}"
            )
        if self.training.dropout and not self.network.layers:
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


def build(settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """S4NN by the protocol of its settings."""
    if settings.training.protocol == "minibatch":
        return S4NNMinibatch(settings, shape, classes, seed, device)
    require_cpu(f"the online protocol of {settings.method}", device)
    return S4NNOnline(settings, shape, classes, seed)


def draw_weights(network: Network, features: int, classes: int, seed: int) -> list[Tensor]:
    """As the authors draw them: NumPy's RandomState, first layer first."""
    random = np.random.RandomState(seed)
    sizes = [features, *map(int, network.layers), classes]
    weights = []
    for n_in, n_out, init in zip(sizes, sizes[1:], network.init, strict=False):
        weights.append(torch.from_numpy(init.drawn(random, (n_out, n_in))).to(network.torch_dtype))
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
    return [threshold] + [reduced] * len(settings.network.layers)


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
        weights = draw_weights(settings.network, math.prod(shape), classes, seed)
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)
        self.average = AveragedModel(self.weights)
        self.spikes: list[Tensor] = []

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        training = self.training
        redraw_dead(self.settings, list(self.weights), self.spikes, len(times), self._seed(epoch, REDRAWING))
        order = torch.arange(len(times))
        if training.shuffle:
            shuffling = torch.Generator().manual_seed(self._seed(epoch, SHUFFLING))
            order = torch.randperm(len(times), generator=shuffling)
        torch.manual_seed(self._seed(epoch, DROPPING))
        loss = right = 0.0
        spikes = [torch.zeros(len(weight), dtype=torch.long) for weight in self.weights]
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            factor = training.schedule.factor(epoch + start / len(order), training.epochs)
            done = online.s4nn_train(
                list(self.weights),
                drop_spikes(times[chunk], training.input_dropout),
                labels[chunk],
                thresholds=training_thresholds(self.settings),
                learning_rates=[rate * factor for rate in training.learning_rates],
                weight_decay=training.weight_decay,
                gamma=training.gamma,
                t_max=self.settings.network.t_max,
                dropout=[training.dropout] * (len(self.weights) - 1) + [0.0],
                seed=int(torch.randint(2**31, ())),
            )
            loss += done.loss * len(chunk)
            right += done.accuracy * len(chunk)
            spikes = [a + b for a, b in zip(spikes, done.spikes, strict=True)]
            advance(len(chunk))
        self.spikes = spikes
        if training.averages(epoch):
            self.average.update_parameters(self.weights)
        return EpochStatistics.of(loss, right, spikes, len(order))

    def _seed(self, epoch: int, purpose: int) -> int:
        return random_seed(self.seed, epoch, purpose)

    def predict(self, times: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        averaged = self.average.module if self.average.n_averaged else self.weights
        layers, potential = fire(times, list(averaged.parameters()), self.settings.network)
        return tuple(layers), potential

    def state_dict(self) -> dict[str, Any]:
        weights = [weight.detach() for weight in self.weights]
        return {"weights": weights, "average": self.average.state_dict(), "spikes": self.spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for weight, kept in zip(self.weights, state["weights"], strict=True):
            weight.copy_(kept)
        restore_average(self.average, state["average"])
        self.spikes = state["spikes"]


class S4NNMinibatch(Centered):
    """Mini-batches through `nn.SpikeLinear`, autograd and a torch optimiser; silent outputs learn, as in the
    released code. Methods with other targets have a `criterion` of their own.
    """

    settings: BaseSettings
    training: MinibatchRecipe
    # The dropped spikes of the recorded runs.
    stream = DROPPING

    def __init__(
        self, settings: BaseSettings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        self.drawn = draw_weights(settings.network, math.prod(shape), classes, seed)
        super().__init__(settings, shape, classes, seed, device)
        self.criterion = self.training.criterion(settings.network.t_max)

    def options(self, number: int) -> dict[str, Any]:
        neuron = IF(training_thresholds(self.settings)[number], delay=1)
        return {"neuron": neuron, "t_max": self.settings.network.t_max, "dropout": 0.0}

    @torch.no_grad()
    def initialize(self, number: int, weight: Tensor) -> None:
        weight.copy_(self.drawn[number])

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.criterion(outputs, labels)
        return loss

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        seed = random_seed(self.seed, epoch, REDRAWING)
        redraw_dead(self.settings, self.learned, self.spikes, len(times), seed)
        super().before_epoch(epoch, times)

    def forward(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        if self.network.training:
            return super().forward(times)
        return fire(times, [layer.weight for layer in self.connections], self.settings.network)

    def arriving(self, number: int, times: Tensor) -> Tensor:
        """Dropout as S4NN's code would have it: what is left does not count for more."""
        return drop_spikes(times, self.training.drop_before(number))
