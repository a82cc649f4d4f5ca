"""`SpikeLinear` as a module: the function with parameters, its copies, and what it refuses."""

import copy
import pickle
import traceback

import pytest
import torch
from if_examples import linear_example
from marks import in_both_precisions

from ssnn_plugin import IF
from ssnn_plugin.functional import first_spike_linear
from ssnn_plugin.kernels.cpu import steps
from ssnn_plugin.nn import SpikeLinear
from ssnn_plugin.rules import LocalSlope


def _layer(**options):
    torch.manual_seed(0)
    neuron = IF(5.0, delay=1, beta=0.75)
    return SpikeLinear(6, 3, neuron, t_max=9, bias=True, silent_gradient=True, **options)


@in_both_precisions
def test_the_layer_is_the_function_with_its_parameters(dtype):
    layer = _layer(dtype=dtype)
    times, _, bias, grad = linear_example(dtype)
    with torch.no_grad():
        layer.bias.copy_(bias / 8)
    spikes, potential = layer(times, return_potential=True)
    expected, of_function = first_spike_linear(
        times,
        layer.weight,
        layer.neuron,
        t_max=9,
        bias=layer.bias,
        silent_gradient=True,
        return_potential=True,
    )
    assert torch.equal(spikes, expected)
    assert torch.equal(potential, of_function)
    assert torch.equal(layer(times), expected)
    for ours, theirs in zip(
        torch.autograd.grad(spikes, layer.parameters(), grad),
        torch.autograd.grad(expected, layer.parameters(), grad),
        strict=True,
    ):
        assert ours.any()
        assert torch.equal(ours, theirs)


def test_repr_names_a_rule_of_other_values_in_full():
    rules = {
        "local_slope": "'local_slope'",
        LocalSlope(4): "'local_slope'",
        LocalSlope(8): "LocalSlope(reach=8)",
    }
    for rule, written in rules.items():
        layer = SpikeLinear(3, 2, IF(), t_max=9, gradient=rule)
        assert f"gradient={written}," in repr(layer)
        assert eval(repr(layer)).gradient == layer.gradient


def test_repr_rebuilds_the_layer():
    layer = _layer(init_range=(0.0, 2.0))
    rebuilt = eval(repr(layer))
    assert repr(rebuilt) == repr(layer)
    for name in (
        "in_features",
        "out_features",
        "neuron",
        "t_max",
        "gradient",
        "silent_gradient",
        "init_range",
    ):
        assert getattr(rebuilt, name) == getattr(layer, name)
    assert rebuilt.bias is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_a_layer_are_equal_and_independent(copied):
    layer = _layer()
    twin = copied(layer)
    times = linear_example(torch.float32)[0]
    assert torch.equal(twin(times), layer(times))
    assert repr(twin) == repr(layer)
    with torch.no_grad():
        twin.weight.zero_()
    assert layer.weight.any()


def test_state_dict_round_trip():
    layer, other = _layer(), SpikeLinear(6, 3, _layer().neuron, t_max=9, bias=True)
    assert set(layer.state_dict()) == {"weight", "bias"}
    times = linear_example(torch.float32)[0]
    assert not torch.equal(other.weight, layer.weight)
    other.load_state_dict(layer.state_dict())
    for ours, theirs in zip(
        layer(times, return_potential=True), other(times, return_potential=True), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_weights_are_drawn_from_the_range():
    layer = SpikeLinear(200, 30, IF(100.0), t_max=256, init_range=(-1.0, 5.0), bias=True)
    assert layer.weight.shape == (30, 200)
    assert -1 <= layer.weight.min() < -0.9
    assert 4.9 < layer.weight.max() <= 5
    assert not layer.bias.any()
    assert SpikeLinear(200, 30, IF(100.0), t_max=256).init_range == (0.0, 20.0)
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)


def test_a_layer_on_the_meta_device():
    layer = SpikeLinear(6, 3, IF(), t_max=8, bias=True, device="meta")
    assert layer(torch.empty(2, 6, device="meta")).shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features must be a whole number of at least 1, got 0"),
        ({"out_features": -2}, ValueError, "out_features must be a whole number of at least 1, got -2"),
        ({"t_max": 0}, ValueError, "t_max must be finite and greater than 0, got 0"),
        ({"gradient": "none"}, ValueError, "gradient must be one of 'latency'.* got 'none'"),
        (
            {"neuron": "IF"},
            TypeError,
            r"neuron must be one of ssnn_plugin's neurons, such as IF\(\), got 'IF'",
        ),
        ({"dtype": torch.float16}, TypeError, "must be float32 or float64, got torch.float16"),
        ({"dropout": 1.0}, ValueError, "dropout must be a probability .* below 1, got 1.0"),
    ],
)
def test_bad_layers_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        SpikeLinear(**{"in_features": 4, "out_features": 3, "neuron": IF(), "t_max": 8} | changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 2.5}, "in_features must be a whole number"),
        ({"out_features": 0}, "out_features must be a whole number"),
        ({"init_range": (2.0, 1.0)}, "init_range must be"),
    ],
)
def test_bad_sizes_and_ranges_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpikeLinear(**{"in_features": 2, "out_features": 3, "neuron": IF(), "t_max": 8, **arguments})


@pytest.mark.parametrize("learning", [True, False])
def test_few_calls_lie_between_a_layer_and_its_compiled_loop(monkeypatch, learning):
    layer, times = SpikeLinear(20, 5, IF(1.0), t_max=8), torch.rand(4, 20).mul(8).floor()
    calls, compiled = [], steps.fire_linear

    def fire_linear(*arguments):
        calls.extend(frame.name for frame in traceback.extract_stack() if "ssnn_plugin" in frame.filename)
        compiled(*arguments)

    monkeypatch.setattr(steps, "fire_linear", fire_linear)
    with torch.set_grad_enabled(learning):
        layer(times)
    below = calls[calls.index("forward") + 1 :]
    assert below[0] == "first_spike_linear"
    assert below[-1] == "share_out"
    assert len(below) <= 6
