import sys

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import spikegen
from torch import nn
from torch.nn.utils import prune

from ssnn_plugin import NoTimeMode, to_event_driven, verify
from ssnn_plugin.decode import times_to_spikes
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell
from ssnn_plugin.snntorch import FirstSpikePool2d, SingleSpike, latency

T = 16


def _seeded(model, mean=0.15, spread=0.3):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean, spread, generator=generator)
    return model


def _image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _stack(**last):
    return nn.Sequential(
        nn.Linear(20, 12, bias=False),
        SingleSpike(init_hidden=True),
        nn.Linear(12, 6, bias=False),
        SingleSpike(init_hidden=True, **last),
    )


class _Loop(nn.Module):
    """With its spikes behind its potential."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(20, 12), nn.Linear(12, 6)
        self.lif1, self.lif2 = SingleSpike(0.9), SingleSpike(0.9)

    def forward(self, x):
        mem1, mem2, spikes, potentials = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for x_t in x:
            spk, mem1 = self.lif1(self.fc1(x_t), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
            potentials.append(mem2)
        return torch.stack(potentials), torch.stack(spikes)


class _Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.cell = nn.Linear(20, 6), SingleSpikeIFCell()

    def forward(self, x, state=None):
        return self.cell(self.fc(x), state)


MODELS = {
    "steps": _stack,
    "steps with potential": lambda: _stack(output=True),
    "loop": _Loop,
    "cell": _Cell,
    "window": lambda: norse.SequentialState(norse.Lift(nn.Linear(20, 6)), SingleSpikeIF()),
    "norse, a step per call": lambda: norse.SequentialState(nn.Linear(20, 6), SingleSpikeIFCell()),
    "learned threshold": lambda: nn.Sequential(
        nn.Linear(20, 6, bias=False), SingleSpike(init_hidden=True, learn_threshold=True)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_is_the_model(name, dtype):
    model = _seeded(MODELS[name]()).to(dtype)
    report = verify(model, latency(_image(9, 20), T).to(dtype))
    assert report.ok, report
    assert report.equal == report.outputs == 54
    assert report.silent < 54
    assert report.differences == []
    assert set(report.gradients) == {key for key, _ in model.named_parameters()}
    assert f"spike times: 54 of 54 agree, {report.silent} of them silent" in str(report)
    count = len(report.gradients)
    assert f"gradients: {count} of {count} parameters agree" in str(report)


def test_convolutions_and_pools():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        SingleSpike(init_hidden=True),
        FirstSpikePool2d(2, init_hidden=True),
        nn.Flatten(),
        nn.Linear(27, 4),
        SingleSpike(init_hidden=True),
    )
    assert verify(_seeded(model), latency(_image(5, 1, 8, 8), T)).ok


def test_the_model_is_left_as_it_is():
    model = _seeded(_stack())
    model(torch.ones(3, 20))
    before = model[1].mem.clone()
    verify(model, latency(_image(9, 20), T))
    assert torch.equal(model[1].mem, before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_values_that_stay():
    class Constant(_Loop):
        def forward(self, x):
            return super().forward(x for _ in range(T))

    assert verify(_seeded(Constant()), _image(9, 20)).ok
    model = _seeded(_stack())
    assert verify(model, _image(9, 20), t_max=T, constant_input=True).ok
    with pytest.raises(ValueError, match="t_max must be given for a model that takes values instead of"):
        verify(model, _image(9, 20), constant_input=True)


def test_read_outs_are_compared_as_values():
    model = nn.Sequential(
        *_stack()[:3], snn.Leaky(0.9, reset_mechanism="none", init_hidden=True, output=True)
    )
    report = verify(_seeded(model), latency(_image(9, 20), T))
    assert report.ok, report
    assert report.outputs == T * 9 * 6
    assert str(report).startswith("values: 864 of 864 agree to 0.0001")


def _on_a_grid(step):
    model = nn.Sequential(nn.Linear(60, 30, bias=False), SingleSpike(init_hidden=True))
    with torch.no_grad():
        model[0].weight.copy_(
            torch.randint(-2, 5, (30, 60), generator=torch.Generator().manual_seed(1)).float() * step
        )
    return model


def test_sums_that_tie_are_named_with_the_remedy():
    trains = latency(_image(40, 60), T)
    report = verify(_on_a_grid(0.1), trains)
    assert not report.ok
    assert report.equal < report.outputs
    assert len(report.differences) == 5
    assert report.explained == report.examined > 0
    assert list(report.ties) == ["0"]
    first = report.differences[0]
    assert first.steps != first.events
    told = str(report)
    assert f"sample {first.index[0]}, output ({first.index[1]},): steps {first.steps:g}" in told
    assert (
        f"ties: {report.explained} of the {report.explained} differences looked at are in samples in which"
        in told
    )
    assert f"(neurons: {report.ties['0']} in layer 0)" in told
    assert "multiples of a power of two are added up exactly" in told
    assert "no ties" not in told
    assert verify(_on_a_grid(0.125), trains).ok
    model = _on_a_grid(0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 256).round() / 256)
    assert verify(model, trains).ok


def test_differences_without_ties_are_told_apart(monkeypatch):
    def another(model, **options):
        network = to_event_driven(model, **options)
        network.follow = []
        network[0].weight = nn.Parameter(1.3 * network[0].weight.detach())
        return network

    monkeypatch.setattr(sys.modules["ssnn_plugin.verification"], "to_event_driven", another)
    report = verify(_seeded(_stack()), latency(_image(9, 20), T))
    assert not report.ok
    assert report.explained < report.examined
    assert "are no ties: the network is not the model" in str(report)
    assert report.gradients_that_differ


def test_silent_outputs_prove_nothing():
    report = verify(_seeded(_stack(), mean=-1.0), latency(_image(9, 20), T))
    assert report.silent == report.outputs == report.equal
    assert not report.ok
    assert "every output is silent: nothing is compared" in str(report)


def test_batches_that_are_no_single_spikes_are_refused():
    torch.manual_seed(0)
    with pytest.raises(
        ValueError, match=r"batch must fire at most once a line, got .* lines that fire more than"
    ):
        verify(_stack(), spikegen.rate(_image(9, 20), T))
    with pytest.raises(
        ValueError, match=r"batch must hold spikes, 0 or 1; encode values.*constant_input=True"
    ):
        verify(_stack(), _image(T, 9, 20))
    with pytest.raises(ValueError, match=r"batch must have t_max = 8 steps, got \[16, 9, 20\]"):
        verify(_stack(), latency(_image(9, 20), T), t_max=8)


def test_a_model_without_a_time_mode_is_refused():
    with pytest.raises(NoTimeMode, match="may fire more than once"):
        verify(nn.Sequential(nn.Linear(20, 6), snn.Leaky(0.9, init_hidden=True)), latency(_image(9, 20), T))


def test_models_that_keep_their_spikes_to_themselves_are_refused():
    class Potential(_Loop):
        def forward(self, x):
            return super().forward(x)[0]

    class Last(_Loop):
        def forward(self, x):
            return super().forward(x)[1][-1]

    with pytest.raises(NoTimeMode, match="returns only the state of lif2; only its spikes"):
        verify(Potential(), latency(_image(9, 20), T))
    with pytest.raises(NoTimeMode, match="Last goes on computing with the record of its steps"):
        verify(Last(), latency(_image(9, 20), T))


class _Whole(nn.Module):
    """A loop around neurons that keep their state."""

    def __init__(self):
        super().__init__()
        self.layers = _stack()

    def forward(self, x):
        return torch.stack([self.layers(step) for step in x])


def test_what_neurons_have_kept_from_an_earlier_window_is_forgotten():
    model, trains = _seeded(_Whole()), latency(_image(9, 20), T)
    model(trains)
    assert verify(model, trains).ok


class _BatchFirst(_Whole):
    def forward(self, x):
        return torch.stack([self.layers(x[:, step]) for step in range(x.shape[1])])


class _StepsLast(_Whole):
    def forward(self, x):
        return torch.stack([self.layers(x[..., step]) for step in range(x.shape[-1])])


@pytest.mark.parametrize("kind", [_BatchFirst, _StepsLast])
def test_models_that_take_their_steps_along_another_axis_are_given_them_there(kind):
    report = verify(_seeded(kind()), latency(_image(9, 20), T))
    assert report.ok
    assert report.silent < report.outputs


def test_the_value_of_the_last_step_alone_is_compared():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.read = _stack(), snn.Leaky(0.9, reset_mechanism="none")

        def forward(self, x):
            mem = self.read.reset_mem()
            for step in x:
                _, mem = self.read(self.layers(step), mem)
            return mem

    report = verify(_seeded(Last()), latency(_image(9, 20), T))
    assert report.ok
    assert report.outputs == 9 * 6


def test_a_window_of_the_same_values_is_made_for_a_model_that_takes_one():
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(20, 6), SingleSpike(sequence=True)

        def forward(self, x):
            return self.lif(self.fc(x))[0]

    assert verify(_seeded(Window()), _image(9, 20), t_max=T, constant_input=True).ok


def test_a_parameter_that_nothing_reaches_is_told():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), SingleSpike(init_hidden=True, output=True)).double()
    nn.init.constant_(model[0].weight, 0.7)
    model.unused = nn.Parameter(torch.ones(1).double())
    times = torch.randint(0, 8, (5, 4), generator=torch.Generator().manual_seed(0)).double()
    report = verify(model, times_to_spikes(times, 8))
    assert report.no_gradient == ["unused"]
    assert "no gradient reaches unused" in str(report)


class _States(nn.Module):
    """One step per call, with its states as arguments, in another order among what it returns."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(20, 12, bias=False), nn.Linear(12, 6, bias=False)
        self.lif1, self.lif2 = SingleSpike(0.9), SingleSpike(0.9)

    def step(self, x, mem1, mem2):
        spk, mem1 = self.lif1(self.fc1(x), mem1)
        spk, mem2 = self.lif2(self.fc2(spk), mem2)
        return spk, mem1, mem2


