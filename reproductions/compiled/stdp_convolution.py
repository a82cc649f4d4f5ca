"""An unsupervised convolution that learns by STDP, one patch at a time; see `features.stdp`."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def learn_patches(times, rows, columns, weight, thresholds, rate, amount, steepness, target, lowest):
    """Learn from one patch of every image; times [samples, channels, height, width], 1 is silence.

    Weights [inputs, filters]: inputs are those of a patch, channel by channel, row by row.
    """
    channels, filters = times.shape[1], weight.shape[1]
    size = int(math.sqrt(len(weight) // channels))
    patch, v = np.empty(len(weight)), np.empty(filters)
    for n in range(len(times)):
        position = 0
        for c in range(channels):
            for y in range(size):
                for x in range(size):
                    patch[position] = times[n, c, rows[n] + y, columns[n] + x]
                    position += 1
        winner, at = first_to_fire(patch, weight, thresholds, v)
        if winner < 0:
            continue
        for k in range(filters):
            change = rate if k == winner else -rate / (filters - 1)
            thresholds[k] = max(thresholds[k] - rate * (at - target) + change, lowest)
        for i in range(len(patch)):
            w = weight[i, winner]
            if patch[i] <= at:
                w += amount * math.exp(-steepness * w)
            else:
                w -= amount * math.exp(steepness * (w - 1))
            weight[i, winner] = min(max(w, 0.0), 1.0)


@njit(cache=True, nogil=True)
def first_to_fire(patch, weight, thresholds, v):
    """The filter whose potential first exceeds its threshold, spike by spike, and when; -1 if none does."""
    v[:] = 0.0
    for i in np.argsort(patch, kind="mergesort"):
        if patch[i] >= 1:
            break
        for k in range(len(v)):
            v[k] += weight[i, k]
        for k in range(len(v)):
            if v[k] > thresholds[k]:
                return k, patch[i]
    return -1, 1.0


@njit(cache=True, nogil=True)
def first_spikes(times, weight, thresholds, window, out):
    """Earliest spike in each pool of every filter, [samples, filters, rows, columns]; 1 is silence."""
    samples, channels, height, width = times.shape
    filters = weight.shape[1]
    size = int(math.sqrt(len(weight) // channels))
    v = np.empty((height - size + 1, width - size + 1, filters))
    fired = np.empty(v.shape, dtype=np.bool_)
    out[:] = 1.0
    for n in range(samples):
        v[:] = 0.0
        fired[:] = False
        flat = times[n].copy().reshape(-1)
        for event in np.argsort(flat, kind="mergesort"):
            t = flat[event]
            if t >= 1:
                break
            c, y, x = event // (height * width), event // width % height, event % width
            for row in range(max(y - size + 1, 0), min(y + 1, v.shape[0])):
                for column in range(max(x - size + 1, 0), min(x + 1, v.shape[1])):
                    i = (c * size + y - row) * size + x - column
                    for k in range(filters):
                        v[row, column, k] += weight[i, k]
                    if row // window >= out.shape[2] or column // window >= out.shape[3]:
                        continue
                    for k in range(filters):
                        if v[row, column, k] >= thresholds[k] and not fired[row, column, k]:
                            fired[row, column, k] = True
                            place = n, k, row // window, column // window
                            out[place] = min(out[place], t)
