"""Values that are read behind the last neurons, and normalisations folded into weights."""

import copy
import gc
import pickle
import weakref

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from norse.torch import LIBoxParameters, LIParameters
from torch import nn
from torch.nn.utils import prune

from ssnn_plugin import NoTimeMode, encode, fold_batchnorm, to_event_driven, verify
from ssnn_plugin.decode import times_to_spikes
from ssnn_plugin.nn import BinwiseLayer, Currents, SpikeLinear, SpikeReadout
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell
from ssnn_plugin.snntorch import SingleSpike, latency

T = 12


def _image(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _alive(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight" in name:
                parameter.normal_(0.2, 0.4, generator=generator)
    return model.double()


def _hidden():
    return nn.Linear(16, 10), SingleSpike(init_hidden=True), nn.Linear(10, 4)


def _potential(**options):
    return snn.Leaky(reset_mechanism="none", init_hidden=True, output=True, **options)


def _norse(read_out, *weights):
    weights = weights or (norse.Lift(nn.Linear(10, 4)),)
    return norse.SequentialState(norse.Lift(nn.Linear(16, 10)), SingleSpikeIF(), *weights, read_out)


NO_RESET = {"reset_mechanism": "none", "init_hidden": True, "output": True}
READ_OUTS = {
    "linear": lambda: nn.Sequential(*_hidden()),
    "two linear": lambda: nn.Sequential(*_hidden(), nn.ReLU(), nn.Linear(4, 3)),
    "potential": lambda: nn.Sequential(*_hidden(), _potential(beta=0.8)),
    "potential without leak": lambda: nn.Sequential(*_hidden(), _potential(beta=1.0)),
    "potential, leak per neuron": lambda: nn.Sequential(
        *_hidden(), _potential(beta=torch.tensor([0.0, 0.5, 0.9, 1.0]))
    ),
    "potential, learned leak": lambda: nn.Sequential(*_hidden(), _potential(beta=0.8, learn_beta=True)),
    "lapicque": lambda: nn.Sequential(*_hidden(), snn.Lapicque(0.8, time_step=1, **NO_RESET)),
    "synaptic": lambda: nn.Sequential(*_hidden(), snn.Synaptic(0.7, 0.9, **NO_RESET)),
    "synaptic, learned leaks": lambda: nn.Sequential(
        *_hidden(), snn.Synaptic(0.7, 0.9, learn_alpha=True, learn_beta=True, **NO_RESET)
    ),
    "li": lambda: _norse(norse.LI()),
    "li above rest": lambda: _norse(norse.LI(LIParameters(v_leak=torch.tensor(0.3)))),
    "li cell": lambda: norse.SequentialState(
        nn.Linear(16, 10), SingleSpikeIFCell(), nn.Linear(10, 4), norse.LICell()
    ),
    "li box cell": lambda: norse.SequentialState(
        nn.Linear(16, 10),
        SingleSpikeIFCell(),
        nn.Linear(10, 4),
        norse.LIBoxCell(LIBoxParameters(v_leak=torch.tensor(0.3))),
    ),
    "li with weights": lambda: norse.SequentialState(
        nn.Linear(16, 10), SingleSpikeIFCell(), norse.LILinearCell(10, 4)
    ),
}


@pytest.mark.parametrize("name", READ_OUTS)
def test_read_outs_give_the_values_of_the_steps(name):
    model = _alive(READ_OUTS[name]())
    network = to_event_driven(model, t_max=T)
    assert [type(layer) for layer in network] == [SpikeLinear, SpikeReadout]
    report = verify(model, latency(_image(8, 16), T))
    assert report.ok, report
    assert report.outputs == T * 8 * (3 if name == "two linear" else 4)
    named = dict(model.named_parameters())
    assert set(report.gradients) == set(named)


@pytest.mark.parametrize("name", READ_OUTS)
def test_the_last_bin_has_its_value_and_gradients(name):
    model, times = _alive(READ_OUTS[name]()), encode.latency(_image(8, 16), T)
    every, last = (to_event_driven(model, t_max=T, last_bin=last_bin)(times) for last_bin in (False, True))
    torch.testing.assert_close(last, every[-1], rtol=1e-10, atol=1e-12)
    weights = torch.linspace(-1, 2, last.numel(), dtype=torch.float64).reshape(last.shape)
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad((weights * last).sum(), parameters),
        torch.autograd.grad((weights * every[-1]).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


class _Around(nn.Module):
    """More than the weights behind the last neuron, in one step."""

    def __init__(self, behind):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(16, 10), SingleSpike(init_hidden=True), nn.Linear(10, 4)
        self.behind = behind

    def forward(self, x):
        return self.behind(self.fc2, self.lif1(self.fc1(x)))


@pytest.mark.parametrize(
    "behind",
    [
        lambda fc, spikes: 0.5 * fc(spikes),
        lambda fc, spikes: torch.tanh(fc(spikes)),
        lambda fc, spikes: fc(1 - spikes),
        lambda fc, spikes: fc(spikes)[:, :2],
    ],
)
def test_what_is_computed_around_the_weights_counts_in_the_last_bin_too(behind):
    model, times = _alive(_Around(behind)), encode.latency(_image(3, 16), T)
    whole = to_event_driven(model, t_max=T)(times)
    torch.testing.assert_close(to_event_driven(model, t_max=T, last_bin=True)(times), whole[-1])


def test_a_hand_computed_potential():
    model = nn.Sequential(
        nn.Linear(1, 1, bias=False), SingleSpike(init_hidden=True), nn.Linear(1, 1), _potential(beta=0.5)
    )
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (2.0, 3.0, 0.25), strict=True):
            parameter.fill_(value)
    network = to_event_driven(model, t_max=4)
    # A bias of 0.25 in every bin, and the spike's weight of 3 from bin 1 on, halved in every bin.
    expected = [0.25, 0.125 + 3.25, 1.6875 + 0.25, 0.96875 + 0.25]
    assert network(torch.tensor([[1.0]])).flatten().tolist() == expected
    last = to_event_driven(model, t_max=4, last_bin=True)
    assert last(torch.tensor([[1.0], [torch.inf]])).flatten().tolist() == [1.21875, 0.46875]


def test_silent_and_late_spikes_are_not_heard():
    model = _alive(nn.Sequential(*_hidden(), _potential(beta=0.9)))
    network = to_event_driven(model, t_max=T, last_bin=True)
    silent = torch.full((1, 10), torch.inf).double()
    of_bias = model[2].bias * sum(0.9**k for k in range(T))
    torch.testing.assert_close(network[1](silent), of_bias[None])
    assert torch.equal(network[1](torch.full_like(silent, T)), network[1](silent))


def test_weights_are_shared_and_leaks_are_followed():
    model = _alive(nn.Sequential(*_hidden(), _potential(beta=0.9)))
    network, times = to_event_driven(model, t_max=T), encode.latency(_image(8, 16), T)
    assert {id(p) for p in network.parameters()} == {id(p) for p in model.parameters()}
    before = network(times)
    model[3].beta.fill_(0.5)
    assert not torch.equal(network(times), before)
    assert verify(model, times_to_spikes(times, T)).ok


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            lambda: [*_hidden(), _potential(beta=0.9), nn.Linear(4, 2), SingleSpike(init_hidden=True)],
            r"4 \(Linear\) .*3 \(Leaky\)|3 \(Leaky\) has no time mode: it is no neuron that fires",
        ),
        (
            lambda: [*_hidden(), snn.Leaky(0.9, reset_mechanism="none", init_hidden=True)],
            r"3 \(Leaky\) has no time mode: it returns its spikes alone. Set output=True",
        ),
        (
            lambda: [*_hidden(), _potential(beta=0.9, state_quant=torch.round)],
            r"3 \(Leaky\) has no time mode: the option state_quant has no meaning",
        ),
        (lambda: [nn.Linear(16, 4)], r"the model must end with neurons"),
    ],
)
def test_what_is_no_read_out_is_refused(parts, message):
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(nn.Sequential(*parts()), t_max=T)


