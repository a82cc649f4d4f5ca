"""NIR graphs of other projects' exporters, and what others may have written."""

import itertools
from functools import partial

import nir
import norse.torch as norse
import numpy as np
import pytest
import snntorch as snn
import torch
from nir_models import T, chain, eighths, filed, quietly, spike_times
from snntorch.export_nir import export_to_nir
from snntorch.import_nir import import_from_nir
from torch import nn

from ssnn_plugin import IF
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.nir import from_nir, to_nir
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear, SpikeSequential
from ssnn_plugin.norse import FirstSpikePool2d as NorsePool
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell
from ssnn_plugin.snntorch import FirstSpikePool2d, SingleSpike, reset

IMPORTERS = {"snntorch": import_from_nir, "norse": norse.from_nir}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# Graphs of the hosts' own exporters


def _norse_model(*, lif):
    parameters = {"tau_mem_inv": torch.tensor(100.0), "v_th": torch.tensor(0.083)}
    neuron = norse.LIFBoxCell(norse.LIFBoxParameters(**parameters)) if lif else norse.IAFCell()
    return eighths(norse.SequentialState(nn.Linear(10, 6), neuron))


def _first_spikes_of_norse(model, times):
    state, spikes = None, []
    for step in times_to_spikes(times, T):
        out, state = model(step, state)
        spikes.append(out)
    return spikes_to_times((torch.stack(spikes).cumsum(0) == 1).float())


@pytest.mark.parametrize("lif", [False, True])
def test_graphs_of_norse_are_read(lif):
    model, times = _norse_model(lif=lif), spike_times((100, 10))
    graph = norse.to_nir(model, torch.zeros(1, 10))
    found = from_nir(graph, t_max=T, single_spike=True, writer="norse")
    expected = _first_spikes_of_norse(model, times)
    assert torch.equal(found(times), expected)
    assert expected.unique().numel() >= 4
    if lif:
        assert found[0].neuron.beta == pytest.approx(0.9)


def test_graphs_of_norse_with_a_value_for_each_neuron_and_its_own_time_step():
    parameters = norse.LIFBoxParameters(
        tau_mem_inv=torch.full((6,), 50.0), v_th=torch.full((6,), 0.5), v_leak=torch.zeros(6)
    )
    model = norse.SequentialState(nn.Linear(10, 6), norse.LIFBoxCell(parameters, dt=0.01))
    graph = norse.to_nir(eighths(model), torch.zeros(1, 10), dt=0.01)
    found = from_nir(graph, t_max=T, single_spike=True, writer="norse", dt=0.01)
    assert found[0].neuron.threshold == pytest.approx(1.0)
    assert found[0].neuron.beta == pytest.approx(0.5)


def test_convolutions_of_norse_are_read():
    """Its nodes hold tensors, also behind a Flatten-less network of images."""
    model = eighths(norse.SequentialState(nn.Conv2d(1, 3, 3), norse.IAFCell()))
    found = from_nir(norse.to_nir(model, torch.zeros(1, 1, 6, 6)), t_max=T, single_spike=True, writer="norse")
    assert torch.equal(found[0].weight, model[0].weight)
    times = spike_times((50, 1, 6, 6))
    assert torch.equal(found(times), _first_spikes_of_norse(model, times))


def test_graphs_of_snntorch_are_read():
    ones = torch.ones(6)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(10, 6),
        snn.Leaky(beta=0.75 * ones, threshold=1.03 * ones, init_hidden=True, output=True),
    )
    eighths(model)
    graph = quietly(partial(export_to_nir, ignore_dims=[0]), model, torch.zeros(1, 10))
    found = from_nir(graph, t_max=T, single_spike=True, writer="snntorch")
    neuron = found[-1].neuron
    assert (neuron.beta, neuron.threshold) == (pytest.approx(0.75), pytest.approx(1.03))
    times = spike_times((100, 10))
    reset(model)
    spikes = torch.stack([model(step)[0] for step in times_to_spikes(times, T)])
    assert torch.equal(found(times), spikes_to_times((spikes.cumsum(0) == 1).float()))


