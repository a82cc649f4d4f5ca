import numba as nb
import numpy as np
import pytest

from ssnn_plugin.kernels.cpu.bits import mask_of
from ssnn_plugin.kernels.cpu.lanes import (
    TILES,
    any_of,
    load,
    pack,
    pack_numbers,
    pack_part,
    splat,
    store,
    total,
    where,
)

in_both_precisions = pytest.mark.parametrize("dtype", [np.float32, np.float64])
of_both_widths = pytest.mark.parametrize("width", [16, 32])


def _compiled(width):
    @nb.njit
    def arithmetic(a, b, at, limit, out):
        x, y = load(a, at, width), load(b, at, width)
        above, below = x > splat(limit, width), x <= y
        store(out, 0, x + y)
        store(out, width, x - y)
        store(out, 2 * width, x * y)
        store(out, 3 * width, where(above, x, y))
        store(out, 4 * width, where(below, x, y))
        store(out, 5 * width, where(above & below, x, y))
        return any_of(above), total(x)

    return arithmetic


COMPILED = {width: _compiled(width) for width in (16, 32)}


@of_both_widths
@in_both_precisions
@pytest.mark.parametrize("at", [0, 3, 5])
def test_lanes_are_slices_of_an_array(width, dtype, at):
    a, b = np.random.default_rng(0).normal(size=(2, width + 8)).astype(dtype)
    a[at + 2], b[at + 4] = np.inf, -np.inf
    out, limit = np.empty((6, width), dtype), dtype(0.5)
    some, sum_of = COMPILED[width](a, b, at, limit, out)
    x, y = a[at : at + width], b[at : at + width]
    both = (x > limit) & (x <= y)
    expected = [x + y, x - y, x * y, np.where(x > limit, x, y), np.minimum(x, y), np.where(both, x, y)]
    np.testing.assert_array_equal(out, expected)
    assert some
    assert sum_of == np.inf


@of_both_widths
@in_both_precisions
def test_the_sum_is_taken_in_halves(width, dtype):
    a = np.random.default_rng(1).normal(size=width).astype(dtype)
    halves = a
    while halves.size > 1:
        halves = halves[: halves.size // 2] + halves[halves.size // 2 :]
    assert COMPILED[width](a, a, 0, dtype(0), np.empty((6, width), dtype))[1] == halves[0]


@of_both_widths
@in_both_precisions
def test_no_lane_above_a_limit(width, dtype):
    a = np.full(width, 0.5, dtype)
    a[3] = np.nan
    assert not COMPILED[width](a, a, 0, dtype(0.5), np.empty((6, width), dtype))[0]
    a[width - 1] = 0.75
    assert COMPILED[width](a, a, 0, dtype(0.5), np.empty((6, width), dtype))[0]


@nb.njit
def _sum_of_three(a):
    return total(load(a, 0, 3))


@nb.njit
def _sum_of_four(a):
    return total(load(a, 0, 4))


@nb.njit
def _packed(a, limit, tile, found, numbers, first):
    n, limits = 1, splat(limit, tile)
    for i in range(0, a.size, len(limits)):
        lanes = load(a, i, tile)
        pack(lanes > limits, lanes, found, n)
        n += pack_numbers(lanes > limits, numbers, n, first + i)
    return n


@in_both_precisions
@pytest.mark.parametrize("limit", [-1, 0, 0.7, 2])
@pytest.mark.parametrize("integer", [np.int32, np.uint32])
@pytest.mark.parametrize("tile", [TILES[0], (0,) * 2, (0,) * 4])
def test_true_lanes_and_their_numbers_are_packed(tile, integer, limit, dtype):
    a, found = np.random.default_rng(2).random((2, 64)).astype(dtype)
    a[5], found, numbers = np.nan, np.append(found, [9, 9]).astype(dtype), np.full(66, 9, integer)
    n = _packed(a, dtype(limit), tile, found, numbers, 100)
    assert found[1:n].tolist() == a[a > limit].tolist()
    assert numbers[1:n].tolist() == (100 + np.flatnonzero(a > limit)).tolist()
    assert numbers[0] == 9


@pytest.mark.parametrize(
    ("function", "array"),
    [
        (_sum_of_four, np.zeros(16)[::2]),
        (_sum_of_four, np.zeros(16, np.int64)),
        (_sum_of_three, np.zeros(16)),
    ],
    ids=["strided", "whole numbers", "no power of two"],
)
def test_what_lanes_cannot_hold_does_not_compile(function, array):
    assert _sum_of_four(np.arange(16.0)) == 6
    with pytest.raises(nb.TypingError):
        function(array)


@nb.njit
def _members(word, source, first, less, found):
    return pack_part(mask_of(word, splat(np.float32(0), 64)), source, first, less, found, 3)


@nb.njit
def _members_beside_double_precision(word, source, first, less, found):
    return pack_part(mask_of(word, splat(np.float64(0), 64)), source, first, less, found, 3)


MEMBERS = [(_members, np.int32), (_members, np.float32)]
MEMBERS += [(_members_beside_double_precision, np.int32), (_members_beside_double_precision, np.float64)]


@pytest.mark.parametrize(("members", "dtype"), MEMBERS)
@pytest.mark.parametrize("places", [(), (0,), (63,), (0, 7, 8, 15, 16, 31, 32, 47, 62), range(64)], ids=len)
def test_members_of_a_set_are_packed(places, dtype, members):
    source, found = np.arange(100, 300).astype(dtype), np.zeros(3 + 64 + 16, dtype)
    word = np.uint64(sum(1 << place for place in places))
    assert members(word, source, 20, dtype(5), found) == len(places)
    assert found[3 : 3 + len(places)].tolist() == [100 + 20 + place - 5 for place in places]
    assert not found[:3].any()


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.complex64])
def test_members_are_whole_registers_or_32_bits(dtype):
    source = np.zeros(90, dtype)
    with pytest.raises(nb.TypingError):
        _members(np.uint64(1), source, 0, dtype(0), source.copy())


def test_numbers_are_packed_into_32_bits():
    a = np.zeros(64)
    with pytest.raises(nb.TypingError):
        _packed(a, 0.5, TILES[0], a.copy(), np.zeros(65, np.int64), 0)


def test_lanes_of_two_precisions_do_not_mix():
    with pytest.raises(nb.TypingError):
        COMPILED[16](np.zeros(16), np.zeros(16, np.float32), 0, 0.5, np.empty((6, 16)))
