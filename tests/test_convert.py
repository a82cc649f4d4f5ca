"""One network as a model of either host, in steps or over the window, and on spike times."""

import math
from functools import partial

import norse.torch as norse
import pytest
import torch
from front_ends import HIDDEN, alive, first_spikes_of, run_trains, some_times
from torch import nn

from ssnn_plugin import IF, to_event_driven, to_step_mode
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.functional import drop_spikes
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import EarliestSpikePool2d, SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential
from ssnn_plugin.norse import FirstSpikePool2d as NorsePool
from ssnn_plugin.norse import FirstSpikePool2dCell, SingleSpikeIF, SingleSpikeIFCell, SingleSpikeIFParameters
from ssnn_plugin.snntorch import FirstSpikePool2d

INF = math.inf


def _modules(parts, neuron, pool, other):
    """The modules of a front end for torch modules, neurons (IF) and first-spike pools (on times)."""
    last = max(i for i, part in enumerate(parts) if isinstance(part, IF))
    for i, part in enumerate(parts):
        if isinstance(part, IF):
            yield neuron(part, i == last)
        else:
            yield pool(part) if isinstance(part, EarliestSpikePool2d) else other(part)


def _window(pool):
    return pool.kernel_size, pool.stride, pool.padding


def _snntorch_steps(parts):
    return nn.Sequential(
        *_modules(
            parts,
            lambda n, last: HIDDEN(n.beta, n.threshold, output=last, silent_gradient=False),
            lambda pool: FirstSpikePool2d(*_window(pool), init_hidden=True),
            lambda module: module,
        )
    )


def _snntorch_sequence(parts):
    return nn.Sequential(
        *_modules(
            parts,
            lambda n, last: HIDDEN(n.beta, n.threshold, output=last, silent_gradient=False, sequence=True),
            lambda pool: FirstSpikePool2d(*_window(pool), init_hidden=True, sequence=True),
            norse.Lift,
        )
    )


def _norse_window(parts):
    return norse.SequentialState(
        *_modules(
            parts,
            lambda n, last: SingleSpikeIF(SingleSpikeIFParameters(n.threshold, 1000 * (1 - n.beta))),
            lambda pool: NorsePool(*_window(pool)),
            norse.Lift,
        )
    )


FRONT_ENDS = {"steps": _snntorch_steps, "sequence": _snntorch_sequence, "norse": _norse_window}


def _labels(outputs):
    shape = len(outputs), *outputs.shape[2:]
    return torch.randint(0, outputs.shape[1], shape, generator=torch.Generator().manual_seed(9))