@pytest.mark.parametrize("writer", ["snntorch", "norse"])
def test_a_network_goes_through_the_host_and_back(writer, tmp_path):
    """Time mode -> file -> the host's importer -> its exporter -> time mode."""
    layer = eighths(SpikeLinear(10, 6, IF(1.03, beta=0.5), t_max=T, bias=writer == "norse"))
    graph = to_nir(layer, reader=writer)
    host = quietly(IMPORTERS[writer], filed(graph, tmp_path))
    neurons = [module for module in host.modules() if isinstance(module, snn.Leaky | norse.LIFBoxCell)]
    linear = host.linear if writer == "snntorch" else host.affine
    model = (nn.Sequential if writer == "snntorch" else norse.SequentialState)(linear, *neurons)
    if writer == "snntorch":
        neurons[0].threshold = neurons[0].threshold.expand_as(neurons[0].beta)  # as its exporter wants it
        back = quietly(partial(export_to_nir, ignore_dims=[0]), model, torch.zeros(1, 10))
    else:
        back = norse.to_nir(model, torch.zeros(1, 10))
    found = from_nir(back, t_max=T, single_spike=True, writer=writer)
    assert found[0].neuron.beta == pytest.approx(0.5)
    assert found[0].neuron.threshold == pytest.approx(1.03)
    times = spike_times((100, 10))
    assert torch.equal(found(times), layer(times))


def test_modules_that_norse_does_not_know_are_named():
    model = norse.SequentialState(nn.Linear(10, 6), nn.Dropout(), norse.IAFCell())
    with pytest.raises(
        ValueError, match=r"^1 is None: the exporter that wrote the graph has no node for this"
    ):
        from_nir(norse.to_nir(model, torch.zeros(1, 10)), t_max=T, single_spike=True, writer="norse")


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("beta", [0.9, 1.0])
def test_an_endless_time_constant_is_named(beta):
    """snnTorch writes it for a Leaky with beta 1."""
    leaky = snn.Leaky(beta=beta * torch.ones(6), threshold=torch.ones(6), init_hidden=True)
    model = nn.Sequential(nn.Linear(10, 6), leaky)
    graph = quietly(partial(export_to_nir, ignore_dims=[0]), model, torch.zeros(1, 10))
    options = {"t_max": T, "single_spike": True, "writer": "snntorch"}
    if beta == 1:
        with pytest.raises(ValueError, match=r"^1 \(LIF\): tau must be finite, got inf. Without a leak use"):
            from_nir(graph, **options)
    else:
        assert from_nir(graph, **options)[0].neuron.beta == pytest.approx(beta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"writer": "lava"}, "writer must be one of 'snntorch', 'norse', got 'lava'"),
        ({"writer": "norse", "dt": -1.0}, "dt must be finite and greater than 0"),
        ({}, r"^1 \(LIF\): tau must be at least dt = 1\.0, .* Pass the dt of the graph, or its writer"),
    ],
)
def test_a_wrong_unit_of_time_is_named(options, message):
    graph = norse.to_nir(_norse_model(lif=True), torch.zeros(1, 10))
    with pytest.raises(ValueError, match=message):
        from_nir(graph, t_max=T, single_spike=True, **options)


def test_synaptic_currents_are_named():
    graph = norse.to_nir(norse.SequentialState(nn.Linear(10, 6), norse.LIFCell()), torch.zeros(1, 10))
    message = r"^1 \(CubaLIF\) has no counterpart .*: its synaptic current spreads an input over many bins"
    with pytest.raises(ValueError, match=message):
        from_nir(graph, t_max=T, single_spike=True, writer="norse")


