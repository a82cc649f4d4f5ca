"""That the sides of a benchmark do the same, and that what it measures is measured."""

import math

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks import bins, gpu, memory
from benchmarks.__main__ import app
from reproductions.errors import SuiteError
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


def test_the_benchmark_on_a_gpu_refuses_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SuiteError, match="needs a GPU that torch can use"):
        CliRunner().invoke(app, ["gpu"], catch_exceptions=False, standalone_mode=False)


def test_its_networks_are_of_one_shape_and_fire_as_they_should():
    torch.manual_seed(0)
    case = next(gpu.cases(torch.device("cpu"), batch=8, images=1))
    assert 0.08 < case.times.isfinite().double().mean() < 0.12
    assert torch.equal(case.intensities > 0, case.times.isfinite())
    with torch.no_grad():
        spikes, values = case.spiking(case.times), case.dense(case.intensities)
    assert spikes.shape == values.shape == (8, 10)
    assert 0.2 < spikes.isfinite().double().mean() < 0.4
    assert gpu.same_spikes(case) == 1
