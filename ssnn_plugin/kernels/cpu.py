"""Numba kernels for the CPU: a sample costs (input spikes) x (outputs).

The compiled functions take a range of the work and release the interpreter lock; a pool of
ordinary threads shares the ranges out. Every sum has a fixed order, whatever the number of
threads: forward and input gradient belong to one sample, and the weight gradient gives each
thread a range of inputs, so that no two threads write the same row.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np
import torch
from torch import Tensor

from .conv2d_events import (
    LANES,
    errors_that_count,
    find_spikes_by_location,
    fire_if_conv2d,
    positions_of_inputs,
    subtract_causal_errors_conv2d,
    sum_causal_errors_conv2d,
)
from .events import fire_if, fire_if_with_drift, has_bad_times, jit, sort_events
from .geometry import by_group, channels_last, synapse_table, weight_of_rows, weight_rows, whole_lanes
from .parallel import as_arrays, share_out
from .status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples

# Above this many bins the counting sort's table would cost more than comparing times.
MOST_BINS = 1 << 16


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
    spikes = times.new_empty(times.shape[0], weight.shape[0])
    potential = torch.empty_like(spikes)
    current = weight.new_zeros(weight.shape[0]) if bias is None else bias
    status = np.zeros(len(times), np.int8)
    arrays = as_arrays(times, weight.t(), current, spikes, potential)
    work = times.numel() * weight.shape[0] // 4
    neuron = threshold, beta, delay, t_max, bins_to_count(t_max), bias is not None
    share_out(len(times), work, _first_spike_linear, *arrays, status, *neuron)
    refuse_bad_samples(status.max(initial=0))
    return spikes, potential


def bins_to_count(t_max: float) -> int:
    return min(math.ceil(t_max), MOST_BINS) + 1


@jit
def _first_spike_linear(
    first, end, times, weight_t, current, spikes, potential, status,
    threshold, beta, delay, t_max, bins, rising,
):  # fmt: skip
    order = np.empty(times.shape[1], np.int32)
    spiking = np.empty(times.shape[1], np.int32)
    counts = np.empty(bins, np.int32)
    v = np.empty(weight_t.shape[1], weight_t.dtype)
    for b in range(first, end):
        n = sort_events(times[b], t_max, order, spiking, counts)
        if n < 0:
            status[b] = BAD_TIMES
            continue
        if beta == 1 and not rising:
            fire_if(order, n, times[b], weight_t, threshold, delay, t_max, v, spikes[b], potential[b])
        else:
            fire_if_with_drift(
                order, n, times[b], weight_t, current, rising, beta, threshold, delay, t_max, v,
                spikes[b], potential[b],
            )  # fmt: skip
        status[b] = add_delay_and_check(spikes[b], potential[b], delay)


@jit
def add_delay_and_check(spikes, potential, delay):
    """Add the delay, and return the status of a sample."""
    nans = np.int32(0)
    for j in range(spikes.size):
        nans += np.int32(0) if potential[j] == potential[j] else np.int32(1)
        spikes[j] += delay
    return NAN_POTENTIAL if nans > 0 else 0


def causal_weight_grad(
    grad: Tensor, spikes: Tensor, times: Tensor, delay: float, t_max: float, silent: bool
) -> Tensor:
    """See `ssnn_plugin.kernels.reference.causal_weight_grad`."""
    n_out, n_in = grad.shape[1], times.shape[1]
    arrays = as_arrays(grad, spikes, times)
    along_inputs, work = _cheaper_direction(arrays, t_max, silent)
    if along_inputs:
        grad_weight = grad.new_zeros(n_out, n_in)
        share_out(n_out, work, _grad_along_inputs, *arrays, *as_arrays(grad_weight), delay, t_max, silent)
        return grad_weight
    grad_weight_t = grad.new_zeros(n_in, n_out)
    share_out(n_in, work, _grad_along_outputs, *arrays, *as_arrays(grad_weight_t), delay, t_max, silent)
    return grad_weight_t.t().contiguous()


def _cheaper_direction(arrays: tuple[np.ndarray, ...], t_max: float, silent: bool) -> tuple[bool, int]:
    """Whether to take all inputs for each error, rather than all outputs for each input spike.

    Returns it with the number of additions.
    """
    grad, spikes, times = arrays
    n_errors, n_events = _count_work(grad, spikes, times, t_max, silent)
    along_inputs, along_outputs = n_errors * times.shape[1], n_events * grad.shape[1]
    return along_inputs <= along_outputs, min(along_inputs, along_outputs)


@jit
def _count_work(grad, spikes, times, t_max, silent):
    """Number of output spikes with an error, and of input spikes."""
    n_errors = n_events = 0
    for b in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            n_errors += (grad[b, j] != 0) & (silent | (spikes[b, j] < np.inf))
        for i in range(times.shape[1]):
            n_events += times[b, i] < t_max
    return n_errors, n_events


@jit
def _grad_along_inputs(first, end, grad, spikes, times, grad_weight, delay, t_max, silent):
    """One contiguous row per output with an error: the cheaper way where errors are few."""
    zero = grad.dtype.type(0)
    t_max, delay = times.dtype.type(t_max), times.dtype.type(delay)
    for b in range(times.shape[0]):
        t = times[b]
        for j in range(first, end):
            error, out = grad[b, j], spikes[b, j]
            if error != 0 and (silent or out < np.inf):
                row = grad_weight[j]
                for i in range(t.size):
                    row[i] -= error if (t[i] + delay <= out) & (t[i] < t_max) else zero


@jit
def _grad_along_outputs(first, end, grad, spikes, times, grad_weight_t, delay, t_max, silent):
    """One contiguous row per input spike: the cheaper way where errors are many."""
    delay = times.dtype.type(delay)
    error = np.empty(grad.shape[1], grad.dtype)
    causal = np.empty(end - first, np.int32)
    for b in range(times.shape[0]):
        latest = errors_of_sample(grad[b], spikes[b], silent, error)
        n = 0
        for i in range(first, end):
            causal[n] = i
            n += (times[b, i] < t_max) & (times[b, i] + delay <= latest)
        subtract_causal_errors(error, spikes[b], times[b], causal[:n], delay, grad_weight_t)


@jit
def subtract_causal_errors(error, spikes, times, causal, delay, grad_weight_t):
    """Two rows at a time: reading the errors costs as much as a row."""
    zero = error.dtype.type(0)
    for k in range(0, causal.size - 1, 2):
        t, row = times[causal[k]] + delay, grad_weight_t[causal[k]]
        t_other, other = times[causal[k + 1]] + delay, grad_weight_t[causal[k + 1]]
        for j in range(error.size):
            row[j] -= error[j] if t <= spikes[j] else zero
            other[j] -= error[j] if t_other <= spikes[j] else zero
    if causal.size % 2:
        t, row = times[causal[-1]] + delay, grad_weight_t[causal[-1]]
        for j in range(error.size):
            row[j] -= error[j] if t <= spikes[j] else zero


def causal_input_grad(
    grad: Tensor, spikes: Tensor, times: Tensor, weight: Tensor, delay: float, t_max: float, silent: bool
) -> Tensor:
    """See `ssnn_plugin.kernels.reference.causal_input_grad`."""
    grad_times = torch.zeros_like(times, memory_format=torch.contiguous_format)
    arrays = as_arrays(grad, spikes, times)
    along_inputs, work = _cheaper_direction(arrays, t_max, silent)
    kernel, matrix = (_errors_along_inputs, weight) if along_inputs else (_errors_along_outputs, weight.t())
    share_out(len(times), work, kernel, *arrays, *as_arrays(matrix, grad_times), delay, t_max, silent)
    return grad_times


@jit
def _errors_along_inputs(first, end, grad, spikes, times, weight, grad_times, delay, t_max, silent):
    zero = grad.dtype.type(0)
    t_max, delay = times.dtype.type(t_max), times.dtype.type(delay)
    for b in range(first, end):
        t, total = times[b], grad_times[b]
        for j in range(grad.shape[1]):
            error, out = grad[b, j], spikes[b, j]
            if error != 0 and (silent or out < np.inf):
                row = weight[j]
                for i in range(t.size):
                    total[i] += error * row[i] if (t[i] + delay <= out) & (t[i] < t_max) else zero


@jit
def _errors_along_outputs(first, end, grad, spikes, times, weight_t, grad_times, delay, t_max, silent):
    zero = grad.dtype.type(0)
    delay = times.dtype.type(delay)
    error = np.empty(grad.shape[1], grad.dtype)
    for b in range(first, end):
        latest = errors_of_sample(grad[b], spikes[b], silent, error)
        out = spikes[b]
        for i in range(times.shape[1]):
            t = times[b, i]
            if t < t_max and t + delay <= latest:
                t += delay
                row = weight_t[i]
                total = zero
                for j in range(error.size):
                    total += error[j] * row[j] if t <= out[j] else zero
                grad_times[b, i] = total


@jit
def errors_of_sample(grad, spikes, silent, error):
    """Copy the errors that count, and return the latest output spike that has one.

    Inputs after it have no part in the error, so that they can be skipped.
    """
    latest = -np.inf
    for j in range(grad.size):
        error[j] = grad[j] if silent or spikes[j] < np.inf else 0
        latest = max(latest, spikes[j] if error[j] != 0 else -np.inf)
    return latest


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
    """Spike times and potentials of convolutional IF neurons; see `ssnn_plugin.kernels.operators`."""
    synapses = synapse_table(*times.shape[2:], *weight.shape[2:], *stride, *dilation)
    rows = weight_rows(weight, groups).flatten(1, 2)
    drift = bias is not None or beta != 1
    rows = rows if drift else whole_lanes(rows, LANES)
    spikes = times.new_empty(len(times), len(synapses.seen), groups, rows.shape[-1])
    potential = torch.empty_like(spikes)
    status = np.zeros(len(times), np.int8)
    outputs = *as_arrays(spikes, potential), status
    neuron = threshold, beta, delay, t_max, bins_to_count(t_max)
    work = len(times) * synapses.seen.size * weight.shape[1] * len(weight) // 4
    if drift:
        current = by_group(weight.new_zeros(len(weight)) if bias is None else bias, groups)
        arrays, rest = as_arrays(channels_last(times), rows, current), (*neuron, bias is not None)
        share_out(len(times), work, _first_spike_conv2d_with_drift, *arrays, *outputs, synapses.seen, *rest)
    else:
        arrays = as_arrays(channels_last(times), rows.flatten(0, 1))
        share_out(len(times), work, _first_spike_conv2d, *arrays, *outputs, synapses[:3], *neuron)
    refuse_bad_samples(status.max(initial=0))
    n_out = len(weight) // groups
    return spikes[..., :n_out].flatten(2).contiguous(), potential[..., :n_out].flatten(2).contiguous()


@jit
def _first_spike_conv2d(
    begin, end, times, rows, spikes, potential, status, synapses, threshold, beta, delay, t_max, bins
):  # fmt: skip
    position_of, groups = positions_of_inputs(times), spikes.shape[2]
    order, spiking = np.empty(position_of.size, np.int32), np.empty(position_of.size, np.int32)
    counts, n_events = np.empty(bins, np.int32), np.empty((times.shape[1], groups), np.int32)
    ends = np.empty(spikes.shape[1] * groups, np.int64)
    row, when = np.empty(0, np.int32), np.empty(0, times.dtype)
    for b in range(begin, end):
        n = sort_events(times[b].reshape(-1), t_max, order, spiking, counts)
        if n < 0:
            status[b] = BAD_TIMES
            continue
        row, when = find_spikes_by_location(
            order, n, times[b], synapses, position_of, len(rows), groups, n_events, ends, row, when
        )
        fire_if_conv2d(ends, row, when, rows, threshold, delay, t_max, spikes[b], potential[b])
        status[b] = add_delay_and_check(spikes[b].reshape(-1), potential[b].reshape(-1), delay)


@jit
def _first_spike_conv2d_with_drift(
    begin, end, times, rows, current, spikes, potential, status, seen,
    threshold, beta, delay, t_max, bins, rising,
):  # fmt: skip
    """With a leak or a current every patch is a linear layer of its own."""
    groups, n_rows, width = rows.shape
    in_group = times.shape[2] // groups
    patch, v = np.empty(n_rows, times.dtype), np.empty(width, rows.dtype)
    order, spiking = np.empty(n_rows, np.int32), np.empty(n_rows, np.int32)
    counts = np.empty(
        min(bins, 4 * n_rows + 2), np.int32
    )  # clearing them would cost more than the few spikes
    for b in range(begin, end):
        if has_bad_times(times[b].reshape(-1)):
            status[b] = BAD_TIMES
            continue
        for location in range(len(seen)):
            for group in range(groups):
                for row in range(n_rows):
                    patch[row] = times[b, seen[location, row // in_group], group * in_group + row % in_group]
                n = sort_events(patch, t_max, order, spiking, counts)
                fire_if_with_drift(
                    order, n, patch, rows[group], current[group], rising, beta, threshold, delay, t_max, v,
                    spikes[b, location, group], potential[b, location, group],
                )  # fmt: skip
        status[b] = add_delay_and_check(spikes[b].reshape(-1), potential[b].reshape(-1), delay)


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
    """See `ssnn_plugin.kernels.reference.causal_conv2d_weight_grad`."""
    synapses = synapse_table(*times.shape[2:], *kernel_size, *stride, *dilation)
    in_group, out, n_taps = times.shape[1] // groups, grad.shape[2], math.prod(kernel_size)
    grad, spikes = whole_lanes(by_group(grad, groups), LANES), whole_lanes(by_group(spikes, groups), LANES)
    grad_rows = grad.new_zeros(groups * n_taps * in_group, grad.shape[-1])
    arrays = as_arrays(grad, spikes, channels_last(times), grad_rows)
    work = len(times) * len(synapses.taps) * in_group * out // 4
    share_out(len(grad_rows), work, _conv2d_weight_grad, *arrays, synapses[:3], delay, t_max, silent)
    return weight_of_rows(grad_rows, (out, in_group, *kernel_size), groups)


@jit
def _conv2d_weight_grad(first, end, grad, spikes, times, grad_rows, synapses, delay, t_max, silent):
    position_of = positions_of_inputs(times)
    spiking, error = np.empty(position_of.size, np.int32), np.empty(grad.shape[1:], grad.dtype)
    for b in range(len(times)):
        errors_that_count(grad[b], spikes[b], silent, error)
        subtract_causal_errors_conv2d(
            error, spikes[b], times[b], t_max, delay, synapses, position_of, first, end, spiking, grad_rows
        )


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
    """See `ssnn_plugin.kernels.reference.causal_conv2d_input_grad`."""
    synapses = synapse_table(*times.shape[2:], *weight.shape[2:], *stride, *dilation)
    rows = whole_lanes(weight_rows(weight, groups), LANES).flatten(0, 2)
    grad, spikes = whole_lanes(by_group(grad, groups), LANES), whole_lanes(by_group(spikes, groups), LANES)
    grad_times = times.new_zeros(len(times), math.prod(times.shape[2:]), times.shape[1])
    arrays = as_arrays(grad, spikes, channels_last(times), rows, grad_times)
    work = len(times) * len(synapses.taps) * weight.shape[1] * len(weight) // 4
    share_out(len(times), work, _conv2d_input_grad, *arrays, synapses[:3], delay, t_max, silent)
    return grad_times.transpose(1, 2).reshape(times.shape).contiguous()


@jit
def _conv2d_input_grad(first, end, grad, spikes, times, rows, grad_times, synapses, delay, t_max, silent):
    position_of = positions_of_inputs(times)
    spiking, error = np.empty(position_of.size, np.int32), np.empty(grad.shape[1:], grad.dtype)
    for b in range(first, end):
        errors_that_count(grad[b], spikes[b], silent, error)
        sum_causal_errors_conv2d(
            error, spikes[b], times[b], t_max, delay, synapses, position_of, spiking, rows, grad_times[b]
        )


def single_spike_window(
    currents: Tensor, start: Tensor, beta: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """See `ssnn_plugin.kernels.window`."""
    spikes = torch.zeros_like(currents, memory_format=torch.contiguous_format)
    potentials = torch.empty_like(spikes)
    steps = (tensor.reshape(len(currents), start.numel()) for tensor in (currents, spikes, potentials))
    neurons = (tensor.reshape(-1) for tensor in (start, beta, threshold))
    _run_window(*as_arrays(*steps), *as_arrays(*neurons))
    return spikes, potentials


# Without fused multiplications, so that it equals a loop of torch operations bit by bit.
exact_jit = nb.njit(cache=True, nogil=True, error_model="numpy")


@exact_jit
def _run_window(currents, spikes, potentials, start, beta, threshold):
    v = start
    for t in range(currents.shape[0]):
        for n in range(currents.shape[1]):
            spent = v[n] > threshold[n]
            new = v[n] if spent else beta[n] * v[n] + currents[t, n]
            potentials[t, n] = new
            spikes[t, n] = 1 if (new > threshold[n]) & ~spent else 0
        v = potentials[t]


def single_spike_window_grad(
    grad_spikes: Tensor, grad_potentials: Tensor, potentials: Tensor, start: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """See `ssnn_plugin.kernels.window`."""
    grad = torch.empty_like(potentials, memory_format=torch.contiguous_format)
    total = torch.zeros_like(start, memory_format=torch.contiguous_format)
    shape = len(potentials), start.numel()
    steps = (tensor.reshape(shape) for tensor in (grad_spikes, grad_potentials, potentials, grad))
    neurons = (tensor.reshape(-1) for tensor in (start, threshold, total))
    _run_window_back(*as_arrays(*steps), *as_arrays(*neurons))
    return grad, total


@exact_jit
def _run_window_back(grad_spikes, grad_potentials, potentials, grad, start, threshold, total):
    zero = grad.dtype.type(0)
    for t in range(grad.shape[0] - 1, -1, -1):
        before = potentials[t - 1] if t > 0 else start
        for n in range(grad.shape[1]):
            spent = before[n] > threshold[n]
            fires = (potentials[t, n] > threshold[n]) & ~spent
            total[n] += grad_potentials[t, n] + (grad_spikes[t, n] if fires else zero)
            grad[t, n] = zero if spent else total[n]
