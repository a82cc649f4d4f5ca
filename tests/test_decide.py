"""The decision of a network in one pass, against its layers one by one."""

import copy
import math

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import in_both_precisions
from torch import nn

from ssnn_plugin import IF, ReLPSP, decode, encode, metrics
from ssnn_plugin.nn import (
    AveragePool,
    EarliestSpikePool2d,
    EventDrivenNetwork,
    SpikeConv2d,
    SpikeFlatten,
    SpikeLinear,
    SpikeSequential,
)
from ssnn_plugin.nn import decision as decisions

RULES = [(tie, silent) for tie in decode.TIES for silent in (None, "potential", "undecided")]


def times_of(batch, features, t_max, *, firing=0.6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    times = torch.randint(0, t_max + 2, (batch, features), generator=generator).to(dtype)
    return times.masked_fill(torch.rand(batch, features, generator=generator) > firing, math.inf)


def network_of(sizes, neurons, t_max=16, *, seed=0, bias=False, dtype=torch.float32):
    """Weights are multiples of 1/4, so that sums are exact, and often tie."""
    torch.manual_seed(seed)
    neurons = neurons if isinstance(neurons, list) else [neurons] * (len(sizes) - 1)
    layers = [
        SpikeLinear(n_in, n_out, neuron, t_max=t_max, bias=bias, dtype=dtype)
        for n_in, n_out, neuron in zip(sizes, sizes[1:], neurons, strict=False)
    ]
    for layer in layers:
        for parameter in [layer.weight] if layer.bias is None else [layer.weight, layer.bias]:
            parameter.data = torch.randint(-6, 9, parameter.shape).to(dtype) / 4
    return SpikeSequential(*layers)


def assert_decides(network, times, tie="potential", all_silent=None, inputs=None):
    """As the layers and `decode` have it; `inputs` are what stands for the times."""
    layers, outputs = [times], times
    for layer in list(network)[:-1]:
        outputs = layer(outputs)
        layers.append(outputs)
    outputs, potential = network[-1](outputs, return_potential=True)
    inputs = times if inputs is None else inputs
    found = network.decide(inputs, tie=tie, all_silent=all_silent)
    assert torch.equal(found.winner, decode.first_to_fire(outputs, potential, tie=tie, all_silent=all_silent))
    time = outputs.amin(1)
    assert torch.equal(found.time, time)
    first = (outputs == time[:, None]) & outputs.isfinite()
    assert torch.equal(found.times, outputs.masked_fill(~first, math.inf))
    decides = first | time.isinf()[:, None]
    assert torch.equal(found.potential, potential.masked_fill(~decides, 0))
    window = network[0].t_max
    counted = [
        ((spikes < window if k == 0 else spikes.isfinite()) & (spikes <= time[:, None])).sum(1)
        for k, spikes in enumerate([*layers, outputs])
    ]
    assert torch.equal(found.spikes, torch.stack(counted, 1))
    for got, dtype in zip(found, (torch.int64, *[times.dtype] * 3, torch.int64), strict=True):
        assert got.dtype == dtype
        assert not got.requires_grad
    return found


def is_fused(network, inputs):
    return decisions.decide_event_by_event(network, inputs, "potential", True) is not None


@pytest.mark.parametrize(("tie", "all_silent"), RULES)
def test_every_rule(tie, all_silent):
    network = network_of([12, 20, 5], IF(2.0, delay=1))
    found = assert_decides(network, times_of(300, 12, 16), tie, all_silent)
    times = found.times
    assert (times.isfinite().sum(1) > 1).any()
    assert times.isinf().all(1).any()


@pytest.mark.parametrize("sizes", [[9, 4], [9, 17, 4], [30, 100, 33, 21, 6], [5, 400, 90]])
@pytest.mark.parametrize("delays", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 3, 1, 0), (2, 0, 0, 5)])
@in_both_precisions
def test_depths_and_delays(sizes, delays, dtype):
    neurons = [IF(1.5, delay=delay) for delay in delays]
    network = network_of(sizes, neurons, dtype=dtype)
    times = times_of(60, sizes[0], 16, dtype=dtype)
    assert is_fused(network, times)
    assert_decides(network, times)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    delay=st.integers(0, 2),
    t_max=st.integers(1, 30),
    firing=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    batch=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
def test_any_shape(sizes, delay, t_max, firing, batch, seed):
    network = network_of(sizes, IF(1.0, delay=delay), t_max, seed=seed)
    assert_decides(network, times_of(batch, sizes[0], t_max, firing=firing, seed=seed))


