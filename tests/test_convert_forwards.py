"""Models with a forward of their own: what is followed, what is refused."""

import math

import pytest
import torch
from front_ends import HIDDEN, Block, alive, some_times
from torch import nn
from torch.nn.functional import max_pool2d, relu

from ssnn_plugin import NoTimeMode, to_event_driven
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell
from ssnn_plugin.snntorch import FirstSpikePool2d, SingleSpike, reset

INF = math.inf


class _Net(nn.Module):
    """As in snnTorch's tutorials."""

    num_steps = 16

    def __init__(self, init_hidden=False):
        super().__init__()
        self.fc1, self.fc2 = alive([nn.Linear(10, 12), nn.Linear(12, 4)], 16, drive=0.4)
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


class _Nested(nn.Module):
    flatten = staticmethod(lambda x: torch.flatten(x, 1))

    def __init__(self):
        super().__init__()
        self.conv = Block(alive([nn.Conv2d(1, 3, 3)], 16)[0])
        self.rest = nn.Sequential(nn.Identity(), Block(alive([nn.Linear(27, 4)], 16)[0]))

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
    model, times = kind(), some_times((8, 10), 16)
    network = to_event_driven(model, t_max=16)
    found = network(times)
    assert torch.equal(found, spikes_to_times(model(times_to_spikes(times, 16))[0]))
    assert 0.2 < found.isfinite().double().mean() < 1
    assert [layer.weight for layer in network] == [model.fc1.weight, model.fc2.weight]


def test_flatten_in_a_loop_over_time():
    model, times = _Flattened(), some_times((8, 2, 5), 16)
    found = to_event_driven(model, t_max=16)(times)
    assert torch.equal(found, spikes_to_times(model(times_to_spikes(times, 16))[0]))


@pytest.mark.parametrize("kind", [_OneStep, _OneStepWithState])
def test_forwards_of_one_step_are_followed(kind):
    model, times = kind(), some_times((8, 10), 16)
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
    model, times = kind(), some_times((8, 1, 5, 5), 16)
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


class _FlatRows(nn.Module):
    """In a step there is no axis of time: the batch and the channels stay."""

    def __init__(self, flatten):
        super().__init__()
        self.conv, self.lif, self.flatten = nn.Conv2d(1, 4, 3), SingleSpike(init_hidden=True), flatten

    def forward(self, x):
        return self.flatten(self.lif(self.conv(x)))


@pytest.mark.parametrize(
    "flatten",
    [nn.Flatten(2), lambda spikes: spikes.flatten(2), lambda spikes: spikes.view(spikes.size(0), 4, -1)],
)
def test_what_flattens_rows_in_a_step_does_not_flatten_samples(flatten):
    with pytest.raises(NoTimeMode, match="Behind the last neuron, do so with what the network returns"):
        to_event_driven(_FlatRows(flatten), t_max=8)


def test_a_potential_comes_through_a_flattening_behind_branches():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = alive([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)], 8)
            self.lif1, self.lif2 = SingleSpike(init_hidden=True), SingleSpike(init_hidden=True)
            self.flatten = nn.Flatten()

        def forward(self, x):
            spikes = self.lif1(self.conv1(x))
            return self.flatten(self.lif2(self.conv2(spikes) + x))

    network = to_event_driven(Branches().double(), t_max=8)
    assert network.sources is not None
    times = some_times((2, 1, 4, 4), 8)
    spikes, potential = network(times, return_potential=True)
    assert spikes.shape == potential.shape == (2, 64)
    assert torch.equal(network.decide(times).time, spikes.amin(1))


def test_what_is_not_returned_is_left_out():
    model, times = _Hidden(), some_times((8, 10), 16)
    (layer,) = to_event_driven(model, t_max=16)
    assert layer.weight is model.fc1.weight
    reset(model)
    spikes = torch.stack([model(x) for x in times_to_spikes(times, 16)])
    assert torch.equal(layer(times), spikes_to_times(spikes))


class _Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_of_torch_is_looked_into():
    model, times = nn.Sequential(_Doubled(10, 4), HIDDEN()).double(), some_times((8, 10), 16)
    nn.init.uniform_(model[0].weight, 0, 0.3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NoTimeMode, match=r"_Doubled calls .* between its modules"):
        to_event_driven(model, t_max=16, binwise=False)
    found = to_event_driven(model, t_max=16)(times)
    reset(model)
    spikes = torch.stack([model(x) for x in times_to_spikes(times, 16)])
    assert torch.equal(found, spikes_to_times(spikes))
    assert found.isfinite().any()


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
    model, times = _NorseNet().double(), some_times((5, 12), 16)
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
