"""NIR graphs for the importers of other projects."""

import re
from functools import partial
from pathlib import Path

import nir
import nirtorch
import norse.torch as norse
import numpy as np
import pytest
import torch
from nir_models import INF, T, chain, eighths, filed, quietly, spike_times, steps
from snntorch.import_nir import import_from_nir
from torch import nn

from ssnn_plugin import IF
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.nir import from_nir, to_nir
from ssnn_plugin.nn import (
    AveragePool,
    EarliestSpikePool2d,
    SpikeConv2d,
    SpikeFlatten,
    SpikeLinear,
    SpikeSequential,
)
from ssnn_plugin.norse import SingleSpikeIFCell, SingleSpikeIFParameters
from ssnn_plugin.snntorch import SingleSpike, reset

HIDDEN = partial(SingleSpike, init_hidden=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _dense(beta, bias=False):
    layers = [
        SpikeLinear(10, 16, IF(1.03, beta=beta), t_max=T, bias=bias),
        SpikeLinear(16, 12, IF(0.83, beta=beta), t_max=T, bias=bias),
        SpikeLinear(12, 5, IF(0.68, beta=beta), t_max=T),
    ]
    return eighths(SpikeSequential(*layers)), (10,)


def _images(beta, thresholds):
    a, b, c = (IF(threshold, beta=beta) for threshold in thresholds)
    layers = [
        SpikeConv2d(2, 4, 3, a, t_max=T, padding=1, bias=True, output_pool=AveragePool(2)),
        SpikeConv2d(4, 6, 2, b, t_max=T, input_pool=AveragePool(2)),
        EarliestSpikePool2d((1, 2), (1, 1)),
        SpikeFlatten(),
        SpikeLinear(6, 5, c, t_max=T),
    ]
    return eighths(SpikeSequential(*layers)), (2, 8, 12)


NETWORKS = {
    "dense": partial(_dense, 1.0),
    "dense with a leak": partial(_dense, 0.5),
    "dense with a bias": partial(_dense, 1.0, bias=True),
    "dense with a leak and a bias": partial(_dense, 0.5, bias=True),
    "images": partial(_images, 1.0, (1.53, 0.93, 0.93)),
    "images with a leak": partial(_images, 0.5, (0.53, 0.47, 0.43)),
}
on_all_networks = pytest.mark.parametrize("kind", NETWORKS)


def _run(model, times):
    """Spikes [T, batch, *]. The importers flatten the batch away, so that images go through one by one."""
    trains = times_to_spikes(times, T)
    if times.ndim == 2:
        return steps(model, trains)
    return torch.stack([steps(model, trains[:, sample]) for sample in range(len(times))], 1)


def _cell(node):
    """What a user of nirtorch passes for neurons."""
    leak = 1 / torch.from_numpy(node.tau) if isinstance(node, nir.LIF) else 0.0
    p = SingleSpikeIFParameters(torch.from_numpy(node.v_threshold), leak)
    return SingleSpikeIFCell(p, dt=float(node.metadata["dt"]))


IMPORTERS = {
    "snntorch": import_from_nir,
    "norse": norse.from_nir,
    "nirtorch": lambda graph: nirtorch.nir_to_torch(graph, {nir.IF: _cell, nir.LIF: _cell}),
}


# Row 3 of what a reader has to do: our graph, its importer, the same spikes; and our own reader gets all back


@pytest.mark.parametrize("reader", IMPORTERS)
@on_all_networks
def test_importers_see_the_same_network(tmp_path, kind, reader):
    network, shape = NETWORKS[kind]()
    if reader == "nirtorch" and kind.startswith("dense with") and kind.endswith("bias"):
        with pytest.raises(ValueError, match=r"'nirtorch' cannot have .*: affine \(Affine\): it drops"):
            to_nir(network, reader=reader)
        return
    graph = filed(to_nir(network, input_shape=shape, reader=reader), tmp_path)
    times = spike_times((200 if len(shape) == 1 else 30, *shape))
    spikes = _run(quietly(IMPORTERS[reader], graph), times)
    expected = network(times)
    assert spikes.sum(0).max() == 1
    assert torch.equal(spikes_to_times((spikes > 0).float()), expected)
    assert 0.2 < expected.isfinite().float().mean() < 0.99
    assert expected.unique().numel() >= 5


@pytest.mark.parametrize("reader", [None, *IMPORTERS])
@pytest.mark.parametrize("kind", ["dense", "dense with a leak", "images", "images with a leak"])
def test_we_read_what_we_write_for_others(tmp_path, kind, reader):
    network, shape = NETWORKS[kind]()
    found = from_nir(filed(to_nir(network, input_shape=shape, reader=reader), tmp_path))
    assert repr(found) == repr(network)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 0.3])
