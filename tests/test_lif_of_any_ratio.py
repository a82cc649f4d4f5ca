"""Leaky neurons whose two time constants have any ratio."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import on_every_backend
from scipy.integrate import solve_ivp

from ssnn_plugin import LIF
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear

T_MAX = 6.0
RATIOS = [0.02, 0.3, 0.999, 1 - 1e-9, 1.0, 1 + 1e-12, 1.0001, 1.5, 2.0, 2 + 1e-9, 3.7, 40.0]
of_every_ratio = pytest.mark.parametrize("ratio", RATIOS)


def _layer(seed, n_in=9, n_out=6):
    rng = np.random.default_rng(seed)
    times, weight = rng.uniform(0, 4, n_in), rng.normal(0.35, 0.8, (n_out, n_in))
    return times, weight


def _neuron(fraction, tau_mem, tau_syn):
    """With a threshold that is a fraction of the highest response to one input of weight 1."""
    t = np.linspace(1e-3, 20, 200_000) * min(tau_mem, tau_syn)
    rate = 1 / tau_syn - 1 / tau_mem
    grown = np.expm1(rate * t) / rate if rate else t
    return LIF(
        fraction * float((np.exp(-t / tau_syn) * grown / tau_mem).max()), tau_mem=tau_mem, tau_syn=tau_syn
    )


def test_neighbouring_time_constants_are_as_equal_ones():
    """Of numbers whose reciprocals are equal."""
    times, weight = (torch.tensor(each) for each in _layer(0))
    apart = LIF(0.5, tau_mem=1.9, tau_syn=math.nextafter(1.9, 2.0))
    assert apart.tau_mem != apart.tau_syn
    assert 1 / apart.tau_mem == 1 / apart.tau_syn
    spikes = [
        first_spike_linear(times[None], weight, neuron, t_max=T_MAX, backend="cpu")
        for neuron in (apart, replace(apart, tau_syn=1.9))
    ]
    assert spikes[0].isfinite().any()
    torch.testing.assert_close(*spikes)


def _window(neuron):
    return min(T_MAX, 70 * min(neuron.tau_mem, neuron.tau_syn))


def _integrated(times, weights, neuron):
    """First crossing and potential at the end of the window, by integrating the differential equations."""

    def crosses(t, state):
        return state[0] - neuron.threshold

    crosses.terminal, crosses.direction = True, 1
    state, t = [0.0, 0.0], 0.0

    def equations(t, state):
        return [(state[1] - state[0]) / neuron.tau_mem, -state[1] / neuron.tau_syn]

    for when, w in [*sorted(zip(times, weights, strict=True)), (T_MAX, 0.0)]:
        if when > t:
            steps = {"rtol": 1e-11, "atol": 1e-13, "max_step": 0.02, "method": "DOP853"}
            run = solve_ivp(equations, (t, when), state, events=crosses, **steps)
            if run.t_events[0].size:
                return run.t_events[0][0], neuron.threshold
            state, t = list(run.y[:, -1]), when
        state[1] += w
    return math.inf, state[0]


@on_every_backend
@pytest.mark.parametrize("ratio", [0.3, 1 - 1e-9, 1.5, 3.7])
def test_spike_times_are_those_of_the_differential_equations(backend, ratio):
    neuron = LIF(0.25, tau_mem=0.8 * ratio, tau_syn=0.8)
    times, weight = _layer(5)
    spikes, potential = first_spike_linear(
        torch.tensor(times).unsqueeze(0), torch.tensor(weight), neuron, t_max=T_MAX, backend=backend,
        return_potential=True,
    )  # fmt: skip
    expected = [_integrated(times, weights, neuron) for weights in weight]
    assert sum(math.isfinite(t) for t, _ in expected) > 0
    np.testing.assert_allclose(spikes[0], [t for t, _ in expected], atol=1e-7)
    np.testing.assert_allclose(potential[0], [v for _, v in expected], atol=1e-7)


@on_every_backend
@of_every_ratio
def test_gradients(backend, ratio):
    neuron = _neuron(0.7, ratio * 1.1, 1.1)
    times, weight = _layer(2)
    times = times * _window(neuron) / T_MAX
    bias = torch.full((len(weight),), 0.05, dtype=torch.float64)
    inputs = [torch.tensor(times).unsqueeze(0), torch.tensor(weight), bias]
    options = {"t_max": _window(neuron), "backend": backend}

    def layer(t, w, b):
        spikes, potential = first_spike_linear(t, w, neuron, bias=b, return_potential=True, **options)
        return spikes[spikes.isfinite()], potential[spikes.isinf()]

    assert len(layer(*inputs)[0])
    assert torch.autograd.gradcheck(layer, [x.requires_grad_() for x in inputs], eps=1e-7, atol=1e-4)


@of_every_ratio
def test_backends_agree_in_convolutions(ratio):
    rng = np.random.default_rng(3)
    times, weight = (
        torch.tensor(rng.uniform(0, 4, (3, 2, 6, 6))),
        torch.tensor(rng.normal(0.2, 0.6, (4, 2, 3, 3))),
    )
    neuron = _neuron(1.5, ratio * 0.9, 0.9)
    times = times * _window(neuron) / T_MAX
    options = {"t_max": _window(neuron), "return_potential": True}
    one, two = (first_spike_conv2d(times, weight, neuron, backend=b, **options) for b in ("cpu", "reference"))
    assert 0 < one[0].isfinite().sum() < one[0].numel()
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), log_ratio=st.floats(-3, 3))
def test_backends_agree_on_random_layers(dtype, seed, log_ratio):
    times, weight = _layer(seed)
    neuron = _neuron(0.8, math.exp(log_ratio), 1.0)
    t, w = torch.tensor(times, dtype=dtype).unsqueeze(0), torch.tensor(weight, dtype=dtype)
    options = {"t_max": _window(neuron), "return_potential": True}
    (one, v_one), (two, v_two) = (
        first_spike_linear(t, w, neuron, backend=backend, **options) for backend in ("cpu", "reference")
    )
    tolerance = 2e-3 if dtype == torch.float32 else 1e-6
    # Near a tangent a rounding error decides whether, and when, a neuron fires.
    lower, higher = (
        first_spike_linear(
            t, w, replace(neuron, threshold=neuron.threshold * (1 + sign * tolerance)), **options
        )[0]
        for sign in (-1, 1)
    )
    clear = (lower == higher) | (higher - lower < 0.1)
    torch.testing.assert_close(one[clear], two[clear], atol=tolerance, rtol=tolerance)
    silent = clear & one.isinf()
    torch.testing.assert_close(v_one[silent], v_two[silent], atol=tolerance, rtol=tolerance)


@of_every_ratio
def test_it_lies_between_its_neighbours(ratio):
    """V depends on the ratio without a jump, through 1 and 2 too."""
    times, weight = _layer(2)
    t, w = torch.tensor(times).unsqueeze(0), torch.tensor(weight)
    options = {"t_max": min(T_MAX, 70 * 0.99 * min(ratio, 1.0)), "return_potential": True}
    near = [
        first_spike_linear(t, w, LIF(50.0, tau_mem=ratio * (1 + step), tau_syn=1.0), **options)[1]
        for step in (-1e-7, 0.0, 1e-7)
    ]
    torch.testing.assert_close(near[1], (near[0] + near[2]) / 2, rtol=1e-6, atol=1e-9)
