"""The descriptions of the neurons, and what the rest of the package refuses to do with them."""

import dataclasses
import math

import pytest
import torch
from marks import on_every_backend
from torch import nn

from ssnn_plugin import IF, LIF, AlphaPSP, ExpPSP, ReLPSP, WindowedRamp, to_step_mode
from ssnn_plugin.convert import NoTimeMode
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.kernels import ops
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear, SpikeSequential

INF, NAN = math.inf, math.nan
CONTINUOUS = [
    ReLPSP(1.5),
    WindowedRamp(1.5, start=2.0),
    ExpPSP(0.7, tau=1.3),
    AlphaPSP(0.4, tau=1.5),
    LIF(0.3, tau_mem=0.8, tau_syn=0.8),
    LIF(0.3, tau_mem=1.6, tau_syn=0.8),
]
with_every_neuron = pytest.mark.parametrize("neuron", CONTINUOUS, ids=repr)


@pytest.mark.parametrize(
    ("neuron", "text"),
    [
        (IF(), "IF(threshold=1.0, delay=0, beta=1.0)"),
        (ReLPSP(), "ReLPSP(threshold=1.0)"),
        (WindowedRamp(2.0, start=3.5), "WindowedRamp(threshold=2.0, start=3.5)"),
        (ExpPSP(tau=2.0), "ExpPSP(threshold=1.0, tau=2.0)"),
        (AlphaPSP(0.5), "AlphaPSP(threshold=0.5, tau=1.0)"),
        (LIF(tau_mem=2.0), "LIF(threshold=1.0, tau_mem=2.0, tau_syn=1.0)"),
    ],
)
def test_repr(neuron, text):
    assert repr(neuron) == text
    assert eval(text) == neuron


@with_every_neuron
def test_neurons_are_values(neuron):
    assert eval(repr(neuron)) == neuron
    assert hash(eval(repr(neuron))) == hash(neuron)
    assert dataclasses.replace(neuron, threshold=9.0) != neuron
    with pytest.raises(dataclasses.FrozenInstanceError):
        neuron.threshold = 2.0
    with pytest.raises(TypeError, match="positional"):
        type(neuron)(1.0, 1.0)


def test_no_two_neurons_are_equal():
    assert len(set(CONTINUOUS)) == len(CONTINUOUS)
    assert ExpPSP() != AlphaPSP()
    assert WindowedRamp(start=0.0) != ReLPSP()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ReLPSP, "threshold"),
        *((kind, name) for kind in (ExpPSP, AlphaPSP) for name in ("threshold", "tau")),
        *((LIF, name) for name in ("threshold", "tau_mem", "tau_syn")),
    ],
)
@pytest.mark.parametrize("bad", [0, 0.0, -1.0, NAN, INF, -INF])
def test_numbers_that_are_not_positive_are_named(kind, name, bad):
    with pytest.raises(ValueError, match=f"{name} must be finite and greater than 0, got {bad!r}"):
        kind(**{name: bad})


@pytest.mark.parametrize("bad", [-1.0, NAN, INF])
def test_a_bad_start_is_named(bad):
    with pytest.raises(ValueError, match=f"start must be finite and at least 0, got {bad!r}"):
        WindowedRamp(start=bad)


def _call(layer, neuron, times=None, **changes):
    options = {"t_max": 8.0, "backend": "cpu"} | changes
    if layer == "linear":
        times = torch.zeros(2, 3) if times is None else times
        return first_spike_linear(times, torch.ones(4, 3, dtype=times.dtype), neuron, **options)
    times = torch.zeros(2, 3, 4, 4) if times is None else times
    return first_spike_conv2d(times, torch.ones(4, 3, 2, 2, dtype=times.dtype), neuron, **options)


in_every_layer = pytest.mark.parametrize("layer", ["linear", "conv2d"])


@in_every_layer
@with_every_neuron
@pytest.mark.parametrize("gradient", ["latency", "surrogate", "local_slope", "", "Exact"])
def test_an_unknown_gradient_is_named(layer, neuron, gradient):
    assert neuron.rules == ("exact",)
    with pytest.raises(ValueError, match=f"gradient must be one of 'exact', got {gradient!r}"):
        _call(layer, neuron, gradient=gradient)


def test_if_has_no_exact_gradient():
    assert IF().rules == ("latency", "surrogate", "local_slope")
    with pytest.raises(
        ValueError, match="gradient must be one of 'latency', 'surrogate', 'local_slope', got"
    ):
        _call("linear", IF(), gradient="exact")


@in_every_layer
@with_every_neuron
def test_silent_gradient_is_refused(layer, neuron):
    with pytest.raises(ValueError, match="silent_gradient has no meaning for the exact gradient of"):
        _call(layer, neuron, silent_gradient=True)