def test_a_node_that_contradicts_its_metadata_is_refused():
    graph = to_nir(SpikeLinear(3, 2, IF(1.5), t_max=T))
    graph.nodes["if"].v_threshold *= 2
    with pytest.raises(ValueError, match=r"^if: its threshold is 3\.0 in the graph and 1\.5 in its metadata"):
        from_nir(graph)


# Sum pools and loops of others


def _neuron(*shape):
    return nir.IF(*(np.full(shape, value) for value in (1.0, 1.03, -1e9)))


def _convolution(channels, out, side):
    """A 2 x 2 kernel for images [channels, side, side]."""
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(0.1, 0.3, (out, channels, 2, 2)), generator.normal(0.05, 0.1, out)
    eighths = ((values * 8).round() / 8 for values in (weight, bias))
    return nir.Conv2d((side, side), next(eighths), 1, 0, 1, 1, next(eighths))


def _sum_pool(kernel, stride):
    return nir.SumPool2d(np.array(kernel), np.array(stride), np.array((0, 0)))


def _summed(images, kernel, stride):
    return images.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1]).sum((-1, -2))


def _convolved(images, node):
    weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return nn.functional.conv2d(images, weight, bias)


def _fired_in_steps(currents):
    """First-spike times of neurons without leak, for currents [T, *]."""
    return spikes_to_times((currents.cumsum(0) > 1.03).double())


@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((3, 2), (1, 1))])
def test_sum_pools_of_spikes_are_read(kernel, stride):
    side = 3 if stride == (2, 2) else 4
    pool, conv = _sum_pool(kernel, stride), _convolution(2, 4, side)
    shape = (2, kernel[0] + (side - 1) * stride[0], kernel[1] + (side - 1) * stride[1])
    graph = chain(pool, conv, _neuron(4, side - 1, side - 1), shape=shape, out=(4, side - 1, side - 1))
    times = spike_times((50, *shape)).double()
    currents = [_convolved(_summed(images, kernel, stride), conv) for images in times_to_spikes(times, T)]
    expected = _fired_in_steps(torch.stack(currents))
    assert torch.equal(from_nir(graph, t_max=T)(times), expected)
    assert expected.unique().numel() >= 5


@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((3, 3), (3, 3))])
def test_sum_pools_of_currents_are_read(kernel, stride):
    pool, conv = _sum_pool(kernel, stride), _convolution(2, 4, 7)
    side = 6 // stride[0]
    graph = chain(conv, pool, _neuron(4, side, side), shape=(2, 7, 7), out=(4, side, side))
    times = spike_times((50, 2, 7, 7)).double()
    currents = [_summed(_convolved(images, conv), kernel, stride) for images in times_to_spikes(times, T)]
    expected = _fired_in_steps(torch.stack(currents))
    assert torch.equal(from_nir(graph, t_max=T)(times), expected)
    assert expected.unique().numel() >= 5


def test_a_sum_pool_shares_no_weights_with_the_graph():
    conv = _convolution(1, 1, 2)
    before = conv.weight.copy()
    pool = _sum_pool((2, 2), (2, 2))
    from_nir(chain(pool, conv, _neuron(1, 1, 1), shape=(1, 4, 4), out=(1, 1, 1)), t_max=T)
    np.testing.assert_array_equal(conv.weight, before)


def _looped(*loop, v_reset=0.0):
    nodes = {
        "input": nir.Input({"input": np.array([3])}),
        "linear": nir.Linear(np.ones((2, 3))),
        "if": nir.IF(*(np.full(2, value) for value in (1.0, 1.5, v_reset))),
        **{f"loop{place}": nir.Linear(weight) for place, weight in enumerate(loop)},
        "output": nir.Output({"output": np.array([2])}),
    }
    around = ["if", *(f"loop{place}" for place in range(len(loop))), "if"]
    edges = [("input", "linear"), ("linear", "if"), *itertools.pairwise(around), ("if", "output")]
    return nir.NIRGraph(nodes, edges)


