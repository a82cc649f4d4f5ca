"""What a host's own neurons become, when the new ones fire, and what is lost."""

import copy
import math
import re

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from front_ends import alive, first_spikes_of, some_times
from torch import nn

from ssnn_plugin import NoTimeMode, replace_neurons, to_event_driven
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell
from ssnn_plugin.snntorch import SingleSpike, SingleSpikeLapicque

INF = math.inf


def _currents(t_max=60, neurons=200):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(t_max, 4, neurons, generator=generator, dtype=torch.float64) * 0.25 + 0.06


def _first_spikes(model, currents):
    """Of a neuron of either host, in steps or over the window."""
    if isinstance(model, norse.SequentialState | norse.IAF | norse.LIF | SingleSpikeIF):
        return spikes_to_times(model(currents)[0])
    state, spikes = (), []
    for current in currents:
        out, *state = model(current, *state)
        spikes.append(out)
    return spikes_to_times(torch.stack(spikes).double())


def _iaf(v_th=1.0, v_reset=0.0):
    # A tensor of its own: Norse sets requires_grad on the default.
    return norse.IAFParameters(v_th=torch.tensor(v_th), v_reset=torch.tensor(v_reset))


def _lif_box(**p):
    return norse.LIFBoxCell(norse.LIFBoxParameters(**{k: torch.tensor(v) for k, v in p.items()}))


@pytest.mark.parametrize(
    ("neuron", "kind"),
    [
        (lambda: snn.Leaky(0.9), SingleSpike),
        (lambda: snn.Leaky(1.0, threshold=2.0, reset_mechanism="zero"), SingleSpike),
        (lambda: snn.Leaky(0.75, reset_delay=False), SingleSpike),
        (lambda: snn.Leaky(torch.linspace(0, 1, 200), threshold=torch.linspace(0.2, 1, 200)), SingleSpike),
        (lambda: snn.Lapicque(beta=0.9, threshold=0.07), SingleSpikeLapicque),
        (lambda: snn.Lapicque(R=4.0, C=2.5, threshold=0.5), SingleSpikeLapicque),
        (lambda: snn.Lapicque(R=5, C=3, time_step=0.5, threshold=0.3), SingleSpikeLapicque),
        (lambda: snn.Lapicque(beta=0.6, learn_beta=True, threshold=0.2), SingleSpikeLapicque),
        (lambda: norse.IAF(_iaf()), SingleSpikeIF),
        (lambda: norse.IAFCell(_iaf(v_th=1.5, v_reset=0.25)), SingleSpikeIFCell),
        (lambda: _lif_box(v_th=0.08), SingleSpikeIFCell),
        (lambda: _lif_box(v_th=0.6, v_leak=0.5, tau_mem_inv=125.0, v_reset=-3.0), SingleSpikeIFCell),
    ],
)
def test_replaced_neurons_fire_when_the_hosts_own_fires_first(neuron, kind):
    model = nn.Sequential(neuron())
    expected = _first_spikes(model[0], _currents())
    assert 0.3 < expected.isfinite().double().mean() < 0.999
    assert expected[expected.isfinite()].unique().numel() > 10
    (replacement,) = replace_neurons(model)
    assert type(model[0]) is kind
    assert replacement.new == kind.__name__
    assert torch.equal(_first_spikes(model[0], _currents()), expected)


