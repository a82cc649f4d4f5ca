"""Neurons in continuous time: against an independent search for the crossing, and the papers' formulas."""

import itertools
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from continuous_examples import (
    CAUSAL,
    GEOMETRIES,
    one_output,
    random_image,
    random_layer,
    tensors,
    with_every_neuron,
)
from marks import BACKEND_NAMES, in_both_precisions, on_every_backend
from naive import crossing_in_continuous_time, patches, response
from scipy.integrate import solve_ivp
from scipy.special import lambertw

from ssnn_plugin import LIF, AlphaPSP, ExpPSP, ReLPSP
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear

INF, E = math.inf, math.e


def _by_search(times, weight, bias, neuron, t_max):
    spikes, at_end = zip(
        *(crossing_in_continuous_time(sample, weight, bias, neuron, t_max) for sample in times), strict=True
    )
    spikes = np.stack(spikes)
    return spikes, np.where(np.isfinite(spikes), neuron.threshold, np.stack(at_end))


def _slopes(times, weight, bias, neuron, spikes, h=1e-6):
    """dV/dt at the crossings, by differences; 1 without one."""
    kernel, slopes = response(neuron), np.ones_like(spikes)
    for b, j in np.argwhere(np.isfinite(spikes)):
        causal = times[b] < spikes[b, j]
        age, w = spikes[b, j] - times[b][causal], weight[j][causal]
        grow = w @ (kernel(age + h) - kernel(age - h))
        if bias is not None:
            grow += bias[j] * (kernel(spikes[b, j] + h) - kernel(spikes[b, j] - h))
        slopes[b, j] = grow / (2 * h)
    return slopes


def _agree(found, expected, slopes, tolerance):
    """Times as exactly as the slope of V allows, potentials of the silent neurons."""
    spikes, potential = (tensor.detach().double().numpy() for tensor in found)
    np.testing.assert_array_equal(np.isfinite(spikes), np.isfinite(expected[0]))
    fired = np.isfinite(spikes)
    error = np.abs(spikes[fired] - expected[0][fired]) * np.minimum(slopes[fired], 1)
    assert error.max(initial=0) < tolerance
    np.testing.assert_allclose(potential, expected[1], rtol=tolerance, atol=tolerance)


@with_every_neuron
@pytest.mark.parametrize("seed", range(6))
@in_both_precisions
def test_every_backend_finds_the_crossing(neuron, seed, dtype):
    numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
    *layer, t_max = random_layer(seed, dtype=numpy_dtype, bias=seed % 2 == 0)
    expected = _by_search(*layer, neuron, t_max)
    slopes = _slopes(*layer, neuron, expected[0])
    for backend in BACKEND_NAMES:
        times, weight, bias = tensors(*layer, dtype=dtype)
        found = first_spike_linear(
            times, weight, neuron, t_max=t_max, bias=bias, return_potential=True, backend=backend
        )
        assert {tensor.dtype for tensor in found} == {dtype}
        _agree(found, expected, slopes, 1e-9 if dtype == torch.float64 else 2e-5)


@with_every_neuron
def test_about_half_of_the_neurons_of_these_layers_fire(neuron):
    fired = []
    for seed in range(6):
        times, weight, bias, t_max = random_layer(seed)
        spikes = first_spike_linear(*tensors(times, weight), neuron, t_max=t_max, bias=tensors(bias)[0])
        fired.append(spikes.isfinite().double().mean())
    assert 0.3 < np.mean(fired) < 0.9


