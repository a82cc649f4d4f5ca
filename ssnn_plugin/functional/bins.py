"""Single-spike neurons over the bins of a window: cumulative activations instead of times.

A spike time t_i is the row of activations a_i(t) = [t_i <= t], which turns from 0 to 1 once. On them a
connection is linear, V_j(t) = sum_i w_ji a_i(t), so that the bins go into the batch axis of any dense
layer; `latch` makes the neuron's own activations of its potentials, with a gradient in every bin; and
t_j = sum_t (1 - a_j(t)). This is how deep integrate-and-fire networks learn: with a step as
post-synaptic potential, V at the moment of firing does not depend on when the inputs came.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..kernels import latch as operators
from ..kernels.window import leaky_sum
from ..neurons import IF
from ..surrogate import Arctan, LatchGradient


class Bins:
    """What a layer sends on over the bins of a window.

    Attributes:
        activations: [T, batch, *], 1 from the bin of a spike on.
        potentials: V as if nothing fired [T, batch, *], or None where there are no neurons.
        neuron: the neuron that fires on these, or None.
    """

    potentials: Tensor | None = None
    neuron: IF | None = None

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations


class NeuronsInBins(Bins):
    """Neurons that fire on potentials [T, batch, *]; their activations are computed when they are asked for.

    A pool behind them does not ask: it takes the potentials.
    """

    potentials: Tensor
    neuron: IF

    def __init__(self, potentials: Tensor, neuron: IF, gradient: LatchGradient | None) -> None:
        self.potentials, self.neuron, self.gradient = potentials, neuron, gradient
        self._activations: Tensor | None = None

    @property
    def activations(self) -> Tensor:
        """With the delay of the neuron."""
        if self._activations is None:  # no `cached_property`, whose lock cannot be compiled in Python 3.11
            spikes = latch(self.potentials, self.neuron.threshold, self.gradient)
            self._activations = delayed(spikes, int(self.neuron.delay))
        return self._activations

    @activations.setter
    def activations(self, activations: Tensor) -> None:
        self._activations = activations

    def mapped(self, function: Callable[[Tensor], Tensor]) -> NeuronsInBins:
        """The same neurons on changed potentials."""
        return NeuronsInBins(function(self.potentials), self.neuron, self.gradient)

    def reshaped(self, function: Callable[[Tensor], Tensor]) -> NeuronsInBins:
        """The same neurons in another order; activations that there are are not computed again."""
        neurons = self.mapped(function)
        if self._activations is not None:
            neurons.activations = function(self._activations)
        return neurons


def times_to_bins(times: Tensor, t_max: int) -> Tensor:
    """Spike times [*] -> activations [t_max, *]: 1 from the bin of the spike on, of the dtype of the times.

    Args:
        times: whole bins; `t_max` or later, `inf` too, is silence. They get no gradient.
        t_max: number of bins.

    Raises:
        TypeError: a dtype other than float32 or float64.
        ValueError: NaN or negative times, or such as are no whole bins; a `t_max` that is not a
            whole number above 0.

    >>> import torch
    >>> times_to_bins(torch.tensor([0.0, 2.0, torch.inf]), t_max=3).T
    tensor([[1., 1., 1.],
            [0., 0., 1.],
            [0., 0., 0.]])
    """
    _checks.whole_and_positive("t_max", t_max)
    _checks.floating("times", times)
    _checks.spike_times("times", times)
    _checks.whole_bins("times", times, "a value for each bin")
    bins = torch.arange(t_max, dtype=times.dtype, device=times.device)
    return (times.detach() <= bins.reshape(-1, *[1] * times.ndim)).to(times.dtype)


def bins_to_times(activations: Tensor) -> Tensor:
    """Activations [T, *] -> spike times [*], float32 or wider; `inf` for a neuron that never fires.

    An activation that grows makes the spike earlier: dt/da(t) = -1 in every bin, for silent neurons
    too, whose stand-in for a time is T.

    >>> import torch
    >>> bins_to_times(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    tensor([1., inf])
    """
    if activations.ndim == 0 or not len(activations):
        raise ValueError(f"activations must have shape [T >= 1, *], got {list(activations.shape)}")
    return _BinsToTimes.apply(activations)  # type: ignore[no-any-return]


class _BinsToTimes(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(activations: Tensor) -> Tensor:
        dtype = torch.promote_types(activations.dtype, torch.float32)
        fired = activations.sum(0, dtype=dtype)
        return torch.where(fired > 0, len(activations) - fired, math.inf)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        grad: Tensor = -grads[0].to(ctx.dtype)
        return grad.unsqueeze(0).expand(ctx.shape)


def latch(
    potentials: Tensor, threshold: float | Tensor = 1.0, gradient: LatchGradient | None = None
) -> Tensor:
    """Activations of neurons that fire at most once: 1 from the first bin on in which V > threshold.

    Args:
        potentials: V without reset [T, *], any floating dtype. NaN does not fire.
        threshold: a number, or a tensor that broadcasts to [*] and gets a gradient if it asks for one.
        gradient: the rule by which the step is differentiated; None is `surrogate.Arctan()`.

    Returns:
        Activations [T, *], 0 or 1, of the dtype of the potentials.

    Time and memory grow with T alone, in one compiled pass forward and one backward on the CPU.

    Raises:
        ValueError: no bins, a threshold of NaN.
        TypeError: potentials that are not floating, another kind of rule.

    >>> import torch
    >>> latch(torch.tensor([[0.5], [1.5], [0.5]])).flatten()
    tensor([0., 1., 1.])
    """
    if potentials.ndim == 0 or not len(potentials):
        raise ValueError(f"potentials must have shape [T >= 1, *], got {list(potentials.shape)}")
    if not potentials.is_floating_point():
        raise TypeError(f"potentials must be floating, got {potentials.dtype}")
    gradient = Arctan() if gradient is None else gradient
    if not isinstance(gradient, LatchGradient):
        raise TypeError(
            f"gradient must be a rule of ssnn_plugin.surrogate, such as Arctan(), got {gradient!r}"
        )
    if not isinstance(threshold, Tensor) and math.isnan(threshold):
        raise ValueError(f"threshold must be a number, got {threshold!r}")
    if isinstance(threshold, Tensor):
        _check_threshold(threshold, potentials)
        potentials, threshold = potentials - threshold.to(potentials.dtype), 0.0
    return _Latch.apply(potentials, float(threshold), gradient)  # type: ignore[no-any-return]


def _check_threshold(threshold: Tensor, potentials: Tensor) -> None:
    """Refuse NaN, and what would change the shape of the potentials."""
    if _checks.has_nan(threshold):
        raise ValueError(f"threshold must hold numbers, got {threshold}")
    neurons = potentials.shape[1:]
    fits = len(threshold.shape) <= len(neurons) and all(
        own in (1, size) for own, size in zip(threshold.shape[::-1], neurons[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"threshold must broadcast to the neurons {list(neurons)}, got shape {list(threshold.shape)}"
        )


class _Latch(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(potentials: Tensor, threshold: float, gradient: LatchGradient) -> Tensor:
        return operators.latch(potentials, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        potentials, ctx.threshold, ctx.gradient = inputs
        ctx.save_for_backward(potentials)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (potentials,) = ctx.saved_tensors
        return ctx.gradient.potential_grad(potentials, grads[0], ctx.threshold), None, None


def integrate(currents: Tensor, t_max: int, bias: Tensor | None = None, beta: float = 1.0) -> Tensor:
    """V in every bin of a window, of cumulative currents [T, batch, *] -> [t_max, batch, *].

    Args:
        currents: sum_i w_i a_i(t), which stays what it is at its end.
        bias: a current of every bin, or None.
        beta: what is left of V after a bin.

    >>> import torch
    >>> integrate(torch.tensor([[1.0], [3.0]]), 3, beta=0.5).flatten()  # inputs of 1, 2 and 0
    tensor([1.0000, 2.5000, 1.2500])
    """
    currents = going_on(currents, t_max)
    if beta == 1:
        if bias is None:
            return currents
        age = torch.arange(1, t_max + 1, dtype=currents.dtype, device=currents.device)
        return currents + age.reshape(-1, *[1] * (currents.ndim - 1)) * bias
    steps = torch.cat([currents[:1], currents.diff(dim=0)])
    potentials: Tensor = _LeakySum.apply(steps if bias is None else steps + bias, beta)
    return potentials


class _LeakySum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(currents: Tensor, beta: float) -> Tensor:
        return leaky_sum(currents, beta)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.beta = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return _LeakySum.apply(grads[0].flip(0), ctx.beta).flip(0), None


def going_on(cumulative: Tensor, bins: int) -> Tensor:
    """Cumulative values [T, *] for at least so many bins: after their end they stay what they are."""
    if len(cumulative) >= bins:
        return cumulative
    rest = cumulative[-1:].expand(bins - len(cumulative), *cumulative.shape[1:])
    return torch.cat([cumulative, rest])


def delayed(activations: Tensor, delay: int) -> Tensor:
    """Activations [T, *] that come some bins later; what would come after the window is silent."""
    if not delay:
        return activations
    silent = torch.zeros_like(activations[:delay])
    return torch.cat([silent, activations[: len(activations) - len(silent)]])


def potential_at_crossing(potentials: Tensor, activations: Tensor, delay: int = 0) -> Tensor:
    """V [T, *] in the bin in which a neuron crossed its threshold, in the last one if it is silent: [*].

    Args:
        delay: bins between the crossing and the spike.

    >>> import torch
    >>> v = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 0.5]])
    >>> potential_at_crossing(v, latch(v))
    tensor([2.0000, 0.5000])
    """
    fired = activations.detach().sum(0, dtype=torch.float32)
    bins = torch.where(fired > 0, len(potentials) - fired - delay, len(potentials) - 1).long()
    return potentials.gather(0, bins.unsqueeze(0)).squeeze(0)


def channels_last(images: Tensor) -> Tensor:
    """Images [batch, channels, height, width] in the layout in which dense convolutions are fast.

    `vmap` knows no layouts: there they stay as they are.
    """
    if torch._C._are_functorch_transforms_active():
        return images
    images = images.contiguous(memory_format=torch.channels_last)
    channels, height, width = images.shape[1:]
    # One channel has either layout; its strides say which one the output gets.
    return images.as_strided(images.shape, (height * width, 1, width, 1)) if channels == 1 else images
