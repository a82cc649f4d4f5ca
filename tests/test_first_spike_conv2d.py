import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from if_examples import conv2d_example
from marks import BACKEND_NAMES, in_both_precisions, needs_compiler, on_every_backend
from naive import first_spikes_of_trains, latency_loss
from torch.nn.functional import conv2d, pad, unfold

from ssnn_plugin import IF, ReLPSP
from ssnn_plugin.functional import earliest_spike_pool2d, first_spike_conv2d, first_spike_linear
from ssnn_plugin.functional.pool import AveragePool
from ssnn_plugin.kernels.cpu import parallel
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeConv2d

INF, NAN = math.inf, math.nan


@st.composite
def convolutions(draw):
    """Whole bins, whole weights and halves of a leak, so that every sum is exact."""
    small, two = st.integers(1, 2), st.integers(1, 3)
    groups, in_group, out_group, batch = draw(two), draw(small), draw(small), draw(small)
    kernel, dilation, stride = (
        draw(st.tuples(two, two)),
        draw(st.tuples(small, small)),
        draw(st.tuples(two, two)),
    )
    padding = draw(st.sampled_from(["same", "valid"]) | st.tuples(st.integers(0, 2), st.integers(0, 2)))
    if padding == "same":
        stride = (1, 1)
    border = (0, 0) if isinstance(padding, str) else padding
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [max(1, s - 2 * p) + draw(st.integers(0, 3)) for s, p in zip(spans, border, strict=True)]
    t_max = draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    times = torch.from_numpy(random.integers(0, t_max + 2, (batch, groups * in_group, *size)).astype(float))
    times[torch.from_numpy(random.random(times.shape) < draw(st.sampled_from([0.0, 0.5, 1.0])))] = INF
    weight = torch.from_numpy(random.integers(-2, 4, (groups * out_group, in_group, *kernel)).astype(float))
    bias = torch.from_numpy(random.integers(-1, 3, groups * out_group).astype(float))
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    neuron = IF(
        draw(st.sampled_from([0.0, 1.0, 2.5, 4.0])),
        delay=draw(st.sampled_from([0, 1, 3])),
        beta=draw(st.sampled_from([1.0, 0.0, 0.5])),
    )
    tensors = times.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return *tensors, draw(st.sampled_from([None, bias])), neuron, t_max, geometry


def _inputs(dtype, *tensors):
    return [None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in tensors]


def _equal(found, expected):
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@in_both_precisions
@settings(deadline=None, max_examples=100)
@given(case=convolutions())
def test_every_backend_is_the_loop_over_time(case, dtype):
    times, weight, bias, neuron, t_max, geometry = case
    expected = first_spikes_of_trains(lambda s: conv2d(s, weight, bias, **geometry), times, neuron, t_max)
    for backend in BACKEND_NAMES:
        t, w, b = _inputs(dtype, times, weight, bias)
        found = first_spike_conv2d(
            t, w, neuron, t_max=t_max, bias=b, return_potential=True, backend=backend, **geometry
        )
        for ours, naive in zip(found, expected, strict=True):
            _equal(ours.detach(), naive.to(dtype))


@in_both_precisions
@settings(deadline=None, max_examples=100)
@given(case=convolutions(), silent_gradient=st.booleans(), which=st.sampled_from([(1, 0), (0, 1), (1, 1)]))
def test_gradients_of_every_backend_are_the_latency_rule(case, dtype, silent_gradient, which):
    times, weight, bias, neuron, t_max, geometry = case
    generator = torch.Generator().manual_seed(0)
    for backend in BACKEND_NAMES:
        inputs = _inputs(dtype, times, weight, bias)
        outputs = first_spike_conv2d(
            *inputs[:2],
            neuron,
            t_max=t_max,
            bias=inputs[2],
            silent_gradient=silent_gradient,
            return_potential=True,
            backend=backend,
            **geometry,
        )
        spikes = outputs[0].detach().double()
        grads = [torch.randint(-2, 3, spikes.shape, generator=generator).double() * used for used in which]
        error = (grads[0] if silent_gradient else grads[0].masked_fill(spikes.isinf(), 0)) - grads[1]

        t, w, b = naive = _inputs(torch.float64, times, weight, bias)
        loss = latency_loss(lambda s: conv2d(s, w, b, **geometry), t, spikes, error, neuron, t_max)  # noqa: B023
        wanted = [k for k in range(3) if naive[k] is not None]
        expected = torch.autograd.grad(loss, [naive[k] for k in wanted])
        used = [k for k in (0, 1) if which[k]]
        found = torch.autograd.grad(
            [outputs[k] for k in used], [inputs[k] for k in wanted], [grads[k].to(dtype) for k in used]
        )
        for ours, theirs in zip(found, expected, strict=True):
            _equal(ours, theirs.to(dtype))


