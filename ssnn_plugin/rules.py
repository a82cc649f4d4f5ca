"""Gradient rules: how the time of a spike answers to the potential.

A neuron fires where V crosses the threshold, so that dt/dV = -1 / (dV/dt), by the implicit function
theorem. A neuron whose V jumps has no dV/dt, and a choice of what stands for it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._autograd import call_once
from .kernels import ops
from .kernels.backends import BACKENDS, Factors
from .kernels.geometry import Geometry

if TYPE_CHECKING:
    from .neurons.base import Neuron, SeparableNeuron

__all__ = ["Crossing", "Exact", "Latency", "LocalSlope", "Rule", "SurrogateSlope"]


class Crossing(NamedTuple):
    """What a rule may look at: a layer's inputs and weights, and where V crossed the threshold.

    Outputs are [batch, out], or [batch, locations, out] of a convolution.
    """

    times: Tensor
    weight: Tensor
    #: when V crossed the threshold, without the neuron's delay; `inf` is silence
    at: Tensor
    #: before when an input counts for an output, as `SeparableNeuron.until` says
    until: Tensor
    #: V at the crossing, or at the end of the window of a silent neuron
    potential: Tensor
    #: dV/dt there; empty where V jumps
    slope: Tensor
    neuron: SeparableNeuron
    geometry: Geometry
    t_max: float
    #: whether silent neurons have an error
    silent: bool
    backend: str

    @property
    def fired(self) -> Tensor:
        return self.at < self.t_max

    def input_grad(self, error: Tensor, shift: float = 0.0) -> Tensor:
        """dL/dtimes for -dL/dV = error, of inputs that count until `shift` after the crossing."""
        until = self.until
        if shift:  # at most to the end of the window: inputs are silent from there on
            until = self.neuron.until(self.at + shift, self.t_max, self.silent).clamp(max=self.t_max)
        factors = self._factors(error, self.neuron.output_slopes(until), until)
        return _input_grad(factors, self.times, self.weight, self.geometry, self.backend)

    def weight_grad(self, error: Tensor) -> Tensor:
        """dL/dweight for -dL/dV = error."""
        factors = self.weight_factors(error)
        kernel_size = list(self.weight.shape[2:])
        if plain_backward(self.times, error):
            return BACKENDS[self.backend].kernels.weight_grad(  # type: ignore[no-any-return]
                factors, self.times, kernel_size, self.geometry
            )
        grad: Tensor = call_once(
            ops.weight_grad, *factors, self.times, kernel_size, *self.geometry, self.backend
        )
        # As the weights lie in memory: fused optimizers of torch do not look.
        return grad.t().contiguous().t() if by_inputs(self.weight) else grad

    def weight_factors(self, error: Tensor) -> Factors:
        """What dL/dweight is made of."""
        return self._factors(error, self.neuron.output_factors(self.until), self.until)

    def bias_grad(self, error: Tensor) -> Tensor:
        """dL/dbias for -dL/dV = error."""
        of_outputs = self.counted(error) * self.neuron.of_bias(self.at, self.t_max)
        return -of_outputs.flatten(0, -2).sum(0)

    def counted(self, error: Tensor) -> Tensor:
        """The errors, those of silent neurons only if they have any."""
        return error if self.silent else of_fired(error, self.at)

    def _factors(
        self, error: Tensor, of_outputs: tuple[Tensor | None, Tensor | None], until: Tensor
    ) -> Factors:
        p, q = of_outputs
        # Inputs at or after the end of the window are before no `until`.
        a, b = self.neuron.input_factors(self.times.clamp(max=self.t_max)) if p is not None else (None, None)
        return Factors(error if p is None else error * p, None if q is None else error * q, until, a, b)

    def mean_step(self, reach: int) -> Tensor:
        """Mean of what V grows by per bin, from `reach` bins before the crossing to `reach` bins after it."""
        times = self.times.masked_fill(self.times >= self.t_max, math.inf)
        parts = []
        weights = self.weight.flatten(1).chunk(self.geometry.groups)
        patches = self.geometry.patches(times, self.weight.shape[2:])
        for t, w, at in zip(patches, weights, self.geometry.rows(self.at), strict=True):
            assert at is not None
            # V at `at + shift` is an input gradient with inputs and outputs exchanged, time reversed.
            factors, matrix = Factors(torch.ones_like(t), None, 0.5 - t), w.t().contiguous()
            early, late = (
                _input_grad(factors, -(at + shift), matrix, Geometry(), self.backend)
                for shift in (-reach - 1, reach)
            )
            parts.append((late - early) / (2 * reach + 1))
        return self.geometry.outputs(parts, tuple(self.at.shape))


class Rule(ABC):
    """Base of the gradient rules: frozen dataclasses.

    A rule of your own defines `rate`, and `check` if it does not fit every neuron; pass it as `gradient`.
    """

    #: short name of a rule of the package
    name: ClassVar[str] = ""

    @abstractmethod
    def rate(self, crossing: Crossing) -> Tensor | None:
        """-dt/dV of every output, of the shape of `crossing.at`; None is 1 everywhere."""

    def check(self, neuron: Neuron, bias: bool) -> None:
        """Refuse neurons that the rule has no meaning for."""

    def check_times(self, times: Tensor) -> None:
        """Refuse input times that the rule has no meaning for."""

    def input_grad(self, crossing: Crossing, error: Tensor, grad_spikes: Tensor | None) -> Tensor:
        """dL/dtimes for -dL/dV = error, of which the gradient of the spikes is `grad_spikes`."""
        return crossing.input_grad(error)

    def __str__(self) -> str:
        return self.name if RULES.get(self.name) == self else repr(self)


@dataclass(frozen=True)
class Exact(Rule):
    """dt/dV = -1 / (dV/dt), by the implicit function theorem: for neurons whose V is continuous.

    Where V only touches the threshold, dV/dt is 0, and close to there it is lost in rounding: it counts as
    sqrt(eps) threshold / t_max at least, eps being that of the dtype, so that gradients stay finite.
    """

    name = "exact"

    def check(self, neuron: Neuron, bias: bool) -> None:
        if neuron.jumps:
            raise ValueError(f"gradient 'exact' needs a slope of V at the crossing, {neuron!r} has none")

    def rate(self, crossing: Crossing) -> Tensor:
        slope = crossing.slope
        least = torch.finfo(slope.dtype).eps ** 0.5 * crossing.neuron.threshold / crossing.t_max
        return 1 / (slope.maximum(least) if isinstance(least, Tensor) else slope.clamp(min=least))


class _OfJumps(Rule):
    """A rule in place of the slope that a jump does not have."""

    def check(self, neuron: Neuron, bias: bool) -> None:
        if not neuron.jumps:
            raise ValueError(
                f"gradient {str(self)!r} is for neurons without a slope of V, {neuron!r} has one"
            )


@dataclass(frozen=True)
class Latency(_OfJumps):
    """dt/dV = -1 (Kheradpisheh & Masquelier 2020)."""

    name = "latency"

    def rate(self, crossing: Crossing) -> None:
        return None


@dataclass(frozen=True)
class SurrogateSlope(_OfJumps):
    """dt/dV minus the derivative of an arctan at the distance of V from the threshold.

    1 / (1 + (pi u)^2) with u the distance in thresholds (Fang et al. 2021, alpha = 2, scaled to 1 at
    u = 0); a neuron that overshoots, or stays silent far below, moves little with its potential.
    """

    name = "surrogate"

    def rate(self, crossing: Crossing) -> Tensor:
        threshold = crossing.neuron.threshold
        unit = threshold if isinstance(threshold, Tensor) else threshold or 1
        distance = (crossing.potential - threshold) / unit
        return 1 / (1 + (math.pi * distance).square())


@dataclass(frozen=True)
class LocalSlope(_OfJumps):
    """dt/dV minus the inverse of a local slope of V around the crossing.

    V is a staircase, so its slope is measured over a window of `reach` bins to either side:
    s_j = sum_i w_ji [|t_i - t_j| <= reach] / (2 reach + 1), and at least threshold / t_max, the mean
    slope of a neuron that fires at the very end. Then dt_j/dw_ji = -1 / s_j for the causal inputs,
    and dt_j/dt_i = w_ji / (2 reach + 1) / s_j for those in the window: the implicit function
    theorem for steps that are smoothed to ramps of that width. A silent neuron that learns has the
    slope threshold / t_max over the whole window, and so dt_j/dt_i = w_ji / threshold for all inputs. Its
    potential does not depend on its inputs' times by this rule: a loss on potentials of silent neurons
    teaches its own weights, and those of earlier layers nothing.

    Args:
        reach: half width in bins of the window.
    """

    reach: int = 4

    name = "local_slope"

    def __post_init__(self) -> None:
        _checks.whole_and_positive("reach", self.reach)

    def check(self, neuron: Neuron, bias: bool) -> None:
        super().check(neuron, bias)
        if bias or isinstance(neuron.beta, Tensor) or neuron.beta != 1:
            raise ValueError("gradient 'local_slope' takes neither a bias nor a leak")

    def check_times(self, times: Tensor) -> None:
        _checks.whole_bins("times", times, "gradient 'local_slope'")

    def _least(self, crossing: Crossing) -> Any:
        threshold = crossing.neuron.threshold
        return (threshold if isinstance(threshold, Tensor) else threshold or 1) / crossing.t_max

    def rate(self, crossing: Crossing) -> Tensor:
        least = self._least(crossing)
        slope = torch.where(crossing.fired, crossing.mean_step(self.reach), least)
        return 1 / (slope.maximum(least) if isinstance(least, Tensor) else slope.clamp(min=least))

    def input_grad(self, crossing: Crossing, error: Tensor, grad_spikes: Tensor | None) -> Tensor:
        early, late = (crossing.input_grad(error, shift) for shift in (-self.reach - 1, self.reach))
        grad = (late - early) / (2 * self.reach + 1)
        if crossing.silent and grad_spikes is not None:
            lasting = self._least(crossing) * crossing.t_max
            grad = grad + crossing.input_grad(torch.where(crossing.fired, 0, grad_spikes / lasting))
        return grad


RULES: dict[str, Rule] = {rule.name: rule for rule in (Latency(), SurrogateSlope(), LocalSlope(), Exact())}


def error_of(rule: Rule, crossing: Crossing, grad_spikes: Tensor) -> Tensor:
    """-dL/dV for this gradient of the spikes."""
    rate = rule.rate(crossing)
    return grad_spikes if rate is None else grad_spikes * rate


def has_own_input_grad(rule: Rule) -> bool:
    """Whether it looks at the gradient of the spikes itself."""
    return type(rule).input_grad is not Rule.input_grad


def rule_of(gradient: str | Rule | None, neuron: Neuron) -> Rule:
    """The rule of that name, or the neuron's own."""
    if isinstance(gradient, Rule):
        return gradient
    name = neuron.rules[0] if gradient is None else gradient
    _checks.one_of("gradient", name, neuron.rules)
    return RULES[name]


