"""Leaky neurons driven by exponential currents, of any two time constants."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.elementary import exp, expm1, log
from .base import CurrentNeuron, Number, Pair, least


class LeakyResponse(NamedTuple):
    """K(s) of `LeakyNeuron`, compiled."""

    height: float
    tau_mem: float
    tau_syn: float

    def propagators(self, d):  # type: ignore[no-untyped-def]
        rate = 1 / self.tau_syn - 1 / self.tau_mem
        slow, fast = exp(-d / self.tau_mem), exp(-d / self.tau_syn)
        # Time constants that are close to each other would leave few digits of the difference.
        grown = slow - fast if abs(rate) * self.tau_mem > 0.1 else fast * expm1(rate * d)
        return slow, self.height * grown / (rate * self.tau_mem), fast

    def rates(self):  # type: ignore[no-untyped-def]
        return -1 / self.tau_mem, self.height / self.tau_mem

    def decay(self):  # type: ignore[no-untyped-def]
        return 1 / self.tau_syn


class LeakyResponseOfEqual(NamedTuple):
    """The same for tau_mem = tau_syn."""

    height: float
    tau: float

    def propagators(self, d):  # type: ignore[no-untyped-def]
        decay = exp(-d / self.tau)
        return decay, self.height * decay * d / self.tau, decay

    def rates(self):  # type: ignore[no-untyped-def]
        return -1 / self.tau, self.height / self.tau

    def decay(self):  # type: ignore[no-untyped-def]
        return 1 / self.tau

    def crossing(self, threshold, v, current):  # type: ignore[no-untyped-def]
        """First root of V + I d = threshold e^d, d >= 0: Lambert's W, by Newton's method.

        The difference of the two sides is concave, so that from d = 0, where it is negative, the
        iteration rises to the first root and never beyond.
        """
        pull = self.height * current
        if pull < threshold or pull <= v or log(pull / threshold) < 1 - v / pull:
            return math.inf
        d, peak = 0.0, 1 - v / pull
        for _ in range(100):
            grown = threshold * exp(d)
            step = (grown - v - pull * d) / (pull - grown)
            if not step > 1e-15 * (1 + d):
                break
            d += step
        return self.tau * min(d, peak)  # close to a tangent the last step rounds


class LeakyResponseOfTwice(NamedTuple):
    """The same for tau_mem = 2 tau_syn."""

    height: float
    tau_mem: float

    def propagators(self, d):  # type: ignore[no-untyped-def]
        slow = exp(-d / self.tau_mem)
        fast = slow * slow
        return slow, self.height * (slow - fast), fast

    def rates(self):  # type: ignore[no-untyped-def]
        return -1 / self.tau_mem, self.height / self.tau_mem

    def decay(self):  # type: ignore[no-untyped-def]
        return 2 / self.tau_mem

    def crossing(self, threshold, v, current):  # type: ignore[no-untyped-def]
        """With x = e^(-d / tau_mem): (V + I) x - I x^2 = threshold, first reached at the larger root.

        In units of I, which may be as large as numbers are.
        """
        pull = self.height * current
        both = 1 + v / pull
        square = both**2 - 4 * (threshold / pull)
        reaches = (pull > v) & (pull > 0) & (both > 0) & (square >= 0)
        x = (both + math.sqrt(max(square, 0.0))) / 2
        return max(-self.tau_mem * log(x), 0.0) if reaches else math.inf


class LeakyNeuron(CurrentNeuron):
    """tau_mem V' = -V + height I, tau_syn I' = -I, for one time constant or two.

    With the slower and the faster of the two, delta = 1 / fast - 1 / slow >= 0 and
    g(s) = height (e^(delta s) - 1) / (delta tau_mem), which is height s / tau_mem for delta = 0,
    K(t - s) = e^(-t / fast) (g(t) - g(s)) e^(s / slow): a form that loses no digits where the time
    constants are close to each other, nor where they are far apart.
    """

    tau_mem: Number
    tau_syn: Number
    #: by how much the response is higher than that of unit leak conductance
    height: Number = 1.0

    @property
    def shortest_time(self) -> float:
        return min(least(self.tau_mem), least(self.tau_syn))

    @property
    def _slow_and_fast(self) -> tuple[Any, Any]:
        times = self.tau_mem, self.tau_syn
        if not any(isinstance(time, Tensor) for time in times):
            return max(times), min(times)
        one, other = (torch.as_tensor(time) for time in times)
        return torch.maximum(one, other), torch.minimum(one, other)

    def _grown(self, times: Tensor) -> Tensor:
        """g."""
        slow, fast = self._slow_and_fast
        scale, delta = self.height / self.tau_mem, 1 / fast - 1 / slow
        if isinstance(delta, Tensor):
            return times * scale * relative_growth(times * delta)
        return times * scale if delta == 0 else torch.expm1(times * delta) * (scale / delta)

    def input_factors(self, times: Tensor) -> Pair:
        risen = (times / self._slow_and_fast[0]).exp()
        return risen, risen * self._grown(times)

    def output_factors(self, times: Tensor) -> Pair:
        decay = (-times / self._slow_and_fast[1]).exp()
        return decay * self._grown(times), decay

    def output_slopes(self, times: Tensor) -> Pair:
        """g' = height e^(delta t) / tau_mem."""
        slow, fast = self._slow_and_fast
        decay, rise = (-times / fast).exp(), (-times / slow).exp() * (self.height / self.tau_mem)
        return rise - decay * self._grown(times) / fast, -decay / fast

    def crossing(self, a: Tensor, b: Tensor, start: Tensor, end: Tensor) -> Tensor:
        shared = not self.parameters.keys() - {"threshold"}
        if shared and self.tau_mem == self.tau_syn:
            return self._crossing_of_equal(a, b)
        if shared and self.tau_mem == 2 * self.tau_syn:
            return self._crossing_of_twice(a, b)
        return super().crossing(a, b, start, end)

    def _crossing_of_equal(self, a: Tensor, b: Tensor) -> Tensor:
        """Comsa et al. 2020; Göltz et al. 2021, eq. for tau_mem = tau_syn: Lambert's W."""
        tau, scale = self.tau_syn, self.height / self.tau_syn
        ratio = b / a / scale / tau
        w = lambert_w0(-self.threshold / (a * scale * tau) * ratio.exp())
        return torch.where(a > 0, tau * (ratio - w), math.inf)

    def _crossing_of_twice(self, a: Tensor, b: Tensor) -> Tensor:
        """Göltz et al. 2021, eq. for tau_mem = 2 tau_syn: V = height a x - (height a + b) x^2, a quadratic
        in x = e^(-t / tau_mem)."""
        slow, fast = self.height * a, b + self.height * a
        root = (slow.square() - 4 * fast * self.threshold).sqrt()
        x = (slow + root) / (2 * fast)
        return torch.where((fast > 0) & (x > 0), -self.tau_mem * x.log(), math.inf)

    def compiled(self) -> NamedTuple:
        height, tau_mem, tau_syn = float(self.height), float(self.tau_mem), float(self.tau_syn)
        if 1 / tau_mem == 1 / tau_syn:  # also of neighbouring numbers
            return LeakyResponseOfEqual(height, tau_mem)
        if tau_mem == 2 * tau_syn:
            return LeakyResponseOfTwice(height, tau_mem)
        return LeakyResponse(height, tau_mem, tau_syn)


