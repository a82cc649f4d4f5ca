"""Descriptions of neurons that fire at most once: small frozen values, no tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class IF:
    """Non-leaky integrate-and-fire neuron with a step post-synaptic potential.

    The potential after bin ``t`` is ``V(t) = sum_i w_i [t_i <= t]`` (plus ``bias * (t + 1)``
    where the layer has a bias, a constant current in every bin). The neuron fires in the first
    bin in which ``V > threshold``, strictly, and never again.

    Args:
        threshold: potential that has to be exceeded.
        delay: bins between the crossing and the spike; S4NN uses 1 per layer.

    Raises:
        ValueError: a threshold that is negative or not finite, a delay that is not a whole
            number of bins or is negative.

    Source: Kheradpisheh & Masquelier, "Temporal backpropagation for spiking neural networks with
    one spike per neuron", Int. J. Neural Systems 30(6), 2020.

    >>> IF(threshold=100.0, delay=1)
    IF(threshold=100.0, delay=1)
    """

    threshold: float = 1.0
    delay: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"threshold must be finite and at least 0, got {self.threshold!r}")
        if not math.isfinite(self.delay) or self.delay != int(self.delay) or self.delay < 0:
            raise ValueError(f"delay must be a whole number of bins >= 0, got {self.delay!r}")
