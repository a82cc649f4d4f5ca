"""The two kernels of a window of steps, against a loop of torch operations and each other."""

import math
import re

import pytest
import snntorch
import torch

from ssnn_plugin.functional import single_spike_sequence, single_spike_step
from ssnn_plugin.functional.bins import _LeakySum
from ssnn_plugin.kernels import window

KERNELS = {
    "reference": (window.plain_window, window._window_grad),
    "cpu": (window.single_spike_window, window.single_spike_window_grad),
}


def _example(dtype=torch.float64, steps=20):
    generator = torch.Generator().manual_seed(3)
    currents = torch.randn(steps, 4, 6, generator=generator, dtype=dtype)
    start = torch.randn(4, 6, generator=generator, dtype=dtype)
    beta = torch.rand(4, 6, generator=generator, dtype=dtype)
    beta[0] = 1
    threshold = torch.rand(4, 6, generator=generator, dtype=dtype) + 0.5
    return currents, start, beta, threshold


def _loop(currents, start, beta, threshold):
    outputs = []
    for current in currents:
        spikes, start = single_spike_step(current, start, threshold=threshold, beta=beta)
        outputs.append((spikes, start))
    return tuple(map(torch.stack, zip(*outputs, strict=True)))


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_window_is_a_loop_over_its_steps(kernel, steps):
    forward, _ = KERNELS[kernel]
    spikes, potentials = forward(*_example(steps=steps))
    expected = _loop(*_example(steps=steps))
    assert torch.equal(spikes, expected[0])
    torch.testing.assert_close(potentials, expected[1])
    assert steps < 20 or (spikes.sum() > 0 and (spikes.sum(0) == 0).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_kernel_is_the_loop_bit_by_bit(dtype):
    expected = _loop(*_example(dtype, steps=200))
    for actual, formula in zip(
        window.single_spike_window(*_example(dtype, steps=200)), expected, strict=True
    ):
        assert torch.equal(actual, formula)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_backward_pass_is_that_of_the_loop(kernel):
    example = _example()
    inputs = [x.clone().requires_grad_() for x in example[:2]]
    spikes, potentials = _loop(*inputs, *example[2:])
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (spikes, potentials)]
    expected = torch.autograd.grad([spikes, potentials], inputs, grads)
    _, backward = KERNELS[kernel]
    actual = backward(*grads, potentials.detach(), example[1], example[3])
    for found, formula in zip(actual, expected, strict=True):
        torch.testing.assert_close(found, formula)


def test_gradients_of_leak_and_threshold_are_those_of_the_loop():
    currents, start, beta, threshold = _example()
    found, expected = [], []
    for run, kept in ((single_spike_sequence, found), (None, expected)):
        parameters = [x.clone().requires_grad_() for x in (beta, threshold)]
        if run is None:
            spikes, potentials = _loop(currents, start, *parameters)
        else:
            spikes, potentials = run(currents, start, beta=parameters[0], threshold=parameters[1])
        kept += torch.autograd.grad((spikes * currents).sum() + potentials.square().sum(), parameters)
    for actual, formula in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, formula)
        assert actual.abs().max() > 0


def test_opcheck():
    currents, start, beta, threshold = _example()
    spikes, potentials = window.single_spike_window(currents, start, beta, threshold)
    torch.library.opcheck(window.single_spike_window, (currents, start, beta, threshold))
    arguments = torch.ones_like(spikes), potentials, potentials, start, threshold
    torch.library.opcheck(window.single_spike_window_grad, arguments)


