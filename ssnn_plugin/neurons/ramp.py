"""Responses that are ramps: V is piecewise linear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import CurrentNeuron, Number, Pair


class RampResponse(NamedTuple):
    """K(s) = s, compiled."""

    @staticmethod
    def monotone() -> bool:
        return True

    @staticmethod
    def lasting() -> tuple[bool, bool]:
        return True, True

    def propagators(self, d):  # type: ignore[no-untyped-def]
        return 1.0, d, 1.0

    def rates(self):  # type: ignore[no-untyped-def]
        return 0.0, 1.0

    def decay(self):  # type: ignore[no-untyped-def]
        return 0.0

    def crossing(self, threshold, v, current):  # type: ignore[no-untyped-def]
        return max(threshold - v, 0.0) / current if current > 0 else math.inf


@dataclass(frozen=True)
class ReLPSP(CurrentNeuron):
    """Neuron whose post-synaptic potentials are ramps: ``V(t) = sum_i w_i (t - t_i)^+``.

    Times are continuous. The neuron fires when V reaches the threshold, at
    ``t = (threshold + sum_C w_i t_i) / sum_C w_i`` for its causal set C, the inputs before t.

    Args:
        threshold: potential at which the neuron fires; it may hold a value per neuron.

    Raises:
        ValueError: a threshold that is not positive and finite.

    Source: Zhang et al., "Rectified linear postsynaptic potential function for backpropagation in
    deep spiking neural networks", TNNLS 2021.

    >>> ReLPSP()
    ReLPSP(threshold=1.0)
    """

    threshold: Number = 1.0

    def __post_init__(self) -> None:
        self.check_positive("threshold")

    def input_factors(self, times: Tensor) -> Pair:
        return torch.ones_like(times), times

    def output_factors(self, times: Tensor) -> Pair:
        return times, torch.ones_like(times)

    def output_slopes(self, times: Tensor) -> Pair:
        return torch.ones_like(times), torch.zeros_like(times)

    def crossing(self, a: Tensor, b: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return torch.where(a > 0, (self.threshold + b) / a, math.inf)

    def compiled(self) -> RampResponse:
        return RampResponse()
