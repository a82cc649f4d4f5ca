"""Reference forward pass of neurons whose V jumps with an input: whole bins, a leak, a current."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def first_spike(
    times: Tensor, weight: Tensor, bias: Tensor | None, neuron: Any, t_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Kheradpisheh & Masquelier 2020, event by event: sort, accumulate, look once per distinct time."""
    threshold, beta, delay = neuron.threshold, neuron.beta, neuron.delay
    t, order = times.sort(dim=1, stable=True)
    v = weight.t()[order].masked_fill((t >= t_max).unsqueeze(-1), 0)
    # An event without weight at time 0 lets the window begin before the first input spike.
    t = torch.cat([t.new_zeros(len(t), 1), t], dim=1).clamp(max=t_max if beta == 1 else t_max - 1)
    v = _accumulate(torch.cat([v.new_zeros(len(v), 1, v.shape[2]), v], dim=1), t, beta)
    t = t.unsqueeze(-1)
    t_next = torch.cat([t[:, 1:], t.new_full((len(t), 1, 1), t_max)], dim=1)

    # V is monotone between two events: a crossing lies at the first of these bins or not after the last.
    at_start = _potential(v, bias, beta, t, t)
    last = (t_next.clamp(max=t_max - delay) - 1).maximum(t)
    crosses = at_start > threshold
    crossing = t.expand_as(v)
    if bias is not None:
        crosses_later = ~crosses & (_potential(v, bias, beta, t, last) > threshold)
        first_bin = _first_bin_above(v, bias, beta, threshold, t, last, crosses_later)
        crossing = torch.where(crosses_later, first_bin, crossing)
        crosses = crosses | crosses_later
    # Of several events in one bin only the last has seen all of its spikes.
    crosses = crosses & (t < t_next) & (crossing + delay < t_max)
    fired, first = torch.where(crosses, crossing, math.inf).min(dim=1)

    at_end = _potential(v[:, -1], bias, beta, t[:, -1], torch.full_like(t[:, -1], t_max - 1))
    at_crossing = _potential(v, bias, beta, t, crossing).gather(1, first.unsqueeze(1)).squeeze(1)
    return fired, torch.where(fired.isinf(), at_end, at_crossing), fired.new_empty(0)


def _accumulate(weights: Tensor, t: Tensor, beta: float) -> Tensor:
    """What the input spikes contribute to V right after each event: [samples, events, outputs]."""
    if beta == 1:
        return weights.cumsum(dim=1)
    age = t.unsqueeze(2) - t.unsqueeze(1)
    return (beta ** age.clamp(min=0)).tril() @ weights


def _potential(v: Tensor, bias: Tensor | None, beta: float, t_event: Tensor, t: Tensor) -> Tensor:
    """V after bin t, no input having come since t_event, when it contributed v."""
    if beta != 1:
        v = v * beta ** (t - t_event).clamp(min=0)
    return v if bias is None else v + bias * _bins_of_current(beta, t)


def _bins_of_current(beta: float, t: Tensor) -> Tensor:
    """What a unit current from bin 0 to bin t leaves in V: the sum of beta^k over k = 0 ... t."""
    if beta == 1:
        return t + 1
    log_beta = math.log(beta) if beta > 0 else -math.inf
    return (-torch.expm1((t.double() + 1) * log_beta) / (1 - beta)).to(t.dtype)


def _first_bin_above(
    v: Tensor, bias: Tensor, beta: float, threshold: float, start: Tensor, last: Tensor, where: Tensor
) -> Tensor:
    """First bin with V > threshold, where V is below in `start` and above in `last`.

    Without a leak V is the line v + bias (t + 1); with one it approaches rest = bias / (1 - beta)
    as rest - (rest - V(start)) beta^(t - start).
    """
    if beta == 1:
        guess = ((threshold - v) / bias).floor()
    else:
        rest = bias / (1 - beta)
        gap = (rest - threshold) / (rest - _potential(v, bias, beta, start, start))
        guess = start + (gap.log() / (math.log(beta) if beta > 0 else -math.inf)).floor() + 1
    t = torch.where(where, guess, start).maximum(start).minimum(last)
    # The closed form rounds: settle on a bin in which V itself exceeds the threshold, first down, then up.
    while bool((early := where & (t > start) & (_potential(v, bias, beta, start, t - 1) > threshold)).any()):
        t = t - early.to(t.dtype)
    while bool((late := where & (t < last) & ~(_potential(v, bias, beta, start, t) > threshold)).any()):
        t = t + late.to(t.dtype)
    return t
