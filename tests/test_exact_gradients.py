"""Gradients of neurons in continuous time: against the papers' formulas and finite differences."""

import math

import numpy as np
import pytest
import torch
from continuous_examples import GEOMETRIES, random_layer, tensors, with_every_neuron
from marks import in_both_precisions, on_every_backend
from scipy.special import lambertw

from ssnn_plugin import LIF, AlphaPSP, ExpPSP, ReLPSP
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear

INF = math.inf


@on_every_backend
def test_the_gradients_that_the_papers_print(backend):
    t, w = np.array([0.1, 0.4, 0.9]), np.array([2.0, -0.5, 3.0])

    def gradients(neuron):
        times, weight = tensors(t[None], w[None], grad=True)
        spike = first_spike_linear(times, weight, neuron, t_max=10.0, backend=backend)
        of_times, of_weight = torch.autograd.grad(spike.sum(), (times, weight))
        return spike.item(), of_times[0].numpy(), of_weight[0].numpy()

    def agree(found, of_times, of_weight):
        assert found[0] > t[-1]
        np.testing.assert_allclose(found[1], of_times, rtol=1e-11)
        np.testing.assert_allclose(found[2], of_weight, rtol=1e-11)

    found = gradients(ReLPSP(2.5))  # Zhang et al. 2021
    agree(found, w / w.sum(), (t - found[0]) / w.sum())

    found, z = gradients(ExpPSP(1.5)), np.exp(t)  # Mostafa 2018, on z
    z_out = math.exp(found[0])
    agree(found, w / (w.sum() - 1.5) * z / z_out, (z - z_out) / (w.sum() - 1.5) / z_out)

    found = gradients(AlphaPSP(0.9))  # Comsa et al. 2020, K = 1
    a, b = w @ z, w @ (t * z)
    lambert = lambertw(-0.9 / a * math.exp(b / a)).real
    of_times = w * z * (t - b / a + lambert + 1) / (a * (1 + lambert))
    agree(found, of_times, z * (t - b / a + lambert) / (a * (1 + lambert)))

    found = gradients(LIF(0.9))  # Göltz et al. 2021, tau = 1
    of_times = -w * z * (found[0] - t - 1) / (a * (1 + lambert))
    agree(found, of_times, -z * (found[0] - t) / (a * (1 + lambert)))


def _both(spikes, potential):
    """What is differentiable: times of the neurons that fired, potentials of the others."""
    return spikes[spikes.isfinite()], potential[spikes.isinf()]


@on_every_backend
@with_every_neuron
@pytest.mark.parametrize("seed", [0, 4])
def test_gradcheck(backend, neuron, seed):
    *layer, t_max = random_layer(seed, batch=2, n_in=6, n_out=3)
    layer[0][:, 1] += 0.1  # no ties, where a derivative from one side differs from that from the other
    layer[0][0, 2], layer[0][1, 3] = 0.05, t_max - 0.1
    inputs = tensors(*layer, grad=True)
    fired = []

    def outputs(times, weight, bias):
        outputs = first_spike_linear(
            times, weight, neuron, t_max=t_max, bias=bias, return_potential=True, backend=backend
        )
        fired.append(outputs[0].isfinite().double().mean().item())
        return _both(*outputs)

    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-7, atol=1e-5, rtol=1e-4, nondet_tol=0)
    assert 0 < fired[0] < 1