def test_many_inputs_of_one_bin_and_more_than_are_read_at_once():
    network = network_of([200, 90, 7], IF(40.0, delay=1), 8)
    assert_decides(network, times_of(100, 200, 3))


def test_many_times_that_a_delay_makes_one():
    """They are read in turn, and their neurons stand in the order of their index in the end."""
    network = network_of([100, 70, 9], [IF(1.0, delay=1), IF(3.0)], 8)
    times = torch.arange(100.0)[torch.randperm(100)].expand(20, 100) * 5e-10
    assert network[0](times).unique().tolist() == [1.0]
    assert_decides(network, times)


def test_random_weights_give_the_same_sums():
    torch.manual_seed(0)
    network = SpikeSequential(
        SpikeLinear(100, 170, IF(1.0, delay=1), t_max=64), SpikeLinear(170, 10, IF(1.0, delay=1), t_max=64)
    )
    for layer in network:
        nn.init.normal_(layer.weight, 0.02, 0.15)
    found = assert_decides(network, times_of(200, 100, 64))
    assert found.time.isfinite().float().mean() > 0.5


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("delay", [0, 1])
def test_leak_and_bias(beta, bias, delay):
    """In double precision all sums of these are exact."""
    network = network_of([8, 20, 6, 5], IF(2.0, delay=delay, beta=beta), 12, bias=bias, dtype=torch.float64)
    for layer in network:
        if bias:
            layer.bias.data = layer.bias / 8
    times = times_of(200, 8, 12, firing=0.4, dtype=torch.float64)
    assert is_fused(network, times)
    assert_decides(network, times)


@pytest.mark.parametrize(("silent", "t_max"), [(True, 10), (False, 16), (True, 16)])
def test_potentials_of_a_current_are_rounded_as_in_the_layers(silent, t_max):
    """Ten times 0.1 is 1, or a little more or less, by how it is rounded."""
    layer = SpikeLinear(1, 1, IF(1.0), t_max=t_max, bias=True)
    layer.weight.data.zero_()
    layer.bias.data.fill_(0.1)
    times = torch.tensor([[math.inf if silent else 10.0]])
    assert is_fused(SpikeSequential(layer), times)
    assert_decides(SpikeSequential(layer), times)


@pytest.mark.parametrize("beta", [1.0, 0.9, 0.3])
def test_currents_that_are_no_binary_fractions(beta):
    network = network_of([8, 60, 6], IF(1.0, delay=1, beta=beta), 30, bias=True)
    for layer in network:
        layer.bias.data = torch.rand_like(layer.bias) / 5
    assert_decides(network, times_of(200, 8, 30, firing=0.3))


@pytest.mark.parametrize("seed", range(6))
def test_layers_with_and_without_a_leak_and_a_bias(seed):
    generator = np.random.default_rng(seed)
    neurons = [IF(2.0, delay=1, beta=beta) for beta in generator.choice([1.0, 0.5, 0.0], 4)]
    network = network_of([8, 20, 9, 17, 5], neurons, 12, seed=seed, dtype=torch.float64)
    for layer in network:
        if generator.random() < 0.5:
            bias = torch.randint(-6, 9, (layer.out_features,)).double() / 32
            layer.register_parameter("bias", nn.Parameter(bias))
    times = times_of(100, 8, 12, firing=0.4, dtype=torch.float64)
    assert is_fused(network, times)
    assert_decides(network, times)


def test_a_bias_alone_drives_a_network():
    network = network_of([3, 4, 2], IF(1.0, delay=1), 16, bias=True)
    for layer in network:
        layer.bias.data = torch.rand_like(layer.bias).mul(8).round() / 16
    found = assert_decides(network, torch.full((2, 3), math.inf))
    assert found.time.isfinite().all()


def test_a_threshold_for_each_neuron():
    thresholds = [torch.tensor([1.0, 2.0, 4.0, 0.5] * 5), nn.Parameter(torch.tensor([2.0, 1.0, 4.0]))]
    network = network_of([10, 20, 3], [IF(threshold, delay=1) for threshold in thresholds])
    times = times_of(200, 10, 16)
    assert is_fused(network, times)
    assert_decides(network, times)


