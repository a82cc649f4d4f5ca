"""Models that take a window in one call are followed step by step, and calls by keyword as by position."""

import pytest
import torch
from norse.torch import Lift
from torch import nn

from ssnn_plugin import NoTimeMode, encode, to_event_driven
from ssnn_plugin.decode import first_spikes, times_to_spikes
from ssnn_plugin.norse import SingleSpikeIF
from ssnn_plugin.snntorch import SingleSpike, reset

T = 8


def _times(*shape):
    return encode.latency(torch.rand(*shape, generator=torch.Generator().manual_seed(0)), T)


def _linear(inputs=6, outputs=4):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.uniform_(layer.weight, -0.1, 0.8, generator=torch.Generator().manual_seed(1))
    return layer


class _Window(nn.Module):
    """A window in one call; `change` is done to the currents [T, batch, *], given the input as well."""

    def __init__(self, change, inputs=6):
        super().__init__()
        self.fc, self.lif, self.change = _linear(inputs), SingleSpike(sequence=True), change

    def forward(self, x):
        return self.lif(self.change(self.fc(x), x))[0]


def _in_steps(model, times):
    reset(model)
    return first_spikes(model(times_to_spikes(times, T)))


@pytest.mark.parametrize(
    "change",
    [
        lambda h, x: h + 0.5 * h[:, :, [1, 0, 3, 2]],
        lambda h, x: h[:, :, 1:3],
        lambda h, x: h[..., 1:3],
        lambda h, x: h[:],
        lambda h, x: 2 * h / h.shape[-1],
        lambda h, x: 2 * h / h.size(-1),
        lambda h, x: 8 * h / (h.shape[-1] + x.shape[-1]),
        lambda h, x: h + torch.linspace(0, 0.3, 4),
        lambda h, x: h * torch.linspace(0.5, 1, 4).reshape(1, 1, 4),
    ],
)
def test_what_is_the_same_in_every_step_is_followed(change):
    model, times = _Window(change), _times(5, 6)
    found = to_event_driven(model, t_max=T)(times)
    assert torch.equal(found, _in_steps(model, times))
    assert found.isfinite().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, x: h[2:], r"takes a part of a window of steps \(slice\(2, None, None\)\)"),
        (lambda h, x: h / x.shape[0], "computes with the size of a window of steps"),
        (lambda h, x: h * x.size(1), "computes with the size of a window of steps"),
        (lambda h, x: h * x.size()[1], "computes with the size of a window of steps"),
        (lambda h, x: h + h.mT, "computes with the size of a window of steps"),
    ],
)
def test_what_is_not_is_refused(change, message):
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(_Window(change), t_max=T)


def test_a_drive_that_differs_from_step_to_step_is_refused_when_it_meets_a_window():
    drive = torch.linspace(0, 0.3, T).reshape(T, 1, 1)
    network = to_event_driven(_Window(lambda h, x: h + drive), t_max=T)
    with pytest.raises(ValueError, match=r"differs from step to step, got one of shape \[8, 1, 1\]"):
        network(_times(5, 6))


def test_a_part_of_every_channel_is_taken_in_every_step():
    model, times = _Window(lambda h, x: h[:, :, 0:1], inputs=4), _times(3, 2, 4, 4)
    assert torch.equal(to_event_driven(model, t_max=T)(times), _in_steps(model, times))


class _Step(nn.Module):
    def __init__(self, inputs=6):
        super().__init__()
        self.fc, self.lif = _linear(inputs), SingleSpike(init_hidden=True)


class _FlattenByKeyword(_Step):
    def forward(self, x):
        return self.lif(input_=self.fc(input=torch.flatten(input=x, start_dim=1)))


class _FlattenInside(_Step):
    def forward(self, x):
        return self.lif(self.fc(torch.flatten(x, 1, end_dim=2)))


class _Depth(_Step):
    def forward(self, x, depth=1):
        currents = self.fc(x)
        for _ in range(depth):
            currents = 0.8 * currents
        return self.lif(currents)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(_FlattenByKeyword(), (5, 6)), (_FlattenInside(4), (5, 3, 1, 4)), (_Depth(), (5, 6))],
)
def test_arguments_of_one_step_are_understood(model, shape):
    times = _times(*shape)
    found = to_event_driven(model, t_max=T)(times)
    assert found.isfinite().any()
    reset(model)
    assert torch.equal(found, first_spikes(torch.stack([model(x) for x in times_to_spikes(times, T)])))


class _ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = _linear(), SingleSpike()

    def forward(self, x):
        mem, out = self.lif.reset_mem(), []
        for t in range(len(x)):
            spk, mem = self.lif(mem=mem, input_=self.fc(input=x[t]))
            out.append(spk)
        return torch.stack(tensors=out)


class _LiftByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = Lift(_linear()), SingleSpikeIF()

    def forward(self, x):
        return self.lif(self.fc(x=x))[0]


@pytest.mark.parametrize("kind", [_ByKeyword, _LiftByKeyword])
def test_calls_by_keyword_are_followed(kind):
    model, times = kind(), _times(5, 6)
    assert torch.equal(to_event_driven(model, t_max=T)(times), _in_steps(model, times))


@pytest.mark.parametrize(
    "change",
    [lambda x: x.transpose(0, 1), lambda x: x.flip(0), lambda x: torch.permute(x, (1, 0, 2))],
)
def test_steps_of_what_is_made_of_the_input_are_refused_as_such(change):
    class Changed(_ByKeyword):
        def forward(self, x):
            return super().forward(change(x))

    with pytest.raises(NoTimeMode, match=r"takes its steps from what (transpose|flip|permute) makes of its"):
        to_event_driven(Changed(), t_max=T)


def test_neurons_that_take_a_window_and_such_that_take_a_step_are_refused_in_one_model():
    last = SingleSpike(init_hidden=True, output=True)
    model = nn.Sequential(_linear(), SingleSpike(init_hidden=True, sequence=True), _linear(4), last)
    with pytest.raises(
        NoTimeMode, match=r"^1 \(SingleSpike\) takes a window .* 3 \(SingleSpike\) in the same"
    ):
        to_event_driven(model, t_max=T)


def test_a_network_on_spike_times_is_none_of_steps():
    model = nn.Sequential(_linear(), SingleSpike(init_hidden=True))
    with pytest.raises(NoTimeMode, match="EventDrivenNetwork runs on spike times already"):
        to_event_driven(to_event_driven(model, t_max=T), t_max=T)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_values_that_come_in_every_step_are_finite(bad):
    model = nn.Sequential(nn.Linear(3, 4), SingleSpike(init_hidden=True, output=True))
    network = to_event_driven(model, t_max=8, constant_input=True)
    values = torch.rand(2, 3)
    values[1, 1] = bad
    with pytest.raises(ValueError, match="values must be finite: the model gets the same values in every"):
        network(values)
