import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssnn_plugin import encode

INF = math.inf


@pytest.mark.parametrize("t_max", [256, 1000, 100, 7, 1])
def test_latency_of_every_8_bit_value_is_the_published_formula(t_max):
    expected = [INF] + [float((255 - value) * t_max // 255) for value in range(1, 256)]
    times = encode.latency(torch.arange(256, dtype=torch.uint8), t_max, x_max=255)
    assert times.tolist() == expected


def test_latency_of_the_published_landmarks():
    image = torch.tensor([255, 1, 0], dtype=torch.uint8)
    assert encode.latency(image, x_max=255).tolist() == [0.0, 254.0, INF]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latency_of_images_scaled_to_one_is_that_of_the_8_bit_images(dtype):
    image = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(encode.latency(image.to(dtype) / 255), encode.latency(image, x_max=255).to(dtype))
    assert torch.equal(encode.latency(image.to(dtype), x_max=255), encode.latency(image, x_max=255).to(dtype))


@settings(deadline=None)
@given(
    numerators=st.lists(st.integers(0, 4096), min_size=1, max_size=20),
    t_max=st.integers(1, 1000),
    x_max=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_latency_of_floats_is_the_formula_in_fractions(numerators, t_max, x_max):
    x = [n / 4096 * x_max for n in numerators]
    expected = [
        math.floor((Fraction(x_max) - Fraction(v)) * t_max / Fraction(x_max)) if v > 0 else INF for v in x
    ]
    assert encode.latency(torch.tensor(x, dtype=torch.float64), t_max, x_max=x_max).tolist() == expected


def test_latency_does_not_depend_on_the_rest_of_the_batch():
    x = torch.rand(6, 2, 5, generator=torch.Generator().manual_seed(0))
    dimmed = torch.cat([x[:1], x[1:] * 0.1])
    assert torch.equal(encode.latency(x)[:1], encode.latency(x[:1]))
    assert torch.equal(encode.latency(dimmed)[:1], encode.latency(x)[:1])


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("encoder", [encode.latency, encode.binary])
def test_shapes(encoder, shape):
    assert encoder(torch.rand(shape)).shape == shape


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.uint8, torch.float32),
        (torch.int64, torch.float32),
    ],
)
@pytest.mark.parametrize("encoder", [encode.latency, encode.rank_order, encode.binary])
def test_dtypes(encoder, given_dtype, expected):
    times = encoder(torch.tensor([[0, 1]], dtype=given_dtype))
    assert times.dtype == expected
    assert times[0, 1] == 0


def test_dtype_of_whole_numbers_follows_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert encode.latency(torch.tensor([1])).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("x", "arguments", "error", "message"),
    [
        (torch.tensor([0.5, math.nan]), {}, ValueError, "x must not hold NaN"),
        (torch.tensor([-0.25, 1.0]), {}, ValueError, r"x must lie in 0 \.\.\. 1\.0, got values in -0\.25"),
        (torch.tensor([0.0, 1.5]), {}, ValueError, r"x must lie in 0 .* 1\.0, got values in 0\.0 .* 1\.5"),
        (torch.tensor([255], dtype=torch.uint8), {}, ValueError, r"x must lie in 0 \.\.\. 1\.0"),
        (torch.tensor([True]), {}, TypeError, "x must hold real or whole numbers, got torch.bool"),
        (torch.tensor([1j]), {}, TypeError, "x must hold real or whole numbers, got torch.complex64"),
        (torch.tensor([0.5]), {"t_max": 0}, ValueError, "t_max must be finite and greater than 0, got 0"),
        (torch.tensor([0.5]), {"t_max": -3}, ValueError, "t_max must be finite and greater than 0, got -3"),
        (torch.tensor([0.5]), {"x_max": 0.0}, ValueError, "x_max must be finite and greater than 0, got 0.0"),
        (torch.tensor([1]), {"x_max": 2.5}, ValueError, "x_max and t_max must be whole for integer x"),
        (torch.tensor([0.5]), {"t_max": 2**25}, ValueError, r"at most 2\*\*24 for float32, .*got 33554432"),
    ],
)
def test_latency_names_what_is_wrong(x, arguments, error, message):
    with pytest.raises(error, match=message):
        encode.latency(x, **arguments)


def test_windows_of_more_bins_than_float32_holds_take_float64():
    late = torch.tensor([[2.0**-25, 1.0]], dtype=torch.float64)
    assert encode.latency(late, 2**25).tolist() == [[2**25 - 1, 0]]
    assert encode.rank_order(late, 2**25 + 2).tolist() == [[2**24 + 1, 0]]


def test_ranks_of_whole_numbers_are_exact():
    x = torch.tensor([[2**60, 2**60 + 1, 2**60 + 2, 2**60 + 1, 0]])
    assert encode.rank_order(x).tolist() == [[3.0, 1.0, 0.0, 1.0, INF]]


