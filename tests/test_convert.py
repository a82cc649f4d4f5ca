import copy
import math
import re
from functools import partial

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn
from torch.nn.functional import max_pool2d, relu

from ssnn_plugin import IF, NoTimeMode, replace_neurons, to_event_driven, to_step_mode
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.functional import drop_spikes
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import EarliestSpikePool2d, SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential
from ssnn_plugin.norse import FirstSpikePool2d as NorsePool
from ssnn_plugin.norse import FirstSpikePool2dCell, SingleSpikeIF, SingleSpikeIFCell, SingleSpikeIFParameters
from ssnn_plugin.snntorch import FirstSpikePool2d, SingleSpike, SingleSpikeLapicque, reset

INF = math.inf
HIDDEN = partial(SingleSpike, init_hidden=True)


pytestmark = pytest.mark.usefixtures("one_thread")


def _times(shape, t_max, seed=0):
    """Whole bins; a quarter of the inputs is silent or spikes after the window."""
    times = torch.randint(0, t_max * 4 // 3, shape, generator=torch.Generator().manual_seed(seed)).double()
    return times.masked_fill_(times > t_max, INF)


def _alive(parts, t_max, leak=False, drive=None, seed=0):
    """The modules with random weights in double precision, of which a good share of the neurons fire."""
    generator = torch.Generator().manual_seed(seed)
    for module in nn.Sequential(*(part for part in parts if isinstance(part, nn.Module))).double().modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            inputs = module.weight[0].numel()
            spread = (3 if leak else 1.5) / inputs**0.5
            mean = spread * (drive or (0.12 if leak else 0.25))
            with torch.no_grad():
                module.weight.normal_(mean, spread, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.5 / (8 if leak else t_max), generator=generator)
    return parts


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


def _run(model, trains):
    """Spikes [T, batch, *] and potential [batch, *] of a model of either host."""
    if isinstance(model, norse.SequentialState):
        spikes, states = model(trains)
        return spikes, next(state.v for state in reversed(states) if hasattr(state, "v"))
    reset(model)
    neurons = [module for module in model.modules() if isinstance(module, SingleSpike)]
    if neurons[-1].sequence:
        spikes, mem = model(trains)
        return spikes, mem[-1]
    spikes, mem = zip(*map(model, trains), strict=True)
    return torch.stack(spikes), mem[-1]


def _first(model, times, t_max):
    return spikes_to_times(_run(model, times_to_spikes(times, t_max))[0])


def _labels(outputs):
    shape = len(outputs), *outputs.shape[2:]
    return torch.randint(0, outputs.shape[1], shape, generator=torch.Generator().manual_seed(9))


def _same_in_every_front_end(parts, shape, t_max, front_ends=FRONT_ENDS, firing=(0.2, 0.999)):
    """Times, potentials and gradients, with and without those of silent neurons; returns the network."""
    times = _times(shape, t_max)
    parameters = list(nn.Sequential(*(part for part in parts if isinstance(part, nn.Module))).parameters())
    loss = TemporalCrossEntropyLoss(t_max)

    def gradients(outputs):
        found = torch.autograd.grad(loss(outputs, _labels(outputs)), parameters, retain_graph=True)
        assert all(grad.abs().max() > 1e-6 for grad in found)
        return found

    networks = []
    for build in front_ends.values():
        model = build(parts).eval()
        spikes, potential = _run(model, times_to_spikes(times, t_max))
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
    network = _same_in_every_front_end(_alive(parts, t_max, beta != 1), shape, t_max)
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
    _same_in_every_front_end(_alive(parts, 16, leak), (6, 2, 8, 9), 16, firing=(0.2, 0.999))


def test_norse_cells_and_sequentials_under_lift():
    cell = partial(SingleSpikeIFCell, SingleSpikeIFParameters(1.0, 125.0))
    parts = _alive([nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4)], 16, leak=True)
    model = norse.SequentialState(
        norse.Lift(norse.SequentialState(nn.Identity(), parts[0], cell(), FirstSpikePool2dCell(2))),
        norse.SequentialState(norse.Lift(nn.Sequential(nn.Flatten(), nn.Identity())), parts[2]),
        norse.Lift(cell()),
    )
    times = _times((8, 2, 8, 8), 16)
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
    _alive([cnn], 8)
    times = _times((2, 2, 8, 8), 8)
    network = to_event_driven(cnn, t_max=8)
    assert [layer.input_pool is None for layer in network] == [True, False, False]
    assert network[0].weight is network[1].weight
    assert torch.equal(network(times), _first(cnn, times, 8))


@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_layers_that_stand_in_two_places(host):
    layer = SpikeLinear(4, 4, N, t_max=8).double()
    network, times = SpikeSequential(layer, SpikeFlatten(), layer), _times((9, 4), 8)
    with torch.no_grad():
        layer.weight.normal_(0.3, 0.8, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(network(times), layer(times))
    model = to_step_mode(network, host)
    assert torch.equal(spikes_to_times(_run(model, times_to_spikes(times, 8))[0]), network(times))


def _dropout_case():
    parts = _alive([nn.Linear(12, 10), nn.Linear(10, 6)], 8, drive=0.4)
    model = nn.Sequential(
        nn.Dropout(0.25), parts[0], HIDDEN(), nn.Dropout(0.5), parts[1], HIDDEN(output=True)
    )
    return model, to_event_driven(model, t_max=8)


def test_dropout_in_training_has_the_statistics_of_the_host():
    model, network = _dropout_case()
    assert [layer.dropout for layer in network] == [0.25, 0.5]
    times = _times((1, 12), 8).expand(6000, 12)
    torch.manual_seed(0)
    found, expected = (t.clamp(max=8) for t in (network(times), _first(model, times, 8)))
    assert found.std(0).min() > 0.3
    error = (found.var(0) + expected.var(0)).div(len(times)).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error).all()
    without = to_event_driven(model.eval(), t_max=8)(times[:1])
    assert ((found.mean(0) - without.clamp(max=8)).abs() > 10 * error).any()


