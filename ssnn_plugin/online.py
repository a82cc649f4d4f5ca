"""Online learning, one sample at a time, as one compiled loop (CPU)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import _checks
from .kernels.geometry import whole_lanes


@dataclass(frozen=True)
class OnlineStatistics:
    """What happened during a pass over the samples.

    `spikes` holds, per layer, how often each neuron fired; `accuracy` is the fraction of samples
    whose label was among the earliest output spikes when they were seen (lenient rule). `loss` is NaN if
    the weights are finite no more.
    """

    spikes: tuple[Tensor, ...]
    accuracy: float
    loss: float


def s4nn_train(
    weights: Sequence[Tensor],
    times: Tensor,
    labels: Tensor,
    *,
    thresholds: Sequence[float],
    learning_rates: Sequence[float],
    weight_decay: float,
    gamma: float,
    t_max: float,
    order: Tensor | None = None,
    dropout: Sequence[float] | None = None,
    seed: int = 0,
) -> OnlineStatistics:
    """One pass of S4NN's learning rule over `times`, one sample at a time; updates `weights` in place.

    Per sample: forward with one bin of delay per layer, relative targets, errors normalised to
    unit L2 norm in each layer, w <- w - rate error over the causal inputs, then w <- (1 - rate
    decay) w; the hidden error uses the output weights after their update. A silent output learns
    with all its inputs causal, a silent hidden neuron has no error.

    Args:
        weights: [out, in] of each layer, first layer first; float32 or float64, on the CPU.
        times: [samples, in] spike times of the inputs, `inf` = silent.
        labels: [samples] class numbers.
        thresholds, learning_rates: one number per layer.
        weight_decay: fraction of the rate by which weights shrink after every sample.
        gamma: wanted gap between the label and the others, in bins.
        t_max: length of the window.
        order: samples in the order in which they are learned; None is 0, 1, 2, ...
        dropout: per layer, the probability that a spike is left out of a training step. None is
            no dropout; the last layer has none.
        seed: of the dropout, a whole number in 0 ... 2**32 - 1.

    Raises:
        ValueError, TypeError: shapes, dtypes or values that do not fit.

    Source: Kheradpisheh & Masquelier 2020; dropout is ours.

    >>> import torch
    >>> weight = torch.tensor([[60.0, 50.0], [60.0, 50.0]]).double()
    >>> done = s4nn_train([weight], torch.tensor([[3.0, 7.0]]), torch.tensor([0]), thresholds=[100.0],
    ...                   learning_rates=[1.0], weight_decay=0.0, gamma=3, t_max=256)
    >>> weight.tolist()  # the label ties: the other output is pushed back by a step of norm 1
    [[60.0, 50.0], [59.0, 49.0]]
    """
    depth = len(weights)
    drop = [0.0] * depth if dropout is None else list(dropout)
    _check(weights, times, labels, gamma, t_max, thresholds, learning_rates, drop)
    _check_weight_decay(weight_decay, learning_rates)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number in 0 ... 2**32 - 1, got {seed!r}")
    sequence = _sequence(order, len(times))
    from .kernels.cpu.lanes import TILES, width_of
    from .kernels.cpu.online import s4nn_epoch

    tile = TILES[-1]
    width = width_of(tile, weights[0].dtype.itemsize)
    rows = [whole_lanes(weight.detach().t(), width) for weight in weights]
    learned = torch.cat([row.flatten() for row in rows])
    spikes, right, loss = s4nn_epoch(
        learned.numpy(),
        np.array([row.shape for row in rows]),
        np.array([len(weight) for weight in weights]),
        times.to(weights[0].dtype).contiguous().numpy(),
        labels.long().numpy(),
        sequence,
        np.asarray(thresholds, dtype=np.float64),
        np.asarray(learning_rates, dtype=np.float64),
        float(weight_decay),
        float(gamma),
        float(t_max),
        np.asarray(drop, dtype=np.float64),
        int(seed),
        tile,
    )
    parts = torch.split(learned, [row.numel() for row in rows])
    for weight, row, part in zip(weights, rows, parts, strict=True):
        weight.detach().copy_(part.reshape(row.shape)[:, : len(weight)].t())
    samples = max(1, len(sequence))
    counts = tuple(torch.from_numpy(spikes[k, : len(w)].copy()) for k, w in enumerate(weights))
    diverged = not bool(learned.isfinite().all())
    return OnlineStatistics(counts, right / samples, math.nan if diverged else loss / samples)


def _check(
    weights: Sequence[Tensor],
    times: Tensor,
    labels: Tensor,
    gamma: float,
    t_max: float,
    thresholds: Sequence[float],
    learning_rates: Sequence[float],
    dropout: Sequence[float],
) -> None:
    _checks.positive("t_max", t_max)
    _checks.gap("gamma", gamma, t_max)
    if not weights:
        raise ValueError("weights must hold at least one layer, got none")
    if len({id(weight) for weight in weights}) < len(weights):
        raise ValueError("weights must be a tensor of its own for each layer, got one of them twice")
    _checks.distinct_bins(t_max, weights[0].dtype)
    _checks.floating("times", times)
    _checks.spike_times("times", times)
    features = times.shape[1] if times.ndim == 2 else -1
    for number, weight in enumerate(weights):
        _checks.floating(f"weights[{number}]", weight)
        if not bool(weight.isfinite().all()):
            raise ValueError(f"weights[{number}] must be finite, got NaN or infinity")
        if weight.device.type != "cpu" or weight.dtype != weights[0].dtype:
            raise ValueError(
                f"weights[{number}] must be on the CPU and of dtype {weights[0].dtype}, "
                f"got {weight.device} and {weight.dtype}"
            )
        if weight.ndim != 2 or weight.shape[1] != features:
            raise ValueError(f"weights[{number}] must have shape [out, {features}], got {list(weight.shape)}")
        features = weight.shape[0]
    _checks.class_labels(labels, times.new_empty(len(times), features))
    for name, values in (
        ("thresholds", thresholds),
        ("learning_rates", learning_rates),
        ("dropout", dropout),
    ):
        if len(values) != len(weights):
            raise ValueError(f"{name} must hold {len(weights)} numbers, got {len(values)}")
        for value in values:
            _checks.not_negative(name, value)
    if any(value >= 1 for value in dropout) or dropout[-1] != 0:
        raise ValueError(f"dropout must be below 1, and 0 in the last layer, got {list(dropout)}")


def _check_weight_decay(weight_decay: float, learning_rates: Sequence[float]) -> None:
    _checks.not_negative("weight_decay", weight_decay)
    if max(learning_rates) * weight_decay >= 1:
        raise ValueError(
            f"weight_decay times the learning rate must be below 1, got {weight_decay!r} and {learning_rates}"
        )


def _sequence(order: Tensor | None, samples: int) -> np.ndarray:
    """Sample numbers in learning order; compiled code would read beyond the array without complaint."""
    if order is None:
        return np.arange(samples)
    if order.ndim != 1 or order.is_floating_point() or order.dtype == torch.bool:
        raise ValueError(f"order must be a vector of sample numbers, got {order.dtype} {list(order.shape)}")
    if order.numel() and not 0 <= int(order.min()) <= int(order.max()) < samples:
        raise ValueError(
            f"order must hold numbers in 0 ... {samples - 1}, got {int(order.min())} ... {int(order.max())}"
        )
    return order.cpu().long().numpy()


def redraw_dead(
    weight: Tensor, spikes: Tensor, least: float, low: float, high: float, generator: torch.Generator
) -> int:
    """Draw the weights of neurons that fired too rarely anew, in place; return how many those were.

    Args:
        weight: [out, in].
        spikes: [out], how often each neuron fired, e.g. `OnlineStatistics.spikes[0]`.
        least: neurons with fewer spikes than this are dead.
        low, high: the new weights are uniform between them.
        generator: source of the random numbers.

    Raises:
        ValueError: spikes that do not fit the weights.

    Source: Kheradpisheh & Masquelier 2020 (there, less than 0.001 of the samples of an epoch).

    >>> import torch
    >>> weight = torch.full((2, 3), 9.0)
    >>> redraw_dead(weight, torch.tensor([5, 0]), 1, 0.0, 1.0, torch.Generator().manual_seed(0))
    1
    >>> bool((weight[0] == 9).all()), bool((weight[1] < 1).all())
    (True, True)
    """
    if spikes.shape != weight.shape[:1]:
        raise ValueError(f"spikes must have shape [{len(weight)}], got {list(spikes.shape)}")
    dead = spikes < least
    count = int(dead.sum())
    fresh = torch.empty(count, weight.shape[1], dtype=weight.dtype)
    weight.detach()[dead] = fresh.uniform_(low, high, generator=generator).to(weight.device)
    return count
