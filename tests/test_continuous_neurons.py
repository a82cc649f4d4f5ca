"""Neurons in continuous time: against an independent search for the crossing, and the papers' formulas."""

import copy
import itertools
import math
import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import needs_compiler
from naive import crossing_in_continuous_time, patches, response
from scipy.integrate import solve_ivp
from scipy.special import lambertw
from torch.nn.functional import conv2d, linear, relu

from ssnn_plugin import IF, LIF, AlphaPSP, ExpPSP, ReLPSP, WindowedRamp
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.kernels import ops
from ssnn_plugin.kernels.backends import BACKENDS
from ssnn_plugin.kernels.cpu import parallel
from ssnn_plugin.kernels.geometry import Geometry
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear

INF, NAN, E = math.inf, math.nan, math.e
NAMES = sorted(BACKENDS)
DTYPES = [torch.float32, torch.float64]
# Thresholds with which about half of the neurons of `_layer` fire.
CAUSAL = [
    ReLPSP(3.0),
    ExpPSP(0.9, tau=1.5),
    AlphaPSP(0.8, tau=1.5),
    LIF(0.6, tau_mem=1.2, tau_syn=1.2),
    LIF(0.4, tau_mem=2.4, tau_syn=1.2),
]
HUMPS = [AlphaPSP(), AlphaPSP(0.7, tau=2.5), LIF(), LIF(tau_mem=2.0), LIF(0.6, tau_mem=3.0, tau_syn=1.5)]
on_every_backend = pytest.mark.parametrize("backend", NAMES)
in_both_precisions = pytest.mark.parametrize("dtype", DTYPES)
with_every_neuron = pytest.mark.parametrize("neuron", CAUSAL, ids=repr)