def test_dropout_with_a_given_mask():
    model, _ = _dropout_case()
    times = _times((50, 12), 8)
    network = to_event_driven(model[:3], t_max=8)
    torch.manual_seed(3)
    kept = drop_spikes(times, 0.25)
    assert 0.15 < (kept != times).double().mean() < 0.35
    torch.manual_seed(3)
    found = network(times)
    trains = times_to_spikes(kept, 8) / 0.75
    model[2].output = True
    assert torch.equal(found, spikes_to_times(_run(model[1:3], trains)[0]))


@pytest.mark.parametrize("training", [True, False])
def test_training_is_copied(training):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2), HIDDEN()).train(training)
    network = to_event_driven(model, t_max=8)
    assert [module.training for module in network.modules()] == [training] * 2
    for host in ("snntorch", "norse"):
        assert {module.training for module in to_step_mode(network, host).modules()} == {training}
    assert model.training is training


def test_an_optimiser_of_one_is_an_optimiser_of_the_other():
    parts = _alive([nn.Linear(20, 12), N, nn.Linear(12, 5), N], 16)
    model = _snntorch_steps(parts)
    network = to_event_driven(model, t_max=16)
    assert {k: v.data_ptr() for k, v in network.named_parameters()} == {
        "0.weight": parts[0].weight.data_ptr(),
        "0.bias": parts[0].bias.data_ptr(),
        "1.weight": parts[2].weight.data_ptr(),
        "1.bias": parts[2].bias.data_ptr(),
    }
    times, loss = _times((8, 20), 16), TemporalCrossEntropyLoss(16)
    before = network(times)
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    decoded = _first(model, times, 16)
    loss(decoded, _labels(decoded)).backward()
    optimiser.step()
    after = network(times)
    assert not torch.equal(after, before)
    assert torch.equal(after, _first(model, times, 16))
    optimiser.zero_grad()
    loss(after, _labels(after)).backward()
    optimiser.step()
    assert not torch.equal(network(times), after)
    assert torch.equal(network(times), _first(model, times, 16))


# Modules with a forward of their own


class _Net(nn.Module):
    """As in snnTorch's tutorials."""

    num_steps = 16

    def __init__(self, init_hidden=False):
        super().__init__()
        self.fc1, self.fc2 = _alive([nn.Linear(10, 12), nn.Linear(12, 4)], 16, drive=0.4)
        self.lif1, self.lif2 = SingleSpike(init_hidden=init_hidden), SingleSpike(init_hidden=init_hidden)

    def steps(self, inputs):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, potentials = [], []
        for x in inputs:
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spikes.append(spk2)
            potentials.append(mem2)
        return torch.stack(spikes, dim=0), torch.stack(potentials, dim=0)


class _NumSteps(_Net):
    def forward(self, x):
        return self.steps(x[step] for step in range(self.num_steps))


class _Size(_Net):
    def forward(self, x):
        return self.steps(x[step] for step in range(x.size(0)))


class _Shape(_Net):
    def forward(self, x):
        return self.steps(x[step, ...] for step in range(x.shape[0]))


class _Over(_Net):
    def forward(self, x):
        return self.steps(x_t for x_t in x)


class _Enumerate(_Net):
    def forward(self, x):
        return self.steps(x_t for _, x_t in enumerate(x))


class _Flattened(_Net):
    def forward(self, x):
        return self.steps(x[step].view(x.size(1), -1) for step in range(len(x)))


class _StepsArgument(_Net):
    def forward(self, x, num_steps=16):
        return self.steps(x[step] for step in range(num_steps))


class _Cells(_Net):
    def __init__(self):
        super().__init__()
        self.lif1, self.lif2 = SingleSpikeIFCell(), SingleSpikeIFCell()

    def forward(self, x):
        state1, state2, spikes = None, None, []
        for x_t in x:
            z, state1 = self.lif1(self.fc1(x_t), state1)
            z, state2 = self.lif2(self.fc2(z), state2)
            spikes.append(z)
        return torch.stack(spikes), state2


class _Window(_Net):
    def __init__(self):
        super().__init__()
        self.lif1, self.lif2 = SingleSpikeIF(), SingleSpike(sequence=True)

    def forward(self, x):
        spikes, _ = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(spikes))


class _OneStep(_Net):
    def __init__(self):
        super().__init__(init_hidden=True)

    def forward(self, x):
        spk1 = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(spk1))


class _OneStepWithState(_Net):
    def forward(self, x, mem1=None, mem2=None):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


class _Block(nn.Module):
    def __init__(self, connection):
        super().__init__()
        self.connection, self.lif = connection, SingleSpike(init_hidden=True)

    def forward(self, x):
        return self.lif(self.connection(x))


class _Nested(nn.Module):
    flatten = staticmethod(lambda x: torch.flatten(x, 1))

    def __init__(self):
        super().__init__()
        self.conv = _Block(_alive([nn.Conv2d(1, 3, 3)], 16)[0])
        self.rest = nn.Sequential(nn.Identity(), _Block(_alive([nn.Linear(27, 4)], 16)[0]))

    def forward(self, x):
        reset(self)
        return torch.stack([self.rest(self.flatten(self.conv(x_t))) for x_t in x])


class _View(_Nested):
    flatten = staticmethod(lambda x: x.view(x.size(0), -1))


class _Method(_Nested):
    flatten = staticmethod(lambda x: x.flatten(1))


class _Reshape(_Nested):
    flatten = staticmethod(lambda x: torch.reshape(x, (x.shape[0], -1)))


@pytest.mark.parametrize(
    "kind", [_NumSteps, _StepsArgument, _Size, _Shape, _Over, _Enumerate, _Cells, _Window]
)
def test_loops_over_time_are_followed(kind):
    model, times = kind(), _times((8, 10), 16)
    network = to_event_driven(model, t_max=16)
    found = network(times)
    assert torch.equal(found, spikes_to_times(model(times_to_spikes(times, 16))[0]))
    assert 0.2 < found.isfinite().double().mean() < 1
    assert [layer.weight for layer in network] == [model.fc1.weight, model.fc2.weight]