def test_layers_with_windows_of_their_own():
    torch.manual_seed(0)
    for windows in ((16, 8, 12), (8, 16, 5), (7.5, 9.25, 30)):
        sizes = [10, 30, 12, 4]
        layers = [
            SpikeLinear(n_in, n_out, IF(1.0, delay=1), t_max=t_max, init_range=(-0.5, 0.75))
            for n_in, n_out, t_max in zip(sizes, sizes[1:], windows, strict=False)
        ]
        assert_decides(SpikeSequential(*layers), times_of(100, 10, 12))


def test_times_between_bins_and_beyond_what_is_sorted_by_counting():
    network = network_of([20, 40, 5], IF(2.0, delay=1), 100_000)
    generator = torch.Generator().manual_seed(0)
    assert_decides(network, torch.rand(100, 20, generator=generator) * 20)
    assert_decides(network, torch.rand(100, 20, generator=generator) * 120_000)
    assert_decides(network, times_of(100, 20, 100_000))


def test_delays_that_round_different_times_to_one():
    """1 + 2^-24 and 1 are one number in single precision: spikes of both come in order of their neurons."""
    early, late = 2.0**-25, 2.0**-24
    network = network_of([2, 6, 3], IF(0.5, delay=1), 8)
    network[0].weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]] * 3)
    row = torch.tensor([0.3, 0.1, 0.7, -0.9, 0.2, 0.4])
    network[1].weight.data = torch.stack([row, 3 * row, -2 * row])
    times = torch.tensor([[early, late], [late, early]])
    assert len({*(times + 1).flatten().tolist()}) == 1
    assert_decides(network, times)
    single = network_of([2, 4], IF(0.5, delay=1), 8)
    single[0].weight.data = torch.tensor([[0.0, 1.0], [0.75, 0.0], [1.0, 0.0], [0.0, 0.0]])
    found = assert_decides(single, times)
    assert found.times.isfinite().sum(1).tolist() == [3, 3]


def test_a_sample_by_hand():
    """Input 0 fires hidden 0 in bin 2, which fires output 1 in bin 3; what comes later does not count."""
    network = SpikeSequential(
        SpikeLinear(3, 2, IF(1.0, delay=1), t_max=16), SpikeLinear(2, 2, IF(1.0, delay=1), t_max=16)
    )
    network[0].weight.data = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.5, 9.0]])
    network[1].weight.data = torch.tensor([[0.5, 9.0], [1.5, 0.0]])
    found = network.decide(torch.tensor([[1.0, 3.0, 4.0]]))
    assert found.winner.tolist() == [1]
    assert found.time.tolist() == [3]
    assert found.times.tolist() == [[math.inf, 3]]
    assert found.potential.tolist() == [[0, 1.5]]
    assert found.spikes.tolist() == [[2, 1, 1]]


def test_a_naive_loop_over_bins_decides_the_same():
    network = network_of([7, 9, 4], IF(1.5, delay=1), 10)
    times = times_of(40, 7, 10)
    found = network.decide(times)
    for b, sample in enumerate(times.numpy()):
        for layer in network:
            sample, potential = naive.first_spikes(sample, layer.weight.detach().numpy(), 1.5, 1, 10)
        assert found.time[b] == sample.min()
        first = sample == sample.min()  # all of them in silence
        assert found.winner[b] == np.where(first, potential, -np.inf).argmax()


def test_counts_are_those_of_the_metrics():
    network = network_of([12, 20, 5], IF(2.0, delay=1))
    times = times_of(300, 12, 16)
    hidden = network[0](times)
    counts = metrics.SpikeCounts(16)
    counts.update(times, hidden, network[1](hidden))
    expected = torch.tensor(counts.compute().until_decision, dtype=torch.float64)
    torch.testing.assert_close(network.decide(times).spikes.double().mean(0), expected)


@pytest.mark.parametrize("rule", metrics.RULES)
def test_its_times_and_potentials_give_the_accuracy_under_every_rule(rule):
    network = network_of([12, 20, 5], IF(2.0, delay=1))
    times, labels = times_of(300, 12, 16), torch.arange(300) % 5
    outputs, potential = network(times, return_potential=True)
    found = network.decide(times)
    expected = metrics.accuracy(outputs, labels, potential=potential, tie=rule)
    assert metrics.accuracy(found.times, labels, potential=found.potential, tie=rule) == expected


@pytest.mark.parametrize("t_max", [256, 255, 64, 7, 1000])
def test_images_are_their_latencies(t_max):
    network = network_of([30, 40, 5], IF(3.0, delay=1), t_max)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (200, 30), dtype=torch.uint8, generator=generator)
    images[torch.rand(200, 30, generator=generator) < 0.5] = 0
    images[0] = 0
    assert is_fused(network, images)
    assert_decides(network, encode.latency(images, t_max, x_max=255), inputs=images)


