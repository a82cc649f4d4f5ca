import math
from functools import partial

import nir
import norse.torch as norse
import numpy as np
import pytest
import snntorch as snn
import torch
from marks import in_both_precisions
from nir_models import chain, filed
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d
from torch.nn.utils import parametrize

from ssnn_plugin import IF, NoTimeMode, to_event_driven
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.nir import from_nir, to_nir
from ssnn_plugin.nn import (
    EarliestSpikePool2d,
    SpikeConv2d,
    SpikeFlatten,
    SpikeLinear,
    SpikeSequential,
    WeightStandardization,
)
from ssnn_plugin.norse import FirstSpikePool2d as NorsePool
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFParameters
from ssnn_plugin.snntorch import FirstSpikePool2d, SingleSpike, reset

T = 12
INF = math.inf
HIDDEN = partial(SingleSpike, init_hidden=True)
on_both = pytest.mark.parametrize("kind", ["mlp", "conv"])


def _times(shape, seed=0, t_max=T):
    times = torch.randint(0, t_max * 4 // 3, shape, generator=torch.Generator().manual_seed(seed)).double()
    return times.masked_fill_(times >= t_max, INF)


def _weights(module, dtype):
    """Random; in single precision multiples of 1/8, so that every sum is exact with a leak of 1/2."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.to(dtype).named_parameters():
        if name.endswith(("weight", "bias")):
            with torch.no_grad():
                mean, spread = (0.04, 0.04) if name.endswith("bias") else (0.1, 0.4)
                values = torch.empty(parameter.shape).double().normal_(mean, spread, generator=generator)
                parameter.copy_((values * 8).round() / 8 if dtype == torch.float32 else values)
    return module


def _model(kind, host, dtype):
    """A model of a host, and the shape of its inputs."""
    beta = 0.5 if dtype == torch.float32 else 0.9
    if kind == "mlp":
        shape, parts = (10,), [nn.Linear(10, 16), (1.0, beta), nn.Linear(16, 5, bias=False), (1.5, 1.0)]
    else:
        shape = (2, 8, 7)
        parts = [
            nn.Conv2d(2, 4, 3, padding=(1, 0), bias=False),
            nn.AvgPool2d(2),
            (1.0, 1.0),
            nn.Conv2d(4, 6, 2),
            (1.5, beta),
            "pool",
            nn.Flatten(),
            nn.Linear(6, 5),
            (0.5, 1.0),
        ]
    if host == "norse":
        pool, sequential = NorsePool((3, 1)), norse.SequentialState
        neurons = [SingleSpikeIF(SingleSpikeIFParameters(p[0], 1 - p[1]), 1.0) for p in parts if _neuron(p)]
    else:
        pool, sequential = FirstSpikePool2d((3, 1), init_hidden=True), nn.Sequential
        neurons = [HIDDEN(beta=torch.tensor(p[1]).double(), threshold=p[0]) for p in parts if _neuron(p)]
        neurons[-1].output = True
    rest = iter(neurons)
    modules = [next(rest) if _neuron(p) else pool if p == "pool" else p for p in parts]
    if host == "norse":
        modules = [m if isinstance(m, SingleSpikeIF | NorsePool) else norse.Lift(m) for m in modules]
    return _weights(sequential(*modules), dtype), shape


def _neuron(part):
    return isinstance(part, tuple)


def _first(model, times, t_max=T):
    trains = times_to_spikes(times, t_max)
    if isinstance(model, SpikeSequential):
        return model(times)
    if isinstance(model, norse.SequentialState):
        return spikes_to_times(model(trains)[0])
    reset(model)
    return spikes_to_times(torch.stack([model(x)[0] for x in trains]))


@pytest.mark.parametrize("to", [None, "snntorch", "norse"])
@pytest.mark.parametrize("start", [None, "snntorch", "norse"])
@in_both_precisions
@on_both
def test_round_trips_through_a_file_keep_every_spike(tmp_path, kind, dtype, start, to):
    model, shape = _model(kind, start or "snntorch", dtype)
    if start is None:
        model = to_event_driven(model, t_max=T)
    graph = filed(to_nir(model, input_shape=shape, t_max=T), tmp_path)
    found = from_nir(graph, host=to)
    kinds = {None: SpikeSequential, "snntorch": nn.Sequential, "norse": norse.SequentialState}
    assert type(found) is kinds[to]
    assert {p.dtype for p in found.parameters()} == {dtype}
    times = _times((1000, *shape)).to(dtype)
    expected = _first(model, times)
    assert torch.equal(_first(found, times), expected)
    assert 0.2 < expected.isfinite().double().mean() < 0.99
    assert expected.unique().numel() >= 10
    for ours, theirs in zip(found.parameters(), model.parameters(), strict=False):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


@in_both_precisions
def test_a_network_on_times_comes_back_as_it_was(tmp_path, dtype):
    network = _weights(
        SpikeSequential(
            SpikeConv2d(2, 4, 3, IF(1 / 3, delay=1, beta=0.7), t_max=T, padding="same", dilation=2),
            EarliestSpikePool2d(3, 2, 1),
            SpikeConv2d(4, 4, 2, IF(0.1, delay=2), t_max=T, stride=(1, 2), bias=True),
            SpikeFlatten(),
            SpikeLinear(12, 3, IF(0.9, beta=1 / 3), t_max=T),
        ),
        dtype,
    )
    graph = filed(to_nir(network, input_shape=(2, 7, 6)), tmp_path)
    found = from_nir(graph)
    assert repr(found) == repr(network)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), network.parameters(), strict=True))
    times = _times((1000, 2, 7, 6)).to(dtype)
    outputs = (model(times, return_potential=True) for model in (found, network))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*outputs, strict=True))
    assert 0.2 < found(times).isfinite().double().mean() < 0.99
    with pytest.raises(
        NoTimeMode, match=r"0 \(SpikeConv2d\) has no step mode: the hosts' neurons have no delay"
    ):
        from_nir(graph, host="norse")


def test_metadata_survive_the_file(tmp_path):
    network = SpikeSequential(
        SpikeConv2d(1, 2, 3, IF(2.0, beta=0.75), t_max=T),
        EarliestSpikePool2d(2),
        SpikeFlatten(),
        SpikeLinear(8, 3, IF(delay=2), t_max=T),
    )
    graph = filed(to_nir(network, input_shape=(1, 6, 6), tie_rule="first_index"), tmp_path)
    neurons = [(name, graph.nodes[name]) for name in ("lif", "if", "if_1")]
    common = {"single_spike": True, "T": T, "dt": 1.0, "tie_rule": "first_index"}
    assert [node.metadata for _, node in neurons] == [
        {**common, "threshold": 2.0, "delay": 0, "beta": 0.75},
        {**common, "threshold": 0.5, "delay": 0, "beta": 1.0, "first_spike_pool": True},
        {**common, "threshold": 1.0, "delay": 2, "beta": 1.0},
    ]
    assert all((node.v_reset <= -1e6).all() for _, node in neurons)
    lif, pool, last = (node for _, node in neurons)
    assert (lif.tau, lif.r, lif.v_threshold) == (
        *[pytest.approx(np.full((2, 4, 4), 4.0))] * 2,
        pytest.approx(np.full((2, 4, 4), 2.0)),
    )
    assert pool.v_threshold.shape == (2, 2, 2)
    assert np.unique(last.r) == 1
    np.testing.assert_array_equal(graph.nodes["delay"].delay, [2.0] * 3)
    assert graph.nodes["input"].input_type["input"].tolist() == [1, 6, 6]
    assert graph.nodes["output"].output_type["output"].tolist() == [3]


def test_dropout_is_left_out():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2), HIDDEN())
    kinds = [type(node).__name__ for node in to_nir(model, t_max=T).nodes.values()]
    assert kinds == ["Input", "Affine", "IF", "Output"]


def test_a_bias_of_zeros_and_none_are_told_apart():
    for bias in (False, True):
        network = SpikeSequential(SpikeConv2d(1, 2, 3, IF(), t_max=T, bias=bias))
        assert (from_nir(to_nir(network, input_shape=(1, 4, 4)))[0].bias is not None) is bias


@pytest.mark.parametrize("options", [{"kernel_size": 2, "groups": 2}, {"kernel_size": (2, 1)}])
def test_convolutions_whose_shapes_nir_gets_wrong_are_named(options):
    """nir 1.0.8 leaves groups and the kernel's width out when it works out the shapes of a graph."""
    network = SpikeSequential(SpikeConv2d(4, 4, neuron=IF(), t_max=T, **options))
    with pytest.raises(ValueError, match=r"0 \(SpikeConv2d\)"):
        to_nir(network, input_shape=(4, 5, 5))


def test_our_own_graphs_are_in_bins_whatever_the_time_step():
    network = SpikeSequential(SpikeLinear(3, 2, IF(0.7, delay=2, beta=0.6), t_max=T))
    assert from_nir(to_nir(network), dt=0.25)[0].neuron == network[0].neuron


def test_a_graph_is_a_copy():
    network = SpikeSequential(SpikeLinear(3, 2, IF(), t_max=T, init_range=(1.0, 1.0)))
    graph = to_nir(network)
    for parameter in (network[0].weight, from_nir(graph)[0].weight):
        nn.init.zeros_(parameter)
    assert (graph.nodes["linear"].weight == 1).all()


def test_a_layer_that_stands_twice_is_exported_twice():
    layer = SpikeLinear(3, 3, IF(), t_max=T)
    assert [type(n).__name__ for n in to_nir(SpikeSequential(layer, layer)).nodes.values()].count("IF") == 2


# An independent simulator, which knows nothing but NIR's equations, by Euler's method with dt = 1


def _pairs(value):
    return tuple(int(v) for v in np.broadcast_to(np.asarray(value), 2))


def _simulate(graph, trains):
    """Spike trains [T, batch, *] of the output node."""
    after = dict(graph.edges)
    (name,) = (name for name, node in graph.nodes.items() if isinstance(node, nir.Input))
    signal = trains
    while (name := after[name]) in after:
        signal = _node(graph.nodes[name], signal)
    return signal


def _node(node, trains):
    tensor = torch.from_numpy
    if isinstance(node, nir.Linear | nir.Affine):
        return trains @ tensor(node.weight).T + (tensor(node.bias) if isinstance(node, nir.Affine) else 0)
    if isinstance(node, nir.Flatten):
        return trains.flatten(2)
    if isinstance(node, nir.Delay):
        bins = int(node.delay.flat[0])
        return torch.cat([torch.zeros_like(trains[:bins]), trains[: len(trains) - bins]])
    if isinstance(node, nir.IF | nir.LIF):
        v, spikes = torch.zeros_like(trains[0]), []
        for current in trains:
            if isinstance(node, nir.LIF):
                leak = tensor(node.v_leak) - v + tensor(node.r) * current
                v = v + leak / tensor(node.tau)
            else:
                v = v + tensor(node.r) * current
            fired = v > tensor(node.v_threshold)
            v = torch.where(fired, tensor(node.v_reset), v)
            spikes.append(fired.to(trains.dtype))
        return torch.stack(spikes)
    images = trains.flatten(0, 1)
    if isinstance(node, nir.Conv2d):
        sizes = _pairs(node.stride), _pairs(node.padding), _pairs(node.dilation), int(node.groups)
        images = conv2d(images, tensor(node.weight), tensor(node.bias).to(images.dtype), *sizes)
    else:
        window = _pairs(node.kernel_size), _pairs(node.stride), _pairs(node.padding)
        images = avg_pool2d(images, *window)
        images = images * math.prod(window[0]) if isinstance(node, nir.SumPool2d) else images
    return images.unflatten(0, trains.shape[:2])


@in_both_precisions
@on_both
def test_the_graph_means_the_same_to_a_simulator_of_nir(tmp_path, kind, dtype):
    model, shape = _model(kind, "snntorch", dtype)
    graph = filed(to_nir(model, input_shape=shape, t_max=T), tmp_path)
    times = _times((1000, *shape)).to(dtype)
    spikes = _simulate(graph, times_to_spikes(times, T))
    assert spikes.sum(0).max() == 1
    assert torch.equal(spikes_to_times(spikes), to_event_driven(model, t_max=T)(times).to(dtype))


def test_pools_and_delays_mean_the_same_to_a_simulator_of_nir():
    network = _weights(
        SpikeSequential(
            SpikeConv2d(1, 3, 3, IF(0.5, delay=1, beta=0.9), t_max=T, padding=1),
            EarliestSpikePool2d((3, 2), 2, 1),
            SpikeFlatten(),
            SpikeLinear(48, 4, IF(4.0, delay=2), t_max=T, bias=True),
        ),
        torch.float64,
    )
    times = _times((200, 1, 7, 7))
    out = network(times)
    spikes = _simulate(to_nir(network, input_shape=(1, 7, 7)), times_to_spikes(times, T))
    assert spikes.sum(0).max() == 1
    assert torch.equal(spikes_to_times(spikes), out)
    assert 0.2 < out.isfinite().double().mean() < 0.99


@pytest.mark.parametrize("beta", [0.99, 0.5])
def test_a_leak_does_not_let_a_neuron_fire_again(beta):
    """A reset potential of -1e9 has decayed after 30 bins with a leak of 1/2."""
    network = SpikeSequential(SpikeLinear(2, 1, IF(1.0, beta=beta), t_max=64)).double()
    nn.init.constant_(network[0].weight, 2.0)
    trains = times_to_spikes(torch.tensor([[3.0, 60.0]]).double(), 64)
    spikes = _simulate(to_nir(network), trains)
    assert spikes.flatten().nonzero().tolist() == [[3]]


# Graphs of others


def _chain(*nodes, n_in=3, n_out=2):
    return chain(*nodes, shape=(n_in,), out=(n_out,))


def _weight(n_in=3):
    return nir.Linear(np.ones((2, n_in)))


def _if(r=1.0, v_threshold=1.0, v_reset=-1e9, **options):
    values = (np.broadcast_to(np.float64(value), 2).copy() for value in (r, v_threshold, v_reset))
    return nir.IF(*values, **options)


def _lif(tau=4.0, r=1.0, v_leak=0.0, v_threshold=1.0, v_reset=-1e9, **options):
    values = (
        np.broadcast_to(np.float64(value), 2).copy() for value in (tau, r, v_leak, v_threshold, v_reset)
    )
    return nir.LIF(*values, **options)


@pytest.mark.parametrize(
    ("node", "options", "expected"),
    [
        (_if(), {}, IF(1.0)),
        (_if(r=4.0, v_threshold=2.0), {}, IF(0.5)),
        (_if(v_reset=0.0), {"single_spike": True}, IF(1.0)),
        (_if(v_reset=0.0, metadata={"single_spike": True}), {}, IF(1.0)),
        (_lif(), {}, IF(4.0, beta=0.75)),
        (_lif(r=4.0), {}, IF(1.0, beta=0.75)),
        (_lif(tau=2**-6, v_threshold=3.0), {"dt": 2**-8}, IF(12.0, beta=0.75)),
        (_lif(tau=2**-6, r=8.0), {"dt": 2**-8}, IF(0.5, beta=0.75)),
        (_lif(tau=1.0, v_reset=0.0), {"single_spike": True}, IF(1.0, beta=0.0)),
    ],
)
def test_neurons_of_others(node, options, expected):
    (layer,) = from_nir(_chain(_weight(), node), t_max=T, **options)
    assert layer.neuron == expected
    times = _times((50, 3))
    spikes = _simulate(_chain(_weight(), node), times_to_spikes(times, T))
    if "dt" not in options:
        assert torch.equal(layer.double()(times), spikes_to_times(spikes))


def test_delays_of_others_are_in_their_unit_of_time():
    graph = _chain(_weight(), _lif(tau=2**-6), nir.Delay(np.full(2, 3 * 2**-8)))
    assert from_nir(graph, t_max=T, dt=2**-8)[0].neuron == IF(4.0, delay=3, beta=0.75)


def test_weights_of_several_precisions_get_the_highest():
    nodes = [
        nir.Linear(np.full((2, 2), 0.1)),
        nir.IF(np.ones(2), np.full(2, 0.1)),
        nir.Linear(np.ones((1, 2), np.float32)),
        nir.IF(np.ones(1), np.ones(1)),
    ]
    ends = nir.Input({"input": np.array([2])}), nir.Output({"output": np.array([1])})
    network = from_nir(nir.NIRGraph.from_list(ends[0], *nodes, ends[1]), t_max=4, single_spike=True)
    assert network(torch.tensor([[1.0, 3.0]], dtype=torch.float64)).tolist() == [[3.0]]
    assert network[0].weight.tolist() == [[0.1, 0.1], [0.1, 0.1]]


def test_the_window_is_that_of_the_metadata_or_of_the_call():
    graph = to_nir(SpikeSequential(SpikeLinear(3, 2, IF(), t_max=T)))
    assert from_nir(graph)[0].t_max == T
    assert from_nir(graph, t_max=99)[0].t_max == 99


def _branches():
    nodes = {"in": nir.Input({"input": np.array([2])}), "a": _weight(2), "b": _weight(2), "if": _if()}
    nodes["out"] = nir.Output({"output": np.array([2])})
    edges = [("in", "a"), ("in", "b"), ("a", "if"), ("b", "if"), ("if", "out")]
    return nir.NIRGraph(nodes, edges)


def _joins():
    nodes = {"in": nir.Input({"input": np.array([2])}), "too": nir.Input({"input": np.array([2])})}
    nodes |= {"if": _if(), "out": nir.Output({"output": np.array([2])})}
    return nir.NIRGraph(nodes, [("in", "if"), ("too", "if"), ("if", "out")])


def _loop():
    nodes = {"in": nir.Input({"input": np.array([2])}), "a": _weight(2), "if": _if()}
    nodes["out"] = nir.Output({"output": np.array([2])})
    return nir.NIRGraph(nodes, [("in", "a"), ("a", "if"), ("if", "a"), ("if", "out")])


def _apart():
    nodes = {"in": nir.Input({"input": np.array([2])}), "if": _if(), "a": _weight(2)}
    nodes["out"] = nir.Output({"output": np.array([2])})
    return nir.NIRGraph(nodes, [("in", "if"), ("if", "out")], type_check=False)


def _pool():
    return nir.SumPool2d(*(np.array(size) for size in ((2, 2), (2, 2), (0, 0))))


def _images(*nodes):
    shapes = nir.Input({"input": np.array([1, 4, 4])}), nir.Output({"output": np.array([1, 2, 2])})
    return nir.NIRGraph.from_list(shapes[0], *nodes, shapes[1], type_check=False)


def _delay_behind_a_pool():
    pool = EarliestSpikePool2d(2), SpikeFlatten(), SpikeLinear(4, 2, IF(), t_max=T)
    graph = to_nir(SpikeSequential(SpikeConv2d(1, 1, 1, IF(), t_max=T), *pool), input_shape=(1, 4, 4))
    before = next(a for a, b in graph.edges if b == "flatten")
    nodes = graph.nodes | {"delay": nir.Delay(np.full((1, 2, 2), 3.0))}
    edges = [edge for edge in graph.edges if edge != (before, "flatten")]
    return nir.NIRGraph(nodes, [*edges, (before, "delay"), ("delay", "flatten")], type_check=False)


def _different_windows():
    a, b = (to_nir(SpikeSequential(SpikeLinear(3, 3, IF(), t_max=t_max))) for t_max in (8, 9))
    nodes = [a.nodes["linear"], a.nodes["if"], b.nodes["linear"], b.nodes["if"]]
    return _chain(*nodes, n_out=3)


def _cuba():
    return nir.CubaLIF(*(np.ones(2) for _ in range(5)))


MARKED = {"single_spike": True, "delay": 2}
NO_LAYER = "has no counterpart among the layers on spike times"
NO_CHAIN = "graph must be a chain"


BEHIND = r"^delay(_1)? \(Delay\) must stand right behind a neuron"


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        (lambda: _chain(_weight(), nir.Scale(np.ones(2)), _if()), {}, rf"^scale \(Scale\) {NO_LAYER}"),
        (lambda: _chain(_weight(), _cuba()), {}, rf"^cubalif \(CubaLIF\) {NO_LAYER}"),
        (lambda: _chain(_weight(), nir.Threshold(np.ones(2))), {}, rf"^threshold \(Threshold\) {NO_LAYER}"),
        (lambda: _chain(_chain(_weight()), _if()), {}, rf"^nirgraph \(NIRGraph\) {NO_LAYER}"),
        (_branches, {}, f"{NO_CHAIN} with one Input node; it branches"),
        (_joins, {}, f"{NO_CHAIN} with one Input node; it branches, joins"),
        (_loop, {}, NO_CHAIN),
        (_apart, {}, f"{NO_CHAIN} from its Input node to its Output node"),
        (lambda: _chain(_weight(), _if()), {"t_max": None}, "t_max must be given: .* have no window T"),
        (
            _different_windows,
            {"t_max": None},
            r"t_max must be given: the graph's metadata have \[8\.0, 9\.0\]",
        ),
        (
            lambda: _chain(_weight(), _if(v_reset=0.0)),
            {},
            r"^if \(IF\) may fire more than once: v_reset is 0\.0\. Pass single_spike=True",
        ),
        (
            lambda: _chain(_weight(), _lif(v_reset=[-1e9, 0.5])),
            {},
            r"^lif \(LIF\) may fire .*v_reset is 0\.5",
        ),
        (lambda: _chain(_weight(), _lif(v_leak=0.5)), {}, r"^lif \(LIF\): v_leak must be 0, got 0\.5"),
        (
            lambda: _chain(_weight(), _if(v_threshold=[1.0, 2.0])),
            {},
            "^if: v_threshold must be the same for all neurons, got 2 values",
        ),
        (lambda: _chain(_weight(), _if(r=[1.0, 2.0])), {}, "^if: r must be the same for all neurons, got 2"),
        (lambda: _chain(_weight(), _lif(tau=[1.0, 2.0])), {}, "^lif: tau must be the same for all neurons"),
        (
            lambda: _chain(_weight(), _if(), nir.Delay(np.array([1.0, 2.0]))),
            {},
            "^if: delay must be the same for all neurons, got 2 values",
        ),
        (
            lambda: _chain(_weight(), _if(metadata=MARKED), nir.Delay(np.full(2, 1.0))),
            {},
            r"^if: its delay is 1\.0 in the graph and 2\.0 in its metadata",
        ),
        (lambda: _chain(_weight(), _if(metadata=MARKED)), {}, r"^if: its delay is 0\.0 in the graph and 2"),
        (
            lambda: _chain(_weight(), _if(), nir.Delay(np.full(2, 1.5))),
            {},
            r"delay must be a whole number of bins >= 0, got 1\.5",
        ),
        (lambda: _chain(nir.Delay(np.ones(3)), _weight(), _if()), {}, BEHIND),
        (lambda: _chain(_weight(), nir.Delay(np.ones(2)), _if()), {}, BEHIND),
        (_delay_behind_a_pool, {}, BEHIND),
        (
            lambda: _chain(n_out=3),
            {},
            "graph must have neurons between its Input and its Output node, got none",
        ),
        (
            lambda: _chain(nir.Linear(np.ones((2, 3), dtype=np.int64)), _if()),
            {},
            r"^linear: weight must be floating-point, got torch.int64",
        ),
        (lambda: _chain(_weight(), _if(), *[nir.Delay(np.ones(2))] * 2), {}, BEHIND),
        (lambda: _images(_pool()), {}, r"^sumpool2d \(SumPool2d\) needs a Linear, Affine or Conv2d node"),
        (
            lambda: _images(_pool(), nir.IF(*(np.full((1, 2, 2), x) for x in (1.0, 0.5, -1e9)))),
            {},
            r"^sumpool2d \(SumPool2d\) needs a Linear, Affine or Conv2d node beside it",
        ),
        (
            lambda: _images(nir.Flatten({"input": np.array([1, 4, 4])}, start_dim=1)),
            {},
            r"^flatten \(Flatten\) must flatten the whole sample, start_dim 0, got 1",
        ),
        (
            lambda: _images(nir.Flatten({"input": np.array([1, 4, 4])}, start_dim=0, end_dim=1)),
            {},
            r"^flatten \(Flatten\) must flatten the whole sample",
        ),
        (
            lambda: _images(nir.Linear(np.ones((1, 4, 4))), _if()),
            {},
            r"^linear: weight must have shape \[out, in\], got",
        ),
        (lambda: _chain(_weight(), _if()), {"dt": 0.0}, "dt must be finite and greater than 0, got 0"),
        (lambda: _chain(_weight(), _if()), {"host": "lava"}, "host must be one of 'snntorch', 'norse', got"),
        (lambda: _chain(_weight(), _if(r=0.0)), {}, r"^if \(IF\): r must be above 0, got 0\.0"),
    ],
)
def test_graphs_that_cannot_be_read_are_named(graph, options, message):
    with pytest.raises(ValueError, match=message):
        from_nir(graph(), **{"t_max": T, **options})


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([_weight()], r"^linear \(Linear\) has no time mode: the model must end with neurons"),
        ([_weight(), _weight(2), _if()], r"^linear_1 \(Linear\) .* two weight layers follow each other"),
        ([_weight(), _if(), _if()], r"^if_1 \(IF\) has no time mode: it needs a Linear or Conv2d in front"),
        ([_weight(), _lif(tau=0.25)], r"^lif \(LIF\): tau must be at least dt = 1\.0"),
    ],
)
def test_chains_without_a_time_mode_are_refused(nodes, message):
    with pytest.raises((NoTimeMode, ValueError), match=message):
        from_nir(_chain(*nodes), t_max=T)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(3, 2), HIDDEN()),
            {},
            ValueError,
            "t_max must be the number of steps",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), snn.Leaky(0.9)),
            {"t_max": T},
            NoTimeMode,
            r"^1 \(Leaky\) has no time mode: it may fire more than once",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), snn.Alpha(0.9, 0.8)),
            {"t_max": T},
            NoTimeMode,
            r"^1 \(Alpha\) has no time mode: it may fire more than once",
        ),
        (
            lambda: norse.SequentialState(nn.Linear(3, 2), norse.LICell()),
            {"t_max": T},
            NoTimeMode,
            r"^1 \(LICell\) has no time mode: it is a read-out, which needs neurons in front",
        ),
        (
            lambda: norse.SequentialState(nn.Linear(3, 2), SingleSpikeIF(), nn.Softmax(-1)),
            {"t_max": T},
            NoTimeMode,
            r"^2 \(Softmax\) has no time mode: a network on spike times is made of",
        ),
        (
            lambda: SpikeSequential(SpikeLinear(3, 2, IF(), t_max=T), nn.ReLU()),
            {},
            TypeError,
            r"^1 \(ReLU\) is no layer of ssnn_plugin\.nn",
        ),
        (
            lambda: SpikeSequential(SpikeConv2d(1, 2, 3, IF(), t_max=T)),
            {},
            ValueError,
            "input_shape must be given for a model that starts with SpikeConv2d",
        ),
        (
            lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2), HIDDEN()),
            {"t_max": T},
            ValueError,
            "input_shape must be given for a model that starts with SpikeLinear",
        ),
        (
            lambda: SpikeSequential(SpikeLinear(3, 3, IF(), t_max=8), SpikeLinear(3, 3, IF(), t_max=9)),
            {},
            ValueError,
            r"model must have layers with neurons and one t_max, got \[8, 9\]",
        ),
        (
            lambda: SpikeSequential(SpikeLinear(3, 2, IF(), t_max=T)),
            {"tie_rule": "lenient"},
            ValueError,
            "tie_rule must be one of 'first_index', 'potential', 'unique', got 'lenient'",
        ),
        (
            lambda: SpikeSequential(SpikeLinear(3, 2, IF(), t_max=T)),
            {"input_shape": [4]},
            ValueError,
            r"weight of shape \[out, in\], got \[1, 4\] and \[2, 3\]",
        ),
    ],
)
def test_models_that_cannot_be_written_are_named(model, options, error, message):
    with pytest.raises(error, match=message):
        to_nir(model(), **options)


def test_a_layer_and_a_plain_sequential_can_be_written():
    layer = SpikeLinear(3, 2, IF(), t_max=8)
    for model in (layer, torch.nn.Sequential(layer)):
        assert torch.equal(from_nir(to_nir(model))[0].weight, layer.weight)


@pytest.mark.parametrize("t_max", [0, -1, 7.5])
def test_a_window_that_is_no_number_of_bins_is_named(t_max):
    graph = to_nir(SpikeLinear(3, 2, IF(), t_max=8))
    with pytest.raises(ValueError, match=f"t_max must be a whole number of at least 1, got {t_max}"):
        from_nir(graph, t_max=t_max)


def test_weights_that_are_computed_are_written_as_they_are():
    network = SpikeSequential(SpikeLinear(6, 3, IF(), t_max=8))
    parametrize.register_parametrization(network[0], "weight", WeightStandardization())
    times = torch.rand(20, 6).mul(8).floor()
    assert torch.equal(from_nir(to_nir(network))(times), network(times))