def test_flatten_in_a_loop_over_time():
    model, times = _Flattened(), _times((8, 2, 5), 16)
    found = to_event_driven(model, t_max=16)(times)
    assert torch.equal(found, spikes_to_times(model(times_to_spikes(times, 16))[0]))


@pytest.mark.parametrize("kind", [_OneStep, _OneStepWithState])
def test_forwards_of_one_step_are_followed(kind):
    model, times = kind(), _times((8, 10), 16)
    found = to_event_driven(model, t_max=16)(times)
    reset(model)
    spikes, state = [], []
    for x in times_to_spikes(times, 16):
        out = model(x, *state)
        out, *state = out if isinstance(out, tuple) else (out,)
        spikes.append(out)
    assert torch.equal(found, spikes_to_times(torch.stack(spikes)))
    assert 0.2 < found.isfinite().double().mean() < 1


@pytest.mark.parametrize("kind", [_Nested, _View, _Method, _Reshape])
def test_nested_modules_are_followed(kind):
    model, times = kind(), _times((8, 1, 5, 5), 16)
    found = to_event_driven(model, t_max=16)(times)
    assert torch.equal(found, spikes_to_times(model(times_to_spikes(times, 16))))
    assert 0.2 < found.isfinite().double().mean() < 1


class _SameInput(_Net):
    def forward(self, x):
        return self.steps(x for _ in range(self.num_steps))


class _SameFlattenedInput(_Net):
    def forward(self, x):
        x = x.view(x.size(0), -1)
        return self.steps(x for _ in range(self.num_steps))


class _SameBin(_Net):
    def forward(self, x):
        return self.steps(x[0] for _ in range(self.num_steps))


class _SameCurrent(_Net):
    def forward(self, x):
        mem, spikes = self.lif1.reset_mem(), []
        cur = self.fc1(x)
        for _ in range(self.num_steps):
            spk, mem = self.lif1(cur, mem)
            spikes.append(spk)
        return torch.stack(spikes)


class _SomeFeatures(_Net):
    def forward(self, x):
        return self.steps(x_t[:, 2:12] for x_t in x)


class _Backwards(_Net):
    def forward(self, x):
        return self.steps(x[step] for step in reversed(range(self.num_steps)))


class _EverySecond(_Net):
    def forward(self, x):
        return self.steps(x[step] for step in range(0, self.num_steps, 2))


class _MaxPool(_Nested):
    flatten = staticmethod(lambda x: max_pool2d(x, 2))


class _Relu(_OneStep):
    def forward(self, x):
        return self.lif1(relu(self.fc1(x)))


class _Residual(_OneStep):
    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(self.fc1(x)) + x))


class _TwoHeads(_OneStep):
    def forward(self, x):
        return self.lif1(self.fc1(x)), self.lif2(self.fc2(x))


class _OnItself(_OneStep):
    def forward(self, x):
        spk = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(self.lif1(spk)))


class _Mem(_Net):
    def forward(self, x):
        _, mem = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(mem))


class _Hidden(_OneStep):
    def forward(self, x):
        spk = self.lif1(self.fc1(x))
        self.lif2(self.fc2(spk))
        return spk


class _Decides(_OneStep):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class _NoForward(_Net):
    pass


class _Constant(_OneStep):
    def forward(self, x):
        return self.lif1(self.fc1(torch.ones(1, 10)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            _SameInput,
            r"^fc1 \(Linear\) has no time mode: it gets the same input in every step.*Encode it as sp",
        ),
        (_SameFlattenedInput, "same input in every step, .* Encode it as spikes"),
        (_SameBin, "_SameBin does not take the steps of its input one after the other"),
        (_SameCurrent, "same input in every step"),
        (_SomeFeatures, "^_SomeFeatures "),
        (_Backwards, "^_Backwards "),
        (_EverySecond, "^_EverySecond "),
        (_MaxPool, r"max_pool2d \(MaxPool2d\) has no time mode: max-pooling .* Use FirstSpikePool2d"),
        (_Relu, r"^relu \(ReLU\) has no time mode: .* is made of Linear"),
        (_Residual, "_Residual calls add between its modules, which has no time mode"),
        (_TwoHeads, "_TwoHeads returns the spikes of lif1 and lif2. A network on spike times has one output"),
        (_OnItself, "_OnItself drives lif1 .* it keeps one state for two places"),
        (_Mem, "_Mem passes on the state of lif1; only its spikes have a time mode"),
        (_Decides, r"forward of _Decides cannot be followed \(TraceError.*Put its modules into an nn.Seq"),
        (_NoForward, "forward of _NoForward cannot be followed.*Put its modules into an nn.Sequential"),
        (_Constant, "^_Constant "),
    ],
)
def test_forwards_without_a_time_mode_are_refused(kind, message):
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(kind(), t_max=16, binwise=False)


def test_what_is_not_returned_is_left_out():
    model, times = _Hidden(), _times((8, 10), 16)
    (layer,) = to_event_driven(model, t_max=16)
    assert layer.weight is model.fc1.weight
    reset(model)
    spikes = torch.stack([model(x) for x in times_to_spikes(times, 16)])
    assert torch.equal(layer(times), spikes_to_times(spikes))


class _Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_of_torch_is_looked_into():
    model, times = nn.Sequential(_Doubled(10, 4), HIDDEN()).double(), _times((8, 10), 16)
    with pytest.raises(NoTimeMode, match=r"_Doubled calls .* between its modules"):
        to_event_driven(model, t_max=16, binwise=False)
    found = to_event_driven(model, t_max=16)(times)
    reset(model)
    spikes = torch.stack([model(x) for x in times_to_spikes(times, 16)])
    assert torch.equal(found, spikes_to_times(spikes))
    assert found.isfinite().any()


# Refusals, by path, class and what to use instead


def _linear():
    return nn.Linear(4, 4)


def _conv(**options):
    return nn.Conv2d(2, 2, 3, **options)


