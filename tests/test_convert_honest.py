"""Models whose network on spike times would differ are refused by name, or followed."""

import copy
import pickle
from collections import deque

import norse.torch as norse
import pytest
import torch
from snntorch import spikegen
from torch import nn

from ssnn_plugin import IF, NoTimeMode, encode, to_event_driven, verify
from ssnn_plugin.decode import LaterSpikesWarning, spikes_to_times, times_to_spikes
from ssnn_plugin.nn import SpikeLinear
from ssnn_plugin.norse import (
    LatencyEncoder,
    SingleSpikeIF,
    SingleSpikeIFParameters,
    SpikesToTimesDecoder,
)
from ssnn_plugin.snntorch import SingleSpike, SingleSpikeSynaptic, latency, reset

T = 16


def _times(seed=0):
    values = torch.rand(9, 20, generator=torch.Generator().manual_seed(seed))
    return encode.latency(values, T).double()


def _linear(inputs=20, outputs=6):
    layer = nn.Linear(inputs, outputs, bias=False).double()
    nn.init.uniform_(layer.weight, -0.1, 0.2, generator=torch.Generator().manual_seed(1))
    return layer


def _chain(**options):
    return nn.Sequential(_linear(), SingleSpike(init_hidden=True, **options))


def _loop(model, times):
    reset(model)
    return spikes_to_times(torch.stack([model(x) for x in times_to_spikes(times, T)]))


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = _linear(), SingleSpike()
        self.start = nn.Parameter(torch.full((6,), 0.6))

    def first(self, x):
        return self.lif.reset_mem()

    def output(self, spk):
        return spk

    def forward(self, x):
        mem, out = self.first(x), []
        for step in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[step]), mem)
            out.append(self.output(spk))
        return torch.stack(out)


class _Learned(_Net):
    def first(self, x):
        return self.start.expand(x.shape[1], 6)


class _Random(_Net):
    def first(self, x):
        return torch.rand(x.shape[1], 6)


class _RandomLike(_Net):
    def first(self, x):
        return 0.5 * torch.rand_like(self.fc(x[0]))


class _Constant(_Net):
    def first(self, x):
        return torch.full((9, 6), 0.5)


@pytest.mark.parametrize("kind", [_Learned, _Random, _RandomLike, _Constant])
def test_a_start_from_another_potential_is_refused(kind):
    with pytest.raises(
        NoTimeMode, match=f"^{kind.__name__} starts lif from a potential of its own: .* starts from 0"
    ):
        to_event_driven(kind(), t_max=T)


class _Zeros(_Net):
    def first(self, x):
        return torch.zeros(x.shape[1], 6, dtype=x.dtype)


class _ZerosLike(_Net):
    def first(self, x):
        return torch.zeros_like(self.fc(x[0]))


class _NewZeros(_Net):
    def first(self, x):
        return x.new_zeros(x.size(1), 6)


@pytest.mark.parametrize("kind", [_Net, _Zeros, _ZerosLike, _NewZeros])
def test_a_start_from_zeros_is_followed(kind):
    model, times = kind(), _times()
    found = to_event_driven(model, t_max=T)(times)
    assert torch.equal(found, spikes_to_times(model(times_to_spikes(times, T))))
    assert found.isfinite().any()


