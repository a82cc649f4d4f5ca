"""Potentials that only just reach the threshold, or only just miss it."""

import math

import numpy as np
import pytest
import torch
from continuous_examples import CAUSAL, one_output, tensors
from marks import in_both_precisions, on_every_backend
from naive import crossing_in_continuous_time, response

from ssnn_plugin import LIF, AlphaPSP, ExpPSP, ReLPSP
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.kernels import ops
from ssnn_plugin.kernels.geometry import Geometry

INF = math.inf
HUMPS = [AlphaPSP(), AlphaPSP(0.7, tau=2.5), LIF(), LIF(tau_mem=2.0), LIF(0.6, tau_mem=3.0, tau_syn=1.5)]


def _peak(neuron):
    """When the response peaks, and how high."""
    tau = neuron.tau if isinstance(neuron, AlphaPSP) else neuron.tau_syn
    at = 2 * tau * math.log(2) if isinstance(neuron, LIF) and neuron.tau_mem > tau else tau
    return at, float(response(neuron)(at))


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("neuron", HUMPS, ids=repr)
@pytest.mark.parametrize("second", [-20.0, 0.5])
def test_a_peak_between_two_inputs(backend, dtype, neuron, second):
    """V is below the threshold at both inputs, and reaches it in between."""
    at, height = _peak(neuron)
    times, weight = [0.5, 0.5 + 3 * at], [1.1 * neuron.threshold / height, second]
    at_second = weight[0] * float(response(neuron)(3 * at))
    assert at_second < neuron.threshold
    spike, potential = one_output(times, weight, neuron, backend, dtype, t_max=8 * at)
    (expected,), _ = crossing_in_continuous_time(np.array(times), np.array([weight]), None, neuron, 8 * at)
    assert 0.5 < spike < 0.5 + at
    assert spike == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-9)
    assert potential == pytest.approx(neuron.threshold, rel=1e-6)
    # In a window that ends before the second input, and in one that ends before the crossing.
    spike, _ = one_output(times, weight, neuron, backend, dtype, t_max=0.5 + 2 * at)
    assert spike == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-9)
    assert one_output(times, weight, neuron, backend, dtype, t_max=(0.5 + expected) / 2)[0] == INF


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("neuron", HUMPS, ids=repr)
@pytest.mark.parametrize("later", [None, 2.0])
def test_a_potential_that_nearly_touches_the_threshold(backend, dtype, neuron, later):
    at, height = _peak(neuron)
    touching = neuron.threshold / height
    inputs = [0.25] if later is None else [0.25, 0.25 + later * at]
    near = 1e-5 if dtype == torch.float32 else 1e-11
    for factor in (1 - near, 1 + near):
        weight = [touching * factor, -touching][: len(inputs)]
        spike, _ = one_output(inputs, weight, neuron, backend, dtype, t_max=5 * at)
        if factor < 1:
            assert spike == INF
        else:
            assert spike == pytest.approx(0.25 + at, abs=10 * math.sqrt(near) * at)
            assert spike <= 0.25 + at * (1 + near)


@in_both_precisions
@on_every_backend
@pytest.mark.parametrize("neuron", HUMPS, ids=repr)
def test_slopes_at_crossings_are_never_negative(backend, dtype, neuron):
    """A crossing is on the way up; its slope is close to 0 where V nearly touches the threshold."""
    at, height = _peak(neuron)
    steps = 10.0 ** -torch.arange(1, 17, dtype=torch.float64)
    weight = ((1 + torch.cat([steps, -steps, torch.zeros(1)])) * neuron.threshold / height).unsqueeze(1)
    times = torch.tensor([[0.5]], dtype=dtype)
    spikes, _, slope = ops.first_spike(
        times, weight.to(dtype), None, *Geometry(), neuron.kind, neuron.numbers, 5 * at, backend
    )
    fired = spikes.isfinite()
    assert 0 < fired.sum() < fired.numel()
    assert (slope[fired] >= 0).all()
    assert not slope[~fired].any()


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_a_neuron_that_touches_leaves_the_gradients_of_others_alone(backend, dtype, threshold):
    """The slope of the first is 0 exactly: its gradient does not exist, and nothing asks for it."""
    times, weight = tensors([[0.0]], [[4 * threshold], [8 * threshold]], dtype=dtype, grad=True)
    spikes = first_spike_linear(times, weight, LIF(threshold, tau_mem=2.0), t_max=9.0, backend=backend)
    assert spikes[0, 0].item() == pytest.approx(2 * math.log(2))
    of_times, of_weight = torch.autograd.grad(spikes[0, 1], (times, weight))
    assert of_times.item() == pytest.approx(1.0)
    assert of_weight[0].item() == 0.0
    assert of_weight[1].item() < 0


