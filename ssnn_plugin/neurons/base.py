"""What a neuron that fires at most once is to the engine: a small frozen value that knows its response."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import _checks
from ..engine import How, Synapses, fire
from ..kernels.geometry import Geometry
from ..kernels.ops import NEURONS
from ..kernels.reference import first_spike

Number: TypeAlias = float | Tensor
Pair: TypeAlias = tuple[Tensor, Tensor]

# e^(t / tau) and its product with t stay finite in single precision.
MOST_TIME_CONSTANTS = 80
# Of Newton's method; near a tangent each halves the error.
MOST_ITERATIONS = 100


def least(value: Number) -> float:
    """The number itself, or the least of those that a tensor holds."""
    if isinstance(value, Tensor):
        return float(value.detach().min()) if _checks.has_values(value) and value.numel() else math.inf
    return float(value)


class Neuron(ABC):
    """Base of the descriptions of neurons: frozen dataclasses whose fields are numbers.

    Thresholds, leaks and time constants may be tensors [out], one value per neuron or per channel, which
    get a gradient if they ask for one; a layer takes them over as parameters or buffers.

    A neuron of your own derives from `CurrentNeuron`, which the kernels run.
    """

    threshold: Number

    #: names of the gradient rules that the neuron has in the package, its own first
    rules: ClassVar[tuple[str, ...]] = ("exact",)
    #: whether V jumps with an input: an input at the crossing counts, and V may overshoot the threshold
    jumps: ClassVar[bool] = False
    #: bins between the crossing and the spike
    delay: int = 0
    #: what is left of V after a bin, of neurons in bins
    beta: Number = 1.0
    #: name of the class, by which an operator finds the neuron
    kind: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name = f"{cls.__module__}:{cls.__qualname__}"
        # Classes that one function makes, or one cell of a notebook that is run again, share their name.
        cls.kind = name if name not in NEURONS else f"{name}#{len(NEURONS)}"
        NEURONS[cls.kind] = cls._of
        cls.__eq__ = _equal  # type: ignore[method-assign, assignment]

    @property
    def numbers(self) -> list[float]:
        """The values of the fields; with the `kind` they are all that there is to the neuron."""
        return [float(getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]

    @classmethod
    def _of(cls, *numbers: float) -> Neuron:
        return cls(**{f.name: number for f, number in zip(fields(cls), numbers, strict=True)})  # type: ignore[arg-type]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The fields that are tensors [out], one value per neuron."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def check(self, t_max: float) -> None:
        """Refuse a window that the neuron cannot be run over."""
        _checks.positive("t_max", t_max)

    def check_times(self, times: Tensor, t_max: float, bias: bool) -> None:
        """Refuse input times that the neuron has no meaning for."""

    def check_parameters(self, weight: Tensor) -> None:
        """Refuse values per neuron that do not fit the weights."""
        for name, value in self.parameters.items():
            if value.shape != weight.shape[:1]:
                raise ValueError(f"{name} must hold {len(weight)} values, one per neuron, got {len(value)}")
            if value.dtype != weight.dtype:
                raise TypeError(f"{name} is {value.dtype}, weight is {weight.dtype}: they must be the same")

    @abstractmethod
    def fire(self, times: Tensor, synapses: Synapses, t_max: float, how: How) -> tuple[Tensor, Tensor]:
        """Spike times and potentials of a layer: [batch, out], of a convolution [batch, locations, out]."""


def _equal(self: Neuron, other: object) -> bool:
    """Of one class, with equal numbers and the same tensors, as their hash has it."""
    if type(other) is not type(self):
        return NotImplemented  # type: ignore[no-any-return]
    pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]
    return all(
        a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b) for a, b in pairs
    )


class SeparableNeuron(Neuron):
    """A neuron whose response is separable: what the kernels run, event by event.

    The potential is ``V(t) = sum_i w_i K(t - t_i)`` over the inputs before t, and
    ``K(t - s) = p(t) a(s) - q(t) b(s)``. Forward and backward passes need no more of it. An `IF`, whose
    response is a step, has p = a = 1 and q = b = 0, said as None.
    """

    fire = fire

    @abstractmethod
    def crossings(
        self, times: Tensor, weight: Tensor, bias: Tensor | None, t_max: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Crossings, potentials and slopes of a fully connected layer, in plain torch, without gradient."""

    @abstractmethod
    def traced_potential(
        self, at: Tensor, times: Tensor, weight: Tensor, bias: Tensor | None, t_max: float
    ) -> Tensor:
        """What is differentiated as V at these crossings [batch, out], by a table [batch, in, out].

        For time constants per neuron: each neuron sees its inputs in a time of its own, so that the factors
        of inputs and outputs do not come apart.
        """

    @abstractmethod
    def input_factors(self, times: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """a and b at finite times."""

    @abstractmethod
    def output_factors(self, times: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """p and q at finite times."""

    @abstractmethod
    def output_slopes(self, times: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """p' and q' at finite times."""

    @abstractmethod
    def until(self, crossing: Tensor, t_max: float, silent: bool) -> Tensor:
        """Before when an input counts for an output that crosses then.

        For a silent one until the end of the window; where these do not count (`silent`) it may be NaN.
        """

    @abstractmethod
    def of_bias(self, crossing: Tensor, t_max: float) -> Tensor:
        """dV / dbias at the crossings, or at the end of the window."""


class CurrentNeuron(SeparableNeuron):
    """A neuron in continuous time whose V is continuous: an input raises a current, and this V.

    A subclass is a frozen dataclass with the field `threshold` that defines `input_factors`,
    `output_factors` and `output_slopes` of its response. It may define `crossing` in closed form, and
    `compiled` for the compiled kernels, without which it runs on the reference ones. V rises through the
    threshold along a concave arc, as it does for any two exponentials.

    A bias is the weight of an input spike at time 0.
    """

    def check(self, t_max: float) -> None:
        super().check(t_max)
        if self.delay:
            raise ValueError(f"delay must be 0 for a neuron in continuous time, got {self.delay!r}")
        if t_max > MOST_TIME_CONSTANTS * self.shortest_time:
            raise ValueError(
                f"t_max must be at most {MOST_TIME_CONSTANTS} time constants of {self.shortest_time}, "
                f"got {t_max!r}"
            )

    @property
    def shortest_time(self) -> float:
        """The shortest time constant of the response, for the range of its factors; `inf` for none."""
        return math.inf

    @abstractmethod
    def input_factors(self, times: Tensor) -> Pair:
        """a and b at finite times [*]."""

    @abstractmethod
    def output_factors(self, times: Tensor) -> Pair:
        """p and q at finite times [*]."""

    @abstractmethod
    def output_slopes(self, times: Tensor) -> Pair:
        """p' and q' at finite times [*]."""

    def crossing(self, a: Tensor, b: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """First time from `start` on at which p(t) a - q(t) b reaches the threshold; `inf` or NaN for none.

        What it is after `end` is of no interest. The default is Newton's method, which rises to the
        crossing and never beyond it where V is concave.
        """
        t = start
        for _ in range(MOST_ITERATIONS):
            (p, q), (dp, dq) = self.output_factors(t), self.output_slopes(t)
            missing, slope = self.threshold - (p * a - q * b), dp * a - dq * b
            step = torch.where(missing > 0, missing / slope, 0)
            t = torch.where((missing > 0) & ~(slope > 0), math.inf, t + step)
            t = torch.where(t <= end, t, math.inf)
            if not bool(((step > 1e-15 * (1 + t)) & t.isfinite()).any()):
                break
            t = torch.where(t.isfinite(), t, end)
        return torch.where(t < end, t, math.inf)

    def compiled(self) -> NamedTuple | None:
        """The response for the compiled kernels; None if there is none.

        A named tuple of numbers, whose class has methods in the Python that numba compiles: between two
        inputs V and the current I move on by themselves.

        `propagators(self, d)` -> alpha, beta, gamma of V(t + d) = alpha V + beta I, I(t + d) = gamma I;
        `rates(self)` -> the two numbers x, y of V' = x V + y I, x <= 0 <= y;
        `decay(self)` -> the number z of I' = -z I, for the kernels on a GPU, which need no more; optional;
        `crossing(self, threshold, v, current)` -> time until V = threshold, `inf` for never; optional; asked
        with a current of 0 too, for silent neurons;
        `monotone()` -> whether V can have no peak between two inputs; a static method, optional;
        `lasting()` -> whether alpha, and whether gamma, are 1 for every d, which saves multiplications; a
        static method, optional.
        """
        return None

    def crossings(
        self, times: Tensor, weight: Tensor, bias: Tensor | None, t_max: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return first_spike(times, weight, bias, Geometry(), self, t_max)

    def traced_potential(
        self, at: Tensor, times: Tensor, weight: Tensor, bias: Tensor | None, t_max: float
    ) -> Tensor:
        end, seen = at.clamp(max=t_max), times.clamp(max=t_max).unsqueeze(2)
        (p, q), (a, b) = self.output_factors(end), self.input_factors(seen)
        counted = torch.where(seen < end.unsqueeze(1), weight.t(), 0)
        v = p * (counted * a).sum(1) - q * (counted * b).sum(1)
        return v if bias is None else v + bias * self.of_bias(at, t_max)

    def until(self, crossing: Tensor, t_max: float, silent: bool) -> Tensor:
        return crossing.clamp(max=t_max)

    def of_bias(self, crossing: Tensor, t_max: float) -> Tensor:
        (p, q), (a, b) = (
            self.output_factors(crossing.clamp(max=t_max)),
            self.input_factors(crossing.new_zeros(())),
        )
        return p * a - q * b

    def check_positive(self, *names: str) -> None:
        """Refuse fields that are not positive and finite."""
        for name in names:
            _checks.positive(name, getattr(self, name))