def test_images_of_any_shape_and_other_networks():
    images = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8)
    chain = network_of([36, 20, 5], IF(3.0, delay=1), 256)
    flat = SpikeSequential(SpikeFlatten(), *chain)
    assert is_fused(flat, images)
    decided = assert_decides(chain, encode.latency(images, 256, x_max=255).flatten(1))
    for found, expected in zip(flat.decide(images), decided, strict=True):
        assert torch.equal(found, expected)
    convolution = SpikeConv2d(1, 2, 3, IF(2.0), t_max=256)
    whole = SpikeSequential(convolution, nn.Flatten(), *network_of([32, 5], IF(), 256))
    times = encode.latency(images, 256, x_max=255)
    for found, expected in zip(whole.decide(images), whole.decide(times), strict=True):
        assert torch.equal(found, expected)


def test_chains_inside_a_chain():
    first, second = network_of([10, 20, 8], IF(1.0), 16), network_of([8, 5], IF(1.0), 16)
    nested = SpikeSequential(nn.Sequential(nn.Flatten(), *first), second)
    times = times_of(50, 10, 16)
    assert is_fused(nested, times)
    chain = SpikeSequential(*first, *second)
    for found, expected in zip(nested.decide(times), chain.decide(times), strict=True):
        assert torch.equal(found, expected)


def test_a_layer_that_stands_twice_runs_twice():
    (layer,), times = network_of([10, 10], IF(1.0, delay=1), 16), times_of(50, 10, 16)
    network, copies = SpikeSequential(layer, layer), SpikeSequential(layer, copy.deepcopy(layer))
    assert is_fused(network, times)
    for found, expected in zip(network.decide(times), copies.decide(times), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(network.decide(times).time, network(times).amin(1))


class Loud(SpikeLinear):
    def forward(self, times, return_potential=False):
        return super().forward(times + 1, return_potential)


def others():
    """Networks that the kernel does not run, and their inputs."""
    flat, image = times_of(50, 36, 16), times_of(50, 36, 16).reshape(50, 1, 6, 6)
    convolution = SpikeConv2d(1, 3, 3, IF(1.0), t_max=16, init_range=(-0.2, 0.5))
    yield [convolution, EarliestSpikePool2d(2), SpikeFlatten(), *network_of([12, 4], IF(), 16)], image
    pooled = SpikeLinear(9, 4, IF(), t_max=16, input_pool=AveragePool(2))
    yield [pooled], image
    yield list(network_of([36, 5], IF(1.0, beta=torch.linspace(0.5, 1, 5)), 16)), flat
    yield [SpikeLinear(36, 4, ReLPSP(), t_max=16)], flat
    yield [Loud(36, 4, IF(), t_max=16)], flat
    hooked = SpikeLinear(36, 4, IF(), t_max=16)
    hooked.register_forward_hook(lambda layer, given, out: tuple(o + 1 for o in out))
    yield [hooked], flat
    late = SpikeLinear(36, 4, IF(), t_max=16)
    late.forward = lambda t, return_potential=False: SpikeLinear.forward(late, t + 4, return_potential)
    yield [late], flat


@pytest.mark.parametrize(("tie", "all_silent"), RULES)
def test_both_ways_to_decide_agree_in_every_field(tie, all_silent):
    network, times = network_of([12, 20, 5], IF(2.0, delay=1)), times_of(300, 12, 16)
    arguments = network, times, tie, decisions.silent_by_potential(tie, all_silent)
    ways = decisions.decide_event_by_event, decisions.decide_layer_by_layer
    assert all(map(torch.equal, *(way(*arguments) for way in ways)))


@pytest.mark.parametrize("number", range(7))
def test_what_cannot_be_fused_runs_layer_by_layer(number):
    torch.manual_seed(0)
    layers, times = list(others())[number]
    network = SpikeSequential(*layers)
    assert not is_fused(network, times)
    outputs, potential = network(times, return_potential=True)
    found = network.decide(times)
    assert torch.equal(found.winner, decode.first_to_fire(outputs, potential))
    assert torch.equal(found.time, outputs.amin(1))
    neurons = sum(hasattr(layer, "neuron") for layer in layers)
    assert found.spikes.shape == (50, neurons + 1)
    assert not any(layer._forward_hooks for layer in layers if layer is not layers[0] or number != 5)


def test_a_network_that_keeps_to_a_model_follows_it_before_it_decides():
    layers, times = list(network_of([10, 20, 5], IF(1.0), 16)), times_of(50, 10, 16)
    double = [lambda: layers[0].weight.data.mul_(2)]
    network = EventDrivenNetwork(*layers, t_max=16, follow=double)
    expected = SpikeSequential(*network_of([10, 20, 5], IF(1.0), 16))
    expected[0].weight.data.mul_(2)
    for found, other in zip(network.decide(times), expected.decide(times), strict=True):
        assert torch.equal(found, other)


def test_a_network_without_neurons_decides_nothing():
    with pytest.raises(TypeError, match="decide needs a layer of neurons such as SpikeLinear, got"):
        SpikeSequential(SpikeFlatten()).decide(torch.zeros(1, 4))


def test_hooks_of_the_network_run():
    network, times = network_of([10, 5], IF(1.0), 16), times_of(50, 10, 16)
    before = network.decide(times)
    network.register_forward_hook(lambda module, given, out: (out[0] + 1, out[1]))
    assert torch.equal(network.decide(times).time, before.time + 1)


def test_values_are_not_decided_on():
    network = EventDrivenNetwork(*network_of([10, 5], IF(1.0), 16), t_max=16, takes="values")
    with pytest.raises(TypeError, match="takes values"):
        network.decide(torch.rand(3, 10))


def test_dropout_in_training_drops_spikes_and_none_otherwise():
    layers = [SpikeLinear(36, 4, IF(), t_max=16, dropout=0.5)]
    network = SpikeSequential(*layers)
    times = times_of(50, 36, 16)
    assert not is_fused(network.train(), times)
    assert is_fused(network.eval(), times)
    assert_decides(network, times)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter(threads, set_threads):
    network = network_of([100, 300, 10], IF(8.0, delay=1), 64)
    times = times_of(3000, 100, 64)
    expected = network.decide(times)
    set_threads(threads)
    found = network.decide(times)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda times: times.fill_(-1), ValueError, "spike times >= 0"),
        (lambda times: times.fill_(math.nan), ValueError, "spike times >= 0"),
        (lambda times: times[:, :3], ValueError, "times must have shape"),
        (lambda times: times.double(), TypeError, "must be the same"),
        (lambda times: times.half(), TypeError, "must be float32 or float64"),
    ],
)
def test_bad_inputs_are_refused_as_by_the_layers(change, error, message):
    network = network_of([8, 4], IF())
    with pytest.raises(error, match=message):
        network.decide(change(times_of(5, 8, 16)))


