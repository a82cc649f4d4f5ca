"""An unsupervised convolution that learns by STDP, one patch at a time; see `features.stdp`.

Weights are [inputs, filters]: the inputs of a patch, channel by channel, row by row. A time of 1 is silence.
"""

from __future__ import annotations

import math

import numpy as np

from ssnn_plugin.kernels.cpu.compile import exact_jit


@exact_jit
def read_patch(times, row, column, size, patch, order):
    """Take the times of a patch, and its inputs in the order of their spikes; return how many fire."""
    fired = position = 0
    for c in range(times.shape[0]):
        for y in range(row, row + size):
            for x in range(column, column + size):
                t = times[c, y, x]
                patch[position] = t
                if t < 1:
                    place = fired
                    while place > 0 and patch[order[place - 1]] > t:
                        order[place] = order[place - 1]
                        place -= 1
                    order[place] = position
                    fired += 1
                position += 1
    return fired


@exact_jit
def learn_patches(times, rows, columns, weight, thresholds, rate, amount, steepness, target, lowest):
    """Learn from one patch of every image; times [samples, channels, height, width]."""
    filters, size = weight.shape[1], patch_size(times, weight)
    patch, order = np.empty(len(weight)), np.empty(len(weight), dtype=np.int64)
    v = np.empty(filters)
    for n in range(len(times)):
        fired = read_patch(times[n], rows[n], columns[n], size, patch, order)
        winner, at = first_to_fire(patch, order[:fired], weight, thresholds, v)
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


@exact_jit
def patch_size(times, weight):
    """Width of the square patches that the weights are for."""
    return round(math.sqrt(len(weight) // times.shape[1]))


@exact_jit
def first_to_fire(patch, order, weight, thresholds, v):
    """The filter whose potential first exceeds its threshold, spike by spike, and when; -1 if none does."""
    v[:] = -thresholds
    for i in order:
        fires = False
        for k in range(len(v)):
            v[k] += weight[i, k]
            fires |= v[k] > 0
        if fires:
            for k in range(len(v)):
                if v[k] > 0:
                    return k, patch[i]
    return -1, patch.dtype.type(1)


@exact_jit
def first_spikes(times, weight, thresholds, window, out):
    """Earliest spike in each pool of every filter, [samples, rows, columns, filters]."""
    size, (height, width) = patch_size(times, weight), times.shape[2:]
    rows = min(height - size + 1, window * out.shape[1])
    columns = min(width - size + 1, window * out.shape[2])
    spikes = np.empty((rows, columns, len(weight)), dtype=np.int64)
    moments = np.empty((rows, columns, len(weight)), times.dtype)
    fired = np.empty((rows, columns), dtype=np.int64)
    v = np.empty_like(thresholds)
    out[:] = 1
    for n in range(len(times)):
        share_out(times[n], size, spikes, moments, fired)
        for row in range(rows):
            for column in range(columns):
                v[:] = 0
                first = out[n, row // window, column // window]
                for place in range(fired[row, column]):
                    i, t = spikes[row, column, place], moments[row, column, place]
                    for k in range(len(v)):
                        v[k] += weight[i, k]
                        first[k] = min(first[k], t if v[k] >= thresholds[k] else first[k])


@exact_jit
def share_out(times, size, spikes, moments, fired):
    """Give every patch its spikes in order, as numbers of its inputs and times; sorted once for them all."""
    height, width = times.shape[1:]
    rows, columns = fired.shape
    flat = times.reshape(-1)
    places = np.flatnonzero(flat < 1)
    fired[:] = 0
    for place in places[np.argsort(flat[places], kind="mergesort")]:
        c, y, x = place // (height * width), place // width % height, place % width
        for row in range(max(y - size + 1, 0), min(y + 1, rows)):
            for column in range(max(x - size + 1, 0), min(x + 1, columns)):
                last = fired[row, column]
                spikes[row, column, last] = (c * size + y - row) * size + x - column
                moments[row, column, last] = flat[place]
                fired[row, column] = last + 1