def _neuron(**options):
    return lambda: [_linear(), HIDDEN(**options)]


def _norse_neuron(cell=SingleSpikeIF, **parameters):
    return lambda: [_linear(), cell(SingleSpikeIFParameters(**parameters))]


OPTION = "the option {} has no meaning on spike times. Leave it out"
REFIRES = r"it may fire more than once. Use a single-spike neuron; ssnn_plugin.replace_neurons\(model\)"
MADE_OF = "a network on spike times is made of Linear, Conv2d, Flatten, AvgPool2d, Dropout, Identity, single"
CEIL = "use AvgPool2d without padding, ceil_mode and divisor_override"
TWO_POOLS = "two average pools follow each other. Use one with the product of their kernels"
ON_SPIKES = "it drops currents anew in every step. Put it right behind a neuron"
PUT_ONE = "has no time mode: the model must end with neurons, so put one behind it"


@pytest.mark.parametrize(
    ("parts", "where", "message"),
    [
        (lambda: [_linear(), snn.Leaky(0.9)], "1 (Leaky)", REFIRES),
        (lambda: [_linear(), norse.LIF()], "1 (LIF)", REFIRES),
        (lambda: [_linear(), norse.LSNNCell()], "1 (LSNNCell)", REFIRES),
        (lambda: [_linear(), nn.ReLU()], "1 (ReLU)", MADE_OF),
        (lambda: [nn.Conv1d(2, 2, 3), HIDDEN()], "0 (Conv1d)", MADE_OF),
        (lambda: [_conv(), HIDDEN(), nn.AdaptiveAvgPool2d(1)], "2 (AdaptiveAvgPool2d)", MADE_OF),
        (lambda: [_linear(), norse.LICell()], "1 (LICell)", MADE_OF),
        (
            lambda: [_linear(), _linear(), HIDDEN()],
            "1 (Linear)",
            "two weight layers follow each other. Put a",
        ),
        (
            lambda: [_conv(padding=1, padding_mode="circular"), HIDDEN()],
            "0 (Conv2d)",
            "padding_mode must be 'zeros', which is silence, got 'circular'",
        ),
        (lambda: [nn.Flatten(), _conv(), HIDDEN()], "1 (Conv2d)", "an input with height and width"),
        (
            lambda: [_conv(), HIDDEN(), nn.AvgPool2d(2), _linear(), HIDDEN()],
            "3 (Linear)",
            "a Linear layer on pooled spikes needs a Flatten between them",
        ),
        (lambda: [nn.Flatten(0), _linear(), HIDDEN()], "0 (Flatten)", r"Use Flatten\(\) or Flatten\(2\)"),
        (lambda: [nn.Flatten(1, 2), _linear(), HIDDEN()], "0 (Flatten)", r"Use Flatten\(\) or Flatten\(2\)"),
        (lambda: [nn.AvgPool2d(2, padding=1), _conv(), HIDDEN()], "0 (AvgPool2d)", CEIL),
        (lambda: [nn.AvgPool2d(2, ceil_mode=True), _conv(), HIDDEN()], "0 (AvgPool2d)", CEIL),
        (lambda: [nn.AvgPool2d(2, divisor_override=1), _conv(), HIDDEN()], "0 (AvgPool2d)", CEIL),
        (lambda: [nn.Flatten(), nn.AvgPool2d(2)], "1 (AvgPool2d)", "pool before Flatten and Linear"),
        (lambda: [_linear(), nn.AvgPool2d(2)], "1 (AvgPool2d)", "pool before Flatten and Linear"),
        (lambda: [nn.AvgPool2d(2), nn.AvgPool2d(2), _conv()], "1 (AvgPool2d)", TWO_POOLS),
        (lambda: [_conv(), nn.AvgPool2d(2), nn.AvgPool2d(2)], "2 (AvgPool2d)", TWO_POOLS),
        (lambda: [_linear(), nn.Dropout(), HIDDEN()], "1 (Dropout)", ON_SPIKES),
        (lambda: [nn.AvgPool2d(2), nn.Dropout(), _conv(), HIDDEN()], "1 (Dropout)", "[Pp]ut it"),
        (lambda: [nn.Dropout(), nn.Dropout(), _linear()], "1 (Dropout)", "two Dropouts follow .* Use one"),
        (lambda: [nn.Dropout(1.0), _linear()], "0 (Dropout)", r"p must be at least 0 and below 1, got 1\.0"),
        (lambda: [nn.Dropout2d(), _conv(), HIDDEN()], "0 (Dropout2d)", MADE_OF),
        (
            lambda: [_conv(), HIDDEN(), nn.MaxPool2d(2)],
            "2 (MaxPool2d)",
            "fire several times. Use FirstSpikePool2d of ssnn_plugin's adapter",
        ),
        (
            lambda: [_conv(), nn.AdaptiveMaxPool2d(2), HIDDEN()],
            "1 (AdaptiveMaxPool2d)",
            "no sum of spikes. Use FirstSpikePool2d of ssnn_plugin's adapter behind the neuron, or AvgPool2d",
        ),
        (
            lambda: [_conv(), nn.BatchNorm2d(2)],
            "1 (BatchNorm2d)",
            r"Fold it .* with ssnn_plugin.fold_batchnorm\(model\)",
        ),
        (lambda: [_linear(), nn.BatchNorm1d(4)], "1 (BatchNorm1d)", "fold_batchnorm"),
        (
            lambda: [_conv(), FirstSpikePool2d(2, init_hidden=True), HIDDEN()],
            "1 (FirstSpikePool2d)",
            "it pools spikes, not currents. Put it behind the neuron",
        ),
        *(
            (
                lambda between=between: [_conv(), HIDDEN(), between, NorsePool(2)],
                "3 (FirstSpikePool2d)",
                "put it right behind the neuron",
            )
            for between in (nn.AvgPool2d(2), nn.Flatten(), nn.Dropout())
        ),
        (lambda: [HIDDEN()], "0 (SingleSpike)", "it needs a Linear or Conv2d in front"),
        (
            lambda: [_linear(), HIDDEN(), nn.Identity(), SingleSpikeIF()],
            "3 (SingleSpikeIF)",
            "it needs a Lin",
        ),
        (lambda: [_linear().half(), HIDDEN()], "1 (SingleSpike)", "must be float32 or float64, got torch.fl"),
        (
            lambda: [nn.AvgPool2d(3, 1), _conv(padding=1), HIDDEN()],
            "2 (SingleSpike)",
            r"input_pool must not overlap with padding \(1, 1\)",
        ),
        (
            lambda: [_conv(padding="same"), nn.AvgPool2d(2), HIDDEN()],
            "2 (SingleSpike)",
            "padding must be given in numbers with a pool, got 'same'",
        ),
        (_neuron(learn_beta=True), "1 (SingleSpike)", OPTION.format("learn_beta")),
        (_neuron(learn_threshold=True), "1 (SingleSpike)", OPTION.format("learn_threshold")),
        (
            _neuron(learn_graded_spikes_factor=True),
            "1 (SingleSpike)",
            OPTION.format("learn_graded_spikes_factor"),
        ),
        (_neuron(graded_spikes_factor=2.0), "1 (SingleSpike)", OPTION.format("graded_spikes_factor")),
        (_neuron(state_quant=torch.round), "1 (SingleSpike)", OPTION.format("state_quant")),
        (_neuron(inhibition=True), "1 (SingleSpike)", OPTION.format("inhibition")),
        (_neuron(surrogate_disable=True), "1 (SingleSpike)", OPTION.format(".*surrogate_disable")),
        (_neuron(spike_grad=surrogate.atan()), "1 (SingleSpike)", OPTION.format("spike_grad.*")),
        (
            _neuron(threshold=torch.tensor([1.0, 1.0, 1.0, 2.0])),
            "1 (SingleSpike)",
            "threshold must be the same for all neurons, got 2 values",
        ),
        (_neuron(beta=torch.tensor([0.5, 1.0, 1, 1])), "1 (SingleSpike)", "beta must be the same .*2 values"),
        (
            _norse_neuron(method="super"),
            "1 (SingleSpikeIF)",
            "method 'super' has no meaning .* Use 'latency'",
        ),
        (
            _norse_neuron(SingleSpikeIFCell, v_th=torch.arange(4.0)),
            "1 (SingleSpikeIFCell)",
            "v_th must be the same for all neurons, got 4 values",
        ),
        (
            _norse_neuron(tau_mem_inv=nn.Parameter(torch.tensor(1.0))),
            "1 (SingleSpikeIF)",
            "tau_mem_inv must not be learnable on spike times",
        ),
        (lambda: [nn.Sequential(_linear(), nn.ReLU())], "0.1 (ReLU)", MADE_OF),
        (
            lambda: [norse.Lift(nn.Sequential(_linear(), nn.Sequential(nn.GELU())))],
            "0.lifted_module.1.0 (GELU)",
            MADE_OF,
        ),
        (lambda: [_Block(_conv()), _Block(nn.ReLU())], "1.connection (ReLU)", MADE_OF),
    ],
)
def test_refusals_name_path_class_and_replacement(parts, where, message):
    with pytest.raises(NoTimeMode, match=f"^{re.escape(where)} has no time mode: .*{message}"):
        to_event_driven(nn.Sequential(*parts()), t_max=8, binwise=False)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: [_linear()], rf"^0 \(Linear\) {PUT_ONE}"),
        (lambda: [_conv(), HIDDEN(), nn.AvgPool2d(2)], rf"^2 \(AvgPool2d\) {PUT_ONE}"),
        (lambda: [_linear(), HIDDEN(), nn.Dropout()], rf"^2 \(Dropout\) {PUT_ONE}"),
        (lambda: [], f"^the model has no layers; {MADE_OF}"),
        (lambda: [nn.Identity()], f"^the model has no layers; {MADE_OF}"),
    ],
)
def test_models_without_neurons_at_the_end_are_refused(parts, message):
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(nn.Sequential(*parts()), t_max=8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (HIDDEN(), r"^the model \(SingleSpike\) has no time mode: it needs a Linear or Conv2d in front"),
        (nn.ReLU(), r"^the model \(ReLU\) has no time mode"),
        (nn.Linear(4, 3), rf"^the model \(Linear\) {PUT_ONE}"),
        (SpikeSequential(SpikeLinear(4, 3, N, t_max=8)), r"SpikeSequential|SpikeLinear"),
    ],
)
def test_models_that_are_no_stack_are_refused(model, message):
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(model, t_max=8)


