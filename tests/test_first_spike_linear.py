"""The linear layer of IF neurons: against loops over time, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from if_examples import as_tensor, linear_example, simulate
from marks import BACKEND_NAMES, in_both_precisions, needs_compiler, on_every_backend
from naive import latency_gradients

from ssnn_plugin import IF
from ssnn_plugin.functional import first_spike_linear
from ssnn_plugin.kernels.cpu import gradients, lanes, parallel
from ssnn_plugin.losses import RelativeTargetLoss

INF, NAN = math.inf, math.nan


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


@in_both_precisions
@settings(deadline=None, max_examples=200)
@given(layer=layers())
def test_every_backend_is_the_double_loop_over_time(layer, dtype):
    times, weight, bias, neuron, t_max = layer
    expected = simulate(*layer)
    for backend in BACKEND_NAMES:
        found = first_spike_linear(
            as_tensor(times, dtype),
            as_tensor(weight, dtype),
            neuron,
            t_max=t_max,
            bias=as_tensor(bias, dtype),
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
    spikes, _ = simulate(times, weight, bias, neuron, t_max)
    expected = _naive_gradients(times, weight, spikes - neuron.delay, spikes, *grads, silent_gradient, t_max)
    for backend in BACKEND_NAMES:
        inputs = [as_tensor(array, dtype, grad=True) for array in (times, weight, bias) if array is not None]
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
            [outputs[k] for k in used], inputs, [as_tensor(grads[k], dtype) for k in used]
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
    times = as_tensor(random.uniform(0, 10.0, (50, 12)), dtype).double().numpy()
    times[:, 3], times[::5, 4], times[7] = times[:, 2], INF, INF
    weight = random.integers(-2, 4, (6, 12)).astype(float)
    neuron, t_max = IF(3.0, delay=delay), 8.5
    crossing = np.stack([_crossings_in_continuous_time(t, weight, 3.0, delay, t_max) for t in times])
    grad = np.ones_like(crossing)
    grad[:, 1 if errors == "one output" else 6 :] = 0
    nothing = np.zeros_like(grad)
    expected = _naive_gradients(times, weight, crossing, crossing, grad, nothing, False, t_max)

    t, w = as_tensor(times, dtype, grad=True), as_tensor(weight, dtype, grad=True)
    spikes = first_spike_linear(t, w, neuron, t_max=t_max, backend=backend)
    np.testing.assert_array_equal(spikes.detach().numpy(), (as_tensor(crossing, dtype) + delay).numpy())
    spikes.backward(as_tensor(grad, dtype))
    np.testing.assert_allclose(t.grad.numpy(), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(w.grad.numpy(), expected[1], rtol=1e-6, atol=1e-6)


@on_every_backend
def test_a_time_that_rounds_up_to_the_end_of_the_window_is_silence(backend):
    just_before = torch.nextafter(torch.tensor([[4.0]]), torch.tensor(0.0))
    weight = torch.tensor([[2.0]], requires_grad=True)
    spikes = first_spike_linear(just_before, weight, IF(1.0, delay=1), t_max=5, backend=backend)
    assert spikes.item() == INF


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
@pytest.mark.parametrize("n_out", [1, 41, 64, 79, 81, 100, 128, 159, 161])
def test_each_column_of_the_weight_gradient_is_written_by_one_thread(n_out, dtype):
    """Ranges of tiles, computed one by one, leave each other's columns alone."""
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 9, (5, 7), generator=generator).to(dtype).numpy()
    errors = torch.randn(5, n_out, generator=generator, dtype=dtype).numpy()
    until = torch.full((5, n_out), 6.0, dtype=dtype).numpy()
    tile = lanes.tile_of(errors)
    columns = lanes.in_whole_tiles(n_out, tile, errors.itemsize)
    width = lanes.width_of(tile, errors.itemsize)
    expected = -np.einsum("nj,ni->ij", errors, times < 6)
    found = np.full((7, columns), np.nan, errors.dtype)
    for unit in reversed(range(columns // width)):
        before = found.copy()
        gradients.subtract_tiles(unit, unit + 1, errors, None, until, None, None, times, found, tile)
        before[:, unit * width : (unit + 1) * width] = found[:, unit * width : (unit + 1) * width]
        np.testing.assert_array_equal(found, before)
    np.testing.assert_allclose(found[:, :n_out], expected, rtol=1e-5)


@in_both_precisions
@pytest.mark.parametrize("n_out", [100, 128, 300])
def test_threads_share_no_column_of_the_weight_gradient(set_threads, monkeypatch, n_out, dtype):
    monkeypatch.setattr(parallel, "WORTH_WAKING_ONE", 1)
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 1)
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 40, (64, 200), generator=generator).to(dtype)
    weight = torch.rand(n_out, 200, dtype=dtype, generator=generator) - 0.4

    def gradient(threads):
        set_threads(threads)
        w = weight.clone().requires_grad_()
        spikes = first_spike_linear(times, w, IF(1.0), t_max=40)
        spikes.clamp(max=40).square().sum().backward()
        return w.grad

    one = gradient(1)
    assert one.any()
    for threads in (2, 3, 4, 8) * 5:
        assert torch.equal(gradient(threads), one)


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
    assert (fired & (grad != 0)).sum() * n_in > 1.5 * parallel.WORTH_WAKING_ONE
    assert (times < t_max).sum() * n_out // 4 > 1.5 * parallel.WORTH_WAKING_ONE
    for a, b in zip(one, two, strict=True):
        assert a.any()
        assert torch.equal(a, b)


@needs_compiler
@on_every_backend
def test_compiled_step_equals_the_eager_one(backend):
    times, weight, bias, _ = linear_example(torch.float32)
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


@pytest.mark.parametrize("backend", [None, *BACKEND_NAMES])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (0, 6), (2, 3, 6)])
def test_shapes_on_the_meta_device(backend, shape):
    times, weight = torch.empty(shape, device="meta"), torch.empty(3, 6, device="meta")
    found = first_spike_linear(times, weight, IF(), t_max=8, return_potential=True, backend=backend)
    for tensor in found:
        assert tensor.shape == (*shape[:-1], 3)
        assert tensor.device.type == "meta"
        assert tensor.dtype == times.dtype


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

    first, *others = map(outcome, BACKEND_NAMES)
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


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_time_at_a_window_that_float32_cannot_hold_is_silence(backend):
    times = torch.tensor([[0.7]])
    out = first_spike_linear(times, torch.tensor([[2.0]]), IF(1.0), t_max=0.7, backend=backend)
    assert out.isinf().all()
