"""Reference kernels in plain PyTorch: readable, any device, and the yardstick of the fast ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples

# Elements of the [samples, events, outputs] table that one chunk of the batch may use.
CHUNK = 1 << 24


def first_spike_if(
    times: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, delay: float, t_max: float
) -> tuple[Tensor, Tensor]:
    """Spike times and potentials of IF neurons; see `ssnn_plugin.kernels.operators`."""
    fired = times.new_empty(times.shape[0], weight.shape[0])
    potential = torch.empty_like(fired)
    chunk = max(1, CHUNK // max(1, weight.numel()))
    for start in range(0, times.shape[0], chunk):
        rows = slice(start, start + chunk)
        fired[rows], potential[rows] = _first_spike_if(times[rows], weight, bias, threshold, delay, t_max)
    bad_times, nan_potential = ~(times >= 0).all(), potential.isnan().any()
    refuse_bad_samples(BAD_TIMES if bad_times else NAN_POTENTIAL if nan_potential else 0)
    return fired + delay, potential


def _first_spike_if(
    times: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, delay: float, t_max: float
) -> tuple[Tensor, Tensor]:
    """Kheradpisheh & Masquelier 2020, event by event: sort, accumulate, look once per distinct time."""
    t, order = times.sort(dim=1, stable=True)
    v = weight.t()[order].masked_fill((t >= t_max).unsqueeze(-1), 0).cumsum(dim=1)
    # An event without weight at time 0 lets the window begin before the first input spike.
    t = torch.cat([t.new_zeros(len(t), 1), t], dim=1).unsqueeze(-1)
    v = torch.cat([v.new_zeros(len(v), 1, v.shape[2]), v], dim=1)
    t_next = torch.cat([t[:, 1:], t.new_full((len(t), 1, 1), math.inf)], dim=1)

    crossing = t if bias is None else _first_bin_above(v, bias, threshold, t)
    level = v if bias is None else v + bias * (crossing + 1)
    valid = (level > threshold) & (crossing < t_next) & (crossing + delay < t_max)
    fired, first = torch.where(valid, crossing, math.inf).min(dim=1)
    at_end = v[:, -1] if bias is None else v[:, -1] + bias * t_max
    at_crossing = level.gather(1, first.unsqueeze(1)).squeeze(1)
    return fired, torch.where(fired.isinf(), at_end, at_crossing)


def _first_bin_above(v: Tensor, bias: Tensor, threshold: float, start: Tensor) -> Tensor:
    """First bin t >= start with v + bias (t + 1) > threshold, supposing bias > 0 or no wait."""
    wait = torch.where(bias > 0, (threshold - v) / bias, 0.0).floor()
    # Division rounds: settle on the first bin for which the sum itself exceeds the threshold.
    wait = torch.where(v + bias * wait > threshold, wait - 1, wait)
    wait = torch.where(v + bias * (wait + 1) > threshold, wait, wait + 1)
    return torch.where(bias > 0, wait.maximum(start), start)


def causal_weight_grad(
    grad: Tensor, spikes: Tensor, times: Tensor, delay: float, t_max: float, silent: bool
) -> Tensor:
    """dL/dw[j, i] = -sum_b grad[b, j] [input i was counted when output j fired]: [out, in]."""
    error = _errors(grad, spikes, silent)
    grad_weight = grad.new_zeros(grad.shape[1], times.shape[1])
    chunk = max(1, CHUNK // max(1, grad_weight.numel()))
    for start in range(0, len(times), chunk):
        rows = slice(start, start + chunk)
        causal = _causal(spikes[rows], times[rows], delay, t_max).to(error.dtype)
        grad_weight -= torch.einsum("bj,bji->ji", error[rows], causal)
    return grad_weight


def causal_input_grad(
    grad: Tensor, spikes: Tensor, times: Tensor, weight: Tensor, delay: float, t_max: float, silent: bool
) -> Tensor:
    """dL/dt[b, i] = sum_j grad[b, j] w[j, i] [input i was counted when output j fired]: [batch, in]."""
    error = _errors(grad, spikes, silent)
    grad_times = torch.zeros_like(times, memory_format=torch.contiguous_format)
    chunk = max(1, CHUNK // max(1, weight.numel()))
    for start in range(0, len(times), chunk):
        rows = slice(start, start + chunk)
        causal = _causal(spikes[rows], times[rows], delay, t_max).to(error.dtype)
        grad_times[rows] = torch.einsum("bj,ji,bji->bi", error[rows], weight, causal)
    return grad_times


def _errors(grad: Tensor, spikes: Tensor, silent: bool) -> Tensor:
    return grad if silent else grad.masked_fill(spikes.isinf(), 0)


def _causal(spikes: Tensor, times: Tensor, delay: float, t_max: float) -> Tensor:
    """[batch, out, in]: was input spike i counted when output j fired?"""
    return ((times + delay).unsqueeze(1) <= spikes.unsqueeze(2)) & (times < t_max).unsqueeze(1)
