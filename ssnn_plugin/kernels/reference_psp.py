"""Reference kernels of the neurons with a synaptic current: the papers' closed forms, in double precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import fold

from .operators import output_size
from .psp import ALPHA, EXPONENTIAL, RAMP, input_factors, output_factors, output_slopes
from .reference import CHUNK, by_group, patches_by_group
from .status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples


def first_spike_linear(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    psp: int,
    tau: float,
    threshold: float,
    t_max: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spike times, potentials and slopes at the crossing; see `ssnn_plugin.kernels.operators`."""
    outputs = [times.new_empty(times.shape[0], weight.shape[0]) for _ in range(3)]
    chunk = max(1, CHUNK // max(1, weight.numel()))
    for start in range(0, times.shape[0], chunk):
        rows = slice(start, start + chunk)
        for output, part in zip(
            outputs, _first_spike(times[rows], weight, bias, psp, tau, threshold, t_max), strict=True
        ):
            output[rows] = part
    bad_times, nan_potential = ~(times >= 0).all(), outputs[1].isnan().any()
    refuse_bad_samples(BAD_TIMES if bad_times else NAN_POTENTIAL if nan_potential else 0)
    return outputs[0], outputs[1], outputs[2]


def _first_spike(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    psp: int,
    tau: float,
    threshold: float,
    t_max: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every prefix of the sorted inputs is tried as causal set; the earliest valid crossing counts."""
    t, order = times.double().sort(dim=1, stable=True)
    t = t.masked_fill(t >= t_max, math.inf)
    # No spike reads the weight of a silent input, whatever it holds.
    w = weight.double().t()[order].masked_fill(t.isinf().unsqueeze(-1), 0)
    # The bias is the weight of a spike at time 0, before all others.
    first = weight.new_zeros(len(weight)) if bias is None else bias
    t = torch.cat([t.new_zeros(len(t), 1), t], dim=1).unsqueeze(-1)
    w = torch.cat([first.double().expand(len(t), 1, -1), w], dim=1)
    a, b = ((w * factor).cumsum(dim=1) for factor in input_factors(psp, tau, t.clamp(max=t_max)))
    t_next = torch.cat([t[:, 1:], t.new_full((len(t), 1, 1), math.inf)], dim=1).clamp(max=t_max)

    crossing = _crossing(psp, tau, threshold, a, b)
    # A crossing at the very time of an input may round to just before it.
    rounding = 1e-12 * (1 + t)
    valid = (crossing >= t - rounding) & (crossing < t_next)
    fired, chosen = torch.where(valid, crossing.maximum(t), math.inf).min(dim=1)
    fired = torch.where(fired.to(times.dtype) < t_max, fired, math.inf)
    at = chosen.unsqueeze(1)
    a_causal, b_causal = a.gather(1, at).squeeze(1), b.gather(1, at).squeeze(1)
    dp, dq = output_slopes(psp, tau, fired.clamp(max=t_max))
    slope = torch.where(fired.isfinite(), dp * a_causal - dq * b_causal, 0)
    p, q = output_factors(psp, tau, torch.full_like(fired, t_max))
    potential = torch.where(fired.isfinite(), threshold, p * a[:, -1] - q * b[:, -1])
    nan = fired.isinf() & (a + b).isnan().any(dim=1)
    potential = potential.masked_fill(nan, math.nan)
    return fired.to(times.dtype), potential.to(times.dtype), slope.to(times.dtype)


def _crossing(psp: int, tau: float, threshold: float, a: Tensor, b: Tensor) -> Tensor:
    """Where p A - q B rises through the threshold; `inf` or NaN where it does not."""
    if psp == RAMP:
        return torch.where(a > 0, (threshold + b) / a, math.inf)
    if psp == EXPONENTIAL:  # Mostafa 2018: z = e^{t / tau}
        return torch.where((a > threshold) & (b > 0), tau * (b / (a - threshold)).log(), math.inf)
    if psp == ALPHA:  # Comsa et al. 2020; Göltz et al. 2021, eq. for tau_mem = tau_syn
        ratio = b / a
        w = lambert_w0(-threshold / a * ratio.exp())
        return torch.where(a > 0, tau * (ratio - w), math.inf)
    # Göltz et al. 2021, eq. for tau_mem = 2 tau_syn: a quadratic in x = e^{-t / tau_mem}
    root = (a.square() - 4 * b * threshold).sqrt()
    x = (a + root) / (2 * b)
    return torch.where((b > 0) & (x > 0), -2 * tau * x.log(), math.inf)


def lambert_w0(x: Tensor) -> Tensor:
    """Principal branch of Lambert's W for -1/e <= x <= 0, by Halley's method; NaN below -1/e."""
    p = (2 * (math.e * x + 1)).sqrt()  # the series around the branch point starts the iteration
    w = -1 + p * (1 + p * (-1 / 3 + p * 11 / 72))
    for _ in range(12):
        e = w.exp()
        residual = w * e - x
        step = residual / (e * (w + 1) - (w + 2) * residual / (2 * w + 2))
        w = w - torch.where(residual == 0, 0, step)
    return torch.where(p == 0, -1, w)


def causal_weight_grad(p: Tensor, q: Tensor, until: Tensor, a: Tensor, b: Tensor, times: Tensor) -> Tensor:
    """-sum_n (p[n, j] a[n, i] - q[n, j] b[n, i]) [input i spiked before until[n, j]]: [out, in]."""
    grad_weight = p.new_zeros(p.shape[1], a.shape[1])
    chunk = max(1, CHUNK // max(1, grad_weight.numel()))
    for start in range(0, len(times), chunk):
        rows = slice(start, start + chunk)
        causal = _causal(until[rows], times[rows]).to(p.dtype)
        grad_weight += torch.einsum("bj,bi,bji->ji", q[rows], b[rows], causal)
        grad_weight -= torch.einsum("bj,bi,bji->ji", p[rows], a[rows], causal)
    return grad_weight


def causal_input_grad(
    p: Tensor, q: Tensor, until: Tensor, a: Tensor, b: Tensor, times: Tensor, weight: Tensor
) -> Tensor:
    """sum_j w[j, i] (p[n, j] a[n, i] - q[n, j] b[n, i]) [input i spiked before until[n, j]]: [batch, in]."""
    grad_times = torch.zeros_like(times, memory_format=torch.contiguous_format)
    chunk = max(1, CHUNK // max(1, weight.numel()))
    for start in range(0, len(times), chunk):
        rows = slice(start, start + chunk)
        causal = _causal(until[rows], times[rows]).to(p.dtype)
        of_a = torch.einsum("bj,ji,bji->bi", p[rows], weight, causal)
        of_b = torch.einsum("bj,ji,bji->bi", q[rows], weight, causal)
        grad_times[rows] = a[rows] * of_a - b[rows] * of_b
    return grad_times


def _causal(until: Tensor, times: Tensor) -> Tensor:
    return times.unsqueeze(1) < until.unsqueeze(2)


def first_spike_conv2d(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    dilation: list[int],
    groups: int,
    psp: int,
    tau: float,
    threshold: float,
    t_max: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution is a linear layer on every patch; see `ssnn_plugin.kernels.operators`."""
    refuse_bad_samples(0 if bool((times >= 0).all()) else BAD_TIMES)  # also where no kernel looks
    patches = patches_by_group(times, weight.shape[2:], stride, dilation, groups)
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = [
        first_spike_linear(patch, w.flatten(1), b, psp, tau, threshold, t_max)
        for patch, w, b in zip(patches, weight.chunk(groups), biases, strict=True)
    ]
    locations = math.prod(output_size(times.shape[2:], weight.shape[2:], stride, dilation))
    shape = len(times), locations, weight.shape[0]
    spikes, potential, slope = (torch.cat(part, dim=1).reshape(shape) for part in zip(*parts, strict=True))
    return spikes, potential, slope


def causal_conv2d_weight_grad(
    p: Tensor,
    q: Tensor,
    until: Tensor,
    a: Tensor,
    b: Tensor,
    times: Tensor,
    kernel_size: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """`causal_weight_grad`, summed over the patches: [out, in / groups, *kernel_size]."""
    of_groups = _by_group(p, q, until, a, b, times, kernel_size, stride, dilation, groups)
    parts = [causal_weight_grad(*outputs, *inputs) for outputs, inputs in of_groups]
    return torch.cat(parts).reshape(p.shape[2], times.shape[1] // groups, *kernel_size)


def causal_conv2d_input_grad(
    p: Tensor,
    q: Tensor,
    until: Tensor,
    a: Tensor,
    b: Tensor,
    times: Tensor,
    weight: Tensor,
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """`causal_input_grad`, each patch put back to where it came from: [batch, in, height, width]."""
    kernel_size = weight.shape[2:]
    of_groups = _by_group(p, q, until, a, b, times, kernel_size, stride, dilation, groups)
    parts = []
    for (outputs, inputs), w in zip(of_groups, weight.chunk(groups), strict=True):
        of_patches = causal_input_grad(*outputs, *inputs, w.flatten(1))
        columns = of_patches.reshape(*p.shape[:2], of_patches.shape[1]).transpose(1, 2)
        parts.append(
            fold(columns, times.shape[2:], tuple(kernel_size), tuple(dilation), stride=tuple(stride))
        )
    return torch.cat(parts, dim=1).contiguous()


Three: TypeAlias = tuple[Tensor, Tensor, Tensor]


def _by_group(
    p: Tensor,
    q: Tensor,
    until: Tensor,
    a: Tensor,
    b: Tensor,
    times: Tensor,
    kernel_size: torch.Size | list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Iterator[tuple[Three, Three]]:
    """Of each group (p, q, until) by location and (a, b, times) by patch: what a linear layer takes."""
    outputs = (by_group(output, groups) for output in (p, q, until))
    inputs = (patches_by_group(x, kernel_size, stride, dilation, groups) for x in (a, b, times))
    return zip(zip(*outputs, strict=True), zip(*inputs, strict=True), strict=True)