def relative_growth(x: Tensor) -> Tensor:
    """(e^x - 1) / x, and its derivatives, where x is close to 0 too."""
    small = x.abs() < 1e-2
    series = 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    apart = torch.where(small, 1, x)
    return torch.where(small, series, torch.expm1(apart) / apart)


def lambert_w0(x: Tensor) -> Tensor:
    """Principal branch of Lambert's W for -1/e <= x <= 0, by Halley's method; NaN below -1/e."""
    p = (2 * (math.e * x + 1)).sqrt()  # the series around the branch point starts the iteration
    w = -1 + p * (1 + p * (-1 / 3 + p * 11 / 72))
    for _ in range(12):
        e = w.exp()
        residual = w * e - x
        step = residual / (e * (w + 1) - (w + 2) * residual / (2 * w + 2))
        w = w - torch.where(residual == 0, 0, step)
    return torch.where(p == 0, -1, w)


@dataclass(frozen=True)
class LIF(LeakyNeuron):
    """Leaky integrate-and-fire neuron with exponential currents, of unit leak conductance.

    ``tau_mem dV/dt = -V + I`` and ``tau_syn dI/dt = -I``, I growing by w with each input spike. Times
    are continuous. For ``tau_mem = tau_syn`` the response is ``s / tau e^(-s / tau)``, otherwise
    ``tau_syn / (tau_mem - tau_syn) (e^(-s / tau_mem) - e^(-s / tau_syn))``.

    Args:
        threshold: potential at which the neuron fires; this and the others may hold a value per neuron.
        tau_mem: time constant of the membrane.
        tau_syn: time constant of the currents.

    Raises:
        ValueError: a threshold or time constant that is not positive and finite.

    Source: Göltz et al., "Fast and energy-efficient neuromorphic deep learning with first-spike
    times", Nature Machine Intelligence 2021; there the crossing has a closed form for the ratios 1 and 2.

    >>> LIF(tau_mem=2.0)
    LIF(threshold=1.0, tau_mem=2.0, tau_syn=1.0)
    """

    threshold: Number = 1.0
    _: KW_ONLY
    tau_mem: Number = 1.0
    tau_syn: Number = 1.0

    def __post_init__(self) -> None:
        self.check_positive("threshold", "tau_mem", "tau_syn")
