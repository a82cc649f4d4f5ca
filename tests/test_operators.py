"""The operators that every layer calls, checked by `torch.library.opcheck`."""

import math

import pytest
import torch
from continuous_examples import random_image, random_layer, tensors
from if_examples import conv2d_example, linear_example
from marks import in_both_precisions, on_every_backend

from ssnn_plugin import IF, LIF, ReLPSP
from ssnn_plugin.kernels import ops
from ssnn_plugin.kernels.geometry import Geometry

INF = math.inf


@pytest.mark.parametrize("with_bias", [False, True])
@on_every_backend
def test_opcheck_of_the_forward_operator_of_a_linear_layer(backend, with_bias):
    times, weight, bias, _ = linear_example(torch.float64)
    neuron = IF(5.0, delay=1, beta=0.5 if with_bias else 1.0)
    described = neuron.kind, neuron.numbers, 8.0, backend
    torch.library.opcheck(
        ops.first_spike, (times, weight, bias if with_bias else None, *Geometry(), *described)
    )


@in_both_precisions
@on_every_backend
def test_opcheck_of_the_backward_operators_of_a_linear_layer(backend, dtype):
    times, weight, _, grad = linear_example(dtype)
    factors = grad, None, 6 * torch.rand_like(grad), None, None, times
    torch.library.opcheck(ops.weight_grad, (*factors, [], *Geometry(), backend))
    torch.library.opcheck(ops.input_grad, (*factors, weight, *Geometry(), backend))


@pytest.mark.parametrize("with_bias", [False, True])
@on_every_backend
def test_opcheck_of_the_forward_operator_of_a_convolution(backend, with_bias):
    times, weight, bias, geometry = conv2d_example(torch.float64)
    neuron = IF(5.0, delay=1, beta=0.5)
    described = neuron.kind, neuron.numbers, 8.0, backend
    inputs = times, weight, bias if with_bias else None
    torch.library.opcheck(ops.first_spike, (*inputs, *geometry, *described))


@in_both_precisions
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@on_every_backend
def test_opcheck_of_the_backward_operators_of_a_convolution(backend, layout, dtype):
    times, weight, _, geometry = conv2d_example(dtype)
    times = times.contiguous(memory_format=layout)
    neuron = IF(5.0)
    crossing, _, _ = ops.first_spike(
        times, weight, None, *geometry, neuron.kind, neuron.numbers, 8.0, backend
    )
    assert 0 < crossing.isfinite().sum() < crossing.numel()
    factors = torch.ones_like(crossing), None, crossing.clamp(max=8.0), None, None, times
    torch.library.opcheck(ops.weight_grad, (*factors, [3, 2], *geometry, backend))
    torch.library.opcheck(ops.input_grad, (*factors, weight, *geometry, backend))


@pytest.mark.parametrize(("neuron", "with_bias"), [(ReLPSP(0.5), True), (LIF(0.5, tau_mem=2.0), False)])
@on_every_backend
def test_opcheck_of_the_forward_operator_in_continuous_time(backend, with_bias, neuron):
    times, weight, bias, t_max = random_layer(0)
    t, w, b = tensors(times, weight, bias if with_bias else None)
    described = neuron.kind, neuron.numbers, t_max, backend
    torch.library.opcheck(ops.first_spike, (t, w, b, *Geometry(), *described))
    t, w, b, _ = random_image(0, groups=2)
    geometry = Geometry([2, 1], [1, 2], 2)
    torch.library.opcheck(ops.first_spike, (t, w, b if with_bias else None, *geometry, *described))


@in_both_precisions
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@on_every_backend
def test_opcheck_of_the_backward_operators_in_continuous_time(backend, layout, dtype):
    times, weight, _, _ = random_layer(0)
    t, w = tensors(times, weight, dtype=dtype)
    a = b = t.masked_fill(t.isinf(), 0)
    p = torch.rand(4, 5, dtype=dtype)
    until = torch.where(p < 0.3, -INF, 6 * p)
    torch.library.opcheck(ops.weight_grad, (p, p, until, a, b, t, [], *Geometry(), backend))
    torch.library.opcheck(ops.input_grad, (p, p, until, a, b, t, w, *Geometry(), backend))
    t, w, _, _ = random_image(0, dtype, groups=2)
    t = t.contiguous(memory_format=layout)
    a = b = t.masked_fill(t.isinf(), 0)
    geometry = Geometry([2, 1], [1, 2], 2)
    p = torch.rand(2, 8, 8, dtype=dtype)
    until = torch.where(p < 0.3, -INF, 6 * p)
    torch.library.opcheck(ops.weight_grad, (p, p, until, a, b, t, [3, 2], *geometry, backend))
    torch.library.opcheck(ops.input_grad, (p, p, until, a, b, t, w, *geometry, backend))