class _InALoop(nn.Module):
    """With a read-out; `of_step` picks what is kept of its (spikes, potential)."""

    def __init__(self, of_step, hands_on=False):
        super().__init__()
        self.fc, self.lif, self.weights = nn.Linear(16, 10), SingleSpike(), nn.Linear(10, 4)
        self.out, self.behind = snn.Leaky(0.8, reset_mechanism="none"), SingleSpike()
        self.of_step, self.hands_on = of_step, hands_on

    def forward(self, x):
        mem, read, last, kept = self.lif.reset_mem(), self.out.reset_mem(), self.behind.reset_mem(), []
        for step in x:
            spk, mem = self.lif(self.fc(step), mem)
            both = self.out(self.weights(spk), read)
            read = both[1]
            if self.hands_on:
                spk, last = self.behind(both[0], last)
                kept.append(spk)
            else:
                kept.append(self.of_step(both))
        return torch.stack(kept)


def test_a_read_out_is_read_by_its_potential_alone():
    assert verify(_alive(_InALoop(lambda both: both[1])).float(), latency(_image(6, 16).float(), T)).ok
    with pytest.raises(NoTimeMode, match="returns only the spikes of out, a read-out: use its potential"):
        to_event_driven(_InALoop(lambda both: both[0]), t_max=T)
    with pytest.raises(NoTimeMode, match="passes on the spikes of out, a read-out: use its potential"):
        to_event_driven(_InALoop(None, hands_on=True), t_max=T)


