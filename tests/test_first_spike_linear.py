import copy
import math
import pickle
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from marks import needs_compiler
from naive import first_spikes, latency_gradients

from ssnn_plugin import IF
from ssnn_plugin.functional import first_spike_linear
from ssnn_plugin.kernels import ops
from ssnn_plugin.kernels.backends import BACKENDS
from ssnn_plugin.kernels.cpu import parallel
from ssnn_plugin.kernels.geometry import Geometry
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeLinear

INF, NAN = math.inf, math.nan
NAMES = sorted(BACKENDS)
DTYPES = [torch.float32, torch.float64]
on_every_backend = pytest.mark.parametrize("backend", NAMES)
in_both_precisions = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def set_threads():
    """One thread unless a test asks for more: on a busy machine they would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(threads)


@st.composite
def layers(draw):
    """Whole bins, whole weights and halves of a leak, so that every sum is exact."""
    batch, n_in, n_out = draw(st.integers(0, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    t_max = draw(st.integers(1, 12))
    bins = st.sampled_from([*map(float, range(t_max + 2)), INF])
    whole = st.integers(-2, 5).map(float)
    times = draw(arrays(np.float64, (batch, n_in), elements=bins, fill=st.nothing()))
    times[draw(arrays(np.bool_, batch))] = INF
    if draw(st.booleans()):
        times = np.asfortranarray(times)
    weight = draw(arrays(np.float64, (n_out, n_in), elements=whole, fill=st.nothing()))
    bias = draw(st.none() | arrays(np.float64, n_out, elements=whole))
    neuron = IF(
        draw(st.sampled_from([0.0, 1.0, 2.5, 4.0])),
        delay=draw(st.sampled_from([0, 1, 3])),
        beta=draw(st.sampled_from([1.0, 0.0, 0.5])),
    )
    return times, weight, bias, neuron, t_max


def _simulate(times, weight, bias, neuron, t_max):
    shape = len(times), len(weight)
    spikes, potential = np.empty(shape), np.empty(shape)
    for b, sample in enumerate(times):
        spikes[b], potential[b] = first_spikes(
            sample, weight, neuron.threshold, neuron.delay, t_max, bias, neuron.beta
        )
    return spikes, potential


def _tensor(array, dtype=torch.float64, grad=False):
    return None if array is None else torch.from_numpy(array).to(dtype).requires_grad_(grad)


@in_both_precisions
@settings(deadline=None, max_examples=200)
@given(layer=layers())
def test_every_backend_is_the_double_loop_over_time(layer, dtype):
    times, weight, bias, neuron, t_max = layer
    expected = _simulate(*layer)
    for backend in NAMES:
        found = first_spike_linear(
            _tensor(times, dtype),
            _tensor(weight, dtype),
            neuron,
            t_max=t_max,
            bias=_tensor(bias, dtype),
            return_potential=True,
            backend=backend,
        )
        for ours, naive in zip(found, expected, strict=True):
            assert ours.dtype == dtype
            np.testing.assert_array_equal(ours.numpy(), naive, err_msg=backend)


def _naive_gradients(times, weight, crossing, spikes, grad_spikes, grad_potential, silent_gradient, t_max):
    """Of all samples, whatever the leak; a silent neuron counts the whole window, t_max bins of bias."""
    grad_weight, grad_times, grad_bias = np.zeros_like(weight), np.zeros_like(times), np.zeros(len(weight))
    for b in range(len(times)):
        silent = np.isinf(spikes[b])
        error = np.where(silent & (not silent_gradient), 0, grad_spikes[b]) - grad_potential[b]
        counted = np.where(silent, t_max, crossing[b])
        of_weight, grad_times[b] = latency_gradients(times[b], weight, counted, 0, error, t_max)
        grad_weight += of_weight
        grad_bias -= error * np.where(silent, t_max, counted + 1)
    return grad_times, grad_weight, grad_bias


@st.composite
def errors(draw):
    """A layer with what comes back to its times and its potential, many of them zero."""
    layer = draw(layers())
    shape = len(layer[0]), len(layer[1])
    few = st.sampled_from([0.0, 0.0, 1.0, -2.0])
    which = draw(st.sampled_from([(1, 0), (0, 1), (1, 1)]))
    return layer, [draw(arrays(np.float64, shape, elements=few)) * used for used in which], which


@in_both_precisions
@settings(deadline=None, max_examples=200)
@given(case=errors(), silent_gradient=st.booleans())
def test_gradients_of_every_backend_are_the_naive_ones(case, dtype, silent_gradient):
    (times, weight, bias, neuron, t_max), grads, which = case
    spikes, _ = _simulate(times, weight, bias, neuron, t_max)
    expected = _naive_gradients(times, weight, spikes - neuron.delay, spikes, *grads, silent_gradient, t_max)
    for backend in NAMES:
        inputs = [_tensor(array, dtype, grad=True) for array in (times, weight, bias) if array is not None]
        outputs = first_spike_linear(
            inputs[0],
            inputs[1],
            neuron,
            t_max=t_max,
            bias=None if bias is None else inputs[2],
            silent_gradient=silent_gradient,
            return_potential=True,
            backend=backend,
        )
        used = [k for k in (0, 1) if which[k]]
        found = torch.autograd.grad(
            [outputs[k] for k in used], inputs, [_tensor(grads[k], dtype) for k in used]
        )
        for ours, naive in zip(found, expected, strict=False):
            np.testing.assert_allclose(ours.numpy(), naive, rtol=1e-6, atol=1e-6, err_msg=backend)


@in_both_precisions
@on_every_backend
def test_cases_checked_by_hand(backend, dtype):
    neuron = IF(100.0, delay=1)
    weight = torch.tensor([[60.0, 50.0], [60.0, 40.0]], dtype=dtype)
    times = torch.tensor([[3.0, 7.0], [3.0, 3.0], [INF, INF]], dtype=dtype)
    spikes, potential = first_spike_linear(
        times, weight, neuron, t_max=256, return_potential=True, backend=backend
    )
    assert spikes.tolist() == [[8.0, INF], [4.0, INF], [INF, INF]]
    assert potential.tolist() == [[110.0, 100.0], [110.0, 100.0], [0.0, 0.0]]


@on_every_backend
@pytest.mark.parametrize(("t_max", "expected"), [(8, INF), (8.5, 8.0), (9, 8.0)])
def test_a_spike_that_reaches_the_end_of_the_window_is_silence(backend, t_max, expected):
    spikes, potential = first_spike_linear(
        torch.tensor([[3.0, 7.0]]),
        torch.tensor([[60.0, 50.0]]),
        IF(100.0, delay=1),
        t_max=t_max,
        return_potential=True,
        backend=backend,
    )
    assert spikes.item() == expected
    assert potential.item() == 110.0


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("bias", [None, 0.0])
def test_a_potential_equal_to_the_threshold_does_not_fire(backend, dtype, bias):
    weight = torch.tensor([[0.1]], dtype=dtype)
    bias = None if bias is None else torch.tensor([bias], dtype=dtype)
    spikes = first_spike_linear(
        torch.zeros(1, 1, dtype=dtype), weight, IF(0.1), t_max=4, bias=bias, backend=backend
    )
    assert spikes.item() == INF


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("t_max", "beta"),
    [
        (1, 0.9),
        (20, 1.0),
        (20, 0.9),
        (256, 0.99),
        (256, 0.9),
        (256, 1 - 1e-9),
        (100_000, 1.0),
        (100_000, 0.9999),
    ],
)
def test_real_weights_give_the_same_times_in_double_precision(t_max, beta, bias):
    random = np.random.default_rng(0)
    times = random.integers(0, t_max + math.ceil(t_max / 10), (40, 60)).astype(float)
    times[0], times[:, ::7] = INF, times[:, :1]
    weight = random.normal(0.3, 1.0, (30, 60))
    current = random.normal(0.0, 5 / t_max, 30) if bias else None
    neuron = IF(5.0, delay=min(1, t_max - 1), beta=beta)
    found = [
        first_spike_linear(
            _tensor(times),
            _tensor(weight),
            neuron,
            t_max=t_max,
            bias=_tensor(current),
            return_potential=True,
            backend=backend,
        )
        for backend in NAMES
    ]
    assert 0.1 < found[0][0].isfinite().double().mean() < 0.95
    for spikes, potential in found[1:]:
        assert torch.equal(spikes, found[0][0])
        torch.testing.assert_close(potential, found[0][1], rtol=1e-12, atol=1e-12)
    if t_max <= 256:
        spikes, potential = _simulate(times[:4], weight, current, neuron, t_max)
        np.testing.assert_array_equal(found[0][0][:4].numpy(), spikes)
        np.testing.assert_allclose(found[0][1][:4].numpy(), potential, rtol=1e-11, atol=1e-11)


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize(
    ("beta", "bias", "threshold", "event", "spike", "level"),
    [
        (1.0, 1.0, 3.0, None, 3.0, 4.0),
        (1.0, 0.5, 127.5, None, 255.0, 128.0),
        (1.0, 0.5, 128.0, None, INF, 128.0),
        (0.5, 1.25, 2.0, (0.0, -8.0), 5.0, 2.2109375),
        (0.5, 1.0, 1.75, (4.0, -3.0), 3.0, 1.875),
        (0.5, None, 3.0, (4.0, 3.0), INF, 0.0),
        # The potential at rest is the threshold itself.
        (0.5, 1.0, 2.0, None, INF, 2.0),
        (0.75, 1.0, 4.0, (9.0, -1.0), INF, 4.0),
        (0.0, 2.0, 2.0, None, INF, 2.0),
        # Nothing is left of the bin before.
        (0.0, 2.5, 2.0, None, 0.0, 2.5),
        (0.0, -1.0, 1.5, (4.0, 3.0), 4.0, 2.0),
        (0.0, -1.0, 2.0, (4.0, 3.0), INF, -1.0),
        (0.0, None, 0.0, (255.0, 0.5), 255.0, 0.5),
        # The leak takes 5e-6 off the 100 that it would be in bin 99.
        (1 - 1e-9, 1.0, 100.0, None, 100.0, 100.99999495),
        (1 - 1e-9, 1.0, 99.5, None, 99.0, 99.99999505),
        (1 - 1e-15, 1.0, 199.5, (7.0, 100.0), 99.0, 200.0),
        # The closed form comes out a bin too late, or too early.
        (1 - 2**-53, 1.0, 99.5, None, 99.0, 100.0),
        (1 - 2**-53, 0.7, 50.5, None, 72.0, 51.1),
    ],
)
def test_the_closed_form_settles_on_the_right_bin(backend, dtype, beta, bias, threshold, event, spike, level):
    time, weight = event or (INF, 1.0)
    found, potential = first_spike_linear(
        torch.tensor([[time, INF]], dtype=dtype),
        torch.tensor([[weight, 50.0]], dtype=dtype),
        IF(threshold, beta=beta),
        t_max=256,
        bias=None if bias is None else torch.tensor([bias], dtype=dtype),
        return_potential=True,
        backend=backend,
    )
    assert found.item() == spike
    assert potential.item() == pytest.approx(level, rel=3e-7 if dtype == torch.float32 else 1e-12, abs=1e-9)


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("event", [0.0, -2.0])
def test_a_potential_that_only_reaches_the_threshold_fires_a_bin_later(backend, dtype, event, beta):
    """The potentials of the first ten bins are exact in either precision; each is the threshold once."""
    times, weight, bias = np.zeros(1), np.array([[event]]), np.ones(1)
    level = event
    for _ in range(10):
        level += 1
        if level >= 0:
            expected, _ = first_spikes(times, weight, level, 0, 16, bias, beta)
            found = first_spike_linear(
                _tensor(times, dtype),
                _tensor(weight, dtype),
                IF(level, beta=beta),
                t_max=16,
                bias=_tensor(bias, dtype),
                backend=backend,
            )
            assert found.item() == expected.item(), level
        level *= beta


@pytest.fixture
def alarm():
    """An endless loop is a failure, not a hang."""

    def ring(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs an alarm")
@pytest.mark.usefixtures("alarm")
@on_every_backend
@pytest.mark.parametrize(
    ("dtype", "beta", "weight", "bias", "threshold", "spike"),
    [
        (torch.float32, 0.75, 0.7878137230873108, 0.7245817184448242, 2.8983266353607178, 55),
        (torch.float64, 0.75, 1.777266224221964, 0.7162829081467329, 2.8651316325869307, 118),
    ],
)
def test_rounding_near_rest_does_not_keep_the_closed_form_from_settling(
    backend, dtype, beta, weight, bias, threshold, spike
):
    """The input's part of V falls while that of the bias rises: the rounded sum goes up and down.

    `spike` is the crossing in exact arithmetic, and rounding may move it by a few bins.
    """
    found = first_spike_linear(
        torch.zeros(1, 1, dtype=dtype),
        torch.tensor([[weight]], dtype=dtype),
        IF(threshold, beta=beta),
        t_max=256,
        bias=torch.tensor([bias], dtype=dtype),
        backend=backend,
    )
    assert found.item() == pytest.approx(spike, abs=8)


def _crossings_in_continuous_time(times, weight, threshold, delay, t_max):
    crossing = np.full(len(weight), INF)
    for j, row in enumerate(weight):
        for t in sorted(set(times.tolist()), reverse=True):
            if t + delay < t_max and row[times <= t].sum() > threshold:
                crossing[j] = t
    return crossing


@in_both_precisions
@pytest.mark.parametrize("errors", ["one output", "every output"])
@pytest.mark.parametrize("delay", [0, 1, 3])
@on_every_backend
def test_times_between_bins(backend, delay, errors, dtype):
    random = np.random.default_rng(delay)
    times = _tensor(random.uniform(0, 10.0, (50, 12)), dtype).double().numpy()
    times[:, 3], times[::5, 4], times[7] = times[:, 2], INF, INF
    weight = random.integers(-2, 4, (6, 12)).astype(float)
    neuron, t_max = IF(3.0, delay=delay), 8.5
    crossing = np.stack([_crossings_in_continuous_time(t, weight, 3.0, delay, t_max) for t in times])
    grad = np.ones_like(crossing)
    grad[:, 1 if errors == "one output" else 6 :] = 0
    nothing = np.zeros_like(grad)
    expected = _naive_gradients(times, weight, crossing, crossing, grad, nothing, False, t_max)

    t, w = _tensor(times, dtype, grad=True), _tensor(weight, dtype, grad=True)
    spikes = first_spike_linear(t, w, neuron, t_max=t_max, backend=backend)
    np.testing.assert_array_equal(spikes.detach().numpy(), (_tensor(crossing, dtype) + delay).numpy())
    spikes.backward(_tensor(grad, dtype))
    np.testing.assert_allclose(t.grad.numpy(), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(w.grad.numpy(), expected[1], rtol=1e-6, atol=1e-6)


@on_every_backend
def test_a_time_that_rounds_up_to_the_end_of_the_window_is_silence(backend):
    just_before = torch.nextafter(torch.tensor([[4.0]]), torch.tensor(0.0))
    weight = torch.tensor([[2.0]], requires_grad=True)
    spikes = first_spike_linear(just_before, weight, IF(1.0, delay=1), t_max=5, backend=backend)
    assert spikes.item() == INF or spikes.item() < 5


@on_every_backend
def test_leading_dimensions_and_strides_do_not_matter(backend):
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 12, (2, 3, 8), generator=generator).double()
    weight = torch.randint(-2, 4, (5, 8), generator=generator).double()
    neuron = IF(3.0, delay=1)

    def run(times, weight):
        times, weight = times.clone().requires_grad_(), weight.detach().requires_grad_()
        spikes, potential = first_spike_linear(
            times, weight, neuron, t_max=12, return_potential=True, backend=backend
        )
        (spikes.masked_fill(spikes.isinf(), 0) * 2 + potential).square().sum().backward()
        return spikes, potential, times.grad, weight.grad

    flat = run(times.reshape(6, 8), weight)
    assert flat[0].isfinite().any()
    nested = run(times, weight)
    assert nested[0].shape == nested[1].shape == (2, 3, 5)
    for found, expected in zip(nested, flat, strict=True):
        assert torch.equal(found.reshape(expected.shape), expected)
    one = first_spike_linear(times[1, 2], weight, neuron, t_max=12, backend=backend)
    assert torch.equal(one, flat[0][5])
    strided_times = torch.stack([times, times + 1], -1)[..., 0]
    strided_weight = weight.t().contiguous().t()
    assert not strided_times.is_contiguous()
    assert not strided_weight.is_contiguous()
    strided = first_spike_linear(strided_times, strided_weight, neuron, t_max=12, backend=backend)
    assert torch.equal(strided, nested[0])


@on_every_backend
@pytest.mark.parametrize("neuron", [IF(9.0), IF(9.0, beta=0.5)])
@pytest.mark.parametrize(("shape", "n_out"), [((0, 4), 3), ((2, 0, 4), 3), ((2, 4), 0), ((2, 0), 3)])
def test_empty_batches_and_layers(backend, shape, n_out, neuron):
    times, weight = torch.zeros(shape, requires_grad=True), torch.ones(n_out, shape[-1], requires_grad=True)
    spikes, potential = first_spike_linear(
        times, weight, neuron, t_max=5, return_potential=True, backend=backend
    )
    assert spikes.shape == potential.shape == (*shape[:-1], n_out)
    assert spikes.isinf().all()
    spikes.sum().backward()
    assert times.grad.shape == shape
    assert not weight.grad.any()


@on_every_backend
def test_the_arguments_are_left_as_they_are(backend):
    times, weight, bias = torch.tensor([[3.0, INF, 1.0]]), torch.ones(2, 3), torch.ones(2)
    before = [tensor.clone() for tensor in (times, weight, bias)]
    first_spike_linear(times, weight, IF(1.0), t_max=5, bias=bias, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip((times, weight, bias), before, strict=True))


@in_both_precisions
@pytest.mark.parametrize(("errors", "neuron"), [(0.2, IF(10.0, delay=1)), (1.0, IF(7.0, beta=0.95))])
def test_results_do_not_depend_on_the_number_of_threads(set_threads, errors, neuron, dtype):
    batch, n_in, n_out, t_max = 256, 512, 256, 30
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 2 * t_max, (batch, n_in), generator=generator).to(dtype)
    weight = torch.rand(n_out, n_in, dtype=dtype, generator=generator) - 0.46
    grad = torch.randn(batch, n_out, dtype=dtype, generator=generator)
    grad *= torch.rand(batch, n_out, generator=generator) <= errors

    def run(threads):
        set_threads(threads)
        t, w = times.clone().requires_grad_(), weight.clone().requires_grad_()
        spikes, potential = first_spike_linear(t, w, neuron, t_max=t_max, return_potential=True)
        spikes.backward(grad)
        return spikes, potential, t.grad, w.grad

    one, two = run(1), run(2)
    fired = one[0].isfinite()
    assert 0.3 < fired.double().mean() < 0.9
    assert (fired & (grad != 0)).sum() * n_in > 1.5 * parallel.WORTH_A_THREAD
    assert (times < t_max).sum() * n_out // 4 > 1.5 * parallel.WORTH_A_THREAD
    for a, b in zip(one, two, strict=True):
        assert a.any()
        assert torch.equal(a, b)


def _example(dtype):
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 9, (4, 6), generator=generator).to(dtype).masked_fill_(torch.eye(4, 6) > 0, INF)
    weight = torch.randint(-1, 4, (3, 6), generator=generator).to(dtype)
    bias = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
    grad = torch.randint(-1, 2, (4, 3), generator=generator).to(dtype)
    return times, weight, bias, grad


@pytest.mark.parametrize("with_bias", [False, True])
@on_every_backend
def test_opcheck_of_the_forward_operator(backend, with_bias):
    times, weight, bias, _ = _example(torch.float64)
    neuron = IF(5.0, delay=1, beta=0.5 if with_bias else 1.0)
    described = neuron.kind, neuron.numbers, 8.0, backend
    torch.library.opcheck(
        ops.first_spike, (times, weight, bias if with_bias else None, *Geometry(), *described)
    )


@in_both_precisions
@on_every_backend
def test_opcheck_of_the_backward_operators(backend, dtype):
    times, weight, _, grad = _example(dtype)
    factors = grad, None, 6 * torch.rand_like(grad), None, None, times
    torch.library.opcheck(ops.weight_grad, (*factors, [], *Geometry(), backend))
    torch.library.opcheck(ops.input_grad, (*factors, weight, *Geometry(), backend))


@needs_compiler
@on_every_backend
def test_compiled_step_equals_the_eager_one(backend):
    times, weight, bias, _ = _example(torch.float32)
    readout = torch.tensor([[3.0, 1.0, 2.0], [1.0, 4.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    criterion = RelativeTargetLoss(2, 16)

    def network(times, weight, bias, readout):
        hidden, potential = first_spike_linear(
            times,
            weight,
            IF(5.0, delay=1, beta=0.75),
            t_max=16,
            bias=bias,
            return_potential=True,
            backend=backend,
        )
        out = first_spike_linear(hidden, readout, IF(2.0), t_max=16, silent_gradient=True, backend=backend)
        return out, criterion(out, labels) + 0.01 * potential.sum()

    def step(network):
        inputs = [tensor.clone().requires_grad_() for tensor in (times, weight, bias, readout)]
        out, loss = network(*inputs)
        return [out, loss, *torch.autograd.grad(loss, inputs)]

    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True)
    for found, expected in zip(step(compiled), step(network), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad(), pytest.raises(ValueError, match="times must hold spike times >= 0"):
        compiled(times.masked_fill(times == 3, NAN), weight, bias, readout)


@pytest.mark.parametrize("backend", [None, *NAMES])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (0, 6), (2, 3, 6)])
def test_shapes_on_the_meta_device(backend, shape):
    times, weight = torch.empty(shape, device="meta"), torch.empty(3, 6, device="meta")
    found = first_spike_linear(times, weight, IF(), t_max=8, return_potential=True, backend=backend)
    for tensor in found:
        assert tensor.shape == (*shape[:-1], 3)
        assert tensor.device.type == "meta"
        assert tensor.dtype == times.dtype


def test_a_layer_on_the_meta_device():
    layer = SpikeLinear(6, 3, IF(), t_max=8, bias=True, device="meta")
    assert layer(torch.empty(2, 6, device="meta")).shape == (2, 3)


@on_every_backend
@pytest.mark.parametrize("bad", [NAN, -1.0, -INF])
def test_bad_times_are_refused(backend, bad):
    times = torch.tensor([[0.0, 1.0], [INF, bad]])
    with pytest.raises(
        ValueError, match="times must hold spike times >= 0, with inf for silence; got NaN or a neg"
    ):
        first_spike_linear(times, torch.ones(3, 2), IF(), t_max=8, backend=backend)


@on_every_backend
@pytest.mark.parametrize(
    ("weight", "bias"), [([1.0, NAN], None), ([INF, -INF], None), ([1.0, 1.0], [NAN]), ([-INF, 1.0], [INF])]
)
def test_a_potential_of_nan_is_refused(backend, weight, bias):
    bias = None if bias is None else torch.tensor(bias)
    with pytest.raises(ValueError, match="weight or bias holds NaN or opposite infinities"):
        first_spike_linear(
            torch.zeros(2, 2), torch.tensor([weight]), IF(9.0), t_max=8, bias=bias, backend=backend
        )


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_the_backends_agree_on_weights_that_no_spike_reads(odd):
    def outcome(backend):
        try:
            return first_spike_linear(
                torch.tensor([[0.0, INF]]), torch.tensor([[2.0, odd]]), IF(3.0), t_max=8, backend=backend
            ).tolist()
        except ValueError as refusal:
            return str(refusal)

    first, *others = map(outcome, NAMES)
    assert others == [first] * len(others)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"times": torch.zeros(2, 5)},
            ValueError,
            r"times must have shape \[\*, in\].* got \[2, 5\] and \[3, 4\]",
        ),
        (
            {"times": torch.tensor(1.0)},
            ValueError,
            r"times must have shape \[\*, in\].* got \[\] and \[3, 4\]",
        ),
        ({"weight": torch.ones(4)}, ValueError, r"weight of shape \[out, in\], got \[2, 4\] and \[4\]"),
        (
            {"times": torch.zeros(2, 4).half()},
            TypeError,
            "times must be float32 or float64, got torch.float16",
        ),
        ({"times": torch.zeros(2, 4).long()}, TypeError, "times must be float32 or float64, got torch.int64"),
        (
            {"weight": torch.ones(3, 4).double()},
            TypeError,
            "weight is torch.float64, times are torch.float32",
        ),
        ({"weight": torch.ones(3, 4, device="meta")}, ValueError, "weight is on meta, times are on cpu"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must have shape \[3\], got \[4\]"),
        ({"bias": torch.ones(3).double()}, TypeError, "bias is torch.float64, times are torch.float32"),
        ({"bias": torch.ones(3, device="meta")}, ValueError, "bias is on meta, times are on cpu"),
        ({"t_max": 0}, ValueError, "t_max must be finite and greater than 0, got 0"),
        ({"t_max": -1.5}, ValueError, "t_max must be finite and greater than 0, got -1.5"),
        ({"t_max": NAN}, ValueError, "t_max must be finite and greater than 0, got nan"),
        ({"t_max": INF}, ValueError, "t_max must be finite and greater than 0, got inf"),
        ({"gradient": "exakt"}, ValueError, "gradient must be one of 'latency'.* got 'exakt'"),
        ({"backend": "gpu"}, ValueError, "backend must be one of .*'cpu'.*'reference'.* got 'gpu'"),
        ({"neuron": IF(beta=0.5), "t_max": 8.5}, ValueError, r"t_max must be a whole number .* got 8\.5"),
        ({"bias": torch.ones(3), "t_max": 8.5}, ValueError, r"t_max must be a whole number .* got 8\.5"),
        (
            {"neuron": IF(beta=0.5), "times": torch.full((2, 4), 0.5)},
            ValueError,
            "times must be whole bins with a bias or a leak, got times between bins",
        ),
        (
            {"bias": torch.ones(3), "times": torch.full((2, 4), 0.5)},
            ValueError,
            "times must be whole bins with a bias or a leak, got times between bins",
        ),
        (
            {"neuron": 1.0},
            TypeError,
            r"neuron must be one of ssnn_plugin's neurons, such as IF\(\), got 1\.0",
        ),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    arguments = {"times": torch.zeros(2, 4), "weight": torch.ones(3, 4), "neuron": IF(), "t_max": 8} | changes
    with pytest.raises(error, match=message):
        first_spike_linear(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -1.0}, "threshold must be finite and at least 0, got -1.0"),
        ({"threshold": NAN}, "threshold must be finite and at least 0, got nan"),
        ({"threshold": INF}, "threshold must be finite and at least 0, got inf"),
        ({"delay": -1}, "delay must be a whole number of bins >= 0, got -1"),
        ({"delay": 0.5}, "delay must be a whole number of bins >= 0, got 0.5"),
        ({"delay": NAN}, "delay must be a whole number of bins >= 0, got nan"),
        ({"delay": INF}, "delay must be a whole number of bins >= 0, got inf"),
        ({"beta": -0.1}, r"beta must lie in 0 \.\.\. 1, got -0\.1"),
        ({"beta": 1.5}, r"beta must lie in 0 \.\.\. 1, got 1\.5"),
        ({"beta": NAN}, r"beta must lie in 0 \.\.\. 1, got nan"),
    ],
)
def test_bad_neurons_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        IF(**arguments)


def test_neurons_are_values():
    assert IF(2.0, delay=1) == IF(threshold=2.0, delay=1) != IF(2.0)
    assert IF(2.0) != IF(2.0, beta=0.5)
    assert len({IF(), IF(1.0, delay=0, beta=1.0)}) == 1
    assert eval(repr(IF(2.5, delay=1, beta=0.9))) == IF(2.5, delay=1, beta=0.9)


def _layer(**options):
    torch.manual_seed(0)
    neuron = IF(5.0, delay=1, beta=0.75)
    return SpikeLinear(6, 3, neuron, t_max=9, bias=True, silent_gradient=True, **options)


def test_repr_rebuilds_the_layer():
    layer = _layer(init_range=(0.0, 2.0))
    rebuilt = eval(repr(layer))
    assert repr(rebuilt) == repr(layer)
    for name in (
        "in_features",
        "out_features",
        "neuron",
        "t_max",
        "gradient",
        "silent_gradient",
        "init_range",
    ):
        assert getattr(rebuilt, name) == getattr(layer, name)
    assert rebuilt.bias is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_a_layer_are_equal_and_independent(copied):
    layer = _layer()
    twin = copied(layer)
    times = _example(torch.float32)[0]
    assert torch.equal(twin(times), layer(times))
    assert repr(twin) == repr(layer)
    with torch.no_grad():
        twin.weight.zero_()
    assert layer.weight.any()


def test_state_dict_round_trip():
    layer, other = _layer(), SpikeLinear(6, 3, _layer().neuron, t_max=9, bias=True)
    assert set(layer.state_dict()) == {"weight", "bias"}
    times = _example(torch.float32)[0]
    assert not torch.equal(other.weight, layer.weight)
    other.load_state_dict(layer.state_dict())
    for ours, theirs in zip(
        layer(times, return_potential=True), other(times, return_potential=True), strict=True
    ):
        assert torch.equal(ours, theirs)


@in_both_precisions
def test_the_layer_is_the_function_with_its_parameters(dtype):
    layer = _layer(dtype=dtype)
    times, _, bias, grad = _example(dtype)
    with torch.no_grad():
        layer.bias.copy_(bias / 8)
    spikes, potential = layer(times, return_potential=True)
    expected, of_function = first_spike_linear(
        times,
        layer.weight,
        layer.neuron,
        t_max=9,
        bias=layer.bias,
        silent_gradient=True,
        return_potential=True,
    )
    assert torch.equal(spikes, expected)
    assert torch.equal(potential, of_function)
    assert torch.equal(layer(times), expected)
    for ours, theirs in zip(
        torch.autograd.grad(spikes, layer.parameters(), grad),
        torch.autograd.grad(expected, layer.parameters(), grad),
        strict=True,
    ):
        assert ours.any()
        assert torch.equal(ours, theirs)


def test_weights_are_drawn_from_the_range():
    layer = SpikeLinear(200, 30, IF(100.0), t_max=256, init_range=(-1.0, 5.0), bias=True)
    assert layer.weight.shape == (30, 200)
    assert -1 <= layer.weight.min() < -0.9
    assert 4.9 < layer.weight.max() <= 5
    assert not layer.bias.any()
    assert SpikeLinear(200, 30, IF(100.0), t_max=256).init_range == (0.0, 20.0)
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features must be a whole number of at least 1, got 0"),
        ({"out_features": -2}, ValueError, "out_features must be a whole number of at least 1, got -2"),
        ({"t_max": 0}, ValueError, "t_max must be finite and greater than 0, got 0"),
        ({"gradient": "none"}, ValueError, "gradient must be one of 'latency'.* got 'none'"),
        (
            {"neuron": "IF"},
            TypeError,
            r"neuron must be one of ssnn_plugin's neurons, such as IF\(\), got 'IF'",
        ),
        ({"dtype": torch.float16}, TypeError, "must be float32 or float64, got torch.float16"),
        ({"dropout": 1.0}, ValueError, "dropout must be a probability .* below 1, got 1.0"),
    ],
)
def test_bad_layers_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        SpikeLinear(**{"in_features": 4, "out_features": 3, "neuron": IF(), "t_max": 8} | changes)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_time_at_a_window_that_float32_cannot_hold_is_silence(backend):
    times = torch.tensor([[0.7]])
    out = first_spike_linear(times, torch.tensor([[2.0]]), IF(1.0), t_max=0.7, backend=backend)
    assert out.isinf().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 2.5}, "in_features must be a whole number"),
        ({"out_features": 0}, "out_features must be a whole number"),
        ({"init_range": (2.0, 1.0)}, "init_range must be"),
    ],
)
def test_bad_sizes_and_ranges_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpikeLinear(**{"in_features": 2, "out_features": 3, "neuron": IF(), "t_max": 8, **arguments})
