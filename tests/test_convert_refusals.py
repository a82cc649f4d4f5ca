"""Layers, options and windows without a meaning on spike times are refused by name."""

import re

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from front_ends import HIDDEN, Block
from snntorch import surrogate
from torch import nn

from ssnn_plugin import IF, NoTimeMode, decode, to_event_driven
from ssnn_plugin.nn import SpikeLinear, SpikeSequential
from ssnn_plugin.norse import FirstSpikePool2d as NorsePool
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell, SingleSpikeIFParameters
from ssnn_plugin.snntorch import FirstSpikePool2d, SingleSpike, reset

N = IF(1.0)


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
        (lambda: [_linear(), norse.LICell()], "1 (LICell)", "it is a read-out, which needs neurons in front"),
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
            for between in (nn.AvgPool2d(2), nn.Flatten(2), nn.Dropout())
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
        (lambda: [Block(_conv()), Block(nn.ReLU())], "1.connection (ReLU)", MADE_OF),
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
        (SpikeSequential(SpikeLinear(4, 3, N, t_max=8)), "SpikeSequential runs on spike times already"),
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


@pytest.mark.parametrize(("path", "where"), [("", "the model"), ("0", "0"), ("1", "1")])
def test_a_forward_that_was_assigned_is_refused(path, where):
    model = nn.Sequential(_linear(), HIDDEN())
    module = model.get_submodule(path)
    module.forward = type(module).forward.__get__(module)
    with pytest.raises(NoTimeMode, match=rf"^{where} \(.*\) has a forward that was assigned to it"):
        to_event_driven(model, t_max=8)


class Steps(nn.Module):
    """Two neurons in a loop, the second one in the first `second` steps alone."""

    def __init__(self, second):
        super().__init__()
        self.fc1, self.fc2, self.second = nn.Linear(4, 4), nn.Linear(4, 4), second
        self.l1, self.l2 = SingleSpike(), SingleSpike()

    def forward(self, x):
        m1, m2 = self.l1.reset_mem(), self.l2.reset_mem()
        spikes = []
        for t in range(8):
            s, m1 = self.l1(self.fc1(x[t]), m1)
            if t < self.second:
                s, m2 = self.l2(self.fc2(s), m2)
                spikes.append(s)
        return torch.stack(spikes)


def test_neurons_that_run_for_different_numbers_of_steps_are_refused():
    to_event_driven(Steps(8), t_max=8)
    with pytest.raises(NoTimeMode, match=r"runs its neurons for different numbers of steps \(\[4, 8\]\)"):
        to_event_driven(Steps(4), t_max=8)


class Joined(nn.Module):
    """A step whose spikes are returned twice, in one tensor."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 4), HIDDEN()

    def forward(self, x):
        spikes = self.lif(self.fc(x))
        return torch.cat([spikes, spikes], 1)


def test_spikes_that_are_joined_to_themselves_are_refused():
    with pytest.raises(NoTimeMode, match="does not return the record of all its steps"):
        to_event_driven(Joined(), t_max=8)


class NamedLikeAFunction(nn.Module):
    """A pool by a module and by the function of its name."""

    def __init__(self):
        super().__init__()
        self.conv, self.max_pool2d, self.lif = nn.Conv2d(1, 2, 2, bias=False), nn.MaxPool2d(3, 1), HIDDEN()

    def forward(self, x):
        return self.lif(self.max_pool2d(nn.functional.max_pool2d(self.conv(x), 2)))


def test_a_module_may_have_the_name_of_a_function():
    torch.manual_seed(0)
    model = NamedLikeAFunction()
    nn.init.uniform_(model.conv.weight, 0, 0.6)
    network, times = to_event_driven(model, t_max=8, binwise=True), torch.randint(9, (3, 1, 9, 9)).float()
    times = times.masked_fill(times == 8, torch.inf)
    trains = decode.times_to_spikes(times, 8)
    reset(model)
    spikes = torch.stack([model(step) for step in trains])
    assert torch.equal(decode.spikes_to_times(spikes), network(times))
