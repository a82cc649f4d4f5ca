"""`torch.func` over networks on spike times, layers in bins and windows of steps."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from ssnn_plugin import IF, ExpPSP, ReLPSP, WindowedRamp, encode, surrogate, to_event_driven
from ssnn_plugin.decode import first_spikes
from ssnn_plugin.functional import (
    bins_to_times,
    fill_silent,
    first_spike_linear,
    latch,
    normalize_error,
    single_spike_sequence,
    times_to_bins,
)
from ssnn_plugin.functional.bins import integrate
from ssnn_plugin.losses import RelativeTargetLoss, SingleTargetLoss
from ssnn_plugin.nn import (
    EachBin,
    EarliestSpikePool2d,
    InBins,
    Latch,
    SpikeConv2d,
    SpikeFlatten,
    SpikeLinear,
    SpikeSequential,
)
from ssnn_plugin.snntorch import SingleSpike, latency

T = 12


def _image():
    return torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _network(**options):
    model = nn.Sequential(
        nn.Linear(8, 6),
        SingleSpike(init_hidden=True, **options),
        nn.Linear(6, 3),
        SingleSpike(init_hidden=True, **options),
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model[::2]:
            module.weight.uniform_(-0.1, 0.5, generator=generator)
            module.bias.zero_()
    return to_event_driven(model, t_max=T)


def _loss(times):
    return fill_silent(times, T).pow(2).sum()


NETWORKS = {"events": _network, "bins": lambda: _network(learn_threshold=True)}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_parameters_for_a_call(name):
    network, times = NETWORKS[name](), encode.latency(_image(), T)
    other = {key: (value + 0.2).detach().requires_grad_() for key, value in network.named_parameters()}
    found = functional_call(network, other, (times,))
    before = network(times)
    assert not torch.equal(found, before)
    gradients = torch.autograd.grad(_loss(found), list(other.values()))
    with torch.no_grad():
        for key, value in network.named_parameters():
            value.copy_(other[key])
    assert torch.equal(network(times), found)
    expected = torch.autograd.grad(_loss(network(times)), list(network.parameters()))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_and_ensembles_are_mapped(name):
    network, times = NETWORKS[name](), encode.latency(_image(), T)
    one_by_one = vmap(lambda x: network(x.unsqueeze(0)).squeeze(0))(times)
    assert torch.equal(one_by_one, network(times))
    parameters = dict(network.named_parameters())
    several = {key: torch.stack([value, value + 0.2]) for key, value in parameters.items()}
    found = vmap(lambda p: functional_call(network, p, (times,)))(several)
    for number in range(2):
        chosen = {key: value[number] for key, value in several.items()}
        assert torch.equal(found[number], functional_call(network, chosen, (times,)))


def _same_per_sample(loss, parameters, samples, axis):
    found = vmap(grad(loss), (None, axis))(parameters, samples)
    for number in range(samples.shape[axis]):
        total = loss(parameters, samples.select(axis, number))
        expected = torch.autograd.grad(total, list(parameters.values()))
        assert any(one.any() for one in expected)
        for gradient, one in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(gradient[number], one)


def _same_for_each_sample_of(module, times):
    """The gradients of a loss of the spike times that a module makes of times [batch, *]."""
    parameters = dict(module.named_parameters())
    _same_per_sample(lambda p, x: _loss(functional_call(module, p, (x.unsqueeze(0),))), parameters, times, 0)


def test_gradients_of_each_sample_of_layers_in_bins():
    model = nn.Sequential(nn.Linear(8, 6), SingleSpike(init_hidden=True, learn_threshold=True)).double()
    nn.init.uniform_(model[0].weight, 0, 0.5)
    network, times = to_event_driven(model, t_max=T), encode.latency(_image(), T)
    _same_for_each_sample_of(network, times)


@pytest.mark.parametrize("silent_gradient", [False, True])
def test_gradients_of_each_sample_of_layers_by_events(silent_gradient):
    network, times = _network(), encode.latency(_image(), T)
    network[-1].silent_gradient = silent_gradient
    _same_for_each_sample_of(network, times)


def test_gradients_of_each_sample_of_convolutions():
    layer = SpikeConv2d(2, 3, 3, IF(1.0), t_max=T, bias=True, init_range=(-0.1, 0.4)).double()
    image = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = encode.latency(image, T)
    _same_for_each_sample_of(layer, times)


def test_gradients_of_each_sample_of_a_window():
    linear, lif = nn.Linear(8, 6).double(), SingleSpike(sequence=True)
    nn.init.uniform_(linear.weight, 0, 0.5)
    _same_per_sample(
        lambda p, x: _loss(first_spikes(lif(functional_call(linear, p, (x,)))[0])),
        dict(linear.named_parameters()),
        latency(_image(), T),
        1,
    )


RULES = [surrogate.Arctan(), surrogate.Triangle(), surrogate.EscapeNoise()]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_gradients_of_each_sample_of_a_network_in_bins(rule, beta):
    torch.manual_seed(0)
    network = SpikeSequential(
        SpikeConv2d(2, 3, 3, IF(beta=beta), t_max=T, bias=True, init_range=(-0.1, 0.4)),
        EarliestSpikePool2d(2),
        SpikeFlatten(),
        SpikeLinear(12, 4, IF(beta=beta), t_max=T, init_range=(-0.5, 1.0)),
    ).double()
    learning = InBins(network, rule)
    image = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = encode.latency(image, T)
    _same_for_each_sample_of(learning, times)


def test_gradients_of_each_sample_of_torchs_own_layers_in_bins():
    torch.manual_seed(0)
    plain = nn.Sequential(
        EachBin(nn.Conv2d(2, 3, 3)), Latch(), EachBin(nn.Flatten()), EachBin(nn.Linear(48, 4)), Latch()
    ).double()
    image = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = encode.latency(image, T)

    def loss(p, x):
        return _loss(bins_to_times(functional_call(plain, p, (times_to_bins(x.unsqueeze(0), T).double(),))))

    _same_per_sample(loss, dict(plain.named_parameters()), times, 0)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_latch_and_its_gradient_are_mapped(rule, axis):
    potentials = torch.randn(T, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    later = torch.arange(T, dtype=torch.float64)

    def weighted(v):
        return torch.tensordot(later[: len(v)], latch(v, 0.5, rule), 1).sum()

    found = vmap(grad(weighted), axis, axis)(potentials)
    expected = [grad(weighted)(v) for v in potentials.unbind(axis)]
    torch.testing.assert_close(found, torch.stack(expected, axis))
    mapped = vmap(lambda v: latch(v, 0.5, rule), axis, axis)(potentials)
    assert torch.equal(mapped, torch.stack([latch(v, 0.5, rule) for v in potentials.unbind(axis)], axis))
    with pytest.raises(NotImplementedError, match="the latch has no second derivative"):
        grad(lambda v: grad(weighted)(v).sum())(potentials)


def test_the_latency_rule_has_no_second_derivative():
    lif, currents = SingleSpike(sequence=True), torch.rand(T, 3, dtype=torch.float64)

    def first(x):
        return grad(lambda y: (lif(y)[1] ** 2).sum())(x).sum()

    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad(first)(currents)
    network, times = _network(), encode.latency(_image(), T)
    parameters = dict(network.named_parameters())

    def gradient(p):
        inner = grad(lambda q: _loss(functional_call(network, q, (times,))))(p)
        return sum(one.sum() for one in inner.values())

    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad(gradient)(parameters)


@pytest.mark.parametrize(
    "neuron", [IF(), ReLPSP(), ExpPSP(0.5), ExpPSP(0.5, tau=torch.ones(3, dtype=torch.float64))]
)
def test_forward_mode_is_refused(neuron):
    times, weight = torch.ones(2, 5, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        jvp(lambda w: first_spike_linear(times, w, neuron, t_max=8), (weight,), (weight,))


@pytest.mark.parametrize(
    "function",
    [
        lambda w: first_spike_linear(torch.ones(2, 5, dtype=w.dtype), w, ReLPSP(), t_max=8),
        latch,
        bins_to_times,
        single_spike_sequence,
        lambda currents: integrate(currents, 3, beta=0.5),
    ],
    ids=["ramp", "latch", "times", "sequence", "leak"],
)
def test_dual_numbers_are_refused_too(function):
    x = torch.ones(3, 5, dtype=torch.float64)
    with forward_ad.dual_level(), pytest.raises((NotImplementedError, RuntimeError), match="forward"):
        function(forward_ad.make_dual(x, torch.ones_like(x)))


def test_a_normalised_error_per_sample_is_that_of_the_batch():
    times, factors = _image(), torch.arange(1.0, 9.0, dtype=torch.float64)

    def loss(sample):
        return (normalize_error(sample.unsqueeze(0), reduction="sum") * factors).sum()

    expected = (factors / factors.norm()).expand(5, 8)
    torch.testing.assert_close(vmap(grad(loss))(times), expected)
    torch.testing.assert_close(torch.stack([grad(loss)(sample) for sample in times]), expected)


@pytest.mark.parametrize(
    "loss",
    [RelativeTargetLoss(3, T), RelativeTargetLoss(3, T, reference="mean"), SingleTargetLoss(4, T)],
    ids=repr,
)
def test_losses_per_sample_are_those_of_the_batch(loss):
    times, labels = _image() * T, torch.tensor([0, 3, 7, 1, 1])
    per_sample = vmap(grad(lambda t, label: loss(t.unsqueeze(0), label.unsqueeze(0))))(times, labels)
    torch.testing.assert_close(per_sample / 5, grad(loss)(times, labels))


def test_ramps_in_a_window_are_mapped_and_differentiated_forwards():
    times, neuron = _image(), WindowedRamp(T - 1.0, start=1.0)
    weight = torch.rand(3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def total(w, t):
        return first_spike_linear(t, w, neuron, t_max=T).clamp(max=T).sum()

    each = vmap(grad(total), (None, 0))(weight, times)
    torch.testing.assert_close(each, torch.stack([grad(total)(weight, t) for t in times]))
    direction = torch.ones_like(weight)
    _, change = jvp(lambda w: total(w, times), (weight,), (direction,))
    torch.testing.assert_close(change, each.sum())


@pytest.mark.parametrize("function", [normalize_error, lambda times: fill_silent(times, T)])
def test_what_shapes_the_error_refuses_forward_mode(function):
    with pytest.raises(NotImplementedError, match="jvp"):
        jvp(function, (_image(),), (_image(),))
