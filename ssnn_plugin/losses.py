"""Losses on first-spike times."""

from __future__ import annotations

from torch import Tensor, nn

from . import _checks
from .functional import fill_silent, relative_targets

REDUCTIONS = ("mean", "sum", "none")


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
        targets = relative_targets(times, labels, self.gamma, self.t_max)
        error = (targets - fill_silent(times, self.t_max)) / self.t_max
        loss = 0.5 * error.square().sum(dim=1)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()
