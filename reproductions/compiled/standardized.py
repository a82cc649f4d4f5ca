"""Weights without mean and of a given norm, a neuron after the other; see `methods.every_bin`.

A row is read from memory once, as it then stays in the cache: every pass over a large weight counts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssnn_plugin.kernels.cpu.compile import jit
from ssnn_plugin.kernels.cpu.parallel import share_out


class Standardize(torch.autograd.Function):
    """w = g u / |u|, where u is d without its mean: du = g / |u| (dw - (dw . u) u / |u|^2), centred."""

    @staticmethod
    def forward(ctx: Any, direction: Tensor, gain: Tensor) -> Tensor:
        """Directions [out, *] and gains [out] on the CPU -> weight [out, *]."""
        ctx.save_for_backward(direction, gain)
        weight = torch.empty_like(direction, memory_format=torch.contiguous_format)
        arrays = _rows(direction), gain.detach().numpy(), _rows(weight)
        share_out(len(direction), direction.numel(), standardize, *arrays)
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        direction, gain = ctx.saved_tensors
        direction_grad = torch.empty_like(direction, memory_format=torch.contiguous_format)
        gain_grad = torch.empty_like(gain)
        arrays = _rows(direction), gain.detach().numpy(), _rows(grads[0])
        outputs = _rows(direction_grad), gain_grad.numpy()
        share_out(len(direction), 2 * direction.numel(), standardize_grad, *arrays, *outputs)
        return direction_grad, gain_grad


def _rows(weight: Tensor) -> Any:
    return weight.detach().contiguous().flatten(1).numpy()


@jit
def standardize(first, last, direction, gain, weight):
    """Weights of the neurons `first` ... `last`; all [neurons, inputs], gains [neurons]."""
    for j in range(first, last):
        d, w, mean = direction[j], weight[j], mean_of(direction[j])
        squares = d.dtype.type(0)
        for i in range(len(d)):
            squares += (d[i] - mean) ** 2
        factor = gain[j] / math.sqrt(squares)
        for i in range(len(d)):
            w[i] = factor * (d[i] - mean)


@jit
def standardize_grad(first, last, direction, gain, grad, direction_grad, gain_grad):
    """Gradients of directions and gains for that of the weights, `grad`."""
    for j in range(first, last):
        d, g, out = direction[j], grad[j], direction_grad[j]
        mean, mean_grad = mean_of(d), mean_of(g)
        squares, along = d.dtype.type(0), d.dtype.type(0)
        for i in range(len(d)):
            u = d[i] - mean
            squares += u * u
            along += u * g[i]
        scale = 1 / math.sqrt(squares)
        gain_grad[j] = along * scale
        factor, slope = gain[j] * scale, along / squares
        for i in range(len(d)):
            out[i] = factor * (g[i] - mean_grad - slope * (d[i] - mean))


@jit
def mean_of(row):
    """Of a row, in its precision."""
    total = row.dtype.type(0)
    for value in row:
        total += value
    return total / row.dtype.type(len(row))
