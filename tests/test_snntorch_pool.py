"""First-spike pooling of snnTorch's trains."""

import math

import pytest
import torch
from snntorch import utils
from snntorch_runs import BINS, MODES, STEPS
from torch import nn

from ssnn_plugin import decode
from ssnn_plugin.nn import EarliestSpikePool2d
from ssnn_plugin.snntorch import FirstSpikePool2d, reset

INF = math.inf


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(2, None, 0), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (1, 1, 0)]
)
@pytest.mark.parametrize("mode", MODES)
def test_the_pool_on_trains_is_the_one_on_times(kernel_size, stride, padding, mode):
    window, draw = (kernel_size, stride, padding), torch.Generator().manual_seed(2)
    times = torch.randint(0, STEPS + 6, (2, 3, 6, 7), generator=draw).double()
    times = times.masked_fill(times >= STEPS, INF).requires_grad_()
    expected = EarliestSpikePool2d(*window)(times)
    weight = torch.rand(expected.shape, generator=draw, dtype=torch.float64)
    (of_times,) = torch.autograd.grad((expected.masked_fill(expected.isinf(), 0) * weight).sum(), times)

    spikes = decode.times_to_spikes(times, STEPS)
    call, options = MODES[mode]
    start = torch.zeros_like(expected)
    spk, mem = call(FirstSpikePool2d(*window, **options), spikes, start)
    found = decode.spikes_to_times(spk)
    assert torch.equal(found, expected)
    assert torch.equal(spk, decode.times_to_spikes(expected, STEPS))
    assert torch.equal(mem, (BINS.reshape(-1, 1, 1, 1, 1) >= expected).double())
    (grad,) = torch.autograd.grad((found.masked_fill(found.isinf(), 0) * weight).sum(), times)
    torch.testing.assert_close(grad, of_times)
    assert grad.any()


@pytest.mark.parametrize("restart", [utils.reset, reset, lambda net: net[0].reset_mem()])
def test_the_pool_is_reset_like_a_neuron(restart):
    net = nn.Sequential(FirstSpikePool2d(2, init_hidden=True))
    for _ in range(2):
        assert [net(torch.ones(1, 1, 2, 2)).item() for _ in range(2)] == [1, 0]
        assert net(torch.ones(2, 1, 2, 2)).flatten().tolist() == [1, 1]
        restart(net)


def test_one_state_does_not_serve_two_places():
    pool = FirstSpikePool2d(2, init_hidden=True)
    pool(torch.zeros(1, 1, 8, 8))
    pool(torch.ones(1, 1, 4, 4))  # nothing has fired yet
    with pytest.raises(ValueError, match=r"windows \[1, 2, 2\], as those that have fired, got \[1, 4, 4\]"):
        pool(torch.ones(1, 1, 8, 8))
    assert pool(torch.ones(3, 1, 4, 4)).all(), "another batch begins anew"
    reset(pool)
    assert pool(torch.ones(1, 1, 8, 8)).all()
