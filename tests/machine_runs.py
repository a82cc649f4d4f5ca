"""What some of the CPU's kernels make of fixed inputs, for a machine that this process is not.

Run as a script, it writes that, and the width of the registers, to the file that is named.
"""

import math
import sys

import torch

from ssnn_plugin import IF, ExpPSP
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.nn import SpikeLinear, SpikeSequential

T_MAX = 12


def outcomes():
    """Spike times, potentials and gradients of layers, and decisions of a network, by name."""
    generator = torch.Generator().manual_seed(0)
    # Ties, silence, and more outputs than registers hold, but no multiple of those.
    times, weight = _whole(generator, (5, 30), (70, 30))
    images, kernel = _whole(generator, (2, 4, 7, 7), (21, 4, 3, 3))
    return {
        "linear": _layer(first_spike_linear, times, weight, IF(9.0)),
        "convolution": _layer(first_spike_conv2d, images, kernel, IF(9.0)),
        "continuous": _layer(first_spike_linear, times, weight / 8, ExpPSP()),
        "decide": _decisions(times, weight, torch.randint(-2, 4, (10, 70), generator=generator).float()),
    }


def _whole(generator, shape, of_weight):
    times = torch.randint(0, T_MAX + 2, shape, generator=generator).float()
    times[times >= T_MAX] = math.inf
    return times, torch.randint(-2, 4, of_weight, generator=generator).float()


def _layer(layer, *inputs_and_neuron):
    *inputs, neuron = inputs_and_neuron
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = layer(*inputs, neuron, t_max=T_MAX, return_potential=True)
    grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])
    return [x.detach() for x in (*outputs, *grads)]


def _decisions(times, *weights):
    layers = [SpikeLinear(*weight.shape[::-1], IF(9.0), t_max=T_MAX) for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data.copy_(weight)
    return list(SpikeSequential(*layers).decide(times))


if __name__ == "__main__":
    from ssnn_plugin.kernels.cpu import lanes

    torch.set_num_threads(1)
    torch.save({"register": lanes.REGISTER, "outcomes": outcomes()}, sys.argv[1])
