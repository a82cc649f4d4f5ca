"""Descriptions of neurons that fire at most once: small frozen values, no tensors."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class IF:
    """Integrate-and-fire neuron with a step post-synaptic potential, and a leak if asked for.

    In every bin the potential becomes ``V(t) = beta V(t - 1) + sum_i w_i [t_i = t] + bias``, which
    starts from 0 and without a leak is ``sum_i w_i [t_i <= t] + bias (t + 1)``. The neuron fires
    in the first bin in which ``V > threshold``, strictly, and never again.

    Args:
        threshold: potential that has to be exceeded.
        delay: bins between the crossing and the spike; S4NN uses 1 per layer.
        beta: what is left of the potential after a bin; 1 is no leak.

    Raises:
        ValueError: a threshold that is negative or not finite, a delay that is not a whole
            number of bins or is negative, a beta outside 0 ... 1.

    Source: Kheradpisheh & Masquelier, "Temporal backpropagation for spiking neural networks with
    one spike per neuron", Int. J. Neural Systems 30(6), 2020.

    >>> IF(threshold=100.0, delay=1)
    IF(threshold=100.0, delay=1, beta=1.0)
    """

    threshold: float = 1.0
    _: KW_ONLY
    delay: int = 0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"threshold must be finite and at least 0, got {self.threshold!r}")
        if not math.isfinite(self.delay) or self.delay != int(self.delay) or self.delay < 0:
            raise ValueError(f"delay must be a whole number of bins >= 0, got {self.delay!r}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in 0 ... 1, got {self.beta!r}")
