"""What some of the CPU's kernels make of fixed inputs, for a machine that this process is not.

Run as a script, it writes that, and the width of the registers, to the file that is named.
"""

import math
import sys

import torch

from ssnn_plugin import IF, ExpPSP, FusedStep
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeLinear, SpikeSequential
from ssnn_plugin.online import s4nn_train

T_MAX = 12


def outcomes():
    """Spike times, potentials and gradients of layers, and decisions of a network, by name."""
    generator = torch.Generator().manual_seed(0)
    # Ties, silence, and more outputs than registers hold, but no multiple of those.
    times, weight = _whole(generator, (5, 30), (70, 30))
    images, kernel = _whole(generator, (2, 4, 7, 7), (21, 4, 3, 3))
    outputs = torch.randint(-2, 4, (10, 70), generator=generator).float()
    bytes_ = torch.randint(0, 256, (5, 30), generator=generator, dtype=torch.uint8)
    return {
        "linear": _layer(first_spike_linear, times, weight, IF(9.0)),
        "linear in double precision": _layer(first_spike_linear, times.double(), weight.double(), IF(9.0)),
        "between bins": _layer(first_spike_linear, times / 3, weight, IF(9.0)),
        "convolution": _layer(first_spike_conv2d, images, kernel, IF(9.0)),
        "convolution in double precision": _layer(
            first_spike_conv2d, images.double(), kernel.double(), IF(9.0)
        ),
        "continuous": _layer(first_spike_linear, times, weight / 8, ExpPSP()),
        "decide": _decisions(times, weight, outputs),
        "decide on bytes": _decisions(bytes_, weight, outputs),
        "fused step": _learned(_fused_step, times, weight, outputs),
        "online": _learned(_online_pass, times, weight, outputs),
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


def _network(*weights):
    layers = [SpikeLinear(*weight.shape[::-1], IF(9.0), t_max=T_MAX) for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data.copy_(weight)
    return SpikeSequential(*layers)


def _decisions(times, *weights):
    return list(_network(*weights).decide(times))


def _learned(learn, times, *weights):
    """The weights after some learning."""
    network, labels = _network(*weights), torch.arange(len(times)) % len(weights[-1])
    learn(network, times, labels)
    return [layer.weight.detach() for layer in network]


def _fused_step(network, times, labels):
    optimizer = torch.optim.Adam(network.parameters(), 0.5)
    step = FusedStep(network, RelativeTargetLoss(3, T_MAX), optimizer)
    for _ in range(3):
        step(times, labels)


def _online_pass(network, times, labels):
    weights = [layer.weight.detach() for layer in network]
    numbers = {"thresholds": [9.0, 9.0], "learning_rates": [0.5, 0.5], "weight_decay": 0.0}
    s4nn_train(weights, times, labels, gamma=3.0, t_max=T_MAX, **numbers)


if __name__ == "__main__":
    from ssnn_plugin.kernels.cpu import lanes

    torch.set_num_threads(1)
    torch.save({"register": lanes.REGISTER, "outcomes": outcomes()}, sys.argv[1])