def test_weights_that_are_no_numbers_are_refused():
    network = network_of([8, 4], IF())
    network[0].weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        network.decide(torch.zeros(1, 8))
    biased = network_of([8, 4], IF(), bias=True)
    biased[0].bias.data.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        biased.decide(torch.zeros(1, 8))


def test_times_between_bins_are_refused_with_a_leak():
    with pytest.raises(ValueError, match="whole bins"):
        network_of([8, 4], IF(beta=0.5)).decide(torch.full((1, 8), 0.5))


@pytest.mark.parametrize("rule", [{"tie": "lenient"}, {"all_silent": "first"}])
def test_unknown_rules_are_refused(rule):
    with pytest.raises(ValueError, match=f"{next(iter(rule))} must be one of"):
        network_of([8, 4], IF()).decide(torch.zeros(1, 8), **rule)


def test_infinite_weights_decide_as_in_the_layers():
    network = network_of([8, 20, 4], IF(1.0), 16)
    network[0].weight.data[3, 2] = math.inf
    assert_decides(network, times_of(100, 8, 16))


def test_the_weights_of_a_moment():
    network = network_of([8, 20, 4], IF(1.0), 16)
    times = times_of(100, 8, 16)
    before = network.decide(times)
    network[0].weight.data.mul_(2)
    assert not torch.equal(assert_decides(network, times).time, before.time)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_as_in_a_call(dtype):
    network = SpikeSequential(SpikeLinear(4, 3, IF(), t_max=8)).to(dtype)
    for times in (torch.zeros(2, 4, dtype=dtype), torch.zeros(2, 4, dtype=torch.uint8)):
        with pytest.raises(TypeError, match=r"must be float32 or float64, got torch.b?float16"):
            network.decide(times)
