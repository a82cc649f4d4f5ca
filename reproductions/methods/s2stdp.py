"""S2-STDP with neuron competition groups, and its relatives (Goupy et al. 2024), one sample at a time.

A fully connected layer of integrate-and-fire neurons that fire once, `per_class` of them for every class, on
inputs in continuous time 0 ... 1. The first one decides. Each updated neuron has a wanted time, and its
error scales an STDP: inputs up to its spike change by one amount, all later and silent ones by another.

- `s2stdp`: targets lie around the mean time of those that fired, a gap apart;
- `sstdp`: the same, but who is early, or late, enough is left alone (Liu et al. 2021);
- `s4nn`: the earliest time is what others are measured by (Kheradpisheh & Masquelier 2020);
- `r-stdp`: the winner alone, rewarded or punished (Mozafari et al. 2018).

Competition groups: within a class the first neuron alone learns. `non_target` of the neurons of a class learn
to be late whatever the label, and thresholds are raised, while learning, of those that win too often.
Samples come in file order, as in the authors' protocol.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from .. import config
from ..compiled.competition import RULES, WINDOW, Inputs, Rule, learn, run
from ..config import Config, Fraction, Linear
from ..evaluation import PopulationSpikes
from ..records import EpochStatistics
from . import random_seed, require_cpu

# Samples that one compiled call learns from, after which progress is told.
CHUNK = 1000
DRAWING, DROPPING = 1, 2


class Network(config.Network):
    """The outputs: `per_class` neurons for each class, of which the first `non_target` learn to be late."""

    t_max: float = Field(WINDOW, ge=WINDOW, le=WINDOW)
    dtype: Literal["float32", "float64"] = "float32"  # of the times alone
    per_class: PositiveInt = 1
    non_target: NonNegativeInt = 0
    threshold: PositiveFloat
    init: tuple[float, NonNegativeFloat]
    weight_range: tuple[float, float] = (0.0, 1.0)
    normalize_weights: bool = False

    @property
    def name(self) -> str:
        return ""

    @model_validator(mode="after")
    def _targets_are_left(self) -> Network:
        if self.non_target >= self.per_class:
            raise ValueError(f"non_target must be below per_class = {self.per_class}, got {self.non_target}")
        return self


class Training(config.Unscheduled):
    """`a_plus` and `a_minus` change the weights of inputs before and after a spike that came too late.

    A spike that came too early changes them by as much the other way. All shrink by `annealing` per epoch.
    `threshold_rate` is that of the competition's thresholds, which shrinks by `threshold_annealing`.
    """

    rule: Literal["s2stdp", "sstdp", "s4nn", "r-stdp"]
    gap: NonNegativeFloat = 0.0
    a_plus: float
    a_minus: float
    anti_plus: float | None = None
    anti_minus: float | None = None
    annealing: PositiveFloat = 0.98
    first_of_class: bool = False
    thresholds: Literal["fixed", "one", "two"] = "fixed"
    threshold_rate: NonNegativeFloat = 0.0
    threshold_annealing: PositiveFloat = 1.0
    output_dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _options_are_used(self) -> Training:
        if (self.threshold_rate > 0) != (self.thresholds != "fixed"):
            raise ValueError(f"threshold_rate goes with thresholds 'one' or 'two', got {self.thresholds!r}")
        if (self.anti_plus is None or self.anti_minus is None) == (self.rule == "r-stdp"):
            raise ValueError(f"anti_plus and anti_minus go with rule 'r-stdp', got rule {self.rule!r}")
        if self.rule == "r-stdp" and (self.gap or self.first_of_class):
            raise ValueError("gap and first_of_class are no options of rule 'r-stdp'")
        if self.threshold_annealing != 1 and self.thresholds == "fixed":
            raise ValueError("threshold_annealing goes with thresholds 'one' or 'two', got 'fixed'")
        return self


class Settings(Config):
    encoding: Linear
    network: Network
    training: Training

    @model_validator(mode="after")
    def _inputs_within_the_window(self) -> Settings:
        if self.encoding.scale > WINDOW:
            raise ValueError(f"encoding.scale must be at most the window, 1, got {self.encoding.scale}")
        return self

    @model_validator(mode="after")
    def _two_thresholds_of_several_targets(self) -> Settings:
        targets = self.network.per_class - self.network.non_target
        if self.training.thresholds == "two" and targets < 2:
            raise ValueError(
                "training.thresholds 'two' needs two target neurons per class, network.per_class - "
                f"non_target, got {targets}"
            )
        return self


class S2STDP:
    """The readout, learning one sample at a time."""

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        require_cpu(settings.method, device)
        self.settings, self.training, self.seed = settings, settings.training, seed
        network = settings.network
        random = np.random.default_rng(random_seed(seed, 0, DRAWING))
        size = math.prod(shape), classes * network.per_class
        drawn = random.normal(*network.init, size).clip(*network.weight_range)
        self.weight = np.ascontiguousarray(drawn.T)
        self.thresholds = np.full(size[1], network.threshold)
        self.mass = float(abs(self.weight).sum() / size[1]) if network.normalize_weights else 0.0
        self.accuracy = 1 / classes
        self.sorted: tuple[Tensor, Inputs] | None = None

    def rule(self, epoch: int) -> Rule:
        training, network = self.training, self.settings.network
        shrunk = training.annealing**epoch
        return Rule(
            RULES.index(training.rule),
            training.gap,
            shrunk * training.a_plus,
            shrunk * training.a_minus,
            shrunk * (training.anti_plus or 0.0),
            shrunk * (training.anti_minus or 0.0),
            network.per_class,
            network.non_target,
            training.first_of_class,
            *network.weight_range,
            self.mass,
        )

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        training, rule = self.training, self.rule(epoch)
        inputs, y = self.in_order(times), labels.numpy()
        raised = self.thresholds.copy()
        rate = training.threshold_rate * training.threshold_annealing**epoch
        floor = self.settings.network.threshold if training.thresholds == "two" else -math.inf
        random = np.random.default_rng(random_seed(self.seed, epoch, DROPPING))
        fired = np.zeros(len(self.thresholds), dtype=np.int64)
        right, loss = 0, 0.0
        for start in range(0, len(y), CHUNK):
            part, of_part = inputs.part(start, start + CHUNK), y[start : start + CHUNK]
            dropped = random.random((len(of_part), len(raised))) < training.output_dropout
            one = training.thresholds == "one"
            competition = raised, rate, floor, one, dropped, self.accuracy
            done = learn(part, of_part, self.weight, self.thresholds, *competition, rule, fired)
            right, loss = right + done[0], loss + done[1]
            advance(len(of_part))
        if training.thresholds == "one":
            self.thresholds = raised
        self.accuracy = float(right / len(y))
        return EpochStatistics.of(loss, right, [torch.from_numpy(fired)], len(y))

    def in_order(self, times: Tensor) -> Inputs:
        """The training samples with their spikes sorted, once for all epochs."""
        if self.sorted is None or self.sorted[0] is not times:
            self.sorted = times, Inputs.of(silence_last(times))
        return self.sorted[1]

    def predict(self, inputs: Tensor) -> PopulationSpikes:
        x = silence_last(inputs)
        out = np.empty((len(x), len(self.thresholds)))
        v = np.empty_like(out)
        run(Inputs.of(x), self.weight, self.thresholds, out, v)
        times = torch.from_numpy(out)
        times = times.masked_fill(times >= WINDOW, math.inf)
        return of_classes(times, torch.from_numpy(v), self.settings.network.per_class)

    def state_dict(self) -> dict[str, Any]:
        arrays = {"weight": torch.from_numpy(self.weight), "thresholds": torch.from_numpy(self.thresholds)}
        return {**arrays, "mass": self.mass, "accuracy": self.accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.thresholds = (state[name].numpy().copy() for name in ("weight", "thresholds"))
        self.mass, self.accuracy = state["mass"], state["accuracy"]


def silence_last(times: Tensor) -> Any:
    """Times as an array in which 1 is silence."""
    return times.clamp(max=WINDOW).contiguous().numpy()


def of_classes(times: Tensor, potential: Tensor, per_class: int) -> PopulationSpikes:
    """A class fires with its first neuron, which is the one of the highest potential among equals."""
    groups, v = (x.reshape(len(x), -1, per_class) for x in (times, potential))
    first = groups.min(dim=2).values
    highest = v.masked_fill(groups > first.unsqueeze(2), -math.inf).max(dim=2).values
    return PopulationSpikes((times,), highest, first)


build = S2STDP
