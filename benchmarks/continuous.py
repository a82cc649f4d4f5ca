"""Training steps of 784-400-10 in continuous time, by the exact gradient, against a ReLU MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from benchmarks.mnist import Batch, Batches
from benchmarks.step import add_stages, dense_network, fused_with_adam, of_images, step_with_adam
from ssnn_plugin import LIF, ExpPSP, ReLPSP
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import SpikeLinear, SpikeSequential


@dataclass(frozen=True)
class Case:
    """A neuron in continuous time, its windows (hidden, output) and initial weights (mean, deviation)."""

    neuron: ReLPSP | ExpPSP | LIF
    windows: tuple[float, float]
    hidden: tuple[float, float]
    output: tuple[float, float]

    def network(self) -> SpikeSequential:
        """784-400-10."""
        layers = [
            SpikeLinear(n_in, n_out, self.neuron, t_max=t_max)
            for n_in, n_out, t_max in zip((784, 400), (400, 10), self.windows, strict=True)
        ]
        for layer, init in zip(layers, (self.hidden, self.output), strict=True):
            nn.init.normal_(layer.weight, *init)
        return SpikeSequential(*layers)


# The crossing of LIF has a closed form for the ratio 2 of its time constants, and is searched for with the
# ratio 3.3. Weights, windows and threshold * tau_mem are those of ReLPSP, so that both fire about as often,
# and long before the peak of V, where gradients have no bound and outputs would fall silent for good.
CASES = (
    Case(ReLPSP(), (2.0, 4.0), (0.01, 0.05), (0.02, 0.05)),
    Case(ExpPSP(), (3.0, 6.0), (0.02, 0.08), (0.02, 0.05)),
    Case(LIF(0.17, tau_mem=6.0, tau_syn=3.0), (2.0, 4.0), (0.01, 0.05), (0.02, 0.05)),
    Case(LIF(0.1, tau_mem=9.9, tau_syn=3.0), (2.0, 4.0), (0.01, 0.05), (0.02, 0.05)),
)


def in_continuous_time(data: Batch) -> Batch:
    """The same images with times 1 - x; no light, no spike."""
    return data._replace(times=torch.where(data.images > 0, 1 - data.images, torch.inf))


def table(batches: Batches, steps: int) -> Table:
    """Training steps of each neuron, in two ways, and of the MLP, on times of `in_continuous_time`."""
    found = Table("neuron", "stage", "spiking (ms)", "ReLU MLP (ms)", "ratio")
    for case in CASES:
        t_max = case.windows[1]
        loss = TemporalCrossEntropyLoss(t_max, 0.1 / t_max)
        for name, make in (("", step_with_adam), (", FusedStep", fused_with_adam)):
            dense = step_with_adam(dense_network(), nn.CrossEntropyLoss(), of_images)
            add_stages(found, f"{case.neuron}{name}", (make(case.network(), loss), dense), batches, steps)
    return found
