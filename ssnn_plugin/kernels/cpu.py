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

from .events import fire_if, jit, sort_events
from .status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples

# Above this many bins the counting sort's table would cost more than comparing the times.
MOST_BINS = 1 << 16
# With fewer outputs than this, a gradient is faster along the inputs, silent ones included.
NARROW = 32
TILE = 32


def first_spike_if(
    times: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, delay: float, t_max: float
) -> tuple[Tensor, Tensor]:
    """Crossing times and potentials of IF neurons; see `ssnn_plugin.kernels.operators`."""
    fired = times.new_empty(times.shape[0], weight.shape[0])
    potential = torch.empty_like(fired)
    bins = math.ceil(t_max) + 1 if t_max < MOST_BINS else 0
    current = times.new_empty(0) if bias is None else bias
    status = np.zeros(len(times), np.int8)
    arrays = _arrays(times, _transpose(weight), current, fired, potential)
    _share_out(len(times), _first_spike_if, *arrays, status, threshold, delay, t_max, bins)
    refuse_bad_samples(status.max(initial=0))
    return fired, potential


@jit
def _first_spike_if(
    first, end, times, weight_t, current, fired, potential, status, threshold, delay, t_max, bins
):  # fmt: skip
    order = np.empty(times.shape[1], np.int32)
    spiking = np.empty(times.shape[1], np.int32)
    counts = np.empty(bins, np.int32)
    v = np.empty(weight_t.shape[1], weight_t.dtype)
    for b in range(first, end):
        n = sort_events(times[b], t_max, order, spiking, counts)
        if n < 0:
            status[b] = BAD_TIMES
        elif current.size == 0:
            fire_if(order, n, times[b], weight_t, threshold, delay, t_max, v, fired[b], potential[b])
        else:
            fire_if_with_current(
                order, n, times[b], weight_t, current, threshold, delay, t_max, v, fired[b], potential[b]
            )
        if n >= 0 and np.isnan(potential[b]).any():
            status[b] = NAN_POTENTIAL


@jit
def fire_if_with_current(
    order, n, times, weight_t, current, threshold, delay, t_max, v, fired, potential
):  # fmt: skip
    """As `fire_if`, with a constant current per output: V rises on a line between input spikes."""
    v[:] = 0
    fired[:] = np.inf
    k = 0
    t = 0.0
    while t + delay < t_max:
        while k < n and times[order[k]] == t:
            row = weight_t[order[k]]
            for j in range(v.size):
                v[j] += row[j]
            k += 1
        t_next = min(times[order[k]] if k < n else np.inf, t_max - delay)
        for j in range(v.size):
            if fired[j] == np.inf:
                crossing = first_bin_above(v[j], current[j], threshold, t)
                if crossing < t_next:
                    fired[j] = crossing
                    potential[j] = v[j] + current[j] * (crossing + 1)
        t = t_next
    while k < n:
        row = weight_t[order[k]]
        for j in range(v.size):
            v[j] += row[j]
        k += 1
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


def causal_weight_grad(error: Tensor, last: Tensor, times: Tensor, t_max: float) -> Tensor:
    """See `ssnn_plugin.kernels.reference.causal_weight_grad`."""
    n_out, n_in = error.shape[1], times.shape[1]
    if n_out < NARROW:
        grad = error.new_zeros(n_out, n_in)
        _share_out(n_out, _causal_weight_grad_narrow, *_arrays(error, last, times, grad), t_max)
        return grad
    grad_t = error.new_zeros(n_in, n_out)
    _share_out(n_in, _causal_weight_grad, *_arrays(error, last, times, grad_t), t_max)
    return _transpose(grad_t)


@jit
def _causal_weight_grad(first, end, error, last, times, grad_t, t_max):
    zero = error.dtype.type(0)
    for b in range(times.shape[0]):
        e, fired = error[b], last[b]
        latest = latest_with_error(e, fired)
        for i in range(first, end):
            t = times[b, i]
            if t <= latest and t < t_max:
                row = grad_t[i]
                for j in range(e.size):
                    row[j] += e[j] if t <= fired[j] else zero