def test_a_read_out_has_no_state_in_front():
    for between in (nn.BatchNorm1d(10), nn.RNNCell(10, 10)):
        parts = (*_hidden()[:2], between, nn.Linear(10, 4))
        with pytest.raises(NoTimeMode, match=r"2 \(BatchNorm1d\) .*model\.eval|has a state of its own"):
            to_event_driven(nn.Sequential(*parts), t_max=T)
        with pytest.raises(NoTimeMode, match=r"2 \(BatchNorm1d\) .*model\.eval|has a state of its own"):
            to_event_driven(nn.Sequential(*parts, _potential(beta=0.9)), t_max=T)
    half = nn.Sequential(*_hidden()[:2], nn.Linear(10, 4).half())
    with pytest.raises(NoTimeMode, match="neither float32 nor float64"):
        to_event_driven(half, t_max=T)


# Normalisations


def _normed():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(144, 5),
        nn.Identity(),
        nn.BatchNorm1d(5, affine=False),
        nn.Conv1d(5, 3, 1),
        nn.BatchNorm1d(3),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


def test_normalisations_become_part_of_the_weights():
    model = _normed()
    image = _image(6, 2, 8, 8)
    expected = model[:6](image)
    last = model[6:](expected.unsqueeze(2))
    assert fold_batchnorm(model) == ["1", "5", "7"]
    torch.testing.assert_close(model[:6](image), expected)
    torch.testing.assert_close(model[6:](expected.unsqueeze(2)), last)
    assert not any("BatchNorm" in type(module).__name__ for module in model)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert fold_batchnorm(model) == []


def test_a_folded_model_runs_by_events():
    model = nn.Sequential(nn.Linear(16, 4, bias=False), nn.BatchNorm1d(4), SingleSpike(init_hidden=True))
    _alive(model)
    model[1].running_mean.normal_(0, 0.1)
    fold_batchnorm(model)
    network = to_event_driven(model, t_max=T, binwise=False)
    assert network[0].weight is model[0].weight
    assert network[0].bias is model[0].bias
    assert verify(model, latency(_image(8, 16), T)).ok


