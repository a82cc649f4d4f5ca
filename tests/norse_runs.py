"""Inputs, parameters and the documented loop for Norse's cells."""

import pytest
import torch

from ssnn_plugin.norse import SingleSpikeIFCell, SingleSpikeIFState
from ssnn_plugin.norse import SingleSpikeIFParameters as Parameters

DT = 0.001
LEAKY = Parameters(tau_mem_inv=100.0)
with_and_without_leak = pytest.mark.parametrize("p", [Parameters(), LEAKY], ids=["if", "leaky"])


def random(*shape, low=-0.3, high=0.6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)


def in_a_loop(cell, currents, state=None):
    """The documented loop: (spikes [T, *], the potential of every step, the last state)."""
    spikes, potentials = [], []
    for current in currents:
        z, state = cell(current, state)
        spikes.append(z)
        potentials.append(state.v)
    return torch.stack(spikes), torch.stack(potentials), state


def in_steps(currents, start=None, p=Parameters(), dt=DT):  # noqa: B008
    """(spikes, potentials, state) of the cell."""
    return in_a_loop(SingleSpikeIFCell(p, dt), currents, None if start is None else SingleSpikeIFState(start))


def random_train(*shape, rate=0.3):
    """Spike trains with several spikes per neuron, none of them silent."""
    spikes = (random(*shape, low=0, high=1, dtype=torch.float32) < rate).float()
    spikes[-1] = 1
    return spikes