@pytest.mark.parametrize(
    ("neuron", "lost"),
    [
        (
            snn.Leaky(0.5),
            ["reset_mechanism 'subtract': .* not reset", "spike_grad: the latency rule replaces"],
        ),
        (snn.Leaky(0.5, surrogate_disable=True), ["reset_mechanism"]),
        (snn.Lapicque(R=4.0, C=2.0), [r"R, C: an input counts 0\.5 times", "reset_mech", "spike_grad"]),
        (
            snn.Synaptic(alpha=0.75, beta=0.5, reset_mechanism="zero"),
            [
                r"alpha 0\.75: .* whole charge",
                "state: syn stays 0",
                "reset_mechanism 'zero'",
                "spike_grad",
            ],
        ),
        (norse.IAF(_iaf()), ["v_reset 0: .* not reset", "method 'super': the latency rule replaces"]),
        (norse.IAFCell(_iaf(1.5, 0.5)), [r"v_reset 0\.5", "method", r"v_th 1\.5 becomes 1: from 0 up"]),
        (norse.LIF(), ["v_reset 0", "method", "tau_syn_inv: .* whole charge", "v_th 1 becomes 2"]),
        (norse.LIFCell(), ["v_reset 0", "method", "tau_syn_inv", "v_th 1 becomes 2"]),
        (_lif_box(v_th=1.0, v_leak=0.5, tau_mem_inv=125.0), ["v_reset 0", "method", "v_th 1 becomes 4"]),
    ],
)
def test_what_is_lost_is_listed(neuron, lost):
    (replacement,) = replace_neurons(nn.Sequential(nn.Linear(4, 2), neuron))
    assert (replacement.path, replacement.old) == ("1", type(neuron).__name__)
    assert len(replacement.lost) == len(lost)
    for found, expected in zip(replacement.lost, lost, strict=True):
        assert re.match(expected, found)
    header, *lines = str(replacement).split("\n")
    assert header == f"1: {replacement.old} -> {replacement.new}"
    assert [line.strip() for line in lines] == list(replacement.lost)


def _charge(model, weights):
    """Which neurons fire in the long run after inputs in the first bin."""
    currents = torch.zeros(201, *weights.shape).double()
    currents[0] = weights
    return _first_spikes(model, currents).isfinite()


@pytest.mark.parametrize("syn", [lambda: snn.Synaptic(alpha=0.75, beta=1.0, threshold=2.0)])
def test_a_synaptic_current_counts_with_its_charge(syn):
    weights = torch.linspace(0.01, 1.0, 100).double().unsqueeze(0)
    model, state, spikes = nn.Sequential(syn()), (), []
    for current in (weights, *[torch.zeros_like(weights)] * 200):
        out, *state = model[0](current, *state)
        spikes.append(out)
    fired = torch.stack(spikes).any(0)
    replace_neurons(model)
    assert torch.equal(_charge(model[0], weights), fired)
    assert 0 < fired.sum() < 100


def test_norses_synaptic_current_counts_with_its_charge():
    p = norse.LIFParameters(tau_mem_inv=torch.tensor(0.01), tau_syn_inv=torch.tensor(200.0))
    model = norse.SequentialState(norse.LIF(p))
    # The membrane forgets 0.1 % in what is 0.05 s here, in which the synaptic current has ended.
    weights = torch.linspace(500, 39500, 40).double().unsqueeze(0)
    currents = torch.zeros(50, *weights.shape).double()
    currents[0] = weights
    fired = _first_spikes(model, currents).isfinite()
    replace_neurons(model)
    assert torch.equal(_first_spikes(model, currents).isfinite(), fired)
    assert 0 < fired.sum() < 40


def test_neurons_are_replaced_in_place_and_nothing_else_is():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.block = nn.Sequential(snn.Leaky(0.9, init_hidden=True), nn.Linear(3, 2))
            self.lif = snn.Leaky(0.5, learn_beta=True, learn_threshold=True, output=True, init_hidden=True)
            self.done = SingleSpike()

    model = Net()
    model.lif.eval()
    kept = {path: module for path, module in model.named_modules() if "lif" not in path and "0" not in path}
    parameters = dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    changed = replace_neurons(model)
    assert [(c.path, c.old, c.new) for c in changed] == [
        ("block.0", "Leaky", "SingleSpike"),
        ("lif", "Leaky", "SingleSpike"),
    ]
    assert all(model.get_submodule(path) is module for path, module in kept.items())
    found = dict(model.named_parameters())
    assert found.keys() == parameters.keys()
    assert all(found[name] is parameter for name, parameter in parameters.items())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])
    assert isinstance(model.lif, SingleSpike)
    assert (model.lif.init_hidden, model.lif.output, model.lif.training) == (True, True, False)
    assert model.block[0].training
    assert replace_neurons(model) == []


