import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import in_both_precisions
from naive import first_spikes_of_trains, latency_loss
from torch.nn.functional import avg_pool2d, conv2d, linear

from ssnn_plugin import IF, decode
from ssnn_plugin.functional import (
    drop_spikes,
    earliest_spike_pool2d,
    first_spike_pool2d_sequence,
    first_spike_pool2d_step,
    highest_in_windows2d,
    lateral_inhibition2d,
)
from ssnn_plugin.functional.pool import AveragePool, Convolution
from ssnn_plugin.nn import EarliestSpikePool2d, SpikeConv2d, SpikeFlatten, SpikeLinear

INF, NAN = math.inf, math.nan
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def _random_times(shape, t_max=12, dtype=torch.float64, seed=0):
    """Whole bins, a third of them silent."""
    times = torch.randint(0, t_max * 3 // 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return times.masked_fill_(times >= t_max, INF)


def _earliest(times, size, stride, padding):
    """Window by window: the earliest spike, and the position of the first one that early."""
    height, width = (
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(times.shape, size, stride, padding, strict=True)
    )
    earliest, first = torch.full((height, width), INF, dtype=times.dtype), {}
    for y in range(height):
        for x in range(width):
            for i in range(size[0]):
                for j in range(size[1]):
                    at = y * stride[0] + i - padding[0], x * stride[1] + j - padding[1]
                    inside = 0 <= at[0] < times.shape[0] and 0 <= at[1] < times.shape[1]
                    if inside and ((y, x) not in first or times[at] < earliest[y, x]):
                        earliest[y, x], first[y, x] = times[at], at
    return earliest, first


@in_both_precisions
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@settings(deadline=None, max_examples=25)
@given(size=pairs, stride=pairs, extra=pairs, data=st.data(), seed=st.integers(0, 99))
def test_earliest_pool_is_the_loop_over_windows(layout, dtype, size, stride, extra, data, seed):
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in size)
    times = _random_times((2, 2, size[0] + extra[0], size[1] + extra[1]), t_max=5, dtype=dtype, seed=seed)
    times[0, 0] = INF
    times = times.contiguous(memory_format=layout).requires_grad_()
    pooled = earliest_spike_pool2d(times, size, stride, padding)
    grad = torch.randint(-3, 4, pooled.shape).to(dtype)
    (found,) = torch.autograd.grad(pooled, times, grad)
    expected = torch.zeros_like(times)
    for b in range(2):
        for c in range(2):
            earliest, first = _earliest(times[b, c].detach(), size, stride, padding)
            assert torch.equal(pooled[b, c], earliest)
            for (y, x), at in first.items():
                expected[b, c][at] += grad[b, c, y, x]
    assert torch.equal(found, expected)


def test_the_pooling_layer_is_the_function():
    times = _random_times((2, 3, 7, 8))
    for arguments in [(2,), ((3, 2), (2, 1)), (3, 2, 1), ((2, 3), None, (1, 0))]:
        layer = EarliestSpikePool2d(*arguments)
        assert torch.equal(layer(times), earliest_spike_pool2d(times, *arguments))
        assert repr(eval(repr(layer))) == repr(layer)
        assert torch.equal(eval(repr(layer))(times), layer(times))
    assert earliest_spike_pool2d(times, 2).shape == (2, 3, 3, 4)
    assert earliest_spike_pool2d(times[:0], 2).shape == (0, 3, 3, 4)
    assert EarliestSpikePool2d(2)(torch.empty(2, 3, 7, 8, device="meta")).shape == (2, 3, 3, 4)


@in_both_precisions
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@settings(deadline=None, max_examples=25)
@given(size=pairs, extra=pairs, seed=st.integers(0, 99))
def test_inhibition_leaves_the_earliest_spikes_of_each_window(layout, dtype, size, extra, seed):
    shape = 2, 2, size[0] + extra[0], size[1] + extra[1]
    times = _random_times(shape, t_max=5, dtype=dtype, seed=seed).contiguous(memory_format=layout)
    left, expected = lateral_inhibition2d(times, size), torch.full_like(times, INF)
    for b in range(2):
        for c in range(2):
            earliest, _ = _earliest(times[b, c], size, size, (0, 0))
            for y in range(earliest.shape[0] * size[0]):
                for x in range(earliest.shape[1] * size[1]):
                    if times[b, c, y, x] == earliest[y // size[0], x // size[1]]:
                        expected[b, c, y, x] = times[b, c, y, x]
    assert left.dtype == dtype
    assert torch.equal(left, expected)
    assert torch.equal(earliest_spike_pool2d(left, size), earliest_spike_pool2d(times, size))
    assert torch.equal(highest_in_windows2d(-times, size) & times.isfinite(), left.isfinite())


def test_inhibition_passes_the_gradient_of_the_spikes_that_are_left():
    times = torch.tensor([[[[5.0, 2.0, 4.0], [2.0, 7.0, INF]]]], requires_grad=True)
    left = lateral_inhibition2d(times, 2)
    assert left.tolist() == [[[[INF, 2.0, INF], [2.0, INF, INF]]]]
    (grad,) = torch.autograd.grad(left, times, torch.ones_like(left))
    assert grad.tolist() == [[[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(1, 1, 4, 4).long(), 2), TypeError, "times must be float32 or float64, got torch.int64"),
        ((torch.zeros(1, 4, 4), 2), ValueError, r"times must have shape \[batch, .* got \[1, 4, 4\]"),
        ((torch.full((1, 1, 4, 4), -1.0), 2), ValueError, r"times must hold .* a negative time \(-1\.0\)"),
        ((torch.zeros(1, 1, 4, 4), 0), ValueError, "kernel_size must be a whole number of at least 1"),
        ((torch.zeros(1, 1, 4, 4), (5, 2)), ValueError, r"kernel_size \[5, 2\] must fit .* got \[4, 4\]"),
    ],
)
def test_bad_arguments_of_inhibition_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        lateral_inhibition2d(*arguments)