GEOMETRIES = [
    {"stride": (1, 1), "padding": (1, 2), "dilation": (1, 1), "groups": 1},
    {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2), "groups": 2},
    {"stride": (3, 4), "padding": (0, 0), "dilation": (1, 1), "groups": 4},
]


def _on_patches(times, weight, bias, neuron, stride, padding, dilation, groups, **options):
    """A convolution as linear layers on the patches of each group."""
    padded = pad(times, (padding[1], padding[1], padding[0], padding[0]), value=INF)
    patches = unfold(padded, weight.shape[2:], dilation, 0, stride).transpose(1, 2).chunk(groups, dim=2)
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = [
        first_spike_linear(patch, w.flatten(1), neuron, bias=b, return_potential=True, **options)
        for patch, w, b in zip(patches, weight.chunk(groups), biases, strict=True)
    ]
    return [torch.cat(part, dim=2).transpose(1, 2) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize(
    ("neuron", "with_bias", "whole"),
    [
        (IF(2.0), False, False),
        (IF(2.0, delay=1), True, True),
        (IF(1.0, beta=0.9), False, True),
        (IF(1.0, delay=2, beta=0.97), True, True),
    ],
)
# With fewer and with more outputs in a group than a vector holds, and with some between.
@pytest.mark.parametrize(
    ("geometry", "out"),
    [
        pytest.param(g, out, marks=pytest.mark.slow if out > 8 and g["groups"] == 4 else [])
        for g in GEOMETRIES
        for out in (8, 44)
    ],
    ids=str,
)
@on_every_backend
def test_a_convolution_is_a_linear_layer_on_every_patch(backend, geometry, out, neuron, with_bias, whole):
    t_max, generator = 256, torch.Generator().manual_seed(0)
    times = torch.rand(3, 4, 7, 8, dtype=torch.double, generator=generator) * 1.2 * t_max
    times[0, :, :4] = times[0, :1, :1, :1]
    times[1] = INF
    times = times.floor() if whole else times
    weight = torch.randn(out, 4 // geometry["groups"], 3, 3, dtype=torch.double, generator=generator) + 0.2
    bias = torch.randn(out, dtype=torch.double, generator=generator) * 0.05 if with_bias else None

    def run(layer, backend):
        inputs = _inputs(torch.double, times.clone(), weight.clone(), None if bias is None else bias.clone())
        outputs = layer(*inputs[:2], bias=inputs[2], neuron=neuron, t_max=t_max, backend=backend, **geometry)
        spikes, potential = (output.flatten(2) for output in outputs)
        loss = spikes[spikes.isfinite()].square().sum() + potential.square().sum()
        return spikes, potential, *torch.autograd.grad(loss, [i for i in inputs if i is not None])

    found = run(lambda *args, **options: first_spike_conv2d(*args, return_potential=True, **options), backend)
    assert 0.2 < found[0].isfinite().double().mean() < 0.95
    expected = run(_on_patches, "reference")
    _equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@on_every_backend
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4)])
def test_an_empty_batch(backend, size):
    inputs = _inputs(torch.float32, torch.zeros(0, 2, 4, 4), torch.ones(3, 2, *size), torch.ones(3))
    outputs = first_spike_conv2d(
        *inputs[:2], IF(), t_max=4, bias=inputs[2], return_potential=True, backend=backend
    )
    for output in outputs:
        assert output.shape == (0, 3, 5 - size[0], 5 - size[1])
    for grad, tensor in zip(torch.autograd.grad(sum(map(torch.sum, outputs)), inputs), inputs, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_an_infinite_weight_that_was_not_counted_leaves_the_gradient_alone():
    times = torch.tensor([[[[1.0, 5.0]]]], requires_grad=True)
    weight = torch.tensor([2.0, -INF, 2.0, INF]).reshape(2, 1, 1, 2)
    spikes = first_spike_conv2d(times, weight, IF(1.0), t_max=8, backend="cpu")
    (grad,) = torch.autograd.grad(spikes.sum(), times)
    _equal(grad, torch.tensor([[[[4.0, 0.0]]]]))


@pytest.mark.parametrize("neuron", [IF(1.0), ReLPSP()], ids=repr)
def test_without_input_channels_nothing_fires(neuron):
    times, weight, _ = _inputs(torch.float32, torch.zeros(2, 0, 5, 5), torch.ones(3, 0, 3, 3), None)
    outputs = first_spike_conv2d(times, weight, neuron, t_max=8, return_potential=True, backend="cpu")
    assert outputs[0].shape == (2, 3, 3, 3)
    assert outputs[0].isinf().all()
    assert not outputs[1].any()
    for grad, tensor in zip(
        torch.autograd.grad(outputs[1].sum(), (times, weight)), (times, weight), strict=True
    ):
        assert grad.shape == tensor.shape


@in_both_precisions
@pytest.mark.parametrize("neuron", [IF(3.0, delay=1), IF(2.0, beta=0.9)])
def test_results_do_not_depend_on_the_number_of_threads(set_threads, neuron, dtype):
    batch, channels, side, groups, t_max = 64, 21, 16, 3, 30  # a thread's last row is within a channel
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 2 * t_max, (batch, channels, side, side), generator=generator).to(dtype)
    weight = torch.randn(channels, channels // groups, 3, 3, dtype=dtype, generator=generator)
    grad = torch.randn(batch, channels, side - 2, side - 2, dtype=dtype, generator=generator)

    def run(threads):
        set_threads(threads)
        t, w, _ = _inputs(dtype, times.clone(), weight.clone(), None)
        outputs = first_spike_conv2d(t, w, neuron, t_max=t_max, groups=groups, return_potential=True)
        return *outputs, *torch.autograd.grad(outputs, (t, w), (grad, grad))

    additions = batch * (side - 2) ** 2 * weight.numel()
    assert additions // 4 > 1.5 * parallel.WORTH_WAKING_ONE
    one, two = run(1), run(2)
    assert 0.3 < one[0].isfinite().double().mean() < 0.95
    for a, b in zip(one, two, strict=True):
        assert a.any()
        _equal(a, b)


@needs_compiler
@on_every_backend
def test_compiled_step_equals_the_eager_one(backend):
    times, weight, bias, _ = conv2d_example(torch.float32)
    readout = torch.arange(36.0).reshape(2, 18) % 5
    criterion, labels = RelativeTargetLoss(2, 16), torch.tensor([0, 1])

    def network(times, weight, bias, readout):
        hidden, potential = first_spike_conv2d(
            times,
            weight,
            IF(5.0, delay=1, beta=0.75),
            t_max=16,
            bias=bias,
            padding="same",
            groups=2,
            return_potential=True,
            backend=backend,
        )
        pooled = earliest_spike_pool2d(hidden, (3, 2), (2, 2)).flatten(1)[:, ::2]
        out = first_spike_linear(pooled, readout, IF(20.0), t_max=16, silent_gradient=True, backend=backend)
        return out, criterion(out, labels) + 0.01 * potential.sum()

    def step(network):
        inputs = _inputs(torch.float32, *(tensor.clone() for tensor in (times, weight, bias, readout)))
        out, loss = network(*inputs)
        return [out, loss, *torch.autograd.grad(loss, inputs)]

    torch._dynamo.reset()
    for found, expected in zip(step(torch.compile(network, fullgraph=True)), step(network), strict=True):
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", [None, *BACKEND_NAMES])
@pytest.mark.parametrize("batch", [0, 2])
def test_shapes_on_the_meta_device(backend, batch):
    times, weight, _, (stride, dilation, groups) = conv2d_example(torch.float32)
    times, weight = times.new_empty(batch, *times.shape[1:], device="meta"), weight.to("meta")
    outputs = first_spike_conv2d(
        times,
        weight,
        IF(beta=0.5),
        t_max=8,
        stride=stride,
        padding=1,
        dilation=dilation,
        groups=groups,
        return_potential=True,
        backend=backend,
    )
    for output in outputs:
        assert output.shape == (batch, 6, 3, 6)
        assert output.device.type == "meta"
        assert output.dtype == times.dtype


@on_every_backend
@pytest.mark.parametrize("bad", [NAN, -1.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_bad_times_are_refused_even_where_no_kernel_looks(backend, bad, stride):
    times = torch.zeros(2, 1, 3, 3)
    times[1, 0, 1, 1] = bad
    with pytest.raises(ValueError, match="times must hold spike times >= 0"):
        first_spike_conv2d(times, torch.ones(1, 1, 1, 1), IF(), t_max=8, stride=stride, backend=backend)


@on_every_backend
@pytest.mark.parametrize(("weight", "bias"), [([1.0, NAN], None), ([INF, -INF], None), ([1.0, 1.0], [NAN])])
def test_a_potential_of_nan_is_refused(backend, weight, bias):
    weight = torch.tensor(weight).reshape(1, 2, 1, 1)
    bias = None if bias is None else torch.tensor(bias)
    with pytest.raises(ValueError, match="weight or bias holds NaN or opposite infinities"):
        first_spike_conv2d(torch.zeros(1, 2, 2, 2), weight, IF(9.0), t_max=8, bias=bias, backend=backend)


TIMES, WEIGHT = torch.zeros(2, 4, 5, 5), torch.ones(6, 2, 3, 3)
SHAPES = r"times must have shape \[batch, in, height, width\] for a weight of shape .* and groups = "


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"times": TIMES[0]}, ValueError, SHAPES + r"2, got \[4, 5, 5\] and \[6, 2, 3, 3\]"),
        ({"weight": WEIGHT[0]}, ValueError, SHAPES + r"2, got \[2, 4, 5, 5\] and \[2, 3, 3\]"),
        ({"groups": 1}, ValueError, SHAPES + r"1, got \[2, 4, 5, 5\] and \[6, 2, 3, 3\]"),
        ({"groups": 0}, ValueError, "groups must be a whole number of at least 1, got 0"),
        ({"weight": WEIGHT[:5]}, ValueError, "groups must divide the 5 output channels, got 2"),
        ({"stride": 0}, ValueError, "stride must be a whole number of at least 1, or two of them, got 0"),
        ({"stride": (1, 2, 1)}, ValueError, r"stride must be .* or two of them, got \(1, 2, 1\)"),
        ({"dilation": (1, 0)}, ValueError, r"dilation must be .* at least 1, .* got \(1, 0\)"),
        ({"dilation": 1.5}, ValueError, r"dilation must be a whole number .* got 1\.5"),
        ({"padding": -1}, ValueError, "padding must be a whole number of at least 0, .* got -1"),
        ({"padding": "full"}, ValueError, "padding must be one of 'same', 'valid', got 'full'"),
        (
            {"padding": "same", "stride": (1, 2)},
            ValueError,
            r"padding 'same' needs a stride of 1, got \[1, 2\]",
        ),
        (
            {"dilation": (1, 3), "padding": 0},
            ValueError,
            r"kernel \[3, 3\] with dilation \[1, 3\] must fit the padded input, got \[5, 5\]",
        ),
        ({"bias": torch.ones(4)}, ValueError, r"bias must have shape \[6\], got \[4\]"),
        ({"weight": WEIGHT.double()}, TypeError, "weight is torch.float64, times are torch.float32"),
        ({"times": TIMES.half()}, TypeError, "times must be float32 or float64, got torch.float16"),
        ({"t_max": 0}, ValueError, "t_max must be finite and greater than 0, got 0"),
        (
            {"neuron": 1.0},
            TypeError,
            r"neuron must be one of ssnn_plugin's neurons, such as IF\(\), got 1\.0",
        ),
        ({"gradient": "exakt"}, ValueError, "gradient must be one of 'latency'.* got 'exakt'"),
        ({"backend": "gpu"}, ValueError, "backend must be one of .*'cpu'.*'reference'.* got 'gpu'"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    arguments = {"times": TIMES, "weight": WEIGHT, "neuron": IF(), "t_max": 8, "groups": 2} | changes
    with pytest.raises(error, match=message):
        first_spike_conv2d(**arguments)


POOL = AveragePool((2, 2), (2, 2))


def _layer(**options):
    torch.manual_seed(0)
    options = {"padding": 1, "stride": (1, 2), "groups": 2, "bias": True} | options
    return SpikeConv2d(4, 6, (3, 2), IF(3.0, delay=1, beta=0.5), t_max=9, silent_gradient=True, **options)


@pytest.mark.parametrize("padding", [(1, 2), "same", "valid"])
@in_both_precisions
def test_the_layer_is_the_function_with_its_parameters(dtype, padding):
    layer = _layer(dtype=dtype, padding=padding, stride=1, dilation=(1, 2), init_range=(-1.0, 2.0))
    times, _, bias, _ = conv2d_example(dtype)
    with torch.no_grad():
        layer.bias.copy_(bias / 8)
    found = layer(times, return_potential=True)
    expected = first_spike_conv2d(
        times,
        layer.weight,
        layer.neuron,
        t_max=9,
        bias=layer.bias,
        padding=padding,
        dilation=(1, 2),
        groups=2,
        silent_gradient=True,
        return_potential=True,
    )
    assert 0 < expected[0].isfinite().sum() < expected[0].numel()
    grads = [torch.randn_like(output) for output in found]
    for ours, theirs in zip(found, expected, strict=True):
        _equal(ours, theirs)
    _equal(layer(times), expected[0])
    for ours, theirs in zip(
        torch.autograd.grad(found, layer.parameters(), grads),
        torch.autograd.grad(expected, layer.parameters(), grads),
        strict=True,
    ):
        assert ours.any()
        _equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": "same", "stride": 1}, {"input_pool": POOL, "output_pool": POOL, "dropout": 0.25}],
)
def test_repr_rebuilds_the_layer(options):
    layer = _layer(init_range=(0.0, 2.0), **options)
    rebuilt = eval(repr(layer))
    assert repr(rebuilt) == repr(layer)
    plain = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
    assert {key: getattr(rebuilt, key) for key in plain} == plain
    assert rebuilt.bias is not None


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: (twin := _layer(init_range=(9.0, 9.0))).load_state_dict(layer.state_dict()) and twin,
    ],
)
def test_copies_of_a_layer_are_equal_and_independent(copied):
    layer = _layer()
    torch.nn.init.normal_(layer.bias)
    twin = copied(layer)
    times = conv2d_example(torch.float32)[0]
    for ours, theirs in zip(layer(times, True), twin(times, True), strict=True):
        _equal(ours, theirs)
    with torch.no_grad():
        twin.weight.zero_()
    assert layer.weight.any()


