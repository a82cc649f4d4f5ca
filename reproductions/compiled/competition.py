"""S2-STDP and its relatives, one sample at a time; see `methods.s2stdp`."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from ssnn_plugin.kernels.cpu.compile import compiled, exact_jit

WINDOW = 1.0
RULES = "s2stdp", "sstdp", "s4nn", "r-stdp"
AROUND_MEAN, _, AFTER_FIRST, REWARD = range(len(RULES))


class Rule(NamedTuple):
    """What a compiled call learns by."""

    kind: int
    gap: float
    plus: float
    minus: float
    anti_plus: float
    anti_minus: float
    per_class: int
    non_target: int
    first_of_class: bool
    low: float
    high: float
    mass: float  # of a neuron's weights, which is kept; 0 where it is not


class Inputs(NamedTuple):
    """Samples in the form that they are run in: of each, all times, and which inputs fire, in order."""

    times: np.ndarray  # [samples, inputs]; 1 is silence
    order: np.ndarray  # [samples, inputs]; the first `fired` of a row count
    fired: np.ndarray  # [samples]

    @classmethod
    def of(cls, times: np.ndarray) -> Inputs:
        """Sorted once, for all epochs."""
        order = np.empty(times.shape, np.min_scalar_type(times.shape[1]))
        fired = np.empty(len(times), dtype=np.int64)
        sort(times, order, fired)
        return cls(times, order, fired)

    def part(self, start: int, stop: int) -> Inputs:
        """Some of the samples."""
        return Inputs(*(array[start:stop] for array in self))


@exact_jit
def sort(times, order, fired):
    """Inputs of each sample in the order of their spikes, those of one time as they come."""
    for n in range(len(times)):
        spikes = np.flatnonzero(times[n] < WINDOW)
        fired[n] = len(spikes)
        order[n, : len(spikes)] = spikes[np.argsort(times[n][spikes], kind="mergesort")]


@exact_jit
def fire(order, times, weight, thresholds, out, v):
    """Spike times and potentials of one sample: inputs in order, weights [neurons, inputs]; 1 is silence.

    Inputs of one time count together; the last input fires no one (both as in the authors' code).
    """
    last = len(order) - 1
    for j in range(len(out)):
        potential, threshold, of_neuron = 0.0, thresholds[j], weight[j]
        out[j], current = WINDOW, times[order[0]] if len(order) else WINDOW
        for n in range(len(order)):
            t = times[order[n]]
            if potential > threshold and (t != current or n == last):
                out[j] = current
                break
            current = t
            potential += of_neuron[order[n]]
        v[j] = potential


@exact_jit
def earlier(a, b, out, v):
    """Whether neuron a decides against b: it fires first, or with the higher potential."""
    return out[a] < out[b] or (out[a] == out[b] and v[a] > v[b])


@exact_jit
def first_of(start, stop, out, v):
    best = start
    for j in range(start + 1, stop):
        if earlier(j, best, out, v):
            best = j
    return best


@exact_jit
def choose(out, v, dropped, rule, updated):
    """Mark who is updated: all, the first of each class, or of all; the losers of a class are silenced."""
    updated[:] = ~dropped
    if rule.kind == REWARD:
        updated[:] = False
        best = first_of(0, len(out), out, v)
        updated[best] = not dropped[best]
    elif rule.first_of_class:
        for start in range(0, len(out), rule.per_class):
            best = first_of(start, start + rule.per_class, out, v)
            for j in range(start, start + rule.per_class):
                if j != best:
                    updated[j], out[j] = False, WINDOW


@exact_jit
def find_errors(out, label, updated, accuracy, rule, error):
    """How much too late each updated neuron is; of R-STDP, the factor of what it changes by."""
    target = np.zeros(len(out), dtype=np.bool_)
    target[label * rule.per_class + rule.non_target : (label + 1) * rule.per_class] = True
    if rule.kind == REWARD:
        for j in range(len(out)):
            error[j] = (1 - accuracy if target[j] else accuracy) if updated[j] else 0.0
        return
    base, fired, earliest, count = 0.0, 0, WINDOW, 0
    for j in range(len(out)):
        count += updated[j]
        if updated[j] and out[j] < WINDOW:
            base, fired, earliest = base + out[j], fired + 1, min(earliest, out[j])
    if count == 0:
        error[:] = 0.0
        return
    targets = 1 if rule.first_of_class else rule.per_class
    if rule.kind == AFTER_FIRST:
        before, after = 0.0, rule.gap
        base = min(earliest, WINDOW - rule.gap)
    else:
        before, after = rule.gap * (count - targets) / count, rule.gap * targets / count
        base = min(base / fired, WINDOW - after) if fired else WINDOW - after
    for j in range(len(out)):
        wanted = base - before if target[j] else base + after
        if rule.kind != AROUND_MEAN:
            wanted = min(out[j], wanted) if target[j] else max(out[j], wanted)
        error[j] = out[j] - wanted if updated[j] else 0.0
    if rule.kind == AFTER_FIRST:
        norm = math.sqrt((error * error).sum())
        if norm > 0:
            error /= norm


@exact_jit
def change_weights(times, weight, out, updated, error, right, rule):
    """STDP of the updated neurons, within the range of weights; the mass of each is kept if it should be."""
    plus, minus = rule.plus, rule.minus
    if rule.kind == REWARD and not right:
        plus, minus = rule.anti_plus, rule.anti_minus
    for j in np.flatnonzero(updated):
        mass = change(times, weight[j], out[j], error[j] * plus, error[j] * minus, rule.low, rule.high)
        if rule.mass > 0 and mass > 0:
            weight[j] *= rule.mass / mass


@partial(compiled, fastmath={"reassoc", "nnan", "nsz"})  # so that it runs on vectors
def change(times, weight, at, before, after, low, high):
    """Change a neuron's weights, of inputs up to its spike and after it; return the sum of their sizes."""
    mass = 0.0
    for i in range(len(times)):
        w = weight[i] + (before if times[i] <= at else after)
        weight[i] = min(max(w, low), high)
        mass += abs(weight[i])
    return mass


@exact_jit
def compete(out, v, label, rate, floor, raised, rule):
    """Raise the threshold of the label's neuron that fired first, lower those of its other neurons."""
    start, stop = label * rule.per_class + rule.non_target, (label + 1) * rule.per_class
    size = stop - start
    if size < 2:
        return
    winner = first_of(start, stop, out, v)
    for j in range(start, stop):
        raised[j] += rate * (size - 1) / size if j == winner else -rate / size
        raised[j] = max(raised[j], floor)


@exact_jit
def learn(inputs, labels, weight, thresholds, raised, rate, floor, one, dropped, accuracy, rule, fired):
    """Samples right, and the sum of the squared errors; `fired` counts the spikes of every neuron."""
    neurons = len(weight)
    out, v, error = np.empty(neurons), np.empty(neurons), np.empty(neurons)
    updated = np.empty(neurons, dtype=np.bool_)
    right, loss = 0, 0.0
    for n in range(len(labels)):
        label, times, order = labels[n], inputs.times[n], inputs.order[n, : inputs.fired[n]]
        current = raised.copy() if one else thresholds.copy()
        start, stop = label * rule.per_class + rule.non_target, (label + 1) * rule.per_class
        current[start:stop] = raised[start:stop]
        for j in range(neurons):
            if dropped[n, j]:
                current[j] = np.inf
        fire(order, times, weight, current, out, v)
        for j in range(neurons):
            if dropped[n, j]:
                v[j] = -np.inf
        fired += out < WINDOW
        best = first_of(0, neurons, out, v)
        is_right = best // rule.per_class == label
        right += is_right
        if rate > 0:
            compete(out, v, label, rate, floor, raised, rule)
        choose(out, v, dropped[n], rule, updated)
        find_errors(out, label, updated, accuracy, rule, error)
        if rule.kind == REWARD:
            is_right = is_right and best % rule.per_class >= rule.non_target
        change_weights(times, weight, out, updated, error, is_right, rule)
        loss += 0.5 * (error * error).sum()
    return right, loss


@exact_jit
def run(inputs, weight, thresholds, out, v):
    """Spike times and potentials [samples, neurons]."""
    for n in range(len(out)):
        order = inputs.order[n, : inputs.fired[n]]
        fire(order, inputs.times[n], weight, thresholds, out[n], v[n])
