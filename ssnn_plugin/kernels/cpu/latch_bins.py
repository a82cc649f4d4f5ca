"""Compiled passes over the bins of a window, [bins, neurons]: the latch of a spike, and its gradients.

Neurons are taken in blocks that stay in the cache, and the innermost loop runs over neighbours, so that
it is vectorised. Half-precision numbers come as their bits (`uint16`) and are computed in single precision.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from .compile import chosen, exact_jit

# Neurons per block: a few rows of them fit the first level of the cache.
BLOCK = 512


def _single(half):
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)


def _nearest(array, number):
    """Of halves, ties to even."""
    bits = np.float32(number).view(np.uint32)
    tie = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + tie) >> np.uint32(16))


# A number as it is computed with; a number as an array holds it.
_number = chosen(lambda stored: _single if stored == types.uint16 else lambda stored: stored, inline="always")
_stored = chosen(
    lambda array: _nearest if array.dtype == types.uint16 else lambda array, number: number, inline="always"
)


@chosen
def _scratch(v):
    """Room for a block of neurons, in the precision of the computation, and a row more than bins."""
    dtype = np.float64 if v.dtype == types.float64 else np.float32
    return lambda v: np.empty((v.shape[0] + 1, BLOCK), dtype)


@exact_jit
def latch(first, last, v, threshold, out):
    """1 from the first bin on in which V exceeds the threshold."""
    zero, one = _stored(out, 0.0), _stored(out, 1.0)
    for low in range(first, last, BLOCK):
        high = min(low + BLOCK, last)
        before = v[0, low:high]
        for t in range(v.shape[0]):
            now, potential = out[t, low:high], v[t, low:high]
            if t == 0:
                for i in range(now.size):
                    now[i] = one if _number(potential[i]) > threshold else zero
            else:
                for i in range(now.size):
                    now[i] = one if (before[i] != zero) | (_number(potential[i]) > threshold) else zero
            before = now


@exact_jit
def _collect(low, high, v, grad, sums):
    """At each bin in which V is higher than ever before: the gradients until it is so again; else 0.

    `sums` has a row more than there are bins, for what is collected.
    """
    bins, size = v.shape[0], high - low
    collected, highest, potential = sums[bins], sums[0], v[0, low:high]
    for i in range(size):
        now = _number(potential[i])
        highest[i] = now if now == now else -np.inf  # NaN does not fire
    for t in range(1, bins):
        highest, before, potential = sums[t], sums[t - 1], v[t, low:high]
        for i in range(size):
            now = _number(potential[i])
            highest[i] = now if now > before[i] else before[i]
    collected[:] = 0
    for t in range(bins - 1, 0, -1):
        highest, before, incoming = sums[t], sums[t - 1], grad[t, low:high]
        for i in range(size):
            total = collected[i] + _number(incoming[i])
            record = highest[i] > before[i]
            highest[i] = total if record else 0
            collected[i] = 0 if record else total
    highest, incoming = sums[0], grad[0, low:high]
    for i in range(size):
        highest[i] = collected[i] + _number(incoming[i])


@exact_jit
def latch_grad(first, last, v, grad, out):
    """The gradient of the running maximum of V."""
    sums = _scratch(v)
    for low in range(first, last, BLOCK):
        high = min(low + BLOCK, last)
        _collect(low, high, v, grad, sums)
        for t in range(v.shape[0]):
            row, total = out[t, low:high], sums[t]
            for i in range(row.size):
                row[i] = _stored(out, total[i])


@exact_jit
def latch_grad_arctan(first, last, v, grad, threshold, sharpness, out):
    """The same times the derivative of an arctan at V - threshold."""
    sums = _scratch(v)
    one = sums.dtype.type(1)
    scale, half = sums.dtype.type(0.5 * math.pi) * sharpness, sums.dtype.type(0.5) * sharpness
    for low in range(first, last, BLOCK):
        high = min(low + BLOCK, last)
        _collect(low, high, v, grad, sums)
        for t in range(v.shape[0]):
            row, potential, total = out[t, low:high], v[t, low:high], sums[t]
            for i in range(row.size):
                u = scale * (_number(potential[i]) - threshold)
                row[i] = _stored(out, total[i] * half / (one + u * u))


@exact_jit
def latch_grad_triangle(first, last, v, grad, threshold, width, out):
    """The same times a triangle of unit area around the threshold."""
    sums = _scratch(v)
    zero, one = sums.dtype.type(0), sums.dtype.type(1)
    scale = one / width
    for low in range(first, last, BLOCK):
        high = min(low + BLOCK, last)
        _collect(low, high, v, grad, sums)
        for t in range(v.shape[0]):
            row, potential, total = out[t, low:high], v[t, low:high], sums[t]
            for i in range(row.size):
                left = one - scale * abs(_number(potential[i]) - threshold)
                row[i] = _stored(out, zero if left <= zero else total[i] * scale * left)  # NaN stays


@exact_jit
def latch_grad_escape(first, last, v, grad, threshold, width, out):
    """Escape noise: V of a bin lowers the survival of every bin from there on."""
    survival = _scratch(v)
    one = survival.dtype.type(1)
    scale = one / width
    for low in range(first, last, BLOCK):
        high = min(low + BLOCK, last)
        later = survival[v.shape[0]]
        later[:] = 0
        for t in range(v.shape[0]):
            now, before, potential = survival[t], survival[max(t - 1, 0)], v[t, low:high]
            for i in range(potential.size):
                stays = one / (one + math.exp(scale * (_number(potential[i]) - threshold)))
                now[i] = stays if t == 0 else stays * before[i]
        for t in range(v.shape[0] - 1, -1, -1):
            row, potential, incoming, now = out[t, low:high], v[t, low:high], grad[t, low:high], survival[t]
            for i in range(row.size):
                later[i] += _number(incoming[i]) * now[i]
                fires = one / (one + math.exp(scale * (threshold - _number(potential[i]))))
                row[i] = _stored(out, later[i] * fires * scale)
