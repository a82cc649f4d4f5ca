"""S4NN's online protocol as one compiled loop: forward, targets, update, one sample after another.

Sections, equations and names follow Kheradpisheh & Masquelier 2020. Weight decay multiplies every
weight after every sample; here it multiplies one number per layer, which is folded into the
weights when the loop ends, so that its cost does not grow with the network.
"""

from __future__ import annotations

import math

import numpy as np

from .compile import jit
from .errors import MOST, relative_targets
from .events import room_for_events, write_events
from .lanes import any_of, load, splat, store, where
from .steps import MOST_BINS, fire_tiles, write_limits

# Outputs with an error that are gone through one by one.
FEW = 16
# Of the number that all weights of a layer have in common, so that weights stay within their dtype.
SMALLEST = 2.0**-20


@jit
def normalise(error):
    """Divide by the L2 norm in place; False where there is nothing to normalise."""
    square, bound = np.sum(error * error), math.ldexp(1.0, MOST[error.itemsize // 8] - 53)
    if not 1 / bound < square < bound:  # squares leave the dtype, or there are none
        largest = np.max(np.abs(error))
        for j in range(error.size):
            error[j] = error[j] / largest if 0 < largest < np.inf else 0
        square = np.sum(error * error)
    norm = math.sqrt(square)
    for j in range(error.size):
        error[j] = error[j] / norm if norm > 0 else 0
    return norm > 0


@jit
def update(rows, step, events, fired, tile):
    """w_ji -= step_j for every input i that was counted when output j fired.

    Outputs whose `fired` is `inf` are silent: all inputs are causal for them, as in S4NN's code.
    """
    none, stride = splat(rows.dtype.type(0), tile), rows.shape[1]
    for lane in range(0, stride, len(none)):
        steps, last = load(step, lane, tile), load(fired, lane, tile)
        if any_of(steps > none) or any_of(none > steps):
            for k in range(np.uint64(events.ends[0])):
                at = np.int64(events.inputs[k]) * stride + lane
                row = load(rows, at, tile)
                store(rows, at, where(splat(events.when[k], tile) <= last, row - steps, row))


@jit
def backpropagate(rows, error, times, fired, error_in, wrong):
    """Error of the spike times below: sum_j error_j w_ji over the outputs that counted spike i.

    `wrong` is scratch space for the outputs with an error. Those of the last layer are few once the network
    has learned: these are gone through one by one, all of them in vectors where there are many.
    """
    zero, n = error.dtype.type(0), 0
    for j in range(error.size):
        wrong[n] = j
        n += error[j] != 0
    one_by_one = n <= FEW
    for i in range(error_in.size):
        total = zero
        if times[i] < np.inf and not one_by_one:
            row = rows[i]
            for j in range(error.size):
                total += error[j] * row[j] if times[i] <= fired[j] else zero
        elif times[i] < np.inf:
            for k in range(n):
                j = wrong[k]
                total += error[j] * rows[i, j] if times[i] <= fired[j] else zero
        error_in[i] = total


@jit
def layers_of(weights, shapes):
    """Views of the weights of each layer [in, out], which lie one after the other."""
    layers, start = [], 0
    for n_in, n_out in shapes:
        layers.append(weights[start : start + n_in * n_out].reshape(n_in, n_out))
        start += n_in * n_out
    return layers


@jit
def fold(rows, scale):
    """Multiply weights by the number that all of them have in common, which is 1 then."""
    flat = rows.reshape(-1)
    multiply(flat, scale, flat)
    return 1.0


# Loops, as every expression of arrays is compiled for seconds, with the messages of its errors.


@jit
def multiply(array, factor, out):
    """Write an array times a number to another, and zeros behind it."""
    for i in range(out.size):
        out[i] = array[i] * factor if i < array.size else 0


@jit
def send(crossings, times, spikes):
    """Write the times at which the spikes of crossings arrive, a bin later, and count them."""
    for j in range(times.size):
        times[j] = crossings[j] + 1
        spikes[j] += np.int64(times[j] < np.inf)


@jit
def leave_out(times, probability):
    """Leave out spikes at random."""
    for j in range(times.size):
        if times[j] < np.inf and np.random.random() < probability:  # noqa: NPY002
            times[j] = np.inf


@jit
def limit(times, t_max, out):
    """Write times that are at most `t_max`; return the earliest."""
    first = t_max
    for j in range(out.size):
        out[j] = min(times[j], t_max)
        first = min(first, out[j])
    return first


@jit
def s4nn_epoch(
    weights, shapes, sizes, images, labels, sequence, thresholds, rates, decay, gamma, t_max, drop, seed,
    tile,
):  # fmt: skip
    """Train `weights` in place on `images[sequence]`, one at a time.

    Args:
        weights: of all layers, first layer first, in a row: compiled once for any number of layers.
        shapes: [layers, 2], inputs and outputs of each, these padded to whole tiles.
        sizes: outputs of each layer that there are.
        images: [N, in] spike times; labels: [N] whole numbers.
        thresholds, rates, drop: one number per layer; `drop` is the probability that a spike of
            the layer is left out of a training step.

    Returns:
        (spikes of every neuron of every layer, right answers, sum of the losses).
    """
    # Compiled code has NumPy's legacy generator without an object to pass around.
    np.random.seed(seed)  # noqa: NPY002
    layers = layers_of(weights, shapes)
    depth, dtype = len(layers), weights.dtype
    last = dtype.type(t_max)
    scale, status, widest = np.ones(depth), np.zeros(1, np.int8), 0
    times, fired = [images[:1]], [np.empty((1, 0), dtype)]
    for layer in range(depth):
        n_out, width = sizes[layer], layers[layer].shape[1]
        times.append(np.empty((1, n_out), dtype))
        fired.append(np.empty(width, dtype)[:n_out].reshape(1, n_out))  # whole tiles are read
        widest = max(widest, width)
    step, targets, unwritten = np.zeros(widest, dtype), np.empty(sizes[-1], dtype), np.empty((0, 0), dtype)
    decision, wrong = np.empty_like(targets), np.empty(widest, np.uint32)
    errors = [np.zeros(sizes[layer], dtype) for layer in range(depth)]
    events = [room_for_events(times[layer]) for layer in range(depth)]
    most, counts = max(images.shape[1], widest), np.empty(min(math.ceil(t_max), MOST_BINS) + 1, np.int32)
    spiking, limits = np.empty(most, np.int32), np.empty(most, dtype)
    spikes, right, loss = np.zeros((depth, widest), np.int64), 0, 0.0

    for sample in sequence:
        label = labels[sample]
        times[0] = images[sample : sample + 1]
        for layer in range(depth):
            write_events(times[layer], t_max, spiking, counts, status, events[layer])
            write_limits(events[layer], thresholds[layer] / scale[layer], 1, t_max, limits)
            fire_tiles(events[layer], limits, layers[layer], fired[layer + 1], unwritten, status, tile)
            send(fired[layer + 1][0], times[layer + 1][0], spikes[layer])
            if drop[layer] > 0:
                leave_out(times[layer + 1][0], drop[layer])

        first = limit(times[depth][0], last, decision)
        relative_targets(decision, label, gamma, last, targets)
        right += decision[label] == first and decision[label] < last
        for j in range(targets.size):
            errors[-1][j] = (targets[j] - decision[j]) / t_max
            loss += 0.5 * errors[-1][j] * errors[-1][j]

        for layer in range(depth - 1, -1, -1):
            error, crossings = errors[layer], fired[layer + 1][0]
            if normalise(error):
                multiply(error, rates[layer] / scale[layer], step)
                update(layers[layer], step, events[layer], crossings, tile)
            scale[layer] *= 1 - rates[layer] * decay
            if scale[layer] < SMALLEST:
                scale[layer] = fold(layers[layer], scale[layer])
            if layer > 0:
                backpropagate(layers[layer], error, times[layer][0], crossings, errors[layer - 1], wrong)

    for layer in range(depth):
        fold(layers[layer], scale[layer])
    return spikes, right, loss
