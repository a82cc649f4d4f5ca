"""Numba kernels of the neurons with a synaptic current; how work is shared out is told in `cpu`.

The gradients follow the spikes of the side that has fewer: all outputs for each input spike, or
all inputs for each output with an error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .conv2d_events import find_spikes_by_location, positions_of_inputs
from .events import jit, sort_events
from .geometry import by_group, channels_last, synapse_table, weight_of_rows, weight_rows, whole_lanes
from .parallel import as_arrays, share_out
from .psp_events import LANES, fire_psp, subtract_causal_factors_conv2d, sum_causal_factors_conv2d
from .status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples

# Buckets of the counting sort; times are continuous, and a bucket should hold a few.
BUCKETS = 1 << 10
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
    n_out = len(weight)
    spikes = times.new_empty(len(times), n_out)
    potential, slope = torch.empty_like(spikes), torch.empty_like(spikes)
    current = whole_lanes(weight.new_zeros(n_out) if bias is None else bias, LANES)
    status = np.zeros(len(times), np.int8)
    arrays = as_arrays(times, whole_lanes(weight.t(), LANES), current, spikes, potential, slope)
    work = times.numel() * n_out // 2
    neuron = psp, tau, threshold, t_max
    share_out(len(times), work, _first_spike_linear, *arrays, status, *neuron)
    refuse_bad_samples(status.max(initial=0))
    return spikes, potential, slope


@jit
def _first_spike_linear(
    begin, end, times, rows, bias, spikes, potential, slope, status, psp, tau, threshold, t_max
):  # fmt: skip
    n_in = times.shape[1]
    order, spiking, counts = (
        np.empty(n_in, np.int32),
        np.empty(n_in, np.int32),
        np.empty(BUCKETS + 1, np.int32),
    )
    moves, state = np.empty((3, n_in + 1), rows.dtype), np.empty((5, LANES), rows.dtype)
    for b in range(begin, end):
        n = sort_events(times[b], t_max, order, spiking, counts)
        if n < 0:
            status[b] = BAD_TIMES
            continue
        fire_psp(
            order[:n], times[b][order[:n]], rows, bias, psp, tau, threshold, t_max, moves, state,
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
    spikes = times.new_empty(len(times), len(synapses.seen), groups, len(weight) // groups)
    potential, slope = torch.empty_like(spikes), torch.empty_like(spikes)
    current = whole_lanes(by_group(weight.new_zeros(len(weight)) if bias is None else bias, groups), LANES)
    rows = whole_lanes(weight_rows(weight, groups), LANES).flatten(0, 2)
    status = np.zeros(len(times), np.int8)
    arrays = as_arrays(channels_last(times), rows, current, spikes, potential, slope)
    neuron = psp, tau, threshold, t_max
    work = len(times) * synapses.seen.size * weight.shape[1] * len(weight) // 2
    share_out(len(times), work, _first_spike_conv2d, *arrays, status, synapses[:3], *neuron)
    refuse_bad_samples(status.max(initial=0))
    return spikes.flatten(2), potential.flatten(2), slope.flatten(2)


@jit
def _first_spike_conv2d(
    begin, end, times, rows, bias, spikes, potential, slope, status, synapses, psp, tau, threshold, t_max
):  # fmt: skip
    position_of, (locations, groups) = positions_of_inputs(times), spikes.shape[1:3]
    order, spiking = np.empty(position_of.size, np.int32), np.empty(position_of.size, np.int32)
    counts, n_events = np.empty(BUCKETS + 1, np.int32), np.empty((times.shape[1], groups), np.int32)
    ends, row, when = np.empty(locations * groups, np.int64), np.empty(0, np.int32), np.empty(0, times.dtype)
    moves, state = np.empty((3, len(rows) // groups + 1), rows.dtype), np.empty((5, LANES), rows.dtype)
    for b in range(begin, end):
        n = sort_events(times[b].reshape(-1), t_max, order, spiking, counts)
        if n < 0:
            status[b] = BAD_TIMES
            continue
        row, when = find_spikes_by_location(
            order, n, times[b], synapses, position_of, len(rows), groups, n_events, ends, row, when
        )
        first = 0
        for unit in range(ends.size):
            at, group = unit // groups, unit % groups
            fire_psp(
                row[first : ends[unit]], when[first : ends[unit]], rows, bias[group], psp, tau, threshold,
                t_max, moves, state, spikes[b, at, group], potential[b, at, group], slope[b, at, group],
            )  # fmt: skip
            first = ends[unit]
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
    in_group, out, n_taps = times.shape[1] // groups, p.shape[2], math.prod(kernel_size)
    outputs = [whole_lanes(by_group(tensor, groups), LANES) for tensor in (p, q, until)]
    grad_rows = p.new_zeros(groups * n_taps * in_group, outputs[0].shape[-1])
    arrays = as_arrays(*outputs, *(channels_last(x) for x in (a, b, times)), grad_rows)
    work = len(times) * len(synapses.taps) * in_group * out // 2
    share_out(len(grad_rows), work, _conv2d_weight_grad, *arrays, synapses[:3])
    return weight_of_rows(grad_rows, (out, in_group, *kernel_size), groups)


@jit
def _conv2d_weight_grad(first, end, p, q, until, a, b, times, grad_rows, synapses):
    position_of = positions_of_inputs(times)
    spiking = np.empty(position_of.size, np.int32)
    for n in range(len(times)):
        subtract_causal_factors_conv2d(
            p[n], q[n], until[n], a[n], b[n], times[n], synapses, position_of, first, end, spiking, grad_rows
        )


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
    outputs = [whole_lanes(by_group(tensor, groups), LANES) for tensor in (p, q, until)]
    rows = whole_lanes(weight_rows(weight, groups), LANES).flatten(0, 2)
    grad_times = times.new_zeros(len(times), math.prod(times.shape[2:]), times.shape[1])
    arrays = as_arrays(*outputs, *(channels_last(x) for x in (a, b, times)), rows, grad_times)
    work = len(times) * len(synapses.taps) * weight.shape[1] * len(weight) // 2
    share_out(len(times), work, _conv2d_input_grad, *arrays, synapses[:3])
    return grad_times.transpose(1, 2).reshape(times.shape).contiguous()


@jit
def _conv2d_input_grad(first, end, p, q, until, a, b, times, rows, grad_times, synapses):
    position_of = positions_of_inputs(times)
    spiking = np.empty(position_of.size, np.int32)
    for n in range(first, end):
        sum_causal_factors_conv2d(
            p[n], q[n], until[n], a[n], b[n], times[n], synapses, position_of, spiking, rows, grad_times[n]
        )
