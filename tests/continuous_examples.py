"""Neurons in continuous time, and layers of them that several test files share."""

import math

import numpy as np
import pytest
import torch

from ssnn_plugin import LIF, AlphaPSP, ExpPSP, ReLPSP
from ssnn_plugin.functional import first_spike_linear

INF = math.inf
# Thresholds with which about half of the neurons of `random_layer` fire.
CAUSAL = [
    ReLPSP(3.0),
    ExpPSP(0.9, tau=1.5),
    AlphaPSP(0.8, tau=1.5),
    LIF(0.6, tau_mem=1.2, tau_syn=1.2),
    LIF(0.4, tau_mem=2.4, tau_syn=1.2),
]
GEOMETRIES = [
    {"stride": (1, 1), "padding": (1, 2), "dilation": (1, 1), "groups": 1},
    {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2), "groups": 2},
    {"stride": (3, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 4},
]
with_every_neuron = pytest.mark.parametrize("neuron", CAUSAL, ids=repr)


def tensors(*arrays, dtype=torch.float64, grad=False):
    return [None if a is None else torch.as_tensor(a).to(dtype).requires_grad_(grad) for a in arrays]


def random_layer(seed, batch=4, n_in=8, n_out=5, t_max=6.0, dtype=np.float64, bias=True):
    """Times with silence, ties and inputs after the window; weights of either sign."""
    random = np.random.default_rng(seed)
    times = random.uniform(0, 1.1 * t_max, (batch, n_in)) * random.choice([0.5, 1.0], (batch, 1))
    times[random.random(times.shape) < 0.1] = INF
    times[:, 1], times[0, 2], times[1, 3] = times[:, 0], 0.0, t_max
    weight = random.normal(0.5, 1.0, (n_out, n_in))
    constant = random.normal(0.2, 0.4, n_out) if bias else None
    as_held = (a if a is None else a.astype(dtype).astype(float) for a in (times, weight, constant))
    return *as_held, t_max


def random_image(seed, dtype=torch.float64, batch=2, channels=4, out=8, kernel=(3, 2), groups=1, t_max=6.0):
    random = np.random.default_rng(seed)
    times = random.uniform(0, 1.1 * t_max, (batch, channels, 5, 6)) * random.choice([0.5, 1.0])
    times[random.random(times.shape) < 0.2] = INF
    times[:, 1] = times[:, 0]
    weight = random.normal(0.6, 1.0, (out, channels // groups, *kernel))
    return *tensors(times, weight, random.normal(0.2, 0.4, out), dtype=dtype), t_max


def one_output(times, weight, neuron, backend="cpu", dtype=torch.float64, **options):
    """One sample, one output: its time and potential."""
    options = {"t_max": 10.0} | options
    t, w = torch.tensor([times], dtype=dtype), torch.tensor([weight], dtype=dtype)
    spikes, potential = first_spike_linear(t, w, neuron, return_potential=True, backend=backend, **options)
    return spikes.item(), potential.item()