def test_flatten_keeps_the_order_of_the_features():
    times = _random_times((2, 3, 2, 2))
    assert torch.equal(SpikeFlatten()(times), times.reshape(2, 12))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"times": torch.zeros(1, 1, 4, 4).long()},
            TypeError,
            "times must be float32 or float64, got torch.int64",
        ),
        (
            {"times": torch.zeros(1, 4, 4)},
            ValueError,
            r"times must have shape \[batch, channels, height, width\], got \[1, 4, 4\]",
        ),
        (
            {"times": torch.full((1, 1, 4, 4), -1.0)},
            ValueError,
            r"times must hold .* a negative time \(-1\.0\)",
        ),
        ({"times": torch.full((1, 1, 4, 4), NAN)}, ValueError, "times must hold .* got NaN"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be a whole number of at least 1, or two .* got 0"),
        ({"stride": (1, 0)}, ValueError, r"stride must be .* got \(1, 0\)"),
        ({"padding": -1}, ValueError, "padding must be a whole number of at least 0, .* got -1"),
        ({"padding": (0, 2)}, ValueError, r"padding must be at most half .* \[2, 2\], got \[0, 2\]"),
        (
            {"kernel_size": (2, 5)},
            ValueError,
            r"kernel_size \[2, 5\] must fit the padded input, got \[4, 4\]",
        ),
    ],
)
def test_bad_arguments_of_the_pool_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        earliest_spike_pool2d(**{"times": torch.zeros(1, 1, 4, 4), "kernel_size": 2} | changes)


@in_both_precisions
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_spikes_are_dropped_at_their_rate(p, dtype):
    torch.manual_seed(0)
    times = torch.arange(40_000, dtype=dtype).remainder(7).reshape(4, -1).requires_grad_()
    left = drop_spikes(times, p)
    dropped = left.isinf()
    assert left.dtype == dtype
    assert torch.equal(left[~dropped], times[~dropped])
    margin = 5 * math.sqrt(p * (1 - p) / times.numel())
    assert abs(dropped.double().mean() - p) <= margin
    for half in (dropped[:, ::2], dropped[:, 1::2]):
        assert abs(half.double().mean() - p) <= 2 * margin
    (grad,) = torch.autograd.grad(left[~dropped].sum(), times)
    assert torch.equal(grad, (~dropped).to(dtype))
    assert drop_spikes(torch.full((100,), INF), p).isinf().all()


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, NAN])
def test_bad_rates_are_named(p):
    with pytest.raises(ValueError, match=f"p must be a probability of at least 0 and below 1, got {p}"):
        drop_spikes(torch.zeros(3), p)


pools = st.builds(AveragePool, pairs, pairs)