@pytest.mark.parametrize("t_max", [0, -3, 2.5, True])
def test_a_bad_window_is_refused(t_max):
    with pytest.raises(ValueError, match=f"t_max must be a whole number of at least 1, got {t_max}"):
        to_event_driven(nn.Sequential(_linear(), HIDDEN()), t_max=t_max)


def test_pool_sizes_may_be_lists():
    model = nn.Sequential(nn.AvgPool2d([2, 3]), nn.Conv2d(1, 2, 2), HIDDEN())
    assert to_event_driven(model, t_max=8)(torch.zeros(1, 1, 6, 6)).shape == (1, 2, 2, 1)


# Networks on spike times in steps


def _network():
    torch.manual_seed(0)
    network = SpikeSequential(
        SpikeConv2d(2, 4, 3, IF(0.7), t_max=16, padding=1, groups=2, bias=True, output_pool=_average(2)),
        EarliestSpikePool2d(2, 1),
        SpikeConv2d(4, 3, 2, IF(1.1, beta=0.9), t_max=16, dropout=0.25, input_pool=_average((1, 2))),
        SpikeFlatten(),
        SpikeLinear(9, 4, N, t_max=16),
    ).double()
    for layer in (network[0], network[2], network[4]):
        nn.init.normal_(layer.weight, 0.25, 0.6)
    nn.init.normal_(network[0].bias, 0, 0.05)
    return network


def _average(size):
    pool = nn.Sequential(nn.AvgPool2d(size), nn.Conv2d(1, 1, 1), HIDDEN())
    return to_event_driven(pool, t_max=1)[0].input_pool


