"""Ways to write a model that change nothing on spike times, or that run bin by bin."""

import copy
import pickle

import norse.torch as norse
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from marks import needs_compiler
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from ssnn_plugin import NoTimeMode, encode, to_event_driven, verify
from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.nn import BinwiseLayer, SpikeLinear
from ssnn_plugin.norse import (
    LatencyEncoder,
    SingleSpikeIF,
    SingleSpikeIFCell,
    SingleSpikeIFParameters,
    SpikesToTimesDecoder,
)
from ssnn_plugin.snntorch import SingleSpike, latency

T = 12


def _image(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _alive(model, mean=0.2, spread=0.4):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight" in name:
                parameter.normal_(mean, spread, generator=generator)
            elif "bias" in name:
                parameter.uniform_(-0.2, 0.2, generator=generator)
    return model.double()


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(16, 10), SingleSpike(0.9)
        self.fc2, self.lif2 = nn.Linear(10, 4), SingleSpike(0.9)

    def inputs(self, x):
        return (x[step] for step in range(x.shape[0]))

    def between(self, spk):
        return spk

    def forward(self, x):
        mem1, mem2, out = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for x_t in self.inputs(x):
            spk, mem1 = self.lif1(self.fc1(x_t), mem1)
            spk, mem2 = self.lif2(self.fc2(self.between(spk)), mem2)
            out.append(spk)
        return torch.stack(out)


def _net(**methods):
    return type("_Case", (_Net,), methods)()


def _filled(self, x):
    mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
    out = torch.zeros(x.shape[0], x.shape[1], 4, dtype=x.dtype)
    for step in range(x.shape[0]):
        spk, mem1 = self.lif1(self.fc1(x[step]), mem1)
        out[step], mem2 = self.lif2(self.fc2(spk), mem2)
    return out


HARMLESS = {
    "float": {"inputs": lambda self, x: (x[step].double() for step in range(T))},
    "to": {"inputs": lambda self, x: (x[step].to("cpu") for step in range(T))},
    "contiguous": {"inputs": lambda self, x: (x[step].contiguous() for step in range(T))},
    "detach": {"inputs": lambda self, x: (x[step].detach() for step in range(T))},
    "the whole window": {"inputs": lambda self, x: iter(x.double().detach())},
    "unbind": {"inputs": lambda self, x: x.unbind(0)},
    "unbind with dim": {"inputs": lambda self, x: torch.unbind(x, dim=0)},
    "clone of spikes": {"between": lambda self, spk: spk.clone().contiguous().double()},
    "relu of spikes": {"between": lambda self, spk: F.relu(spk)},
    "a preallocated record": {"forward": _filled},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_followed(name):
    model = _alive(_net(**HARMLESS[name]))
    network = to_event_driven(model, t_max=T, binwise=False)
    assert [type(layer) for layer in network] == [SpikeLinear, SpikeLinear]
    report = verify(model, latency(_image(8, 16), T))
    assert report.ok, report
    assert report.silent < report.outputs


IN_BINS = {
    "a factor": {"between": lambda self, spk: 0.5 * spk},
    "the others of a step": {"between": lambda self, spk: 1 - spk},
    "reordered": {"between": lambda self, spk: spk.flip(-1)},
    "without gradient": {"between": lambda self, spk: spk.detach()},
    "some features": {"between": lambda self, spk: torch.cat([spk[:, 2:], spk[:, :2]], 1)},
}


@pytest.mark.parametrize("name", IN_BINS)
def test_what_has_no_form_on_spike_times_runs_in_bins(name):
    model = _alive(_net(**IN_BINS[name]))
    assert [type(layer) for layer in to_event_driven(model, t_max=T)] == [SpikeLinear, BinwiseLayer]
    report = verify(model, latency(_image(8, 16), T))
    assert report.ok, report
    with pytest.raises(NoTimeMode, match=r"_Case calls .* between its modules"):
        to_event_driven(model, t_max=T, binwise=False)


def test_currents_that_are_rounded_run_in_bins():
    class Rounded(_Net):
        def forward(self, x):
            mem, out = self.lif1.reset_mem(), []
            for x_t in x:
                spk, mem = self.lif1(self.fc1(x_t).to(torch.int32).double(), mem)
                out.append(spk)
            return torch.stack(out)

    model = _alive(Rounded(), 1.0)
    assert isinstance(to_event_driven(model, t_max=T)[0], BinwiseLayer)
    assert verify(model, latency(_image(8, 16), T)).equal == 80


def test_the_whole_input_beside_its_steps_is_refused():
    def forward(self, x):
        mem, out = self.lif1.reset_mem(), []
        for x_t in x:
            spk, mem = self.lif1(self.fc1(x_t + x.mean(0)), mem)
            out.append(spk)
        return torch.stack(out)

    with pytest.raises(NoTimeMode, match="takes its input as a whole beside the steps of it"):
        to_event_driven(_net(forward=forward), t_max=T)


def _chain():
    return nn.Sequential(nn.Linear(16, 4), SingleSpike(init_hidden=True))


def _pruned():
    model = _chain()
    prune.l1_unstructured(model[0], "weight", 0.3)
    return model


def _normed(normalise):
    def make():
        model = _chain()
        normalise(model[0])
        return model

    return make


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (_pruned, r"torch\.nn\.utils\.prune\.remove\(module, 'weight'\)"),
        (_normed(parametrizations.weight_norm), r"parametrize\.remove_parametrizations\(module, 'weight'\)"),
        (_normed(weight_norm), r"torch\.nn\.utils\.remove_weight_norm\(module\)"),
    ],
)
def test_weights_that_are_computed_run_in_bins(make, remedy):
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model = model.double()
    network = to_event_driven(model, t_max=T)
    assert isinstance(network[0], BinwiseLayer)
    times = encode.latency(_image(8, 16), T)
    model[1].reset_mem()
    spikes = torch.stack([model(x) for x in times_to_spikes(times, T)])
    assert torch.equal(network(times), spikes_to_times(spikes))
    assert {id(p) for p in network.parameters()} == {id(p) for p in model.parameters()}
    with pytest.raises(NoTimeMode, match=rf"^0 \(\w*Linear\) has no time mode: its weights are .*{remedy}"):
        to_event_driven(model, t_max=T, binwise=False)