def test_a_time_step_in_seconds_comes_back_as_bins(tmp_path, dt):
    network = SpikeSequential(
        SpikeLinear(4, 3, IF(1.3, beta=0.9, delay=7), t_max=T, bias=True),
        SpikeLinear(3, 3, IF(0.7, beta=1 / 3), t_max=T),
        SpikeLinear(3, 2, IF(1 / 7, delay=3), t_max=T),
    )
    graph = filed(to_nir(network, dt=dt), tmp_path)
    lif, delay = graph.nodes["lif"], graph.nodes["delay"]
    np.testing.assert_allclose(lif.tau, 10 * dt)
    np.testing.assert_allclose(lif.r * dt / lif.tau, 1.0)
    np.testing.assert_allclose(delay.delay, 7 * dt)
    assert lif.metadata["dt"] == dt
    assert repr(from_nir(graph)) == repr(network)


def test_others_read_the_time_step_from_the_graph():
    """Nothing but what NIR says, as a simulator in seconds would take it."""
    network = SpikeSequential(SpikeLinear(3, 2, IF(1.03, beta=0.5, delay=2), t_max=T))
    graph = to_nir(network, dt=1e-3)
    for node in graph.nodes.values():
        node.metadata = {}
    assert from_nir(graph, t_max=T, dt=1e-3)[0].neuron == IF(1.03, beta=0.5, delay=2)


def test_a_network_without_a_reader_keeps_to_the_equations():
    """As before there were readers: bins, a deep reset, no loops."""
    network, _ = NETWORKS["dense with a leak"]()
    graph = to_nir(network)
    assert set(graph.nodes) == {"input", "output", *(f"linear{i}" for i in ("", "_1", "_2"))} | {
        f"lif{i}" for i in ("", "_1", "_2")
    }
    assert np.unique(graph.nodes["lif"].tau) == 2
    assert graph.nodes["lif"].v_reset.max() < -1e6


@pytest.mark.parametrize(
    ("neuron", "options", "message"),
    [
        (IF(delay=1), {"reader": "snntorch"}, r"'snntorch' cannot .*: delay \(Delay\): it knows no delays"),
        (IF(delay=1), {"reader": "norse"}, r"'norse' cannot .*: delay \(Delay\): it knows no delays"),
        (IF(beta=0.0), {"reader": "snntorch"}, r"lif \(LIF\): with beta = 0\.0 its inhibition fades in 12"),
        (IF(beta=1e-3), {"reader": "norse"}, r"lif \(LIF\): with beta = 0\.001 its inhibition fades"),
        (IF(), {"reader": "snntorch", "dt": 1e-3}, r"dt must be 0\.0001 for the reader 'snntorch', which"),
        (IF(), {"reader": "lava"}, "reader must be one of 'snntorch', 'norse', 'nirtorch', got 'lava'"),
        (IF(), {"dt": 0.0}, "dt must be finite and greater than 0, got 0"),
        (IF(), {"dt": INF}, "dt must be finite and greater than 0, got inf"),
        (IF(), {"dt": 1e-3}, r"if \(IF\): dt must be 1 behind a node with a bias, got 0\.001, as"),
    ],
)
def test_what_a_reader_cannot_have_is_refused_when_writing(neuron, options, message):
    layer = SpikeLinear(3, 2, neuron, t_max=T, bias=True)
    with torch.no_grad():
        layer.bias.fill_(0.1)
    with pytest.raises(ValueError, match=message):
        to_nir(layer, **options)


def test_a_bias_in_front_of_a_pool_of_currents_is_refused_as_well():
    layer = SpikeConv2d(1, 2, 3, IF(), t_max=T, bias=True, output_pool=AveragePool(2))
    nn.init.ones_(layer.bias)
    with pytest.raises(ValueError, match=r"^if \(IF\): dt must be 1 behind a node with a bias, got 0\.5"):
        to_nir(layer, input_shape=(1, 6, 6), dt=0.5)


@pytest.mark.parametrize("reader", IMPORTERS)
def test_padded_pools_are_refused(reader):
    network = SpikeSequential(SpikeConv2d(1, 2, 3, IF(), t_max=T), EarliestSpikePool2d(3, 1, padding=1))
    with pytest.raises(ValueError, match=rf"'{reader}' .*sumpool2d \(SumPool2d\): it leaves the padding"):
        to_nir(network, input_shape=(1, 6, 6), reader=reader)


