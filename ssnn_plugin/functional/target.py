"""Target firing times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _checks
from ..kernels.ops import plain
from .error import fill_silent
from .silent import warn_if_none

REFERENCES = ("earliest", "mean", "mean_two_sided")
VARIANTS = ("one-sided", "fixed", "own")


def relative_targets(
    times: Tensor, labels: Tensor, gamma: float, t_max: float, *, reference: str = "earliest"
) -> Tensor:
    """Targets relative to the output spikes of each sample: to the earliest (S4NN), or to their mean.

    "earliest": the label should fire at the earliest time tau of the sample, every other neuron that
    fires less than `gamma` after tau should fire at min(tau + gamma, t_max), and the rest has no
    error. If all outputs are silent the label should fire at t_max - gamma.

    "mean": with C classes and m the mean time of the outputs that fired, at most t_max - gamma / C
    (and just that if none did), the label should fire at m - gamma (C - 1) / C or earlier, though not
    before 0, and the others at m + gamma / C or later. "mean_two_sided" has them fire at those times.

    Args:
        times: output spike times [batch, classes, *]; `inf` = silent.
        labels: class numbers [batch, *].
        gamma: wanted gap in bins, greater than 0 and at most `t_max`.
        t_max: length of the window, the finite stand-in for silence.
        reference: "earliest", "mean" or "mean_two_sided".

    Returns:
        Finite target times of the shape of the times, without gradient.

    Raises:
        ValueError: shapes that do not fit, labels out of range, NaN or negative times, an unknown
            reference.

    Source: "earliest", Kheradpisheh & Masquelier 2020, relative target firing time (we read DS4NN's
    "relative encoding scheme" as this rule); "mean", Liu et al. 2021 (SSTDP); "mean_two_sided",
    Goupy et al. 2024 (S2-STDP). The floor at 0 is ours.

    >>> import torch
    >>> times, label = torch.tensor([[10.0, 12.0, 13.0, 40.0]]), torch.tensor([1])
    >>> relative_targets(times, label, 3, 256)
    tensor([[13., 10., 13., 40.]])
    >>> relative_targets(times, label, 4, 256, reference="mean")  # the mean is 18.75
    tensor([[19.7500, 12.0000, 19.7500, 40.0000]])
    """
    _checks.positive("t_max", t_max)
    _checks.gap("gamma", gamma, t_max)
    _checks.one_of("reference", reference, REFERENCES)
    _checks.floating("times", times)
    _checks.labels_of_any_shape(labels, times)
    _checks.spike_times("times", times)
    filled = times.detach().clamp(max=t_max)
    if times.shape[1] == 0 or times.shape[0] == 0:
        return filled
    if reference == "earliest":
        of_label, others = _from_earliest(filled, gamma, t_max)
    else:
        of_label, others = _from_mean(filled, gamma, t_max)
    if reference == "mean":
        of_label, others = torch.minimum(filled, of_label), torch.maximum(filled, others)
    is_label = torch.zeros_like(filled, dtype=torch.bool).scatter(1, labels.long().unsqueeze(1), True)
    return torch.where(is_label, of_label, others)


def relative_target_losses(
    times: Tensor, labels: Tensor, gamma: float, t_max: float, *, reference: str = "earliest"
) -> Tensor:
    """Half the squared distance to `relative_targets` in windows, [batch, *]."""
    if reference == "earliest" and _runs_compiled(times, labels):
        losses: Tensor = _RelativeTargetLosses.apply(times, labels, gamma, t_max)
        return losses
    targets = relative_targets(times, labels, gamma, t_max, reference=reference)
    return 0.5 * ((targets - fill_silent(times, t_max)) / t_max).square().sum(dim=1)


def _runs_compiled(times: Tensor, labels: Tensor) -> bool:
    fits = times.ndim == 2 and labels.shape == times.shape[:1] and times.numel() > 0
    return fits and times.dtype in _checks.DTYPES and labels.dtype == torch.int64 and _on_cpu(times, labels)


def _on_cpu(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and plain(tensor) for tensor in tensors)


class _RelativeTargetLosses(torch.autograd.Function):
    """The losses of S4NN's targets, compiled: many small operations take longer than a layer."""

    @staticmethod
    def forward(ctx: Any, times: Tensor, labels: Tensor, gamma: float, t_max: float) -> Tensor:
        from ..kernels.cpu.errors import relative_errors
        from ..kernels.cpu.parallel import as_arrays

        _checks.positive("t_max", t_max)
        _checks.gap("gamma", gamma, t_max)
        errors, losses = times.new_empty(times.shape), times.new_empty(len(times))
        valid, fired = relative_errors(
            *as_arrays(times, labels), float(gamma), float(t_max), errors.numpy(), losses.numpy()
        )
        if not valid:
            _checks.labels_of_any_shape(labels, times)
            _checks.spike_times("times", times)
        if not fired and ctx.needs_input_grad[0]:
            warn_if_none(times < t_max)
        ctx.save_for_backward(errors)
        ctx.t_max = t_max
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (errors,) = ctx.saved_tensors
        return errors * (grads[0] / ctx.t_max).unsqueeze(1), None, None, None