def test_weights_are_drawn_from_the_range():
    layer = _layer()
    assert layer.weight.shape == (6, 2, 3, 2)
    assert layer.init_range == (0.0, 40 * 3.0 / (2 * 3 * 2))
    assert 0 <= layer.weight.min() < layer.weight.max() <= 10
    assert not layer.bias.any()
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert _layer(bias=False).bias is None


def test_a_layer_on_the_meta_device():
    assert _layer(device="meta")(torch.empty(2, 4, 5, 6, device="meta")).shape == (2, 6, 5, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels must be a whole number of at least 1, got 0"),
        ({"out_channels": 1.5}, ValueError, "out_channels must be a whole number of at least 1, got 1.5"),
        ({"groups": 0}, ValueError, "groups must be a whole number of at least 1, got 0"),
        ({"groups": 3}, ValueError, "groups must divide 4 and 6 channels, got 3"),
        ({"kernel_size": (3, 0)}, ValueError, r"kernel_size must be .* at least 1, .* got \(3, 0\)"),
        ({"stride": 0}, ValueError, "stride must be .* at least 1, .* got 0"),
        ({"dilation": 0}, ValueError, "dilation must be .* at least 1, .* got 0"),
        ({"padding": (0, -1)}, ValueError, r"padding must be .* at least 0, .* got \(0, -1\)"),
        ({"padding": "full"}, ValueError, "padding must be one of 'same', 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, "padding 'same' needs a stride of 1"),
        ({"t_max": 0}, ValueError, "t_max must be finite and greater than 0, got 0"),
        (
            {"neuron": "IF"},
            TypeError,
            r"neuron must be one of ssnn_plugin's neurons, such as IF\(\), got 'IF'",
        ),
        ({"dropout": 1.0}, ValueError, "dropout must be a probability .* below 1, got 1.0"),
        ({"init_range": (2.0, 1.0)}, ValueError, "init_range must be"),
        ({"padding": "same", "input_pool": POOL}, ValueError, "padding must be given in numbers .* 'same'"),
        (
            {"padding": "valid", "output_pool": POOL},
            ValueError,
            "padding must be given in numbers .* 'valid'",
        ),
        (
            {"padding": (1, 0), "input_pool": AveragePool((3, 2), (2, 2))},
            ValueError,
            r"input_pool must not overlap with padding \(1, 0\), got AveragePool\(kernel_size=\(3, 2\)",
        ),
    ],
)
def test_bad_layers_are_named(changes, error, message):
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "neuron": IF(), "t_max": 8}
    with pytest.raises(error, match=message):
        SpikeConv2d(**arguments | changes)


@pytest.mark.parametrize("kernel", [(0, 2), (2, 0), (0, 0)])
def test_a_kernel_without_extent_is_named(kernel):
    with pytest.raises(ValueError, match=rf"weight's kernel must be at least 1 x 1, got \[{kernel[0]}, "):
        first_spike_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, *kernel), IF(), t_max=8)