@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_networks_on_times_in_steps_and_back(host):
    network, times = _network().eval(), _times((20, 2, 10, 10), 16)
    model = to_step_mode(network, host)
    expected, potential = network(times, return_potential=True)
    spikes, state = _run(model, times_to_spikes(times, 16))
    assert torch.equal(spikes_to_times(spikes), expected)
    torch.testing.assert_close(state, potential, rtol=0, atol=1e-12)
    assert 0.2 < expected.isfinite().double().mean() < 1
    assert set(map(id, model.parameters())) == set(map(id, network.parameters()))
    again = to_event_driven(model, t_max=16, silent_gradient=False)
    assert list(map(repr, again)) == list(map(repr, network))
    assert all(a is b for a, b in zip(again.parameters(), network.parameters(), strict=True))
    assert torch.equal(again(times), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.1, 0.9, 1 - 1e-9])
def test_leaks_and_thresholds_survive_in_full(dtype, beta):
    network = SpikeSequential(SpikeLinear(3, 2, IF(1 / 3, beta=beta), t_max=8, dtype=dtype))
    for host in ("snntorch", "norse"):
        found = to_event_driven(to_step_mode(network, host), t_max=8)[0].neuron
        assert found.threshold == 1 / 3
        assert found.beta == pytest.approx(beta, rel=1e-15)


@pytest.mark.parametrize("last", [SpikeFlatten(), EarliestSpikePool2d(1)])
@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_the_last_neurons_hand_out_their_state(host, last):
    """Also with a module without neurons behind them: (spikes, mem), or (spikes, state)."""
    network = SpikeSequential(SpikeConv2d(2, 3, 3, N, t_max=8), last).double()
    model = to_step_mode(network, host)
    x = torch.zeros(1, 1, 2, 5, 5).double() if host == "norse" else torch.zeros(1, 2, 5, 5).double()
    outputs = model(x)
    assert isinstance(outputs, tuple)
    assert len(outputs) == 2


@pytest.mark.parametrize("host", ["snntorch", "norse"])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            SpikeLinear(4, 3, IF(delay=1), t_max=8),
            r"^1 \(SpikeLinear\) has no step mode: .* no delay, got IF",
        ),
        (nn.ReLU(), r"^1 \(ReLU\) has no step mode: it is no layer of ssnn_plugin.nn"),
    ],
)
def test_layers_without_a_step_mode_are_refused(host, layer, message):
    with pytest.raises(NoTimeMode, match=message):
        to_step_mode(nn.Sequential(SpikeLinear(5, 4, N, t_max=8), layer), host)


def test_an_unknown_host_is_refused():
    with pytest.raises(ValueError, match=r"host must be one of 'snntorch', 'norse', got 'spikingjelly'"):
        to_step_mode(_network(), "spikingjelly")


# Neurons of the hosts


def _currents(t_max=60, neurons=200):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(t_max, 4, neurons, generator=generator, dtype=torch.float64) * 0.25 + 0.06


def _first_spikes(model, currents):
    """Of a neuron of either host, in steps or over the window."""
    if isinstance(model, norse.SequentialState | norse.IAF | norse.LIF | SingleSpikeIF):
        return spikes_to_times(model(currents)[0])
    state, spikes = (), []
    for current in currents:
        out, *state = model(current, *state)
        spikes.append(out)
    return spikes_to_times(torch.stack(spikes).double())


def _iaf(v_th=1.0, v_reset=0.0):
    # A tensor of its own: Norse sets requires_grad on the default.
    return norse.IAFParameters(v_th=torch.tensor(v_th), v_reset=torch.tensor(v_reset))


def _lif_box(**p):
    return norse.LIFBoxCell(norse.LIFBoxParameters(**{k: torch.tensor(v) for k, v in p.items()}))


@pytest.mark.parametrize(
    ("neuron", "kind"),
    [
        (lambda: snn.Leaky(0.9), SingleSpike),
        (lambda: snn.Leaky(1.0, threshold=2.0, reset_mechanism="zero"), SingleSpike),
        (lambda: snn.Leaky(0.75, reset_delay=False), SingleSpike),
        (lambda: snn.Leaky(torch.linspace(0, 1, 200), threshold=torch.linspace(0.2, 1, 200)), SingleSpike),
        (lambda: snn.Lapicque(beta=0.9, threshold=0.07), SingleSpikeLapicque),
        (lambda: snn.Lapicque(R=4.0, C=2.5, threshold=0.5), SingleSpikeLapicque),
        (lambda: snn.Lapicque(R=5, C=3, time_step=0.5, threshold=0.3), SingleSpikeLapicque),
        (lambda: snn.Lapicque(beta=0.6, learn_beta=True, threshold=0.2), SingleSpikeLapicque),
        (lambda: norse.IAF(_iaf()), SingleSpikeIF),
        (lambda: norse.IAFCell(_iaf(v_th=1.5, v_reset=0.25)), SingleSpikeIFCell),
        (lambda: _lif_box(v_th=0.08), SingleSpikeIFCell),
        (lambda: _lif_box(v_th=0.6, v_leak=0.5, tau_mem_inv=125.0, v_reset=-3.0), SingleSpikeIFCell),
    ],
)
def test_replaced_neurons_fire_when_the_hosts_own_fires_first(neuron, kind):
    model = nn.Sequential(neuron())
    expected = _first_spikes(model[0], _currents())
    assert 0.3 < expected.isfinite().double().mean() < 0.999
    assert expected[expected.isfinite()].unique().numel() > 10
    (replacement,) = replace_neurons(model)
    assert type(model[0]) is kind
    assert replacement.new == kind.__name__
    assert torch.equal(_first_spikes(model[0], _currents()), expected)


