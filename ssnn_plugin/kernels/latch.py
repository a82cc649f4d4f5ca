"""The latch of a spike over the bins of a window, and its gradients, as registered operators.

All take `potentials` [T, *] and return [T, *] of its dtype.

`latch(potentials, threshold)`
    1 from the first bin on in which V exceeds the threshold, else 0.
`latch_grad(potentials, grad)`
    The gradient of max_{s <= t} V(s): what arrives in a bin goes to the bin of the highest V so far,
    the earliest of equals.
`latch_grad_arctan(potentials, grad, threshold, sharpness)`, `latch_grad_triangle(…, width)`
    The same times a surrogate for the derivative of the step, at the V of the bin that it goes to.
`latch_grad_escape(potentials, grad, threshold, width)`
    The gradient of 1 - S(t), where S(t) = prod_{s <= t} sigmoid(-(V(s) - threshold) / width).

On the CPU each is one compiled pass that is linear in T; elsewhere a few passes of plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .registration import over_neurons, register

COMPILED = torch.float32, torch.float64, torch.bfloat16


def _latch(potentials: Tensor, threshold: float) -> Tensor:
    above = potentials > threshold
    return (above.to(torch.int32).cumsum(0) > 0).to(potentials.dtype)


def _latch_grad(potentials: Tensor, grad: Tensor) -> Tensor:
    potentials = potentials.masked_fill(potentials.isnan(), -math.inf)  # NaN does not fire
    before = torch.full_like(potentials[:1], -math.inf)
    highest = torch.cat([before, potentials.cummax(0).values[:-1]])
    bins = torch.arange(len(potentials), device=potentials.device)
    bins = bins.reshape(-1, *[1] * (potentials.ndim - 1)).expand_as(potentials)
    at = torch.where(potentials > highest, bins, 0).cummax(0).values
    return torch.zeros_like(potentials).scatter_add(0, at, grad)


def _latch_grad_arctan(potentials: Tensor, grad: Tensor, threshold: float, sharpness: float) -> Tensor:
    u = 0.5 * math.pi * sharpness * (potentials - threshold)
    return _latch_grad(potentials, grad) * (0.5 * sharpness / (1 + u.square()))


def _latch_grad_triangle(potentials: Tensor, grad: Tensor, threshold: float, width: float) -> Tensor:
    distance = (potentials - threshold).abs() / width
    return _latch_grad(potentials, grad) * ((1 - distance).relu() / width)


def _latch_grad_escape(potentials: Tensor, grad: Tensor, threshold: float, width: float) -> Tensor:
    u = (potentials - threshold) / width
    survival = torch.nn.functional.logsigmoid(-u).cumsum(0).exp()
    later = (grad * survival).flip(0).cumsum(0).flip(0)
    return later * u.sigmoid() / width


def output_like(potentials: Tensor) -> Tensor:
    """Room for an output, laid out as the potentials if their bins lie one after the other in memory."""
    out = torch.empty_like(potentials)
    in_rows = out.stride() == potentials.stride() and out.stride(0) == out[0].numel()
    return out if in_rows else torch.empty_like(potentials, memory_format=torch.contiguous_format)


def _register(reference: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    operator = register(reference, name, "latch", COMPILED, lambda potentials, *args: output_like(potentials))
    return over_neurons(operator)  # type: ignore[no-any-return]


latch = _register(_latch, "latch")
latch_grad = _register(_latch_grad, "latch_grad")
latch_grad_arctan = _register(_latch_grad_arctan, "latch_grad_arctan")
latch_grad_triangle = _register(_latch_grad_triangle, "latch_grad_triangle")
latch_grad_escape = _register(_latch_grad_escape, "latch_grad_escape")