@on_every_backend
@with_every_neuron
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradcheck_of_a_convolution(backend, neuron, geometry):
    random, groups = np.random.default_rng(2), geometry["groups"]
    times = random.uniform(0.1, 4.0, (1, 4, 4, 5))
    times[random.random(times.shape) < 0.2] = INF
    weight = random.normal(0.6, 1.0, (4, 4 // groups, 2, 2))
    inputs = tensors(times, weight, random.normal(0.2, 0.4, 4), grad=True)
    fired = []

    def outputs(times, weight, bias):
        outputs = first_spike_conv2d(
            times, weight, neuron, t_max=6.0, bias=bias, return_potential=True, backend=backend, **geometry
        )
        fired.append(outputs[0].isfinite().double().mean().item())
        return _both(*outputs)

    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-7, atol=1e-5, rtol=1e-4, fast_mode=True)
    assert 0 < fired[0] < 1


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("copies", [1, 40])
def test_an_input_at_the_crossing_is_not_causal(backend, dtype, copies):
    """It has added nothing to V yet, and has no part in the gradient."""
    times, weight = tensors([[0.0, 2.0]], [[0.5, 1.0]] * copies, dtype=dtype, grad=True)
    spikes = first_spike_linear(times, weight, ReLPSP(), t_max=8.0, backend=backend)
    assert spikes.tolist() == [[2.0] * copies]
    of_times, of_weight = torch.autograd.grad(spikes.sum(), (times, weight))
    assert of_times[0, 0] > 0
    assert of_times[0, 1] == 0
    assert of_weight[:, 0].all()
    assert not of_weight[:, 1].any()


@on_every_backend
@with_every_neuron
def test_what_does_not_move_has_no_gradient(backend, neuron):
    """The potential of a neuron that fired is its threshold, and a silent neuron has no spike."""
    times, weight, bias, t_max = random_layer(4)
    t, w, b = tensors(times, weight, bias, grad=True)
    spikes, potential = first_spike_linear(
        t, w, neuron, t_max=t_max, bias=b, return_potential=True, backend=backend
    )
    fired = spikes.isfinite()
    assert 0 < fired.sum() < fired.numel()
    for grads in ((~fired).double(), torch.zeros_like(spikes)), (torch.zeros_like(spikes), fired.double()):
        for grad in torch.autograd.grad((spikes, potential), (t, w, b), grads, retain_graph=True):
            assert not grad.any()
    for output, grad in ((spikes, fired.double()), (potential, (~fired).double())):
        for of_input in torch.autograd.grad(output, (t, w, b), grad, retain_graph=True):
            assert of_input.any()
            assert of_input.isfinite().all()


@in_both_precisions
@on_every_backend
@with_every_neuron
@pytest.mark.parametrize("late", [10.0, 95.0, 1e4])
def test_inputs_after_the_window_have_no_gradient(backend, neuron, dtype, late):
    t, w = tensors([[0.0, 0.5, late]], [[3.0, 4.0, 5.0], [0.0, 0.1, 7.0]], dtype=dtype, grad=True)
    options = {"t_max": 10.0, "return_potential": True, "backend": backend}
    image, kernels = t.reshape(1, 3, 1, 1), w.reshape(2, 3, 1, 1)
    for outputs in (
        first_spike_linear(t, w, neuron, **options),
        first_spike_conv2d(image, kernels, neuron, **options),
    ):
        spikes, potential = (output.flatten() for output in outputs)
        assert spikes.isfinite().tolist() == [True, False]
        of_times, of_weight = torch.autograd.grad(spikes[0] + potential[1], (t, w), retain_graph=True)
        assert of_times.isfinite().all()
        assert of_weight.isfinite().all()
        assert of_times[0, :2].all()
        assert of_times[0, 2] == 0
        assert not of_weight[:, 2].any()


@in_both_precisions
@with_every_neuron
def test_gradients_late_in_a_long_window(neuron, dtype):
    """The factors of the gradient reach e^80: small errors at late spikes survive in single precision."""
    tau = getattr(neuron, "tau", getattr(neuron, "tau_syn", 1.0))
    random = np.random.default_rng(0)
    early = random.uniform(0, 2, (3, 6)) * tau
    weight = random.normal(1.5, 1.0, (4, 6))

    def run(shift, scale, dtype):
        t, w = tensors(early + shift * tau, weight, dtype=dtype, grad=True)
        spikes = first_spike_linear(t, w, neuron, t_max=(shift + 10) * tau)
        assert spikes.isfinite().any()
        return torch.autograd.grad(spikes[spikes.isfinite()].sum() * scale, (t, w))

    expected = run(0.0, 1.0, torch.float64)
    for ours, theirs in zip(run(68.0, 1e-6, dtype), expected, strict=True):
        tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 5e-3, "atol": 5e-3}
        torch.testing.assert_close(ours.double() * 1e6, theirs, **tolerance)
