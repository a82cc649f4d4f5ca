"""Target firing times."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks


def relative_targets(times: Tensor, labels: Tensor, gamma: float, t_max: float) -> Tensor:
    """S4NN's targets, relative to the earliest output spike of each sample.

    The label should fire at the earliest time tau of the sample, every other neuron that fires
    less than `gamma` after tau should fire at min(tau + gamma, t_max), and the rest has no
    error. If all outputs are silent the label should fire at t_max - gamma.

    Args:
        times: output spike times [batch, classes, *]; `inf` = silent.
        labels: class numbers [batch, *].
        gamma: wanted gap in bins, greater than 0 and at most `t_max`.
        t_max: length of the window, the finite stand-in for silence.

    Returns:
        Finite target times of the shape of the times, without gradient.

    Raises:
        ValueError: shapes that do not fit, labels out of range, NaN or negative times.

    Source: Kheradpisheh & Masquelier 2020, relative target firing time.

    >>> import torch
    >>> relative_targets(torch.tensor([[10.0, 12.0, 13.0, 40.0]]), torch.tensor([1]), 3, 256)
    tensor([[13., 10., 13., 40.]])
    """
    _checks.positive("t_max", t_max)
    _checks.gap("gamma", gamma, t_max)
    _checks.floating("times", times)
    _checks.labels_of_any_shape(labels, times)
    _checks.spike_times("times", times)
    filled = times.detach().clamp(max=t_max)
    if times.shape[1] == 0 or times.shape[0] == 0:
        return filled
    earliest = filled.min(dim=1, keepdim=True).values
    others = torch.where(filled - earliest < gamma, (earliest + gamma).clamp(max=t_max), filled)
    of_label = torch.where(earliest < t_max, earliest, t_max - gamma)
    return others.scatter(1, labels.long().unsqueeze(1), of_label)