@settings(deadline=None, max_examples=100)
@given(
    before=st.none() | pools,
    after=st.none() | pools,
    kernel=pairs,
    stride=pairs,
    dilation=pairs,
    groups=st.integers(1, 2),
    extra=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    data=st.data(),
)
def test_average_pools_are_part_of_the_convolution(
    before, after, kernel, stride, dilation, groups, extra, data
):
    padding = [0, 0]
    if before is None or all(k <= s for k, s in zip(*before.window, strict=True)):
        padding = [data.draw(st.integers(0, 2)) for _ in kernel]
    size = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if after is not None:
        size = [(k - 1) * s + n for n, s, k in zip(size, stride, after.kernel_size, strict=True)]
    if before is not None:
        size = [(n - 1) * s + k for n, k, s in zip(size, *before.window, strict=True)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(
        2,
        2 * groups,
        *(n + e for n, e in zip(size, extra, strict=True)),
        dtype=torch.double,
        generator=generator,
    )
    weight = torch.randn(3 * groups, 2, *kernel, dtype=torch.double, generator=generator)

    expected = x if before is None else avg_pool2d(x, *before.window)
    expected = conv2d(expected, weight, None, stride, padding, dilation, groups)
    expected = expected if after is None else avg_pool2d(expected, *after.window)

    folded = Convolution(weight, list(stride), padding, list(dilation))
    folded = folded if after is None else folded.before(after)
    if before is not None:
        x, folded = before.crop(x), folded.after(before)
    torch.testing.assert_close(
        conv2d(x, folded.weight, None, folded.stride, folded.padding, folded.dilation, groups),
        expected,
        rtol=1e-12,
        atol=1e-12,
    )


def _check_against_the_steps(layer, current, times):
    """Outputs and gradients of a layer whose input currents are `current(spikes, weight, bias)`."""
    silent = layer.silent_gradient
    times.requires_grad_()

    def drive(spikes):
        return current(spikes, layer.weight, layer.bias)

    with torch.no_grad():
        expected = first_spikes_of_trains(drive, times, layer.neuron, layer.t_max)
    assert 0.2 < expected[0].isfinite().double().mean() < 0.95
    found = layer(times, return_potential=True)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(layer.eval()(times), expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-9)

    grads = [torch.randn_like(output) for output in expected]
    error = (grads[0] if silent else grads[0].masked_fill(expected[0].isinf(), 0)) - grads[1]
    loss = latency_loss(drive, times, expected[0], error, layer.neuron, layer.t_max)
    inputs = [times, *layer.parameters()]
    for ours, naive in zip(
        torch.autograd.grad(found, inputs, grads), torch.autograd.grad(loss, inputs), strict=True
    ):
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-9)


def _pooled(spikes, pool):
    return spikes if pool is None else avg_pool2d(spikes, *pool.window)


BOX, SPARSE, OVERLAP = AveragePool((2, 2), (2, 2)), AveragePool((1, 2), (2, 3)), AveragePool((3, 2), (1, 1))
OPTIONS = {"t_max": 12, "init_range": (-1.0, 1.0), "bias": True, "dtype": torch.float64}


@pytest.mark.parametrize("neuron", [IF(0.6, delay=1), IF(0.5, beta=0.9)])
@pytest.mark.parametrize(
    ("input_pool", "output_pool", "geometry"),
    [
        (BOX, None, {"padding": 1}),
        (SPARSE, None, {"padding": (0, 1), "groups": 2}),
        (AveragePool((1, 2), (1, 2)), None, {"padding": 1}),
        (OVERLAP, None, {"stride": (2, 1)}),
        (None, OVERLAP, {"padding": 1, "dilation": 2}),
        (BOX, OVERLAP, {"padding": 1, "stride": (1, 2), "groups": 2}),
    ],
)
def test_pools_of_a_convolution_are_those_of_every_bin(input_pool, output_pool, geometry, neuron):
    torch.manual_seed(0)
    layer = SpikeConv2d(
        2, 4, (3, 2), neuron, input_pool=input_pool, output_pool=output_pool, **geometry, **OPTIONS
    )
    torch.nn.init.uniform_(layer.bias, 0, 0.05)

    def current(spikes, weight, bias):
        return _pooled(conv2d(_pooled(spikes, input_pool), weight, bias, **geometry), output_pool)

    _check_against_the_steps(layer, current, _random_times((3, 2, 11, 13)))


@pytest.mark.parametrize("neuron", [IF(1.0, delay=1), IF(0.5, beta=0.9)])
@pytest.mark.parametrize("pool", [BOX, SPARSE, OVERLAP])
def test_the_pool_of_a_linear_layer_is_that_of_every_bin(pool, neuron):
    torch.manual_seed(0)
    n_in = 3 * math.prod(pool.output_size(torch.zeros(1, 1, 5, 7)))
    layer = SpikeLinear(n_in, 6, neuron, input_pool=pool, silent_gradient=True, **OPTIONS)
    torch.nn.init.uniform_(layer.bias, 0, 0.05)

    def current(spikes, weight, bias):
        return linear(avg_pool2d(spikes, *pool.window).flatten(1), weight, bias)

    _check_against_the_steps(layer, current, _random_times((8, 3, 5, 7)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 12), r"times must be \[batch, channels, height, width\], at least .*, got \[2, 12\]"),
        (
            (2, 3, 4, 6),
            r"times must have 12 values per sample after AveragePool.*, got \[2, 3, 4, 6\], .* 3 x 2 x 3",
        ),
        ((2, 3, 1, 4), r"at least as large as AveragePool.*, got \[2, 3, 1, 4\]"),
    ],
)
def test_inputs_that_do_not_fit_the_pool_of_a_linear_layer_are_named(shape, message):
    layer = SpikeLinear(12, 2, IF(), t_max=8, input_pool=BOX)
    assert layer(torch.zeros(2, 3, 4, 4)).shape == (2, 2)
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 2, 1, 4)])
def test_inputs_that_do_not_fit_the_pool_of_a_convolution_are_named(shape):
    layer = SpikeConv2d(2, 1, 1, IF(), t_max=8, padding=1, input_pool=BOX)
    with pytest.raises(ValueError, match="times must"):
        layer(torch.zeros(shape))


