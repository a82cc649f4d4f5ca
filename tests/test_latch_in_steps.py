"""The latch in the hosts' modules: their windows learn in every bin, with the spikes of the latency form."""

import pytest
import torch
from torch import nn

from ssnn_plugin import IF, decode, surrogate
from ssnn_plugin import snntorch as snn
from ssnn_plugin.functional import single_spike_sequence, single_spike_step
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import InBins, SpikeLinear, SpikeSequential
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell, SingleSpikeIFParameters

T = 6
RULE = surrogate.Triangle(2.0)


def currents(*shape, seed=0):
    """On a grid of eighths, whose sums are exact."""
    return torch.randint(-8, 12, shape, generator=torch.Generator().manual_seed(seed)).double() / 8


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_spikes_and_potentials_are_those_of_the_latency_form(beta):
    window = currents(T, 20, 7)
    start = torch.full((20, 7), 0.25, dtype=torch.float64)
    start[0] = 3.0  # has fired before
    expected = single_spike_sequence(window, start, beta=beta)
    actual = single_spike_sequence(window, start, beta=beta, spike_grad=RULE)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(actual[0], expected[0])
    assert actual[0].sum() > 20


@pytest.mark.parametrize(
    "module",
    [snn.SingleSpike(spike_grad=RULE, sequence=True), SingleSpikeIF(SingleSpikeIFParameters(method=RULE))],
    ids=["snntorch", "norse"],
)
def test_a_window_of_a_host_has_the_gradients_of_layers_in_bins(module):
    times = torch.randint(0, T, (16, 10), generator=torch.Generator().manual_seed(1)).double()
    labels, loss = torch.arange(16) % 4, TemporalCrossEntropyLoss(T)
    network = SpikeSequential(
        SpikeLinear(10, 8, IF(), t_max=T, dtype=torch.float64),
        SpikeLinear(8, 4, IF(), t_max=T, dtype=torch.float64),
    )
    weights = [nn.Parameter(currents(8, 10, seed=2)), nn.Parameter(currents(4, 8, seed=3))]
    for layer, weight in zip(network, weights, strict=True):
        layer.weight.data = weight.data.clone()
    outputs = InBins(network, RULE)(times)
    spikes = decode.times_to_spikes(times, T)
    for weight in weights:
        spikes = module(spikes @ weight.T)[0]
    assert torch.equal(decode.spikes_to_times(spikes), outputs)

    # A loss on activations, which both have, asks silent neurons too.
    activations = spikes.cumsum(0)
    (T - activations.sum(0)).square().mean().backward()
    outputs_again = InBins(network, RULE).layers(times)[-1].activations
    (T - outputs_again.sum(0)).square().mean().backward()
    for layer, weight in zip(network, weights, strict=True):
        torch.testing.assert_close(weight.grad, layer.weight.grad)
        assert weight.grad.abs().sum() > 0
    loss(outputs, labels).backward()


def test_one_step_alone_cannot_learn_from_every_bin():
    with pytest.raises(TypeError, match="spike_grad must be a surrogate of one step, got Triangle"):
        single_spike_step(torch.zeros(3), spike_grad=RULE)
    with pytest.raises(ValueError, match=r"got Triangle\(width=2.0\): .* \(sequence=True\)"):
        snn.SingleSpike(spike_grad=RULE)
    with pytest.raises(ValueError, match="Use SingleSpikeIF"):
        SingleSpikeIFCell(SingleSpikeIFParameters(method=RULE))