@in_every_layer
@pytest.mark.parametrize(
    ("neuron", "most"),
    [
        (ExpPSP(tau=0.5), 40.0),
        (AlphaPSP(tau=0.5), 40.0),
        (LIF(tau_mem=0.5, tau_syn=0.5), 40.0),
        (LIF(tau_mem=1.0, tau_syn=0.5), 40.0),
    ],
)
def test_a_window_of_too_many_time_constants_is_named(layer, neuron, most):
    _call(layer, neuron, t_max=most, backend="reference")
    with pytest.raises(ValueError, match=r"t_max must be at most 80 time constants of 0\.5, got 40\.5"):
        _call(layer, neuron, t_max=most + 0.5, backend="reference")


@pytest.mark.parametrize("neuron", [ReLPSP(), WindowedRamp(start=10.0)])
def test_ramps_have_no_longest_window(neuron):
    _call("linear", neuron, t_max=1e6)


@in_every_layer
@pytest.mark.parametrize("start", [8.0, 9.0])
def test_a_start_after_the_window_is_named(layer, start):
    with pytest.raises(ValueError, match=f"t_max must lie after the neuron's start = {start}, got 8.0"):
        _call(layer, WindowedRamp(start=start))


@in_every_layer
@with_every_neuron
@pytest.mark.parametrize("t_max", [0, -1.0, NAN, INF])
def test_a_bad_window_is_named(layer, neuron, t_max):
    with pytest.raises(ValueError, match=f"t_max must be finite and greater than 0, got {t_max}"):
        _call(layer, neuron, t_max=t_max)


@in_every_layer
@with_every_neuron
@on_every_backend
@pytest.mark.parametrize("bad", [NAN, -1e-3, -INF])
def test_bad_times_are_refused(layer, neuron, backend, bad):
    times = torch.ones(2, 3) if layer == "linear" else torch.ones(2, 3, 4, 4)
    times.view(-1)[-1] = bad
    with pytest.raises(ValueError, match="times must hold spike times >= 0, with inf for silence; got"):
        _call(layer, neuron, times, backend=backend)


@with_every_neuron
@on_every_backend
@pytest.mark.parametrize(("weight", "bias"), [([0.1, NAN], None), ([INF, -INF], None), ([0.1, 0.1], [NAN])])
def test_a_potential_of_nan_is_refused(neuron, backend, weight, bias):
    bias = None if bias is None else torch.tensor(bias)
    weight = torch.tensor(weight)
    with pytest.raises(ValueError, match="weight or bias holds NaN or opposite infinities"):
        first_spike_linear(torch.zeros(1, 2), weight[None], neuron, t_max=8.0, bias=bias, backend=backend)
    with pytest.raises(ValueError, match="weight or bias holds NaN or opposite infinities"):
        first_spike_conv2d(
            torch.zeros(1, 2, 1, 1),
            weight.reshape(1, 2, 1, 1),
            neuron,
            t_max=8.0,
            bias=bias,
            backend=backend,
        )


@with_every_neuron
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"times": torch.zeros(2, 3).long()}, TypeError, "times must be float32 or float64, got torch.int64"),
        (
            {"times": torch.zeros(2, 3).half()},
            TypeError,
            "times must be float32 or float64, got torch.float1",
        ),
        (
            {"weight": torch.ones(4, 3).double()},
            TypeError,
            "weight is torch.float64, times are torch.float32",
        ),
        ({"bias": torch.ones(4).double()}, TypeError, "bias is torch.float64, times are torch.float32"),
        ({"bias": torch.ones(3)}, ValueError, r"bias must have shape \[4\], got \[3\]"),
        ({"weight": torch.ones(4, 5)}, ValueError, r"times must have shape .* got \[2, 3\] and \[4, 5\]"),
        ({"weight": torch.ones(4, 3, device="meta")}, ValueError, "weight is on meta, times are on cpu"),
        ({"backend": "gpu"}, ValueError, "backend must be one of .* got 'gpu'"),
    ],
)
def test_bad_arguments_are_named(neuron, changes, error, message):
    arguments = {"times": torch.zeros(2, 3), "weight": torch.ones(4, 3), "neuron": neuron, "t_max": 8.0}
    with pytest.raises(error, match=message):
        first_spike_linear(**arguments | changes)


@pytest.mark.parametrize("bad", [ReLPSP, "LIF", 1.0, None])
def test_what_is_no_neuron_is_named(bad):
    with pytest.raises(TypeError, match="neuron must be one of ssnn_plugin's neurons"):
        first_spike_linear(torch.zeros(2, 3), torch.ones(4, 3), bad, t_max=8.0)
    with pytest.raises(TypeError, match="neuron must be one of ssnn_plugin's neurons"):
        SpikeLinear(3, 4, bad, t_max=8.0)


