"""snnTorch's own usage patterns with `SingleSpike`: loops, containers, resets."""

import copy
import inspect
import pickle

import pytest
import snntorch as snn
import torch
from snntorch import utils
from snntorch_runs import STEPS, Net, inputs, run
from torch import nn

from ssnn_plugin.snntorch import (
    FirstSpikePool2d,
    SingleSpike,
    accuracy_temporal,
    ce_temporal_loss,
    latency,
    reset,
)


@pytest.mark.parametrize("way", ["init_leaky", "reset_mem", "sequential", "sequence"])
def test_every_way_to_write_a_network_is_the_same_network(way):
    """Spikes, potentials and gradients; the second call shows that nothing is left of the first."""
    x, labels = inputs(), torch.tensor([0, 1, 2, 0])
    net = Net("reset_mem" if way == "reset_mem" else "init_leaky")

    def call():
        if way == "sequential":
            hidden = net.sequential()
            utils.reset(hidden)
            return run(hidden, x)
        return net.sequential(sequence=True)(x) if way == "sequence" else net(x)

    reference = Net()
    spk, mem = reference(x)
    (ce_temporal_loss()(spk, labels) + mem.mean()).backward()
    assert spk.sum(0).max() == 1
    for _ in range(2):
        net.zero_grad()
        found = call()
        torch.testing.assert_close(found, (spk, mem))
        (ce_temporal_loss()(found[0], labels) + found[1].mean()).backward()
        for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
            assert ours.grad.any()


def test_the_tutorial_loop_learns():
    """Which of three groups of inputs comes first; silent outputs learn through their potential."""
    first = torch.arange(5) % 3 == torch.arange(3).unsqueeze(1)
    x, labels = latency(torch.where(first, 1.0, 0.4), STEPS), torch.tensor([1, 2, 0])
    net, criterion, losses = Net(), ce_temporal_loss(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        spk, mem = net(x)
        losses.append(criterion(spk, labels, mem))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert accuracy_temporal(spk, labels) == 1


def test_the_neuron_takes_what_leaky_takes():
    """Same arguments in the same order, so that positional ones keep their meaning."""
    ours, theirs = (inspect.signature(neuron).parameters for neuron in (SingleSpike, snn.Leaky))
    assert list(ours)[: len(theirs)] == list(theirs)
    spk, mem = SingleSpike()(torch.full((1,), 1.5), torch.zeros(1))
    assert (spk.tolist(), mem.tolist()) == ([1.0], [1.5])


@pytest.mark.parametrize("init_hidden", [False, True])
@pytest.mark.parametrize("output", [False, True])
def test_what_is_returned_is_what_leaky_returns(init_hidden, output):
    options = {"init_hidden": init_hidden, "output": output}
    ours, theirs = (neuron(beta=0.5, **options)(torch.ones(2, 3)) for neuron in (SingleSpike, snn.Leaky))
    assert type(ours) is type(theirs)
    torch.testing.assert_close(ours, theirs)


def test_hidden_state_goes_on_and_starts_anew_with_another_batch_size():
    neuron = SingleSpike(init_hidden=True, output=True)
    assert [neuron(torch.full((2, 1), 0.7))[0].sum().item() for _ in range(3)] == [0, 2, 0]
    spk, mem = neuron(torch.full((3, 1), 0.7))
    assert (spk.any().item(), mem.shape) == (False, (3, 1))
    torch.testing.assert_close(mem, torch.full((3, 1), 0.7))
    with pytest.raises(TypeError, match="mem must not be passed with init_hidden=True"):
        neuron(torch.ones(3, 1), mem)


def test_a_mem_of_another_shape_starts_anew_as_in_leaky():
    spk, mem = SingleSpike()(torch.full((2, 1), 0.7), torch.full((3, 1), 5.0))
    assert (spk.any().item(), mem.tolist()) == (False, torch.full((2, 1), 0.7).tolist())


def _each(net):
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()


@pytest.mark.parametrize("restart", [utils.reset, reset, _each])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), lambda net: net]
)
def test_a_net_replays_after_a_reset(restart, copied):
    """Originals and copies, which `utils.reset` would not reach if they were not registered."""
    net = copied(Net().sequential())
    first = run(net, inputs())
    assert first[0].any()
    assert not torch.equal(run(net, inputs())[0], first[0])
    restart(net)
    torch.testing.assert_close(run(net, inputs()), first, rtol=0, atol=0)
    restart(net)
    assert not any(module.mem.requires_grad or module.mem.any() for module in (net[1], net[3]))


@pytest.mark.parametrize("sequence", [False, True])
def test_hidden_states_are_detached_in_place(sequence):
    """For truncated backpropagation, as `backprop` does it: the window goes on, its gradient does not."""
    net = Net().sequential(sequence=sequence)
    x = inputs()
    call = net if sequence else lambda part: run(net, part)
    whole = call(x)[0]
    reset(net)
    first = call(x[:3])[0]
    snn.Leaky.detach_hidden()
    assert not any(neuron.mem.requires_grad for neuron in (net[1], net[3]))
    assert torch.equal(torch.cat([first, call(x[3:])[0]]), whole)


def test_reset_reaches_nested_neurons_of_any_kind_and_no_other_net():
    others = [snn.Synaptic(0.9, 0.8, init_hidden=True), FirstSpikePool2d(1, init_hidden=True)]
    net, other = nn.Sequential(Net().sequential(nested=True), nn.ModuleList(others)), Net().sequential()
    for _ in range(2):
        first = run(net[0], inputs())
        others[0](torch.ones(1, 2))
        others[1](torch.ones(1, 1, 2, 2))
        run(other, inputs())
        kept = other[1].mem
        reset(net)
        assert not any(
            buffer.any() for name, buffer in net.named_buffers() if name.split(".")[-1] in ("mem", "syn")
        )
        assert other[1].mem is kept
    assert kept.any()
    torch.testing.assert_close(run(net[0], inputs()), first, rtol=0, atol=0)


def test_hidden_states_are_reset_after_a_vmap():
    net = nn.Sequential(nn.Linear(6, 4), SingleSpike(init_hidden=True))
    trains = torch.rand(5, 3, 2, 6)

    def window(train):
        reset(net)
        return torch.stack([net(step) for step in train])

    spikes = torch.vmap(window)(trains)
    reset(net)
    assert torch.equal(torch.stack([net(step) for step in trains[0]]), spikes[0])