def _same_in_every_front_end(parts, shape, t_max, front_ends=FRONT_ENDS, firing=(0.2, 0.999)):
    """Times, potentials and gradients, with and without those of silent neurons; returns the network."""
    times = some_times(shape, t_max)
    parameters = list(nn.Sequential(*(part for part in parts if isinstance(part, nn.Module))).parameters())
    loss = TemporalCrossEntropyLoss(t_max)

    def gradients(outputs):
        found = torch.autograd.grad(loss(outputs, _labels(outputs)), parameters, retain_graph=True)
        assert all(grad.abs().max() > 1e-6 for grad in found)
        return found

    networks = []
    for build in front_ends.values():
        model = build(parts).eval()
        spikes, potential = run_trains(model, times_to_spikes(times, t_max))
        for silent_gradient in (False, True):
            network = to_event_driven(model, t_max=t_max, silent_gradient=silent_gradient)
            outputs, at_crossing = network(times, return_potential=True)
            expected = spikes_to_times(spikes, potential if silent_gradient else None)
            assert torch.equal(outputs, expected)
            torch.testing.assert_close(at_crossing, potential, rtol=0, atol=1e-9)
            for ours, theirs in zip(gradients(outputs), gradients(expected), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        assert (spikes.sum(0) <= 1).all()
        networks.append(network)
    assert firing[0] < outputs.isfinite().double().mean() < firing[1]
    for network in networks:
        assert repr(network) == repr(networks[0])
        assert {id(parameter) for parameter in network.parameters()} == set(map(id, parameters))
    return networks[0]


@pytest.mark.parametrize("t_max", [16, 256])
@pytest.mark.parametrize("beta", [1.0, 0.875])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_one_neuron_three_front_ends(kind, depth, bias, beta, t_max):
    if kind == "linear":
        sizes, shape = [20, 18, 16, 5], (6, 20)
        connections = [nn.Linear(*sizes[i : i + 2], bias=bias) for i in range(depth - 1)]
        connections.append(nn.Linear(sizes[depth - 1], 5, bias=bias))
    else:
        shape = (3, 2, 6, 5)
        connections = [nn.Conv2d(2, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 4, 3, stride=2, bias=bias)]
        connections += [nn.Conv2d(4, 3, 2, padding=1, bias=bias)][: depth - 2]
    parts = [part for connection in connections for part in (connection, IF(1.0, beta=beta))]
    network = _same_in_every_front_end(alive(parts, t_max, beta != 1), shape, t_max)
    assert len(network) == depth


N = IF(1.0)
LEAKY = IF(1.0, beta=0.875)
ARCHITECTURES = {
    "average pool before a convolution": lambda: [nn.AvgPool2d(2), nn.Conv2d(2, 3, 3), N],
    "average pool after a convolution": lambda: [nn.Conv2d(2, 3, 3), nn.AvgPool2d((2, 3)), LEAKY],
    "overlapping pools": lambda: [nn.AvgPool2d(3, 1), nn.Conv2d(2, 3, 3, bias=False), nn.AvgPool2d(3, 2), N],
    "pools, padding, groups, dilation": lambda: [
        nn.AvgPool2d(2),
        nn.Conv2d(2, 4, 3, padding=2, groups=2, dilation=2),
        nn.AvgPool2d(2, 1),
        LEAKY,
    ],
    "no threshold, no memory": lambda: [
        nn.Conv2d(2, 4, 3, bias=False),
        IF(0.0),
        nn.Conv2d(4, 3, 2),
        IF(0.5, beta=0.0),
    ],
    "pool between convolutions": lambda: [
        nn.Conv2d(2, 4, (3, 2), padding="same"),
        N,
        nn.AvgPool2d(3, 2),
        nn.Conv2d(4, 3, 2, stride=2),
        N,
    ],
    "pool, flatten, linear": lambda: [
        nn.Conv2d(2, 4, 3, padding=1),
        N,
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 5),
        LEAKY,
    ],
    "first-spike pool": lambda: [
        nn.Conv2d(2, 4, 3),
        LEAKY,
        EarliestSpikePool2d(2),
        nn.Conv2d(4, 3, 2),
        N,
        EarliestSpikePool2d((2, 1), 1, (1, 0)),
        nn.Flatten(),
        nn.Linear(18, 5),
        N,
    ],
    "flatten before the neuron": lambda: [nn.Conv2d(2, 3, 3), nn.Flatten(), N, nn.Linear(126, 5), IF(2.0)],
    "flatten before the last neuron": lambda: [nn.Conv2d(2, 3, 3), nn.Flatten(), N],
    "pool, flatten before the neuron": lambda: [
        nn.Conv2d(2, 3, 3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        N,
        nn.Identity(),
        nn.Linear(27, 5),
        N,
    ],
    "flatten first, dropout and identity": lambda: [
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(144, 12),
        nn.Identity(),
        LEAKY,
        nn.Identity(),
        nn.Dropout(0.5),
        nn.Linear(12, 5),
        N,
    ],
    "nested": lambda: [
        nn.Sequential(nn.Sequential(nn.AvgPool2d(2)), nn.Conv2d(2, 3, 3, padding=1)),
        N,
        nn.Sequential(nn.AvgPool2d(2), nn.Sequential(nn.Flatten(), nn.Identity()), nn.Linear(12, 5)),
        IF(0.5),
    ],
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pools_and_flatten_wherever_they_may_be(name):
    parts = ARCHITECTURES[name]()
    leak = LEAKY in parts
    _same_in_every_front_end(alive(parts, 16, leak), (6, 2, 8, 9), 16, firing=(0.2, 0.999))


def test_norse_cells_and_sequentials_under_lift():
    cell = partial(SingleSpikeIFCell, SingleSpikeIFParameters(1.0, 125.0))
    parts = alive([nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4)], 16, leak=True)
    model = norse.SequentialState(
        norse.Lift(norse.SequentialState(nn.Identity(), parts[0], cell(), FirstSpikePool2dCell(2))),
        norse.SequentialState(norse.Lift(nn.Sequential(nn.Flatten(), nn.Identity())), parts[2]),
        norse.Lift(cell()),
    )
    times = some_times((8, 2, 8, 8), 16)
    network = to_event_driven(model, t_max=16)
    found = network(times)
    assert torch.equal(found, spikes_to_times(model(times_to_spikes(times, 16))[0][0]))
    assert 0.2 < found.isfinite().double().mean() < 1
    assert [type(layer) for layer in network] == [SpikeConv2d, EarliestSpikePool2d, SpikeFlatten, SpikeLinear]
    assert network[0].neuron == IF(1.0, beta=0.875)


def test_flatten_at_the_end_is_kept():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), HIDDEN(), nn.Flatten())
    assert to_event_driven(model, t_max=8)(torch.zeros(1, 1, 5, 5)).shape == (1, 18)


