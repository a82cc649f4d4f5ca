"""What silent neurons learn from in steps, with and without their potential, as on spike times."""

import norse.torch as norse
import pytest
import snntorch.functional as SF
import torch
from torch import nn

from ssnn_plugin import NoTimeMode, functional, to_event_driven, to_step_mode
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.functional import single_spike_sequence, single_spike_step
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell, SingleSpikeIFParameters
from ssnn_plugin.snntorch import SingleSpike, ce_temporal_loss, reset

T = 12
LISTENING = SingleSpikeIFParameters(silent_gradient=True)


def _times(*shape):
    times = torch.randint(0, 2 * T, shape, generator=torch.Generator().manual_seed(0)).double()
    return times.masked_fill(times >= T, torch.inf)


def _weights(*modules):
    generator = torch.Generator().manual_seed(1)
    for module in modules:
        nn.init.normal_(module.weight, 0.3, 0.4, generator=generator)
    return modules


def _snntorch(sequence, **options):
    hidden, output = _weights(nn.Linear(9, 8, bias=False).double(), nn.Linear(8, 6, bias=False).double())
    neurons = (
        SingleSpike(init_hidden=True, sequence=sequence),
        SingleSpike(init_hidden=True, output=True, sequence=sequence, **options),
    )
    return nn.Sequential(hidden, neurons[0], output, neurons[1])


def _norse(cells, p=LISTENING):
    hidden, output = _weights(nn.Linear(9, 8, bias=False).double(), nn.Linear(8, 6, bias=False).double())
    first, last = (
        (SingleSpikeIFCell(), SingleSpikeIFCell(p)) if cells else (SingleSpikeIF(), SingleSpikeIF(p))
    )
    return norse.SequentialState(hidden, first, output, last)


def _spikes(model, trains):
    if isinstance(model, norse.SequentialState):
        if isinstance(model[1], SingleSpikeIF):
            return model(trains)[0]
        state, spikes = None, []
        for step in trains:
            out, state = model(step, state)
            spikes.append(out)
        return torch.stack(spikes)
    reset(model)
    return model(trains)[0] if model[1].sequence else torch.stack([model(step)[0] for step in trains])


