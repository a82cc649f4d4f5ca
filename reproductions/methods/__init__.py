"""The methods, one file each; a config names its implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..config import Config
from ..errors import SuiteError


@dataclass(frozen=True)
class EpochStatistics:
    """Means over the training samples of an epoch; `spikes` holds one number per layer of neurons."""

    loss: float
    accuracy: float
    spikes: tuple[float, ...]


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


def build(config: Config, features: int, classes: int, seed: int, device: str) -> Method:
    """The method that a config names, with fresh weights."""
    from .s4nn import S4NNMinibatch, S4NNOnline

    if config.training.protocol == "minibatch":
        return S4NNMinibatch(config, features, classes, seed, device)
    if device != "cpu":
        raise SuiteError(f"--device: the online protocol of {config.method} runs on the CPU, got {device!r}")
    return S4NNOnline(config, features, classes, seed)
