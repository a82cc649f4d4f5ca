"""A start with neurons that fire, for models in steps."""

import copy

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

import ssnn_plugin.norse as norse_adapter
import ssnn_plugin.snntorch as snntorch_adapter
from ssnn_plugin import to_event_driven
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell, SingleSpikeIFParameters
from ssnn_plugin.snntorch import SingleSpike

T = 16


def _times(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64).mul(1.5 * T).floor()


def _trains(*shape):
    return times_to_spikes(_times(*shape), T)


def _linear(inputs, outputs, bias=False):
    generator = torch.Generator().manual_seed(inputs)
    layer = nn.Linear(inputs, outputs, bias=bias).double()
    nn.init.uniform_(layer.weight, -0.1, 0.1, generator=generator)
    return layer


class _Loop(nn.Module):
    """A forward with a loop of its own and states that are passed."""

    def __init__(self, beta=0.9):
        super().__init__()
        self.fc1, self.lif1 = _linear(20, 30), SingleSpike(beta, threshold=1.5)
        self.fc2, self.lif2 = _linear(30, 10), SingleSpike(beta)

    def forward(self, x):
        mem1, mem2, out = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            out.append(spk)
        return torch.stack(out)


def _sequential(sequence=False):
    last = {"init_hidden": True, "output": True, "sequence": sequence}
    hidden = SingleSpike(init_hidden=True, sequence=sequence)
    return nn.Sequential(_linear(20, 30), hidden, nn.Dropout(), _linear(30, 10), SingleSpike(**last))


def _leaky_norse(kind):
    p = SingleSpikeIFParameters(v_th=0.5, tau_mem_inv=50.0)
    return norse.SequentialState(_linear(20, 30), kind(p), norse.Lift(_linear(30, 10)), kind(p))


MODELS = {
    "loop": (_Loop, snntorch_adapter),
    "sequential": (_sequential, snntorch_adapter),
    "sequence": (lambda: _sequential(True), snntorch_adapter),
    "norse": (lambda: _leaky_norse(SingleSpikeIF), norse_adapter),
    "norse cells": (lambda: _leaky_norse(SingleSpikeIFCell), norse_adapter),
}


@pytest.mark.parametrize("fraction", [0.2, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_the_wanted_part_of_every_layer_fires(name, fraction):
    build, adapter = MODELS[name]
    model, times = build().train(), _times(40, 20)
    trains = times_to_spikes(times, T)
    before = [parameter.clone() for parameter in model.parameters()]
    reached = adapter.calibrate(model, trains, fraction)
    assert len(reached) == 2
    assert all(module.training for module in model.modules())
    found = times
    for layer, said in zip(to_event_driven(model, t_max=T).eval(), reached.values(), strict=True):
        found = layer(found)
        assert float(found.isfinite().double().mean()) == pytest.approx(said)
        assert said == pytest.approx(fraction, abs=0.01)
    for was, parameter in zip(before, model.parameters(), strict=True):
        raised = parameter - was
        assert raised.std() < 1e-12
        assert parameter.requires_grad
        assert parameter.grad is None


def test_convolutions_pools_and_a_bias():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3).double(),
        nn.MaxPool2d(2),
        SingleSpike(init_hidden=True),
        nn.Flatten(),
        _linear(36, 5, bias=True),
        SingleSpike(init_hidden=True, output=True),
    )
    biases = [model[0].bias.clone(), model[4].bias.clone()]
    reached = snntorch_adapter.calibrate(model, _trains(30, 1, 8, 8), 0.4)
    assert list(reached) == ["2", "5"]
    # Windows that hold the same pixels fire together, so that not every fraction can be had.
    assert all(part == pytest.approx(0.4, abs=0.05) for part in reached.values())
    assert torch.equal(model[0].bias, biases[0])
    assert torch.equal(model[4].bias, biases[1])


def test_states_are_those_of_a_fresh_window_afterwards():
    model = _sequential().eval()
    trains = _trains(40, 20)
    snntorch_adapter.calibrate(model, trains, 0.5)
    twin = copy.deepcopy(model)
    snntorch_adapter.reset(twin)
    assert all(torch.equal(model(step)[0], twin(step)[0]) for step in trains)


def test_a_model_that_takes_a_step_per_call_needs_run():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = _linear(20, 10), SingleSpike(init_hidden=True)

        def forward(self, x):
            return self.lif(self.fc(x))

    model, trains = Step(), _trains(40, 20)
    with pytest.raises(
        ValueError, match=r"'lif' must be called 16 times for 16 steps, got 1 calls.*run=lambda"
    ):
        snntorch_adapter.calibrate(model, trains)

    def run(model, trains):
        snntorch_adapter.reset(model)
        return [model(step) for step in trains]

    assert snntorch_adapter.calibrate(model, trains, 0.3, run=run)["lif"] == pytest.approx(0.3, abs=0.01)


