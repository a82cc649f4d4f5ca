"""`SpikeLinear` and `SpikeConv2d` with neurons in continuous time."""

import copy
import pickle

import pytest
import torch
from continuous_examples import CAUSAL

from ssnn_plugin import IF, WindowedRamp
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear, overdue_times
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear


def _network(neuron, dtype=torch.float32):
    """A convolution and a readout with the same neuron; the windows of windowed ramps follow each other."""
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


def test_overdue_times_are_those_of_a_longer_window():
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(40, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    neuron = WindowedRamp(1.0, start=1.0)
    spikes, potential = first_spike_linear(times, weight, neuron, t_max=2.0, return_potential=True)
    assert 0.1 < spikes.isinf().double().mean() < 0.9
    longer = first_spike_linear(times, weight, neuron, t_max=50.0)
    torch.testing.assert_close(overdue_times(spikes, potential, neuron, 2.0), longer)


def test_overdue_times_have_the_gradient_of_times_or_of_potentials():
    times = torch.tensor([[2.0, torch.inf, torch.inf]], requires_grad=True)
    potential = torch.tensor([[3.0, 1.0, -2.0]], requires_grad=True)
    due = overdue_times(times, potential, WindowedRamp(3.0, start=1.0), 4.0)
    assert due.tolist() == [[2.0, 6.0, 9.0]]
    of_times, of_potential = torch.autograd.grad(due.sum(), (times, potential))
    assert of_times.tolist() == [[1.0, 0.0, 0.0]]
    assert of_potential.tolist() == [[0.0, -1.0, -1.0]]


@pytest.mark.parametrize(
    ("neuron", "t_max", "message"),
    [
        (IF(), 4.0, "neuron must be a WindowedRamp, got IF"),
        (WindowedRamp(start=1.0), 0, "t_max must be finite and greater than 0, got 0"),
    ],
)
def test_overdue_times_name_what_is_wrong(neuron, t_max, message):
    with pytest.raises(ValueError, match=message):
        overdue_times(torch.zeros(1, 2), torch.zeros(1, 2), neuron, t_max)
