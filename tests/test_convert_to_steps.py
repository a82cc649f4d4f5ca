"""Networks on spike times as models of a host."""

import math

import pytest
import torch
from front_ends import HIDDEN, run_trains, some_times
from torch import nn
from torch.nn.utils import parametrize

from ssnn_plugin import IF, NoTimeMode, to_event_driven, to_step_mode
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.nn import (
    BinwiseLayer,
    EarliestSpikePool2d,
    SpikeConv2d,
    SpikeFlatten,
    SpikeLinear,
    SpikeSequential,
    WeightStandardization,
)
from ssnn_plugin.snntorch import SingleSpike

INF = math.inf


N = IF(1.0)


def _network():
    torch.manual_seed(0)
    network = SpikeSequential(
        SpikeConv2d(2, 4, 3, IF(0.7), t_max=16, padding=1, groups=2, bias=True, output_pool=_average(2)),
        EarliestSpikePool2d(2, 1),
        SpikeConv2d(4, 3, 2, IF(1.1, beta=0.9), t_max=16, dropout=0.25, input_pool=_average((1, 2))),
        SpikeFlatten(),
        SpikeLinear(9, 4, N, t_max=16),
    ).double()
    for layer in (network[0], network[2], network[4]):
        nn.init.normal_(layer.weight, 0.25, 0.6)
    nn.init.normal_(network[0].bias, 0, 0.05)
    return network


def _average(size):
    pool = nn.Sequential(nn.AvgPool2d(size), nn.Conv2d(1, 1, 1), HIDDEN())
    return to_event_driven(pool, t_max=1)[0].input_pool


@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_networks_on_times_in_steps_and_back(host):
    network, times = _network().eval(), some_times((20, 2, 10, 10), 16)
    model = to_step_mode(network, host)
    expected, potential = network(times, return_potential=True)
    spikes, state = run_trains(model, times_to_spikes(times, 16))
    assert torch.equal(spikes_to_times(spikes), expected)
    torch.testing.assert_close(state, potential, rtol=0, atol=1e-12)
    assert 0.2 < expected.isfinite().double().mean() < 1
    assert set(map(id, model.parameters())) == set(map(id, network.parameters()))
    again = to_event_driven(model, t_max=16, silent_gradient=False)
    assert list(map(repr, again)) == list(map(repr, network))
    assert all(a is b for a, b in zip(again.parameters(), network.parameters(), strict=True))
    assert torch.equal(again(times), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.1, 0.9, 1 - 1e-9])
def test_leaks_and_thresholds_survive_in_full(dtype, beta):
    network = SpikeSequential(SpikeLinear(3, 2, IF(1 / 3, beta=beta), t_max=8, dtype=dtype))
    for host in ("snntorch", "norse"):
        found = to_event_driven(to_step_mode(network, host), t_max=8)[0].neuron
        assert found.threshold == 1 / 3
        assert found.beta == pytest.approx(beta, rel=1e-15)


@pytest.mark.parametrize("last", [SpikeFlatten(), EarliestSpikePool2d(1)])
@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_the_last_neurons_hand_out_their_state(host, last):
    """Also with a module without neurons behind them: (spikes, mem), or (spikes, state)."""
    network = SpikeSequential(SpikeConv2d(2, 3, 3, N, t_max=8), last).double()
    model = to_step_mode(network, host)
    x = torch.zeros(1, 1, 2, 5, 5).double() if host == "norse" else torch.zeros(1, 2, 5, 5).double()
    outputs = model(x)
    assert isinstance(outputs, tuple)
    assert len(outputs) == 2


@pytest.mark.parametrize("host", ["snntorch", "norse"])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            SpikeLinear(4, 3, IF(delay=1), t_max=8),
            r"^1 \(SpikeLinear\) has no step mode: .* no delay, got IF",
        ),
        (nn.Flatten(2), r"^1 \(Flatten\) has no step mode: it must flatten whole samples"),
        (nn.ReLU(), r"^1 \(ReLU\) has no step mode: it is no layer of ssnn_plugin.nn"),
    ],
)
def test_layers_without_a_step_mode_are_refused(host, layer, message):
    with pytest.raises(NoTimeMode, match=message):
        to_step_mode(nn.Sequential(SpikeLinear(5, 4, N, t_max=8), layer), host)


def test_an_unknown_host_is_refused():
    with pytest.raises(ValueError, match=r"host must be one of 'snntorch', 'norse', got 'spikingjelly'"):
        to_step_mode(_network(), "spikingjelly")


def test_to_step_mode_takes_one_layer_and_refuses_what_it_would_change():
    layer = SpikeLinear(3, 2, IF(), t_max=8)
    assert to_step_mode(layer, "snntorch")[0].weight is layer.weight
    with pytest.raises(ValueError, match=r"one t_max, got \[8, 9\]"):
        to_step_mode(nn.Sequential(layer, SpikeLinear(2, 2, IF(), t_max=9)), "norse")
    with pytest.raises(TypeError, match=r"model must be a row of layers .* got Linear"):
        to_step_mode(nn.Linear(3, 2), "norse")
    hidden = SpikeLinear(3, 3, IF(), t_max=8, silent_gradient=True)
    with pytest.raises(NoTimeMode, match="silent_gradient must be False"):
        to_step_mode(nn.Sequential(hidden, SpikeLinear(3, 2, IF(), t_max=8)), "norse")


def test_a_pool_in_front_of_a_flatten_has_no_state_to_return():
    network = SpikeSequential(SpikeConv2d(1, 2, 3, IF(), t_max=8), EarliestSpikePool2d(2), nn.Flatten())
    with pytest.raises(NoTimeMode, match=r"1 .*a Flatten behind it leaves no state to return"):
        to_step_mode(network, "snntorch")


@pytest.mark.parametrize("hidden", [[], [nn.Linear(4, 4), SingleSpike(init_hidden=True)]])
def test_what_runs_in_bins_is_referred_to_its_model(hidden):
    learned = SingleSpike(init_hidden=True, output=True, learn_threshold=True)
    network = to_event_driven(nn.Sequential(*hidden, nn.Linear(4, 3), learned), t_max=8)
    assert isinstance(network[-1], BinwiseLayer)
    with pytest.raises(NoTimeMode, match="it runs in bins; the model that it was made of is its step mode"):
        to_step_mode(network, "snntorch")


@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_weights_that_are_computed_have_no_step_mode(host):
    network = SpikeSequential(SpikeLinear(4, 3, IF(), t_max=8))
    parametrize.register_parametrization(network[0], "weight", WeightStandardization())
    with pytest.raises(
        NoTimeMode, match=r"0 .ParametrizedSpikeLinear. has no step mode: its weights are parametrized"
    ):
        to_step_mode(network, host)
