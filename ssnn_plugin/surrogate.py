"""How a spike is differentiated in every bin of a window: the gradient rules of `functional.latch`.

A neuron that fires at most once latches: its activation is 1 from the first bin on in which V
exceeds the threshold, a(t) = [max_{s <= t} V(s) > threshold]. A rule says what stands for the derivative
of that step. A rule of your own derives from `Surrogate` and defines `derivative`, or from
`LatchGradient` and defines `potential_grad`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import _checks
from ._autograd import call_once
from .kernels import latch as operators


class LatchGradient:
    """A gradient rule of the latch."""

    def potential_grad(self, potentials: Tensor, grad: Tensor, threshold: float) -> Tensor:
        """The gradient of V [T, *] for that of the activations, `grad` [T, *]."""
        raise NotImplementedError


class Surrogate(LatchGradient):
    """The step of max_{s <= t} V(s) at the threshold, with a smooth derivative in its place.

    What arrives in a bin goes to the bin of the highest V so far, which decided; a silent neuron, and
    one that has fired, thus learn from every bin.

    >>> import torch
    >>> from ssnn_plugin.functional import latch
    >>> class Rectangle(Surrogate):
    ...     def derivative(self, distance):
    ...         return (distance.abs() < 0.5).to(distance.dtype)
    >>> v = torch.tensor([[0.0], [0.75], [0.25]], requires_grad=True)
    >>> latch(v, 1.0, Rectangle()).sum().backward()
    >>> v.grad.flatten()
    tensor([0., 2., 0.])
    """

    def derivative(self, distance: Tensor) -> Tensor:
        """What stands for the derivative of the step, at a distance V - threshold of any shape."""
        raise NotImplementedError

    def potential_grad(self, potentials: Tensor, grad: Tensor, threshold: float) -> Tensor:
        return _gradient(operators.latch_grad, potentials, grad) * self.derivative(potentials - threshold)


@dataclass(frozen=True)
class Arctan(Surrogate):
    """The derivative of an arctan, ``(s / 2) / (1 + (pi s u / 2)^2)`` at a distance u, of unit area.

    Args:
        sharpness: s; twice the height at the threshold.

    Raises:
        ValueError: a sharpness that is not positive and finite.

    Source: Fang et al., "Incorporating learnable membrane time constant to enhance learning of
    spiking neural networks", ICCV 2021.

    >>> import torch
    >>> Arctan(2.0).derivative(torch.tensor([0.0, 1 / torch.pi]))
    tensor([1.0000, 0.5000])
    """

    sharpness: float = 2.0

    def __post_init__(self) -> None:
        _checks.positive("sharpness", self.sharpness)

    def derivative(self, distance: Tensor) -> Tensor:
        return 0.5 * self.sharpness / (1 + (0.5 * math.pi * self.sharpness * distance).square())

    def potential_grad(self, potentials: Tensor, grad: Tensor, threshold: float) -> Tensor:
        return _gradient(operators.latch_grad_arctan, potentials, grad, threshold, self.sharpness)


@dataclass(frozen=True)
class Triangle(Surrogate):
    """A triangle of unit area around the threshold, ``max(0, 1 - |u| / width) / width`` at a distance u.

    Args:
        width: distance from which on there is no gradient.

    Raises:
        ValueError: a width that is not positive and finite.

    Source: Esser et al., "Convolutional networks for fast, energy-efficient neuromorphic computing",
    PNAS 2016.

    >>> import torch
    >>> Triangle(2.0).derivative(torch.tensor([0.0, 1.0, 3.0]))
    tensor([0.5000, 0.2500, 0.0000])
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        _checks.positive("width", self.width)

    def derivative(self, distance: Tensor) -> Tensor:
        return (1 - distance.abs() / self.width).relu() / self.width

    def potential_grad(self, potentials: Tensor, grad: Tensor, threshold: float) -> Tensor:
        return _gradient(operators.latch_grad_triangle, potentials, grad, threshold, self.width)


@dataclass(frozen=True)
class EscapeNoise(LatchGradient):
    """The gradient of a neuron that fires by chance, in a bin with probability p = sigmoid(u / width).

    Its chance to have survived until bin t is ``S(t) = prod_{s <= t} (1 - p(s))``, and the latch is
    differentiated as 1 - S: what V of a bin does counts for every bin from there on, until the
    neuron has fired for certain.

    Args:
        width: of the sigmoid, in the unit of V.

    Raises:
        ValueError: a width that is not positive and finite.

    Source: escape noise as Gerstner & Kistler, "Spiking neuron models", 2002, ch. 5.3.

    >>> import torch
    >>> from ssnn_plugin.functional import latch
    >>> v = torch.tensor([[0.0], [0.0]], requires_grad=True)  # p = 1/2, S = 1/2 and 1/4
    >>> latch(v, 0.0, EscapeNoise(1.0)).sum().backward()
    >>> v.grad.flatten()
    tensor([0.3750, 0.1250])
    """

    width: float = 0.25

    def __post_init__(self) -> None:
        _checks.positive("width", self.width)

    def potential_grad(self, potentials: Tensor, grad: Tensor, threshold: float) -> Tensor:
        return _gradient(operators.latch_grad_escape, potentials, grad, threshold, self.width)


def _gradient(operator: Any, *arguments: Any) -> Tensor:
    return call_once(operator, *arguments, what="the latch")  # type: ignore[no-any-return]
