"""Under autocast neurons add up in float32, whatever their currents come in: as snnTorch's `Leaky` does."""

import pytest
import snntorch as snn
import torch
from torch import nn

from ssnn_plugin import IF, LIF, ExpPSP, ReLPSP, WindowedRamp, decode
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell, SingleSpikeIFParameters
from ssnn_plugin.snntorch import SingleSpike

STEPS = 400
HALF = [torch.bfloat16, torch.float16]


def _snntorch_loop(currents, **options):
    neuron, spikes, mem = SingleSpike(**options), [], None
    for current in currents:
        spk, mem = neuron(current, mem)
        spikes.append(spk)
    return torch.stack(spikes), mem


def _norse_loop(currents, method="latency"):
    cell, spikes, state = SingleSpikeIFCell(SingleSpikeIFParameters(method=method)), [], None
    for current in currents:
        z, state = cell(current, state)
        spikes.append(z)
    return torch.stack(spikes), state.v


def _snntorch_window(currents, **options):
    spk, mem = SingleSpike(sequence=True, **options)(currents)
    return spk, mem[-1]


def _norse_window(currents, method="latency"):
    z, state = SingleSpikeIF(SingleSpikeIFParameters(method=method))(currents)
    return z, state.v


RUNS = {
    "snntorch step": _snntorch_loop,
    "snntorch window": _snntorch_window,
    "snntorch step, surrogate": lambda x: _snntorch_loop(x, spike_grad=snn.surrogate.atan()),
    "snntorch window, surrogate": lambda x: _snntorch_window(x, spike_grad=snn.surrogate.atan()),
    "norse step": _norse_loop,
    "norse window": _norse_window,
    "norse window, surrogate": lambda x: _norse_window(x, "triangle"),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_many_small_currents_fire_as_in_float32(run, dtype):
    currents = torch.full((STEPS, 1, 1), 0.003, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        spikes, potential = run(currents)
    expected, at_crossing = run(currents.float())
    assert decode.spikes_to_times(expected).item() == pytest.approx(333, abs=2)
    assert (spikes.dtype, potential.dtype) == (torch.float32, torch.float32)
    assert torch.equal(spikes, expected)
    assert torch.equal(potential, at_crossing)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_spikes_and_gradients_are_those_of_float32_given_the_same_currents(run):
    draw = torch.Generator().manual_seed(0)
    currents = (torch.rand(64, 8, 6, generator=draw) * 0.03).bfloat16()
    half, single = currents.clone().requires_grad_(), currents.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spikes, potential = run(half)
    expected, expected_potential = run(single)
    assert 0 < expected.sum() < expected[0].numel()
    assert torch.equal(spikes, expected)
    assert torch.equal(potential, expected_potential)
    (spikes.cumsum(0).sum() + potential.sum()).backward()
    (expected.cumsum(0).sum() + expected_potential.sum()).backward()
    assert half.grad.dtype == torch.bfloat16
    assert torch.equal(half.grad, single.grad.bfloat16())


def test_a_network_under_autocast_fires_as_its_currents_say():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30, bias=False), SingleSpike(init_hidden=True, output=True))
    nn.init.uniform_(net[0].weight, 0, 0.01)
    x = (torch.rand(100, 4, 20) < 0.1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spikes = torch.stack([net(step)[0] for step in x])
        currents = net[0](x)
    expected, _ = SingleSpike(sequence=True)(currents.float())
    assert 0 < expected.sum() < expected[0].numel()
    assert torch.equal(spikes, expected)


@pytest.mark.parametrize("dtype", HALF)
def test_outside_of_autocast_and_for_double_precision_the_dtype_is_kept(dtype):
    assert SingleSpike()(torch.ones(1, 2, dtype=dtype))[0].dtype == dtype
    with torch.autocast("cpu", dtype=dtype):
        assert SingleSpike()(torch.ones(1, 2, dtype=torch.float64))[0].dtype == torch.float64
        assert SingleSpike()(torch.ones(1, 2, dtype=torch.float32))[0].dtype == torch.float32


def test_autocast_of_another_device_changes_nothing():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spk, _ = SingleSpike()(torch.ones(1, 2, dtype=torch.bfloat16, device="meta"))
    assert spk.dtype == torch.bfloat16


NEURONS = [
    IF(),
    IF(beta=0.5),
    IF(beta=torch.tensor([0.5, 0.7, 0.9])),
    ReLPSP(),
    WindowedRamp(5.0, start=1.0),
    ExpPSP(0.7),
    LIF(0.3),
    LIF(0.3, tau_mem=torch.tensor([1.0, 2.0, 3.0])),
]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
def test_spike_times_keep_their_digits(neuron, layer, backend):
    draw = torch.Generator().manual_seed(0)
    times, weight = torch.randint(0, 4, (5, 6), generator=draw).float(), torch.rand(3, 6, generator=draw)

    def fire():
        options = {"t_max": 6.0, "return_potential": True, "backend": backend}
        if layer == "linear":
            return first_spike_linear(times, weight, neuron, **options)
        shaped = times.reshape(5, 1, 2, 3), weight.reshape(3, 1, 2, 3)
        return first_spike_conv2d(*shaped, neuron, **options)

    expected = fire()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fire()
    assert expected[0].isfinite().any()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
