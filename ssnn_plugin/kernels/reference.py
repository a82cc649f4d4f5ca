"""Reference kernels in plain PyTorch: readable, any device, and the yardstick of the fast ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

from .operators import output_size
from .status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples

# Elements of the [samples, events, outputs] table that one chunk of the batch may use.
CHUNK = 1 << 24


def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
    beta: float,
    delay: float,
    t_max: float,
) -> tuple[Tensor, Tensor]:
    """Spike times and potentials of IF neurons; see `ssnn_plugin.kernels.operators`."""
    fired = times.new_empty(times.shape[0], weight.shape[0])
    potential = torch.empty_like(fired)
    chunk = max(1, CHUNK // max(1, weight.numel(), 0 if beta == 1 else times.shape[1] ** 2))
    for start in range(0, times.shape[0], chunk):
        rows = slice(start, start + chunk)
        fired[rows], potential[rows] = _first_spike(times[rows], weight, bias, threshold, beta, delay, t_max)
    bad_times, nan_potential = ~(times >= 0).all(), potential.isnan().any()
    refuse_bad_samples(BAD_TIMES if bad_times else NAN_POTENTIAL if nan_potential else 0)
    return fired + delay, potential


def _first_spike(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
    beta: float,
    delay: float,
    t_max: float,
) -> tuple[Tensor, Tensor]:
    """Kheradpisheh & Masquelier 2020, event by event: sort, accumulate, look once per distinct time."""
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
    return fired, torch.where(fired.isinf(), at_end, at_crossing)


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


def first_spike_conv2d(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    dilation: list[int],
    groups: int,
    threshold: float,
    beta: float,
    delay: float,
    t_max: float,
) -> tuple[Tensor, Tensor]:
    """A convolution is a linear layer on every patch; see `ssnn_plugin.kernels.operators`."""
    refuse_bad_samples(0 if bool((times >= 0).all()) else BAD_TIMES)  # also where no kernel looks
    patches = patches_by_group(times, weight.shape[2:], stride, dilation, groups)
    biases = [None] * groups if bias is None else bias.chunk(groups)
    neuron = threshold, beta, delay, t_max
    parts = [
        first_spike_linear(patch, w.flatten(1), b, *neuron)
        for patch, w, b in zip(patches, weight.chunk(groups), biases, strict=True)
    ]
    spikes, potential = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    locations = math.prod(output_size(times.shape[2:], weight.shape[2:], stride, dilation))
    shape = len(times), locations, weight.shape[0]
    return spikes.reshape(shape), potential.reshape(shape)


def causal_conv2d_weight_grad(
    grad: Tensor,
    spikes: Tensor,
    times: Tensor,
    kernel_size: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    delay: float,
    t_max: float,
    silent: bool,
) -> Tensor:
    """`causal_weight_grad`, summed over the patches: [out, in / groups, *kernel_size]."""
    patches = patches_by_group(times, kernel_size, stride, dilation, groups)
    rest = delay, t_max, silent
    parts = [
        causal_weight_grad(g, s, patch, *rest)
        for g, s, patch in zip(by_group(grad, groups), by_group(spikes, groups), patches, strict=True)
    ]
    return torch.cat(parts).reshape(grad.shape[2], times.shape[1] // groups, *kernel_size)


def causal_conv2d_input_grad(
    grad: Tensor,
    spikes: Tensor,
    times: Tensor,
    weight: Tensor,
    stride: list[int],
    dilation: list[int],
    groups: int,
    delay: float,
    t_max: float,
    silent: bool,
) -> Tensor:
    """`causal_input_grad`, each patch put back to where it came from: [batch, in, height, width]."""
    kernel_size = weight.shape[2:]
    patches = patches_by_group(times, kernel_size, stride, dilation, groups)
    errors, outputs = by_group(grad, groups), by_group(spikes, groups)
    rest = delay, t_max, silent
    parts = []
    for g, s, patch, w in zip(errors, outputs, patches, weight.chunk(groups), strict=True):
        of_patches = causal_input_grad(g, s, patch, w.flatten(1), *rest)
        columns = of_patches.reshape(*grad.shape[:2], patch.shape[1]).transpose(1, 2)
        parts.append(
            fold(columns, times.shape[2:], tuple(kernel_size), tuple(dilation), stride=tuple(stride))
        )
    return torch.cat(parts, dim=1).contiguous()


def patches_by_group(
    times: Tensor, kernel_size: torch.Size | list[int], stride: list[int], dilation: list[int], groups: int
) -> list[Tensor]:
    """What each output location sees, by group: [batch * locations, in / groups * kernel]."""
    return [
        unfold(part, tuple(kernel_size), tuple(dilation), stride=tuple(stride)).transpose(1, 2).flatten(0, 1)
        for part in times.chunk(groups, dim=1)
    ]


def by_group(outputs: Tensor, groups: int) -> tuple[Tensor, ...]:
    """[batch, locations, out] -> [batch * locations, out / groups] of each group."""
    return outputs.flatten(0, 1).chunk(groups, dim=1)