class _Before(nn.Module):
    """Normalises what is no longer the convolution's, though its modules stand in a row."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(torch.relu(self.conv(x)))


class _After(_Before):
    def forward(self, x):
        return self.bn(self.conv(x))


def test_a_fold_goes_by_what_a_module_computes():
    with pytest.raises(ValueError, match=r"bn \(BatchNorm1d\) cannot be folded: _Before does something else"):
        fold_batchnorm(_Before())
    assert fold_batchnorm(_After()) == ["bn"]


class _AlsoElsewhere(_Before):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv(x)


class _WeightsToo(_Before):
    def forward(self, x):
        return self.bn(self.conv(x)) + nn.functional.linear(x, self.conv.weight)


class _Again(_Before):
    def forward(self, x):
        return self.conv(self.bn(self.conv(x)))


class _OverTime(_Before):
    def forward(self, x):
        return torch.stack([self.bn(self.conv(x[:, step]).relu()) for step in range(x.shape[1])])


class _EachStep(_Before):
    def forward(self, x):
        return torch.stack([self.bn(self.conv(step)) for step in x])


class _Listed(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.parts, self.between = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)]), between

    def forward(self, x):
        return self.parts[1](self.between(self.parts[0](x)))


class _Decides(_Before):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class _DecidesOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return self.block(x if x.sum() > 0 else -x)


class _Parts(_DecidesOutside):
    def forward(self, x):
        return self.block[1](self.block[0](x).relu())


class _OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


def _hooked():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[0].register_forward_hook(lambda module, given, result: result.relu())
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_AlsoElsewhere, "_AlsoElsewhere does something else with the module before it"),
        (_WeightsToo, "_WeightsToo does something else"),
        (_Again, "_Again does something else"),
        (_OverTime, "_OverTime does something else"),
        (
            lambda: _Listed(torch.relu),
            r"parts\.1 \(BatchNorm1d\) cannot be folded: _Listed does something else",
        ),
        (_Parts, "_Parts does something else"),
        (_Decides, "the forward of _Decides cannot be followed. Put it and the module before it into an nn"),
        (
            lambda: nn.Sequential(_OwnLinear(4, 4), nn.BatchNorm1d(4)),
            "_OwnLinear: it has a forward of its own",
        ),
        (_hooked, "Linear has forward hooks"),
    ],
)
def test_a_fold_that_would_change_what_a_model_computes_is_refused(make, message):
    model = make()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        fold_batchnorm(model)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("make", [lambda: _Listed(nn.Identity()), _EachStep, _DecidesOutside])
def test_a_fold_goes_through_lists_loops_and_blocks(make):
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 2, 4, dtype=torch.float64) if make is _EachStep else torch.randn(5, 4).double()
    expected = model(x)
    assert len(fold_batchnorm(model)) == 1
    torch.testing.assert_close(model(x), expected)


def test_frozen_weights_stay_frozen():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[0].requires_grad_(False)
    fold_batchnorm(model)
    assert not model[0].weight.requires_grad
    assert not model[0].bias.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)),
            r"1 \(BatchNorm1d\) cannot be folded: the module before it must be a Linear .*, got ReLU",
        ),
        (lambda: nn.Sequential(nn.BatchNorm1d(4)), r"0 \(BatchNorm1d\) cannot be folded: .*, got nothing"),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
            r"1 \(BatchNorm1d\) cannot be folded: it has no running statistics",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(4)),
            "the module before it has 3 outputs, not 4",
        ),
        (
            lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2, nn.BatchNorm1d(4)),
            "the module before it stands in two places",
        ),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4)),
            "its weights are parametrized",
        ),
    ],
)
def test_what_cannot_be_folded_leaves_the_model_as_it_was(make, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), make())
    with pytest.raises(ValueError, match=message):
        fold_batchnorm(model)
    assert isinstance(model[1], nn.BatchNorm1d)


@pytest.mark.parametrize("read_out", [_potential(beta=0.9), norse.LICell()])
def test_a_read_out_needs_neurons_in_front(read_out):
    with pytest.raises(NoTimeMode, match="it is a read-out, which needs neurons in front"):
        to_event_driven(nn.Sequential(nn.Linear(16, 4), read_out), t_max=T)


def test_a_pruned_read_out_follows_what_is_learned():
    model = _alive(nn.Sequential(*_hidden()))
    prune.l1_unstructured(model[2], "weight", amount=0.3)
    network = to_event_driven(model, t_max=T, last_bin=True)
    times = encode.latency(_image(5, 16), T).double()
    with torch.no_grad():
        model[2].weight_orig.mul_(3)
    expected = to_event_driven(model, t_max=T)(times)[-1]
    for _ in range(2):
        found = network(times)
        torch.testing.assert_close(found, expected)
        found.sum().backward()


def test_what_currents_compute_beside_their_weights_counts_in_the_last_bin():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return 2 * self.fc(x)

    currents, times = Currents(Twice(), [False], T), torch.full((2, 6), T - 1.0)
    torch.testing.assert_close(
        SpikeReadout(currents, last_bin=True)(times), SpikeReadout(currents)(times)[-1]
    )


def test_a_normalisation_that_is_folded_later_is_not_applied_twice():
    connection, norm = nn.Linear(16, 10, bias=False), nn.BatchNorm1d(10)
    last = SingleSpike(init_hidden=True, learn_threshold=True, output=True)
    model = _alive(nn.Sequential(connection, norm, last)).eval()
    nn.init.constant_(norm.bias, 0.8)
    norm.running_mean.fill_(0.3)
    norm.running_var.fill_(2.0)
    network = to_event_driven(model, t_max=T)
    times = encode.latency(_image(9, 16), T).double()
    before = network(times)
    assert before.isfinite().any()
    assert fold_batchnorm(model)
    assert torch.equal(network(times), before)


@pytest.mark.parametrize("kind", ["linear", "cell"])
def test_weights_that_are_assigned_are_followed(kind):
    if kind == "linear":
        model = _alive(nn.Sequential(*_hidden()))
    else:
        cells = nn.Linear(16, 10), SingleSpikeIFCell(), norse.LILinearCell(10, 4)
        model = _alive(norse.SequentialState(*cells))
    network = to_event_driven(model, t_max=T)
    times = encode.latency(_image(5, 16), T).double()
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(network(times), to_event_driven(model, t_max=T)(times))


def test_a_sequence_that_computes_more_is_not_folded():
    class Shortcut(nn.Sequential):
        def forward(self, x):
            y = self[0](x)
            return y if y.sum() > 1e9 else self[1](y) + y

    model = Shortcut(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(ValueError, match="the forward of Shortcut cannot be followed"):
        fold_batchnorm(model)


def test_a_network_in_bins_holds_what_it_runs_alone():
    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(16, 10), SingleSpike(learn_threshold=True)
            self.beside = nn.Linear(500, 500)

        def forward(self, x):
            mem, out = self.lif.reset_mem(), []
            for step in x:
                spk, mem = self.lif(self.fc(step), mem)
                out.append(spk)
            return torch.stack(out)

    model = Local()
    network = to_event_driven(model, t_max=T)
    assert any(isinstance(layer, BinwiseLayer) for layer in network)
    assert len(pickle.dumps(network)) < 100_000
    model.feature_map = model.fc(torch.rand(2, 16))
    times, gone = encode.latency(_image(5, 16), T).float(), weakref.ref(model)
    expected = network(times)
    assert torch.equal(copy.deepcopy(network)(times), expected)
    del model
    gc.collect()
    assert gone() is None
    assert torch.equal(network(times), expected)