def by_inputs(weight: Tensor) -> bool:
    """Whether weights [out, in] lie in memory row by row of inputs, as those of `SpikeLinear` do."""
    return weight.ndim == 2 and weight.stride(0) == 1 and weight.shape[1] > 1


def plain_backward(times: Tensor, error: Tensor) -> bool:
    """Whether a kernel of a backward pass may be called by itself: an operator costs more than small ones."""
    return (
        ops.plain(times)
        and not torch.is_grad_enabled()
        # by `is_grads_batched` of `autograd.grad`; asked last, as `torch.compile` cannot follow it
        and not torch._C._functorch.is_legacy_batchedtensor(error)
    )


def _input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry, backend: str) -> Tensor:
    if plain_backward(times, factors.p):
        return BACKENDS[backend].kernels.input_grad(factors, times, weight, geometry)  # type: ignore[no-any-return]
    return call_once(ops.input_grad, *factors, times, weight, *geometry, backend)  # type: ignore[no-any-return]


def of_fired(values: Tensor, at: Tensor) -> Tensor:
    """Values of neurons that fired at these times, and 0 for silent ones.

    A mask, which a processor cannot foresee, would take ten times as long as this comparison with numbers.
    """
    return torch.ops.aten.threshold_backward(values, -at, -math.inf)  # type: ignore[no-any-return]