MODELS = {
    "snntorch": lambda: _snntorch(False),
    "snntorch, window": lambda: _snntorch(True),
    "norse": lambda: _norse(False),
    "norse, cells": lambda: _norse(True),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("loss", ["ours", "snnTorch's", "snnTorch's mse"])
def test_losses_on_first_spikes_reach_silent_outputs_as_on_times(build, loss):
    """Without the potential: the loss hands a silent neuron's gradient to the last bin."""
    model, times, labels = build(), _times(7, 9), torch.arange(7) % 6
    spikes = _spikes(model, times_to_spikes(times, T))
    outputs = to_event_driven(model, t_max=T)(times)
    assert torch.equal(outputs, spikes_to_times(spikes))
    assert 0.1 < outputs.isfinite().double().mean() < 0.9
    if loss == "ours":
        in_steps, on_times = ce_temporal_loss()(spikes, labels), TemporalCrossEntropyLoss(T)(outputs, labels)
    else:
        losses = {
            "snnTorch's": SF.ce_temporal_loss(),
            "snnTorch's mse": SF.mse_temporal_loss(on_target=2, off_target=11),
        }

        def host(spikes, labels):  # its targets are of single precision, as torch 2.9 needs both to be
            return losses[loss](spikes.float(), labels)

        in_steps, on_times = (
            host(spikes, labels),
            host(times_to_spikes(outputs, T, silent_gradient=True), labels),
        )
    parameters = list(model.parameters())
    expected = torch.autograd.grad(in_steps, parameters)
    for found, wanted in zip(torch.autograd.grad(on_times, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    deaf = to_event_driven(model, t_max=T, silent_gradient=False)(times)
    on_times = (
        TemporalCrossEntropyLoss(T)(deaf, labels)
        if loss == "ours"
        else host(times_to_spikes(deaf, T, silent_gradient=True), labels)
    )
    assert not torch.allclose(torch.autograd.grad(on_times, parameters)[1], expected[1])


@pytest.mark.parametrize("silent_gradient", [False, True])
@pytest.mark.parametrize("window", [False, True])
def test_bins_before_the_spike_hand_their_gradient_to_the_potential(silent_gradient, window):
    """Against the rule, bin by bin: dS/dV = 1 at the spike, and before it if the neuron listens."""
    generator = torch.Generator().manual_seed(2)
    currents = torch.randn(T, 5, generator=generator, dtype=torch.float64).mul(0.5).requires_grad_()
    weight = torch.randn(T, 5, generator=generator, dtype=torch.float64)
    if window:
        spikes, _ = single_spike_sequence(currents, silent_gradient=silent_gradient)
    else:
        mem, rows = None, []
        for current in currents:
            spk, mem = single_spike_step(current, mem, silent_gradient=silent_gradient)
            rows.append(spk)
        spikes = torch.stack(rows)
    (spikes * weight).sum().backward()
    expected = torch.zeros(T, 5, dtype=torch.float64)
    for neuron in range(5):
        fired = spikes[:, neuron].nonzero().flatten().tolist()
        last = fired[0] if fired else T - 1
        for at in range(T):
            counts = at == last and fired if not silent_gradient else at <= last
            if counts:
                expected[: at + 1, neuron] += weight[at, neuron]
    assert 0 < spikes.sum() < 5
    torch.testing.assert_close(currents.grad, expected)


def test_the_last_neuron_of_snntorch_listens_by_default():
    assert SingleSpike(init_hidden=True, output=True).silent_gradient
    assert not SingleSpike(init_hidden=True).silent_gradient
    assert not SingleSpike(output=True).silent_gradient
    assert SingleSpike(silent_gradient=True).silent_gradient
    assert not SingleSpike(init_hidden=True, output=True, silent_gradient=False).silent_gradient
    assert not SingleSpike(init_hidden=True, output=True, spike_grad=torch.sigmoid).silent_gradient
    for options in ({"spike_grad": torch.sigmoid}, {"surrogate_disable": True}):
        with pytest.raises(ValueError, match="silent_gradient must be left out with"):
            SingleSpike(silent_gradient=True, **options)
    with pytest.raises(ValueError, match="silent_gradient must be False with method 'super'"):
        SingleSpikeIF(SingleSpikeIFParameters(method="super", silent_gradient=True))


@pytest.mark.parametrize("listens", [False, True])
def test_only_a_neuron_that_listens_gets_something_in_silence(listens):
    model, times = _snntorch(False, silent_gradient=listens), _times(7, 9)
    times = spikes_to_times(_spikes(model, times_to_spikes(times, T)))
    silent = times.isinf()
    assert silent.any()
    loss = functional.fill_silent(times, T)[silent].sum()
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert all(bool(grad.any()) is listens for grad in found)


def test_hidden_neurons_that_listen_are_refused_on_times():
    hidden = SingleSpike(init_hidden=True, silent_gradient=True)
    model = nn.Sequential(
        nn.Linear(3, 3), hidden, nn.Linear(3, 2), SingleSpike(init_hidden=True, output=True)
    )
    message = r"1 \(SingleSpike\) .*silent_gradient.* only the last neurons"
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(model, t_max=T)


@pytest.mark.parametrize("host", ["snntorch", "norse"])
@pytest.mark.parametrize("silent_gradient", [False, True])
def test_what_silent_outputs_learn_from_survives_the_way_to_steps(host, silent_gradient):
    network = to_event_driven(_snntorch(False), t_max=T, silent_gradient=silent_gradient)
    model = to_step_mode(network, host)
    neuron = model[3]
    assert (neuron.silent_gradient if host == "snntorch" else neuron.p.silent_gradient) is silent_gradient
