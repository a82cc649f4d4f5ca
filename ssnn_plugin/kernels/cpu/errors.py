"""Compiled errors of spike times: S4NN's targets, and errors of unit norm."""

from __future__ import annotations

import math

import numpy as np

from .compile import jit

# Exponents of factors within the range of single and of double precision.
MOST = 126, 1021


@jit
def relative_targets(times, label, gamma, t_max, targets):
    """S4NN's targets: the label at the earliest time, all others at least `gamma` later."""
    earliest = times.min()
    for j in range(times.size):
        targets[j] = times[j]
        if times[j] - earliest < gamma:
            targets[j] = min(earliest + gamma, t_max)
    targets[label] = earliest
    if earliest == t_max:
        targets[label] = t_max - gamma


@jit
def relative_errors(times, labels, gamma, t_max, errors, losses):
    """Errors (t - target) / t_max, and half the sum of their squares in each sample.

    Returns whether all times and labels are valid, and whether any neuron fired.
    """
    n_classes, number, fired = times.shape[1], times.dtype.type, False
    filled, targets = np.empty(n_classes, times.dtype), np.empty(n_classes, times.dtype)
    for b in range(len(times)):
        for j in range(n_classes):
            if not times[b, j] >= 0:
                return False, fired
            filled[j] = min(times[b, j], number(t_max))
            fired |= filled[j] < number(t_max)
        if not 0 <= labels[b] < n_classes:
            return False, fired
        relative_targets(filled, labels[b], number(gamma), number(t_max), targets)
        loss = number(0)
        for j in range(n_classes):
            errors[b, j] = (filled[j] - targets[j]) / number(t_max)
            loss += errors[b, j] * errors[b, j]
        losses[b] = loss / 2
    return True, fired


@jit
def normalize_rows(rows, factor, unit):
    """Write each row with the norm `factor`; one of zeros stays."""
    number, most = rows.dtype.type, MOST[rows.itemsize // 8]
    bound = number(math.ldexp(1.0, most - 53))
    for b in range(len(rows)):
        square = square_of(rows[b], number(1))
        if 1 / bound < square < bound:
            by = number(factor) / np.sqrt(square)
            for j in range(rows.shape[1]):
                unit[b, j] = by * rows[b, j]
        else:
            normalize_far(rows[b], number(factor), most, unit[b])


@jit
def normalize_far(row, factor, most, unit):
    """As `normalize_rows`, one row whose squares leave the dtype: by a power of two, which rounds nothing."""
    errors = np.int32(0)
    for j in range(row.size):
        errors += np.int32(row[j] != 0)
    largest = 0.0
    for j in range(row.size if errors > 0 else 0):
        largest = max(largest, abs(row[j]))
    scale = row.dtype.type(math.ldexp(1.0, -min(max(math.frexp(largest)[1], -most), most)))
    norm = np.sqrt(square_of(row, scale)) / factor
    norm = norm if norm != 0 else row.dtype.type(1)
    for j in range(row.size):
        unit[j] = scale * row[j] / norm


@jit
def square_of(row, scale):
    """The squared norm of a row times a number."""
    square = row.dtype.type(0)
    for j in range(row.size):
        square += (scale * row[j]) * (scale * row[j])
    return square
