"""Thresholds, leaks and time constants that differ from neuron to neuron, and are learned."""

import math
from dataclasses import dataclass, make_dataclass

import pytest
import torch
from torch import nn

from ssnn_plugin import IF, LIF, AlphaPSP, ExpPSP, ReLPSP, WindowedRamp
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear
from ssnn_plugin.rules import Latency, Rule

T_MAX, OUT = 8.0, 5


def _uniform(low, high, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def _values(*ranges):
    return [_uniform(low, high, OUT, seed=k).requires_grad_() for k, (low, high) in enumerate(ranges, 1)]


NEURONS = {
    "ramp": (lambda theta: ReLPSP(theta), [(0.7, 1.2)]),
    "exponential": (lambda theta, tau: ExpPSP(theta, tau=tau), [(0.5, 0.8), (0.7, 1.4)]),
    "alpha": (lambda theta, tau: AlphaPSP(theta, tau=tau), [(0.2, 0.4), (0.7, 1.4)]),
    "lif": (lambda theta, m, s: LIF(theta, tau_mem=m, tau_syn=s), [(0.2, 0.3), (0.7, 1.4), (0.5, 2)]),
}
in_continuous_time = pytest.mark.parametrize("name", NEURONS)


def _example():
    times, weight = _uniform(0, 3, 4, 12, seed=7), _uniform(-0.1, 0.5, OUT, 12, seed=8)
    times[0, 3] = math.inf
    return times.requires_grad_(), weight.requires_grad_()


@in_continuous_time
def test_gradients_of_all_parameters_are_exact(name):
    build, ranges = NEURONS[name]
    times, weight = _example()

    def layer(weight, *values):
        spikes, potential = first_spike_linear(
            times, weight, build(*values), t_max=T_MAX, return_potential=True
        )
        return spikes[spikes.isfinite()], potential[spikes.isinf()]

    values = _values(*ranges)
    fired = layer(weight, *values)[0]
    assert 8 < len(fired) <= 20
    assert torch.autograd.gradcheck(layer, (weight, *values))


@in_continuous_time
def test_the_same_value_for_all_is_that_value(name):
    build, ranges = NEURONS[name]
    numbers = [(low + high) / 2 for low, high in ranges]
    found = []
    for neuron in (build(*numbers), build(*[torch.full((OUT,), n, dtype=torch.float64) for n in numbers])):
        times, weight = _example()
        spikes, potential = first_spike_linear(times, weight, neuron, t_max=T_MAX, return_potential=True)
        loss = spikes[spikes.isfinite()].square().sum() + potential.square().sum()
        found.append([spikes, potential, *torch.autograd.grad(loss, [times, weight])])
    for one, each in zip(*found, strict=True):
        torch.testing.assert_close(each, one)


@in_continuous_time
def test_each_neuron_is_the_one_that_it_says(name):
    build, ranges = NEURONS[name]
    times, weight = _example()
    values = [value.detach() for value in _values(*ranges)]
    together = first_spike_linear(times, weight, build(*values), t_max=T_MAX)
    for j in range(OUT):
        alone = build(*[float(value[j]) for value in values])
        alike = first_spike_linear(times, weight, alone, t_max=T_MAX)
        torch.testing.assert_close(together[:, j], alike[:, j])


@pytest.mark.parametrize("gradient", ["latency", "surrogate"])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.8, 0.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_bins_with_the_same_value_for_all(gradient, silent, beta, with_bias):
    generator = torch.Generator().manual_seed(3)
    times = torch.randint(0, 10, (6, 12), generator=generator).double()
    times[0, :4] = math.inf
    theta, leak = torch.full((OUT,), 0.9, dtype=torch.float64), torch.full((OUT,), beta, dtype=torch.float64)
    found = []
    for neuron in (IF(0.9, beta=beta, delay=1), IF(theta, beta=beta, delay=1), IF(theta, beta=leak, delay=1)):
        t, weight = times.clone().requires_grad_(), _uniform(-0.1, 0.5, OUT, 12).requires_grad_()
        bias = _uniform(-0.05, 0.05, OUT).requires_grad_()
        spikes, potential = first_spike_linear(
            t, weight, neuron, t_max=12, bias=bias if with_bias else None, gradient=gradient,
            silent_gradient=silent, return_potential=True,
        )  # fmt: skip
        assert spikes.isfinite().any()
        error = torch.arange(spikes.numel()).reshape(spikes.shape).double()
        inputs = [t, weight, bias] if with_bias else [t, weight]
        gradients = torch.autograd.grad([spikes, potential.square()], inputs, [error, error])
        found.append([spikes, potential, *gradients])
    for other in found[1:]:
        for one, each in zip(found[0], other, strict=True):
            torch.testing.assert_close(each, one)


def test_a_threshold_that_rises_delays_and_a_leak_that_shrinks_lowers():
    times, weight = torch.tensor([[1.0, 2.0, 4.0]]).double(), torch.ones(2, 3).double()
    theta = torch.tensor([1.5, 2.5]).double().requires_grad_()
    beta = torch.tensor([0.5, 0.9]).double().requires_grad_()
    spikes, potential = first_spike_linear(times, weight, IF(theta), t_max=8, return_potential=True)
    assert spikes.tolist() == [[2.0, 4.0]]
    (of_theta,) = torch.autograd.grad(spikes.sum(), theta)
    assert of_theta.tolist() == [1.0, 1.0]
    spikes, potential = first_spike_linear(times, weight, IF(2.6, beta=beta), t_max=8, return_potential=True)
    assert spikes.isinf().all()
    (of_beta,) = torch.autograd.grad(potential.sum(), beta)
    slope = [sum(a * b ** (a - 1) for a in (6, 5, 3)) for b in (0.5, 0.9)]  # of b^6 + b^5 + b^3, at bin 7
    torch.testing.assert_close(of_beta, torch.tensor(slope).double())


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_have_a_value_per_channel(groups):
    times, weight = _uniform(0, 3, 2, 4, 5, 5), _uniform(-0.1, 0.6, 4, 4 // groups, 3, 3, seed=2)
    theta, tau_mem, tau_syn = (_uniform(0.2, 0.4, 4, seed=k) * k for k in (1, 3, 2))
    neuron = LIF(theta, tau_mem=tau_mem, tau_syn=tau_syn)
    together = first_spike_conv2d(times, weight, neuron, t_max=T_MAX, groups=groups, padding=1)
    assert together.isfinite().sum() > 0
    for j in range(4):
        alone = LIF(float(theta[j]), tau_mem=float(tau_mem[j]), tau_syn=float(tau_syn[j]))
        group = times.chunk(groups, 1)[j * groups // 4]
        expected = first_spike_conv2d(group, weight[j : j + 1], alone, t_max=T_MAX, padding=1)
        torch.testing.assert_close(together[:, j : j + 1], expected)


def test_a_layer_learns_them():
    torch.manual_seed(0)
    neuron = LIF(
        nn.Parameter(torch.full((4,), 0.3)),
        tau_mem=nn.Parameter(torch.ones(4)),
        tau_syn=torch.full((4,), 2.0),
    )
    layer = SpikeLinear(20, 4, neuron, t_max=T_MAX)
    assert set(dict(layer.named_parameters())) == {"weight", "threshold", "tau_mem"}
    assert set(dict(layer.named_buffers())) == {"tau_syn"}
    optimizer = torch.optim.SGD([layer.threshold, layer.tau_mem], 0.05)
    times, target = 3 * torch.rand(16, 20), 2.0
    losses = []
    for _ in range(30):
        spikes = layer(times)
        loss = (spikes[spikes.isfinite()] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert layer.double().neuron.tau_syn.dtype == torch.float64
    copy = SpikeLinear(20, 4, LIF(torch.ones(4), tau_mem=torch.ones(4), tau_syn=torch.ones(4)), t_max=T_MAX)
    copy.load_state_dict(layer.float().state_dict())
    torch.testing.assert_close(copy(times), layer(times))


def test_what_does_not_fit_is_named():
    times, weight = torch.rand(2, 3), torch.rand(4, 3)
    with pytest.raises(ValueError, match="threshold must hold 4 values, one per neuron, got 3"):
        first_spike_linear(times, weight, ReLPSP(torch.ones(3)), t_max=T_MAX)
    with pytest.raises(TypeError, match=r"tau is torch.float64, weight is torch.float32"):
        first_spike_linear(times, weight, ExpPSP(tau=torch.ones(4).double()), t_max=T_MAX)
    with pytest.raises(ValueError, match=r"tau must be finite and greater than 0 for every neuron, got 0\.0"):
        ExpPSP(tau=torch.tensor([1.0, 0.0]))
    with pytest.raises(
        ValueError, match=r"tau must be a number or hold one per neuron, got torch.float32 \[2, 2\]"
    ):
        ExpPSP(tau=torch.ones(2, 2))
    with pytest.raises(ValueError, match="with a time constant per neuron"):
        first_spike_linear(times, weight, ExpPSP(tau=torch.ones(4)), t_max=T_MAX, backend="cpu")
    for bad in (torch.tensor([0.5, 1.5]), torch.tensor([0.5, math.nan]), math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"beta must lie in 0 ... 1"):
            IF(beta=bad)
    with pytest.raises(ValueError, match="t_max must be at most 80 time constants"):
        first_spike_linear(times, weight, ExpPSP(tau=torch.tensor([1.0, 1.0, 1.0, 0.01])), t_max=T_MAX)


def test_layers_in_bins_share_their_threshold():
    from ssnn_plugin.functional.bins import Bins, times_to_bins

    layer = SpikeLinear(3, 2, IF(torch.ones(2)), t_max=8)
    with pytest.raises(TypeError, match="share their threshold and leak"):
        layer.in_bins(Bins(times_to_bins(torch.ones(1, 3), 8)))


def test_ramps_in_a_window_have_numbers():
    with pytest.raises((TypeError, ValueError), match="threshold"):
        WindowedRamp(torch.ones(2), start=1.0)


def test_channels_of_a_layer():
    layer = SpikeConv2d(2, 4, 3, ReLPSP(torch.rand(4) + 0.5), t_max=T_MAX)
    assert layer(torch.rand(1, 2, 5, 5)).shape == (1, 4, 3, 3)


@pytest.mark.parametrize("gradient", ["local_slope", "own"])
def test_rules_take_a_threshold_per_neuron_as_a_number(gradient):
    @dataclass(frozen=True)
    class Own(Rule):
        def rate(self, crossing):
            return crossing.potential / (1 + crossing.at)

    rule, found = Own() if gradient == "own" else gradient, []
    for theta in (0.9, torch.full((OUT,), 0.9, dtype=torch.float64, requires_grad=True)):
        generator = torch.Generator().manual_seed(3)
        times = torch.randint(0, 10, (6, 12), generator=generator).double().requires_grad_()
        weight = _uniform(-0.1, 0.5, OUT, 12).requires_grad_()
        spikes, potential = first_spike_linear(
            times, weight, IF(theta), t_max=12, gradient=rule, return_potential=True
        )
        error = torch.arange(spikes.numel()).reshape(spikes.shape).double()
        found.append([spikes, potential, *torch.autograd.grad(spikes, [times, weight], error)])
    for one, each in zip(*found, strict=True):
        torch.testing.assert_close(each, one)


def test_no_second_derivatives():
    times, weight = _example()
    for neuron in (
        ExpPSP(0.6),
        ExpPSP(torch.full((OUT,), 0.6).double()),
        ExpPSP(0.6, tau=torch.ones(OUT).double()),
    ):
        spikes = first_spike_linear(times, weight, neuron, t_max=T_MAX)
        (grad,) = torch.autograd.grad(spikes[spikes.isfinite()].sum(), weight, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            grad.square().sum().backward()


def test_local_slopes_have_no_leak_per_neuron():
    with pytest.raises(ValueError, match="'local_slope' takes neither a bias nor a leak"):
        SpikeLinear(3, 2, IF(beta=torch.ones(2)), t_max=8, gradient="local_slope")


def test_a_layer_is_given_other_neurons():
    layer = SpikeLinear(3, 2, IF(torch.ones(2)), t_max=8)
    assert list(layer.state_dict()) == ["weight", "threshold"]
    layer.set_neuron(IF(nn.Parameter(torch.ones(2))))
    assert set(dict(layer.named_parameters())) == {"weight", "threshold"}
    layer.set_neuron(IF(2.0))
    assert list(layer.state_dict()) == ["weight"]
    assert layer.neuron == IF(2.0)


def test_ramps_in_a_window_have_no_rule_of_ones_own():
    with pytest.raises(ValueError, match="gradient must be 'exact' for WindowedRamp"):
        SpikeLinear(3, 2, WindowedRamp(start=1.0), t_max=8, gradient=Latency())


def test_neurons_are_equal_that_have_the_same_tensors():
    theta = torch.ones(2)
    assert IF(theta) == IF(theta)
    assert hash(IF(theta)) == hash(IF(theta))
    assert IF(theta) != IF(torch.ones(2))
    assert IF(theta) != IF(1.0)
    assert IF(1.0) == IF(1.0) != LIF(1.0)


@pytest.mark.parametrize("learned", [False, True])
def test_the_dtype_of_a_layer_is_that_of_its_values_per_neuron(learned):
    threshold = nn.Parameter(torch.ones(3)) if learned else torch.ones(3)
    layer = SpikeLinear(2, 3, IF(threshold), t_max=8, dtype=torch.float64)
    assert layer.threshold.dtype == torch.float64
    assert [name for name, _ in layer.named_parameters()] == [*(["threshold"] if learned else []), "weight"]
    assert layer(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
    assert SpikeLinear(2, 3, IF(threshold), t_max=8, device="meta").threshold.device.type == "meta"


def test_a_parameter_that_fits_stays_the_same_parameter():
    threshold = nn.Parameter(torch.ones(3))
    assert SpikeLinear(2, 3, IF(threshold), t_max=8, dtype=torch.float32).threshold is threshold


@pytest.mark.parametrize("name", ["bias", "weight", "dropout", "t_max", "in_features", "forward", "training"])
def test_a_field_that_a_layer_has_too_is_named(name):
    own = make_dataclass("Own", [(name, object, 1.0)], bases=(ReLPSP,), frozen=True)
    with pytest.raises(ValueError, match=f"{name} of Own must have another name .* a {name} of its own"):
        SpikeLinear(2, 3, own(1.0, torch.ones(3)), t_max=8)
    assert SpikeLinear(2, 3, own(1.0, 2.0), t_max=8).neuron == own(1.0, 2.0)


@pytest.mark.parametrize(
    ("times", "weight", "message"),
    [
        (math.nan, 0.5, "times must hold spike times >= 0, .*got NaN"),
        (-1.0, 0.5, "times must hold spike times >= 0, .*a negative time"),
        (1.0, math.nan, "the membrane potential is NaN"),
    ],
)
def test_a_leak_per_neuron_refuses_what_one_leak_refuses(times, weight, message):
    given = torch.tensor([[times, 2.0]], dtype=torch.float64)
    weights = torch.tensor([[weight, 1.0]] * 2, dtype=torch.float64)
    for beta in (0.5, torch.tensor([0.5, 0.9], dtype=torch.float64)):
        with pytest.raises(ValueError, match=message):
            first_spike_linear(given, weights, IF(1.0, beta=beta), t_max=8)
