"""Networks that learn in bins are those that decide by events: spikes to the bin, gradients by a loop."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from ssnn_plugin import IF, ReLPSP, surrogate, to_event_driven, to_step_mode
from ssnn_plugin.functional import bins_to_times, times_to_bins
from ssnn_plugin.functional.bins import Bins, NeuronsInBins
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nir import to_nir
from ssnn_plugin.nn import (
    AddedCurrentResidual,
    AveragePool,
    EachBin,
    EarliestSpikePool2d,
    EarliestSpikeResidual,
    InBins,
    Latch,
    SpikeConv2d,
    SpikeFlatten,
    SpikeLinear,
    SpikeSequential,
    WeightStandardization,
    calibrate,
)
from ssnn_plugin.snntorch import SingleSpike

T = 8


def spike_times(*shape, dtype=torch.float64, seed=0):
    """Bins 0 ... T - 1, some silent."""
    bins = torch.randint(0, T + 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return bins.masked_fill(bins >= T, math.inf)


def on_a_grid(network, seed=0):
    """Weights that are sums of powers of two: their sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        values = torch.randint(-4, 7, parameter.shape, generator=generator).to(parameter)
        parameter.data = values / 8
    return network


def mlp(dtype, **options):
    return SpikeSequential(
        SpikeLinear(20, 30, IF(**options), t_max=T, dtype=dtype),
        SpikeLinear(30, 30, IF(**options), t_max=T, dtype=dtype),
        SpikeLinear(30, 4, IF(**options), t_max=T, dtype=dtype),
    )


def cnn(dtype):
    return SpikeSequential(
        SpikeConv2d(2, 6, 3, IF(), t_max=T, padding=1, dtype=dtype),
        EarliestSpikePool2d(2),
        SpikeConv2d(6, 8, 3, IF(2.0), t_max=T, stride=2, padding="valid", groups=2, dtype=dtype),
        SpikeFlatten(),
        SpikeLinear(32, 4, IF(), t_max=T, dtype=dtype),
    )


def pooled(dtype):
    return SpikeSequential(
        SpikeConv2d(2, 4, 3, IF(), t_max=T, output_pool=AveragePool(2), dtype=dtype),
        SpikeConv2d(4, 8, 2, IF(0.5), t_max=T, input_pool=AveragePool(2), dtype=dtype),
        SpikeLinear(8, 4, IF(0.25), t_max=T, input_pool=AveragePool(1), dtype=dtype),
    )


