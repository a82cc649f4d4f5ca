"""Responses to exponential currents without leak."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.elementary import exp, log1p
from .base import CurrentNeuron, Number, Pair, least


class ExponentialResponse(NamedTuple):
    """K(s) = 1 - exp(-s / tau), compiled."""

    tau: float

    @staticmethod
    def monotone() -> bool:
        return True

    @staticmethod
    def lasting() -> tuple[bool, bool]:
        return True, False

    def propagators(self, d):  # type: ignore[no-untyped-def]
        decay = exp(-d / self.tau)
        return 1.0, 1 - decay, decay

    def rates(self):  # type: ignore[no-untyped-def]
        return 0.0, 1 / self.tau

    def decay(self):  # type: ignore[no-untyped-def]
        return 1 / self.tau

    def crossing(self, threshold, v, current):  # type: ignore[no-untyped-def]
        missing = max(threshold - v, 0.0)
        return -self.tau * log1p(-missing / current) if current > missing else math.inf


@dataclass(frozen=True)
class ExpPSP(CurrentNeuron):
    """Neuron without leak, driven by exponential currents: ``V(t) = sum_i w_i (1 - e^(-(t - t_i) / tau))``.

    Times are continuous. With ``z = e^(t / tau)`` the neuron fires at
    ``z = sum_C w_i z_i / (sum_C w_i - threshold)`` for its causal set C.

    Args:
        threshold: potential at which the neuron fires; this and tau may hold a value per neuron.
        tau: time constant of the currents.

    Raises:
        ValueError: a threshold or tau that is not positive and finite.

    Source: Mostafa, "Supervised learning based on temporal coding in spiking neural networks",
    TNNLS 29(7), 2018, eqs. for z_out.

    >>> ExpPSP()
    ExpPSP(threshold=1.0, tau=1.0)
    """

    threshold: Number = 1.0
    _: KW_ONLY
    tau: Number = 1.0

    def __post_init__(self) -> None:
        self.check_positive("threshold", "tau")

    @property
    def shortest_time(self) -> float:
        return least(self.tau)

    def input_factors(self, times: Tensor) -> Pair:
        return torch.ones_like(times), (times / self.tau).exp()

    def output_factors(self, times: Tensor) -> Pair:
        return torch.ones_like(times), (-times / self.tau).exp()

    def output_slopes(self, times: Tensor) -> Pair:
        return torch.zeros_like(times), -(-times / self.tau).exp() / self.tau

    def crossing(self, a: Tensor, b: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Mostafa 2018: z = e^(t / tau)."""
        solvable = (a > self.threshold) & (b > 0)
        return torch.where(solvable, self.tau * (b / (a - self.threshold)).log(), math.inf)

    def compiled(self) -> ExponentialResponse:
        return ExponentialResponse(float(self.tau))
