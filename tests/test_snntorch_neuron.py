"""Options, gradients and modes of `SingleSpike`, against loops written by hand."""

import math
import warnings

import numpy as np
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from snntorch import surrogate
from snntorch.functional import quant
from snntorch_runs import BINS, MODES, SPIKES, STEPS, TIMES, pulses, record
from torch import nn

from ssnn_plugin import IF, decode
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import EarliestSpikePool2d, SpikeConv2d, SpikeFlatten, SpikeLinear
from ssnn_plugin.snntorch import (
    FirstSpikePool2d,
    SingleSpike,
    ce_temporal_loss,
    mse_temporal_loss,
    relative_temporal_loss,
)

INF = math.inf


def test_learnable_options_are_parameters_with_the_gradient_of_the_rule():
    neuron = SingleSpike(
        0.5,
        threshold=torch.tensor([1.0, 1.5, 1.0]),
        learn_beta=True,
        learn_threshold=True,
        graded_spikes_factor=2.0,
        learn_graded_spikes_factor=True,
    )
    assert dict(neuron.named_parameters()).keys() == {"beta", "threshold", "graded_spikes_factor"}
    spk, _ = record(neuron, pulses(TIMES))
    assert spk.unique().tolist() == [0.0, 2.0]
    (spk * (BINS + 1)).sum().backward()
    # Spikes in bins 1, 3; 2, 2, 0, weighed by bin + 1; the silent neuron has none.
    assert neuron.graded_spikes_factor.grad.item() == 2 + 4 + 3 + 3 + 1
    assert neuron.threshold.grad.tolist() == [-2.0 * (2 + 3), -2.0 * (4 + 3), -2.0]
    # V before a bin: 0, 0.125, 0.1875, 0.21875; summed up to the bin of the spike.
    before = np.cumsum([0, 0.125, 0.1875, 0.21875])
    expected = 2 * (2 * before[1] + 4 * before[3] + 2 * 3 * before[2])
    assert neuron.beta.grad.item() == pytest.approx(expected)


SURROGATES = {
    "atan": surrogate.atan(),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=2),
    "straight_through": surrogate.straight_through_estimator(),
    "sigmoid": surrogate.sigmoid(slope=2),
    "custom": surrogate.custom_surrogate(lambda v, grad, spk: grad * (1 + spk) / (1 + v * v)),
}


