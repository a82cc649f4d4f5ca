"""Post-synaptic potentials that make a neuron a linear system with two states.

An input spike of weight w adds w to a synaptic current I; between spikes the pair (V, I) moves on
by itself. With K the response to one spike, V(t) = sum_i w_i K(t - t_i) over the spikes before t,
and every K here is a sum of two products,

    K(t - s) = p(t) a(s) - q(t) b(s),

so that V = p A - q B with the sums A = sum_i w_i a(t_i) and B = sum_i w_i b(t_i) over the causal
set, and dK/dt = p'(t) a(s) - q'(t) b(s). That is all that the gradients need.

| psp         | K(s)                              | neuron |
|-------------|-----------------------------------|--------|
| RAMP        | s                                 | Zhang et al. 2021 (ReL-PSP)         |
| EXPONENTIAL | 1 - exp(-s / tau)                 | Mostafa 2018                        |
| ALPHA       | s / tau exp(-s / tau)             | Comsa 2020; Göltz 2021, tau_mem = tau_syn |
| DOUBLE      | exp(-s / (2 tau)) - exp(-s / tau) | Göltz 2021, tau_mem = 2 tau, tau_syn = tau |
"""

from __future__ import annotations

import torch
from torch import Tensor

RAMP, EXPONENTIAL, ALPHA, DOUBLE = range(4)


def input_factors(psp: int, tau: float, times: Tensor) -> tuple[Tensor, Tensor]:
    """a and b at finite times."""
    if psp == RAMP:
        return torch.ones_like(times), times
    if psp == EXPONENTIAL:
        return torch.ones_like(times), (times / tau).exp()
    if psp == ALPHA:
        a = (times / tau).exp()
        return a, a * times / tau
    a = (times / (2 * tau)).exp()
    return a, a.square()


def output_factors(psp: int, tau: float, times: Tensor) -> tuple[Tensor, Tensor]:
    """p and q at finite times."""
    one = torch.ones_like(times)
    if psp == RAMP:
        return times, one
    decay = (-times / tau).exp()
    if psp == EXPONENTIAL:
        return one, decay
    if psp == ALPHA:
        return decay * times / tau, decay
    return (-times / (2 * tau)).exp(), decay


def output_slopes(psp: int, tau: float, times: Tensor) -> tuple[Tensor, Tensor]:
    """p' and q' at finite times."""
    if psp == RAMP:
        return torch.ones_like(times), torch.zeros_like(times)
    decay = (-times / tau).exp() / tau
    if psp == EXPONENTIAL:
        return torch.zeros_like(times), -decay
    if psp == ALPHA:
        return decay * (1 - times / tau), -decay
    return (-times / (2 * tau)).exp() / (-2 * tau), -decay
