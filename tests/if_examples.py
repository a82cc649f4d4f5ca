"""Layers of IF neurons in whole bins that several test files share."""

import math

import numpy as np
import torch
from naive import first_spikes

INF = math.inf


def as_tensor(array, dtype=torch.float64, grad=False):
    return None if array is None else torch.from_numpy(array).to(dtype).requires_grad_(grad)


def simulate(times, weight, bias, neuron, t_max):
    shape = len(times), len(weight)
    spikes, potential = np.empty(shape), np.empty(shape)
    for b, sample in enumerate(times):
        spikes[b], potential[b] = first_spikes(
            sample, weight, neuron.threshold, neuron.delay, t_max, bias, neuron.beta
        )
    return spikes, potential


def linear_example(dtype):
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 9, (4, 6), generator=generator).to(dtype).masked_fill_(torch.eye(4, 6) > 0, INF)
    weight = torch.randint(-1, 4, (3, 6), generator=generator).to(dtype)
    bias = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
    grad = torch.randint(-1, 2, (4, 3), generator=generator).to(dtype)
    return times, weight, bias, grad


def conv2d_example(dtype):
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 10, (2, 4, 5, 6), generator=generator).to(dtype)
    times.masked_fill_(times == 9, INF)
    weight = torch.randint(-1, 4, (6, 2, 3, 2), generator=generator).to(dtype)
    bias = torch.randint(-1, 2, (6,), generator=generator).to(dtype)
    return times, weight, bias, ([2, 1], [1, 2], 2)