@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_a_replaced_model_has_a_time_mode(host):
    parts = alive([nn.Linear(20, 12), nn.Linear(12, 5)], 16)
    if host == "snntorch":
        neurons = snn.Leaky(1.0, init_hidden=True), snn.Leaky(0.9, init_hidden=True, output=True)
        model = nn.Sequential(parts[0], neurons[0], parts[1], neurons[1])
    else:
        lif = _lif_box(v_th=0.1)
        model = norse.SequentialState(parts[0], norse.IAF(_iaf()), norse.Lift(parts[1]), norse.Lift(lif))
    with pytest.raises(NoTimeMode, match="replace_neurons"):
        to_event_driven(model, t_max=16)
    assert [c.path for c in replace_neurons(model)] == ["1", "3" if host == "snntorch" else "3.lifted_module"]
    times = some_times((8, 20), 16)
    network = to_event_driven(model, t_max=16)
    out = network(times)
    if host == "snntorch":
        expected = first_spikes_of(model, times, 16)
    else:
        expected = spikes_to_times(model(times_to_spikes(times, 16))[0][0])
    assert torch.equal(out, expected)
    assert 0.2 < out.isfinite().double().mean() < 1
    assert [layer.neuron.beta for layer in network] == pytest.approx([1.0, 0.9])


def test_a_neuron_in_two_places_stays_shared():
    lif = snn.Leaky(0.9)
    model = nn.ModuleDict({"a": lif, "b": nn.Sequential(nn.Linear(2, 2), lif), "c": snn.Leaky(0.9)})
    assert [c.path for c in replace_neurons(model)] == ["a", "b.1", "c"]
    assert model["a"] is model["b"][1] is not model["c"]
    assert isinstance(model["a"], SingleSpike)


@pytest.mark.parametrize(
    ("neuron", "message"),
    [
        (
            snn.RLeaky(0.9, linear_features=3),
            r"^1\.0 \(RLeaky\) cannot be replaced: only Leaky, Lapicque and S",
        ),
        (snn.Alpha(0.9, 0.8), r"^1\.0 \(Alpha\) cannot be replaced: only Leaky"),
        (snn.Synaptic(alpha=1.0, beta=0.9), r"^1\.0 \(Synaptic\) .*alpha = 1 is a synaptic current .* never"),
        (
            norse.LIFRecurrentCell(3, 3),
            r"^1\.0 \(LIFRecurrentCell\) cannot be replaced: only IAF, LIF, LIFBox",
        ),
        (snn.Lapicque(beta=0.2), r"^1\.0 \(Lapicque\) cannot be replaced"),
        (norse.LSNN(), r"^1\.0 \(LSNN\) cannot be replaced: only IAF"),
        (
            _lif_box(v_th=0.5, v_leak=1.0),
            r"^1\.0 \(LIFBoxCell\) .*v_th 0\.5 must not be below the potential at",
        ),
    ],
)
def test_neurons_that_cannot_be_replaced_leave_the_model_as_it_was(neuron, message):
    model = nn.Sequential(snn.Leaky(0.9), nn.Sequential(neuron), norse.LIF())
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=message):
        replace_neurons(model)
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize("neuron", [snn.Leaky(0.9), norse.LIFCell()])
def test_a_model_that_is_a_neuron_cannot_be_replaced_in_place(neuron):
    message = rf"model is a neuron itself \({type(neuron).__name__}\): pass the model it is part of"
    with pytest.raises(ValueError, match=message):
        replace_neurons(neuron)