def test_half_precision_and_strided_currents():
    currents, start, beta, threshold = (x.to(torch.bfloat16) for x in _example())
    assert window.single_spike_window(currents, start, beta, threshold)[0].dtype == torch.bfloat16
    currents, start, beta, threshold = _example()
    strided = currents.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for found, expected in zip(
        window.single_spike_window(strided, start, beta, threshold),
        window.single_spike_window(currents, start, beta, threshold),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_vmap_maps_over_parameters_too():
    currents, _, _, _ = _example()
    betas = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    mapped, _ = torch.func.vmap(lambda beta: single_spike_sequence(currents, beta=beta))(betas)
    for found, beta in zip(mapped, betas, strict=True):
        assert torch.equal(found, single_spike_sequence(currents, beta=beta)[0])


def _leaking(currents, beta):
    outputs = [currents[0]]
    for current in currents[1:]:
        outputs.append(beta * outputs[-1] + current)
    return torch.stack(outputs)


@pytest.mark.parametrize("steps", [1, 2, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_leaky_sum_is_a_loop_over_its_bins(dtype, steps):
    currents = _example(dtype, steps)[0]
    expected = _leaking(currents, 0.9)
    assert torch.equal(window.leaky_sum(currents, 0.9), expected)
    assert torch.equal(window.leaky_sum(currents.movedim(-1, 1).contiguous().movedim(1, -1), 0.9), expected)
    torch.testing.assert_close(window._leaky_sum(currents, 0.9), expected)
    half = window.leaky_sum(currents.to(torch.bfloat16), 0.9)
    torch.testing.assert_close(half.to(dtype), expected, atol=0.1, rtol=0.1)


def test_a_leaky_sum_has_its_gradients_and_keeps_nothing_for_them():
    currents = _example(steps=9)[0].requires_grad_()
    assert torch.autograd.gradcheck(_LeakySum.apply, (currents, 0.8))
    assert torch.autograd.gradgradcheck(_LeakySum.apply, (currents, 0.8))
    torch.library.opcheck(window.leaky_sum, (currents.detach(), 0.8))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        _LeakySum.apply(currents, 0.8)
    assert kept == []


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("spike_grad", [None, snntorch.surrogate.atan()])
def test_a_current_of_nan_silences_a_neuron_and_stays_in_its_potential(beta, spike_grad):
    """Before the crossing; after it, where it does nothing any more; and none."""
    currents = torch.tensor([[0.5, 2.0, 0.5], [math.nan, math.nan, 0.0], [5.0, 1.0, 5.0]])
    spikes, potentials, v = [], [], None
    for current in currents:
        spike, v = single_spike_step(current, v, beta=beta, spike_grad=spike_grad)
        spikes.append(spike)
        potentials.append(v)
    assert torch.stack(spikes).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert v[0].isnan()
    assert v[1] == 2.0
    whole, of_whole = single_spike_sequence(currents, beta=beta, spike_grad=spike_grad)
    assert torch.equal(whole, torch.stack(spikes))
    torch.testing.assert_close(of_whole, torch.stack(potentials), equal_nan=True, rtol=0, atol=0)


def test_a_potential_is_quantized_until_the_neuron_has_fired():
    v = None
    for _ in range(3):
        spike, v = single_spike_step(torch.tensor([0.6]), v, threshold=1.2, quantize=torch.floor)
        assert (spike.item(), v.item()) == (0.0, 0.0)
    _, kept = single_spike_step(torch.zeros(1), torch.tensor([1.75]), quantize=torch.floor)
    assert kept.item() == 1.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, "threshold must be at least 0, got -1.0"),
        ({"threshold": math.nan}, "threshold must be at least 0, got nan"),
        ({"beta": 1.5}, "beta must lie in 0 ... 1, got 1.5"),
        ({"beta": -0.1}, "beta must lie in 0 ... 1, got -0.1"),
    ],
)
def test_neurons_in_steps_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        single_spike_step(torch.zeros(2), **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        single_spike_sequence(torch.zeros(3, 2), **options)


@pytest.mark.parametrize("shape", [(), (0, 2)])
def test_a_window_has_a_step(shape):
    with pytest.raises(ValueError, match=re.escape("currents must have shape [T >= 1, *]")):
        single_spike_sequence(torch.zeros(shape))