def test_modules_that_stand_in_two_places():
    shared = nn.Dropout(0.5)
    pool, conv = nn.AvgPool2d(2), nn.Conv2d(2, 2, 3, padding=1)
    mlp = nn.Sequential(
        nn.Linear(4, 4), HIDDEN(), shared, nn.Linear(4, 4), HIDDEN(), shared, nn.Linear(4, 4), HIDDEN()
    )
    assert [layer.dropout for layer in to_event_driven(mlp, t_max=8)] == [0, 0.5, 0.5]
    cnn = nn.Sequential(conv, HIDDEN(), pool, conv, HIDDEN(), pool, nn.Conv2d(2, 3, 1), HIDDEN(output=True))
    alive([cnn], 8)
    times = some_times((2, 2, 8, 8), 8)
    network = to_event_driven(cnn, t_max=8)
    assert [layer.input_pool is None for layer in network] == [True, False, False]
    assert network[0].weight is network[1].weight
    assert torch.equal(network(times), first_spikes_of(cnn, times, 8))


@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_layers_that_stand_in_two_places(host):
    layer = SpikeLinear(4, 4, N, t_max=8).double()
    network, times = SpikeSequential(layer, SpikeFlatten(), layer), some_times((9, 4), 8)
    with torch.no_grad():
        layer.weight.normal_(0.3, 0.8, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(network(times), layer(times))
    model = to_step_mode(network, host)
    assert torch.equal(spikes_to_times(run_trains(model, times_to_spikes(times, 8))[0]), network(times))


def _dropout_case():
    parts = alive([nn.Linear(12, 10), nn.Linear(10, 6)], 8, drive=0.4)
    model = nn.Sequential(
        nn.Dropout(0.25), parts[0], HIDDEN(), nn.Dropout(0.5), parts[1], HIDDEN(output=True)
    )
    return model, to_event_driven(model, t_max=8)


def test_dropout_in_training_has_the_statistics_of_the_host():
    model, network = _dropout_case()
    assert [layer.dropout for layer in network] == [0.25, 0.5]
    times = some_times((1, 12), 8).expand(6000, 12)
    torch.manual_seed(0)
    found, expected = (t.clamp(max=8) for t in (network(times), first_spikes_of(model, times, 8)))
    assert found.std(0).min() > 0.3
    error = (found.var(0) + expected.var(0)).div(len(times)).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error).all()
    without = to_event_driven(model.eval(), t_max=8)(times[:1])
    assert ((found.mean(0) - without.clamp(max=8)).abs() > 10 * error).any()


def test_dropout_with_a_given_mask():
    model, _ = _dropout_case()
    times = some_times((50, 12), 8)
    network = to_event_driven(model[:3], t_max=8)
    torch.manual_seed(3)
    kept = drop_spikes(times, 0.25)
    assert 0.15 < (kept != times).double().mean() < 0.35
    torch.manual_seed(3)
    found = network(times)
    trains = times_to_spikes(kept, 8) / 0.75
    model[2].output = True
    assert torch.equal(found, spikes_to_times(run_trains(model[1:3], trains)[0]))


@pytest.mark.parametrize("training", [True, False])
def test_training_is_copied(training):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2), HIDDEN()).train(training)
    network = to_event_driven(model, t_max=8)
    assert [module.training for module in network.modules()] == [training] * 2
    for host in ("snntorch", "norse"):
        assert {module.training for module in to_step_mode(network, host).modules()} == {training}
    assert model.training is training


def test_an_optimiser_of_one_is_an_optimiser_of_the_other():
    parts = alive([nn.Linear(20, 12), N, nn.Linear(12, 5), N], 16)
    model = _snntorch_steps(parts)
    network = to_event_driven(model, t_max=16)
    assert {k: v.data_ptr() for k, v in network.named_parameters()} == {
        "0.weight": parts[0].weight.data_ptr(),
        "0.bias": parts[0].bias.data_ptr(),
        "1.weight": parts[2].weight.data_ptr(),
        "1.bias": parts[2].bias.data_ptr(),
    }
    times, loss = some_times((8, 20), 16), TemporalCrossEntropyLoss(16)
    before = network(times)
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    decoded = first_spikes_of(model, times, 16)
    loss(decoded, _labels(decoded)).backward()
    optimiser.step()
    after = network(times)
    assert not torch.equal(after, before)
    assert torch.equal(after, first_spikes_of(model, times, 16))
    optimiser.zero_grad()
    loss(after, _labels(after)).backward()
    optimiser.step()
    assert not torch.equal(network(times), after)
    assert torch.equal(network(times), first_spikes_of(model, times, 16))
