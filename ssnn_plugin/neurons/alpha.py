"""Responses shaped like the alpha function."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from .base import Number
from .lif import LeakyNeuron


@dataclass(frozen=True)
class AlphaPSP(LeakyNeuron):
    """Neuron with alpha-shaped post-synaptic potentials: ``V(t) = sum_i w_i (t - t_i) e^(-(t - t_i) / tau)``.

    Times are continuous. The neuron fires at ``t = B / A - tau W(-(threshold / (tau A)) e^(B / (tau A)))``
    with ``A = sum_C w_i e^(t_i / tau)``, ``B = sum_C w_i t_i e^(t_i / tau)`` and Lambert's W. It is a
    leaky neuron with equal time constants, tau times as sensitive.

    Args:
        threshold: potential at which the neuron fires; this and tau may hold a value per neuron.
        tau: time constant; 1 / K of the paper.

    Raises:
        ValueError: a threshold or tau that is not positive and finite.

    Source: Comsa et al., "Temporal coding in spiking neural networks with alpha synaptic function",
    ICASSP 2020.

    >>> AlphaPSP(1.16732, tau=1 / 0.181769).threshold
    1.16732
    """

    threshold: Number = 1.0
    _: KW_ONLY
    tau: Number = 1.0

    def __post_init__(self) -> None:
        self.check_positive("threshold", "tau")

    @property
    def tau_mem(self) -> Number:  # type: ignore[override]
        return self.tau

    @property
    def tau_syn(self) -> Number:  # type: ignore[override]
        return self.tau

    @property
    def height(self) -> Number:  # type: ignore[override]
        return self.tau