@in_both_precisions
@on_every_backend
@pytest.mark.parametrize("neuron", [*CAUSAL, *HUMPS], ids=repr)
def test_a_narrow_miss_can_fire_later(backend, dtype, neuron):
    """V is within rounding of the threshold before a strong input: it fires, now or then."""
    at, height = _peak(neuron) if not isinstance(neuron, ReLPSP | ExpPSP) else (60.0, 1.0)
    if isinstance(neuron, ReLPSP):
        height, at = 1.0, 1.0
    ulps = torch.arange(-300, 301, dtype=torch.float64) * torch.finfo(dtype).eps / 4
    first = (1 + ulps) * neuron.threshold / height
    weight = torch.stack([first, torch.full_like(first, 50.0)], dim=1).to(dtype)
    t_max = min(60.0, 70 * getattr(neuron, "tau", 1.0))
    wait = min(at, t_max / 2)
    spikes = first_spike_linear(
        torch.tensor([[0.5, 0.5 + wait]], dtype=dtype), weight, neuron, t_max=t_max, backend=backend
    )
    assert spikes.isfinite().all()


@on_every_backend
def test_a_peak_that_rounds_away_does_not_silence_a_neuron(backend):
    """Stepping says that V passed the threshold, the closed form denies it: a later input drives it over."""
    times = torch.tensor([[0.8302518725395203, 0.12611091136932373, 2.4100000858306885]])
    weight = torch.tensor([[8.850205421447754, -8.081180572509766, 10.0]])
    spikes = first_spike_linear(times, weight, AlphaPSP(), t_max=8.0, backend=backend)
    torch.testing.assert_close(spikes, torch.tensor([[2.4098]]), rtol=0, atol=3e-4)


@in_both_precisions
@on_every_backend
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
@pytest.mark.parametrize(
    ("neuron", "weights", "late"),
    [
        (AlphaPSP(), [8.850205421447754, -8.081180572509766, 10.0], 2.4100000858306885),
        (LIF(tau_mem=2.0, tau_syn=1.0), [17.12867546081543, -15.640305519104004, 10.0], 3.0702500343322754),
    ],
    ids=repr,
)
def test_a_spike_at_a_tangent_comes_before_the_next_input_or_because_of_it(
    backend, layer, neuron, weights, late, dtype
):
    ulps = torch.arange(-100, 101, dtype=torch.double)[:, None] * torch.finfo(torch.float32).eps / 4
    weight = (torch.tensor(weights) * torch.cat([1 + ulps, 1 + ulps, 1 + 0 * ulps], dim=1)).to(dtype)
    times = (
        torch.tensor([0.8302518725395203, 0.12611091136932373, late], dtype=dtype)
        .repeat(201, 1)
        .requires_grad_()
    )
    if layer == "linear":
        spikes = first_spike_linear(times, weight, neuron, t_max=8.0, backend=backend)
    else:
        t, w = times.reshape(-1, 3, 1, 1), weight.reshape(-1, 3, 1, 1)
        spikes = first_spike_conv2d(t, w, neuron, t_max=8.0, backend=backend).flatten(1)
    each = spikes.diagonal()
    assert each.isfinite().all()
    (grad,) = torch.autograd.grad(each.sum(), times)
    of_late = torch.where(each <= times[:, 2], grad[:, 2] == 0, (grad[:, 2] > 0) & (grad[:, 2] < 1.5))
    assert of_late.all()


@in_both_precisions
@on_every_backend
@pytest.mark.parametrize("neuron", HUMPS, ids=repr)
def test_gradients_stay_finite_around_a_tangent(backend, dtype, neuron):
    """The slope counts as sqrt(eps) threshold / t_max at least; the errors of a loss may be large."""
    t_max, (_, height) = 8.0, _peak(neuron)
    ulps = torch.arange(-300, 301, dtype=torch.float64) * torch.finfo(dtype).eps / 4
    weight = ((1 + ulps) * neuron.threshold / height).to(dtype).unsqueeze(1).requires_grad_()
    times = torch.full((1, 1), 0.5, dtype=dtype, requires_grad=True)
    spikes = first_spike_linear(times, weight, neuron, t_max=t_max, backend=backend)
    fired = spikes.isfinite()
    assert fired.any()
    of_times, of_weight = torch.autograd.grad(1e3 * spikes[fired].sum(), (times, weight))
    least = torch.finfo(dtype).eps ** 0.5 * neuron.threshold / t_max
    assert of_times.isfinite().all()
    assert (of_weight.abs() <= 1.001e3 * height / least).all()
    assert (of_weight[fired.T] < 0).all()


@in_both_precisions
def test_a_weight_of_exactly_four_thresholds(dtype):
    times, weight = tensors([[0.0]], [[4.0]], dtype=dtype, grad=True)
    spikes = first_spike_linear(times, weight, LIF(tau_mem=2.0), t_max=8.0)
    _, of_weight = torch.autograd.grad(10 * spikes.sum(), (times, weight))
    least = torch.finfo(dtype).eps ** 0.5 / 8.0
    assert of_weight.item() == pytest.approx(-10 * 0.25 / least, rel=1e-3)
