"""A window of currents through single-spike neurons, as registered operators.

`single_spike_window(currents, start, beta, threshold) -> (spikes, potentials)`
    `currents` [T, *], the others [*]. V of each bin, and the first bin in which it exceeds the
    threshold; from there on it is held.
`single_spike_window_grad(grad_spikes, grad_potentials, potentials, start, threshold) -> (grad, grad_start)`
    The latency rule: what V of a bin is worth to all later ones, and dS/dV = 1 at the spike; a current
    after the spike is worth nothing.
`leaky_sum(currents, beta) -> potentials`
    V of each bin [T, *] as if nothing fired, from rest. It is its own gradient, backwards in time.

On the CPU each is one compiled pass in single and double precision; elsewhere, and in half precision, a scan
whose reach doubles in each of log2(T) passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .registration import over_neurons, register


def accumulate(currents: Tensor, start: Tensor, beta: Tensor | float) -> Tensor:
    """V of every bin as if nothing fired; the reach of each pass is twice that of the one before."""
    v = torch.cat([(beta * start + currents[0]).unsqueeze(0), currents[1:]])
    reach = 1
    while reach < len(v):
        v = torch.cat([v[:reach], v[reach:] + beta**reach * v[:-reach]])
        reach *= 2
    return v


def bins_alive(free: Tensor, start: Tensor, threshold: Tensor | float) -> Tensor:
    """Which bins a neuron is alive in: up to and including that of its spike."""
    above = free > threshold
    earlier = above.to(torch.int32).cumsum(0) - above.to(torch.int32)
    return (earlier == 0) & ~(start > threshold)


def hold(free: Tensor, start: Tensor, alive: Tensor) -> Tensor:
    """Keep the potential of a neuron that has fired."""
    count = alive.sum(0)
    at_crossing = free.gather(0, (count - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
    return torch.where(alive, free, torch.where(count > 0, at_crossing, start))


def plain_window(currents: Tensor, start: Tensor, beta: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """`single_spike_window` in plain torch, for any device and for exporters."""
    free = accumulate(currents, start, beta)
    alive = bins_alive(free, start, threshold)
    return ((free > threshold) & alive).to(currents.dtype), hold(free, start, alive)


def _window_grad(
    grad_spikes: Tensor, grad_potentials: Tensor, potentials: Tensor, start: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    spent = torch.cat([start.unsqueeze(0), potentials[:-1]]) > threshold
    at_spike = (potentials > threshold) & ~spent
    total = (grad_spikes * at_spike + grad_potentials).flip(0).cumsum(0).flip(0)
    return total.masked_fill(spent, 0), total[0].clone()


def _leaky_sum(currents: Tensor, beta: float) -> Tensor:
    return accumulate(currents, torch.zeros_like(currents[0]), beta)


def _register(reference: Callable[..., Any], name: str, fake: Callable[..., Any]) -> Any:
    return over_neurons(register(reference, name, "window", _checks.DTYPES, fake))


def _room_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


single_spike_window = _register(
    plain_window, "single_spike_window", lambda currents, *args: (_room_like(currents), _room_like(currents))
)
single_spike_window_grad = _register(
    _window_grad,
    "single_spike_window_grad",
    lambda a, b, potentials, start, threshold: (_room_like(potentials), _room_like(start)),
)
leaky_sum = _register(_leaky_sum, "leaky_sum", lambda currents, beta: _room_like(currents))
