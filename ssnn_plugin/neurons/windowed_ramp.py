"""Ramps that begin together: networks of rectified linear units in spike times."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from torch import Tensor
from torch.nn import functional

from .. import _checks
from ..engine import How, Synapses
from ..kernels.backends import select
from ..kernels.precision import full_precision
from ..kernels.status import NAN_POTENTIAL, refuse_bad_samples
from .base import Neuron


@dataclass(frozen=True)
class WindowedRamp(Neuron):
    """Neuron that integrates until `start`, and whose V rises with slope 1 from there on.

    It fires at ``t = start + threshold - sum_i w_i (start - t_i)^+``, but not before `start`: with
    ``x = start - t`` in front of the neuron and ``x = start + threshold - t`` behind it, a ReLU.
    Times are continuous. Inputs at `start` or later are not seen. A bias is added to V.

    Args:
        threshold: how long a neuron without input takes from `start` to its spike.
        start: when V begins to rise by itself.

    Raises:
        ValueError: a threshold that is not positive and finite, a start that is negative or not finite.

    Source: Stanojevic et al., "High-performance deep spiking neural networks with 0.3 spikes per
    neuron", Nature Communications 2024 (B1-model).

    >>> WindowedRamp(start=1.0)
    WindowedRamp(threshold=1.0, start=1.0)
    """

    threshold: float = 1.0
    _: KW_ONLY
    start: float

    def __post_init__(self) -> None:
        if isinstance(self.threshold, Tensor):
            raise TypeError(
                "threshold must be a number for ramps in a window, got a tensor: add it to the bias"
            )
        _checks.positive("threshold", self.threshold)
        _checks.not_negative("start", self.start)

    def check(self, t_max: float) -> None:
        super().check(t_max)
        if self.start >= t_max:
            raise ValueError(f"t_max must lie after the neuron's start = {self.start}, got {t_max!r}")

    def fire(self, times: Tensor, synapses: Synapses, t_max: float, how: How) -> tuple[Tensor, Tensor]:
        """By torch's dense operators, whatever the backend, and so differentiated by autograd."""
        select(how.backend, times.device, times.dtype)
        _checks.spike_times("times", times)
        with full_precision(times.device):
            v = synapses.dense((self.start - times).relu())
        if _checks.has_nan(v):
            refuse_bad_samples(NAN_POTENTIAL)
        # Masks, which a processor cannot foresee, would take ten times as long as what is done here.
        lead = v.clamp(max=self.threshold) - (self.start + self.threshold)
        spikes = 0 - functional.threshold(lead, -t_max, -math.inf)
        return spikes, (v + (t_max - self.start)).clamp(max=self.threshold)