def test_a_state_that_is_changed_on_the_way_is_refused():
    class Changed(_Net):
        def forward(self, x):
            mem, out = self.lif.reset_mem(), []
            for step in range(x.shape[0]):
                spk, mem = self.lif(self.fc(x[step]), mem.detach())
                out.append(spk)
            return torch.stack(out)

    with pytest.raises(NoTimeMode, match="detaches or changes the state of lif"):
        to_event_driven(Changed(), t_max=T)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("start", "starts lif from a potential of its own"),
        ("scale", "detaches or changes the state of lif"),
        ("swap", "passes lif a state that is not its own of the step before"),
    ],
)
def test_every_state_of_a_neuron_is_looked_at(how, message):
    class Synaptic(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = _linear(), SingleSpikeSynaptic()

        def forward(self, x):
            syn, mem = self.lif.reset_mem()
            if how == "start":
                mem = torch.full((9, 6), 0.5)
            out = []
            for step in x:
                if how == "scale":
                    mem = 0.5 * mem
                if how == "swap":
                    syn, mem = mem, syn
                spk, syn, mem = self.lif(self.fc(step), syn, mem)
                out.append(spk)
            return torch.stack(out)

    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(Synaptic(), t_max=T)


def test_hooks_of_a_wrapper_are_refused():
    model = nn.DataParallel(_chain())
    model.register_forward_hook(lambda *given: None)
    with pytest.raises(NoTimeMode, match=r"^the model \(DataParallel\) has hooks"):
        to_event_driven(model, t_max=T)


def test_dropout_of_constant_values_is_drawn_in_every_bin():
    torch.manual_seed(0)
    model = nn.Sequential(_linear(), nn.Dropout(0.5), SingleSpike(init_hidden=True)).train()
    currents = to_event_driven(model, t_max=T, constant_input=True)[0].currents
    values = torch.rand(3, 20).double()
    assert not torch.equal(currents(values)[0], currents(values)[1])
    kept = currents.eval()(values)
    assert torch.equal(kept, model[0](values).expand_as(kept))


@pytest.mark.parametrize("where", ["", "0", "1"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_are_refused(where, kind):
    model = _chain()
    handle = getattr(model.get_submodule(where), f"register_{kind}_hook")(lambda *given: None)
    named = where if where else "the model"
    with pytest.raises(NoTimeMode, match=rf"^{named} \(\w+\) has hooks \(.*lambda.*\).*handle\.remove\(\)"):
        to_event_driven(model, t_max=T)
    handle.remove()
    assert to_event_driven(model, t_max=T)(_times()).shape == (9, 6)


class _Flip(_Net):
    def output(self, spk):
        return spk.flip(-1)


class _Inverted(_Net):
    def output(self, spk):
        return 1 - spk


class _Counted(_Net):
    def forward(self, x):
        return super().forward(x).sum(0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Flip, "_Flip calls flip .* Behind the last neuron, do so with what the network returns"),
        (_Inverted, "_Inverted calls r?sub .* Behind the last neuron, do so with what the network returns"),
        (_Counted, "_Counted .*record of its steps .sum.. Do so with what the network returns"),
    ],
)
def test_what_changes_the_spikes_of_the_last_neuron_is_refused(kind, message):
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(kind(), t_max=T)


def test_a_checkpoint_loaded_later_is_followed():
    model, times = _chain(beta=0.875), _times()
    network = to_event_driven(model, t_max=T)
    before = network(times)
    checkpoint = model.state_dict() | {"1.threshold": torch.tensor(0.3), "1.beta": torch.tensor(0.5)}
    model.load_state_dict(checkpoint)
    after = network(times)
    assert not torch.equal(after, before)
    assert torch.equal(after, _loop(model, times))
    assert (network[0].neuron.threshold, network[0].neuron.beta) == (pytest.approx(0.3), 0.5)
    model[1].threshold.data.fill_(0.7)
    assert torch.equal(network(times), _loop(model, times))
    model[0].weight = nn.Parameter(model[0].weight.detach() * 2)
    assert torch.equal(network(times), _loop(model, times))


def test_norses_parameters_set_later_are_followed():
    model, times = norse.SequentialState(norse.Lift(_linear()), SingleSpikeIF()), _times()
    network = to_event_driven(model, t_max=T)
    model[1].p = SingleSpikeIFParameters(v_th=0.3)
    assert torch.equal(network(times), spikes_to_times(model(times_to_spikes(times, T))[0]))


def test_a_threshold_that_is_no_longer_one_number_is_refused_when_called():
    model = _chain()
    network = to_event_driven(model, t_max=T)
    model[1].threshold = torch.arange(6.0)
    with pytest.raises(ValueError, match="threshold must be the same for all neurons, got 6 values"):
        network(_times())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_network_stand_alone(again):
    model, times = _chain(), _times()
    network = to_event_driven(model, t_max=T)
    copied = again(network)
    model[1].threshold.fill_(0.3)
    assert not torch.equal(network(times), copied(times))
    assert list(copied.state_dict()) == ["0.weight"]


def test_trains_that_fire_again_warn():
    image = torch.rand(16, 30, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with pytest.warns(
        LaterSpikesWarning, match=r"of 480 lines of spikes fire more than once.*encode\.latency"
    ):
        spikes_to_times(spikegen.rate(image, 20))


@pytest.mark.filterwarnings("error")
def test_latency_codes_do_not_warn():
    image = torch.rand(16, 30, generator=torch.Generator().manual_seed(0))
    spikes_to_times(latency(image, 20))
    spikes_to_times(spikegen.latency(image, 20, linear=True, normalize=True, clip=True))


def test_images_are_no_spike_times():
    network = to_event_driven(_chain(), t_max=T)
    with pytest.raises(
        ValueError, match=r"whole bins.*as images have.*ssnn_plugin\.encode\.latency\(values, 16\)"
    ):
        network(torch.rand(3, 20).double())


def test_trains_are_no_spike_times():
    network = to_event_driven(_chain(), t_max=T)
    with pytest.raises(
        ValueError, match=r"a spike train \[16, 9, 20\].*ssnn_plugin\.decode\.spikes_to_times"
    ):
        network(times_to_spikes(_times(), T))


def _case(loop):
    """A model whose loop is `loop(self, x, mem, out)`."""

    def forward(self, x):
        out = []
        loop(self, x, self.lif.reset_mem(), out)
        return out[0] if len(out) == 1 else torch.stack(out)

    return type("_Case", (_Net,), {"forward": forward})()


def _steps(change=lambda cur: cur, spikes=lambda spk: spk, length=lambda x: x.shape[0]):
    def loop(self, x, mem, out):
        for step in range(length(x)):
            cur = self.fc(x[step])
            change(cur)
            spk, mem = self.lif(cur, mem)
            out.append(spikes(spk))

    return loop


def _conditional(self, x, mem, out):
    for step in range(x.shape[0]):
        cur = self.fc(x[step])
        spk, mem = self.lif(2 * cur if step > 5 else cur, mem)
        out.append(spk)


def _masked(self, x, mem, out):
    for step in range(x.shape[0]):
        spk, mem = self.lif(self.fc(x[step]), mem)
        spk[:, 0] = 0
        out.append(spk)


def _fading(self, x, mem, out):
    for step in range(x.shape[0]):
        spk, mem = self.lif(self.fc(x[step]), mem)
        self.lif.threshold = self.lif.threshold * 0.9
        out.append(spk)


def _backwards(self, x, mem, out):
    _steps()(self, x, mem, out)
    out.reverse()


def _without_the_first(self, x, mem, out):
    _steps()(self, x, mem, out)
    del out[0]


def _filled(where):
    def loop(self, x, mem, out):
        out.append(torch.zeros(x.shape[0], x.shape[1], 6))
        for step in range(x.shape[0]):
            out[0][where(step)], mem = self.lif(self.fc(x[step]), mem)

    return loop


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (
            _steps(change=lambda cur: cur.add_(1)),
            r"changes a tensor in place \(add_\). Use the form that returns",
        ),
        (_steps(length=lambda x: x.shape[0] - 1), r"cannot be followed.*number of steps is computed \(sub\)"),
        (_conditional, "does not drive lif in the same way in every step"),
        (_masked, "assigns to parts of a tensor"),
        (_fading, "keeps threshold of its own between steps"),
        (_backwards, "does not return the record of all its steps, one after the other"),
        (_without_the_first, "does not return the record of all its steps, one after the other"),
        (_filled(lambda step: T - 1 - step), "does not fill its record step after step"),
        (_filled(lambda step: 0), "does not fill its record step after step"),
    ],
)
def test_what_differs_between_steps_is_refused(loop, message):
    model = _case(loop)
    before = model.lif.threshold.clone()
    with pytest.raises(NoTimeMode, match=message):
        to_event_driven(model, t_max=T)
    assert torch.equal(model.lif.threshold, before)


