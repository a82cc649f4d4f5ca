"""Sums that equal the threshold: where the order of additions decides, and where it does not."""

import pytest
import torch
from torch import nn

from ssnn_plugin import decode, to_event_driven
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFParameters
from ssnn_plugin.snntorch import SingleSpike

INPUTS, OUTPUTS, BATCH, STEPS = 784, 100, 16, 256
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def _spike_times(dtype, *, step, threshold, beta=1.0):
    """Of a layer with weights of -4 ... 8 steps: step by step, event by event, a window at once in Norse."""
    draw = torch.Generator().manual_seed(0)
    constants = (torch.tensor(value, dtype=torch.float64) for value in (beta, threshold * step))
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=dtype).requires_grad_(False)
    linear.weight.copy_(torch.randint(-4, 9, (OUTPUTS, INPUTS), generator=draw).to(dtype) * step)
    net = nn.Sequential(linear, SingleSpike(*constants, init_hidden=True))
    times = torch.randint(0, STEPS, (BATCH, INPUTS), generator=draw).to(dtype)
    times[torch.rand(BATCH, INPUTS, generator=draw) < 0.4] = torch.inf
    trains = decode.times_to_spikes(times, STEPS)
    in_steps = decode.spikes_to_times(torch.stack([net(spikes) for spikes in trains]))
    events = to_event_driven(net, t_max=STEPS)(times)
    window, _ = SingleSpikeIF(SingleSpikeIFParameters(threshold * step, 1 - beta), dt=1.0)(linear(trains))
    return in_steps, events, decode.spikes_to_times(window)


@precisions
@pytest.mark.parametrize(("step", "threshold"), [(0.1, 200), (0.01, 100)])
def test_on_a_decimal_grid_the_order_of_additions_decides(dtype, step, threshold):
    """docs/three-modes.md has the numbers of a batch of 128."""
    loop, events, _ = _spike_times(dtype, step=step, threshold=threshold)
    assert 0.01 < (loop != events).double().mean() < 0.2


@precisions
@pytest.mark.parametrize(
    ("step", "threshold"),
    [(1.0, 200), (2.0**-6, 200), (0.1, 200.5), (0.01, 200.5)],
    ids=["whole", "power of two", "half a step of 0.1", "half a step of 0.01"],
)
def test_the_remedies_give_what_exact_sums_give(dtype, step, threshold):
    exact, *_ = _spike_times(torch.float64, step=1.0, threshold=200)
    for times in _spike_times(dtype, step=step, threshold=threshold):
        assert torch.equal(times.double(), exact)


@precisions
def test_a_leak_leaves_next_to_no_ties(dtype):
    loop, events, _ = _spike_times(dtype, step=0.1, threshold=50, beta=0.9)
    assert loop.isfinite().double().mean() > 0.9
    assert torch.equal(loop, events)
