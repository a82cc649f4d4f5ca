"""Swapping the neurons of a model in place: what the model's own code and checkpoints know goes along."""

import copy

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import backprop
from snntorch.functional import ce_rate_loss
from torch import nn

from ssnn_plugin import replace_neurons
from ssnn_plugin.decode import spikes_to_times
from ssnn_plugin.snntorch import FirstSpikePool2d, SingleSpike, latency, reset

T = 12


def _trains(*shape):
    return latency(torch.rand(shape, generator=torch.Generator().manual_seed(0)), T)


class _Lapicque(nn.Module):
    """As snnTorch's documentation writes it."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snn.Lapicque(R=4.0, C=2.5, threshold=0.05)

    def forward(self, x):
        mem = self.lif.init_lapicque()
        for step in x:
            spk, mem = self.lif(self.fc(step), mem)
        return spk, mem


class _Synaptic(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snn.Synaptic(alpha=0.75, beta=0.9)
        self.start = start

    def forward(self, x):
        syn, mem = getattr(self.lif, self.start)()
        for step in x:
            spk, syn, mem = self.lif(self.fc(step), syn, mem)
        return spk, mem


class _HiddenSynaptic(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.lif = snn.Synaptic(alpha=0.75, beta=0.9, init_hidden=True, output=output)

    def forward(self, x):
        self.lif.reset_mem()
        outputs = [self.lif(self.fc(step)) for step in x]
        return outputs[-1] if self.lif.output else (outputs[-1], self.lif.mem)


FORWARDS = {
    "init_lapicque": _Lapicque,
    "init_synaptic": lambda: _Synaptic("init_synaptic"),
    "reset_mem": lambda: _Synaptic("reset_mem"),
    "hidden": lambda: _HiddenSynaptic(False),
    "hidden, states out": lambda: _HiddenSynaptic(True),
}


@pytest.mark.parametrize("build", FORWARDS.values(), ids=FORWARDS)
def test_the_models_own_forward_still_runs(build):
    model, trains = build(), _trains(5, 4)
    spk, *states = model(trains)
    (change,) = replace_neurons(model)
    assert change.path == "lif"
    assert isinstance(model.lif, SingleSpike)
    found, *after = model(trains)
    assert found.shape == spk.shape
    assert [state.shape for state in after] == [state.shape for state in states]
    assert torch.equal(model(trains)[1], after[0])  # a window starts anew


@pytest.mark.parametrize(
    "build",
    [
        lambda: snn.Leaky(0.8, threshold=0.7),
        lambda: snn.Lapicque(R=4.0, C=2.5, threshold=0.6),
        lambda: snn.Lapicque(beta=0.8, threshold=0.6),
        lambda: snn.Synaptic(alpha=0.75, beta=0.9, threshold=1.5),
        lambda: snn.Synaptic(alpha=torch.tensor([0.5, 0.75, 0.9]), beta=0.9, threshold=1.5),
    ],
)
def test_strict_checkpoints_of_the_hosts_neurons_load(build):
    torch.manual_seed(0)
    trained, fresh = nn.Sequential(nn.Linear(4, 3), build()), nn.Sequential(nn.Linear(4, 3), build())
    checkpoint = copy.deepcopy(trained.state_dict())
    replace_neurons(trained)
    replace_neurons(fresh)
    fresh[1].threshold.fill_(9.0)
    fresh.load_state_dict(checkpoint, strict=True)
    for name, value in trained.state_dict().items():
        if not name.endswith("reset_mechanism_val"):
            torch.testing.assert_close(fresh.state_dict()[name], value)
    again = nn.Sequential(nn.Linear(4, 3), build())
    replace_neurons(again)
    again.load_state_dict(fresh.state_dict(), strict=True)
    torch.testing.assert_close(again[1].threshold, trained[1].threshold)


def test_membrane_read_outs_stay_and_are_listed():
    readout = snn.Leaky(0.9, reset_mechanism="none", init_hidden=True, output=True)
    model = nn.Sequential(nn.Linear(4, 3), snn.Leaky(0.9, init_hidden=True), nn.Linear(3, 2), readout)
    first, second = replace_neurons(model)
    assert (first.path, first.new) == ("1", "SingleSpike")
    assert model[3] is readout
    assert (second.path, second.old, second.new) == ("3", "Leaky", "")
    assert str(second).startswith("3: Leaky stays\n  a membrane read-out, as its reset_mechanism is 'none'")


def test_leaky_parallel_is_listed_with_what_to_do():
    model = nn.Sequential(snn.LeakyParallel(input_size=4, hidden_size=3), nn.Linear(3, 2), snn.Leaky(0.9))
    parallel, leaky = replace_neurons(model)
    assert (parallel.path, parallel.old, parallel.new) == ("0", "LeakyParallel", "")
    assert "Linear with them and a SingleSpike(sequence=True)" in str(parallel)
    assert leaky.new == "SingleSpike"


def test_hooks_go_along():
    model, seen = nn.Sequential(nn.Linear(4, 3), snn.Leaky(0.9, init_hidden=True)), []
    handles = [
        model[1].register_forward_pre_hook(lambda module, args: seen.append("before")),
        model[1].register_forward_hook(lambda module, args, out: seen.append(type(module).__name__)),
        model[1].register_forward_hook(
            lambda module, args, kwargs, out: seen.append("kwargs"), with_kwargs=True
        ),
        model[1].register_full_backward_hook(lambda module, *grads: seen.append("back")),
    ]
    replace_neurons(model)
    model(torch.ones(2, 4)).sum().backward()
    assert seen == ["before", "SingleSpike", "kwargs", "back"]
    for handle in handles:
        handle.remove()
    model(torch.ones(2, 4))
    assert len(seen) == 4


def test_hooks_of_state_dicts_are_listed():
    model = nn.Sequential(snn.Leaky(0.9))
    model[0].register_state_dict_post_hook(lambda *args: None)
    (change,) = replace_neurons(model)
    assert change.lost[-1] == "state dict hooks: register them on the new module"


def _blocks():
    block = nn.Sequential(nn.Linear(3, 3), snn.Leaky(0.9, init_hidden=True))
    lapicque = snn.Lapicque(beta=0.9, init_hidden=True)
    return nn.Sequential(block, copy.deepcopy(block), lapicque)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"only": "0.1"}, ["0.1"]),
        ({"only": ["0.1", "2"]}, ["0.1", "2"]),
        ({"only": "?.1"}, ["0.1", "1.1"]),
        ({"only": snn.Lapicque}, ["2"]),
        ({"only": lambda path, module: path != "1.1" and isinstance(module, snn.Leaky)}, ["0.1"]),
        ({"keep": "1.*"}, ["0.1", "2"]),
        ({"keep": (snn.Lapicque, "0.1")}, ["1.1"]),
        ({"only": snn.Leaky, "keep": "0.1"}, ["1.1"]),
    ],
)
def test_filters_by_name_class_or_function(filters, expected):
    model = _blocks()
    assert [change.path for change in replace_neurons(model, **filters)] == expected
    found = [path for path, module in model.named_modules() if isinstance(module, SingleSpike)]
    assert found == expected


@pytest.mark.parametrize("name", ["only", "keep"])
@pytest.mark.parametrize("bad", ["lif", snn.Synaptic])
def test_a_filter_that_fits_nothing_is_an_error(name, bad):
    message = (
        rf"{name} must fit modules of the model, which has 0\.1 \(Leaky\), 1\.1 \(Leaky\), 2 \(L.*; got "
    )
    with pytest.raises(ValueError, match=message):
        replace_neurons(_blocks(), **{name: bad})


def test_what_is_filtered_out_need_not_have_a_counterpart():
    model = nn.Sequential(snn.Leaky(0.9), snn.Alpha(0.9, 0.8))
    assert [change.path for change in replace_neurons(model, keep="1")] == ["0"]


def _convolutional(pool_behind=True):
    hidden = {"init_hidden": True}
    pair = [snn.Leaky(0.9, **hidden), nn.MaxPool2d(2)]
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        *(pair if pool_behind else pair[::-1]),
        nn.Flatten(),
        nn.Linear(36, 3),
        snn.Leaky(0.9, output=True, **hidden),
    )


def test_max_pools_of_spikes_become_first_spike_pools_on_request():
    model = _convolutional()
    assert [change.path for change in replace_neurons(copy.deepcopy(model))] == ["1", "5"]
    changes = replace_neurons(model, max_pools=nn.MaxPool2d)
    assert [(c.path, c.old, c.new) for c in changes][-1] == ("2", "MaxPool2d", "FirstSpikePool2d")
    assert isinstance(model[2], FirstSpikePool2d)
    reset(model)
    pooled = []
    model[2].register_forward_hook(lambda module, args, out: pooled.append(out))
    for step in _trains(5, 1, 8, 8):
        model(step)
    counts = torch.stack(pooled).sum(0)
    assert counts.max() == 1


def _pool_in_two_places():
    pool, hidden = nn.MaxPool2d(2), {"init_hidden": True}
    conv = nn.Conv2d(1, 1, 3, padding=1)
    return nn.Sequential(conv, snn.Leaky(0.9, **hidden), pool, conv, snn.Leaky(0.9, **hidden), pool)


class _Loop(nn.Module):
    def __init__(self, neuron=lambda: snn.Leaky(0.9)):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(9, 20), neuron(), nn.Linear(20, 4), neuron()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            out.append(spk)
        return torch.stack(out)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _convolutional(False), r"1 \(MaxPool2d\) cannot become .* pools currents, behind Conv2d"),
        (_Loop, r"pool \(MaxPool2d\) cannot become .* the neurons of the model are given theirs"),
        (_pool_in_two_places, r"2 \(MaxPool2d\) cannot become .* stands in two places"),
        (
            lambda: nn.Sequential(snn.Leaky(0.9, init_hidden=True), nn.MaxPool2d(2, ceil_mode=True)),
            "must have no dilation, ceil_mode",
        ),
        (
            lambda: norse.SequentialState(norse.LIFBoxCell(), nn.MaxPool2d(2)),
            "Norse's containers note .* Build the model with FirstSpikePool2d",
        ),
    ],
)
def test_pools_that_cannot_become_first_spike_pools(build, message):
    model = build()
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=message):
        replace_neurons(model, max_pools=nn.MaxPool2d)
    assert dict(model.named_modules()) == before


def test_a_start_with_neurons_that_fire():
    torch.manual_seed(0)
    model, trains = _Loop(), _trains(60, 9)
    first, second = replace_neurons(model, calibrate_on=trains)
    assert first.firing == pytest.approx(0.5, abs=0.01)
    assert second.firing == pytest.approx(0.5, abs=0.01)
    assert str(second).endswith("50% of its neurons fire")
    fired = spikes_to_times(model(trains)).isfinite()
    assert fired.float().mean().item() == pytest.approx(second.firing)


def test_a_start_that_cannot_be_found_changes_nothing():
    model, trains = _Loop(), _trains(60, 9) * 0
    before, weights = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="changes nothing for 'lif1': no spike reaches them"):
        replace_neurons(model, calibrate_on=trains)
    assert dict(model.named_modules()) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_model_without_neurons_of_a_host_has_none_to_calibrate():
    with pytest.raises(ValueError, match="calibrate_on needs neurons of a host in the model, got Sequential"):
        replace_neurons(nn.Sequential(nn.Linear(4, 2)), calibrate_on=torch.ones(5, 3, 4))


def test_snntorchs_back_propagation_through_time_knows_how_many_states_there_are():
    model = nn.Sequential(nn.Linear(4, 3), snn.Synaptic(0.75, 0.9, init_hidden=True, output=True))
    replace_neurons(model)
    nn.init.constant_(model[0].weight, 0.8)
    before = copy.deepcopy(model[0].weight)
    batch = torch.rand(5, 2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = backprop.BPTT(model, [batch], optimizer, ce_rate_loss())
    assert loss.isfinite()
    assert not torch.equal(before, model[0].weight)
