"""`WindowedRamp`: a layer of it is a ReLU layer, whose values are read from spike times."""

import math

import numpy as np
import pytest
import torch
from continuous_examples import GEOMETRIES, one_output, tensors
from marks import in_both_precisions, on_every_backend
from torch.nn.functional import conv2d, linear, relu

from ssnn_plugin import WindowedRamp
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear

INF = math.inf


def _relu_inputs(shape, start, dtype, seed=0):
    """x >= 0 with zeros among it, and the spike times start - x, silent for some of the zeros."""
    random = np.random.default_rng(seed)
    x = np.maximum(random.uniform(-0.5, 1.0, shape), 0) * start
    times = np.where(
        x > 0, start - x, np.where(random.random(shape) < 0.5, INF, start + random.random(shape))
    )
    return tensors(x, times, dtype=dtype, grad=True)


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_windowed_ramp_is_a_relu_layer(backend, dtype, with_bias):
    start, threshold, t_max = 2.0, 50.0, 52.0
    neuron = WindowedRamp(threshold, start=start)
    x, times = _relu_inputs((5, 7), start, dtype)
    weight, bias = tensors(
        np.random.default_rng(1).normal(size=(6, 7)),
        np.random.default_rng(2).normal(size=6),
        dtype=dtype,
        grad=True,
    )
    spikes, potential = first_spike_linear(
        times,
        weight,
        neuron,
        t_max=t_max,
        bias=bias if with_bias else None,
        return_potential=True,
        backend=backend,
    )
    before = linear(x, weight, bias if with_bias else None)
    y = relu(before)
    silent = spikes.isinf()
    assert torch.equal(silent, y == 0)
    assert 0.1 < silent.double().mean() < 0.9
    torch.testing.assert_close(start + threshold - spikes[~silent], y[~silent])
    torch.testing.assert_close(potential[silent], before[silent] + (t_max - start))
    assert (potential[~silent] == threshold).all()

    grad = torch.randn(y.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    wanted = [weight, bias] if with_bias else [weight]
    found = torch.autograd.grad(spikes, [times, *wanted], grad, retain_graph=True)
    expected = torch.autograd.grad(y, [x, *wanted], -grad)
    seen = x > 0
    torch.testing.assert_close(found[0][seen], -expected[0][seen])
    assert not found[0][times > start].any()
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.any()
        torch.testing.assert_close(ours, theirs)


@on_every_backend
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_windowed_ramp_is_a_relu_convolution(backend, geometry):
    start, threshold = 1.5, 40.0
    x, times = _relu_inputs((2, 4, 5, 6), start, torch.float64)
    weight, bias = tensors(
        np.random.default_rng(1).normal(size=(8, 4 // geometry["groups"], 3, 2)),
        np.random.default_rng(2).normal(size=8),
        grad=True,
    )
    spikes = first_spike_conv2d(
        times,
        weight,
        WindowedRamp(threshold, start=start),
        t_max=start + threshold,
        bias=bias,
        backend=backend,
        **geometry,
    )
    y = relu(conv2d(x, weight, bias, **geometry))
    silent = spikes.isinf()
    assert torch.equal(silent, y == 0)
    torch.testing.assert_close(start + threshold - spikes[~silent], y[~silent])
    grad = torch.randn(y.shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(spikes, (times, weight, bias), grad)
    expected = torch.autograd.grad(y, (x, weight, bias), -grad)
    seen = x > 0
    torch.testing.assert_close(found[0][seen], -expected[0][seen])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs)


@on_every_backend
@in_both_precisions
def test_windowed_ramps_by_hand(backend, dtype):
    """V(3) = sum w (3 - t), t = 3 + 2 - V(3)."""
    neuron = WindowedRamp(2.0, start=3.0)

    def one(times, weight, t_max=5.0):
        return one_output(times, weight, neuron, backend, dtype, t_max=t_max)

    assert one([1.0, 2.5], [0.5, 1.0]) == (3.5, 2.0)  # V = 1.5
    assert one([1.0, 2.5], [0.5, 2.0]) == (3.0, 2.0)  # V = 2, the threshold
    assert one([1.0, 2.5], [5.0, 2.0]) == (3.0, 2.0)  # saturation: it fires at the start
    assert one([1.0, 3.0], [0.5, 9.0]) == (4.0, 2.0)  # an input at the start is not seen
    assert one([1.0, 4.0], [0.5, -9.0]) == (4.0, 2.0)  # nor one behind it
    assert one([INF, INF], [1.0, 1.0]) == (INF, 2.0)  # V = 0: it would fire at t_max
    assert one([INF, INF], [1.0, 1.0], t_max=6.0) == (5.0, 2.0)
    assert one([1.0, INF], [-0.5, 1.0]) == (INF, 1.0)  # V = -1, and 2 more until t_max
    assert one([1.0, INF], [-0.5, 1.0], t_max=6.5) == (6.0, 2.0)


@on_every_backend
def test_a_saturated_neuron_has_no_gradient(backend):
    times, weight, bias = tensors([[0.0, 1.0]], [[9.0, 9.0], [0.1, 0.1]], [0.0, 0.1], grad=True)
    spikes, potential = first_spike_linear(
        times,
        weight,
        WindowedRamp(2.0, start=3.0),
        t_max=5.0,
        bias=bias,
        return_potential=True,
        backend=backend,
    )
    assert spikes[0, 0] == 3
    for grad in torch.autograd.grad(spikes[0, 0] + potential[0, 0], (times, weight, bias), retain_graph=True):
        assert not grad.any()
    of_times, of_weight, of_bias = torch.autograd.grad(spikes[0, 1], (times, weight, bias))
    torch.testing.assert_close(of_times, torch.tensor([[0.1, 0.1]], dtype=torch.double))
    torch.testing.assert_close(of_weight, torch.tensor([[0.0, 0.0], [-3.0, -2.0]], dtype=torch.double))
    torch.testing.assert_close(of_bias, torch.tensor([0.0, -1.0], dtype=torch.double))


def test_a_start_of_zero_sees_nothing():
    assert one_output([0.0, 1.0], [5.0, 5.0], WindowedRamp(2.0, start=0.0), t_max=5.0) == (2.0, 2.0)


@on_every_backend
def test_a_time_that_rounds_up_to_the_end_of_the_window_is_silence(backend):
    spikes, potential = first_spike_linear(
        torch.full((1, 1), math.inf), torch.ones(1, 1), WindowedRamp(1.0, start=1.0),
        bias=torch.tensor([1e-8]), t_max=2, return_potential=True, backend=backend,
    )  # fmt: skip
    assert spikes.tolist() == [[math.inf]]
    assert potential.item() == 1