def test_weights_pruned_after_the_conversion_are_refused():
    model = _chain()
    network = to_event_driven(model, t_max=T)
    prune.l1_unstructured(model[0], "weight", 0.3)
    with pytest.raises(ValueError, match=r"pruned or normalised .*prune\.remove"):
        network(torch.zeros(2, 16))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models_are_unwrapped(wrap):
    model = _alive(_chain())
    network, times = to_event_driven(wrap(model), t_max=T), encode.latency(_image(8, 16), T)
    assert network[0].weight is model[0].weight
    assert torch.equal(network(times), to_event_driven(model, t_max=T)(times))
    inside = nn.Sequential(wrap(model[0]), model[1])
    assert to_event_driven(inside, t_max=T)[0].weight is model[0].weight


def test_norses_encoder_and_decoder_are_followed():
    torch.manual_seed(0)
    model = norse.SequentialState(
        LatencyEncoder(T),
        norse.Lift(nn.Linear(16, 4)),
        SingleSpikeIF(),
        SpikesToTimesDecoder(t_silent=T, dt=0.5),
    )
    _alive(model, 0.1)
    network, image = to_event_driven(model, t_max=T), _image(8, 16)
    expected, _ = model(image)
    assert torch.equal(network(image), expected)
    assert 0 < (expected < T / 2).double().mean() < 1
    assert verify(model, image, t_max=T).ok
    with pytest.raises(
        NoTimeMode, match=r"0 \(LatencyEncoder\) has no time mode: seq_length must be t_max = 8"
    ):
        to_event_driven(model, t_max=8)


