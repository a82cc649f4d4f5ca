"""LTMD (Wang et al., NeurIPS 2022): learned thresholds, and a dropout that spares active neurons.

Leaky neurons as in TEBN, V <- V / 4 (1 - s) + I; the threshold of a layer is tanh(w) with a learned w, 1/2 at
first, and the surrogate is 1 where |V - threshold| < 1/2. Resets are detached from the graph, as snnTorch's
are; gradients of the authors go through them. Currents are normalised over the batch, also those of the last
hidden layer, which the authors' are not. That layer's are *output neurons*, which pass on their potential
where it crosses the threshold, with a lateral current from their neighbours (a convolution of five taps along
the layer); the classes are output neurons, too, and the scores their mean over the steps. So the last two
connections multiply real numbers, which are not counted.

*Moderate dropout* of rate r keeps a neuron of the last hidden layer with the probability
p = clip(1 - (1 - d) r / (1 - mean d)), where d is its mean activity over the steps, scaled to 0 ... 1 over
the batch; what is kept is divided by p. Two masks are drawn for each sample, and the loss is the mean of
both cross-entropies and a quarter of their symmetric divergence, its mean over the classes.

Controls: thresholds that stay as they are, and no dropout. The paper's network on MNIST is a DenseNet, ours
is small; what its authors did on MNIST besides is not released.
"""

from __future__ import annotations

import math

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssnn_plugin.surrogate import Surrogate

from ..config import Fraction
from . import multi_spike
from .architecture import Convolution, Pool, parse
from .multi_spike import MultiSpike, OverSteps, leaky

TAPS = 5
# On either side of a threshold.
REACH = 0.5


class Network(multi_spike.Network):
    """`threshold` is that at first."""

    threshold: float = math.tanh(0.5)
    learn_threshold: bool = True

    @model_validator(mode="after")
    def _threshold_in_reach(self) -> Network:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is a tanh: it must lie between 0 and 1, got {self.threshold}")
        return self

    @model_validator(mode="after")
    def _output_neurons_in_a_row(self) -> Network:
        neurons = [written for written in self.layers if not isinstance(parse(written), Pool)]
        if isinstance(parse(neurons[-1]), Convolution):
            raise ValueError(f"the last layer must be fully connected, such as '128', got {neurons[-1]!r}")
        return self


class Training(multi_spike.Training):
    """`moderate_dropout` is the rate r, of the last hidden layer."""

    moderate_dropout: Fraction = 0.0


class Settings(multi_spike.Settings):
    network: Network
    training: Training


class Window(Surrogate):
    """1 where |u| < 1/2, at a distance u from the threshold."""

    def derivative(self, distance: Tensor) -> Tensor:
        return (distance.abs() < REACH).to(distance)


class LTMD(MultiSpike):
    settings: Settings
    training: Training

    def norm(self, number: int, channels: int, spatial: bool) -> nn.Module:
        over_batch = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        return nn.Sequential(over_batch(channels), self.in_all_steps(number))

    def neurons(self, number: int) -> nn.Module:
        network = self.settings.network
        if number == self.last - 1:
            return OutputNeurons(network, self.steps)
        neuron = leaky(network, Window(), learn_threshold=network.learn_threshold)
        if network.learn_threshold:
            parametrize.register_parametrization(neuron, "threshold", Tanh())
        return OverSteps(neuron, self.steps)

    def readout(self, connection: nn.Module) -> nn.Module:
        network, rate = self.settings.network, self.training.moderate_dropout
        outputs = OutputNeurons(network, self.steps)
        dropout = ModerateDropout(rate, self.steps) if rate else nn.Identity()
        return nn.Sequential(dropout, connection, outputs)

    @property
    def masks(self) -> int:
        """How many runs of each sample the outputs hold, side by side."""
        return 2 if self.network.training and self.training.moderate_dropout else 1

    def fired(self, outputs: Tensor) -> Tensor:
        """Each potential that is passed on is a spike with a value."""
        return outputs

    def scores(self, outputs: Tensor) -> Tensor:
        return torch.stack(outputs.mean(0).chunk(self.masks)).mean(0)

    def criterion(self, outputs: Tensor, labels: Tensor) -> Tensor:
        runs = outputs.mean(0).chunk(self.masks)
        loss = torch.stack([nn.functional.cross_entropy(run, labels) for run in runs]).mean()
        if len(runs) == 1:
            return loss
        a, b = (nn.functional.log_softmax(run, dim=1) for run in runs)
        divergence = ((a - b) * (a.exp() - b.exp())).mean() / 2
        return loss + divergence / 2


class Tanh(nn.Module):
    """Parametrization of a threshold by tanh(w)."""

    def forward(self, w: Tensor) -> Tensor:
        return w.tanh()

    def right_inverse(self, threshold: Tensor) -> Tensor:
        return threshold.atanh()


class OutputNeurons(nn.Module):
    """Leaky neurons that pass on V where it crosses the threshold, with a current from their neighbours."""

    def __init__(self, network: Network, steps: int) -> None:
        super().__init__()
        self.beta, self.threshold, self.steps = network.beta, network.threshold, steps
        self.lateral = nn.Conv1d(1, 1, TAPS, padding=TAPS // 2, bias=False)

    def forward(self, currents: Tensor) -> Tensor:
        """Currents [T * batch, neurons] to potentials of the same shape, 0 below the threshold."""
        currents = currents + self.lateral(currents.unsqueeze(1)).squeeze(1)
        passed, v = [], torch.zeros_like(currents[: len(currents) // self.steps])
        for current in currents.chunk(self.steps):
            v = self.beta * v * (v <= self.threshold) + current
            near = v * (v >= self.threshold - REACH)  # what learns, as the surrogate of spikes has it
            passed.append(near - (near * (v <= self.threshold)).detach())
        return torch.cat(passed)


class ModerateDropout(nn.Module):
    """Two masks for each sample, the same in all steps: [T * batch, neurons] to [T * 2 batch, neurons]."""

    def __init__(self, rate: float, steps: int) -> None:
        super().__init__()
        self.rate, self.steps = rate, steps

    def forward(self, potentials: Tensor) -> Tensor:
        if not self.training:
            return potentials
        trains = torch.stack(potentials.chunk(self.steps)).repeat(1, 2, 1)
        keep = self.keep(trains.detach().mean(0))
        kept = torch.bernoulli(keep.nan_to_num())  # NaN where training has diverged: the loss will say so
        return (trains * kept / keep.clamp(min=1e-6)).flatten(0, 1)

    def keep(self, activity: Tensor) -> Tensor:
        """Probability to keep each neuron, from its mean activity [samples, neurons]."""
        low, high = activity.aminmax()
        scaled = (activity - low) / (high - low).clamp(min=1e-12)
        return (1 - (1 - scaled) * self.rate / (1 - scaled.mean()).clamp(min=1e-12)).clamp(0, 1)


build = LTMD
