"""First-spike pooling of Norse's trains."""

import math

import norse.torch as host
import pytest
import torch
from norse_runs import random, random_train

from ssnn_plugin import decode
from ssnn_plugin.nn import EarliestSpikePool2d
from ssnn_plugin.norse import FirstSpikePool2d, FirstSpikePool2dCell

INF, NAN = math.inf, math.nan


WINDOWS = [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (2, 1)]


@pytest.mark.parametrize("window", WINDOWS)
def test_pooling_trains_is_pooling_their_times(window):
    t_max = 9
    times = torch.randint(0, 14, (3, 2, 6, 7), generator=torch.Generator().manual_seed(0)).double()
    times = times.masked_fill(times >= t_max, INF)
    times[0, 0] = INF
    trains, of_times = (times.clone().requires_grad_() for _ in range(2))
    spikes, state = FirstSpikePool2d(*window)(decode.times_to_spikes(trains, t_max))
    found, expected = decode.spikes_to_times(spikes), EarliestSpikePool2d(*window)(of_times)
    assert torch.equal(found, expected)
    assert torch.equal(spikes.sum(0), expected.isfinite().double())
    assert torch.equal(state.fired, spikes.sum(0))
    error = random(*expected.shape, seed=1).masked_fill(expected.isinf(), 0)
    (a,), (b,) = torch.autograd.grad(found, trains, error), torch.autograd.grad(expected, of_times, error)
    assert b.any()
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("window", WINDOWS)
def test_pooling_in_steps_is_pooling_at_once(window):
    layer, cell = FirstSpikePool2d(*window), FirstSpikePool2dCell(*window)
    x = random_train(7, 2, 3, 6, 7, rate=0.1).requires_grad_()
    outcome, parts = [], [layer(x[:3])]
    parts.append(layer(x[3:], parts[0][1]))
    states, steps = None, []
    for step in x:
        z, states = cell(step, states)
        steps.append(z)
    error = random(*torch.stack(steps).shape, dtype=torch.float32)
    whole = layer(x)
    for spikes, state in (
        whole,
        (torch.stack(steps), states),
        (torch.cat([z for z, _ in parts]), parts[1][1]),
        host.Lift(cell)(x),
    ):
        assert not state.fired.requires_grad
        outcome.append((spikes, state.fired, *torch.autograd.grad(spikes, x, error, retain_graph=True)))
    assert outcome[0][0][0].mean() < 1
    for other in outcome[1:]:
        for a, b in zip(outcome[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("pool", [FirstSpikePool2dCell(2), FirstSpikePool2d(2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_pooling_keeps_the_dtype(pool, dtype):
    x = torch.ones(2, 3, 4, 4, dtype=dtype)
    lead = (5,) if isinstance(pool, FirstSpikePool2d) else ()
    for device in ("cpu", "meta"):
        spikes, state = pool(x.expand(*lead, *x.shape).to(device))
        assert spikes.dtype == state.fired.dtype == dtype
        assert spikes.shape == (*lead, 2, 3, 2, 2)
        assert state.fired.device.type == device