def single_targets(
    times: Tensor, labels: Tensor, t_target: float, t_max: float, *, variant: str = "one-sided"
) -> Tensor:
    """Targets of a single spike: the label should fire, every other neuron should stay silent (t_max).

    Args:
        times: output spike times [batch, classes, *]; `inf` = silent.
        labels: class numbers [batch, *].
        t_target: time for the label, at least 0 and below `t_max`.
        t_max: length of the window, the finite stand-in for silence.
        variant: "one-sided" asks the label to fire at `t_target` or earlier, "fixed" at `t_target`;
            "own" leaves it where it fired and asks it for `t_target` only if it was silent.

    Returns:
        Finite target times of the shape of the times, without gradient.

    Raises:
        ValueError: shapes that do not fit, labels out of range, NaN or negative times, a `t_target`
            outside the window, an unknown variant.

    Source: Moqadasi, Safari & Mateo 2025 (TS4TL), "absolute target". What is known of it leaves the
    label's target open; the variants are our readings.

    >>> import torch
    >>> single_targets(torch.tensor([[10.0, 160.0, torch.inf]]), torch.tensor([1]), 128, 256)
    tensor([[256., 128., 256.]])
    """
    _checks.positive("t_max", t_max)
    if not 0 <= t_target < t_max:
        raise ValueError(f"t_target must be at least 0 and below t_max = {t_max}, got {t_target!r}")
    _checks.one_of("variant", variant, VARIANTS)
    _checks.floating("times", times)
    _checks.labels_of_any_shape(labels, times)
    _checks.spike_times("times", times)
    index = labels.long().unsqueeze(1)
    own = times.detach().gather(1, index)
    if variant == "fixed":
        of_label = torch.full_like(own, t_target)
    elif variant == "one-sided":
        of_label = own.clamp(max=t_target)
    else:
        of_label = own.masked_fill(own >= t_max, t_target)
    return torch.full_like(times.detach(), t_max).scatter(1, index, of_label)


def _from_earliest(filled: Tensor, gamma: float, t_max: float) -> tuple[Tensor, Tensor]:
    """Targets of the label and of the others if the label should be the first."""
    earliest = filled.min(dim=1, keepdim=True).values
    others = torch.where(filled - earliest < gamma, (earliest + gamma).clamp(max=t_max), filled)
    return torch.where(earliest < t_max, earliest, t_max - gamma), others


def _from_mean(filled: Tensor, gamma: float, t_max: float) -> tuple[Tensor, Tensor]:
    """Targets of the label and of the others on either side of the mean time, `gamma` apart.

    The number of classes divides `gamma`, by our reading of Liu et al. 2021; it may be that of the outputs
    that fired.
    """
    share = gamma / filled.shape[1]
    fired = (filled < t_max).to(filled.dtype)
    spikes = fired.sum(dim=1, keepdim=True)
    mean = (filled * fired).sum(dim=1, keepdim=True) / spikes
    mean = torch.where(spikes > 0, mean, t_max).clamp(max=t_max - share)
    return (mean - (gamma - share)).clamp(min=0), (mean + share).clamp(max=t_max)
