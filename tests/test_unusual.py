"""Layers where processors, modes and thresholds are unusual."""

import math

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ssnn_plugin import IF, FusedStep, encode
from ssnn_plugin.functional import fill_silent, first_spike_linear, latch, normalize_error
from ssnn_plugin.functional.pool import AveragePool
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import InBins, SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential
from ssnn_plugin.rules import Rule

T = 8


def _times(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    times = torch.randint(0, T + 2, shape, generator=generator).float()
    return times.masked_fill(times >= T, math.inf)


@pytest.fixture
def flushed():
    """A processor that takes what is below the smallest normal number for 0."""
    if not torch.set_flush_denormal(True):
        pytest.skip("the processor has no such mode")
    yield
    torch.set_flush_denormal(False)


def _gradients(backend):
    weight = torch.tensor([[2.0, 0.5], [0.2, 1.0]], requires_grad=True)
    times = torch.tensor([[0.0, 3.0], [0.0, 0.0], [-0.0, 1.0]], requires_grad=True)
    spikes = first_spike_linear(times, weight, IF(), t_max=T, backend=backend)
    return torch.autograd.grad(fill_silent(spikes, T).sum(), [weight, times])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_spike_in_the_first_bin_learns_where_denormal_numbers_are_zero(backend, request):
    expected = _gradients(backend)
    assert expected[0][0, 0] < 0
    request.getfixturevalue("flushed")
    for found, gradient in zip(_gradients(backend), expected, strict=True):
        assert torch.equal(found, gradient)


def _stepped():
    torch.manual_seed(0)
    network = SpikeSequential(
        SpikeLinear(6, 5, IF(), t_max=T, init_range=(0.0, 1.0)),
        SpikeLinear(5, 3, IF(), t_max=T, init_range=(0.0, 1.0), silent_gradient=True),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    FusedStep(network, RelativeTargetLoss(gamma=2, t_max=T), optimizer)(
        _times(4, 6), torch.tensor([0, 1, 2, 0])
    )
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_a_fused_step_learns_where_denormal_numbers_are_zero(request):
    expected = _stepped()
    request.getfixturevalue("flushed")
    for found, weight in zip(_stepped(), expected, strict=True):
        assert torch.equal(found, weight)


@pytest.mark.parametrize(
    ("threshold", "options", "error"),
    [
        (torch.ones(3, dtype=torch.float64), {}, TypeError),
        (torch.ones(1), {}, ValueError),
        (torch.ones(3), {"delay": 1, "t_max": 2**25}, ValueError),
    ],
    ids=["precision", "length", "window"],
)
def test_a_decision_refuses_the_thresholds_that_a_call_refuses(threshold, options, error):
    neuron = IF(threshold, delay=options.get("delay", 0))
    network = SpikeSequential(SpikeLinear(6, 3, neuron, t_max=options.get("t_max", T)))
    with pytest.raises(error) as called:
        network(_times(4, 6))
    with pytest.raises(error) as decided:
        network.decide(_times(4, 6))
    assert str(decided.value) == str(called.value)


def test_a_decision_refuses_thresholds_that_have_become_negative():
    network = SpikeSequential(SpikeLinear(6, 2, IF(nn.Parameter(torch.ones(2))), t_max=T))
    with torch.no_grad():
        network[0].threshold.copy_(torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match="threshold must be"):
        network.decide(_times(4, 6))


@pytest.mark.parametrize("kind", ["input_pool", "output_pool", "linear"])
def test_average_pools_keep_their_digits_under_autocast(kind):
    torch.manual_seed(0)
    if kind == "linear":
        layer = SpikeLinear(8, 3, IF(), t_max=T, input_pool=AveragePool(2), init_range=(0.0, 1.0))
        times = _times(4, 2, 4, 4)
    else:
        layer = SpikeConv2d(2, 3, 3, IF(), t_max=T, init_range=(0.0, 0.3), **{kind: AveragePool(2)})
        times = _times(4, 2, 8, 8)
    expected = layer(times)
    assert expected.isfinite().any()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(times), expected)


def test_a_leak_in_bins_keeps_its_digits_under_autocast():
    torch.manual_seed(0)
    network = SpikeSequential(
        SpikeLinear(200, 30, IF(beta=0.5), t_max=64), SpikeLinear(30, 4, IF(), t_max=64)
    )
    learning = InBins(network)
    times = encode.latency(torch.rand(8, 200), 64)
    expected = learning.layers(times)[1].potentials
    with torch.autocast("cpu", torch.bfloat16):
        found = learning.layers(times)[1].potentials
    torch.testing.assert_close(found, expected)


def _hooked(network):
    network[1].register_forward_hook(lambda module, given, output: output + 1)


def _overridden(network):
    network[1].forward = lambda times: times + 1


@pytest.mark.parametrize("change", [_hooked, _overridden])
def test_bins_leave_out_nothing_that_a_container_does(change):
    network = SpikeSequential(
        SpikeLinear(6, 5, IF(), t_max=T), nn.Sequential(SpikeLinear(5, 3, IF(), t_max=T))
    )
    change(network)
    with pytest.raises(TypeError, match=r"Sequential (must have no hooks|has a forward of its own)"):
        InBins(network)(_times(4, 6))


class Late(Rule):
    """The later a spike, the more it learns: without an end where there is none."""

    def rate(self, crossing):
        return (1 + crossing.at) / T


@pytest.mark.parametrize("potentials", [False, True])
def test_a_rate_may_be_infinite_where_a_neuron_is_silent(potentials):
    weight = torch.tensor([[2.0, 0.5], [0.1, 0.1]], requires_grad=True)
    times = torch.tensor([[0.0, 3.0], [2.0, 2.0]])
    spikes, potential = first_spike_linear(
        times, weight, IF(), t_max=T, gradient=Late(), return_potential=True
    )
    loss = fill_silent(spikes, T).sum() + (potential.sum() if potentials else 0)
    (found,) = torch.autograd.grad(loss, weight)
    assert found.isfinite().all()
    assert found[1].tolist() == ([2.0, 2.0] if potentials else [0.0, 0.0])


def test_a_traced_layer_computes():
    weight = torch.tensor([[0.6, 0.6]])

    def spikes(times):
        return first_spike_linear(times, weight, IF(), t_max=T)

    graph = make_fx(spikes)(torch.tensor([[0.0, 1.0]]))
    later = torch.tensor([[2.0, 4.0]])
    assert graph(later).tolist() == spikes(later).tolist() == [[4.0]]


@pytest.mark.parametrize("function", [lambda x: x, normalize_error], ids=["layer", "normalised"])
def test_many_gradients_at_once(function):
    torch.manual_seed(0)
    layer = SpikeLinear(6, 3, IF(), t_max=T, init_range=(0.0, 1.0))
    outputs = fill_silent(function(layer(_times(4, 6))), T)
    each = torch.eye(outputs.numel()).reshape(-1, *outputs.shape)
    (found,) = torch.autograd.grad(outputs, layer.weight, each, is_grads_batched=True, retain_graph=True)
    for number, one in enumerate(each):
        (expected,) = torch.autograd.grad(outputs, layer.weight, one, retain_graph=True)
        torch.testing.assert_close(found[number], expected)


def test_networks_in_bins_are_compiled_as_one_graph():
    network = SpikeSequential(
        SpikeConv2d(1, 2, 3, IF(), t_max=T), SpikeFlatten(), SpikeLinear(8, 3, IF(), t_max=T)
    )
    learning, times = InBins(network), _times(2, 1, 4, 4)
    one_graph = torch.__version__ >= "2.14"  # those of 2.9 and 2.10 are of several
    assert torch.equal(torch.compile(learning, backend="eager", fullgraph=one_graph)(times), learning(times))


def test_layers_without_values():
    with torch.device("meta"):
        network = SpikeSequential(
            SpikeLinear(6, 5, IF(), t_max=T), SpikeLinear(5, 3, IF(torch.ones(3)), t_max=T)
        )
        assert network(torch.zeros(4, 6)).shape == (4, 3)
        assert InBins(network[:1])(torch.zeros(4, 6)).shape == (4, 5)


def test_little_intensity_is_no_silence():
    little = torch.sigmoid(torch.tensor([-36.0, -40.0, -math.inf]))
    assert encode.latency(little, 256).tolist() == [255, 255, math.inf]
    assert encode.latency(little.double(), 2.5).tolist() == [2, 2, math.inf]


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (torch.zeros(5, 1, 3), r"must broadcast to the neurons \[3\], got shape \[5, 1, 3\]"),
        (torch.zeros(2), r"must broadcast to the neurons \[3\], got shape \[2\]"),
        (torch.tensor([0.0, math.nan, 0.0]), "threshold must hold numbers"),
    ],
)
def test_thresholds_of_a_latch_are_of_its_neurons(threshold, message):
    with pytest.raises(ValueError, match=message):
        latch(torch.randn(4, 3), threshold)
