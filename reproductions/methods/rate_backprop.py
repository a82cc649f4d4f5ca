"""Rate-based back-propagation (Yu et al., NeurIPS 2024), and back-propagation through time as its control.

Leaky neurons with a soft reset, V <- lambda V + I, spike where V > 1, V <- V - s. The spikes of T steps are
computed without a graph; each layer keeps its mean spikes r and the eligibility
e = mean_t kappa_t s'(V_t - 1), where kappa_1 = 1 and kappa_(t+1) = 1 + kappa_t (lambda - lambda s'_t): what
a lasting current adds to V. With a reset that is detached from the graph, as the authors have it, the last
term is left out. Then one pass through a static network of rates r + e (x - x), where x is the
mean current, with a graph, learns at a cost that does not grow with T. Its values are those of the spikes,
its gradient that of the rates.

Batches are normalised in every step, and images that are not learned from with running statistics of that
step, as a layer gets more spikes in some steps than in others. The pass of rates has the mean of the
statistics, which learn as statistics of the rates. A neuron that fires once has the rate 0 or 1 / T: this is
no method for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from ssnn_plugin.surrogate import Surrogate

from ..records import EpochStatistics
from . import multi_spike
from .minibatch import NORMALIZING, refuse_a_single_sample, spread
from .multi_spike import MultiSpike, OverSteps, SoftReset, SpikingLayer, leaky

SLOPE = 4.0
# Of the running statistics, and what a variance is greater by, as torch's own have them.
MOMENTUM, EPS = 0.1, 1e-5


class Training(multi_spike.Training):
    """`reset_gradient` says whether a spike's gradient goes on through its reset, in either kind of gradient.

    After every epoch the statistics of so many training images, changed as in training, take the place of
    running ones, if `statistics_of` is above 0.
    """

    gradient: Literal["rate", "through-time"]
    reset_gradient: Literal["attached", "detached"] = "attached"
    statistics_of: NonNegativeInt = 0


class Settings(multi_spike.Settings):
    training: Training


class Sigmoid(Surrogate):
    """Derivative of a sigmoid of slope 4."""

    def derivative(self, distance: Tensor) -> Tensor:
        spike = torch.sigmoid(SLOPE * distance)
        return SLOPE * spike * (1 - spike)


@dataclass
class Rates:
    """Sums over the steps so far: of a layer's spikes, its eligibility, and the statistics of its currents.

    `v` and `kappa` are those of the next step.
    """

    v: Tensor | float = 0.0
    kappa: Tensor | float = 1.0
    spikes: Tensor | float = 0.0
    eligibility: Tensor | float = 0.0
    mean: Tensor | float = 0.0
    variance: Tensor | float = 0.0


class InEachStep(nn.Module):
    """The normalisation of the batch of each step: [T * batch, channels, *] to the same.

    `repeat` is `MultiSpike.in_all_steps`. All steps have one gain and one shift, and statistics of their own.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, steps: int, repeat: nn.Module) -> None:
        super().__init__()
        self.steps, self.repeat, self.momentum = steps, repeat, MOMENTUM
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(steps, channels))
        self.register_buffer("variance", torch.ones(steps, channels))

    def forward(self, currents: Tensor) -> Tensor:
        parts = self.repeat(currents).chunk(self.steps)
        return torch.cat([self.of_step(t, part) for t, part in enumerate(parts)])

    def of_step(self, t: int, currents: Tensor) -> Tensor:
        """Currents of a step [batch, channels, *], normalised."""
        kept, learned = (self.mean[t], self.variance[t]), (self.weight, self.bias)
        return F.batch_norm(currents, *kept, *learned, self.training, self.momentum, EPS)

    def of_rates(self, currents: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Mean currents [batch, channels, *], normalised; the values of the statistics are those given."""
        own_mean, own_variance = statistics(currents)
        mean = mean + own_mean - own_mean.detach()
        variance = variance + own_variance - own_variance.detach()
        normalized = (currents - mean) * (variance + EPS).rsqrt()
        weight, bias = (per_channel(value, currents) for value in (self.weight, self.bias))
        return weight * normalized + bias


class RateLayer(SpikingLayer):
    """A spiking layer that can do one step, and learn from rates."""

    norm: InEachStep
    neurons: OverSteps

    def step(self, t: int, inputs: Tensor, rates: Rates, surrogate: Surrogate) -> Tensor:
        """Spikes of the step t; `rates` takes them up."""
        current = self.connection(inputs).to(self.norm.weight.dtype)
        mean, variance = statistics(current)
        neuron = self.neurons.neuron
        assert isinstance(neuron, SoftReset)
        v = neuron.integrated(self.norm.of_step(t, current), rates.v)
        spikes: Tensor = (v > neuron.threshold).to(v)
        slope = surrogate.derivative(v - neuron.threshold)
        rates.spikes, rates.eligibility = rates.spikes + spikes, rates.eligibility + rates.kappa * slope
        rates.mean, rates.variance = rates.mean + mean, rates.variance + variance
        rates.v = v - neuron.threshold * spikes
        reset = 0.0 if neuron.detached else neuron.threshold * slope
        rates.kappa = 1 + neuron.beta * rates.kappa * (1 - reset)
        return spikes

    def rate(self, inputs: Tensor, rates: Rates, steps: int) -> Tensor:
        """Mean spikes, of which the mean currents are the cause."""
        current = self.connection(inputs).to(self.norm.weight.dtype)
        x = self.norm.of_rates(
            current, torch.as_tensor(rates.mean / steps), torch.as_tensor(rates.variance / steps)
        )
        return (rates.spikes + rates.eligibility * (x - x.detach())) / steps


class RateBackprop(MultiSpike):
    settings: Settings
    training: Training
    layer = RateLayer
    surrogate = Sigmoid()

    def norm(self, number: int, channels: int, spatial: bool) -> nn.Module:
        return InEachStep(channels, self.steps, self.in_all_steps(number))

    def neurons(self, number: int) -> OverSteps:
        neuron = leaky(self.settings.network, self.surrogate, SoftReset)
        neuron.detached = self.training.reset_gradient == "detached"
        return OverSteps(neuron, self.steps)

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        refuse_a_single_sample(len(times), self.training.batch_size)
        if self.training.statistics_of:
            refuse_a_single_sample(min(self.training.statistics_of, len(times)), self.training.batch_size)

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        statistics = super().train_epoch(epoch, times, labels, advance)
        if self.training.statistics_of:
            inputs = spread(times, self.training.statistics_of)
            self._take_statistics(self.varied(inputs, self.generator(epoch, NORMALIZING)))
        return statistics

    @torch.no_grad()
    def _take_statistics(self, images: Tensor) -> None:
        """Let the running statistics be the means of those of some mini-batches."""
        norms = [module for module in self.network.modules() if isinstance(module, InEachStep)]
        for number, part in enumerate(torch.split(images.to(self.device), self.training.batch_size)):
            for norm in norms:
                norm.momentum = 1 / (number + 1)
            self.run(part)
        for norm in norms:
            norm.momentum = MOMENTUM

    def learn(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        if self.training.gradient == "through-time":
            return super().learn(images)
        layers = [layer for layer in self.network.modules() if isinstance(layer, RateLayer)]
        shaped, all_rates = self.shaped(images), [Rates() for _ in layers]
        with torch.no_grad():
            for t in range(self.steps):
                values = shaped
                for layer, stage, rates in zip(layers, self.stages, all_rates, strict=False):
                    values = stage.after(layer.step(t, values, rates, self.surrogate))
        values = shaped
        for layer, stage, rates in zip(layers, self.stages, all_rates, strict=False):
            values = stage.after(layer.rate(values, rates, self.steps))
        outputs = self.stages[-1].neurons(values).to(images.dtype)
        return [torch.as_tensor(rates.spikes) for rates in all_rates], outputs.unsqueeze(0)


def statistics(currents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel, as they go with currents [batch, channels, *]."""
    across = [0, *range(2, currents.ndim)]
    variance, mean = torch.var_mean(currents, across, unbiased=False, keepdim=True)
    return mean, variance


def per_channel(values: Tensor, currents: Tensor) -> Tensor:
    """Values [channels] as they go with currents [batch, channels, *]."""
    return values.reshape(-1, *[1] * (currents.ndim - 2))


build = RateBackprop