@pytest.mark.parametrize(
    ("neuron", "lost"),
    [
        (
            snn.Leaky(0.5),
            ["reset_mechanism 'subtract': .* not reset", "spike_grad: the latency rule replaces"],
        ),
        (snn.Leaky(0.5, surrogate_disable=True), ["reset_mechanism"]),
        (snn.Lapicque(R=4.0, C=2.0), [r"R, C: an input counts 0\.5 times", "reset_mech", "spike_grad"]),
        (
            snn.Synaptic(alpha=0.75, beta=0.5, reset_mechanism="zero"),
            [
                r"alpha 0\.75: .* whole charge",
                "state: syn stays 0",
                "reset_mechanism 'zero'",
                "spike_grad",
            ],
        ),
        (norse.IAF(_iaf()), ["v_reset 0: .* not reset", "method 'super': the latency rule replaces"]),
        (norse.IAFCell(_iaf(1.5, 0.5)), [r"v_reset 0\.5", "method", r"v_th 1\.5 becomes 1: from 0 up"]),
        (norse.LIF(), ["v_reset 0", "method", "tau_syn_inv: .* whole charge", "v_th 1 becomes 2"]),
        (norse.LIFCell(), ["v_reset 0", "method", "tau_syn_inv", "v_th 1 becomes 2"]),
        (_lif_box(v_th=1.0, v_leak=0.5, tau_mem_inv=125.0), ["v_reset 0", "method", "v_th 1 becomes 4"]),
    ],
)
def test_what_is_lost_is_listed(neuron, lost):
    (replacement,) = replace_neurons(nn.Sequential(nn.Linear(4, 2), neuron))
    assert (replacement.path, replacement.old) == ("1", type(neuron).__name__)
    assert len(replacement.lost) == len(lost)
    for found, expected in zip(replacement.lost, lost, strict=True):
        assert re.match(expected, found)
    header, *lines = str(replacement).split("\n")
    assert header == f"1: {replacement.old} -> {replacement.new}"
    assert [line.strip() for line in lines] == list(replacement.lost)


def _charge(model, weights):
    """Which neurons fire in the long run after inputs in the first bin."""
    currents = torch.zeros(4000, *weights.shape).double()
    currents[0] = weights
    return _first_spikes(model, currents).isfinite()


@pytest.mark.parametrize("syn", [lambda: snn.Synaptic(alpha=0.75, beta=1.0, threshold=2.0)])
def test_a_synaptic_current_counts_with_its_charge(syn):
    weights = torch.linspace(0.01, 1.0, 100).double().unsqueeze(0)
    model, state, spikes = nn.Sequential(syn()), (), []
    for current in (weights, *[torch.zeros_like(weights)] * 200):
        out, *state = model[0](current, *state)
        spikes.append(out)
    fired = torch.stack(spikes).any(0)
    replace_neurons(model)
    assert torch.equal(_charge(model[0], weights), fired)
    assert 0 < fired.sum() < 100


def test_norses_synaptic_current_counts_with_its_charge():
    p = norse.LIFParameters(tau_mem_inv=torch.tensor(0.01), tau_syn_inv=torch.tensor(200.0))
    model = norse.SequentialState(norse.LIF(p))
    # The membrane forgets 0.1 % in what is 0.05 s here, in which the synaptic current has ended.
    weights = torch.linspace(500, 39500, 40).double().unsqueeze(0)
    currents = torch.zeros(50, *weights.shape).double()
    currents[0] = weights
    fired = _first_spikes(model, currents).isfinite()
    replace_neurons(model)
    assert torch.equal(_first_spikes(model, currents).isfinite(), fired)
    assert 0 < fired.sum() < 40


def test_neurons_are_replaced_in_place_and_nothing_else_is():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.block = nn.Sequential(snn.Leaky(0.9, init_hidden=True), nn.Linear(3, 2))
            self.lif = snn.Leaky(0.5, learn_beta=True, learn_threshold=True, output=True, init_hidden=True)
            self.done = SingleSpike()

    model = Net()
    model.lif.eval()
    kept = {path: module for path, module in model.named_modules() if "lif" not in path and "0" not in path}
    parameters = dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    changed = replace_neurons(model)
    assert [(c.path, c.old, c.new) for c in changed] == [
        ("block.0", "Leaky", "SingleSpike"),
        ("lif", "Leaky", "SingleSpike"),
    ]
    assert all(model.get_submodule(path) is module for path, module in kept.items())
    found = dict(model.named_parameters())
    assert found.keys() == parameters.keys()
    assert all(found[name] is parameter for name, parameter in parameters.items())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])
    assert isinstance(model.lif, SingleSpike)
    assert (model.lif.init_hidden, model.lif.output, model.lif.training) == (True, True, False)
    assert model.block[0].training
    assert replace_neurons(model) == []


@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_a_replaced_model_has_a_time_mode(host):
    parts = _alive([nn.Linear(20, 12), nn.Linear(12, 5)], 16)
    if host == "snntorch":
        neurons = snn.Leaky(1.0, init_hidden=True), snn.Leaky(0.9, init_hidden=True, output=True)
        model = nn.Sequential(parts[0], neurons[0], parts[1], neurons[1])
    else:
        lif = _lif_box(v_th=0.1)
        model = norse.SequentialState(parts[0], norse.IAF(_iaf()), norse.Lift(parts[1]), norse.Lift(lif))
    with pytest.raises(NoTimeMode, match="replace_neurons"):
        to_event_driven(model, t_max=16)
    assert [c.path for c in replace_neurons(model)] == ["1", "3" if host == "snntorch" else "3.lifted_module"]
    times = _times((8, 20), 16)
    network = to_event_driven(model, t_max=16)
    out = network(times)
    if host == "snntorch":
        expected = _first(model, times, 16)
    else:
        expected = spikes_to_times(model(times_to_spikes(times, 16))[0][0])
    assert torch.equal(out, expected)
    assert 0.2 < out.isfinite().double().mean() < 1
    assert [layer.neuron.beta for layer in network] == pytest.approx([1.0, 0.9])


