"""What a training step of a whole network takes beside the kernels of its layers: errors and updates."""

from __future__ import annotations

import math

import numpy as np

from .compile import jit
from .errors import MOST, normalize_rows

# The smallest normal numbers of float32 and float64.
TINY = tuple(float(np.finfo(dtype).tiny) for dtype in (np.float32, np.float64))


@jit
def take_errors(first, end, grads, normalize, norm, errors, crossings, last, until, bits):
    """Write before when inputs count, and, if so asked, the gradients of spike times as errors of this norm.

    The first as `IF.until`: `last` stands for the crossing of a silent neuron, `bits` are the whole numbers
    in the memory of `until`.
    """
    if normalize:
        normalize_rows(grads[first:end], norm, errors[first:end])
    smallest = until.dtype.type(TINY[until.itemsize // 8])
    for b in range(first, end):
        for j in range(crossings.shape[1]):
            until[b, j] = min(crossings[b, j], last) + smallest
        for j in range(crossings.shape[1]):
            bits[b, j] += 1


@jit
def sgd(first, end, weights, grads, rate, decay):
    """Stochastic gradient descent on the rows `first` ... `end` of weights, as `torch.optim.SGD`."""
    number = weights.dtype.type
    rate, decay = number(rate), number(decay)
    for i in range(first, end):
        for j in range(weights.shape[1]):
            weights[i, j] -= rate * (grads[i, j] + decay * weights[i, j])


@jit
def adam(first, end, weights, grads, means, squares, step, rate, betas, eps, decay, decoupled):
    """Adam on the rows `first` ... `end` of weights, as `torch.optim.Adam`; `decoupled` as `AdamW`.

    Moments that are close to the smallest normal number become 0: arithmetic below it takes a hundred times
    as long, and means come to that within a thousand steps without a gradient.
    """
    number = weights.dtype.type
    smallest = number(math.ldexp(1.0, -MOST[weights.itemsize // 8]))
    smallest_mean = smallest * number(2**26)  # so that its product with a step size is a normal number
    length = number(rate / (1 - betas[0] ** step))
    root, eps = number(math.sqrt(1 - betas[1] ** step)), number(eps)
    (old_mean, new_mean), (old_square, new_square) = [(number(beta), number(1 - beta)) for beta in betas]
    kept = number(1 - rate * decay if decoupled else 1)
    coupled = number(0 if decoupled else decay)
    for i in range(first, end):
        for j in range(weights.shape[1]):
            grad = grads[i, j] + coupled * weights[i, j]
            mean = old_mean * means[i, j] + new_mean * grad
            square = old_square * squares[i, j] + new_square * grad * grad
            means[i, j] = number(0) if abs(mean) < smallest_mean else mean
            squares[i, j] = number(0) if square < smallest else square
            weights[i, j] = kept * weights[i, j] - length * means[i, j] / (
                math.sqrt(squares[i, j]) / root + eps
            )