@pytest.mark.parametrize(
    "loop", [(-1e6 * np.eye(2),), (np.eye(2), -1e9 * np.eye(2)), (1e4 * np.eye(2), -1e3 * np.eye(2))]
)
def test_neurons_that_inhibit_themselves_fire_once(loop):
    (layer,) = from_nir(_looped(*loop), t_max=T)
    assert layer.neuron == IF(1.5)


@pytest.mark.parametrize(
    "loop", [(-1.0 * np.eye(2),), (-1e9 * np.ones((2, 2)),), (1e9 * np.eye(2),), (np.diag([-1e9, -1.0]),)]
)
def test_other_loops_are_refused(loop):
    with pytest.raises(ValueError, match="graph must be a chain"):
        from_nir(_looped(*loop), t_max=T)


# The hosts' exporters know no neuron that fires once


def _snntorch_export(model, sample):
    return quietly(partial(export_to_nir, ignore_dims=[0]), model, sample)


def _leaky():
    return SingleSpike(beta=0.9 * torch.ones(3), threshold=torch.ones(3), init_hidden=True, output=True)


def _integrator():
    return SingleSpike(beta=torch.ones(3), threshold=torch.ones(3), init_hidden=True, output=True)


@pytest.mark.parametrize(
    ("model", "sample", "export", "name"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 3), _leaky()), [1, 4], _snntorch_export, "SingleSpike"),
        (lambda: nn.Sequential(nn.Linear(4, 3), _integrator()), [1, 4], _snntorch_export, "SingleSpike"),
        (lambda: _leaky(), [1, 3], _snntorch_export, "SingleSpike"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3), FirstSpikePool2d(2, init_hidden=True)),
            [1, 1, 6, 6],
            _snntorch_export,
            "FirstSpikePool2d",
        ),
        (
            lambda: norse.SequentialState(nn.Linear(4, 3), SingleSpikeIFCell()),
            [1, 4],
            norse.to_nir,
            "SingleSpikeIFCell",
        ),
        (
            lambda: norse.SequentialState(norse.Lift(nn.Linear(4, 3)), SingleSpikeIF()),
            [5, 1, 4],
            norse.to_nir,
            "SingleSpikeIF",
        ),
        (lambda: norse.SequentialState(NorsePool(2)), [5, 1, 1, 4, 4], norse.to_nir, "FirstSpikePool2d"),
        (lambda: SpikeSequential(SpikeLinear(4, 3, IF(), t_max=T)), [1, 4], norse.to_nir, "SpikeLinear"),
        (
            lambda: SpikeSequential(SpikeConv2d(1, 2, 3, IF(), t_max=T)),
            [1, 1, 5, 5],
            norse.to_nir,
            "SpikeConv2d",
        ),
    ],
)
def test_the_exporters_of_the_hosts_refuse_our_neurons(model, sample, export, name):
    model, sample = model(), torch.rand(sample)
    with pytest.raises((TypeError, ValueError)) as refusal:
        export(model, sample)
    # nirtorch adds an error of its own if nothing has been traced before.
    errors = [refusal.value, refusal.value.__context__]
    message = next(str(error) for error in errors if isinstance(error, TypeError))
    assert message.startswith(f"{name} fires at most once")
    assert "ssnn_plugin.nir.to_nir(model" in message
    assert not nn.Module.__call__.__module__.startswith("nirtorch")
    model(sample)


def test_the_exporters_of_the_hosts_still_write_their_own_neurons():
    ones = torch.ones(3)
    leaky = snn.Leaky(beta=0.5 * ones, threshold=ones, init_hidden=True)
    assert "1" in _snntorch_export(nn.Sequential(nn.Linear(4, 3), leaky), torch.rand(1, 4)).nodes
    model = norse.SequentialState(nn.Linear(4, 3), norse.IAFCell())
    assert isinstance(norse.to_nir(model, torch.rand(1, 4)).nodes["1"], nir.IF)