NETWORKS = [
    (mlp, (20,), {}),
    (mlp, (20,), {"delay": 1}),
    (mlp, (20,), {"beta": 0.5}),
    (cnn, (2, 10, 10), {}),
    (pooled, (2, 10, 10), {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("build", "shape", "options"), NETWORKS)
def test_times_and_potentials_are_those_of_the_network_on_times(build, shape, options, dtype):
    network = on_a_grid(build(dtype, **options))
    times = spike_times(64, *shape, dtype=dtype)
    expected, potential = network(times, return_potential=True)
    actual, at_crossing = InBins(network)(times, return_potential=True)
    assert 0.05 < actual.isfinite().double().mean() < 1, "a test of silence alone, or of no silence"
    assert torch.equal(actual, expected)
    torch.testing.assert_close(at_crossing, potential)
    assert torch.equal(InBins(network)(times), expected)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_times_differ_where_the_potential_is_the_threshold_to_rounding_alone(dtype, rounding):
    """With ordinary weights, whose sums depend on their order."""
    network, times = mlp(dtype), spike_times(512, 20, dtype=dtype)
    calibrate(network, times, 0.4)
    for layer, bins in zip(network, InBins(network).layers(times)[1:], strict=True):
        found, expected = bins_to_times(bins.activations), layer(times)
        assert 0.1 < found.isfinite().double().mean() < 0.9
        differ = found != expected
        earlier = torch.minimum(found, expected)[differ].long()
        v = bins.potentials[:, differ].gather(0, earlier.unsqueeze(0))
        assert ((v - 1).abs() < rounding).all()
        times = found


def test_a_network_of_torchs_own_layers_is_one_of_spike_times():
    network = on_a_grid(
        SpikeSequential(
            SpikeConv2d(1, 4, 3, IF(2.0), t_max=T, dtype=torch.float64),
            SpikeFlatten(),
            SpikeLinear(144, 5, IF(3.0), t_max=T, dtype=torch.float64),
        )
    )
    plain = nn.Sequential(
        EachBin(nn.Conv2d(1, 4, 3, bias=False, dtype=torch.float64)), Latch(2.0),
        EachBin(nn.Flatten()), EachBin(nn.Linear(4 * 36, 5, bias=False, dtype=torch.float64)), Latch(3.0),
    )  # fmt: skip
    with torch.no_grad():
        plain[0].module.weight.copy_(network[0].weight)
        plain[3].module.weight.copy_(network[2].weight)
    times = spike_times(64, 1, 8, 8)
    expected = network(times)
    assert 0.05 < expected.isfinite().double().mean() < 1
    spikes = bins_to_times(plain(times_to_bins(times, T)))
    assert torch.equal(spikes, expected)
    learning = InBins(network)(times)
    for found in (spikes, learning):
        found.clamp(max=T).sum().backward()
    torch.testing.assert_close(plain[0].module.weight.grad, network[0].weight.grad)
    assert plain[0].module.weight.grad.abs().sum() > 0


def test_an_output_window_longer_than_the_hidden_one_and_a_constant_current():
    network = SpikeSequential(
        SpikeLinear(20, 30, IF(), t_max=T, dtype=torch.float64),
        SpikeLinear(30, 4, IF(4.0), t_max=4 * T, bias=True, dtype=torch.float64),
    )
    on_a_grid(network)
    network[1].bias.data.fill_(0.25)
    times = spike_times(64, 20)
    expected = network(times)
    assert (expected[expected.isfinite()] >= T).any(), "none came in the longer window"
    assert torch.equal(InBins(network)(times), expected)


def test_a_shorter_window_behind_a_longer_one_sees_what_came_in_time():
    network = SpikeSequential(
        SpikeLinear(20, 30, IF(), t_max=T, dtype=torch.float64),
        SpikeLinear(30, 4, IF(), t_max=3, dtype=torch.float64),
    )
    on_a_grid(network)
    times = spike_times(64, 20)
    expected = network(times)
    assert expected.isfinite().any()
    assert torch.equal(InBins(network)(times), expected)


def test_residual_blocks():
    block = EarliestSpikeResidual(SpikeLinear(20, 20, IF(), t_max=T, dtype=torch.float64))
    network = on_a_grid(SpikeSequential(block, SpikeLinear(20, 4, IF(), t_max=T, dtype=torch.float64)))
    times = spike_times(64, 20)
    expected = network(times)
    assert expected.isfinite().any()
    assert torch.equal(InBins(network)(times), expected)

    added = AddedCurrentResidual(SpikeLinear(20, 20, IF(), t_max=T, dtype=torch.float64), gain=0.5)
    on_a_grid(added)
    inputs, shortcut = Bins(times_to_bins(times, T)), Bins(times_to_bins(times.flip(1), T))
    spikes = added.in_bins(inputs, shortcut, surrogate.Arctan()).activations
    assert torch.equal(bins_to_times(spikes), added(times, times.flip(1)))


def test_weight_gradients_are_those_of_a_loop_over_bins():
    network = on_a_grid(mlp(torch.float64))
    times, labels = spike_times(16, 20), torch.arange(16) % 4
    loss = TemporalCrossEntropyLoss(T)
    loss(InBins(network, surrogate.Triangle(2.0))(times), labels).backward()

    weights = [layer.weight.detach().clone().requires_grad_() for layer in network]
    activations = [(times <= t).double() for t in range(T)]
    for weight in weights:
        highest, outputs = None, []
        for a in activations:
            v = a @ weight.T
            highest = v if highest is None else torch.where(v > highest, v, highest)
            hat = (1 - (highest - 1).abs() / 2).relu() / 2
            outputs.append((highest > 1).double() + hat.detach() * (highest - highest.detach()))
        activations = outputs
    times_of = T - sum(activations)
    loss(times_of, labels).backward()
    for layer, weight in zip(network, weights, strict=True):
        torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_silent_neurons_learn_to_fire_in_depth():
    torch.manual_seed(0)
    network = mlp(torch.float32)
    times, labels = spike_times(200, 20, dtype=torch.float32), torch.arange(200) % 4
    for cls in range(4):
        times[labels == cls, 5 * cls : 5 * cls + 5] = 0.0
    for layer in network:
        nn.init.normal_(layer.weight, std=0.05)
    silent = network(times).isinf().double().mean()
    learner, loss = InBins(network), TemporalCrossEntropyLoss(T)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(learner(times), labels).backward()
        optimizer.step()
    assert silent == 1
    outputs = network(times)
    assert (outputs.argmin(1) == labels).double().mean() > 0.95


def test_autocast_halves_the_hidden_layers_alone():
    torch.manual_seed(0)
    network = on_a_grid(cnn(torch.float32))
    times = spike_times(16, 2, 10, 10, dtype=torch.float32)
    learner = InBins(network)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = learner.layers(times)
        spikes = learner(times)
    assert {bins.activations.dtype for bins in outputs[1:-1]} == {torch.bfloat16}
    assert outputs[-1].activations.dtype == torch.float32
    assert spikes.dtype == torch.float32
    assert torch.equal(spikes, network(times))  # eighths of small numbers are exact in half precision


def test_dropout_drops_a_spike_in_all_bins_and_parametrizations_hold():
    torch.manual_seed(0)
    layer = SpikeLinear(400, 3, IF(), t_max=T, dropout=0.5)
    nn.init.constant_(layer.weight, 1.0)
    parametrize.register_parametrization(layer, "weight", WeightStandardization())
    potentials = layer.in_bins(Bins(torch.ones(T, 1, 400))).potentials
    kept = potentials / 2
    assert torch.equal(kept, kept.round())
    assert (potentials == potentials[0]).all()
    assert 300 < potentials[0, 0, 0] < 500


def test_calibrated_networks_share_their_parameters():
    network = mlp(torch.float32)
    calibrate(network, spike_times(50, 20, dtype=torch.float32), 0.3)
    learner = InBins(network)
    assert {id(p) for p in learner.parameters()} == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (
            SpikeSequential(SpikeFlatten()),
            TypeError,
            "network must hold a layer of neurons such as SpikeLinear",
        ),
        (SpikeSequential(SpikeLinear(4, 2, ReLPSP(), t_max=2)), TypeError, "only IF neurons have bins"),
        (SpikeSequential(SpikeLinear(4, 2, IF(), t_max=2.5)), ValueError, "t_max must be a whole number"),
        (nn.Sequential(nn.ReLU(), SpikeLinear(4, 2, IF(), t_max=2)), TypeError, "ReLU has no bins"),
    ],
)
def test_what_has_no_bins_is_refused(network, error, message):
    with pytest.raises(error, match=message):
        InBins(network)(torch.zeros(1, 4))