class _Reversed(_States):
    def forward(self, x, mem1=None, mem2=None):
        spk, mem1, mem2 = self.step(x, mem1, mem2)
        return spk, mem2, mem1


class _Named(_States):
    def forward(self, x, mem1=None, mem2=None):
        spk, mem1, mem2 = self.step(x, mem1, mem2)
        return {"spikes": spk, "mem2": mem2, "mem1": mem1}


class _Required(_States):
    def forward(self, x, mem1, mem2):
        return self.step(x, mem1, mem2)


@pytest.mark.parametrize("kind", [_Reversed, _Named, _Required])
def test_states_are_found_wherever_they_are_returned(kind):
    report = verify(_seeded(kind()), latency(_image(9, 20), T))
    assert report.ok
    assert 0 < report.silent < report.outputs


def test_states_that_cannot_be_told_apart_are_asked_for():
    class Hidden(_States):
        def forward(self, x, mem1=None, mem2=None):
            spk, mem1, mem2 = self.step(x, mem1, mem2)
            return spk, (mem1, mem2)

    def run(model, trains):
        mem1 = mem2 = None
        spikes = []
        for x in trains:
            spk, mem1, mem2 = model.step(x, mem1, mem2)
            spikes.append(spk)
        return torch.stack(spikes)

    model, trains = _seeded(Hidden()), latency(_image(9, 20), T)
    with pytest.raises(ValueError, match=r"must return the states that it takes \(mem1, mem2\).*run=lambda"):
        verify(model, trains)
    assert verify(model, trains, run=run).ok