def test_a_neuron_in_two_places_stays_shared():
    lif = snn.Leaky(0.9)
    model = nn.ModuleDict({"a": lif, "b": nn.Sequential(nn.Linear(2, 2), lif), "c": snn.Leaky(0.9)})
    assert [c.path for c in replace_neurons(model)] == ["a", "b.1", "c"]
    assert model["a"] is model["b"][1] is not model["c"]
    assert isinstance(model["a"], SingleSpike)


@pytest.mark.parametrize(
    ("neuron", "message"),
    [
        (
            snn.RLeaky(0.9, linear_features=3),
            r"^1\.0 \(RLeaky\) cannot be replaced: only Leaky, Lapicque and S",
        ),
        (snn.Alpha(0.9, 0.8), r"^1\.0 \(Alpha\) cannot be replaced: only Leaky"),
        (snn.Synaptic(alpha=1.0, beta=0.9), r"^1\.0 \(Synaptic\) .*alpha = 1 is a synaptic current .* never"),
        (
            norse.LIFRecurrentCell(3, 3),
            r"^1\.0 \(LIFRecurrentCell\) cannot be replaced: only IAF, LIF, LIFBox",
        ),
        (snn.Lapicque(beta=0.2), r"^1\.0 \(Lapicque\) cannot be replaced"),
        (norse.LSNN(), r"^1\.0 \(LSNN\) cannot be replaced: only IAF"),
        (
            _lif_box(v_th=0.5, v_leak=1.0),
            r"^1\.0 \(LIFBoxCell\) .*v_th 0\.5 must not be below the potential at",
        ),
    ],
)
def test_neurons_that_cannot_be_replaced_leave_the_model_as_it_was(neuron, message):
    model = nn.Sequential(snn.Leaky(0.9), nn.Sequential(neuron), norse.LIF())
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=message):
        replace_neurons(model)
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize("neuron", [snn.Leaky(0.9), norse.LIFCell()])
def test_a_model_that_is_a_neuron_cannot_be_replaced_in_place(neuron):
    message = rf"model is a neuron itself \({type(neuron).__name__}\): pass the model it is part of"
    with pytest.raises(ValueError, match=message):
        replace_neurons(neuron)


class _OneState(_Net):
    """The classic slip: one `mem` for two neurons."""

    def forward(self, x):
        mem, spikes = self.lif1.reset_mem(), []
        for step in range(x.size(0)):
            spk, mem = self.lif1(self.fc1(x[step]), mem)
            spk, mem = self.lif2(self.fc2(spk), mem)
            spikes.append(spk)
        return torch.stack(spikes)


class _NorseNet(nn.Module):
    carries = True

    def __init__(self):
        super().__init__()
        self.fc, self.cell = nn.Linear(12, 3), SingleSpikeIFCell()

    def forward(self, x):
        state, spikes = None, []
        for x_t in x:
            z, new = self.cell(self.fc(x_t), state)
            state = new if self.carries else None
            spikes.append(z)
        return torch.stack(spikes)


class _FreshState(_NorseNet):
    carries = False


class _FourSteps(_NorseNet):
    def forward(self, x):
        state = None
        for step in range(4):
            z, state = self.cell(self.fc(x[step]), state)
        return z


def test_a_norse_cell_with_its_state_is_followed():
    model, times = _NorseNet().double(), _times((5, 12), 16)
    nn.init.normal_(model.fc.weight, 0.2, 0.5, generator=torch.Generator().manual_seed(0))
    found = to_event_driven(model, t_max=16)(times)
    assert torch.equal(found, spikes_to_times(model(times_to_spikes(times, 16))))
    assert found.isfinite().any()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_OneState, "_OneState passes lif2 a state that is not its own"),
        (_FreshState, "_FreshState starts cell anew in every step: pass it the state it returned"),
        (_FourSteps, "_FourSteps runs 4 steps, but t_max is 16"),
    ],
)
def test_states_and_steps_that_differ_from_the_time_mode_are_refused(kind, message):
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(kind(), t_max=16)
    if kind is _FourSteps:
        assert to_event_driven(kind(), t_max=4)[0].t_max == 4


def test_a_neuron_that_keeps_its_state_cannot_stand_in_two_places():
    lif = HIDDEN()
    with pytest.raises(NoTimeMode, match=r"drives 1 .* it keeps one state for two places"):
        to_event_driven(nn.Sequential(nn.Linear(3, 3), lif, nn.Linear(3, 3), lif), t_max=4)


def test_subclasses_with_a_forward_of_their_own_are_refused():
    class Twice(SingleSpike):
        def forward(self, input_, mem=None):
            return super().forward(2 * input_, mem)

    class TwiceInNorse(SingleSpikeIF):
        def forward(self, input_tensor, state=None):
            return super().forward(2 * input_tensor, state)

    for neuron in (Twice(init_hidden=True), TwiceInNorse()):
        with pytest.raises(NoTimeMode, match="a forward of its own"):
            to_event_driven(nn.Sequential(nn.Linear(3, 3), neuron), t_max=4)


def test_silent_gradient_needs_neurons_at_the_end():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), HIDDEN(), FirstSpikePool2d(2, init_hidden=True))
    with pytest.raises(ValueError, match="silent_gradient needs a last layer with neurons, got Earliest"):
        to_event_driven(model, t_max=4, silent_gradient=True)


def test_to_step_mode_takes_one_layer_and_refuses_what_it_would_change():
    layer = SpikeLinear(3, 2, IF(), t_max=8)
    assert to_step_mode(layer, "snntorch")[0].weight is layer.weight
    with pytest.raises(ValueError, match=r"one t_max, got \[8, 9\]"):
        to_step_mode(nn.Sequential(layer, SpikeLinear(2, 2, IF(), t_max=9)), "norse")
    with pytest.raises(TypeError, match=r"model must be a row of layers .* got Linear"):
        to_step_mode(nn.Linear(3, 2), "norse")
    hidden = SpikeLinear(3, 3, IF(), t_max=8, silent_gradient=True)
    with pytest.raises(NoTimeMode, match="silent_gradient must be False"):
        to_step_mode(nn.Sequential(hidden, SpikeLinear(3, 2, IF(), t_max=8)), "norse")
