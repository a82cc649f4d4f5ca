"""Spike times <-> spike trains, and the decision of an output layer."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from . import _checks

TIES = ("first_index", "potential", "unique")
UNDECIDED = -1


class LaterSpikesWarning(UserWarning):
    """Spikes behind the first one of a line, which a first-spike time leaves out."""


class _TimesToSpikes(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(times: Tensor, t_max: int, silent_gradient: bool) -> Tensor:
        bins = torch.arange(t_max, device=times.device, dtype=times.dtype)
        return (times.floor() == bins.reshape(-1, *[1] * times.ndim)).to(times.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.silent_gradient = inputs[2]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (spikes,) = ctx.saved_tensors
        of_spikes = (grads[0] * spikes).sum(0)
        if ctx.silent_gradient:
            of_spikes = torch.where(spikes.any(0), of_spikes, grads[0][-1])
        return -of_spikes, None, None


def times_to_spikes(times: Tensor, t_max: int, *, silent_gradient: bool = False) -> Tensor:
    """Spike train of first-spike times: [*] -> [t_max, *], one 1 in the bin floor(t), else 0.

    Its backward hands -dL/dS of the spike's own bin to the time, the inverse of `spikes_to_times`.

    Args:
        times: spike times >= 0, any shape; `inf`, and any time at `t_max` or later, is silence.
        t_max: number of bins.
        silent_gradient: whether the time of a silent neuron gets that of the last bin, as output neurons
            need it behind which a host's loss on spike trains stands.

    Raises:
        TypeError: a dtype other than float32 or float64.
        ValueError: NaN or negative times, a `t_max` that is not a whole number above 0.

    >>> import torch
    >>> times_to_spikes(torch.tensor([1.0, torch.inf]), 3)
    tensor([[0., 0.],
            [1., 0.],
            [0., 0.]])
    """
    _checks.whole_and_positive("t_max", t_max)
    _checks.floating("times", times)
    _checks.spike_times("times", times)
    return _TimesToSpikes.apply(times, int(t_max), silent_gradient)  # type: ignore[no-any-return]


class _SpikesToTimes(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(spikes: Tensor, potential: Tensor | None, dtype: torch.dtype) -> Tensor:
        fired = spikes != 0
        first = fired.to(torch.uint8).argmax(0).to(dtype)
        return first.masked_fill(~fired.any(0), math.inf)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.train = inputs[0].shape, inputs[0].dtype
        ctx.potential = None if inputs[1] is None else inputs[1].dtype
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor | None, None]:
        (times,) = ctx.saved_tensors
        shape, dtype = ctx.train
        silent, error = times.isinf(), -grads[0]
        of_potential = None
        if ctx.potential is not None:
            of_potential = error.masked_fill(~silent, 0).to(ctx.potential)
            error = error.masked_fill(silent, 0)
        # A loss on a time of inf, without a stand-in, may have no finite gradient.
        error = error.masked_fill(silent & ~error.isfinite(), 0).to(dtype)
        bins = times.masked_fill(silent, shape[0] - 1).long()
        train = error.new_zeros(shape).scatter(0, bins.unsqueeze(0), error.unsqueeze(0))
        return train, of_potential, None


def spikes_to_times(spikes: Tensor, potential: Tensor | None = None) -> Tensor:
    """First-spike times of a spike train: [time, *] -> [*], `inf` for a neuron that never fires.

    Later spikes are ignored, with a warning: rate-coded or event-camera trains are no input of a network
    on spike times. The backward hands -dL/dt to the first spike. A silent neuron has no spike to hand it
    to: without a potential -dL/dt goes to its last bin, as snnTorch does, where a neuron with
    `silent_gradient=True` reads it and others do not; with one it goes to the potential. Either is what
    `silent_gradient=True` does on spike times, to the weights; a learned threshold is no part of a potential.

    Args:
        spikes: time first; anything but 0 is a spike. Any trailing shape, device and dtype.
        potential: [*] after the last bin, if silent neurons are to learn from a finite stand-in
            for their time (`functional.fill_silent`).

    Returns:
        Times in bins: float64 for a float64 train, float32 otherwise (half precision cannot
        count beyond 256 bins).

    Raises:
        ValueError: no time axis, no time bins, NaN, or a potential of another shape or with NaN.

    Warns:
        LaterSpikesWarning: lines that fire more than once.

    >>> import torch
    >>> spikes_to_times(torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    tensor([1., 2., inf])
    """
    spikes = spikes if spikes.layout == torch.strided else spikes.to_dense()
    times = first_spikes(spikes, potential)
    if _checks.has_values(spikes):
        several = int(((spikes != 0).sum(0) > 1).sum())
        if several:
            warnings.warn(
                f"{several} of {times.numel()} lines of spikes fire more than once; all but the first spike "
                "is dropped, so that a network on spike times sees another input than a loop over steps. "
                "Rate codes and event cameras need a code with one spike, for instance encode.latency",
                LaterSpikesWarning,
                stacklevel=2,
            )
    return times


def first_spikes(spikes: Tensor, potential: Tensor | None = None) -> Tensor:
    """`spikes_to_times` for trains of which the first spike alone is meant, without a warning."""
    if spikes.ndim == 0 or spikes.shape[0] == 0:
        raise ValueError(f"spikes must have shape [time >= 1, *], got {list(spikes.shape)}")
    if _checks.has_nan(spikes):
        raise ValueError("spikes must not hold NaN")
    if potential is not None and potential.shape != spikes.shape[1:]:
        raise ValueError(f"potential must have shape {list(spikes.shape[1:])}, got {list(potential.shape)}")
    dtype = torch.float64 if spikes.dtype == torch.float64 else torch.float32
    if potential is not None and _checks.has_nan(potential):
        raise ValueError("potential must not hold NaN, which a NaN current leaves behind")
    return _SpikesToTimes.apply(spikes, potential, dtype)  # type: ignore[no-any-return]


def first_to_fire(
    times: Tensor, potential: Tensor | None = None, *, tie: str = "potential", all_silent: str | None = None
) -> Tensor:
    """Class decided by the earliest output spike: [batch, classes] -> [batch], -1 for undecided.

    Args:
        times: output spike times, `inf` = silent.
        potential: V at the crossing, or at the end of the window for a silent neuron, as layers
            return it with `return_potential=True`.
        tie: "first_index" takes the lowest class of those that tie, "potential" the one with the
            highest potential, "unique" leaves a tie undecided.
        all_silent: "potential" decides a sample without any output spike by the highest
            potential, "undecided" leaves it. None is "potential" if one is given and `tie` is not
            "unique".

    Raises:
        ValueError: an unknown rule, a rule that needs a potential without one, shapes that do not
            fit, NaN or negative times.
        TypeError: a potential of whole numbers.

    >>> import torch
    >>> times = torch.tensor([[4.0, 4.0, 9.0], [torch.inf, torch.inf, torch.inf]])
    >>> potential = torch.tensor([[1.2, 1.5, 1.1], [0.3, 0.1, 0.9]])
    >>> first_to_fire(times, potential), first_to_fire(times, tie="unique")
    (tensor([1, 2]), tensor([-1, -1]))
    """
    _checks.one_of("tie", tie, TIES)
    if all_silent is None:
        all_silent = "undecided" if potential is None or tie == "unique" else "potential"
    _checks.one_of("all_silent", all_silent, ("potential", "undecided"))
    if times.ndim != 2 or times.shape[1] == 0:
        raise ValueError(f"times must have shape [batch, classes >= 1], got {list(times.shape)}")
    _checks.spike_times("times", times)
    if potential is None and "potential" in (tie, all_silent):
        raise ValueError(
            "potential must be given for tie or all_silent 'potential': that of the outputs, which networks "
            "return with return_potential=True. tie='unique' needs none"
        )
    if potential is not None and potential.shape != times.shape:
        raise ValueError(f"potential must have shape {list(times.shape)}, got {list(potential.shape)}")
    if potential is not None and not potential.is_floating_point():
        raise TypeError(f"potential must be floating, got {potential.dtype}")
    if potential is not None and _checks.has_values(potential) and not bool(potential.isfinite().all()):
        raise ValueError("potential must be finite, got NaN or infinity")

    earliest = times.min(dim=1, keepdim=True).values
    tied = times == earliest
    if tie == "potential":
        assert potential is not None
        winner = potential.masked_fill(~tied, -math.inf).argmax(1)
    else:
        winner = times.argmin(1)
    if tie == "unique":
        winner = winner.masked_fill(tied.sum(1) > 1, UNDECIDED)
    by_silence = potential.argmax(1) if all_silent == "potential" and potential is not None else UNDECIDED
    return torch.where(earliest.squeeze(1).isinf(), by_silence, winner)