def _conv_layer(dropout, **options):
    return SpikeConv2d(2, 3, 3, IF(1.5, delay=1), padding=1, dropout=dropout, **OPTIONS | options)


def _linear_layer(dropout, **options):
    return SpikeLinear(2 * 4 * 5, 6, IF(4.0, beta=0.9), dropout=dropout, **OPTIONS | options)


LAYERS = [
    (_conv_layer, (8, 2, 4, 5), lambda *args: conv2d(*args, padding=1)),
    (_linear_layer, (8, 40), linear),
]


@pytest.mark.parametrize(("build", "shape", "current"), LAYERS)
def test_dropout_scales_what_is_left_in_training_only(build, shape, current):
    p, times = 0.4, _random_times(shape)
    torch.manual_seed(0)
    layer = build(p)
    torch.nn.init.uniform_(layer.bias, 0, 0.05)
    without = build(0.0)
    without.load_state_dict(layer.state_dict())
    for ours, theirs in zip(layer.eval()(times, True), without(times, True), strict=True):
        assert torch.equal(ours, theirs)

    layer.train()
    torch.manual_seed(1)
    spikes, potential = layer(times, return_potential=True)
    torch.manual_seed(1)
    left = drop_spikes(times, p)
    assert 0.2 < left.isinf().double().mean() - times.isinf().double().mean() < 0.35
    expected = first_spikes_of_trains(
        lambda s: current(s, layer.weight / (1 - p), layer.bias), left, layer.neuron, layer.t_max
    )
    assert not torch.equal(expected[0], without(times))
    assert torch.equal(spikes, expected[0])
    torch.testing.assert_close(potential, expected[1], rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(potential.sum(), layer.weight)
    scaled = without.weight.detach().div(1 - p).requires_grad_()
    loss = latency_loss(
        lambda s: current(s, scaled, layer.bias),
        left,
        spikes,
        -torch.ones_like(spikes),
        layer.neuron,
        layer.t_max,
    )
    torch.testing.assert_close(grad, torch.autograd.grad(loss, scaled)[0] / (1 - p), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.weight, without.weight, rtol=0, atol=0)


@pytest.mark.parametrize(("build", "shape"), [case[:2] for case in LAYERS])
def test_copies_of_a_layer_with_dropout_are_equal(build, shape):
    layer = build(0.4, bias=False)
    other = build(0.4, bias=False)
    assert set(layer.state_dict()) == {"weight"}
    other.load_state_dict(layer.state_dict())
    times = _random_times(shape)
    for twin in (copy.deepcopy(layer), other):
        assert repr(twin) == repr(layer)
        assert "dropout=0.4" in repr(twin)
        outputs = []
        for each in (layer, twin):
            torch.manual_seed(0)
            outputs.append(each(times))
        assert torch.equal(*outputs)
        with torch.no_grad():
            twin.weight.zero_()
        assert layer.weight.any()
    assert "dropout" not in repr(build(0.0))


@pytest.mark.parametrize("geometry", [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0))])
def test_pools_in_steps_pass_on_the_earliest_spike_alone(geometry):
    times = _random_times((3, 2, 7, 6))
    expected = earliest_spike_pool2d(times, *geometry)
    trains = decode.times_to_spikes(times, 12).requires_grad_()
    passed, fired = [], None
    for step in trains:
        out, fired = first_spike_pool2d_step(step, fired, *geometry)
        passed.append(out)
    looped = torch.stack(passed)
    assert torch.equal(decode.spikes_to_times(looped), expected)
    assert torch.equal(looped.sum(0), expected.isfinite().double())
    assert torch.equal(fired, looped.sum(0))

    whole, states = first_spike_pool2d_sequence(trains, None, *geometry)
    assert torch.equal(whole, looped)
    assert torch.equal(states[-1], fired)
    error = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (of_whole,), (of_loop,) = (torch.autograd.grad(out, trains, error) for out in (whole, looped))
    assert of_whole.any()
    assert torch.equal(of_whole, of_loop)

    begun, states = first_spike_pool2d_sequence(trains[:3], None, *geometry)
    ended, states = first_spike_pool2d_sequence(trains[3:], states[-1], *geometry)
    assert torch.equal(torch.cat([begun, ended]), looped)
    assert torch.equal(states[-1], fired)
