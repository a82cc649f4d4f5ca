"""The gradient rules of IF beside "latency", against loops over neurons and inputs."""

import math

import numpy as np
import pytest
import torch
from continuous_examples import GEOMETRIES
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import BACKEND_NAMES, on_every_backend
from naive import first_spikes, latency_gradients, patches

from ssnn_plugin import IF, ExpPSP, ReLPSP
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear
from ssnn_plugin.rules import Exact, Latency, LocalSlope, SurrogateSlope

INF = math.inf
RULES = ["latency", "surrogate", "local_slope"]
REACH = 4


def _simulate(times, weight, neuron, t_max, bias=None):
    """Of one sample; between bins where the times are."""
    if np.all(np.isinf(times) | (times == np.floor(times))):
        return first_spikes(times, weight, neuron.threshold, neuron.delay, t_max, bias, neuron.beta)
    spikes, potential = np.full(len(weight), INF), np.zeros(len(weight))
    for j, row in enumerate(weight):
        for t in sorted({t for t in times if t < t_max}):
            if spikes[j] == INF:
                potential[j] = row[times <= t].sum()
                spikes[j] = t + neuron.delay if potential[j] > neuron.threshold else INF
                spikes[j] = spikes[j] if spikes[j] < t_max else INF
    return spikes, potential


def _surrogate(times, weight, neuron, t_max, bias, silent_gradient, grad_spikes, grad_potential):
    """As "latency", with dt/dV minus the derivative of an arctan at the firing time's V - threshold."""
    spikes, potential = _simulate(times, weight, neuron, t_max, bias)
    error = np.zeros(len(weight))
    for j in range(len(weight)):
        distance = (potential[j] - neuron.threshold) / (neuron.threshold or 1.0)
        if np.isfinite(spikes[j]) or silent_gradient:
            error[j] = grad_spikes[j] / (1 + (np.pi * distance) ** 2)
        error[j] -= grad_potential[j]
    counted = np.where(np.isinf(spikes), t_max, spikes - neuron.delay)
    of_weight, of_times = latency_gradients(times, weight, counted, 0, error, t_max)
    of_bias = -error * np.where(np.isinf(spikes), t_max, counted + 1)
    return of_times, of_weight, of_bias


def _local_slope(times, weight, neuron, t_max, bias, silent_gradient, grad_spikes, grad_potential):
    """dt/dV minus the inverse of the mean step of V in the bins around the crossing.

    V counts in the weights as ever; in a time it moves while the smoothed step is in the window, which
    is the whole of time for a silent neuron that learns.
    """
    spikes, _ = _simulate(times, weight, neuron, t_max)
    of_times, of_weight = np.zeros_like(times), np.zeros_like(weight)
    for j in range(len(weight)):
        at = spikes[j] - neuron.delay
        around = [t < t_max and abs(t - at) <= REACH for t in times]
        least = (neuron.threshold or 1.0) / t_max
        slope = sum(w for w, near in zip(weight[j], around, strict=True) if near) / (2 * REACH + 1)
        slope = max(slope, least) if np.isfinite(at) else least
        error = -grad_potential[j]
        if np.isfinite(at) or silent_gradient:
            error += grad_spikes[j] / slope
        for i, t in enumerate(times):
            if t < t_max and t <= at:
                of_weight[j, i] -= error
            if around[i]:
                of_times[i] += error * weight[j, i] / (2 * REACH + 1)
            if np.isinf(at) and silent_gradient and t < t_max:
                of_times[i] += grad_spikes[j] * weight[j, i] / (neuron.threshold or 1.0)
    return of_times, of_weight, None


NAIVE = {"surrogate": _surrogate, "local_slope": _local_slope}


def _example(seed, t_max, n_out=4, n_in=9, batch=5):
    random = np.random.default_rng(seed)
    times = random.integers(0, t_max + 3, (batch, n_in)).astype(float)
    times[random.random(times.shape) < 0.2] = INF
    times[:, 1] = times[:, 0]
    weight = random.integers(-2, 5, (n_out, n_in)).astype(float)
    grads = random.normal(size=(2, batch, n_out))
    return times, weight, grads


def _tensors(*arrays, dtype=torch.float64, grad=True):
    return [None if a is None else torch.from_numpy(a).to(dtype).requires_grad_(grad) for a in arrays]


