"""A window of currents through single-spike neurons, one compiled pass each way; see `kernels.window`."""

from __future__ import annotations

import torch
from torch import Tensor

from .compile import exact_jit
from .parallel import as_arrays


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


def leaky_sum(currents: Tensor, beta: float) -> Tensor:
    """See `ssnn_plugin.kernels.window`."""
    potentials = torch.empty_like(currents, memory_format=torch.contiguous_format)
    shape = len(currents), currents[0].numel()
    _run_leaky_sum(*as_arrays(currents.reshape(shape), potentials.reshape(shape)), beta)
    return potentials


@exact_jit
def _run_leaky_sum(currents, potentials, beta):
    factor = potentials.dtype.type(beta)
    potentials[0] = currents[0]
    for t in range(1, currents.shape[0]):
        for n in range(currents.shape[1]):
            potentials[t, n] = factor * potentials[t - 1, n] + currents[t, n]
