"""The methods, one file each; a config names its implementation."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..config import Config

IMPLEMENTATIONS = ("s4nn", "ts4tl", "bs4nn", "ds4nn", "every_bin", "mostafa", "sparse_ramp")


@dataclass(frozen=True)
class EpochStatistics:
    """Means over the training samples of an epoch; from `spikes` on, one number per layer of neurons.

    `silent` is the fraction of (sample, neuron) pairs without a spike, `dead` the number of neurons
    that no sample made fire.
    """

    loss: float
    accuracy: float
    spikes: tuple[float, ...]
    silent: tuple[float, ...]
    dead: tuple[int, ...]

    @classmethod
    def of(cls, loss: float, right: float, spikes: Sequence[Tensor], samples: int) -> EpochStatistics:
        """From sums over the samples; `spikes` counts those of every neuron, layer by layer."""
        per_sample = [layer.sum().item() / samples for layer in spikes]
        return cls(
            loss / samples,
            right / samples,
            tuple(per_sample),
            tuple(1 - fired / layer.numel() for fired, layer in zip(per_sample, spikes, strict=True)),
            tuple(int((layer == 0).sum()) for layer in spikes),
        )


class Method(Protocol):
    """What the runner asks of a method."""

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        """Train on all samples once; call `advance` with the number of samples done."""
        ...

    def predict(self, times: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Spike times of every layer of neurons, and the potential of the outputs."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was called."""
        ...


def module(implementation: str) -> Any:
    """The module of an implementation: its `Settings`, and `build`."""
    return importlib.import_module(f".{implementation}", __name__)


def build(settings: Config, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """The method that a config names, with fresh weights, for images [channels, height, width]."""
    torch.manual_seed(random_seed(seed))
    method: Method = module(settings.implementation).build(settings, shape, classes, seed, device)
    return method


def random_seed(*key: int) -> int:
    """A seed that depends on the key alone, e.g. on seed, epoch and purpose: a resumed run repeats it."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])