@pytest.mark.parametrize("neuron", CAUSAL[3:], ids=repr)
@pytest.mark.parametrize("seed", [11, 12])
@on_every_backend
def test_lif_solves_its_differential_equations(neuron, seed, backend):
    times, weight, bias, t_max = random_layer(seed)
    found = first_spike_linear(
        *tensors(times, weight),
        neuron,
        t_max=t_max,
        bias=tensors(bias)[0],
        return_potential=True,
        backend=backend,
    )

    def flow(_, state):
        v, current = state
        return (current - v) / neuron.tau_mem, -current / neuron.tau_syn

    def reach(_, state):
        return state[0] - neuron.threshold

    reach.terminal, reach.direction = True, 1
    for b, j in np.ndindex(found[0].shape):
        state, spike = np.array([0.0, bias[j]]), INF
        stops = sorted({0.0, t_max, *times[b][times[b] < t_max]})
        for start, end in itertools.pairwise(stops):
            state[1] += weight[j][times[b] == start].sum()
            solution = solve_ivp(
                flow, (start, end), state, events=reach, rtol=1e-10, atol=1e-12, max_step=0.2
            )
            state = solution.y[:, -1].copy()
            if len(solution.t_events[0]):
                spike = solution.t_events[0][0]
                break
        assert found[0][b, j].item() == pytest.approx(spike, rel=1e-6, abs=1e-6)
        assert found[1][b, j].item() == pytest.approx(state[0], rel=1e-6, abs=1e-6)


@with_every_neuron
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_convolution_finds_the_crossing_in_every_patch(neuron, geometry):
    groups, out = geometry["groups"], 8
    times, weight, bias, t_max = random_image(1, groups=groups, batch=1)
    found = [
        first_spike_conv2d(
            times, weight, neuron, t_max=t_max, bias=bias, return_potential=True, backend=backend, **geometry
        )
        for backend in BACKEND_NAMES
    ]
    rest = {key: value for key, value in geometry.items() if key != "groups"}
    indices, padded = patches(times[0].numpy(), weight.shape[2:], groups=groups, **rest)
    kernels, rows = weight.reshape(out, -1).numpy(), out // groups
    for at in range(0, len(indices[0]), 3):
        for g in range(groups):
            mine = slice(g * rows, (g + 1) * rows)
            arguments = padded.reshape(-1)[indices[g][at]][None], kernels[mine], bias.numpy()[mine], neuron
            expected = _by_search(*arguments, t_max)
            slopes = _slopes(*arguments, expected[0])
            for outputs in found:
                of_patch = [output.flatten(2)[:, mine, at] for output in outputs]
                _agree(of_patch, expected, slopes, 1e-9)
    assert 0.1 < found[0][0].isfinite().double().mean() < 0.95


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize(
    ("times", "weight", "expected"),
    [
        # Zhang et al. 2021: t = (threshold + sum w t) / sum w
        ([1.0, 5.0], [0.5, 3.0], (3.0, 1.0)),  # the first input only: (1 + 0.5) / 0.5
        ([1.0, 2.0], [0.5, 0.75], (2.4, 1.0)),  # both: (1 + 0.5 + 1.5) / 1.25
        ([2.0, 1.0], [0.75, 0.5], (2.4, 1.0)),  # in another order
        ([1.0, 1.0], [0.25, 0.25], (3.0, 1.0)),  # simultaneous
        ([1.0, 2.0], [0.05, 0.05], (INF, 0.85)),  # silent: 0.45 + 0.4
        ([0.0, 1.0], [0.5, -0.75], (INF, -1.75)),  # an inhibitory input stops it: 5 - 6.75
        ([0.0, 1.0], [0.5, -0.25], (3.0, 1.0)),  # or slows it: 0.5 + 0.25 (t - 1)
        ([0.0, 3.0], [0.5, -9.0], (2.0, 1.0)),  # or comes too late
        ([0.0, 2.0], [0.5, 1.0], (2.0, 1.0)),  # an input at the crossing
        ([0.0, 2.0], [0.5, -1.0], (INF, -3.0)),  # that turns V back at the threshold: 5 - 8
        ([9.0, 10.0], [0.5, 100.0], (INF, 0.5)),  # an input at the end of the window
        ([9.0, 11.0], [0.5, 100.0], (INF, 0.5)),  # after it
        ([0.0, INF], [0.1, 100.0], (INF, 1.0)),  # the crossing is at the end of the window
        ([INF, INF], [1.0, 1.0], (INF, 0.0)),
        ([0.0, 0.0], [0.0, 0.0], (INF, 0.0)),
        ([0.0, 1.0], [-1.0, 3.0], (2.0, 1.0)),  # V falls, then rises: -t + 3 (t - 1)
    ],
)
def test_ramps_by_hand(backend, dtype, times, weight, expected):
    found = one_output(times, weight, ReLPSP(), backend, dtype)
    assert found == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-12)