class _BatchFirst(nn.Module):
    """A loop over an axis of its input, which joins what it reads along another one."""

    def __init__(self, axis, joined):
        super().__init__()
        self.fc, self.lif, self.read = nn.Linear(20, 12, bias=False), SingleSpike(), nn.Linear(12, 6)
        self.axis, self.joined = axis, joined

    def forward(self, x):
        mem, values = self.lif.reset_mem(), []
        for step in x.unbind(self.axis):
            spk, mem = self.lif(self.fc(step), mem)
            values.append(self.read(spk))
        return torch.stack(values, self.joined)


@pytest.mark.parametrize("batch", [9, T])
@pytest.mark.parametrize(("axis", "joined"), [(0, 1), (1, 0), (1, 1)])
def test_steps_may_be_any_axis_of_input_and_output(axis, joined, batch):
    report = verify(_seeded(_BatchFirst(axis, joined)), latency(_image(batch, 20), T))
    assert report.ok
    assert report.outputs == T * batch * 6


def test_a_model_that_has_run_or_is_pruned_is_compared():
    read_out = snn.Leaky(0.9, reset_mechanism="none", init_hidden=True, output=True)
    model, trains = (
        _seeded(nn.Sequential(*_stack()[:2], nn.Linear(12, 6), read_out)),
        latency(_image(9, 20), T),
    )
    for step in trains:
        model(step)
    assert verify(model, trains).ok
    pruned = _seeded(_stack())
    prune.l1_unstructured(pruned[0], "weight", amount=0.3)
    assert verify(pruned, trains).ok


def test_the_hosts_hear_nothing_of_the_copies():
    model, trains = _seeded(_stack()), latency(_image(9, 20), T)
    before = list(snn.SpikingNeuron.instances)
    verify(model, trains)
    assert snn.SpikingNeuron.instances == before


class _Labelled(_States):
    def forward(self, x, mem1=None, mem2=None, labels=None):
        return self.step(x, mem1, mem2)


def test_optional_arguments_that_are_no_states_are_left_out():
    assert verify(_seeded(_Labelled()), latency(_image(9, 20), T)).ok


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models_are_compared(wrap):
    assert verify(wrap(_seeded(_stack())), latency(_image(9, 20), T)).ok


def test_a_model_that_keeps_a_record_is_compared():
    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.record = _stack(), {"spikes": []}

        def forward(self, x):
            spk = self.layers(x)
            self.record["spikes"].append(spk)
            return spk

    model, trains = _seeded(Recording()), latency(_image(9, 20), T)
    model(trains[0])
    assert verify(model, trains).ok
    assert len(model.record["spikes"]) == 1


def test_run_returns_the_spikes_alone():
    model = _seeded(_Reversed())
    with pytest.raises(
        TypeError, match=r"run must return spikes or values \[T, batch, \*\] alone, got tuple"
    ):
        verify(model, latency(_image(9, 20), T), run=lambda model, trains: model(trains[0]))