def test_norse_may_have_another_time_step():
    network, shape = NETWORKS["dense with a leak"]()
    model = norse.from_nir(to_nir(network, reader="norse", dt=0.25), dt=0.25)
    times = spike_times((50, *shape))
    assert torch.equal(spikes_to_times(_run(model, times)), network(times))


def test_a_host_model_is_written_for_a_reader_of_the_other_host():
    """snnTorch -> NIR -> Norse."""
    model = nn.Sequential(nn.Linear(10, 6, bias=False), HIDDEN(beta=0.5, threshold=1.03, output=True))
    eighths(model)
    trains = times_to_spikes(spike_times((50, 10)), T)
    reset(model)
    expected = torch.stack([model(step)[0] for step in trains])
    found = norse.from_nir(to_nir(model, t_max=T, reader="norse"))
    assert torch.equal(steps(found, trains), expected)


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "nir.md").read_text()
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, namespace)
    assert "state" in namespace


# Why readers need graphs of their own: each is a reason for a change or a refusal in nir/readers.py


def _lif(n=2, dt=1e-4, **options):
    values = {"tau": 2 * dt, "r": 2.0, "v_leak": 0.0, "v_threshold": 1.03, "v_reset": -1e9, **options}
    return nir.LIF(**{key: np.full(n, value) for key, value in values.items()})


@pytest.mark.host_defect
def test_snntorch_knows_no_if_graphs():
    neuron = nir.IF(*(np.full(2, x) for x in (1.0, 1.0, -1e9)))
    graph = chain(nir.Linear(np.eye(2)), neuron, nir.Linear(np.eye(2)))
    with pytest.raises(TypeError):
        steps(quietly(import_from_nir, graph), torch.ones(3, 1, 2))


@pytest.mark.host_defect
def test_snntorch_and_norse_ignore_v_reset():
    graph = chain(nir.Linear(np.eye(2, dtype=np.float32)), _lif())
    assert steps(quietly(import_from_nir, graph), torch.ones(9, 1, 2)).sum(0).max() > 1
    graph = chain(nir.Linear(np.eye(2, dtype=np.float32)), _lif(dt=1e-3, r=1.0, v_threshold=0.6))
    assert steps(norse.from_nir(graph), torch.ones(9, 1, 2)).sum(0).max() > 1


@pytest.mark.host_defect
def test_norse_ignores_r():
    graph = chain(nir.Linear(np.eye(2, dtype=np.float32)), _lif(dt=1e-3))
    assert steps(norse.from_nir(graph, True), torch.ones(9, 1, 2)).sum() == 0


@pytest.mark.host_defect
def test_snntorch_misreads_a_loop_through_one_node():
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "linear": nir.Linear(2 * np.eye(2)),
        "lif": _lif(),
        "loop": nir.Linear(-1e9 * np.eye(2)),
        "output": nir.Output({"output": np.array([2])}),
    }
    edges = [("input", "linear"), ("linear", "lif"), ("lif", "loop"), ("loop", "lif"), ("lif", "output")]
    model = quietly(import_from_nir, nir.NIRGraph(nodes, edges))
    assert steps(model, torch.ones(9, 1, 2)).sum() == 0


@pytest.mark.host_defect
def test_nirtorch_drops_the_bias_of_affine_nodes():
    weight, bias = np.eye(2, dtype=np.float32), np.array([5.0, 7.0], dtype=np.float32)
    model = nirtorch.nir_to_torch(chain(nir.Affine(weight, bias)), {})
    assert not torch.allclose(model(torch.ones(1, 2))[0], torch.tensor([[6.0, 8.0]]))


@pytest.mark.host_defect
@pytest.mark.parametrize("importer", IMPORTERS)
def test_importers_flatten_the_batch_as_well(importer):
    """Hence images go one by one, without a batch axis."""
    flatten = nir.Flatten({"input": np.array([2, 1, 1])}, start_dim=0)
    model = quietly(IMPORTERS[importer], chain(flatten, shape=(2, 1, 1)))
    assert model(torch.ones(3, 2, 1, 1))[0].shape == (6,)


@pytest.mark.host_defect
def test_norse_leaves_average_pools_out():
    pool = nir.AvgPool2d(*(np.array(size) for size in ((2, 2), (2, 2), (0, 0))))
    conv = nir.Conv2d((4, 4), np.ones((1, 1, 1, 1), np.float32), 1, 0, 1, 1, np.zeros(1, np.float32))
    model = norse.from_nir(chain(conv, pool, shape=(1, 4, 4), out=(1, 2, 2)))
    assert model(torch.ones(1, 1, 4, 4))[0].shape == (1, 1, 4, 4)