def test_a_record_that_is_filled_is_followed():
    model, times = _case(_filled(lambda step: step)), _times()
    assert torch.equal(
        to_event_driven(model, t_max=T)(times), spikes_to_times(model(times_to_spikes(times, T)))
    )


def test_layers_on_times_are_no_steps():
    model = nn.Sequential(SpikeLinear(4, 4, IF(), t_max=T), nn.Linear(4, 4), SingleSpike(init_hidden=True))
    with pytest.raises(NoTimeMode, match=r"0 \(SpikeLinear\) has no time mode"):
        to_event_driven(model, t_max=T)


def test_a_window_of_one_step():
    model, times = _case(_steps()), torch.zeros(9, 20).double()
    expected = spikes_to_times(model(times_to_spikes(times, 1)).unsqueeze(0))
    assert torch.equal(to_event_driven(model, t_max=1)(times), expected)
    with pytest.raises(NoTimeMode, match="takes only 0 of its input"):
        to_event_driven(_case(_steps(length=lambda x: 1)), t_max=1)


class _Step(nn.Module):
    """One step of two layers per call."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = _linear(), _linear(6, 4)
        self.beside, self.again = _linear(20, 6), _linear(6, 4)
        self.lif1, self.lif2 = SingleSpike(init_hidden=True), SingleSpike(init_hidden=True)
        self.kept, self.calls, self.states = [], 0, {}


def test_a_record_of_a_models_own_is_left_as_it_was():
    class Recording(_Step):
        def forward(self, x):
            spk = self.lif1(self.fc1(x))
            self.kept.append(spk.detach())
            return spk

    model, times = Recording(), _times()
    network = to_event_driven(model, t_max=T)
    assert model.kept == []
    assert torch.equal(network(times), _loop(model, times))
    assert len(model.kept) == T


def test_what_waits_in_a_list_for_the_next_step_is_refused():
    class Delayed(_Step):
        def forward(self, x):
            self.kept.append(self.lif1(self.fc1(x)))
            old = self.kept.pop(0)
            return self.lif2(self.fc2(old))

    model = Delayed()
    model.kept = [torch.zeros(9, 6).double()]
    with pytest.raises(NoTimeMode, match="what Delayed does depends on kept, which it changes in every call"):
        to_event_driven(model, t_max=T)
    assert [one.shape for one in model.kept] == [(9, 6)]


def test_states_in_a_dictionary_are_refused_and_left_alone():
    class Held(_Step):
        def forward(self, x):
            spk, self.states["mem"] = self.lif1(self.fc1(x), self.states["mem"])
            return spk

    model = Held()
    model.lif1, model.states = SingleSpike(), {"mem": torch.zeros(9, 6).double()}
    with pytest.raises(NoTimeMode, match="what Held does depends on states, which it changes in every call"):
        to_event_driven(model, t_max=T)
    assert isinstance(model(times_to_spikes(_times(), T)[0]), torch.Tensor)


def test_what_depends_on_the_number_of_calls_is_refused():
    class Alternating(_Step):
        def forward(self, x):
            self.calls += 1
            currents = self.fc1(x)
            return self.lif1(currents * 0 if self.calls % 2 == 0 else currents)

    model = Alternating()
    with pytest.raises(
        NoTimeMode, match="what Alternating does depends on calls, which it changes in every call"
    ):
        to_event_driven(model, t_max=T)
    assert model.calls == 0


def test_calls_may_be_counted():
    class Counting(_Step):
        def forward(self, x):
            self.calls += 1
            return self.lif1(self.fc1(x))

    model, times = Counting(), _times()
    assert torch.equal(to_event_driven(model, t_max=T)(times), _loop(model, times))
    assert model.calls == T


def test_a_dropout_that_is_frozen_drops_nothing():
    model, times = (
        nn.Sequential(*_chain(), nn.Dropout(0.5), _linear(6, 4), SingleSpike(init_hidden=True)),
        _times(),
    )
    nn.init.constant_(model[3].weight, 0.4)
    model.train()
    model[2].eval()
    network = to_event_driven(model, t_max=T)
    expected = _loop(model, times)
    assert expected.isfinite().any()
    assert torch.equal(network(times), expected)


def test_values_beside_their_encoder_are_values():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.fc1, self.lif1 = LatencyEncoder(T), _linear(), SingleSpikeIF()
            self.fc2, self.beside, self.lif2 = _linear(6, 4), _linear(20, 4), SingleSpikeIF()

        def forward(self, x):
            spikes, _ = self.lif1(self.fc1(self.encode(x)))
            return self.lif2(self.fc2(spikes) * 0.1 + self.beside(x) * 0.05)[0]

    values = torch.rand(9, 20, generator=torch.Generator().manual_seed(0)).double()
    report = verify(Beside(), values, t_max=T)
    assert report.ok
    assert report.silent < report.outputs


def test_what_is_computed_of_decoded_times_is_refused():
    decoder = SpikesToTimesDecoder(t_silent=T, convert_indices_to_times=False)
    model = norse.SequentialState(norse.Lift(_linear()), SingleSpikeIF(), decoder, _linear(6, 3))
    with pytest.raises(NoTimeMode, match="goes on computing with what a decoder returns, which is no spike"):
        to_event_driven(model, t_max=T)


def test_what_is_overwritten_and_read_again_is_refused():
    class Overwriting(_Step):
        def forward(self, x):
            hidden = self.lif1(self.fc1(x))
            shifted = hidden
            shifted += self.beside(x)
            return self.lif2(self.fc2(shifted) + self.again(hidden))

    with pytest.raises(NoTimeMode, match=r"overwrites lif1 \(iadd\), which it reads again"):
        to_event_driven(Overwriting(), t_max=T)


def test_what_is_overwritten_and_not_read_again_is_followed():
    class Adding(_Step):
        def forward(self, x):
            currents = self.fc1(x)
            currents += self.beside(x)
            return self.lif1(currents)

    model, times = Adding(), _times()
    assert torch.equal(to_event_driven(model, t_max=T)(times), _loop(model, times))


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.reshape(x.shape[0], x.shape[1], 20),
        lambda x: x.view(T, 9, 20),
    ],
)
def test_a_reshaped_window_is_refused_before_it_is_called(reshape):
    class Reshaped(_Net):
        def forward(self, x):
            return super().forward(reshape(x))

    with pytest.raises(NoTimeMode, match=r"Reshaped .*window of steps"):
        to_event_driven(Reshaped(), t_max=T)


LOGS = {
    "last": lambda self, spk: self.states.update(last=spk),
    "counted": lambda self, spk: self.states.update(calls=self.states.get("calls", 0) + 1),
    "nested": lambda self, spk: self.states.setdefault("spikes", []).append(spk),
    "longest": lambda self, spk: self.recent.append(spk),
    "cleared": lambda self, spk: (self.kept.clear(), self.kept.append(spk)),
}


@pytest.mark.parametrize("log", LOGS)
def test_what_is_only_written_down_changes_nothing(log):
    class Logging(_Step):
        def __init__(self):
            super().__init__()
            self.recent = deque(maxlen=3)

        def forward(self, x):
            spk = self.lif1(self.fc1(x))
            LOGS[log](self, spk)
            return spk

    model, times = Logging(), _times()
    expected = _loop(model, times)
    kept = copy.copy(model.kept), copy.copy(model.recent), copy.copy(model.states)
    assert torch.equal(to_event_driven(model, t_max=T)(times), expected)
    assert (model.kept, model.recent, model.states) == kept


def test_a_nested_list_in_which_spikes_wait_is_refused_and_left_alone():
    class Delayed(_Step):
        def forward(self, x):
            line = self.states["line"]
            line.append(self.lif1(self.fc1(x)))
            return self.lif2(self.fc2(line[-2]))

    model = Delayed()
    model.states["line"] = [torch.zeros(9, 6).double()]
    with pytest.raises(NoTimeMode, match=r"what Delayed does depends on (line|states)"):
        to_event_driven(model, t_max=T)
    assert len(model.states["line"]) == 1


def test_a_number_that_is_made_a_tensor_is_seen():
    class Growing(_Step):
        def forward(self, x):
            self.calls += 1
            return self.lif1(self.fc1(x) * torch.tensor(float(self.calls)))

    with pytest.raises(NoTimeMode, match="what Growing does depends on calls"):
        to_event_driven(Growing(), t_max=T)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: nn.functional.leaky_relu(x, 0.1, inplace=True),
        lambda x: nn.functional.elu(x, 1.0, True),
        lambda x: nn.functional.silu(x, inplace=True),
        torch.relu_,
        nn.functional.relu_,
    ],
)
def test_functions_that_write_to_what_is_read_again_are_refused(change):
    class Changing(_Step):
        def forward(self, x):
            currents = 0.3 - self.fc1(x)
            change(currents)
            return self.lif1(currents)

    with pytest.raises(NoTimeMode, match=r"overwrites sub .*, which it reads again"):
        to_event_driven(Changing(), t_max=T)


@pytest.mark.parametrize("same", [nn.Identity(), nn.Dropout(0.5), nn.Flatten()])
def test_what_is_overwritten_under_another_name_is_refused(same):
    class Shortcut(_Step):
        def forward(self, x):
            spikes = self.lif1(self.fc1(x))
            shifted = self.same(spikes)
            shifted += 0.7
            return self.lif2(self.fc2(shifted) + self.again(spikes))

    model = Shortcut()
    model.same = same
    with pytest.raises(NoTimeMode, match="which it reads again"):
        to_event_driven(model.eval(), t_max=T)


def test_the_size_of_what_is_overwritten_may_be_read():
    class Dense(_Step):
        def forward(self, x):
            currents = self.fc1(x)
            out = nn.functional.relu(currents, inplace=True)
            return self.lif1(out.view(currents.size(0), -1))

    model, times = Dense(), _times()
    assert torch.equal(to_event_driven(model, t_max=T)(times), _loop(model, times))


def test_a_dropout_in_a_module_that_never_trained_can_be_trained_later():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            inner = nn.Sequential(*_chain(), nn.Dropout(0.5), _linear(6, 4), SingleSpike(init_hidden=True))
            self.net = inner.eval()

        def forward(self, x):
            return self.net(x)

    network = to_event_driven(Wrapped(), t_max=T)
    assert network[1].dropout == 0.5
    assert not network[1].training
    network.train()
    assert network[1].training


def test_decoded_times_may_be_flattened():
    class Decoded(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = norse.Lift(_linear()), SingleSpikeIF()
            self.decode = SpikesToTimesDecoder(t_silent=T, convert_indices_to_times=False)

        def forward(self, x):
            return self.decode(self.lif(self.fc(x))[0]).flatten(1)

    model, times = Decoded(), _times()
    assert torch.equal(
        to_event_driven(model, t_max=T)(times).flatten(), model(times_to_spikes(times, T)).flatten()
    )
