"""Integrate-and-fire: the response to an input is a step."""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from .. import _checks
from ..kernels.ops import plain
from ..kernels.precision import full_precision
from ..kernels.status import NAN_POTENTIAL, refuse_bad_samples
from ..kernels.window import accumulate
from .base import Number, SeparableNeuron


class UnencodedInputWarning(UserWarning):
    """Spike times in bins that look like the pixels of an image, which has to be encoded first."""


UNENCODED = """\
All spike times of a sample lie in 0 ... 1, between bins, in a window of t_max = {t_max:g} bins: are these the
intensities of an image? They have to be encoded, by ssnn_plugin.encode.latency(images, t_max={t_max:g}) for
one: what is bright fires early. This is said once; warnings.simplefilter("ignore", UnencodedInputWarning)
turns it off."""


@dataclass(frozen=True)
class IF(SeparableNeuron):
    """Integrate-and-fire neuron with a step post-synaptic potential, and a leak if asked for.

    In every bin the potential becomes ``V(t) = beta V(t - 1) + sum_i w_i [t_i = t] + bias``, which
    starts from 0 and without a leak is ``sum_i w_i [t_i <= t] + bias (t + 1)``. The neuron fires
    in the first bin in which ``V > threshold``, strictly, and never again.

    Args:
        threshold: potential that has to be exceeded; this and beta may hold a value per neuron, thresholds
            are greater than 0 then.
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

    threshold: Number = 1.0
    _: KW_ONLY
    delay: int = 0
    beta: Number = 1.0

    rules = ("latency", "surrogate", "local_slope")
    jumps = True

    def __post_init__(self) -> None:
        if isinstance(self.threshold, Tensor):
            _checks.positive("threshold", self.threshold)
        else:
            _checks.not_negative("threshold", self.threshold)
        if not _checks.finite("delay", self.delay) or self.delay != int(self.delay) or self.delay < 0:
            raise ValueError(f"delay must be a whole number of bins >= 0, got {self.delay!r}")
        if isinstance(self.beta, Tensor):
            _checks.per_neuron("beta", self.beta, lambda x: (x >= 0) & (x <= 1), "lie in 0 ... 1")
        elif not (_checks.finite("beta", self.beta) and 0 <= self.beta <= 1):
            raise ValueError(f"beta must lie in 0 ... 1, got {self.beta!r}")

    def check_times(self, times: Tensor, t_max: float, bias: bool) -> None:
        by_bins = bias or isinstance(self.beta, Tensor) or self.beta != 1
        if by_bins or self.delay:
            _checks.distinct_bins(t_max, times.dtype)
        if by_bins:
            if t_max != int(t_max):
                raise ValueError(f"t_max must be a whole number of bins with a bias or a leak, got {t_max!r}")
            _checks.whole_bins("times", times)
        _warn_of_intensities(times, t_max)

    def crossings(
        self, times: Tensor, weight: Tensor, bias: Tensor | None, t_max: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bin by bin: [t_max, batch, out]."""
        _checks.spike_times("times", times)
        bins = torch.arange(int(t_max), dtype=times.dtype, device=times.device)[:, None, None]
        with full_precision(times.device):
            currents = (times == bins).to(weight) @ weight.t()
        currents = currents if bias is None else currents + bias
        v = accumulate(currents, torch.zeros_like(currents[0]), self.beta)
        if _checks.has_nan(v):
            refuse_bad_samples(NAN_POTENTIAL)
        crosses = (v > self.threshold) & (bins + self.delay < t_max)
        at = torch.where(crosses, bins, math.inf).amin(0)
        potential = v.gather(0, at.clamp(max=t_max - 1).long().unsqueeze(0)).squeeze(0)
        return at, potential, at.new_empty(0)

    def traced_potential(
        self, at: Tensor, times: Tensor, weight: Tensor, bias: Tensor | None, t_max: float
    ) -> Tensor:
        """Weights and times have the derivatives that they have in the kernels, the leak its own."""
        end, seen = at.clamp(max=t_max - 1), times.unsqueeze(2)
        counted = seen <= end.unsqueeze(1)
        weights = torch.where(counted, weight.t(), 0)
        age = torch.where(counted, end.unsqueeze(1) - seen, 0)
        v = weights.sum(1) + (weights.detach() * (self.beta ** age.detach() + age)).sum(1)
        if bias is None:
            return v
        bins = torch.arange(int(t_max), dtype=times.dtype, device=times.device)
        of_unit = (self.beta ** bins.unsqueeze(1)).cumsum(0).gather(0, end.long())
        return v + bias * (end + 1) + bias.detach() * of_unit

    def input_factors(self, times: Tensor) -> tuple[None, None]:
        return None, None

    def output_factors(self, times: Tensor) -> tuple[None, None]:
        return None, None

    def output_slopes(self, times: Tensor) -> tuple[None, None]:
        """An input spike that comes one bin earlier stands for +w, as one that is counted at all."""
        return None, None

    def until(self, crossing: Tensor, t_max: float, silent: bool) -> Tensor:
        """An input at the crossing counts: until the next number after it, which is NaN for `inf`.

        After 0 that is a normal number, as a processor may take those below for 0.
        """
        number = torch.finfo(crossing.dtype)
        if silent:  # until the number before t_max
            crossing = crossing.clamp(max=t_max * (1 - number.eps / 2))
        until = crossing.contiguous() + number.tiny
        # x + 5/8 eps x is rounded to the next number after x.
        until = until.add(until, alpha=0.625 * number.eps)
        return until if silent else until.add_(crossing - crossing)

    def of_bias(self, crossing: Tensor, t_max: float) -> Tensor:
        """A constant current has been added once per bin."""
        return crossing.clamp(max=t_max - 1) + 1


def _warn_of_intensities(times: Tensor, t_max: float) -> None:
    """Warn in training if the first sample is one of intensities, and not what another layer has computed.

    On a GPU to look would be to wait for it.
    """
    if t_max < 2 or times.device.type != "cpu" or not times.numel() or not plain(times):
        return
    if times.requires_grad or not torch.is_grad_enabled():
        return
    sample = times.detach()[0] if times.ndim > 1 else times.detach()
    low, high = sample.aminmax()
    if bool((low >= 0) & (high <= 1)) and bool((sample != sample.floor()).any()):
        warnings.warn(UNENCODED.format(t_max=t_max), UnencodedInputWarning, stacklevel=1)
