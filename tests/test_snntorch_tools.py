"""snnTorch's losses, plots and backprop with `SingleSpike`, and the defects of 1.0.0 that our docs name."""

import copy
import math
import pickle
import warnings

import matplotlib
import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from snntorch import utils
from snntorch.functional import probe
from snntorch_runs import BINS, LABELS, SPIKES, STEPS, TIMES, Net, inputs, pulses, record, run, trains
from torch import nn
from torch.nn.functional import cross_entropy

from ssnn_plugin.snntorch import (
    FirstSpikePool2d,
    SingleSpike,
    accuracy_temporal,
    ce_temporal_loss,
    mse_temporal_loss,
    relative_temporal_loss,
    reset,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from snntorch import backprop

INF = math.inf
SHADOW = torch.tensor(TIMES).clamp(max=STEPS - 1)
WANTED = torch.where(nn.functional.one_hot(LABELS, 3) == 1, 1.0, 4.0)


def _mse(found, wanted):
    return (found - wanted).square().mean()


THEIRS = {
    "ce_temporal_loss": (SF.ce_temporal_loss(), lambda: cross_entropy(-SHADOW, LABELS)),
    "reciprocal": (SF.ce_temporal_loss("reciprocal"), lambda: cross_entropy(1 / (SHADOW + 1), LABELS)),
    "mse_temporal_loss": (SF.mse_temporal_loss(False, 1, 4), lambda: _mse(SHADOW, WANTED) / STEPS**2),
    "tolerance": (
        SF.mse_temporal_loss(on_target=1, off_target=4, tolerance=2),
        lambda: (SHADOW - WANTED).square()[(SHADOW - WANTED).abs() >= 2].sum() / 6 / STEPS**2,
    ),
    "ce_rate_loss": (SF.ce_rate_loss(), lambda: sum(cross_entropy(spk, LABELS) for spk in SPIKES) / STEPS),
    "ce_count_loss": (SF.ce_count_loss(), lambda: cross_entropy(SPIKES.sum(0), LABELS)),
    "mse_count_loss": (
        SF.mse_count_loss(0.5, 0.2),
        lambda: _mse(SPIKES.sum(0), torch.where(WANTED == 1, 3.0, 1.0)) / STEPS,
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_their_losses_on_spikes(name):
    """The value by hand; an error reaches each current up to the spike, equally, and no silent neuron."""
    criterion, expected = THEIRS[name]
    currents = pulses(TIMES)
    spk, _ = record(SingleSpike(), currents)
    loss = criterion(spk, LABELS)
    torch.testing.assert_close(loss.squeeze(), expected())
    loss.sum().backward()
    first = currents.grad[0]
    causal = torch.tensor(TIMES) >= BINS
    fired = torch.tensor(TIMES).isfinite()
    torch.testing.assert_close(currents.grad, torch.where(causal & fired, first, 0.0))
    assert (first != 0).logical_and(fired).any()


@pytest.mark.parametrize("criterion", [SF.ce_max_membrane_loss(), SF.mse_membrane_loss()])
def test_their_losses_on_potentials(criterion):
    """Also silent neurons learn from them."""
    currents = pulses(TIMES)
    _, mem = record(SingleSpike(), currents)
    loss = criterion(mem, LABELS)
    hot = nn.functional.one_hot(LABELS, 3).float()
    crossing = torch.tensor(TIMES) * 0.125 + 2
    by_hand = torch.where(torch.tensor(TIMES) > BINS, (BINS + 1) * 0.125, crossing)
    torch.testing.assert_close(mem.detach(), by_hand)
    expected = {
        "ce_max_membrane_loss": cross_entropy(by_hand[-1], LABELS),
        "mse_membrane_loss": sum(_mse(step, hot) for step in by_hand) / STEPS,
    }
    torch.testing.assert_close(loss.squeeze(), expected[criterion.__name__])
    loss.sum().backward()
    assert currents.grad[0].ne(0).all()


def test_their_accuracies():
    spk, _ = record(SingleSpike(), pulses([[1.0, 3.0, INF], [2.0, 1.0, 4.0], [INF, INF, 4.0]]))
    labels = torch.tensor([0, 2, 2])
    assert SF.accuracy_temporal(spk, labels) == pytest.approx(2 / 3)
    # Everything that fires counts once, so that the rate decides only where a single class fired.
    assert SF.accuracy_rate(spk, torch.tensor([0, 0, 2])) == 1
    assert SF.accuracy_rate(spk, torch.tensor([1, 1, 1])) == 0


def test_their_l1_regularisation():
    currents = pulses(TIMES)
    spk, _ = record(SingleSpike(), currents)
    penalty = SF.l1_rate_sparsity(0.25)(spk)
    assert penalty.item() == 0.25 * 5
    penalty.backward()
    causal = torch.tensor(TIMES) >= BINS
    assert torch.equal(currents.grad, 0.25 * (causal & torch.tensor(TIMES).isfinite()))


def test_their_plots():
    matplotlib.use("Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    splt = pytest.importorskip("snntorch.spikeplot")
    spk, mem = (rec[:, 0].detach() for rec in record(SingleSpike(), pulses(TIMES)))
    figure, axis = plt.subplots()
    points = splt.raster(spk, axis, s=1.5, c="black")
    assert points.get_offsets().tolist() == [[1, 0], [3, 1]]
    figure = plt.figure()
    splt.traces(mem, spk=spk, dim=(1, 3), spk_height=5)
    drawn = np.stack([axis.lines[0].get_ydata() for axis in figure.axes], 1)
    np.testing.assert_array_equal(drawn, mem + 5 * spk)
    for animate in (False, True):
        figure, axis = plt.subplots()
        frames = splt.spike_count(spk, figure, axis, ["a", "b", "c"], animate=animate)
        if animate:
            frames._draw_was_started = True
        else:
            assert axis.lines[0].get_xdata().tolist() == [1, 1, 0]
    plt.close("all")


def test_their_monitors():
    net, x = Net().sequential(), inputs()
    monitors = [
        probe.InputMonitor(net, snn.Leaky),
        probe.OutputMonitor(net, SingleSpike),
        probe.AttributeMonitor("mem", False, net, SingleSpike),
        probe.GradOutputMonitor(net, SingleSpike),
        probe.GradInputMonitor(net, SingleSpike),
    ]
    spk, mem = run(net, x)
    ce_temporal_loss()(spk, torch.tensor([0, 1, 2, 0])).backward()
    assert all(monitor.monitored_layers == ["1", "3"] for monitor in monitors)
    currents, outputs, potentials, _, of_currents = (monitor["3"] for monitor in monitors)
    assert torch.equal(torch.stack([spk for spk, _ in outputs]), spk)
    assert torch.equal(torch.stack(potentials), mem)
    assert torch.equal(torch.stack(monitors[1]["1"])[0] @ net[2].weight.T, currents[0])
    # From the last step back to the first; an error reaches all currents up to the spike.
    assert of_currents[-1].any()
    assert [len(monitor.records) for monitor in monitors] == [2 * STEPS] * 5


CRITERIA = [
    ce_temporal_loss(),
    mse_temporal_loss(on_target=1),
    relative_temporal_loss(gamma=2),
    *(criterion for criterion, _ in THEIRS.values()),
    SF.ce_max_membrane_loss(),
    SF.mse_membrane_loss(),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
@pytest.mark.parametrize("data", ["time first", "batch first", "static"])
def test_bptt_is_the_hand_written_loop(criterion, data):
    """Two batches, so that the states must have been reset in between."""
    regularization = SF.l1_rate_sparsity(0.01)
    nets = [Net().sequential() for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    options, batches = {}, [(inputs(seed=seed), torch.tensor([0, 1, 2, 0])) for seed in (1, 2)]
    loader = batches
    if data == "batch first":
        options, loader = {"time_first": False}, [(x.transpose(0, 1), labels) for x, labels in batches]
    elif data == "static":
        batches = [(x[:1].expand(STEPS, -1, -1), labels) for x, labels in batches]
        options, loader = {"time_var": False, "num_steps": STEPS}, [(x[0], labels) for x, labels in batches]
    found = backprop.BPTT(nets[0], loader, optimizers[0], criterion, regularization=regularization, **options)
    losses = []
    for x, labels in batches:
        reset(nets[1])
        spk, mem = run(nets[1], x)
        loss = criterion(mem if "membrane" in criterion.__name__ else spk, labels) + 0.01 * spk.sum()
        optimizers[1].zero_grad()
        loss.sum().backward()
        optimizers[1].step()
        losses.append(loss)
    torch.testing.assert_close(found.squeeze(), sum(losses).squeeze() / 2)
    for ours, theirs, start in zip(*(net.parameters() for net in (*nets, Net().sequential())), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, start)


def test_bptt_takes_a_net_with_a_pool():
    torch.manual_seed(0)
    hidden, last = (SingleSpike(init_hidden=True, output=output) for output in (False, True))
    pool = FirstSpikePool2d(2, init_hidden=True)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), hidden, pool, nn.Flatten(), nn.Linear(8, 3), last)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0, 0.3)
    before = net[0].weight.clone()
    batch = torch.rand(STEPS, 4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    loss = backprop.BPTT(net, [batch] * 2, torch.optim.SGD(net.parameters(), 0.1), ce_temporal_loss())
    assert loss.isfinite()
    assert not torch.equal(net[0].weight, before)


def test_our_losses_have_names_that_backprop_knows():
    known = {"ce_temporal_loss", "mse_temporal_loss"}
    for criterion in (ce_temporal_loss(), mse_temporal_loss(), relative_temporal_loss(1)):
        assert criterion.__name__ in known
    assert {loss.__name__ for loss in (SF.ce_temporal_loss(), SF.mse_temporal_loss())} == known


@pytest.mark.host_defect
def test_host_utils_reset_ignores_nested_modules():
    """https://github.com/jeshraghian/snntorch/pull/414, merged after 1.0.0; also with our neurons."""
    for neuron in (snn.Leaky, SingleSpike):
        net = nn.Sequential(nn.Sequential(neuron(beta=0.9, init_hidden=True)))
        net(torch.full((1, 2), 0.5))
        utils.reset(net)
        assert net[0][0].mem.all()


@pytest.mark.host_defect
def test_host_soft_reset_without_delay_misses_spikes():
    """V = 2.5 leaves 1.5, which would spike. Close: https://github.com/jeshraghian/snntorch/issues/364."""
    neuron = snn.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract", reset_delay=False)
    first, v = neuron(torch.tensor([2.5]), torch.zeros(1))
    assert (first.item(), v.item()) == (1.0, 1.5)
    second, v = neuron(torch.zeros(1), v)
    assert (second.item(), v.item()) == (0.0, 1.5)


@pytest.mark.host_defect
def test_host_utils_reset_reaches_unrelated_nets():
    """https://github.com/jeshraghian/snntorch/issues/438"""
    net, other = (nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True)) for _ in range(2))
    other(torch.full((1, 2), 0.5))
    utils.reset(net)
    assert not other[0].mem.any()


@pytest.mark.host_defect
def test_host_deepcopies_are_not_registered():
    """So that `utils.reset` does nothing to them; copies of ours are. No thread upstream that we know of."""
    net = copy.deepcopy(nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True)))
    net(torch.full((1, 2), 0.5))
    utils.reset(net)
    assert net[0].mem.all()
    assert all(neuron is not net[0] for neuron in snn.SpikingNeuron.instances)


