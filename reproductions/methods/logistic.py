"""Multinomial logistic regression on real-valued features: what a readout by spikes is measured against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .. import config
from ..config import Config, Direct
from ..evaluation import SpikeTotals
from . import minibatch
from .minibatch import Done, Minibatch


class Network(config.Network):
    """One connection, without neurons and without time."""

    t_max: Literal[1] = 1
    dtype: Literal["float32"] = "float32"

    @property
    def name(self) -> str:
        return ""


class Settings(Config):
    encoding: Direct
    network: Network
    training: minibatch.Training


class LogisticRegression(Minibatch):
    """Cross-entropy on a weighted sum; nothing fires, and every feature is multiplied."""

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        # `methods.build` seeds torch with another number, but the recorded runs drew their weights with this.
        torch.manual_seed(seed)
        self.connection = nn.Linear(torch.Size(shape).numel(), classes)
        super().__init__(settings, [self.connection], shape, seed, device)

    def _step(self, inputs: Tensor, labels: Tensor) -> Done:
        scores = self.connection(inputs)
        loss = nn.functional.cross_entropy(scores, labels)
        self._learn(loss)
        right = (scores.argmax(1) == labels).sum().item()
        return Done(loss.item(), right, [scores.new_zeros(scores.shape[1])])

    def predict(self, inputs: Tensor) -> SpikeTotals:
        with torch.no_grad(), self._averaged_weights():
            scores = self.connection(inputs.to(self.device))
        silent = torch.full_like(scores[:1], torch.inf)
        return SpikeTotals(
            scores.new_zeros(len(scores), 1), scores, (silent,), self.connection.weight.numel()
        )


build = LogisticRegression
