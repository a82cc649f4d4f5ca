"""Numba kernels for the CPU: a sample costs (input spikes) x (outputs).

The compiled functions take a range of the work and release the interpreter lock; a pool of
ordinary threads shares the ranges out. Every sum has a fixed order, whatever the number of
threads: forward and input gradient belong to one sample, and the weight gradient gives each
thread a range of inputs, so that no two threads write the same row.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .events import add_rows_of_time, fire_if, jit, sort_events
from .status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples

# Above this many bins the counting sort's table would cost more than comparing the times.
MOST_BINS = 1 << 16
# Additions that take about as long as handing work to another thread.
WORTH_A_THREAD = 1 << 21


def first_spike_if(
    times: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, delay: float, t_max: float
) -> tuple[Tensor, Tensor]:
    """Spike times and potentials of IF neurons; see `ssnn_plugin.kernels.operators`."""
    spikes = times.new_empty(times.shape[0], weight.shape[0])
    potential = torch.empty_like(spikes)
    bins = math.ceil(t_max) + 1 if t_max < MOST_BINS else 0
    current = times.new_empty(0) if bias is None else bias
    status = np.zeros(len(times), np.int8)
    arrays = _arrays(times, weight.t(), current, spikes, potential)
    work = times.numel() * weight.shape[0] // 4
    _share_out(len(times), work, _first_spike_if, *arrays, status, threshold, delay, t_max, bins)
    refuse_bad_samples(status.max(initial=0))
    return spikes, potential


@jit
def _first_spike_if(
    first, end, times, weight_t, current, spikes, potential, status, threshold, delay, t_max, bins
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
        if current.size == 0:
            fire_if(order, n, times[b], weight_t, threshold, delay, t_max, v, spikes[b], potential[b])
        else:
            fire_if_with_current(
                order, n, times[b], weight_t, current, threshold, delay, t_max, v, spikes[b], potential[b]
            )
        nans = np.int32(0)
        for j in range(v.size):
            nans += np.int32(0) if potential[b, j] == potential[b, j] else np.int32(1)
            spikes[b, j] += delay
        if nans > 0:
            status[b] = NAN_POTENTIAL


@jit
def fire_if_with_current(
    order, n, times, weight_t, current, threshold, delay, t_max, v, fired, potential
):  # fmt: skip
    """As `fire_if`, with a constant current per output: V rises on a line between input spikes."""
    v[:] = 0
    fired[:] = np.inf
    threshold = v.dtype.type(threshold)
    k = 0
    t = 0.0
    while t < t_max:
        if k < n and times[order[k]] == t:
            k, _ = add_rows_of_time(t, k, order, n, times, weight_t, threshold, v)
        t_next = min(times[order[k]] if k < n else np.inf, t_max)
        for j in range(v.size):
            if fired[j] == np.inf:
                crossing = first_bin_above(v[j], current[j], threshold, t)
                if crossing < t_next and times.dtype.type(crossing + delay) < t_max:
                    fired[j] = crossing
                    potential[j] = v[j] + current[j] * (crossing + 1)
        t = t_next
    for j in range(v.size):
        potential[j] = v[j] + current[j] * t_max if fired[j] == np.inf else potential[j]


@jit
def first_bin_above(v, current, threshold, start):
    """First bin t >= start with v + current (t + 1) > threshold, or inf."""
    if v + current * (start + 1) > threshold:
        return start
    if current <= 0:
        return np.inf
    # Division rounds: settle on the first bin for which the sum itself exceeds the threshold.
    t = np.floor((threshold - v) / current)
    if v + current * t > threshold:
        t -= 1
    if not v + current * (t + 1) > threshold:
        t += 1
    return max(t, start)


def causal_weight_grad(
    grad: Tensor, spikes: Tensor, times: Tensor, delay: float, t_max: float, silent: bool
) -> Tensor:
    """See `ssnn_plugin.kernels.reference.causal_weight_grad`."""
    n_out, n_in = grad.shape[1], times.shape[1]
    arrays = _arrays(grad, spikes, times)
    along_inputs, work = _cheaper_direction(arrays, t_max, silent)
    if along_inputs:
        grad_weight = grad.new_zeros(n_out, n_in)
        _share_out(n_out, work, _grad_along_inputs, *arrays, *_arrays(grad_weight), delay, t_max, silent)
        return grad_weight
    grad_weight_t = grad.new_zeros(n_in, n_out)
    _share_out(n_in, work, _grad_along_outputs, *arrays, *_arrays(grad_weight_t), delay, t_max, silent)
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
    arrays = _arrays(grad, spikes, times)
    along_inputs, work = _cheaper_direction(arrays, t_max, silent)
    kernel, matrix = (_errors_along_inputs, weight) if along_inputs else (_errors_along_outputs, weight.t())
    _share_out(len(times), work, kernel, *arrays, *_arrays(matrix, grad_times), delay, t_max, silent)
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


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Row-major NumPy views, or copies where a tensor is laid out otherwise."""
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def _share_out(length: int, work: int, kernel: Callable[..., None], *args: Any) -> None:
    """Run `kernel(first, last, *args)` over ranges of 0 ... length, on as many threads as torch uses.

    `work` estimates the additions; what is done sooner than a thread wakes up stays on this one.
    Not an OpenMP loop: numba's and torch's pools would spin against each other for the cores.
    """
    threads = min(torch.get_num_threads(), length, 1 + work // WORTH_A_THREAD)
    if threads <= 1:
        kernel(0, length, *args)
        return
    pool = _pools.get(threads) or _pools.setdefault(threads, ThreadPoolExecutor(threads - 1))
    bounds = [length * i // threads for i in range(threads + 1)]
    others = [pool.submit(kernel, bounds[i], bounds[i + 1], *args) for i in range(1, threads)]
    kernel(bounds[0], bounds[1], *args)
    for other in others:
        other.result()