def test_windows_may_differ_around_a_shortcut():
    first = SpikeLinear(1, 1, IF(1.0), t_max=4)
    network = SpikeSequential(EarliestSpikeResidual(first), SpikeLinear(1, 1, IF(0.5), t_max=8))
    for layer in (first, network[1]):
        nn.init.ones_(layer.weight)
    times = torch.tensor([[5.0]])
    assert network(times).tolist() == [[5.0]]
    assert InBins(network)(times).tolist() == [[5.0]]


def test_a_shortcut_goes_on_longer_than_the_inputs():
    block = AddedCurrentResidual(SpikeLinear(1, 1, IF(0.75), t_max=8))
    nn.init.constant_(block.connection.weight, 0.5)
    inputs, shortcut = torch.tensor([[2.0]]), torch.tensor([[6.0]])
    given = Bins(times_to_bins(inputs, 4)), Bins(times_to_bins(shortcut, 8))
    assert block(inputs, shortcut).tolist() == [[6.0]]
    assert bins_to_times(block.in_bins(*given, surrogate.Arctan()).activations).tolist() == [[6.0]]
    with pytest.raises(ValueError, match=r"shortcut must have shape \[T, 1, 1\], got \[8, 1, 1, 1\]"):
        block.in_bins(given[0], Bins(given[1].activations.unsqueeze(1)), surrogate.Arctan())


class _WithAShortcut(SpikeSequential):
    def forward(self, times, return_potential=False):
        return torch.minimum(super().forward(times), times)


def test_a_sequence_with_a_forward_of_its_own_is_no_chain():
    network = _WithAShortcut(SpikeLinear(4, 4, IF(), t_max=2))
    with pytest.raises(TypeError, match="_WithAShortcut has no bins"):
        InBins(network)(torch.zeros(1, 4))
    for write in (lambda: to_step_mode(network, "snntorch"), lambda: to_nir(network)):
        with pytest.raises(TypeError, match=r"must be a row of layers .*, got _WithAShortcut"):
            write()


def test_a_network_that_keeps_to_a_model_follows_it():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), SingleSpike(init_hidden=True, output=True))
    nn.init.ones_(model[0].weight)
    network = to_event_driven(model, t_max=4)
    model[1].threshold.fill_(0.5)
    assert to_step_mode(network, "snntorch")[1].threshold == 0.5
    model[1].threshold.fill_(2.0)
    assert InBins(network)(torch.zeros(1, 1)).isinf().all()


def test_a_potential_needs_neurons_at_the_end():
    network = SpikeSequential(EarliestSpikeResidual(SpikeLinear(4, 4, IF(), t_max=2)))
    with pytest.raises(TypeError, match="needs a last layer with neurons"):
        InBins(network)(torch.zeros(1, 4), return_potential=True)