@pytest.fixture(autouse=True)
def set_threads():
    """One thread unless a test asks for more: on a busy machine they would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(threads)


def _tensors(*arrays, dtype=torch.float64, grad=False):
    return [None if a is None else torch.as_tensor(a).to(dtype).requires_grad_(grad) for a in arrays]


def _layer(seed, batch=4, n_in=8, n_out=5, t_max=6.0, dtype=np.float64, bias=True):
    """Times with silence, ties and inputs after the window; weights of either sign."""
    random = np.random.default_rng(seed)
    times = random.uniform(0, 1.1 * t_max, (batch, n_in)) * random.choice([0.5, 1.0], (batch, 1))
    times[random.random(times.shape) < 0.1] = INF
    times[:, 1], times[0, 2], times[1, 3] = times[:, 0], 0.0, t_max
    weight = random.normal(0.5, 1.0, (n_out, n_in))
    constant = random.normal(0.2, 0.4, n_out) if bias else None
    as_held = (a if a is None else a.astype(dtype).astype(float) for a in (times, weight, constant))
    return *as_held, t_max


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
    *layer, t_max = _layer(seed, dtype=numpy_dtype, bias=seed % 2 == 0)
    expected = _by_search(*layer, neuron, t_max)
    slopes = _slopes(*layer, neuron, expected[0])
    for backend in NAMES:
        times, weight, bias = _tensors(*layer, dtype=dtype)
        found = first_spike_linear(
            times, weight, neuron, t_max=t_max, bias=bias, return_potential=True, backend=backend
        )
        assert {tensor.dtype for tensor in found} == {dtype}
        _agree(found, expected, slopes, 1e-9 if dtype == torch.float64 else 2e-5)


@with_every_neuron
def test_about_half_of_the_neurons_of_these_layers_fire(neuron):
    fired = []
    for seed in range(6):
        times, weight, bias, t_max = _layer(seed)
        spikes = first_spike_linear(*_tensors(times, weight), neuron, t_max=t_max, bias=_tensors(bias)[0])
        fired.append(spikes.isfinite().double().mean())
    assert 0.3 < np.mean(fired) < 0.9


@pytest.mark.parametrize("neuron", CAUSAL[3:], ids=repr)
@pytest.mark.parametrize("seed", [11, 12])
@on_every_backend
def test_lif_solves_its_differential_equations(neuron, seed, backend):
    times, weight, bias, t_max = _layer(seed)
    found = first_spike_linear(
        *_tensors(times, weight),
        neuron,
        t_max=t_max,
        bias=_tensors(bias)[0],
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


GEOMETRIES = [
    {"stride": (1, 1), "padding": (1, 2), "dilation": (1, 1), "groups": 1},
    {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2), "groups": 2},
    {"stride": (3, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 4},
]


def _image(seed, dtype=torch.float64, batch=2, channels=4, out=8, kernel=(3, 2), groups=1, t_max=6.0):
    random = np.random.default_rng(seed)
    times = random.uniform(0, 1.1 * t_max, (batch, channels, 5, 6)) * random.choice([0.5, 1.0])
    times[random.random(times.shape) < 0.2] = INF
    times[:, 1] = times[:, 0]
    weight = random.normal(0.6, 1.0, (out, channels // groups, *kernel))
    return *_tensors(times, weight, random.normal(0.2, 0.4, out), dtype=dtype), t_max


@with_every_neuron
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_convolution_finds_the_crossing_in_every_patch(neuron, geometry):
    groups, out = geometry["groups"], 8
    times, weight, bias, t_max = _image(1, groups=groups, batch=1)
    found = [
        first_spike_conv2d(
            times, weight, neuron, t_max=t_max, bias=bias, return_potential=True, backend=backend, **geometry
        )
        for backend in NAMES
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


def _one(times, weight, neuron, backend="cpu", dtype=torch.float64, **options):
    """One sample, one output: its time and potential."""
    options = {"t_max": 10.0} | options
    t, w = torch.tensor([times], dtype=dtype), torch.tensor([weight], dtype=dtype)
    spikes, potential = first_spike_linear(t, w, neuron, return_potential=True, backend=backend, **options)
    return spikes.item(), potential.item()


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
    found = _one(times, weight, ReLPSP(), backend, dtype)
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
    found, potential = _one(times, weight, ExpPSP(), backend, dtype)
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

    found, _ = _one(t.tolist(), w.tolist(), ExpPSP(threshold, tau=tau), backend)
    assert found / tau == pytest.approx(math.log(w @ z / (w.sum() - threshold)), rel=1e-12)

    theta, k = 0.9 * tau, 1 / tau
    a, b = w @ np.exp(k * t), w @ (t * np.exp(k * t))
    expected = b / a - lambertw(-k * theta / a * np.exp(k * b / a)).real / k
    found, _ = _one(t.tolist(), w.tolist(), AlphaPSP(theta, tau=tau), backend)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > t[-1]

    theta = 0.9
    a, b = w @ z, w @ (t / tau * z)
    expected = tau * (b / a - lambertw(-theta / a * np.exp(b / a)).real)
    found, _ = _one(t.tolist(), w.tolist(), LIF(theta, tau_mem=tau, tau_syn=tau), backend)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > t[-1]

    theta = 0.5
    a1, a2 = w @ np.exp(t / tau), w @ np.exp(t / (2 * tau))
    expected = 2 * tau * math.log(2 * a1 / (a2 + math.sqrt(a2**2 - 4 * a1 * theta)))
    found, _ = _one(t.tolist(), w.tolist(), LIF(theta, tau_mem=2 * tau, tau_syn=tau), backend)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > t[-1]


@on_every_backend
def test_the_gradients_that_the_papers_print(backend):
    t, w = np.array([0.1, 0.4, 0.9]), np.array([2.0, -0.5, 3.0])

    def gradients(neuron):
        times, weight = _tensors(t[None], w[None], grad=True)
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


@on_every_backend
@in_both_precisions
def test_humps_by_hand(backend, dtype):
    """A single input of weight w peaks at w / e after tau (alpha) or w / 4 after 2 tau ln 2 (double)."""
    exact = {"rel": 1e-6 if dtype == torch.float32 else 1e-12}
    # w d e^-d = 1 at d = 1/2 for w = 2 sqrt(e); x (1 - x) w = 1 at x = 3/4 for w = 16/3.
    assert _one([1.0], [2 * math.sqrt(E)], AlphaPSP(), backend, dtype) == pytest.approx((1.5, 1.0), **exact)
    assert _one([1.0], [2 * math.sqrt(E)], LIF(), backend, dtype) == pytest.approx((1.5, 1.0), **exact)
    found = _one([1.0], [16 / 3], LIF(tau_mem=2.0), backend, dtype)
    assert found == pytest.approx((1 + 2 * math.log(4 / 3), 1.0), **exact)
    # The peak of an alpha of time constant tau is tau / e.
    assert _one([1.0], [E / 3 * 1.001], AlphaPSP(tau=3.0), backend, dtype)[0] < 4
    assert _one([1.0], [E / 3 * 0.999], AlphaPSP(tau=3.0), backend, dtype)[0] == INF


def _peak(neuron):
    """When the response peaks, and how high."""
    tau = neuron.tau if isinstance(neuron, AlphaPSP) else neuron.tau_syn
    at = 2 * tau * LN2 if isinstance(neuron, LIF) and neuron.tau_mem > tau else tau
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
    spike, potential = _one(times, weight, neuron, backend, dtype, t_max=8 * at)
    (expected,), _ = crossing_in_continuous_time(np.array(times), np.array([weight]), None, neuron, 8 * at)
    assert 0.5 < spike < 0.5 + at
    assert spike == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-9)
    assert potential == pytest.approx(neuron.threshold, rel=1e-6)
    # In a window that ends before the second input, and in one that ends before the crossing.
    spike, _ = _one(times, weight, neuron, backend, dtype, t_max=0.5 + 2 * at)
    assert spike == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-9)
    assert _one(times, weight, neuron, backend, dtype, t_max=(0.5 + expected) / 2)[0] == INF


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
        spike, _ = _one(inputs, weight, neuron, backend, dtype, t_max=5 * at)
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
    times, weight = _tensors([[0.0]], [[4 * threshold], [8 * threshold]], dtype=dtype, grad=True)
    spikes = first_spike_linear(times, weight, LIF(threshold, tau_mem=2.0), t_max=9.0, backend=backend)
    assert spikes[0, 0].item() == pytest.approx(2 * LN2)
    of_times, of_weight = torch.autograd.grad(spikes[0, 1], (times, weight))
    assert of_times.item() == pytest.approx(1.0)
    assert of_weight[0].item() == 0.0
    assert of_weight[1].item() < 0


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


@on_every_backend
@with_every_neuron
def test_a_bias_is_the_weight_of_a_spike_at_time_zero(backend, neuron):
    times, weight, bias, t_max = _layer(5)
    t, w, b = _tensors(times, weight, bias, grad=True)
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
    times, weight, _, t_max = _layer(3)
    spikes = first_spike_linear(*_tensors(times, weight), neuron, t_max=t_max, backend=backend)
    later = first_spike_linear(*_tensors(times + 0.75, weight), neuron, t_max=t_max + 0.75, backend=backend)
    torch.testing.assert_close(later, spikes + 0.75, rtol=1e-9, atol=1e-9)
    if not isinstance(neuron, ReLPSP):
        constants = {f.name: 3 * getattr(neuron, f.name) for f in fields(neuron) if f.name.startswith("tau")}
        threshold = neuron.threshold * (3 if isinstance(neuron, AlphaPSP) else 1)
        slower = type(neuron)(threshold, **constants)
        stretched = first_spike_linear(*_tensors(3 * times, weight), slower, t_max=3 * t_max, backend=backend)
        torch.testing.assert_close(stretched, 3 * spikes, rtol=1e-9, atol=1e-9)


# Gradients


def _both(spikes, potential):
    """What is differentiable: times of the neurons that fired, potentials of the others."""
    return spikes[spikes.isfinite()], potential[spikes.isinf()]


@on_every_backend
@with_every_neuron
@pytest.mark.parametrize("seed", [0, 4])
def test_gradcheck(backend, neuron, seed):
    *layer, t_max = _layer(seed, batch=2, n_in=6, n_out=3)
    layer[0][:, 1] += 0.1  # no ties, where a derivative from one side differs from that from the other
    layer[0][0, 2], layer[0][1, 3] = 0.05, t_max - 0.1
    inputs = _tensors(*layer, grad=True)
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
    inputs = _tensors(times, weight, random.normal(0.2, 0.4, 4), grad=True)
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
    times, weight = _tensors([[0.0, 2.0]], [[0.5, 1.0]] * copies, dtype=dtype, grad=True)
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
    times, weight, bias, t_max = _layer(4)
    t, w, b = _tensors(times, weight, bias, grad=True)
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
    t, w = _tensors([[0.0, 0.5, late]], [[3.0, 4.0, 5.0], [0.0, 0.1, 7.0]], dtype=dtype, grad=True)
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
        t, w = _tensors(early + shift * tau, weight, dtype=dtype, grad=True)
        spikes = first_spike_linear(t, w, neuron, t_max=(shift + 10) * tau)
        assert spikes.isfinite().any()
        return torch.autograd.grad(spikes[spikes.isfinite()].sum() * scale, (t, w))

    expected = run(0.0, 1.0, torch.float64)
    for ours, theirs in zip(run(68.0, 1e-6, dtype), expected, strict=True):
        tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 5e-3, "atol": 5e-3}
        torch.testing.assert_close(ours.double() * 1e6, theirs, **tolerance)


# One backend against the other


@st.composite
def _cases(draw):
    neuron = draw(
        st.sampled_from([*CAUSAL, ReLPSP(), ExpPSP(), AlphaPSP(0.3), LIF(0.3), LIF(0.2, tau_mem=2.0)])
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, n_in, n_out = draw(st.integers(0, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    t_max = draw(st.sampled_from([1.0, 4.0, 12.0, 30.0]))
    times = random.uniform(0, 1.2 * t_max, (batch, n_in)) * draw(st.sampled_from([0.2, 1.0]))
    whole = draw(st.booleans())
    if whole:
        times = np.floor(2 * times) / 2
    times[random.random(times.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = INF
    weight = random.normal(draw(st.sampled_from([0.0, 0.5])), 1.0, (n_out, n_in))
    bias = draw(st.sampled_from([None, random.normal(0.0, 0.5, n_out)]))
    if draw(st.booleans()):
        times, weight = np.asfortranarray(times), np.asfortranarray(weight)
    grads = random.normal(size=(2, batch, n_out)) * (
        random.random((2, batch, n_out)) < draw(st.sampled_from([0.2, 1.0]))
    )
    return times, weight, bias, neuron, t_max, grads


def _outcome(backend, times, weight, bias, neuron, t_max, grads, dtype, layer=first_spike_linear, **geometry):
    inputs = _tensors(times, weight, bias, dtype=dtype, grad=True)
    outputs = layer(
        *inputs[:2], neuron, t_max=t_max, bias=inputs[2], return_potential=True, backend=backend, **geometry
    )
    wanted = [tensor for tensor in inputs if tensor is not None]
    return [*outputs, *torch.autograd.grad(outputs, wanted, _tensors(*grads, dtype=dtype), allow_unused=True)]


def _calm(times, weight, bias, neuron, t_max, dtype):
    """Where V crosses clearly, so that rounding does not decide: [batch, out]."""
    t, w, b = _tensors(times, weight, bias, dtype=dtype)
    calm = torch.ones(len(times), len(weight), dtype=torch.bool)
    options = {"t_max": t_max, "bias": b, "backend": "reference"}
    near = 1e-3 if dtype == torch.float32 else 1e-7
    kinds = []
    for factor in (1 - near, 1 + near):
        moved = type(neuron)(
            neuron.threshold * factor, **{k: v for k, v in vars(neuron).items() if k != "threshold"}
        )
        kinds.append(first_spike_linear(t, w, moved, **options))
    calm &= kinds[0].isfinite() == kinds[1].isfinite()
    return calm & ~((kinds[1] - kinds[0]).abs() > 100 * near * max(1, neuron.threshold))


@settings(deadline=None, max_examples=150)
@given(case=_cases(), dtype=st.sampled_from(DTYPES))
def test_the_backends_agree(case, dtype):
    times, weight, bias, neuron, t_max, grads = case
    times, weight = (torch.from_numpy(a).to(dtype).double().numpy() for a in (times, weight))
    calm = _calm(times, weight, bias, neuron, t_max, dtype)
    grads = grads * calm.numpy()
    ours, theirs = (_outcome(backend, times, weight, bias, neuron, t_max, grads, dtype) for backend in NAMES)
    tolerance = 3e-3 if dtype == torch.float32 else 1e-6
    for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.shape == other.shape
        assert one.dtype == other.dtype == dtype
        if k < 2:
            one, other = one[calm], other[calm]
        scale = 1 + other[other.isfinite()].abs().max().item() if other.isfinite().any() else 1.0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@with_every_neuron
@in_both_precisions
def test_the_backends_agree_on_convolutions(neuron, geometry, layout, dtype):
    times, weight, bias, t_max = _image(7, dtype, groups=geometry["groups"], batch=3)
    times[2] = INF
    times, weight = (tensor.contiguous(memory_format=layout) for tensor in (times, weight))
    spikes = first_spike_conv2d(times, weight, neuron, t_max=t_max, bias=bias, **geometry)
    assert 0.1 < spikes[:2].isfinite().double().mean() < 0.95
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(2, *spikes.shape, generator=generator)
    ours, theirs = (
        _outcome(
            backend, times, weight, bias, neuron, t_max, grads, dtype, layer=first_spike_conv2d, **geometry
        )
        for backend in NAMES
    )
    for one, other in zip(ours, theirs, strict=True):
        scale = 1 + other[other.isfinite()].abs().max().item()
        tolerance = 2e-3 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale)


@on_every_backend
@pytest.mark.parametrize("neuron", [*CAUSAL, WindowedRamp(start=3.0)], ids=repr)
def test_a_convolution_over_the_whole_input_is_a_linear_layer(backend, neuron):
    times, weight, bias, t_max = _image(4, kernel=(5, 6))
    found = first_spike_conv2d(
        times, weight, neuron, t_max=t_max, bias=bias, return_potential=True, backend=backend
    )
    expected = first_spike_linear(
        times.flatten(1),
        weight.flatten(1),
        neuron,
        t_max=t_max,
        bias=bias,
        return_potential=True,
        backend=backend,
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.flatten(1), theirs, rtol=1e-12, atol=1e-12)


@with_every_neuron
@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_weights_that_no_spike_reads_do_not_matter(neuron, odd):
    for times in ([0.0, INF], [0.0, 8.0]):
        for first in (0.01, 90.0):
            assert _one(times, [first, odd], neuron, t_max=8.0) == _one(
                times, [first, 0.0], neuron, t_max=8.0
            )
            found = _one(times, [first, odd], neuron, "reference", t_max=8.0)
            assert found == pytest.approx(_one(times, [first, 0.0], neuron, t_max=8.0), rel=1e-9)


@on_every_backend
@with_every_neuron
def test_leading_dimensions_and_strides_do_not_matter(backend, neuron):
    times, weight, bias, t_max = _layer(8, batch=6)
    t, w, b = _tensors(times, weight, bias)
    options = {"t_max": t_max, "return_potential": True, "backend": backend}
    flat = first_spike_linear(t, w, neuron, bias=b, **options)
    strided = torch.stack([t, t + 1], dim=-1).reshape(2, 3, -1, 2)[..., 0]
    found = first_spike_linear(strided, w.t().contiguous().t(), neuron, bias=b, **options)
    for ours, theirs in zip(found, flat, strict=True):
        assert ours.shape == (2, 3, 5)
        assert torch.equal(ours.flatten(0, 1), theirs)
    one = first_spike_linear(t[0], w, neuron, bias=b, **options)
    for ours, theirs in zip(one, flat, strict=True):
        assert ours.shape == (5,)
        assert torch.equal(ours, theirs[0])


@on_every_backend
@pytest.mark.parametrize("neuron", [*CAUSAL, WindowedRamp(start=2.0)], ids=repr)
def test_an_empty_batch(backend, neuron):
    t, w, b = _tensors(np.zeros((0, 3)), np.ones((4, 3)), np.ones(4), grad=True)
    image, kernels = _tensors(np.zeros((0, 2, 4, 4)), np.ones((4, 2, 3, 2)), grad=True)
    options = {"t_max": 8.0, "bias": b, "return_potential": True, "backend": backend}
    for layer, inputs, shape in (
        (first_spike_linear, (t, w), (0, 4)),
        (first_spike_conv2d, (image, kernels), (0, 4, 2, 3)),
    ):
        outputs = layer(*inputs, neuron, **options)
        assert all(output.shape == shape for output in outputs)
        wanted = (*inputs, b)
        for grad, tensor in zip(
            torch.autograd.grad(sum(o.sum() for o in outputs), wanted), wanted, strict=True
        ):
            assert grad.shape == tensor.shape
            assert not grad.any()


@on_every_backend
@with_every_neuron
def test_all_inputs_silent_or_one_input(backend, neuron):
    silent = torch.full((2, 3), INF)
    spikes, potential = first_spike_linear(
        silent, torch.ones(4, 3), neuron, t_max=8.0, return_potential=True, backend=backend
    )
    assert spikes.isinf().all()
    assert not potential.any()
    strong = torch.tensor([3.0, 0.0, -1.0, 50.0])
    spikes = first_spike_linear(silent, torch.ones(4, 3), neuron, t_max=8.0, bias=strong, backend=backend)
    alone = first_spike_linear(torch.zeros(2, 1), strong.unsqueeze(1), neuron, t_max=8.0, backend=backend)
    torch.testing.assert_close(spikes, alone)
    assert spikes.isfinite().tolist() == [[True, False, False, True]] * 2


@in_both_precisions
@pytest.mark.parametrize("neuron", [ReLPSP(3.0), LIF(0.4, tau_mem=2.0)], ids=repr)
@pytest.mark.parametrize("errors", [0.1, 1.0])
def test_results_do_not_depend_on_the_number_of_threads(set_threads, neuron, errors, dtype):
    batch, n_in, n_out, t_max = 160, 256, 160, 6.0
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(batch, n_in, dtype=dtype, generator=generator) * 2 * t_max
    weight = torch.randn(n_out, n_in, dtype=dtype, generator=generator) / 8
    grad = torch.randn(2, batch, n_out, dtype=dtype, generator=generator)
    grad *= torch.rand(batch, n_out, generator=generator) <= errors
    channels, groups, side = 12, 3, 12
    image = torch.rand(110, channels, side, side, dtype=dtype, generator=generator) * 2 * t_max
    kernels = torch.randn(channels, channels // groups, 3, 3, dtype=dtype, generator=generator)
    of_image = torch.randn(2, 110, channels, side - 2, side - 2, dtype=dtype, generator=generator)

    def run(threads):
        set_threads(threads)
        t, w, i, k = (tensor.clone().requires_grad_() for tensor in (times, weight, image, kernels))
        options = {"t_max": t_max, "return_potential": True, "backend": "cpu"}
        flat = first_spike_linear(t, w, neuron, **options)
        maps = first_spike_conv2d(i, k, neuron, groups=groups, **options)
        of_flat = torch.autograd.grad(flat, (t, w), tuple(grad))
        return *flat, *maps, *of_flat, *torch.autograd.grad(maps, (i, k), tuple(of_image))

    one, two = run(1), run(2)
    assert 0.1 < one[0].isfinite().double().mean() < 0.95
    assert 0.1 < one[2].isfinite().double().mean() < 0.95
    assert times.numel() * n_out // 2 > 1.5 * parallel.WORTH_A_THREAD
    assert 110 * (side - 2) ** 2 * kernels.numel() // 2 > parallel.WORTH_A_THREAD
    for a, b in zip(one, two, strict=True):
        assert a.any()
        assert torch.equal(a, b)


# Neurons with a start


def _relu_inputs(shape, start, dtype, seed=0):
    """x >= 0 with zeros among it, and the spike times start - x, silent for some of the zeros."""
    random = np.random.default_rng(seed)
    x = np.maximum(random.uniform(-0.5, 1.0, shape), 0) * start
    times = np.where(
        x > 0, start - x, np.where(random.random(shape) < 0.5, INF, start + random.random(shape))
    )
    return _tensors(x, times, dtype=dtype, grad=True)


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("with_bias", [False, True])
def test_with_a_start_it_is_a_relu_layer(backend, dtype, with_bias):
    start, threshold, t_max = 2.0, 50.0, 52.0
    neuron = WindowedRamp(threshold, start=start)
    x, times = _relu_inputs((5, 7), start, dtype)
    weight, bias = _tensors(
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
def test_with_a_start_it_is_a_relu_convolution(backend, geometry):
    start, threshold = 1.5, 40.0
    x, times = _relu_inputs((2, 4, 5, 6), start, torch.float64)
    weight, bias = _tensors(
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
def test_a_start_by_hand(backend, dtype):
    """V(3) = sum w (3 - t), t = 3 + 2 - V(3)."""
    neuron = WindowedRamp(2.0, start=3.0)

    def one(times, weight, t_max=5.0):
        return _one(times, weight, neuron, backend, dtype, t_max=t_max)

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
    times, weight, bias = _tensors([[0.0, 1.0]], [[9.0, 9.0], [0.1, 0.1]], [0.0, 0.1], grad=True)
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
    assert _one([0.0, 1.0], [5.0, 5.0], WindowedRamp(2.0, start=0.0), t_max=5.0) == (2.0, 2.0)


# The operators


@pytest.mark.parametrize(("neuron", "with_bias"), [(ReLPSP(0.5), True), (LIF(0.5, tau_mem=2.0), False)])
@on_every_backend
def test_opcheck_of_the_forward_operator(backend, with_bias, neuron):
    times, weight, bias, t_max = _layer(0)
    t, w, b = _tensors(times, weight, bias if with_bias else None)
    described = neuron.kind, neuron.numbers, t_max, backend
    torch.library.opcheck(ops.first_spike, (t, w, b, *Geometry(), *described))
    t, w, b, _ = _image(0, groups=2)
    geometry = Geometry([2, 1], [1, 2], 2)
    torch.library.opcheck(ops.first_spike, (t, w, b if with_bias else None, *geometry, *described))


@in_both_precisions
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@on_every_backend
def test_opcheck_of_the_backward_operators(backend, layout, dtype):
    times, weight, _, _ = _layer(0)
    t, w = _tensors(times, weight, dtype=dtype)
    a = b = t.masked_fill(t.isinf(), 0)
    p = torch.rand(4, 5, dtype=dtype)
    until = torch.where(p < 0.3, -INF, 6 * p)
    torch.library.opcheck(ops.weight_grad, (p, p, until, a, b, t, [], *Geometry(), backend))
    torch.library.opcheck(ops.input_grad, (p, p, until, a, b, t, w, *Geometry(), backend))
    t, w, _, _ = _image(0, dtype, groups=2)
    t = t.contiguous(memory_format=layout)
    a = b = t.masked_fill(t.isinf(), 0)
    geometry = Geometry([2, 1], [1, 2], 2)
    p = torch.rand(2, 8, 8, dtype=dtype)
    until = torch.where(p < 0.3, -INF, 6 * p)
    torch.library.opcheck(ops.weight_grad, (p, p, until, a, b, t, [3, 2], *geometry, backend))
    torch.library.opcheck(ops.input_grad, (p, p, until, a, b, t, w, *geometry, backend))


@needs_compiler
@on_every_backend
def test_compiled_step_equals_the_eager_one(backend):
    times, weight, bias, t_max = _image(3, torch.float32, groups=2)
    flat = first_spike_conv2d(times, weight, AlphaPSP(0.8), t_max=t_max, groups=2).flatten(1).shape[1]
    generator = torch.Generator().manual_seed(0)
    readout = torch.rand(5, flat, generator=generator) / 50
    top = torch.rand(3, 5, generator=generator)

    def network(times, weight, bias, readout, top):
        options = {"t_max": t_max, "return_potential": True, "backend": backend}
        hidden, potential = first_spike_conv2d(times, weight, AlphaPSP(0.8), bias=bias, groups=2, **options)
        middle, _ = first_spike_linear(hidden.flatten(1), readout, LIF(0.2, tau_mem=2.0), **options)
        out, at_end = first_spike_linear(
            middle, top, WindowedRamp(30.0, start=6.5), **options | {"t_max": 60.0}
        )
        loss = out.clamp(max=60).sum() + 0.01 * potential.sum() + middle.clamp(max=t_max).square().sum()
        return out, loss + 0.01 * at_end.sum()

    def step(network):
        inputs = _tensors(
            *(x.clone() for x in (times, weight, bias, readout, top)), dtype=torch.float32, grad=True
        )
        out, loss = network(*inputs)
        return [out, loss, *torch.autograd.grad(loss, inputs)]

    torch._dynamo.reset()
    for found, expected in zip(step(torch.compile(network, fullgraph=True)), step(network), strict=True):
        assert expected.isfinite().any()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", [None, *NAMES])
@pytest.mark.parametrize("neuron", [*CAUSAL, WindowedRamp(start=2.0)], ids=repr)
@pytest.mark.parametrize("shape", [(6,), (4, 6), (0, 6), (2, 3, 6)])
def test_shapes_on_the_meta_device(backend, neuron, shape):
    times, weight = torch.empty(shape, device="meta"), torch.empty(3, 6, device="meta")
    for output in first_spike_linear(times, weight, neuron, t_max=8, return_potential=True, backend=backend):
        assert output.shape == (*shape[:-1], 3)
        assert output.device.type == "meta"
        assert output.dtype == times.dtype
    image, kernels = torch.empty(2, 4, 5, 6, device="meta"), torch.empty(6, 2, 3, 2, device="meta")
    options = {"stride": [2, 1], "padding": 1, "dilation": [1, 2], "groups": 2, "backend": backend}
    found = first_spike_conv2d(image, kernels, neuron, t_max=8, return_potential=True, **options)
    assert [output.shape for output in found] == [(2, 6, 3, 6)] * 2


# Layers


def _network(neuron, dtype=torch.float32):
    """A convolution and a readout with the same neuron; with a start, the windows follow each other."""
    torch.manual_seed(0)
    second, last = neuron, 6.0
    if isinstance(neuron, WindowedRamp):
        second, last = WindowedRamp(30.0, start=6.0), 36.0
    conv = SpikeConv2d(1, 4, 3, neuron, t_max=6.0, stride=2, bias=True, init_range=(0.0, 0.8), dtype=dtype)
    out = SpikeLinear(36, 3, second, t_max=last, init_range=(0.0, 0.25), dtype=dtype)
    return conv, out


ALL = [*CAUSAL, WindowedRamp(8.0, start=2.0)]


@pytest.mark.parametrize("neuron", ALL, ids=repr)
def test_a_layer_is_the_function_with_its_parameters(neuron):
    conv, out = _network(neuron)
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(3, 1, 8, 8, generator=generator) * 4
    hidden = conv(times, return_potential=True)
    options = {"t_max": 6.0, "bias": conv.bias, "stride": 2, "return_potential": True}
    for ours, theirs in zip(hidden, first_spike_conv2d(times, conv.weight, neuron, **options), strict=True):
        assert torch.equal(ours, theirs)
    flat = hidden[0].flatten(1)
    expected = first_spike_linear(flat, out.weight, out.neuron, t_max=out.t_max)
    assert torch.equal(out(flat), expected)
    for copied in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(conv)(times), hidden[0])
        assert repr(copied(conv)) == repr(conv)


@pytest.mark.parametrize("neuron", ALL, ids=repr)
def test_training_lowers_the_loss(neuron):
    """The outputs learn to fire at given times, some later and some earlier than at first."""
    conv, out = _network(neuron)
    times = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    first = out(conv(times).flatten(1)).detach()
    assert first.isfinite().all()
    target = first.mean() + (first.mean() - first.min()) * torch.tensor([1.0, 0.0, -0.5])
    optimizer = torch.optim.Adam([*conv.parameters(), *out.parameters()], 0.003)
    losses = []
    for _ in range(30):
        spikes = out(conv(times).flatten(1))
        loss = (spikes.clamp(max=out.t_max) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for parameter in (*conv.parameters(), *out.parameters()):
            assert parameter.grad.any()
            assert parameter.grad.isfinite().all()
    assert losses[-1] < 0.6 * losses[0]


def test_layers_of_different_neurons_follow_each_other():
    torch.manual_seed(0)
    layers = [
        SpikeLinear(6, 8, IF(1.0), t_max=6),
        *(SpikeLinear(8, 8, neuron, t_max=6.0, init_range=(0.0, 1.0)) for neuron in CAUSAL),
    ]
    times = torch.rand(4, 6) * 2
    for layer in layers:
        times = layer(times)
    assert times.isfinite().any()
    times[times.isfinite()].sum().backward()
    assert all(layer.weight.grad.any() for layer in layers)
