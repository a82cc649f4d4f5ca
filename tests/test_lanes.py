import numba as nb
import numpy as np
import pytest

from ssnn_plugin.kernels.lanes import any_of, load, splat, store, total, where

LANES = 16

in_both_precisions = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@nb.njit
def _arithmetic(a, b, at, limit, out):
    x, y = load(a, at, LANES), load(b, at, LANES)
    above = x > splat(limit, LANES)
    store(out, 0, x + y)
    store(out, LANES, x - y)
    store(out, 2 * LANES, x * y)
    store(out, 3 * LANES, where(above, x, y))
    store(out, 4 * LANES, where(x <= y, x, y))
    return any_of(above), total(x)


@in_both_precisions
@pytest.mark.parametrize("at", [0, 3, 5])
def test_lanes_are_slices_of_an_array(dtype, at):
    a, b = np.random.default_rng(0).normal(size=(2, 24)).astype(dtype)
    a[at + 2], b[at + 4] = np.inf, -np.inf
    out, limit = np.empty((5, LANES), dtype), dtype(0.5)
    some, sum_of = _arithmetic(a, b, at, limit, out)
    x, y = a[at : at + LANES], b[at : at + LANES]
    expected = [x + y, x - y, x * y, np.where(x > limit, x, y), np.minimum(x, y)]
    np.testing.assert_array_equal(out, expected)
    assert some
    assert sum_of == np.inf


@in_both_precisions
def test_the_sum_is_taken_in_halves(dtype):
    a = np.random.default_rng(1).normal(size=LANES).astype(dtype)
    halves = a
    while halves.size > 1:
        halves = halves[: halves.size // 2] + halves[halves.size // 2 :]
    assert _arithmetic(a, a, 0, dtype(0), np.empty((5, LANES), dtype))[1] == halves[0]


@in_both_precisions
def test_no_lane_above_a_limit(dtype):
    a = np.append(np.full(LANES, 0.5, dtype), dtype(np.nan))
    a[3] = np.nan
    assert not _arithmetic(a, a, 0, dtype(0.5), np.empty((5, LANES), dtype))[0]
    a[7] = 0.75
    assert _arithmetic(a, a, 0, dtype(0.5), np.empty((5, LANES), dtype))[0]


def test_lanes_of_two_precisions_do_not_mix():
    out = np.empty((5, LANES))
    with pytest.raises(nb.TypingError):
        _arithmetic(np.zeros(LANES), np.zeros(LANES, np.float32), 0, 0.5, out)
