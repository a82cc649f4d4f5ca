"""Descriptions of neurons that fire at most once: small frozen values, no tensors."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TypeAlias

from . import _checks


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


@dataclass(frozen=True)
class ReLPSP:
    """Neuron whose post-synaptic potentials are ramps: ``V(t) = sum_i w_i (t - t_i)^+``.

    Times are continuous. The neuron fires when V reaches the threshold, at
    ``t = (threshold + sum_C w_i t_i) / sum_C w_i`` for its causal set C, the inputs before t.

    With a `start`, inputs are integrated until then and V rises with slope 1 from there on, so that
    ``t = start + threshold - sum_i w_i (start - t_i)^+``, but not before `start`: with
    ``x = start - t`` in front of the neuron and ``x = start + threshold - t`` behind it, a ReLU.
    Inputs at `start` or later are not seen. A bias is added to V.

    Args:
        threshold: potential at which the neuron fires.
        start: when V begins to rise by itself; None for the causal neuron.

    Raises:
        ValueError: a threshold that is not positive and finite, a start that is negative or not finite.

    Source: Zhang et al., "Rectified linear postsynaptic potential function for backpropagation in
    deep spiking neural networks", TNNLS 2021; with a start: Stanojevic et al., "High-performance
    deep spiking neural networks with 0.3 spikes per neuron", Nature Communications 2024 (B1-model).

    >>> ReLPSP()
    ReLPSP(threshold=1.0, start=None)
    """

    threshold: float = 1.0
    _: KW_ONLY
    start: float | None = None

    def __post_init__(self) -> None:
        _checks.positive("threshold", self.threshold)
        if self.start is not None and not (math.isfinite(self.start) and self.start >= 0):
            raise ValueError(f"start must be finite and at least 0, or None, got {self.start!r}")


@dataclass(frozen=True)
class ExpPSP:
    """Neuron without leak, driven by exponential currents: ``V(t) = sum_i w_i (1 - e^(-(t - t_i) / tau))``.

    Times are continuous. With ``z = e^(t / tau)`` the neuron fires at
    ``z = sum_C w_i z_i / (sum_C w_i - threshold)`` for its causal set C.

    Args:
        threshold: potential at which the neuron fires.
        tau: time constant of the currents.

    Raises:
        ValueError: a threshold or tau that is not positive and finite.

    Source: Mostafa, "Supervised learning based on temporal coding in spiking neural networks",
    TNNLS 29(7), 2018, eqs. for z_out.

    >>> ExpPSP()
    ExpPSP(threshold=1.0, tau=1.0)
    """

    threshold: float = 1.0
    _: KW_ONLY
    tau: float = 1.0

    def __post_init__(self) -> None:
        _checks.positive("threshold", self.threshold)
        _checks.positive("tau", self.tau)


@dataclass(frozen=True)
class AlphaPSP:
    """Neuron with alpha-shaped post-synaptic potentials: ``V(t) = sum_i w_i (t - t_i) e^(-(t - t_i) / tau)``.

    Times are continuous. The neuron fires at ``t = B / A - tau W(-(threshold / (tau A)) e^(B / (tau A)))``
    with ``A = sum_C w_i e^(t_i / tau)``, ``B = sum_C w_i t_i e^(t_i / tau)`` and Lambert's W.

    Args:
        threshold: potential at which the neuron fires.
        tau: time constant; 1 / K of the paper.

    Raises:
        ValueError: a threshold or tau that is not positive and finite.

    Source: Comsa et al., "Temporal coding in spiking neural networks with alpha synaptic function",
    ICASSP 2020.

    >>> AlphaPSP(1.16732, tau=1 / 0.181769).threshold
    1.16732
    """

    threshold: float = 1.0
    _: KW_ONLY
    tau: float = 1.0

    def __post_init__(self) -> None:
        _checks.positive("threshold", self.threshold)
        _checks.positive("tau", self.tau)


@dataclass(frozen=True)
class LIF:
    """Leaky integrate-and-fire neuron with exponential currents, of unit leak conductance.

    ``tau_mem dV/dt = -V + I`` and ``tau_syn dI/dt = -I``, I growing by w with each input spike. Times
    are continuous. The crossing has a closed form for ``tau_mem = tau_syn``, where the response is
    ``s / tau e^(-s / tau)``, and for ``tau_mem = 2 tau_syn``, where it is
    ``e^(-s / tau_mem) - e^(-s / tau_syn)``.

    Args:
        threshold: potential at which the neuron fires.
        tau_mem: time constant of the membrane, `tau_syn` or `2 tau_syn`.
        tau_syn: time constant of the currents.

    Raises:
        ValueError: a threshold or time constant that is not positive and finite, another ratio.

    Source: Göltz et al., "Fast and energy-efficient neuromorphic deep learning with first-spike
    times", Nature Machine Intelligence 2021.

    >>> LIF(tau_mem=2.0)
    LIF(threshold=1.0, tau_mem=2.0, tau_syn=1.0)
    """

    threshold: float = 1.0
    _: KW_ONLY
    tau_mem: float = 1.0
    tau_syn: float = 1.0

    def __post_init__(self) -> None:
        for name in ("threshold", "tau_mem", "tau_syn"):
            _checks.positive(name, getattr(self, name))
        if self.tau_mem not in (self.tau_syn, 2 * self.tau_syn):
            raise ValueError(
                f"tau_mem must be tau_syn or 2 tau_syn, got tau_mem = {self.tau_mem!r} and "
                f"tau_syn = {self.tau_syn!r}"
            )


Neuron: TypeAlias = IF | ReLPSP | ExpPSP | AlphaPSP | LIF
