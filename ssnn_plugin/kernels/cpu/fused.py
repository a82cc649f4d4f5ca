"""What a training step of a whole network takes beside the kernels of its layers: errors and updates."""

from __future__ import annotations

import math

from .compile import jit
from .errors import normalize_rows


@jit
def unit_errors(first, end, grads, crossings, last, norm, errors, until, until_bits):
    """Write the gradients of spike times as errors of a norm, and before when an input counts for them.

    One at the crossing does; `last` stands for the crossing of a silent neuron, for which none counts if that
    is `inf`. With a norm of 0 errors are the gradients. `until_bits` is `until` as whole numbers.
    """
    if norm > 0:
        normalize_rows(grads[first:end], norm, errors[first:end])
    else:
        errors[first:end] = grads[first:end]
    for b in range(first, end):
        for j in range(grads.shape[1]):
            until[b, j] = min(crossings[b, j], last) + grads.dtype.type(0)  # -0.0 has another next number
        for j in range(grads.shape[1]):
            until_bits[b, j] += 1


@jit
def sgd(first, end, weights, grads, rate, decay):
    """Stochastic gradient descent on the rows `first` ... `end` of weights, as `torch.optim.SGD`."""
    number = weights.dtype.type
    rate, decay = number(rate), number(decay)
    for i in range(first, end):
        for j in range(weights.shape[1]):
            weights[i, j] -= rate * (grads[i, j] + decay * weights[i, j])


@jit
def adam(first, end, weights, grads, means, squares, rate, betas, eps, decay, decoupled, step):
    """Adam on the rows `first` ... `end` of weights, as `torch.optim.Adam`; `decoupled` as `AdamW`."""
    number = weights.dtype.type
    length = number(rate / (1 - betas[0] ** step))
    root, eps = number(math.sqrt(1 - betas[1] ** step)), number(eps)
    new_mean, new_square = number(1 - betas[0]), number(1 - betas[1])
    kept = number(1 - rate * decay if decoupled else 1)
    coupled = number(0 if decoupled else decay)
    for i in range(first, end):
        for j in range(weights.shape[1]):
            grad = grads[i, j] + coupled * weights[i, j]
            means[i, j] += new_mean * (grad - means[i, j])
            squares[i, j] += new_square * (grad * grad - squares[i, j])
            weights[i, j] = kept * weights[i, j] - length * means[i, j] / (
                math.sqrt(squares[i, j]) / root + eps
            )