def test_rank_order_by_hand():
    x = torch.tensor([[0.2, 0.9, 0.0, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0, 3.0]])
    assert encode.rank_order(x).tolist() == [[1.0, 0.0, INF, 1.0, 3.0], [INF, INF, INF, INF, 0.0]]


@settings(deadline=None)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    t_max=st.none() | st.integers(1, 30),
)
def test_rank_order_is_the_place_in_the_sorted_sample(rows, t_max):
    def code(row, value):
        if value == 0:
            return INF
        rank = sorted(row, reverse=True).index(value)
        return float(rank if t_max is None else rank * t_max // len(row))

    times = encode.rank_order(torch.tensor(rows).double(), t_max)
    assert times.tolist() == [[code(row, value) for value in row] for row in rows]


def test_rank_order_ranks_all_features_of_a_sample_together():
    x = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    times = encode.rank_order(x)
    assert times.shape == x.shape
    assert times.flatten(1).sort(1).values.tolist() == [list(range(8))] * 3
    assert torch.equal(times.flatten(1), encode.rank_order(x.flatten(1)))


@pytest.mark.parametrize(
    ("x", "t_max", "message"),
    [
        (torch.tensor([[0.5, math.nan]]), None, "x must not hold NaN"),
        (torch.tensor([[0.5, -1.0]]), None, r"x must lie in 0 \.\.\. inf, got values in -1\.0"),
        (torch.tensor([0.5]), None, r"x must have shape \[batch, \*features\], got \[1\]"),
        (torch.tensor([[0.5]]), 0, "t_max must be finite and greater than 0, got 0"),
        (torch.tensor([[0.5]]), 2**25, r"at most 2\*\*24 for float32, .*got 33554432"),
    ],
)
def test_rank_order_names_what_is_wrong(x, t_max, message):
    with pytest.raises(ValueError, match=message):
        encode.rank_order(x, t_max)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_rank_order_needs_numbers_that_have_an_order(dtype):
    with pytest.raises(TypeError, match="x must hold real or whole numbers"):
        encode.rank_order(torch.ones(1, 2, dtype=dtype))


@pytest.mark.parametrize(("bright_early", "expected"), [(True, [1, 5, 5]), (False, [5, 1, 1])])
def test_binary_has_both_polarities(bright_early, expected):
    x = torch.tensor([0.9, 0.5, 0.0])
    assert encode.binary(x, 1.0, 5.0, bright_early=bright_early).tolist() == expected
    assert encode.binary(x * 100, 1.0, 5.0, at=50.0, bright_early=bright_early).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_spikes_at_0_and_ln_6_unless_told(dtype):
    expected = torch.tensor([0.0, math.log(6)], dtype=dtype)
    assert torch.equal(encode.binary(torch.tensor([1.0, 0.0], dtype=dtype)), expected)


@pytest.mark.parametrize(
    ("x", "early", "late", "message"),
    [
        (torch.tensor([math.nan]), 0.0, 1.0, "x must not hold NaN"),
        (torch.tensor([0.5]), -1.0, 1.0, "got -1.0 and 1.0"),
        (torch.tensor([0.5]), 2.0, 1.0, "early <= late must hold and be finite, got 2.0 and 1.0"),
        (torch.tensor([0.5]), 0.0, INF, "got 0.0 and inf"),
    ],
)
def test_binary_names_what_is_wrong(x, early, late, message):
    with pytest.raises(ValueError, match=message):
        encode.binary(x, early, late)


@pytest.mark.parametrize(
    ("features", "t_max"), [(784, 256), (25_088, 1000), (100_000, 1_000_000), (150_528, 1000)]
)
def test_rank_order_of_many_features_is_exact_in_float32(features, t_max):
    times = encode.rank_order(torch.arange(features, 0, -1).float()[None], t_max)
    assert times.dtype == torch.float32
    assert torch.equal(times.long()[0], torch.arange(features) * t_max // features)


def test_little_intensity_spikes_in_the_last_bin():
    least = torch.tensor([1e-9, 1e-12])
    assert encode.latency(least, 256).tolist() == [255, 255]
    assert encode.latency(least.double(), 256).tolist() == [255, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t_max", [14, 15, 17, 51, 85, 255, 256, 510])
def test_grey_levels_as_fractions_have_the_bins_of_bytes(dtype, t_max):
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(
        encode.latency(levels.to(dtype) / 255, t_max).float(), encode.latency(levels, t_max, x_max=255)
    )


@pytest.mark.parametrize("coded", [encode.latency, encode.rank_order])
def test_encoders_have_no_gradient(coded):
    assert not coded(torch.rand(3, 4, requires_grad=True), 8).requires_grad
