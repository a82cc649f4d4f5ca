"""Models that do something in a part of their window, or of what they compute, alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssnn_plugin import NoTimeMode, encode, to_event_driven, verification, verify
from ssnn_plugin.decode import times_to_spikes
from ssnn_plugin.snntorch import SingleSpike, latency

T, BATCH = 12, 5


class Two(nn.Module):
    """Two layers of neurons that are given their state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(8, 6, bias=False), nn.Linear(6, 4, bias=False)
        self.lif1, self.lif2 = SingleSpike(), SingleSpike()
        for layer in (self.fc1, self.fc2):
            nn.init.uniform_(layer.weight, -0.2, 0.9)

    def states(self):
        return self.lif1.init_leaky(), self.lif2.init_leaky()

    def step(self, x, mem1, mem2):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


def _trains():
    return latency(torch.rand(BATCH, 8, generator=torch.Generator().manual_seed(1)), num_steps=T)


def _of(forward):
    return type("Of", (Two,), {"forward": forward})()


def _over(steps):
    def forward(self, x):
        mem1, mem2 = self.states()
        record = []
        for given in steps(x):
            spikes, mem1, mem2 = self.step(given, mem1, mem2)
            record.append(spikes)
        return torch.stack(record)

    return _of(forward)


def _until_the_fifth(x):
    for number, given in enumerate(x):
        if number == 4:
            return
        yield given


@pytest.mark.parametrize(
    ("steps", "count"),
    [
        (lambda x: [x[t] for t in range(min(len(x), 5))], 5),
        (lambda x: [x[t] for t in range(len(x) // 2)], 6),
        (lambda x: [x[t] for t in range(len(x) - 1)], 11),
        (lambda x: [given for _, given in zip(range(4), x, strict=False)], 4),
        (_until_the_fifth, 4),
    ],
    ids=["at most", "half", "all but one", "zip", "break"],
)
def test_a_loop_over_a_part_of_the_window_is_refused(steps, count):
    with pytest.raises(NoTimeMode, match=f"runs {count} steps, but t_max is {T}"):
        to_event_driven(_over(steps), t_max=T)


def test_a_loop_over_the_whole_window_is_followed():
    assert verify(_over(lambda x: [x[t] for t in range(x.size(0))]), _trains()).ok


@pytest.mark.parametrize("start", ["zeros", "init"])
def test_a_state_may_start_from_zeros_on_the_device_of_the_input(start):
    def forward(self, x):
        mem1 = (
            torch.zeros(x.size(1), 6).to(x.device)
            if start == "zeros"
            else self.lif1.init_leaky().to(x.device)
        )
        mem2 = torch.zeros(x.size(1), 4).type_as(x)
        record = []
        for given in x:
            spikes, mem1, mem2 = self.step(given, mem1, mem2)
            record.append(spikes)
        return torch.stack(record)

    assert verify(_of(forward), _trains()).ok


def _in_sequence(*between, inputs=8):
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, 6), *between, SingleSpike(sequence=True, init_hidden=True, output=False)]
    nn.init.uniform_(layers[0].weight, -0.2, 0.9)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "module", [nn.Softmax(dim=1), nn.LogSoftmax(dim=0), nn.BatchNorm1d(BATCH).eval(), nn.GroupNorm(1, BATCH)]
)
def test_a_module_that_takes_the_batch_of_a_window_for_another_axis_is_refused(module):
    model = _in_sequence(module).eval()
    model(_trains())
    with pytest.raises(NoTimeMode, match=f"gives 1 .{type(module).__name__}. a window of steps"):
        to_event_driven(model, t_max=T)


@pytest.mark.parametrize("module", [nn.Softmax(dim=2), nn.Softmax(dim=-1)])
def test_axes_of_a_window_are_those_of_its_steps(module):
    model = _in_sequence(module)
    model[-1].threshold.fill_(0.9)
    trains = _trains()
    expected = model(trains)
    network = to_event_driven(model, t_max=T)
    times = network(encode.latency(torch.rand(BATCH, 8, generator=torch.Generator().manual_seed(1)), T))
    assert torch.equal(times_to_spikes(times, T), expected)


def _partly(context):
    def forward(self, x):
        mem1, mem2 = self.states()
        record = []
        for given in x:
            with context():
                spk1, mem1 = self.lif1(self.fc1(given), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(spk2)
        return torch.stack(record)

    return _of(forward)


@pytest.mark.parametrize("context", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_part_without_gradients_or_digits_is_refused(context):
    with pytest.raises(NoTimeMode, match="switches gradients or autocast for a part"):
        to_event_driven(_partly(context), t_max=T)


def _dropped(training):
    def forward(self, x):
        mem1, mem2 = self.states()
        record = []
        for given in x:
            spk1, mem1 = self.lif1(self.fc1(given), mem1)
            kept = F.dropout(spk1, 0.5, self.training if training is None else training)
            spk2, mem2 = self.lif2(self.fc2(kept), mem2)
            record.append(spk2)
        return torch.stack(record)

    return _of(forward)


def test_dropout_of_a_model_in_evaluation_mode_comes_back_in_training():
    network = to_event_driven(_dropped(None).eval(), t_max=T)
    times = encode.latency(torch.rand(64, 8), T)
    assert torch.equal(network(times), network(times))
    network.train()
    assert not torch.equal(network(times), network(times))


def test_dropout_that_never_ends_is_refused():
    with pytest.raises(NoTimeMode, match="drops values in evaluation mode too"):
        to_event_driven(_dropped(True).eval(), t_max=T)


def test_what_a_model_has_frozen_stays_frozen():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), SingleSpike(init_hidden=True, output=False))
    model.train()
    model[1].eval()
    network = to_event_driven(model, t_max=T)
    assert network.training
    assert not model[1].training
    network(encode.latency(torch.rand(BATCH, 8), T))


def _read_out(returned):
    class ReadOut(Two):
        def forward(self, x):
            mem1, mem2 = self.states()
            values = []
            for given in x:
                spikes, mem1, mem2 = self.step(given, mem1, mem2)
                values.append(self.out(spikes))
            return returned(values)

    model = ReadOut()
    model.out = nn.Linear(4, 3)
    return model


@pytest.mark.parametrize(
    "returned",
    [
        lambda r: torch.stack(r[::-1]),
        lambda r: torch.stack(r[2:]),
        lambda r: r[0],
        lambda r: torch.stack(r[:-1]),
    ],
    ids=["reversed", "burn-in", "first", "all but the last"],
)
def test_values_of_a_part_of_the_window_are_refused(returned):
    with pytest.raises(NoTimeMode, match=r"does not return the values of all its steps, .* or of the last"):
        to_event_driven(_read_out(returned), t_max=T)


@pytest.mark.parametrize("returned", [torch.stack, lambda r: r[-1]], ids=["all", "last"])
def test_values_of_all_steps_or_the_last_are_returned(returned):
    model, trains = _read_out(returned), _trains()
    network = to_event_driven(model, t_max=T, last_bin=returned is not torch.stack)
    times = encode.latency(torch.rand(BATCH, 8, generator=torch.Generator().manual_seed(1)), T)
    torch.testing.assert_close(network(times), model(trains))


def test_a_gradient_that_one_side_lacks_is_a_difference():
    model, right = nn.Linear(3, 2, bias=False), torch.ones(4, dtype=torch.bool)
    outputs = model(torch.rand(4, 3))
    errors, missing = verification._gradients(model, outputs.detach(), outputs, right, of_times=True)
    assert errors == {"weight": 1.0}
    assert not missing
