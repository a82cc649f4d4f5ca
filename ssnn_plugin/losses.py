"""Losses on first-spike times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from .functional import relative_targets

REDUCTIONS = ("mean", "sum", "none")


class _HalfSquaredDistance(torch.autograd.Function):
    """1/2 sum_j ((T_j - t_j) / t_max)^2 per sample; a silent neuron's error is that of t_max."""

    @staticmethod
    def forward(times: Tensor, targets: Tensor, t_max: float) -> tuple[Tensor, Tensor]:
        error = (targets - times.clamp(max=t_max)) / t_max
        return 0.5 * error.square().sum(dim=1), error

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.t_max = inputs[2]
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (error,) = ctx.saved_tensors
        return error * (grads[0] / -ctx.t_max).unsqueeze(1), None, None


class RelativeTargetLoss(nn.Module):
    """S4NN's loss: half the squared distance to the relative targets, in windows.

    L = 1/2 sum_j ((T_j - t_j) / t_max)^2 per sample, with the targets T of
    `functional.relative_targets` and `t_max` in place of silence.

    Args:
        gamma: wanted gap in bins between the label and the others.
        t_max: length of the window.
        reduction: "mean" over the batch, "sum", or "none" for one value per sample.

    Shape: times [batch, classes] float, labels [batch] whole numbers -> scalar, or [batch].

    Raises:
        ValueError, TypeError: as `functional.relative_targets`.

    Source: Kheradpisheh & Masquelier 2020.

    >>> import torch
    >>> loss = RelativeTargetLoss(gamma=3, t_max=256)
    >>> loss(torch.tensor([[10.0, 12.0, 13.0, 40.0]]), torch.tensor([1])) * 256**2
    tensor(6.5000)
    """

    def __init__(self, gamma: float, t_max: float, reduction: str = "mean") -> None:
        super().__init__()
        _checks.positive("t_max", t_max)
        _checks.gap("gamma", gamma, t_max)
        _checks.one_of("reduction", reduction, REDUCTIONS)
        self.gamma, self.t_max, self.reduction = gamma, t_max, reduction

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, t_max={self.t_max}, reduction={self.reduction!r}"

    def forward(self, times: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor
        targets = relative_targets(times, labels, self.gamma, self.t_max)
        loss, _ = _HalfSquaredDistance.apply(times, targets, float(self.t_max))
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()
