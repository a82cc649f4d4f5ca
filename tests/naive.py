"""Independent, naive formulations: loops over time steps and neurons, as the papers state them."""

from __future__ import annotations

import numpy as np
import torch


def first_spikes(times, weight, threshold, delay, t_max, bias=None, beta=1.0):
    """Simulate one sample bin by bin: (output times with delay, potential at crossing or at the end)."""
    n_out = weight.shape[0]
    out = np.full(n_out, np.inf)
    potential = np.zeros(n_out)
    for j in range(n_out):
        v = 0.0
        for t in range(int(t_max)):
            v *= beta
            for i in range(weight.shape[1]):
                if times[i] == t:
                    v += weight[j, i]
            if bias is not None:
                v += bias[j]
            if out[j] == np.inf:
                potential[j] = v
                if v > threshold and t + delay < t_max:
                    out[j] = t + delay
    return out, potential


def latency_gradients(times, weight, out, delay, grad_out, t_max):
    """dt_j/dV_j = -1, dV_j/dw_ji = [t_i counted], dV_j/dt_i = -w_ji; a silent neuron has no gradient."""
    grad_weight = np.zeros_like(weight)
    grad_times = np.zeros_like(times)
    for j in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            if np.isfinite(out[j]) and times[i] <= out[j] - delay and times[i] < t_max:
                grad_weight[j, i] = -grad_out[j]
                grad_times[i] += grad_out[j] * weight[j, i]
    return grad_weight, grad_times


def first_spikes_of_trains(current, times, neuron, t_max):
    """As `first_spikes`, for a batch; the affine map `current` takes the spikes of a bin to what they add."""
    v = torch.zeros_like(current(torch.zeros_like(times)))
    spikes, potential = torch.full_like(v, torch.inf), v
    for t in range(t_max):
        v = neuron.beta * v + current((times == t).to(times.dtype))
        waiting = spikes.isinf()
        potential = torch.where(waiting, v, potential)
        if t + neuron.delay < t_max:
            spikes = spikes.masked_fill(waiting & (v > neuron.threshold), t + neuron.delay)
    return spikes, potential


def latency_loss(current, times, spikes, error, neuron, t_max):
    """A number with the gradients of the latency rule, through `current`: the sum of -error V.

    V counts each causal input spike as +w, and as +w more for each bin that it comes earlier. A
    silent neuron (`spikes` is inf) counts the whole window. `error` is dL/dt - dL/dV.
    """
    earlier = times.detach() - times
    bias = current(torch.zeros_like(times))
    crossing = (spikes - neuron.delay).clamp(max=t_max - 1)
    loss = 0.0
    for t in range(t_max):
        v = current((1 + earlier).masked_fill(times > t, 0)) + t * bias
        loss = loss - torch.where(crossing == t, error * v, 0.0).sum()
    return loss


def s4nn_step(weights, image, label, thresholds, rates, decay, gamma, t_max):
    """One sample of Kheradpisheh & Masquelier 2020 with t_max in place of silence; updates in place."""
    layers = [np.minimum(image, t_max)]
    for weight, threshold in zip(weights, thresholds, strict=True):
        out, _ = first_spikes(layers[-1], weight, threshold, 1, t_max)
        layers.append(np.minimum(out, t_max))
    output = layers[-1]
    earliest = output.min()
    target = output.copy()
    for j in range(len(output)):
        if j != label and output[j] - earliest < gamma:
            target[j] = min(earliest + gamma, t_max)
    target[label] = earliest if earliest < t_max else t_max - gamma
    error = (target - output) / t_max
    for k in range(len(weights) - 1, -1, -1):
        weight, t_in, t_out = weights[k], layers[k], layers[k + 1]
        norm = np.sqrt((error**2).sum())
        if norm > 0:
            error = error / norm
        causal = (t_in[None, :] < t_out[:, None]) & (t_in < t_max)[None, :]
        weight -= rates[k] * error[:, None] * causal
        weight -= rates[k] * decay * weight
        error = (error[:, None] * weight * causal).sum(0)
    return layers


def response(neuron):
    """The potential K(s) that a spike of weight 1 leaves behind after a time s; 0 before it."""

    def of_name(s):
        match type(neuron).__name__:
            case "ReLPSP":  # Zhang et al. 2021
                return s
            case "ExpPSP":  # Mostafa 2018: the integral of a current of unit area times tau, over tau
                return 1 - np.exp(-s / neuron.tau)
            case "AlphaPSP":  # Comsa et al. 2020, with K = 1 / tau
                return s * np.exp(-s / neuron.tau)
            case "LIF" if neuron.tau_mem == neuron.tau_syn:  # Göltz et al. 2021
                return s / neuron.tau_syn * np.exp(-s / neuron.tau_syn)
            case "LIF":
                gain = neuron.tau_syn / (neuron.tau_mem - neuron.tau_syn)
                return gain * (np.exp(-s / neuron.tau_mem) - np.exp(-s / neuron.tau_syn))
        raise TypeError(neuron)

    return lambda s: np.where(s > 0, of_name(np.maximum(s, 0)), 0)


def crossing_in_continuous_time(times, weight, bias, neuron, t_max, steps=3000):
    """One sample: (first time with V >= threshold or inf, V at t_max), on a grid, then by bisection."""
    kernel = response(neuron)
    seen = times[times < t_max]
    n_out = len(weight)
    spikes, at_end = np.full(n_out, np.inf), np.zeros(n_out)
    grid = np.unique(np.concatenate([np.linspace(0, t_max, steps), seen]))
    for j in range(n_out):
        w = weight[j][times < t_max]
        constant = 0.0 if bias is None else bias[j]

        def v(t, w=w, constant=constant):
            return sum((w[i] * kernel(t - seen[i]) for i in range(len(w))), constant * kernel(t))

        levels = v(grid)
        at_end[j] = levels[-1]
        above = np.flatnonzero(levels >= neuron.threshold)
        if len(above):
            low, high = grid[above[0] - 1], grid[above[0]]
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (low, middle) if v(middle) >= neuron.threshold else (middle, high)
            spikes[j] = high if high < t_max else np.inf
    return spikes, at_end


def patches(image, kernel_size, stride, dilation, padding, groups):
    """What each location of a convolution sees: flat indices into the padded image, and that image.

    `image` is [channels, height, width]; the indices are [groups][locations, in / groups * taps].
    """
    (top, left), (channels, height, width) = padding, image.shape
    padded = np.full((channels, height + 2 * top, width + 2 * left), np.inf)
    padded[:, top : top + height, left : left + width] = image
    spans = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    numbers = np.arange(padded.size).reshape(padded.shape)
    indices = []
    for g in range(groups):
        of_group = []
        for y in range(0, padded.shape[1] - spans[0], stride[0]):
            for x in range(0, padded.shape[2] - spans[1], stride[1]):
                of_group.append(
                    [
                        numbers[channel, y + a * dilation[0], x + b * dilation[1]]
                        for channel in range(g * channels // groups, (g + 1) * channels // groups)
                        for a in range(kernel_size[0])
                        for b in range(kernel_size[1])
                    ]
                )
        indices.append(np.array(of_group))
    return indices, padded