@pytest.mark.host_defect
def test_host_mse_temporal_loss_wants_every_class_to_fire_at_once():
    """https://github.com/jeshraghian/snntorch/pull/361"""
    _, targets = SF.mse_temporal_loss().spk_time_fn(SPIKES, LABELS)
    assert not targets.any()
    assert SF.mse_temporal_loss()(trains([[0.0, 0.0, 0.0]]), LABELS[:1]) == 0


@pytest.mark.host_defect
def test_host_accuracy_counts_silence_as_class_0():
    """No thread upstream that we know of."""
    silence = torch.zeros(STEPS, 1, 3)
    assert SF.accuracy_temporal(silence, torch.tensor([0])) == 1
    assert accuracy_temporal(silence, torch.tensor([0])) == 0
    # A spike in the last step loses to a silent class of a lower number.
    assert SF.accuracy_temporal(trains([[INF, 5.0]]).detach(), torch.tensor([1])) == 0
    assert accuracy_temporal(trains([[INF, 5.0]]), torch.tensor([1])) == 1


@pytest.mark.host_defect
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_host_spikes_are_float32(dtype):
    """No thread upstream that we know of."""
    spk, _ = snn.Leaky(beta=0.9)(torch.ones(1, 2, dtype=dtype))
    assert spk.dtype == torch.float32


@pytest.mark.host_defect
def test_host_neurons_cannot_be_pickled():
    """https://github.com/jeshraghian/snntorch/issues/420"""
    with pytest.raises((AttributeError, pickle.PicklingError), match="atan"):
        pickle.dumps(snn.Leaky(beta=0.9))


@pytest.mark.host_defect
def test_host_tbptt_fails_on_data_with_a_time_axis():
    """https://github.com/jeshraghian/snntorch/issues/191, for any whole K; BPTT takes another way."""
    net = nn.Sequential(nn.Linear(5, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(UnboundLocalError, match="K_flag"):
        backprop.TBPTT(net, [(inputs(), torch.tensor([0, 1, 2, 0]))], optimizer, SF.ce_count_loss(), K=2)
