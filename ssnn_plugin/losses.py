"""Losses on first-spike times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import _checks
from .functional import fill_silent, single_targets
from .functional.target import REFERENCES, VARIANTS, relative_target_losses

REDUCTIONS = ("mean", "sum", "none")
SILENT = ("t_max", "ignore")


class RelativeTargetLoss(nn.Module):
    """Half the squared distance to targets relative to the output's own spikes, in windows.

    L = 1/2 sum_j ((T_j - t_j) / t_max)^2 per sample, with the targets T of
    `functional.relative_targets` and `t_max` in place of silence.

    Args:
        gamma: wanted gap in bins between the label and the others.
        t_max: length of the window.
        reduction: "mean" over the batch, "sum", or "none" for one value per sample.
        reference: what the targets are relative to: "earliest" is S4NN's rule, as which we read DS4NN's
            "relative encoding" too; "mean" is that of SSTDP and "mean_two_sided" that of S2-STDP.

    Shape: times [batch, classes, *] float, labels [batch, *] whole numbers -> scalar, or [batch, *].

    Raises:
        ValueError, TypeError: as `functional.relative_targets`.

    Source: Kheradpisheh & Masquelier 2020; Liu et al. 2021; Goupy et al. 2024.

    >>> import torch
    >>> loss = RelativeTargetLoss(gamma=3, t_max=256)
    >>> loss(torch.tensor([[10.0, 12.0, 13.0, 40.0]]), torch.tensor([1])) * 256**2
    tensor(6.5000)
    """

    def __init__(
        self, gamma: float, t_max: float, reduction: str = "mean", *, reference: str = "earliest"
    ) -> None:
        super().__init__()
        _checks.positive("t_max", t_max)
        _checks.gap("gamma", gamma, t_max)
        _checks.one_of("reduction", reduction, REDUCTIONS)
        _checks.one_of("reference", reference, REFERENCES)
        self.gamma, self.t_max, self.reduction, self.reference = gamma, t_max, reduction, reference

    def extra_repr(self) -> str:
        return (
            f"gamma={self.gamma}, t_max={self.t_max}, reduction={self.reduction!r}, "
            f"reference={self.reference!r}"
        )

    def forward(self, times: Tensor, labels: Tensor) -> Tensor:
        losses = relative_target_losses(times, labels, self.gamma, self.t_max, reference=self.reference)
        return _reduce(losses, self.reduction)


class SingleTargetLoss(nn.Module):
    """Half the squared distance to the targets of a single spike, that of the label, in windows.

    L = 1/2 sum_j ((T_j - t_j) / t_max)^2 per sample, with the targets T of
    `functional.single_targets` and `t_max` in place of silence.

    Args:
        t_target: time for the label, at least 0 and below `t_max`.
        t_max: length of the window.
        variant: "one-sided" asks the label to fire at `t_target` or earlier, "fixed" at `t_target`;
            "own" asks it for `t_target` only if it is silent.
        reduction: "mean" over the batch, "sum", or "none" for one value per sample.

    Shape: times [batch, classes, *] float, labels [batch, *] whole numbers -> scalar, or [batch, *].

    Raises:
        ValueError, TypeError: as `functional.single_targets`.

    Source: Moqadasi, Safari & Mateo 2025 (TS4TL); the variants are our readings.

    >>> import torch
    >>> loss = SingleTargetLoss(t_target=8, t_max=16)
    >>> loss(torch.tensor([[12.0, 12.0, torch.inf]]), torch.tensor([1])) * 16**2
    tensor(16.)
    """

    def __init__(
        self, t_target: float, t_max: float, variant: str = "one-sided", reduction: str = "mean"
    ) -> None:
        super().__init__()
        _checks.positive("t_max", t_max)
        if not 0 <= t_target < t_max:
            raise ValueError(f"t_target must be at least 0 and below t_max = {t_max}, got {t_target!r}")
        _checks.one_of("variant", variant, VARIANTS)
        _checks.one_of("reduction", reduction, REDUCTIONS)
        self.t_target, self.t_max, self.variant, self.reduction = t_target, t_max, variant, reduction

    def extra_repr(self) -> str:
        return (
            f"t_target={self.t_target}, t_max={self.t_max}, variant={self.variant!r}, "
            f"reduction={self.reduction!r}"
        )

    def forward(self, times: Tensor, labels: Tensor) -> Tensor:
        targets = single_targets(times, labels, self.t_target, self.t_max, variant=self.variant)
        error = (targets - fill_silent(times, self.t_max)) / self.t_max
        return _reduce(0.5 * error.square().sum(dim=1), self.reduction)


class TemporalCrossEntropyLoss(nn.Module):
    """Cross-entropy on first-spike times, the earlier the likelier: logits -t / (temperature t_max).

    The temperature is a fraction of the window, so that it means the same for windows of any length.

    Args:
        t_max: length of the window.
        temperature: difference in time, as a fraction of `t_max`, that makes a class e times likelier.
        silent: "t_max" lets a silent neuron count as if it fired at the end of the window, one bin
            after the last; "ignore" leaves silent neurons out, except that of the label.
        weight: [classes], factors of the classes as in `torch.nn.CrossEntropyLoss`.
        reduction: "mean", "sum" or "none".

    Shape: times [batch, classes, *] float, labels [batch, *] whole numbers -> scalar, or [batch, *].

    Raises:
        ValueError, TypeError: arguments out of range; labels that do not fit, NaN or negative times.

    >>> import torch
    >>> loss = TemporalCrossEntropyLoss(t_max=100, temperature=0.1)
    >>> loss(torch.tensor([[20.0, 30.0, torch.inf]]), torch.tensor([0]))
    tensor(0.3135)
    """

    weight: Tensor | None

    def __init__(
        self,
        t_max: float,
        temperature: float = 0.1,
        *,
        silent: str = "t_max",
        weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _checks.positive("t_max", t_max)
        _checks.positive("temperature", temperature)
        _checks.one_of("silent", silent, SILENT)
        _checks.one_of("reduction", reduction, REDUCTIONS)
        self.t_max, self.temperature, self.silent, self.reduction = t_max, temperature, silent, reduction
        self.register_buffer("weight", weight)

    def extra_repr(self) -> str:
        return (
            f"t_max={self.t_max}, temperature={self.temperature}, silent={self.silent!r}, "
            f"reduction={self.reduction!r}"
        )

    def forward(self, times: Tensor, labels: Tensor) -> Tensor:
        _checks.floating("times", times)
        _checks.labels_of_any_shape(labels, times)
        _checks.spike_times("times", times)
        if self.weight is not None:
            _check_one_per_class(self.weight, times)
        labels = labels.long()
        logits = -fill_silent(times, self.t_max) / (self.temperature * self.t_max)
        if self.silent == "ignore":
            others = torch.ones_like(times, dtype=torch.bool).scatter(1, labels.unsqueeze(1), False)
            logits = logits.masked_fill(others & (times >= self.t_max), -math.inf)
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        return nn.functional.cross_entropy(logits, labels, weight, reduction=self.reduction)


class ExponentialCrossEntropyLoss(nn.Module):
    """Mostafa's cross-entropy on z = e^(t / tau), the earlier the likelier: -ln(e^-z_y / sum_k e^-z_k).

    It is felt among the first outputs only: a spike some tau behind them has next to no gradient.

    Args:
        t_max: length of the window; a silent neuron counts as if it fired at its end. At most 80 tau.
        tau: time constant of the synapses, in the unit of the times.
        reduction: "mean" over the batch, "sum", or "none" for one value per sample.

    Shape: times [batch, classes, *] float, labels [batch, *] whole numbers -> scalar, or [batch, *].

    Raises:
        ValueError, TypeError: arguments out of range; labels that do not fit, NaN or negative times.

    Source: Mostafa 2018, the cost on z of the outputs.

    >>> import torch
    >>> loss = ExponentialCrossEntropyLoss(t_max=5)
    >>> loss(torch.tensor([[0.0, 1.7918]]), torch.tensor([0]))  # z = 1 and 6: ln(1 + e^-5)
    tensor(0.0067)
    """

    def __init__(self, t_max: float, tau: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        _checks.positive("t_max", t_max)
        _checks.positive("tau", tau)
        _check_exponent(t_max, tau)
        _checks.one_of("reduction", reduction, REDUCTIONS)
        self.t_max, self.tau, self.reduction = t_max, tau, reduction

    def extra_repr(self) -> str:
        return f"t_max={self.t_max}, tau={self.tau}, reduction={self.reduction!r}"

    def forward(self, times: Tensor, labels: Tensor) -> Tensor:
        _checks.floating("times", times)
        _checks.labels_of_any_shape(labels, times)
        _checks.spike_times("times", times)
        logits = -torch.exp(fill_silent(times, self.t_max) / self.tau)
        return nn.functional.cross_entropy(logits, labels.long(), reduction=self.reduction)


class EarlyLabelLoss(nn.Module):
    """What a late label costs, to be added to another loss: alpha (e^(t_y / (beta tau)) - 1).

    Args:
        t_max: length of the window, at most 80 beta tau.
        alpha: factor; Fast & Deep takes 0.005, EventProp 0.01.
        beta: Fast & Deep takes 1, EventProp 2.
        tau: time constant of the synapses, in the unit of the times.
        silent: "t_max" lets a silent label count as if it fired at the end of the window; "ignore"
            leaves it without cost, and so without gradient, as Fast & Deep does.
        reduction: "mean" over the batch, "sum", or "none" for one value per sample.

    Shape: times [batch, classes, *] float, labels [batch, *] whole numbers -> scalar, or [batch, *].

    Raises:
        ValueError, TypeError: arguments out of range; labels that do not fit, NaN or negative times.

    Source: Göltz et al. 2021 (Fast & Deep), without the - 1; Wunderlich & Pehle 2021 (EventProp). Their
    cross-entropy is a `TemporalCrossEntropyLoss` of temperature xi tau / t_max.

    >>> import torch
    >>> loss = EarlyLabelLoss(t_max=5, alpha=0.5)
    >>> loss(torch.tensor([[9.0, 0.6931]]), torch.tensor([1]))  # e^t = 2
    tensor(0.5000)
    """

    def __init__(
        self,
        t_max: float,
        alpha: float = 0.005,
        beta: float = 1.0,
        tau: float = 1.0,
        *,
        silent: str = "t_max",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        for name, value in (("t_max", t_max), ("alpha", alpha), ("beta", beta), ("tau", tau)):
            _checks.positive(name, value)
        _check_exponent(t_max, beta * tau)
        _checks.one_of("silent", silent, SILENT)
        _checks.one_of("reduction", reduction, REDUCTIONS)
        self.t_max, self.alpha, self.beta, self.tau = t_max, alpha, beta, tau
        self.silent, self.reduction = silent, reduction

    def extra_repr(self) -> str:
        return (
            f"t_max={self.t_max}, alpha={self.alpha}, beta={self.beta}, tau={self.tau}, "
            f"silent={self.silent!r}, reduction={self.reduction!r}"
        )

    def forward(self, times: Tensor, labels: Tensor) -> Tensor:
        _checks.floating("times", times)
        _checks.labels_of_any_shape(labels, times)
        _checks.spike_times("times", times)
        of_label = fill_silent(times, self.t_max).gather(1, labels.long().unsqueeze(1)).squeeze(1)
        loss = self.alpha * torch.expm1(of_label / (self.beta * self.tau))
        if self.silent == "ignore":
            loss = loss.masked_fill(of_label >= self.t_max, 0)
        return _reduce(loss, self.reduction)


class TargetTimeLoss(nn.Module):
    """Mean squared distance to target times, as fractions of the window: ((t - target) / t_max)^2.

    Args:
        t_max: length of the window.
        on_target, off_target: target time of the label and of the other classes, for labels; None is
            `t_max`, silence. (`mse_temporal_loss` of the snnTorch adapter takes the last step, as snnTorch.)
        tolerance: a distance up to it, in bins, is no error.
        silent: "t_max" lets a silent neuron count as if it fired at the end of the window;
            "ignore" leaves it without error.
        weight: [classes], how often the errors of a sample count, by its label.
        reduction: "mean" over neurons and batch, "sum", or "none"; the mean is not divided by the weights.

    Shape: times [batch, classes, *] float, labels [batch, *] whole numbers; or target times of the
    shape of the times, `inf` for silence -> scalar, or the shape of the times.

    Raises:
        ValueError, TypeError: arguments out of range; targets that do not fit, NaN or negative times.

    >>> import torch
    >>> loss = TargetTimeLoss(t_max=100, on_target=10, off_target=100, reduction="none")
    >>> loss(torch.tensor([[20.0, torch.inf]]), torch.tensor([0]))
    tensor([[0.0100, 0.0000]])
    """

    weight: Tensor | None

    def __init__(
        self,
        t_max: float,
        on_target: float = 0.0,
        off_target: float | None = None,
        *,
        tolerance: float = 0.0,
        silent: str = "t_max",
        weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _checks.positive("t_max", t_max)
        off_target = t_max if off_target is None else off_target
        for name, value in (("on_target", on_target), ("off_target", off_target)):
            if not 0 <= value <= t_max:
                raise ValueError(f"{name} must lie in 0 ... t_max = {t_max}, got {value!r}")
        _checks.not_negative("tolerance", tolerance)
        _checks.one_of("silent", silent, SILENT)
        _checks.one_of("reduction", reduction, REDUCTIONS)
        self.t_max, self.on_target, self.off_target = t_max, on_target, off_target
        self.tolerance, self.silent, self.reduction = tolerance, silent, reduction
        self.register_buffer("weight", weight)

    def extra_repr(self) -> str:
        return (
            f"t_max={self.t_max}, on_target={self.on_target}, off_target={self.off_target}, "
            f"tolerance={self.tolerance}, silent={self.silent!r}, reduction={self.reduction!r}"
        )

    def forward(self, times: Tensor, targets: Tensor) -> Tensor:
        _checks.floating("times", times)
        _checks.spike_times("times", times)
        wanted = self._target_times(times, targets).clamp(max=self.t_max)
        error = fill_silent(times, self.t_max) - wanted
        error = error.masked_fill(error.abs() <= self.tolerance, 0) / self.t_max
        if self.silent == "ignore":
            error = error.masked_fill(times >= self.t_max, 0)
        return _reduce(self._weighted(error.square(), targets), self.reduction)

    def _weighted(self, errors: Tensor, labels: Tensor) -> Tensor:
        if self.weight is None:
            return errors
        if labels.is_floating_point():
            raise ValueError("weight must be None for target times, which name no class")
        _check_one_per_class(self.weight, errors)
        return errors * self.weight.to(errors.dtype)[labels.long()].unsqueeze(1)

    def _target_times(self, times: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            if targets.shape != times.shape:
                raise ValueError(f"targets must have shape {list(times.shape)}, got {list(targets.shape)}")
            _checks.spike_times("targets", targets)
            return targets
        if targets.shape == times.shape:
            raise TypeError(
                f"targets must be floating where they are times {list(times.shape)}, got {targets.dtype}"
            )
        _checks.labels_of_any_shape(targets, times)
        wanted = torch.full_like(times, self.off_target)
        return wanted.scatter(1, targets.long().unsqueeze(1), self.on_target)


def _check_one_per_class(weight: Tensor, times: Tensor) -> None:
    if weight.shape != times.shape[1:2]:
        classes, shape = times.shape[1], list(weight.shape)
        raise ValueError(f"weight must have shape [{classes}], one factor a class, got {shape}")


def _check_exponent(t_max: float, scale: float) -> None:
    if t_max > 80 * scale:
        raise ValueError(
            f"t_max must be at most 80 time constants of {scale}, "
            f"beyond which e^(t / {scale}) overflows, got {t_max!r}"
        )


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