@pytest.mark.parametrize("kind", ["threshold", "beta", "both", "learned", "norse"])
def test_thresholds_and_leaks_per_neuron_and_learned(kind):
    torch.manual_seed(0)
    value = torch.tensor([0.25, 0.5, 0.75, 1.0])
    neuron = {
        "threshold": lambda: SingleSpike(threshold=value, init_hidden=True),
        "beta": lambda: SingleSpike(beta=value, init_hidden=True),
        "both": lambda: SingleSpike(0.5 + value / 2, 1 + value, init_hidden=True),
        "learned": lambda: SingleSpike(0.9, 0.8, learn_beta=True, learn_threshold=True, init_hidden=True),
        "norse": lambda: SingleSpikeIF(SingleSpikeIFParameters(v_th=value)),
    }[kind]()
    model = _alive(nn.Sequential(nn.Linear(16, 4), neuron), 0.05)
    if kind == "norse":
        model = norse.SequentialState(*model)
    report = verify(model, latency(_image(8, 16), T))
    assert report.ok, report
    assert 0 < report.silent < report.outputs
    names = {"1.beta", "1.threshold"} if kind == "learned" else set()
    assert set(report.gradients) == {"0.weight", "0.bias"} | names
    assert report.binwise == [f"0 ({type(neuron).__name__})"]


def test_a_learned_threshold_is_the_same_parameter():
    model = nn.Sequential(nn.Linear(16, 4), SingleSpike(learn_threshold=True, init_hidden=True))
    network = to_event_driven(model, t_max=T)
    assert any(parameter is model[1].threshold for parameter in network.parameters())


def test_a_shortcut_between_layers_is_followed():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(16, 10), SingleSpike(init_hidden=True)
            self.fc2, self.lif2 = nn.Linear(10, 10), SingleSpike(init_hidden=True)
            self.fc3, self.lif3 = nn.Linear(10, 4), SingleSpike(init_hidden=True, output=True)

        def forward(self, x):
            spk1 = self.lif1(self.fc1(x))
            spk2 = self.lif2(spk1 + self.fc2(spk1) + x[:, :10])
            return self.lif3(self.fc3(spk2) - spk1[:, :4])

    model = _alive(Residual())
    network = to_event_driven(model, t_max=T)
    assert network.sources == [(-1,), (0, -1), (1, 0)]
    report = verify(model, latency(_image(8, 16), T))
    assert report.ok, report
    times, potential = network(encode.latency(_image(8, 16), T), return_potential=True)
    assert times.shape == potential.shape == (8, 4)


def test_batch_normalisation_runs_in_bins_once_it_is_fixed():
    model = _alive(nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4), SingleSpike(init_hidden=True)))
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    with pytest.raises(
        NoTimeMode, match=r"1 \(BatchNorm1d\) has no time mode: .*model\.eval\(\).*fold_batchnorm"
    ):
        to_event_driven(model, t_max=T)
    assert verify(model, latency(_image(8, 16), T)).ok
    network = to_event_driven(model.eval(), t_max=T)
    with pytest.raises(ValueError, match=r"BatchNorm1d\) mixes the samples of a step in training"):
        network.train()(encode.latency(_image(8, 16), T))


def _with_layers_in_bins():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.MaxPool2d(2),
        SingleSpike(init_hidden=True, learn_threshold=True),
        nn.Flatten(),
        nn.Linear(27, 5),
        SingleSpike(init_hidden=True),
        nn.Linear(5, 2),
    )
    return to_event_driven(_alive(model), t_max=T), encode.latency(_image(4, 1, 8, 8), T)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_networks_with_layers_in_bins_are_copied(again):
    network, times = _with_layers_in_bins()
    copied = again(network)
    expected = network(times)
    assert torch.equal(copied(times), expected)
    copied.load_state_dict(network.state_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-1)
    assert not torch.equal(network(times), expected)
    assert torch.equal(copied(times), expected)


@needs_compiler
def test_networks_with_layers_in_bins_compile():
    network, times = _with_layers_in_bins()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(times), network(times))