def test_a_pool_teaches_the_neuron_of_its_window_that_comes_closest():
    layer = SpikeConv2d(1, 1, 1, IF(1.0), t_max=2, dtype=torch.float64)
    nn.init.constant_(layer.weight, 1.0)
    network = SpikeSequential(layer, EarliestSpikePool2d(2))
    potentials = torch.tensor([[[0.1, 0.2], [0.9, 0.3]], [[0.1, 0.95], [0.9, 0.3]]], dtype=torch.float64)
    learner = InBins(network, surrogate.Triangle(1.0))
    v = potentials.reshape(2, 1, 1, 2, 2).requires_grad_()
    pooled = network[1].in_bins(NeuronsInBins(v, layer.neuron, learner.gradient)).activations
    pooled.sum().backward()
    slope = [1 - 0.1, 1 - 0.05]  # of a triangle of width 1, at a distance of 0.1 and 0.05
    expected = torch.zeros(2, 2, 2, dtype=torch.float64)
    expected[0, 1, 0], expected[1, 0, 1] = slope
    torch.testing.assert_close(v.grad.reshape(2, 2, 2), expected)


def test_bins_in_half_precision_have_times_that_are_exact():
    trains = torch.zeros(300, 1, dtype=torch.bfloat16)
    trains[257:] = 1
    times = bins_to_times(trains)
    assert (times.dtype, times.item()) == (torch.float32, 257.0)


@pytest.mark.parametrize("times", [torch.tensor([1]), torch.tensor([1.0]).half()])
def test_times_that_are_not_exact_have_no_bins(times):
    with pytest.raises(TypeError, match="times must be float32 or float64"):
        times_to_bins(times, 3)


def test_a_converted_network_inside_another_follows_its_model():
    model = nn.Sequential(nn.Linear(20, 6, bias=False), SingleSpike(init_hidden=True)).double()
    nn.init.uniform_(model[0].weight, 0, 0.5, generator=torch.Generator().manual_seed(0))
    network = SpikeSequential(to_event_driven(model, t_max=T))
    learned, times = InBins(network), spike_times(16, 20)
    before = learned(times)
    model[1].threshold.fill_(2.5)
    assert torch.equal(learned(times), network(times))
    assert not torch.equal(learned(times), before)


def test_a_pool_of_inputs_takes_the_earliest():
    network = SpikeSequential(EarliestSpikePool2d(2), SpikeFlatten(), SpikeLinear(4, 2, IF(), t_max=T))
    on_a_grid(network)
    times = spike_times(8, 1, 4, 4, dtype=torch.float32)
    expected = network(times)
    assert expected.isfinite().any()
    assert torch.equal(InBins(network)(times), expected)


@pytest.mark.parametrize("length", [1, 3, 4])
def test_a_bias_belongs_to_neurons_whatever_axes_come_before(length):
    layer = SpikeLinear(5, 3, IF(), t_max=T, bias=True, init_range=(-0.5, 0.5), dtype=torch.float64)
    nn.init.uniform_(layer.bias, -0.5, 0.5, generator=torch.Generator().manual_seed(0))
    times = spike_times(2, length, 5)
    assert 0 < layer(times).isfinite().double().mean() < 1
    assert torch.equal(InBins(SpikeSequential(layer))(times), layer(times))


class _Late(SpikeLinear):
    def forward(self, times, return_potential=False):
        return super().forward(times + 1, return_potential)


class _LateInBinsToo(_Late):
    def in_bins(self, inputs, gradient=None, shortcut=None):
        return super().in_bins(inputs, gradient, shortcut)


def test_what_bins_would_leave_out_is_refused():
    times = spike_times(2, 4, dtype=torch.float32)
    with pytest.raises(TypeError, match="_Late has a forward of its own: give it a method in_bins too"):
        InBins(SpikeSequential(_Late(4, 3, IF(), t_max=T)))(times)
    InBins(SpikeSequential(_LateInBinsToo(4, 3, IF(), t_max=T)))(times)
    layer = SpikeLinear(4, 3, IF(), t_max=T)
    network = InBins(SpikeSequential(layer))
    network(times)
    layer.register_forward_hook(lambda module, inputs, outputs: outputs + 1)
    with pytest.raises(TypeError, match="SpikeLinear must have no hooks"):
        network(times)
    with pytest.raises(ValueError, match="times must need no gradient, which InBins does not hand back"):
        network(times.requires_grad_())


def test_pruned_weights_are_not_calibrated():
    layer = prune.l1_unstructured(SpikeConv2d(1, 4, 3, IF(100.0), t_max=T), "weight", 0.3)
    with pytest.raises(ValueError, match=r"weights are pruned .*prune\.remove"):
        calibrate([layer], spike_times(2, 1, 5, 5, dtype=torch.float32), 0.5)


def test_under_autocast_a_pool_gets_the_last_neurons_in_full_precision():
    torch.manual_seed(0)
    network = SpikeSequential(SpikeConv2d(2, 16, 3, IF(), t_max=T, padding=1), EarliestSpikePool2d(2))
    times = spike_times(16, 2, 10, 10, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        spikes = InBins(network)(times)
    assert torch.equal(spikes, network(times))
