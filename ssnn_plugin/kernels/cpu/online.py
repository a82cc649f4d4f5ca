"""S4NN's online protocol as one compiled loop: forward, targets, update, one sample after another.

Sections, equations and names follow Kheradpisheh & Masquelier 2020. Weight decay multiplies every
weight after every sample; here it multiplies one number per layer, which is folded into the
weights when the loop ends, so that its cost does not grow with the network.
"""

from __future__ import annotations

import math

import numpy as np

from .compile import jit
from .errors import relative_targets
from .events import sort_events
from .steps import fire_if


@jit
def normalise(error):
    """Divide by the L2 norm in place; False where there is nothing to normalise."""
    norm = math.sqrt(np.sum(error * error))
    if norm == 0:
        return False
    error /= norm
    return True


@jit
def update(weight_t, step, times, order, n, fired):
    """w_ji -= step_j for every input i that was counted when output j fired.

    Outputs whose `fired` is `inf` are silent: all inputs are causal for them, as in S4NN's code.
    """
    zero = step.dtype.type(0)
    for k in range(n):
        i = order[k]
        t = times[i]
        row = weight_t[i]
        for j in range(step.size):
            row[j] -= step[j] if t <= fired[j] else zero


@jit
def backpropagate(weight_t, error, times, fired, error_in):
    """Error of the spike times below: sum_j error_j w_ji over the outputs that counted spike i."""
    zero = error.dtype.type(0)
    for i in range(error_in.size):
        total = zero
        t = times[i]
        if t < np.inf:
            row = weight_t[i]
            for j in range(error.size):
                total += error[j] * row[j] if t <= fired[j] else zero
        error_in[i] = total


@jit
def s4nn_epoch(weights_t, images, labels, sequence, thresholds, rates, decay, gamma, t_max, drop, seed):
    """Train `weights_t` in place on `images[sequence]`, one at a time.

    Args:
        weights_t: tuple of [in, out] arrays, first layer first.
        images: [N, in] spike times; labels: [N] whole numbers.
        thresholds, rates, drop: one number per layer; `drop` is the probability that a spike of
            the layer is left out of a training step.

    Returns:
        (spikes of every neuron of every layer, right answers, sum of the losses).
    """
    # Compiled code has NumPy's legacy generator without an object to pass around.
    np.random.seed(seed)  # noqa: NPY002
    depth = len(weights_t)
    dtype = weights_t[0].dtype
    widest = images.shape[1]
    for weight_t in weights_t:
        widest = max(widest, weight_t.shape[1])
    scale = np.ones(depth)
    times = np.empty((depth + 1, widest), dtype)
    fired = np.empty((depth, widest), dtype)
    step = np.empty(widest, dtype)
    v = np.empty((2, widest), dtype)
    order = np.empty((depth, widest), np.int32)
    spiking = np.empty(widest, np.int32)
    n = np.empty(depth, np.int64)
    counts = np.empty(math.ceil(t_max) + 1, np.int32)
    error = np.empty((depth + 1, widest), dtype)
    targets = np.empty(weights_t[-1].shape[1], dtype)
    spikes = np.zeros((depth, widest), np.int64)
    right = 0
    loss = 0.0

    for sample in sequence:
        label = labels[sample]
        times[0, : images.shape[1]] = images[sample]
        for layer in range(depth):
            n_in, n_out = weights_t[layer].shape
            inputs, outputs = times[layer][:n_in], times[layer + 1][:n_out]
            n[layer] = sort_events(inputs, t_max, order[layer], spiking, counts)
            fire_if(
                order[layer], n[layer], inputs, weights_t[layer],
                thresholds[layer] / scale[layer], 1, t_max,
                v[0][:n_out], fired[layer][:n_out], v[1][:n_out],
            )  # fmt: skip
            for j in range(n_out):
                outputs[j] = fired[layer, j] + 1
                if outputs[j] < np.inf:
                    spikes[layer, j] += 1
                    if drop[layer] > 0 and np.random.random() < drop[layer]:  # noqa: NPY002
                        outputs[j] = np.inf

        n_out = targets.size
        decision = np.minimum(times[depth][:n_out], dtype.type(t_max))
        relative_targets(decision, label, gamma, t_max, targets)
        right += decision[label] == decision.min() and decision[label] < t_max
        e = error[depth][:n_out]
        for j in range(n_out):
            e[j] = (targets[j] - decision[j]) / t_max
            loss += 0.5 * e[j] * e[j]

        for layer in range(depth - 1, -1, -1):
            n_in, n_out = weights_t[layer].shape
            e = error[layer + 1][:n_out]
            if not normalise(e):
                e[:] = 0
            else:
                step[:n_out] = e * (rates[layer] / scale[layer])
                update(
                    weights_t[layer], step[:n_out],
                    times[layer][:n_in], order[layer], n[layer], fired[layer][:n_out],
                )  # fmt: skip
            scale[layer] *= 1 - rates[layer] * decay
            if layer > 0:
                backpropagate(
                    weights_t[layer], e, times[layer][:n_in], fired[layer][:n_out], error[layer][:n_in]
                )

    for layer in range(depth):
        weights_t[layer][:] *= scale[layer]
    return spikes, right, loss