@with_every_neuron
def test_layers_refuse_what_the_functions_refuse(neuron):
    for build in (lambda **o: SpikeLinear(3, 4, neuron, **o), lambda **o: SpikeConv2d(3, 4, 2, neuron, **o)):
        with pytest.raises(ValueError, match="silent_gradient has no meaning"):
            build(t_max=8.0, silent_gradient=True)
        with pytest.raises(ValueError, match="gradient must be one of 'exact', got 'latency'"):
            build(t_max=8.0, gradient="latency")
        with pytest.raises(ValueError, match="t_max must be finite"):
            build(t_max=NAN)
        assert build(t_max=8.0).gradient.name == "exact"


@with_every_neuron
def test_repr_rebuilds_the_layers(neuron):
    linear = SpikeLinear(3, 4, neuron, t_max=8.0, bias=True, init_range=(0.0, 1.0))
    conv = SpikeConv2d(4, 6, (3, 2), neuron, t_max=8.0, stride=(2, 1), padding=1, dilation=(1, 2), groups=2)
    for layer in (linear, conv):
        assert repr(neuron) in repr(layer)
        assert "gradient='exact'" in repr(layer)
        rebuilt = eval(repr(layer))
        assert repr(rebuilt) == repr(layer)
        assert rebuilt.neuron == neuron


@with_every_neuron
@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_hosts_have_no_step_mode_for_them(neuron, host):
    pytest.importorskip(host)
    first = SpikeLinear(3, 4, IF(), t_max=8)
    network = SpikeSequential(first, SpikeLinear(4, 2, neuron, t_max=8))
    with pytest.raises(NoTimeMode, match=r"^1 \(SpikeLinear\) has no step mode: only IF neurons") as refusal:
        to_step_mode(network, host)
    assert repr(neuron) in str(refusal.value)
    conv = SpikeSequential(SpikeConv2d(1, 2, 3, neuron, t_max=8), nn.Flatten())
    with pytest.raises(NoTimeMode, match="only IF neurons run in steps"):
        to_step_mode(conv, host)


@pytest.mark.parametrize("gradient", ["surrogate", "local_slope"])
@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_hosts_have_the_latency_rule_only(gradient, host):
    pytest.importorskip(host)
    layer = SpikeLinear(3, 4, IF(), t_max=8, gradient=gradient)
    with pytest.raises(NoTimeMode, match=f"in steps the gradient is 'latency', got '{gradient}'"):
        to_step_mode(layer, host)


@with_every_neuron
def test_nir_has_no_node_for_them(neuron):
    pytest.importorskip("nir")
    from ssnn_plugin.nir import to_nir

    with pytest.raises(ValueError, match=r"0 \(SpikeLinear\): NIR has IF neurons only") as refusal:
        to_nir(SpikeLinear(3, 4, neuron, t_max=8))
    assert repr(neuron) in str(refusal.value)
    with pytest.raises(ValueError, match="NIR has IF neurons only"):
        to_nir(SpikeConv2d(1, 4, 3, neuron, t_max=8), input_shape=(1, 5, 5))


@pytest.mark.parametrize("t_max", ["8", None, [8.0]])
def test_a_window_that_is_no_number_is_named(t_max):
    with pytest.raises(TypeError, match="t_max must be a number, got "):
        SpikeLinear(2, 3, IF(), t_max=t_max)


def test_classes_of_one_name_are_told_apart():
    """As a function makes them, or a cell of a notebook that is run again."""

    def make(rise):
        @dataclasses.dataclass(frozen=True)
        class Ramp(ReLPSP):
            def input_factors(self, times):
                return torch.ones_like(times) * rise, times * rise

        return Ramp()

    slow, fast = make(1.0), make(2.0)
    assert slow.kind != fast.kind
    options = {"stride": [], "dilation": [], "groups": 1, "t_max": 8.0, "backend": "reference"}
    for neuron, expected in ((slow, 1.0), (fast, 0.5)):
        at, _, _ = ops.first_spike(
            torch.zeros(1, 1), torch.ones(1, 1), None, neuron=neuron.kind, numbers=neuron.numbers, **options
        )
        assert at.item() == expected


def test_the_kind_of_a_class_is_its_name():
    assert IF().kind == "ssnn_plugin.neurons.step:IF"


def test_layers_start_with_weights_also_where_the_threshold_is_0():
    layer = SpikeLinear(20, 3, IF(0.0), t_max=8)
    assert layer.init_range == (0.0, 2.0)
    assert (layer.weight > 0).all()