def _check_linear(backend, rule, times, weight, neuron, t_max, bias, silent_gradient, grads, dtype):
    t, w, b = _tensors(times, weight, bias, dtype=dtype)
    outputs = first_spike_linear(
        t,
        w,
        neuron,
        t_max=t_max,
        bias=b,
        gradient=rule,
        silent_gradient=silent_gradient,
        return_potential=True,
        backend=backend,
    )
    expected = [
        NAIVE[rule](sample, weight, neuron, t_max, bias, silent_gradient, *grad)
        for sample, grad in zip(times, grads.transpose(1, 0, 2), strict=True)
    ]
    wanted = [t, w] if b is None else [t, w, b]
    found = torch.autograd.grad(outputs, wanted, _tensors(*grads, dtype=dtype, grad=False))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(found[0].numpy(), [of_times for of_times, *_ in expected], **tolerance)
    np.testing.assert_allclose(found[1].numpy(), sum(e[1] for e in expected), **tolerance)
    if b is not None:
        np.testing.assert_allclose(found[2].numpy(), sum(e[2] for e in expected), **tolerance)
    return outputs[0].detach()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    rule=st.sampled_from(sorted(NAIVE)),
    threshold=st.sampled_from([0.0, 3.0, 7.5]),
    delay=st.sampled_from([0, 1, 3]),
    t_max=st.sampled_from([2, 9, 25]),
    silent_gradient=st.booleans(),
    used=st.sampled_from([(1, 0), (0, 1), (1, 1)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_gradients_are_the_naive_ones(seed, rule, threshold, delay, t_max, silent_gradient, used, dtype):
    times, weight, grads = _example(seed, t_max)
    grads *= np.array(used)[:, None, None]
    neuron = IF(threshold, delay=delay)
    for backend in BACKEND_NAMES:
        _check_linear(backend, rule, times, weight, neuron, t_max, None, silent_gradient, grads, dtype)


@on_every_backend
@pytest.mark.parametrize("silent_gradient", [False, True])
@pytest.mark.parametrize("neuron", [IF(6.0, beta=0.75), IF(9.0, delay=1), IF(0.0, beta=0.5)])
def test_the_surrogate_takes_a_bias_and_a_leak(backend, neuron, silent_gradient):
    times, weight, grads = _example(3, 12)
    bias = np.array([0.25, -0.5, 0.0, 0.5])
    arguments = times, weight, neuron, 12, bias, silent_gradient, grads, torch.float64
    spikes = _check_linear(backend, "surrogate", *arguments)
    assert spikes.isfinite().any()


@on_every_backend
def test_times_between_bins(backend):
    times, weight, grads = _example(5, 20)
    times += np.random.default_rng(1).random(times.shape)
    spikes = _check_linear(
        backend, "surrogate", times, weight, IF(6.0), 20.0, None, False, grads[:, :, :], torch.float64
    )
    assert spikes.isfinite().double().mean() > 0.3


def test_the_local_slope_refuses_times_between_bins():
    with pytest.raises(ValueError, match="times must be whole bins with gradient 'local_slope'"):
        first_spike_linear(torch.tensor([[0.5]]), torch.ones(1, 1), IF(), t_max=8, gradient="local_slope")


def test_a_surrogate_of_hand():
    """V = 110 and 100.5 for a threshold of 100: u = 0.1 and 0.005; a silent one at 50: u = -0.5."""
    times = torch.tensor([[3.0, 7.0]])
    weight = torch.tensor([[60.0, 50.0], [60.0, 40.5], [30.0, 20.0]], requires_grad=True)
    for silent_gradient, silent in ((False, 0.0), (True, -1 / (1 + (math.pi / 2) ** 2))):
        spikes = first_spike_linear(
            times, weight, IF(100.0), t_max=16, gradient="surrogate", silent_gradient=silent_gradient
        )
        assert spikes.tolist() == [[7.0, 7.0, INF]]
        (of_weight,) = torch.autograd.grad(spikes, weight, torch.ones_like(spikes))
        expected = [-1 / (1 + (0.1 * math.pi) ** 2), -1 / (1 + (0.005 * math.pi) ** 2), silent]
        torch.testing.assert_close(of_weight, torch.tensor(expected)[:, None].expand(3, 2))


def test_a_local_slope_of_hand():
    """Inputs of 2 in bins 0, 5, 9, 13, threshold 3: it fires in bin 5; V grows by 4 in the bins 1 ... 9."""
    times = torch.tensor([[0.0, 5.0, 9.0, 13.0]], requires_grad=True)
    weight = torch.full((1, 4), 2.0, requires_grad=True)
    spikes = first_spike_linear(times, weight, IF(3.0), t_max=27, gradient="local_slope")
    assert spikes.item() == 5.0
    of_times, of_weight = torch.autograd.grad(spikes.sum(), (times, weight))
    slope = (2 + 2) / 9
    torch.testing.assert_close(of_weight, torch.tensor([[-1 / slope, -1 / slope, 0.0, 0.0]]))
    torch.testing.assert_close(of_times, torch.tensor([[0.0, 0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("threshold", [4.0, 0.0])
def test_the_local_slope_is_at_least_the_mean_one(threshold):
    """Inputs that fall around the crossing: 5 - 4 over 9 bins is less than 4 / 27, 0 less than 1 / 27."""
    times = torch.tensor([[2.0, 3.0]])
    weight = torch.tensor([[5.0, -5.0]], requires_grad=True)
    spikes = first_spike_linear(times, weight, IF(threshold), t_max=27, gradient="local_slope")
    assert spikes.item() == 2.0
    (of_weight,) = torch.autograd.grad(spikes.sum(), weight)
    torch.testing.assert_close(of_weight, torch.tensor([[-27 / (threshold or 1), 0.0]]))


@on_every_backend
@pytest.mark.parametrize("rule", sorted(NAIVE))
@pytest.mark.parametrize("silent_gradient", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_of_a_convolution_are_the_naive_ones(backend, rule, silent_gradient, geometry):
    random, t_max, neuron = np.random.default_rng(0), 12, IF(2.0, delay=1)
    groups, channels, out, kernel = geometry["groups"], 4, 8, (3, 2)
    times = random.integers(0, t_max + 2, (2, channels, 6, 5)).astype(float)
    times[random.random(times.shape) < 0.2] = INF
    weight = random.integers(-2, 4, (out, channels // groups, *kernel)).astype(float)

    t, w = _tensors(times, weight)
    outputs = first_spike_conv2d(
        t,
        w,
        neuron,
        t_max=t_max,
        gradient=rule,
        silent_gradient=silent_gradient,
        return_potential=True,
        backend=backend,
        **geometry,
    )
    grads = random.normal(size=(2, *outputs[0].shape))
    found = torch.autograd.grad(outputs, (t, w), _tensors(*grads, grad=False))

    of_weight, of_times = np.zeros((out, weight[0].size)), np.zeros_like(times)
    spikes = np.zeros((2, out, outputs[0][0, 0].numel()))
    for n, image in enumerate(times):
        indices, padded = patches(image, kernel, groups=groups, **_without(geometry, "groups"))
        of_padded = np.zeros(padded.size)
        for g, of_group in enumerate(indices):
            rows = slice(g * out // groups, (g + 1) * out // groups)
            for at, index in enumerate(of_group):
                kernels = weight[rows].reshape(out // groups, -1)
                sample = padded.reshape(-1)[index]
                spikes[n, rows, at] = _simulate(sample, kernels, neuron, t_max)[0]
                grad_spikes, grad_potential = grads[:, n, rows].reshape(2, out // groups, -1)[:, :, at]
                arguments = sample, kernels, neuron, t_max, None, silent_gradient, grad_spikes, grad_potential
                part = NAIVE[rule](*arguments)
                np.add.at(of_padded, index, part[0])
                of_weight[rows] += part[1]
        top, left = geometry["padding"]
        of_times[n] = of_padded.reshape(padded.shape)[:, top : top + 6, left : left + 5]
    np.testing.assert_array_equal(outputs[0].detach().flatten(2).numpy(), spikes)
    assert 0.1 < np.isfinite(spikes).mean() < 0.95
    np.testing.assert_allclose(found[0].numpy(), of_times, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found[1].numpy(), of_weight.reshape(weight.shape), rtol=1e-9, atol=1e-9)


def _without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


@on_every_backend
@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spikes_and_potentials_are_those_of_the_latency_rule(backend, rule, dtype):
    times, weight, _ = _example(7, 16, n_in=12)
    t, w = _tensors(times, weight, dtype=dtype, grad=False)
    options = {"t_max": 16, "return_potential": True, "backend": backend}
    image, kernels = t.reshape(5, 3, 2, 2), w.reshape(4, 3, 2, 2)[..., :1]
    for neuron in (IF(5.0), IF(3.0, delay=2)):
        for layer, *inputs in ((first_spike_linear, t, w), (first_spike_conv2d, image, kernels)):
            found = layer(*inputs, neuron, gradient=rule, **options)
            expected = layer(*inputs, neuron, **options)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(("neuron", "bias"), [(IF(beta=0.5), None), (IF(), torch.ones(4))])
def test_the_local_slope_has_neither_bias_nor_leak(neuron, bias):
    options = {"t_max": 8, "bias": bias, "gradient": "local_slope"}
    with pytest.raises(ValueError, match="gradient 'local_slope' takes neither a bias nor a leak"):
        first_spike_linear(torch.zeros(2, 3), torch.ones(4, 3), neuron, **options)
    with pytest.raises(ValueError, match="gradient 'local_slope' takes neither a bias nor a leak"):
        first_spike_conv2d(torch.zeros(2, 3, 1, 1), torch.ones(4, 3, 1, 1), neuron, **options)
    options["bias"] = bias is not None
    for build in (
        lambda: SpikeLinear(3, 4, neuron, **options),
        lambda: SpikeConv2d(3, 4, 1, neuron, **options),
    ):
        with pytest.raises(ValueError, match="gradient 'local_slope' takes neither a bias nor a leak"):
            build()


@on_every_backend
@pytest.mark.parametrize("rule", RULES)
def test_an_empty_batch(backend, rule):
    t, w = torch.zeros(0, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    out = first_spike_linear(t, w, IF(), t_max=8, gradient=rule, backend=backend)
    of_times, of_weight = torch.autograd.grad(out.sum(), (t, w))
    assert out.shape == (0, 4)
    assert of_times.shape == (0, 3)
    assert of_weight.shape == (4, 3)
    assert not of_weight.any()


@pytest.mark.parametrize("rule", RULES)
def test_shapes_on_the_meta_device(rule):
    options = {"t_max": 8, "gradient": rule, "return_potential": True}
    t, w = torch.empty(2, 3, device="meta"), torch.empty(4, 3, device="meta", requires_grad=True)
    for output in first_spike_linear(t, w, IF(), **options):
        assert output.shape == (2, 4)
        assert output.device.type == "meta"


@pytest.mark.parametrize("rule", RULES)
def test_layers_train_with_every_rule(rule):
    torch.manual_seed(0)
    hidden = SpikeConv2d(1, 6, 3, IF(2.0), t_max=16, stride=2, gradient=rule, init_range=(0.0, 1.0))
    out = SpikeLinear(54, 3, IF(8.0), t_max=16, gradient=rule, silent_gradient=True, init_range=(0.0, 0.6))
    assert f"gradient='{rule}'" in repr(out)
    assert repr(eval(repr(out))) == repr(out)
    times, labels = torch.randint(0, 12, (24, 1, 8, 8)).float(), torch.arange(24) % 3
    optimizer = torch.optim.Adam([*hidden.parameters(), *out.parameters()], 0.01)
    losses = []
    for _ in range(30):
        spikes = out(hidden(times).flatten(1))
        loss = torch.nn.functional.cross_entropy(-spikes.clamp(max=16), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert hidden.weight.grad.any()
    assert np.mean(losses[-3:]) < 0.9 * losses[0]


def test_the_exact_rule_is_not_for_bins():
    assert SpikeLinear(3, 4, ExpPSP(), t_max=8).gradient == Exact()
    assert SpikeLinear(3, 4, IF(), t_max=8).gradient == Latency()


def test_the_local_slope_is_measured_by_the_backend_that_was_asked_for(monkeypatch):
    from ssnn_plugin.kernels import cpu

    def refuse(*args):
        raise AssertionError("numba was run")

    for name in ("first_spike", "weight_grad", "input_grad"):
        assert callable(getattr(cpu, name))
        monkeypatch.setattr(cpu, name, refuse)
    times = torch.tensor([[1.0, 2.0, 5.0]])
    weight = torch.tensor([[0.5, 0.75, 0.25]], requires_grad=True)
    options = {"t_max": 8, "gradient": "local_slope", "backend": "reference"}
    first_spike_linear(times, weight, IF(), **options).sum().backward()
    assert weight.grad.abs().sum() > 0


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spike_at_minus_zero_is_one_at_zero(backend, dtype):
    found = []
    for zero in (0.0, -0.0):
        times = torch.tensor([[zero, 3.0]], dtype=dtype, requires_grad=True)
        weight = torch.tensor([[2.0, 1.0]], dtype=dtype, requires_grad=True)
        spikes = first_spike_linear(times, weight, IF(1.0), t_max=8, backend=backend)
        found.append((spikes, *torch.autograd.grad(spikes.sum(), (times, weight))))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert found[0][2].tolist() == [[-1.0, 0.0]]


@on_every_backend
@pytest.mark.parametrize("samples", [1, 40])
def test_an_error_that_is_nan_reaches_the_weights(backend, samples):
    weight = torch.full((2, 3), 2.0, requires_grad=True)
    times = torch.ones(samples, 3)
    first_spike_linear(times, weight, IF(1.0), t_max=16, backend=backend)[:, 0].sum().mul(math.nan).backward()
    assert weight.grad[0].isnan().all()
    kernel = torch.full((20, 3, 2, 2), 2.0, requires_grad=True)
    images = torch.full((samples, 3, 5, 5), INF)
    images[:, :, 2, 2] = 1.0
    first_spike_conv2d(images, kernel, IF(1.0), t_max=16, backend=backend).sum().mul(math.nan).backward()
    assert kernel.grad.isnan().all()


@on_every_backend
def test_inputs_after_the_window_have_no_gradient_by_a_local_slope(backend):
    times = torch.tensor([[6.0, 8.0, 9.0]], requires_grad=True)
    weight = torch.tensor([[2.0, 1.0, 1.0]])
    options = {"t_max": 8, "gradient": "local_slope", "backend": backend}
    first_spike_linear(times, weight, IF(1.0), **options).sum().backward()
    assert times.grad[0, 0] > 0
    assert times.grad[0, 1:].tolist() == [0.0, 0.0]


@on_every_backend
def test_a_local_slope_of_another_reach_by_hand(backend):
    """V rises by 4 / 17 a bin: two inputs of weight 2 are within 8 bins of the crossing, at 5."""
    times = torch.tensor([[0.0, 5.0, 14.0, 20.0]], requires_grad=True)
    weight = torch.full((1, 4), 2.0, requires_grad=True)
    spikes = first_spike_linear(times, weight, IF(3.0), t_max=27, gradient=LocalSlope(8), backend=backend)
    assert spikes.item() == 5
    of_times, of_weight = torch.autograd.grad(spikes.sum(), (times, weight))
    torch.testing.assert_close(of_weight, torch.tensor([[-17 / 4, -17 / 4, 0.0, 0.0]]))
    torch.testing.assert_close(of_times, torch.tensor([[0.5, 0.5, 0.0, 0.0]]))


@pytest.mark.parametrize("reach", [0, -1, 2.5, True, math.nan])
def test_a_reach_that_is_none_is_refused(reach):
    with pytest.raises(ValueError, match="reach must be a whole number of at least 1"):
        LocalSlope(reach)


@pytest.mark.parametrize(
    ("neuron", "rule", "message"),
    [
        (IF(), Exact(), "gradient 'exact' needs a slope of V at the crossing, IF"),
        (ReLPSP(), Latency(), "gradient 'latency' is for neurons without a slope of V, ReLPSP"),
        (ReLPSP(), SurrogateSlope(), "gradient 'surrogate' is for neurons without a slope of V, ReLPSP"),
        (ReLPSP(), LocalSlope(), "gradient 'local_slope' is for neurons without a slope of V, ReLPSP"),
    ],
)
def test_rules_refuse_neurons_that_they_do_not_fit(neuron, rule, message):
    with pytest.raises(ValueError, match=message):
        SpikeLinear(3, 2, neuron, t_max=8, gradient=rule)