@jit
def _causal_weight_grad_narrow(first, end, error, last, times, grad, t_max):
    zero = error.dtype.type(0)
    t_max = times.dtype.type(t_max)
    for b in range(times.shape[0]):
        t = times[b]
        for j in range(first, end):
            e, fired = error[b, j], last[b, j]
            if e != 0:
                row = grad[j]
                for i in range(t.size):
                    row[i] += e if (t[i] <= fired) & (t[i] < t_max) else zero


def causal_input_grad(error: Tensor, last: Tensor, times: Tensor, weight: Tensor, t_max: float) -> Tensor:
    """See `ssnn_plugin.kernels.reference.causal_input_grad`."""
    grad = torch.zeros_like(times, memory_format=torch.contiguous_format)
    if error.shape[1] < NARROW:
        arrays = _arrays(error, last, times, weight, grad)
        _share_out(len(times), _causal_input_grad_narrow, *arrays, t_max)
    else:
        arrays = _arrays(error, last, times, _transpose(weight), grad)
        _share_out(len(times), _causal_input_grad, *arrays, t_max)
    return grad


@jit
def _causal_input_grad(first, end, error, last, times, weight_t, grad, t_max):
    zero = error.dtype.type(0)
    for b in range(first, end):
        e, fired = error[b], last[b]
        latest = latest_with_error(e, fired)
        for i in range(times.shape[1]):
            t = times[b, i]
            if t <= latest and t < t_max:
                row = weight_t[i]
                total = zero
                for j in range(e.size):
                    total -= e[j] * row[j] if t <= fired[j] else zero
                grad[b, i] = total


@jit
def _causal_input_grad_narrow(first, end, error, last, times, weight, grad, t_max):
    zero = error.dtype.type(0)
    t_max = times.dtype.type(t_max)
    for b in range(first, end):
        t, g = times[b], grad[b]
        for j in range(error.shape[1]):
            e, fired = error[b, j], last[b, j]
            if e != 0:
                row = weight[j]
                for i in range(t.size):
                    g[i] -= e * row[i] if (t[i] <= fired) & (t[i] < t_max) else zero


@jit
def latest_with_error(error, fired):
    """Latest firing time of an output that has an error: later inputs have none."""
    latest = -np.inf
    for j in range(error.size):
        if error[j] != 0:
            latest = max(latest, fired[j])
    return latest


def _transpose(matrix: Tensor) -> Tensor:
    """Row-major transpose of a matrix, in tiles that fit the cache."""
    matrix = matrix.detach().contiguous()
    transposed = matrix.new_empty(matrix.shape[1], matrix.shape[0])
    tiles = -(-matrix.shape[1] // TILE)
    _share_out(tiles, _transpose_tiles, matrix.numpy(), transposed.numpy())
    return transposed


@jit
def _transpose_tiles(first, end, matrix, transposed):
    rows, columns = matrix.shape
    for i in range(first * TILE, min(end * TILE, columns), TILE):
        for j in range(0, rows, TILE):
            for k in range(i, min(i + TILE, columns)):
                for m in range(j, min(j + TILE, rows)):
                    transposed[k, m] = matrix[m, k]


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Row-major NumPy views, or copies where a tensor is laid out otherwise."""
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)


def _share_out(work: int, kernel: Callable[..., None], *args: Any) -> None:
    """Run `kernel(first, last, *args)` over ranges of 0 ... work, on as many threads as torch uses.

    Not an OpenMP loop: numba's and torch's pools would spin against each other for the cores.
    """
    threads = max(1, min(torch.get_num_threads(), work))
    if threads == 1:
        kernel(0, work, *args)
        return
    pool = _pools.get(threads) or _pools.setdefault(threads, ThreadPoolExecutor(threads - 1))
    bounds = [work * i // threads for i in range(threads + 1)]
    others = [pool.submit(kernel, bounds[i], bounds[i + 1], *args) for i in range(1, threads)]
    kernel(bounds[0], bounds[1], *args)
    for other in others:
        other.result()