N = {"init_hidden": True}
REFUSED = {
    "no neurons": (
        nn.Sequential(nn.Linear(20, 3)),
        "must have neurons of the adapter, got Sequential without",
    ),
    "a host's own": (
        nn.Sequential(nn.Linear(20, 3), snn.Leaky(0.9, **N)),
        "must have neurons of the adapter",
    ),
    "no weights": (
        nn.Sequential(nn.Linear(20, 3).double(), SingleSpike(**N), SingleSpike(**N)),
        "'2' must have a Linear or convolution of its own in front",
    ),
    "normalised": (
        nn.Sequential(nn.Linear(20, 3).double(), nn.BatchNorm1d(3).double(), SingleSpike(**N)),
        r"normalised by '1' \(BatchNorm1d\).*fold",
    ),
    "parametrized": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 3).double()), SingleSpike(**N)),
        "weight of '0' is computed from others",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_calibrated(name):
    model, message = REFUSED[name]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        snntorch_adapter.calibrate(model, _trains(40, 20))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_neurons_that_fire_together_get_as_close_as_they_can():
    trains = torch.zeros(4, 10, 3).double()
    trains[0, :7, 0] = trains[1, 7:, 1] = 1  # one input each: 70 % of the samples fire with the first
    model = nn.Sequential(_linear(3, 1), SingleSpike(init_hidden=True, output=True))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.2, 0.1, 0.0]]))
    assert snntorch_adapter.calibrate(model, trains, 0.5) == {"1": 0.7}
    assert snntorch_adapter.calibrate(model, trains, 0.9) == {"1": 1.0}


def test_a_fraction_out_of_reach_leaves_the_model_as_it_was():
    model, trains = _sequential(), _trains(40, 20)
    trains[:, 10:] = 0
    before = model[0].weight.clone()
    with pytest.raises(
        ValueError, match=r"fraction must be at most 0\.25, as the others have no input, got 0\.5"
    ):
        snntorch_adapter.calibrate(model, trains, 0.5)
    assert torch.equal(model[0].weight, before)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
            snntorch_adapter.calibrate(model, trains, fraction)
    with pytest.raises(ValueError, match=r"trains must be spike trains \[T, batch, \*\], got \[40, 20\]"):
        snntorch_adapter.calibrate(model, _times(40, 20))


class _OneStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = _linear(20, 10), SingleSpike(init_hidden=True)

    def forward(self, x):
        return self.lif(input_=self.fc(input=x))


def test_a_function_that_runs_the_steps_need_not_reset_them():
    model, trains = _OneStep(), _trains(40, 20)
    reached = snntorch_adapter.calibrate(model, trains, 0.4, run=lambda net, x: [net(step) for step in x])
    snntorch_adapter.reset(model)
    spikes = torch.stack([model(step) for step in trains])
    assert float(spikes.any(0).double().mean()) == pytest.approx(reached["lif"])
    assert reached["lif"] == pytest.approx(0.4, abs=0.01)


def test_weights_that_drive_two_neurons_are_refused():
    fc = _linear(20, 20)
    model = nn.Sequential(fc, SingleSpike(init_hidden=True), fc, SingleSpike(init_hidden=True))
    with pytest.raises(ValueError, match="'3' must have weights of its own, but '0' drives '1' as well"):
        snntorch_adapter.calibrate(model, _trains(40, 20), 0.3)


class _Branches(nn.Module):
    def __init__(self, mixed=False):
        super().__init__()
        self.a, self.b, self.c = _linear(20, 10), _linear(20, 10), _linear(10, 10)
        self.la, self.lb = SingleSpike(init_hidden=True), SingleSpike(init_hidden=True)
        self.mixed = mixed

    def forward(self, x):
        u, v = self.a(x), self.b(x)
        out = self.la(u)
        return self.lb(v + self.c(out)) if self.mixed else self.lb(v) + out


@pytest.mark.parametrize(
    ("mixed", "message"),
    [
        (False, "'lb' must have .* called right before it; the calls are 'a', 'b', 'la', 'lb'"),
        (True, "raising the weights of 'b' changes nothing for 'la'"),
    ],
)
def test_weights_that_do_not_stand_right_in_front_are_named(mixed, message):
    model = _Branches(mixed)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        snntorch_adapter.calibrate(model, _trains(40, 20), 0.3, run=lambda net, x: [net(s) for s in x])
    assert all(map(torch.equal, before, model.parameters()))


def test_neurons_with_common_weights_are_not_calibrated():
    model = nn.Sequential(_linear(20, 20), SingleSpike(init_hidden=True), _linear(20, 20))
    model.append(SingleSpike(init_hidden=True))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match="must have weights of its own"):
        snntorch_adapter.calibrate(model, _trains(8, 20))


@pytest.mark.parametrize("seed", [2, 6, 41])
def test_rounding_does_not_decide_what_fires_after_calibration(seed):
    """All inputs spike: every sample ends at the same V, and a neuron fires for all of them or none."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), SingleSpike(init_hidden=True), nn.Linear(5, 3))
    model.append(SingleSpike(init_hidden=True, output=True))
    times = torch.rand(8, 6).mul(16).floor()
    trains = times_to_spikes(times, 16)
    snntorch_adapter.calibrate(model, trains)
    snntorch_adapter.reset(model)
    spikes = torch.stack([model(step)[0] for step in trains])
    assert torch.equal(to_event_driven(model, t_max=16)(times), spikes_to_times(spikes))


@pytest.mark.parametrize(("spread", "wanted"), [(1e-3, 0.5), (1e-5, 1.0)])
def test_neurons_alike_to_rounding_fire_together(spread, wanted):
    model = nn.Sequential(nn.Linear(4, 500, bias=False), SingleSpike(init_hidden=True))
    with torch.no_grad():
        model[0].weight.copy_(0.249999 * (1 + torch.linspace(0, spread, 500)[:, None]))
    reached = snntorch_adapter.calibrate(model, torch.ones(1, 1, 4), 0.5)
    assert reached["1"] == pytest.approx(wanted, abs=0.011)