LN2, LN3 = math.log(2), math.log(3)


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize(
    ("times", "weight", "expected"),
    [
        # Mostafa 2018: z = sum w z_i / (sum w - 1) with z = e^t
        ([0.0, 2.0], [2.0, 9.0], LN2),  # z = 2 / 1, before the second input
        ([0.0, LN2], [1.5, 0.5], math.log(2.5)),  # z = (1.5 + 1) / 1 = 2.5, after 2
        ([LN2, LN2], [1.0, 1.0], 2 * LN2),  # z = 4 / 1
        ([0.0, LN2], [1.5, -0.25], math.log(4)),  # z = (1.5 - 0.5) / 0.25, and not 3
        ([0.0, LN2], [1.5, -0.75], INF),  # sum w < 1
        ([0.0, LN3], [1.5, -0.75], LN3),  # for rounding: see below
        ([0.0, 1.0], [0.5, 0.5], INF),  # sum w = 1 is never reached
        ([0.0, 1.0], [0.5, 0.4], INF),
        ([1.0, INF], [1.0001, 1.0], 10.0),  # z = e 10001: too late
    ],
)
def test_exponentials_by_hand(backend, dtype, times, weight, expected):
    if times == [0.0, LN3]:
        times[1] += 1e-6  # the crossing, at ln 3, is just before the inhibition
    found, potential = one_output(times, weight, ExpPSP(), backend, dtype)
    expected = INF if expected >= 10 else expected
    assert found == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-12)
    if expected == INF:
        level = sum(w * (1 - math.exp(t - 10)) for t, w in zip(times, weight, strict=True) if t < INF)
        assert potential == pytest.approx(level, rel=1e-6)
    else:
        assert potential == 1.0


@on_every_backend
@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_formulas_of_the_papers(backend, tau):
    """Mostafa 2018, Comsa et al. 2020, Göltz et al. 2021: all three inputs are causal."""
    t, w, threshold = np.array([0.1, 0.4, 0.9]) * tau, np.array([2.0, -0.5, 3.0]), 1.7
    z = np.exp(t / tau)

    found, _ = one_output(t.tolist(), w.tolist(), ExpPSP(threshold, tau=tau), backend)
    assert found / tau == pytest.approx(math.log(w @ z / (w.sum() - threshold)), rel=1e-12)

    theta, k = 0.9 * tau, 1 / tau
    a, b = w @ np.exp(k * t), w @ (t * np.exp(k * t))
    expected = b / a - lambertw(-k * theta / a * np.exp(k * b / a)).real / k
    found, _ = one_output(t.tolist(), w.tolist(), AlphaPSP(theta, tau=tau), backend)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > t[-1]

    theta = 0.9
    a, b = w @ z, w @ (t / tau * z)
    expected = tau * (b / a - lambertw(-theta / a * np.exp(b / a)).real)
    found, _ = one_output(t.tolist(), w.tolist(), LIF(theta, tau_mem=tau, tau_syn=tau), backend)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > t[-1]

    theta = 0.5
    a1, a2 = w @ np.exp(t / tau), w @ np.exp(t / (2 * tau))
    expected = 2 * tau * math.log(2 * a1 / (a2 + math.sqrt(a2**2 - 4 * a1 * theta)))
    found, _ = one_output(t.tolist(), w.tolist(), LIF(theta, tau_mem=2 * tau, tau_syn=tau), backend)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > t[-1]


@in_both_precisions
@pytest.mark.parametrize("neuron", [ExpPSP(), LIF(tau_mem=2.0), LIF(tau_mem=3.0)], ids=str)
def test_the_largest_weights_fire_at_once(neuron, dtype):
    for weight in (torch.finfo(dtype).max / 4, INF):
        assert one_output([1.0, 2.0], [weight, 0.1], neuron, "cpu", dtype)[0] == 1.0