def _random_model(seed):
    """Layers that take what earlier ones and the input give, scaled, added, joined or reordered."""
    generator = torch.Generator().manual_seed(seed)

    def pick(count):
        return int(torch.randint(count, (), generator=generator))

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            betas = [1.0, 0.9, torch.linspace(0.5, 1, 6)]
            self.fcs = nn.ModuleList(nn.Linear(6, 6, bias=bool(pick(2))) for _ in range(4))
            self.lifs = nn.ModuleList(
                SingleSpike(betas[pick(3)], learn_beta=bool(pick(2)), init_hidden=True) for _ in range(4)
            )
            self.plan = [(pick(i + 1), pick(i + 1), pick(5)) for i in range(4)]

        def join(self, a, b, how):
            if how == 0:
                return a
            if how == 1:
                return a + b
            if how == 2:
                return torch.cat([a[:, :3], b[:, 3:]], 1)
            return 0.5 * a.flip(-1) if how == 3 else F.relu(a - b)

        def forward(self, x):
            for lif in self.lifs:
                lif.reset_mem()
            out = []
            for x_t in x:
                known = [x_t]
                for fc, lif, (a, b, how) in zip(self.fcs, self.lifs, self.plan, strict=True):
                    known.append(lif(fc(self.join(known[a], known[b], how))))
                out.append(known[-1])
            return torch.stack(out)

    return _alive(Random(), 0.45)


def test_random_graphs_are_the_same():
    reports = [verify(_random_model(seed), latency(_image(20, 6), T)) for seed in range(12)]
    for report in reports:
        assert report.ok or report.silent == report.outputs == report.equal, report
    assert sum(report.silent < 0.9 * report.outputs for report in reports) >= 9


def test_neurons_that_listen_when_silent_do_so_behind_a_decoder_too():
    def network(**options):
        neuron = SingleSpikeIF(SingleSpikeIFParameters(silent_gradient=True))
        decoder = SpikesToTimesDecoder(t_silent=T, dt=1.0)
        model = norse.SequentialState(nn.Linear(4, 3, bias=False), neuron, decoder)
        return to_event_driven(model, t_max=T, **options)

    assert network()[0].silent_gradient
    assert not network(silent_gradient=False)[0].silent_gradient


class _Decoded(nn.Module):
    """With a decoder that is given the potential of the neurons in front of it, if `potential`."""

    def __init__(self, potential):
        super().__init__()
        self.fc, self.neuron = nn.Linear(16, 4, bias=False), SingleSpikeIF()
        self.decoder = SpikesToTimesDecoder(t_silent=T, convert_indices_to_times=False)
        self.potential = potential

    def forward(self, x):
        spikes, state = self.neuron(self.fc(x))
        return self.decoder(spikes, state.v) if self.potential else self.decoder(spikes)


def test_silent_neurons_learn_if_a_decoder_is_given_their_potential():
    for potential in (True, False):
        model = _alive(_Decoded(potential), -0.1)
        times = encode.latency(_image(8, 16), T)
        network = to_event_driven(model, t_max=T)
        in_steps, by_events = model(times_to_spikes(times, T)), network(times)
        assert torch.equal(in_steps, by_events)
        assert (in_steps == T).any()
        expected, found = (torch.autograd.grad(x.sum(), model.fc.weight)[0] for x in (in_steps, by_events))
        torch.testing.assert_close(found, expected)
        assert network[0].silent_gradient == potential
    assert to_event_driven(model, t_max=T, silent_gradient=True)[0].silent_gradient


def test_a_decoder_of_the_record_of_a_loop_is_refused():
    class Loop(_Decoded):
        def forward(self, x):
            state, out = None, []
            for step in x:
                spikes, state = self.neuron(self.fc(step), state)
                out.append(spikes)
            return self.decoder(torch.stack(out))

    model = Loop(potential=False)
    model.neuron = SingleSpikeIFCell()
    with pytest.raises(NoTimeMode, match="passes the record of its steps to decoder"):
        to_event_driven(model, t_max=T)


