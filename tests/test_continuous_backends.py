"""Neurons in continuous time: the backends agree; layouts, shapes and threads change nothing."""

import math

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
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import (
    BACKEND_NAMES,
    DTYPES,
    in_both_precisions,
    needs_compiler,
    on_every_backend,
    on_every_fast_backend,
)

from ssnn_plugin import LIF, AlphaPSP, ExpPSP, ReLPSP, WindowedRamp
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.kernels.cpu import parallel

INF, NAN = math.inf, math.nan


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
    inputs = tensors(times, weight, bias, dtype=dtype, grad=True)
    outputs = layer(
        *inputs[:2], neuron, t_max=t_max, bias=inputs[2], return_potential=True, backend=backend, **geometry
    )
    wanted = [tensor for tensor in inputs if tensor is not None]
    return [*outputs, *torch.autograd.grad(outputs, wanted, tensors(*grads, dtype=dtype), allow_unused=True)]


def _calm(times, weight, bias, neuron, t_max, dtype):
    """Where V crosses clearly, so that rounding does not decide: [batch, out]."""
    t, w, b = tensors(times, weight, bias, dtype=dtype)
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
@on_every_fast_backend
def test_the_backends_agree(fast, case, dtype):
    times, weight, bias, neuron, t_max, grads = case
    times, weight = (torch.from_numpy(a).to(dtype).double().numpy() for a in (times, weight))
    calm = _calm(times, weight, bias, neuron, t_max, dtype)
    grads = grads * calm.numpy()
    ours, theirs = (
        _outcome(backend, times, weight, bias, neuron, t_max, grads, dtype) for backend in (fast, "reference")
    )
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
@on_every_fast_backend
def test_the_backends_agree_on_convolutions(fast, neuron, geometry, layout, dtype):
    times, weight, bias, t_max = random_image(7, dtype, groups=geometry["groups"], batch=3)
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
        for backend in (fast, "reference")
    )
    for one, other in zip(ours, theirs, strict=True):
        scale = 1 + other[other.isfinite()].abs().max().item()
        tolerance = 2e-3 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale)


@on_every_backend
@pytest.mark.parametrize("neuron", [*CAUSAL, WindowedRamp(start=3.0)], ids=repr)
def test_a_convolution_over_the_whole_input_is_a_linear_layer(backend, neuron):
    times, weight, bias, t_max = random_image(4, kernel=(5, 6))
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
            assert one_output(times, [first, odd], neuron, t_max=8.0) == one_output(
                times, [first, 0.0], neuron, t_max=8.0
            )
            found = one_output(times, [first, odd], neuron, "reference", t_max=8.0)
            assert found == pytest.approx(one_output(times, [first, 0.0], neuron, t_max=8.0), rel=1e-9)


@on_every_backend
@with_every_neuron
def test_leading_dimensions_and_strides_do_not_matter(backend, neuron):
    times, weight, bias, t_max = random_layer(8, batch=6)
    t, w, b = tensors(times, weight, bias)
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
    t, w, b = tensors(np.zeros((0, 3)), np.ones((4, 3)), np.ones(4), grad=True)
    image, kernels = tensors(np.zeros((0, 2, 4, 4)), np.ones((4, 2, 3, 2)), grad=True)
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
    assert times.numel() * n_out // 2 > 1.5 * parallel.WORTH_WAKING_ONE
    assert 110 * (side - 2) ** 2 * kernels.numel() // 2 > parallel.WORTH_WAKING_ONE
    for a, b in zip(one, two, strict=True):
        assert a.any()
        assert torch.equal(a, b)


@needs_compiler
@on_every_backend
def test_compiled_step_equals_the_eager_one(backend):
    times, weight, bias, t_max = random_image(3, torch.float32, groups=2)
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
        inputs = tensors(
            *(x.clone() for x in (times, weight, bias, readout, top)), dtype=torch.float32, grad=True
        )
        out, loss = network(*inputs)
        return [out, loss, *torch.autograd.grad(loss, inputs)]

    torch._dynamo.reset()
    for found, expected in zip(step(torch.compile(network, fullgraph=True)), step(network), strict=True):
        assert expected.isfinite().any()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", [None, *BACKEND_NAMES])
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
