"""Numba kernels of the neurons with a synaptic current; how work is shared out is told in `cpu`.

The gradients follow the spikes of the side that has fewer: all outputs for each input spike, or
all inputs for each output with an error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .events import jit, sort_events
from .geometry import rows_by_input, synapse_table
from .parallel import as_arrays, share_out
from .psp_events import fire_psp, fire_psp_conv2d, fire_psp_narrow
from .status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples

# Buckets of the counting sort; times are continuous, and a bucket should hold a few.
BUCKETS = 1 << 10
# With fewer outputs than a few vector registers hold, one output after the other is cheaper.
NARROW = 48
# What a row costs beside its additions, in additions.
ROW = 48


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
    spikes = times.new_empty(times.shape[0], weight.shape[0])
    potential, slope = torch.empty_like(spikes), torch.empty_like(spikes)
    first = weight.new_zeros(weight.shape[0]) if bias is None else bias
    status = np.zeros(len(times), np.int8)
    arrays = as_arrays(times, weight.t(), first, spikes, potential, slope)
    work = times.numel() * weight.shape[0] // 2
    neuron = psp, tau, threshold, t_max
    share_out(len(times), work, _first_spike_linear, *arrays, status, *neuron)
    refuse_bad_samples(status.max(initial=0))
    return spikes, potential, slope


@jit
def _first_spike_linear(
    begin, end, times, weight_t, bias, spikes, potential, slope, status, psp, tau, threshold, t_max
):  # fmt: skip
    order, spiking = np.empty(times.shape[1], np.int32), np.empty(times.shape[1], np.int32)
    counts = np.empty(BUCKETS + 1, np.int32)
    n_out = weight_t.shape[1]
    v, current = np.empty(n_out, weight_t.dtype), np.empty(n_out, weight_t.dtype)
    moves = np.empty((3, times.shape[1] + 1))
    for b in range(begin, end):
        n = sort_events(times[b], t_max, order, spiking, counts)
        if n < 0:
            status[b] = BAD_TIMES
            continue
        if n_out < NARROW:
            fire_psp_narrow(
                order, n, times[b], weight_t, bias, psp, tau, threshold, t_max, moves,
                spikes[b], potential[b], slope[b],
            )  # fmt: skip
        else:
            fire_psp(
                order, n, times[b], weight_t, bias, psp, tau, threshold, t_max, v, current,
                spikes[b], potential[b], slope[b],
            )  # fmt: skip
        status[b] = NAN_POTENTIAL if np.isnan(potential[b]).any() else 0


def causal_weight_grad(p: Tensor, q: Tensor, until: Tensor, a: Tensor, b: Tensor, times: Tensor) -> Tensor:
    """See `ssnn_plugin.kernels.reference_psp.causal_weight_grad`."""
    n_out, n_in = p.shape[1], a.shape[1]
    arrays = as_arrays(p, q, until, a, b, times)
    along_inputs, work = _cheaper_direction(*arrays)
    if along_inputs:
        grad_weight = p.new_zeros(n_out, n_in)
        share_out(n_out, work, _grad_along_inputs, *arrays, *as_arrays(grad_weight))
        return grad_weight
    grad_weight_t = p.new_zeros(n_in, n_out)
    share_out(n_in, work, _grad_along_outputs, *arrays, *as_arrays(grad_weight_t))
    return grad_weight_t.t().contiguous()


def _cheaper_direction(
    p: np.ndarray, q: np.ndarray, until: np.ndarray, a: np.ndarray, b: np.ndarray, times: np.ndarray
) -> tuple[bool, int]:
    """Whether to take all inputs for each error, rather than all outputs for each input spike.

    Returns it with the number of multiplications.
    """
    n_errors, n_events = int((until > -np.inf).sum()), int((times < np.inf).sum())
    along_inputs, along_outputs = n_errors * (times.shape[1] + ROW), n_events * (p.shape[1] + ROW)
    return along_inputs <= along_outputs, 2 * min(along_inputs, along_outputs)


@jit
def _grad_along_inputs(first, end, p, q, until, a, b, times, grad_weight):
    zero = p.dtype.type(0)
    for n in range(len(times)):
        for j in range(first, end):
            if until[n, j] > -np.inf:
                row, of_a, of_b, last = grad_weight[j], p[n, j], q[n, j], until[n, j]
                for i in range(row.size):
                    row[i] -= of_a * a[n, i] - of_b * b[n, i] if times[n, i] < last else zero


@jit
def _grad_along_outputs(first, end, p, q, until, a, b, times, grad_weight_t):
    """Two rows at a time: reading the errors costs as much as a row."""
    zero = p.dtype.type(0)
    causal = np.empty(end - first, np.int32)
    for n in range(len(times)):
        latest = until[n].max()
        found = 0
        for i in range(first, end):
            causal[found] = i
            found += times[n, i] < latest
        for k in range(0, found - 1, 2):
            i, other_i = causal[k], causal[k + 1]
            row, other = grad_weight_t[i], grad_weight_t[other_i]
            t, of_a, of_b = times[n, i], a[n, i], b[n, i]
            other_t, other_a, other_b = times[n, other_i], a[n, other_i], b[n, other_i]
            for j in range(row.size):
                row[j] -= p[n, j] * of_a - q[n, j] * of_b if t < until[n, j] else zero
                other[j] -= p[n, j] * other_a - q[n, j] * other_b if other_t < until[n, j] else zero
        if found % 2:
            i = causal[found - 1]
            row, t, of_a, of_b = grad_weight_t[i], times[n, i], a[n, i], b[n, i]
            for j in range(row.size):
                row[j] -= p[n, j] * of_a - q[n, j] * of_b if t < until[n, j] else zero


def causal_input_grad(
    p: Tensor, q: Tensor, until: Tensor, a: Tensor, b: Tensor, times: Tensor, weight: Tensor
) -> Tensor:
    """See `ssnn_plugin.kernels.reference_psp.causal_input_grad`."""
    grad_times = torch.zeros_like(times, memory_format=torch.contiguous_format)
    arrays = as_arrays(p, q, until, a, b, times)
    along_inputs, work = _cheaper_direction(*arrays)
    kernel, matrix = (_errors_along_inputs, weight) if along_inputs else (_errors_along_outputs, weight.t())
    share_out(len(times), work, kernel, *arrays, *as_arrays(matrix, grad_times))
    return grad_times


@jit
def _errors_along_inputs(first, end, p, q, until, a, b, times, weight, grad_times):
    zero = p.dtype.type(0)
    for n in range(first, end):
        total = grad_times[n]
        for j in range(p.shape[1]):
            if until[n, j] > -np.inf:
                row, of_a, of_b, last = weight[j], p[n, j], q[n, j], until[n, j]
                for i in range(row.size):
                    slope = of_a * a[n, i] - of_b * b[n, i]
                    total[i] += slope * row[i] if times[n, i] < last else zero


@jit
def _errors_along_outputs(first, end, p, q, until, a, b, times, weight_t, grad_times):
    zero = p.dtype.type(0)
    for n in range(first, end):
        latest = until[n].max()
        for i in range(times.shape[1]):
            t = times[n, i]
            if t < latest:
                row, of_a, of_b = weight_t[i], zero, zero
                for j in range(row.size):
                    w = row[j] if t < until[n, j] else zero
                    of_a += p[n, j] * w
                    of_b += q[n, j] * w
                grad_times[n, i] = a[n, i] * of_a - b[n, i] * of_b


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
    """As `first_spike_linear`, for a convolution; see `ssnn_plugin.kernels.operators`."""
    synapses = synapse_table(*times.shape[2:], *weight.shape[2:], *stride, *dilation)
    out = weight.shape[0]
    spikes = times.new_empty(times.shape[0], len(synapses.seen), out)
    potential, slope = torch.empty_like(spikes), torch.empty_like(spikes)
    first = weight.new_zeros(out) if bias is None else bias
    status = np.zeros(len(times), np.int8)
    arrays = as_arrays(times.flatten(2), rows_by_input(weight, groups), first, spikes, potential, slope)
    neuron = psp, tau, threshold, t_max
    work = len(times) * len(synapses.taps) * weight.shape[1] * out // 2
    share_out(len(times), work, _first_spike_conv2d, *arrays, status, *synapses[:3], *neuron)
    refuse_bad_samples(status.max(initial=0))
    return spikes, potential, slope


@jit
def _first_spike_conv2d(
    begin, end, times, rows, bias, spikes, potential, slope, status, start, taps, locations,
    psp, tau, threshold, t_max,
):  # fmt: skip
    size = times.shape[1] * times.shape[2]
    order, spiking, counts = (
        np.empty(size, np.int32),
        np.empty(size, np.int32),
        np.empty(BUCKETS + 1, np.int32),
    )
    v, current = np.empty(spikes.shape[1:], spikes.dtype), np.empty(spikes.shape[1:], spikes.dtype)
    since, waiting = np.empty(len(v), np.float64), np.empty(len(v), np.int32)
    for b in range(begin, end):
        n = sort_events(times[b].reshape(-1), t_max, order, spiking, counts)
        if n < 0:
            status[b] = BAD_TIMES
            continue
        fire_psp_conv2d(
            order, n, times[b], rows, bias, psp, tau, start, taps, locations, threshold, t_max,
            v, current, since, waiting, spikes[b], potential[b], slope[b],
        )  # fmt: skip
        status[b] = NAN_POTENTIAL if np.isnan(potential[b]).any() else 0


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
    """See `ssnn_plugin.kernels.reference_psp.causal_conv2d_weight_grad`."""
    synapses = synapse_table(*times.shape[2:], *kernel_size, *stride, *dilation)
    channels, out, n_taps = times.shape[1], p.shape[2] // groups, math.prod(kernel_size)
    grad_rows = p.new_zeros(channels * n_taps, out)
    arrays = as_arrays(p, q, until, a.flatten(2), b.flatten(2), times.flatten(2), grad_rows)
    work = len(times) * len(synapses.taps) * channels * out // 2
    share_out(len(grad_rows), work, _conv2d_weight_grad, *arrays, *synapses[:3], n_taps, groups)
    by_group = grad_rows.reshape(groups, channels // groups, n_taps, out)
    return by_group.permute(0, 3, 1, 2).reshape(-1, channels // groups, *kernel_size).contiguous()


@jit
def _conv2d_weight_grad(
    first, end, p, q, until, a, b, times, grad_rows, start, taps, locations, n_taps, groups
):  # fmt: skip
    zero = p.dtype.type(0)
    latest = np.empty(p.shape[1], until.dtype)
    out = grad_rows.shape[1]
    in_group = times.shape[1] // groups
    for n in range(len(times)):
        for at in range(latest.size):
            latest[at] = until[n, at].max()
        for channel in range(first // n_taps, (end - 1) // n_taps + 1):
            base = channel // in_group * out
            for position in range(times.shape[2]):
                t, of_a, of_b = times[n, channel, position], a[n, channel, position], b[n, channel, position]
                if t < np.inf:
                    for s in range(start[position], start[position + 1]):
                        row, at = channel * n_taps + taps[s], locations[s]
                        if first <= row < end and t < latest[at]:
                            for j in range(out):
                                change = p[n, at, base + j] * of_a - q[n, at, base + j] * of_b
                                grad_rows[row, j] -= change if t < until[n, at, base + j] else zero


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
    """See `ssnn_plugin.kernels.reference_psp.causal_conv2d_input_grad`."""
    synapses = synapse_table(*times.shape[2:], *weight.shape[2:], *stride, *dilation)
    grad_times = torch.zeros_like(times, memory_format=torch.contiguous_format)
    inputs = (x.flatten(2) for x in (a, b, times))
    arrays = as_arrays(p, q, until, *inputs, rows_by_input(weight, groups), grad_times.flatten(2))
    work = len(times) * len(synapses.taps) * weight.shape[1] * weight.shape[0] // 2
    share_out(len(times), work, _conv2d_input_grad, *arrays, *synapses[:3], groups)
    return grad_times


@jit
def _conv2d_input_grad(
    first, end, p, q, until, a, b, times, rows, grad_times, start, taps, locations, groups
):  # fmt: skip
    zero = p.dtype.type(0)
    latest = np.empty(p.shape[1], until.dtype)
    out = rows.shape[2]
    in_group = times.shape[1] // groups
    for n in range(first, end):
        for at in range(latest.size):
            latest[at] = until[n, at].max()
        for channel in range(times.shape[1]):
            base = channel // in_group * out
            for position in range(times.shape[2]):
                t, of_a, of_b = times[n, channel, position], zero, zero
                if t < np.inf:
                    for s in range(start[position], start[position + 1]):
                        at, row = locations[s], rows[channel, taps[s]]
                        if t < latest[at]:
                            for j in range(out):
                                w = row[j] if t < until[n, at, base + j] else zero
                                of_a += p[n, at, base + j] * w
                                of_b += q[n, at, base + j] * w
                    grad_times[n, channel, position] = (
                        a[n, channel, position] * of_a - b[n, channel, position] * of_b
                    )