@pytest.mark.parametrize("name", ["fc1", "lif1"])
def test_a_module_in_the_place_of_another_is_told(name):
    model = _alive(_Net())
    network = to_event_driven(model, t_max=T)
    setattr(model, name, nn.Linear(16, 10).double() if name == "fc1" else SingleSpike(0.5))
    with pytest.raises(ValueError, match=f"{name} of the model is not the module that the network was made"):
        network(encode.latency(_image(5, 16), T).double())


def test_a_network_follows_how_much_is_dropped():
    model = nn.Sequential(nn.Linear(8, 6), SingleSpike(init_hidden=True), nn.Dropout(0.5), nn.Linear(6, 3))
    model.append(SingleSpike(init_hidden=True))
    network = to_event_driven(_alive(model), t_max=T)
    times = _image(4, 8).mul(T).floor()
    model[2].p = 0.25
    network(times)
    assert network[1].dropout == 0.25
    model[2].p = 1.0
    with pytest.raises(
        ValueError, match=r"p of the model's Dropout must be a probability .* below 1, got 1.0"
    ):
        network(times)


def test_a_network_refuses_hooks_that_its_model_has_got():
    model = _alive(nn.Sequential(nn.Linear(8, 6), SingleSpike(init_hidden=True)))
    network, times = to_event_driven(model, t_max=T), _image(4, 8).mul(T).floor()
    for module in (*model, model):
        hook = module.register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match=r"(0|1|the model) has got hooks"):
            network(times)
        hook.remove()
    network(times)


def test_slices_of_a_network_follow_its_model():
    model = _alive(nn.Sequential(nn.Linear(8, 6), SingleSpike(init_hidden=True), nn.Linear(6, 3)))
    model.append(SingleSpike(init_hidden=True))
    network, times = to_event_driven(model, t_max=T), _image(4, 8).mul(T).floor()
    hidden, rest = network[:-1], network[1:]
    assert torch.equal(rest(hidden(times)), network(times))
    model[1].threshold.fill_(0.3)
    before = hidden(times)
    assert torch.equal(before, network[0](times))
    assert hidden[0].neuron.threshold == pytest.approx(0.3)


@pytest.mark.parametrize("behind", [nn.Tanh(), None], ids=["in bins", "read-out"])
def test_modules_that_a_network_runs_may_have_hooks(behind):
    model = nn.Sequential(nn.Linear(8, 6), SingleSpike(init_hidden=True), nn.Linear(6, 3))
    last = snn.Leaky(0.9, init_hidden=True, output=True, reset_mechanism="none")
    for module in [last] if behind is None else [behind, SingleSpike(init_hidden=True)]:
        model.append(module)
    network, times = to_event_driven(_alive(model), t_max=T), _image(4, 8).mul(T).floor()
    called = []
    for module in network.modules():
        module.register_forward_hook(lambda *_: called.append(1))
    network(times)
    assert called


def test_a_slice_of_a_network_that_branches_may_be_a_chain():
    class Branching(_Net):
        def forward(self, x):
            mem1, mem2, mem3, out = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem(), []
            for step in x:
                a, mem1 = self.lif1(self.fc1(step), mem1)
                b, mem2 = self.lif2(self.fc2(a), mem2)
                c, mem3 = self.lif3(self.fc3(a) + self.fc4(b), mem3)
                out.append(c)
            return torch.stack(out)

    model = Branching()
    model.fc3, model.fc4, model.lif3 = nn.Linear(10, 3), nn.Linear(4, 3), SingleSpike(0.9)
    network = to_event_driven(_alive(model), t_max=T)
    times = _image(4, 16).mul(T).floor()
    assert not network.in_a_row()
    hidden = network[:2]
    assert hidden.in_a_row()
    assert torch.equal(hidden(times), network[1](network[0](times)))
    with pytest.raises(IndexError, match="must begin with the first"):
        network[1:]


def test_a_model_may_lose_modules_of_which_a_network_was_made():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 6), SingleSpike(init_hidden=True)), nn.Linear(6, 3))
    model.append(SingleSpike(init_hidden=True))
    network, times = to_event_driven(_alive(model), t_max=T), _image(4, 8).mul(T).floor()
    before = network(times)
    del model[0][1]
    assert torch.equal(network(times), before)