@on_every_backend
@in_both_precisions
def test_humps_by_hand(backend, dtype):
    """A single input of weight w peaks at w / e after tau (alpha) or w / 4 after 2 tau ln 2 (double)."""
    exact = {"rel": 1e-6 if dtype == torch.float32 else 1e-12}
    # w d e^-d = 1 at d = 1/2 for w = 2 sqrt(e); x (1 - x) w = 1 at x = 3/4 for w = 16/3.
    assert one_output([1.0], [2 * math.sqrt(E)], AlphaPSP(), backend, dtype) == pytest.approx(
        (1.5, 1.0), **exact
    )
    assert one_output([1.0], [2 * math.sqrt(E)], LIF(), backend, dtype) == pytest.approx((1.5, 1.0), **exact)
    found = one_output([1.0], [16 / 3], LIF(tau_mem=2.0), backend, dtype)
    assert found == pytest.approx((1 + 2 * math.log(4 / 3), 1.0), **exact)
    # The peak of an alpha of time constant tau is tau / e.
    assert one_output([1.0], [E / 3 * 1.001], AlphaPSP(tau=3.0), backend, dtype)[0] < 4
    assert one_output([1.0], [E / 3 * 0.999], AlphaPSP(tau=3.0), backend, dtype)[0] == INF


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("second", [-5.0, 5.0])
def test_a_neuron_does_not_depend_on_its_neighbours(backend, dtype, second):
    """V reaches the threshold in the moment of an input, while another neuron crosses before."""
    times = torch.tensor([[0.0, 1.0]], dtype=dtype)
    weight = torch.tensor([[1.0, second], [3.0, 0.0], [0.1, 0.0]], dtype=dtype)
    together = first_spike_linear(times, weight, ReLPSP(), t_max=8.0, return_potential=True, backend=backend)
    for j in range(3):
        alone = first_spike_linear(
            times, weight[j : j + 1], ReLPSP(), t_max=8.0, return_potential=True, backend=backend
        )
        for one, all_ in zip(alone, together, strict=True):
            assert one.item() == all_[0, j].item()


@on_every_backend
@with_every_neuron
def test_a_bias_is_the_weight_of_a_spike_at_time_zero(backend, neuron):
    times, weight, bias, t_max = random_layer(5)
    t, w, b = tensors(times, weight, bias, grad=True)
    with_bias = first_spike_linear(t, w, neuron, t_max=t_max, bias=b, return_potential=True, backend=backend)
    t1 = torch.cat([t.new_zeros(len(t), 1), t], dim=1)
    w1 = torch.cat([b.unsqueeze(1), w], dim=1)
    as_spike = first_spike_linear(t1, w1, neuron, t_max=t_max, return_potential=True, backend=backend)
    fired = with_bias[0].isfinite()
    assert 0 < fired.sum() < fired.numel()
    for ours, theirs in zip(with_bias, as_spike, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = [
        torch.randn(fired.shape, dtype=torch.double, generator=torch.Generator().manual_seed(k))
        for k in (0, 1)
    ]
    for ours, theirs in zip(
        torch.autograd.grad(with_bias, (t, w, b), grads),
        torch.autograd.grad(as_spike, (t, w, b), grads),
        strict=True,
    ):
        assert ours.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@on_every_backend
@with_every_neuron
def test_times_scale_and_shift(backend, neuron):
    """In other units of time nothing else changes, and later inputs give later spikes."""
    times, weight, _, t_max = random_layer(3)
    spikes = first_spike_linear(*tensors(times, weight), neuron, t_max=t_max, backend=backend)
    later = first_spike_linear(*tensors(times + 0.75, weight), neuron, t_max=t_max + 0.75, backend=backend)
    torch.testing.assert_close(later, spikes + 0.75, rtol=1e-9, atol=1e-9)
    if not isinstance(neuron, ReLPSP):
        constants = {f.name: 3 * getattr(neuron, f.name) for f in fields(neuron) if f.name.startswith("tau")}
        threshold = neuron.threshold * (3 if isinstance(neuron, AlphaPSP) else 1)
        slower = type(neuron)(threshold, **constants)
        stretched = first_spike_linear(*tensors(3 * times, weight), slower, t_max=3 * t_max, backend=backend)
        torch.testing.assert_close(stretched, 3 * spikes, rtol=1e-9, atol=1e-9)