@pytest.mark.parametrize("spike_grad", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize("sequence", [False, True])
def test_a_surrogate_is_that_of_a_hand_written_loop(spike_grad, sequence):
    draw = torch.Generator().manual_seed(3)
    currents = torch.rand(STEPS, 4, 5, generator=draw, dtype=torch.float64) * 0.9 - 0.1
    weights = torch.rand(2, STEPS, 4, 5, generator=draw, dtype=torch.float64)
    leaves = [
        currents.requires_grad_(),
        torch.tensor(0.8, dtype=torch.float64, requires_grad=True),
        torch.linspace(0.5, 1.5, 5, dtype=torch.float64, requires_grad=True),
    ]

    def by_hand(currents, beta, threshold):
        v, fired, rec = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.bool), []
        for current in currents:
            v = torch.where(fired, v, beta * v + current)
            rec.append((spike_grad(v - threshold) * ~fired, v))
            fired = fired | (v > threshold)
        return map(torch.stack, zip(*rec, strict=True))

    def outcome(spk, mem, leaves):
        loss = (weights[0] * spk + weights[1] * mem).sum()
        return [spk, mem, *torch.autograd.grad(loss, leaves)]

    neuron = SingleSpike(
        leaves[1], leaves[2], spike_grad, learn_beta=True, learn_threshold=True, sequence=sequence
    )
    found = record(neuron, leaves[0])
    assert found[0].sum(0).max() == 1
    assert found[0].sum(0).min() == 0
    expected = outcome(*by_hand(*leaves), leaves)
    ours = outcome(*found, [leaves[0], neuron.beta, neuron.threshold])
    for left, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(left, right, check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sequence", [False, True])
def test_a_surrogate_never_sees_the_potential_of_a_spent_neuron(sequence):
    """exp() of what would have come after the spike overflows."""
    currents = torch.tensor([[[2.0]], [[-20.0]]], requires_grad=True)
    neuron = SingleSpike(spike_grad=surrogate.sigmoid(), sequence=sequence)
    spk, _ = record(neuron, currents)
    spk.sum().backward()
    assert currents.grad.isfinite().all()


@pytest.mark.parametrize("sequence", [False, True])
def test_surrogate_disable(sequence):
    currents = pulses(TIMES)
    neuron = SingleSpike(spike_grad=surrogate.atan(), surrogate_disable=True, sequence=sequence)
    spk, mem = record(neuron, currents)
    assert not spk.requires_grad
    assert torch.equal(spk, SPIKES)
    mem[-1].sum().backward()
    assert currents.grad[0].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("sequence", [False, True])
def test_inhibition_lets_one_fire_per_step(sequence):
    """Of 0 and 1, which cross together, 1 is higher; 0 is spent. Later, 1 inhibits nobody."""
    currents = torch.zeros(3, 2, 3)
    currents[0, 0], currents[1, 0], currents[2, 0] = torch.tensor([[1.5, 2, 0], [1, 1, 1.25], [1, 1, 1]])
    currents[1, 1] = torch.tensor([0.5, 1.5, 2.5])
    currents.requires_grad_()
    neuron = SingleSpike(inhibition=True, sequence=sequence)
    spk, mem = record(neuron, currents)
    assert decode.spikes_to_times(spk).tolist() == [[INF, 0, 1], [INF, INF, 1]]
    assert mem[-1].tolist() == [[1.5, 2, 1.25], [0.5, 1.5, 2.5]]
    spk.sum().backward()
    assert currents.grad[0].tolist() == [[0, 1, 1], [0, 0, 1]]


def test_inhibition_with_a_surrogate_teaches_the_highest_as_in_leaky():
    """Also in a step in which nobody fires."""
    grads = []
    for neuron in (SingleSpike, snn.Leaky):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            lif = neuron(beta=1.0, spike_grad=surrogate.atan(), inhibition=True)
        currents = torch.tensor([[0.2, 0.8, 0.1], [1.2, 0.1, 1.5]], requires_grad=True)
        spk, _ = lif(currents, torch.zeros(2, 3))
        spk.sum().backward()
        grads.append(currents.grad.tolist())
    assert grads[0] == grads[1]


def test_state_quant_is_that_of_leaky_until_the_spike():
    levels = quant.state_quant(num_bits=4, upper_limit=0.2)
    currents = torch.rand(STEPS, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, potential = record(SingleSpike(0.9, state_quant=levels), currents)
    theirs, mem = record(snn.Leaky(0.9, reset_mechanism="none", state_quant=levels), currents)
    first = decode.spikes_to_times(theirs)
    assert torch.equal(ours, decode.times_to_spikes(first, STEPS))
    alive = first >= BINS
    assert torch.equal(potential[alive], mem[alive])
    assert not torch.equal(potential, record(SingleSpike(0.9), currents)[1])
    # What has fired is left alone.
    _, mem = record(SingleSpike(state_quant=lambda v: v / 2), torch.full((3, 1, 1), 4.0))
    assert mem.flatten().tolist() == [2.0] * 3
    # Straight through the rounding.
    (grad,) = torch.autograd.grad(ours.sum(), currents)
    assert torch.equal(grad, (alive & first.isfinite()).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_mechanism": "subtract"}, "reset_mechanism must be 'none', got 'subtract'"),
        ({"reset_delay": True}, "reset_delay must be left out, got True"),
        ({"threshold": -0.5}, "threshold must be at least 0, got -0.5"),
        (
            {"threshold": torch.tensor([1.0, -1.0])},
            r"threshold must be at least 0, got tensor\(\[ 1., -1.\]\)",
        ),
        (
            {"state_quant": quant.state_quant(4), "sequence": True},
            "state_quant must be False with sequence=True",
        ),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        SingleSpike(**options)


def naive(currents, start, threshold, beta, of_spikes, of_mem):
    """Neuron by neuron and bin by bin: what it does, and the gradients of sum(of_spikes S + of_mem V).

    dS/dV = 1 in the bin of the spike (dt/dV = -1); each current up to then counts as +1 in V, whatever its
    age. V of a spent neuron is that at the crossing.
    """
    spikes, mem, of_currents = (np.zeros_like(currents) for _ in range(3))
    of_start, of_threshold, of_beta = (np.zeros_like(start) for _ in range(3))
    for n in np.ndindex(start.shape):
        v, fired, alive = start[n], start[n] > threshold[n], []
        for t in range(len(currents)):
            if not fired:
                alive.append((t, v))
                v = beta[n] * v + currents[t][n]
                fired = spikes[t][n] = v > threshold[n]
            mem[t][n] = v
        of_fired = [spikes[t][n] * of_spikes[t][n] for t in range(len(currents))]
        worth = [of_fired[t] + of_mem[t][n] for t in range(len(currents))]
        for t, before in alive:
            of_currents[t][n] = sum(worth[t:])
            of_beta[n] += before * sum(worth[t:])
        of_start[n], of_threshold[n] = sum(worth), -sum(of_fired)
    return spikes, mem, of_currents, of_start, of_threshold, of_beta


@st.composite
def windows(draw):
    """Currents [T, batch, features], start, threshold, beta, what comes back; all sums are exact."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 2), st.integers(1, 3)))
    eighths = st.integers(-12, 20).map(lambda number: number / 8)
    several = st.sampled_from([(), shape[2:]])

    def parameter(*values):
        return draw(arrays(np.float64, draw(several), elements=st.sampled_from(values)))

    few = st.sampled_from([0.0, 0.0, 1.0, -2.0])
    return (
        draw(arrays(np.float64, shape, elements=eighths, fill=st.nothing())),
        draw(arrays(np.float64, shape[1:], elements=st.sampled_from([0.0, 0.0, 0.75, 2.5]))),
        parameter(0.0, 0.5, 1.0, 2.0),
        parameter(0.0, 0.5, 1.0),
        *(draw(arrays(np.float64, shape, elements=few)) for _ in range(2)),
    )


@settings(deadline=None, max_examples=100)
@given(window=windows())
def test_every_mode_is_the_naive_loop(window):
    everywhere = [np.broadcast_to(value, window[1].shape) for value in window[2:4]]
    expected = naive(*window[:2], *everywhere, *window[4:])
    names = ["spk", "mem", "currents", "start", "threshold", "beta"]
    for mode, (call, options) in MODES.items():
        currents, start, threshold, beta, *grads = map(torch.from_numpy, window)
        learned = {"learn_beta": True, "learn_threshold": True, "silent_gradient": False}
        neuron = SingleSpike(beta, threshold, **learned, **options)
        leaves = [currents.requires_grad_(), start.requires_grad_(), neuron.threshold, neuron.beta]
        spk, mem = call(neuron, currents, start)
        assert (spk.sum(0) <= 1).all()
        found = [spk, mem, *torch.autograd.grad([spk, mem], leaves, grads)]
        # At the ends of 0 ... 1 it is the clamp's gradient that decides.
        found[-1] = found[-1].where(
            (beta > 0) & (beta < 1), torch.from_numpy(expected[-1]).sum_to_size(beta.shape)
        )
        for name, ours, theirs in zip(names, found, expected, strict=True):
            wanted = torch.from_numpy(theirs).sum_to_size(ours.shape)
            assert torch.equal(ours, wanted), f"{mode}, {name}: {ours} instead of {wanted}"


def test_a_beta_of_1_learns():
    """It is the default, and the end of what `clamp(0, 1)` lets through."""
    neuron = SingleSpike(learn_beta=True)
    _, mem = record(neuron, torch.full((3, 1, 1), 0.25))
    mem[-1].sum().backward()
    assert neuron.beta.grad.item() == 0.25 + 0.5


@pytest.mark.parametrize("sequence", [False, True])
def test_cases_checked_by_hand(sequence):
    """At threshold is not above it; after the spike V stays, whatever comes."""
    currents = torch.tensor([[0.5, 2.0, 0.5], [0.5, -9.0, -0.25], [0.25, 9.0, 0.5]]).unsqueeze(1)
    neuron = SingleSpike(sequence=sequence)
    spk, mem = record(neuron, currents)
    assert spk.squeeze(1).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert mem.squeeze(1).tolist() == [[0.5, 2, 0.5], [1, 2, 0.25], [1.25, 2, 0.75]]


@pytest.mark.parametrize(("beta", "effective"), [(1.5, 1.0), (-0.5, 0.0)])
def test_beta_is_clamped_as_in_leaky(beta, effective):
    currents = torch.full((3, 1, 1), 0.25)
    for neuron in (SingleSpike, snn.Leaky):
        found, expected = (record(neuron(beta=value), currents) for value in (beta, effective))
        torch.testing.assert_close(found, expected)


def test_sequence_mode_takes_the_mem_that_it_returned():
    """Else a neuron that has fired would fire again in the next chunk, in silence about it."""
    neuron = SingleSpike(sequence=True)
    spk, mem = neuron(torch.full((2, 1, 1), 2.0))
    assert spk.sum() == 1
    spk, _ = neuron(torch.full((2, 1, 1), 2.0), mem)
    assert spk.sum() == 0


@pytest.mark.parametrize("recorded", [None, "last", "all"])
@pytest.mark.parametrize(
    "criterion",
    [ce_temporal_loss(temperature=0.3), mse_temporal_loss(on_target=1), relative_temporal_loss(gamma=2)],
    ids=lambda criterion: type(criterion).__name__,
)
def test_the_latency_rule_in_trains(criterion, recorded):
    """dL/dI = -dL/dt up to the spike; a silent neuron has none, or one through its potential."""
    currents, labels = pulses(TIMES, dtype=torch.float64), torch.tensor([2, 1])
    spk, mem = record(SingleSpike(), currents)
    criterion(spk, labels, {None: None, "last": mem[-1], "all": mem}[recorded]).backward()
    times = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    criterion._loss(STEPS)(times, labels).backward()
    assert times.grad[0, 2] > 0
    learns = times.isfinite() if recorded is None else torch.ones_like(times, dtype=torch.bool)
    torch.testing.assert_close(currents.grad, torch.where((times >= BINS) & learns, -times.grad, 0.0))


@pytest.mark.parametrize("silent_gradient", [False, True])
@pytest.mark.parametrize("sequence", [False, True])
def test_a_network_on_trains_is_the_one_on_times(silent_gradient, sequence):
    """Convolution, pool and linear layer with a leak: times, loss, and all gradients."""
    steps, labels, draw = 12, torch.tensor([1, 0, 2]), torch.Generator().manual_seed(5)
    times = torch.randint(0, steps + 4, (3, 2, 6, 6), generator=draw).double()
    times = times.masked_fill(times >= steps, INF).requires_grad_()
    neuron = IF(1.0, beta=0.875)
    options = {"t_max": steps, "silent_gradient": silent_gradient, "dtype": torch.float64}
    on_times = nn.Sequential(
        SpikeConv2d(2, 4, 3, neuron, bias=True, **options),
        EarliestSpikePool2d(2),
        SpikeFlatten(),
        SpikeLinear(16, 3, neuron, **options),
    )
    with torch.no_grad():
        on_times[0].weight.copy_(torch.rand(4, 2, 3, 3, generator=draw) * 0.5 - 0.15)
        on_times[0].bias.copy_(torch.rand(4, generator=draw) * 0.1)
        on_times[3].weight.copy_(torch.rand(3, 16, generator=draw) * 0.4 - 0.15)
    out = on_times(times)
    loss = TemporalCrossEntropyLoss(steps, 0.2)(out, labels)
    leaves = [times, *on_times.parameters()]
    expected = [out, loss, *torch.autograd.grad(loss, leaves)]
    assert out.isinf().any()
    assert out.isfinite().any()

    spikes = decode.times_to_spikes(times, steps)
    mode = {"init_hidden": not sequence, "output": True, "sequence": sequence}
    hidden, last = (SingleSpike(0.875, silent_gradient=False, **mode) for _ in range(2))
    pool = FirstSpikePool2d(2, **mode)
    conv, linear = on_times[0], on_times[3]

    def currents(x):
        return nn.functional.conv2d(x, conv.weight, conv.bias)

    if sequence:
        spk, _ = hidden(currents(spikes.flatten(0, 1)).unflatten(0, (steps, 3)))
        spk, _ = last(pool(spk)[0].flatten(2) @ linear.weight.T)
        mem_last = last.mem
    else:
        rec = [last(pool(hidden(currents(x))[0])[0].flatten(1) @ linear.weight.T) for x in spikes]
        spk, mem_last = torch.stack([spk for spk, _ in rec]), rec[-1][1]
    found = ce_temporal_loss(0.2)(spk, labels, mem_last if silent_gradient else None)
    found = [decode.spikes_to_times(spk), found, *torch.autograd.grad(found, leaves)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(grad.any() for grad in found[2:])


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="threshold must be at least 0, got nan"):
        SingleSpike(threshold=math.nan)
