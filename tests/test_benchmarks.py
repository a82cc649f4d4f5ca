"""That the sides of a benchmark do the same, and that what it measures is measured."""

import math

import pytest
import torch
from torch import nn

from benchmarks import bins, memory
from ssnn_plugin import decode


def times_and_labels(samples):
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 3 * bins.T_MAX, (samples, 784), generator=generator).float()
    return times.masked_fill(times >= bins.T_MAX, math.inf), torch.arange(samples) % 10


@pytest.mark.slow
@pytest.mark.parametrize("name", bins.CONTENDERS)
def test_each_contender_learns(name):
    torch.manual_seed(0)
    batch = times_and_labels(4)
    step = bins.CONTENDERS[name].step(bins.network(batch[0]))
    losses = [step(*batch).item() for _ in range(12)]
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_the_loop_has_the_weights_and_first_spikes_of_the_network_on_times():
    torch.manual_seed(0)
    times, _ = times_and_labels(4)
    layers = bins.network(times)
    first = nn.Sequential(layers[0], *bins._of_the_host(layers[1]))
    trains = torch.stack([first(spikes) for spikes in decode.times_to_spikes(times, bins.T_MAX)])
    expected = layers[1](layers[0](times))
    assert expected.isfinite().any()
    assert (decode.spikes_to_times(trains) == expected).double().mean() > 0.999


def takes_32_mib():
    return lambda inputs, labels: torch.ones(len(inputs), 2**23).sum() if len(inputs) == 1 else None


def test_peak_memory_is_what_a_step_takes():
    peak = memory.peak(takes_32_mib, torch.zeros(1, 1), torch.zeros(1), warm_up=0)
    assert 32 <= peak < 40
