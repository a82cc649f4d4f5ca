"""TEBN (Duan et al., NeurIPS 2022): batch normalisation over all steps, and a learned scale for each step.

x -> p[t] (gamma (x - mean) / deviation + beta); mean and deviation are over batch, steps and positions, p[t]
is a number per layer and step, 1 at first. Neurons: V <- V / 4 (1 - s) + I, threshold 1, surrogate
max(0, 1 - |V - 1|). The reset is detached from the graph, as snnTorch's is; gradients of the authors go
through it. Controls: no normalisation, the batch's alone (p = 1), and statistics of each step of its
own (BNTT, Kim & Panda 2021).

No number on grey images is published; the network and its training are ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from . import multi_spike
from .multi_spike import MultiSpike


class Network(multi_spike.Network):
    normalization: Literal["none", "batch", "each-step", "tebn"]


class Settings(multi_spike.Settings):
    network: Network


class TEBN(MultiSpike):
    settings: Settings

    def norm(self, number: int, channels: int, spatial: bool) -> nn.Module:
        over_batch = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        kind, in_all_steps = self.settings.network.normalization, self.in_all_steps(number)
        if kind == "none":
            return in_all_steps
        if kind == "each-step":
            return nn.Sequential(in_all_steps, EachStep([over_batch(channels) for _ in range(self.steps)]))
        over_all = nn.Sequential(over_batch(channels), in_all_steps)
        return over_all.append(StepScale(self.steps)) if kind == "tebn" else over_all


class StepScale(nn.Module):
    """A learned factor for each step: [T * batch, *] to the same."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(steps))

    def forward(self, currents: Tensor) -> Tensor:
        of_sample = self.weight.repeat_interleave(len(currents) // len(self.weight))
        return currents * of_sample.reshape(-1, *[1] * (currents.ndim - 1))


class EachStep(nn.ModuleList):
    """A normalisation of its own for each step: [T * batch, *] to the same."""

    def forward(self, currents: Tensor) -> Tensor:
        return torch.cat([norm(part) for norm, part in zip(self, currents.chunk(len(self)), strict=True)])


build = TEBN
