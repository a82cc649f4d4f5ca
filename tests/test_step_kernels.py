"""Compiled layers whose V jumps: spike times alone, against those that come with potentials."""

import numpy as np
import pytest

from ssnn_plugin.kernels.cpu.lanes import tile_of
from ssnn_plugin.kernels.cpu.steps import fire_linear
from ssnn_plugin.kernels.status import BAD_TIMES, NAN_POTENTIAL

T_MAX = 16.0


def _fired(times, rows, potential):
    """Crossings and status of all samples, with potentials of this shape."""
    spikes, status = np.full((len(times), rows.shape[1]), -1, rows.dtype), np.zeros(len(times), np.int8)
    nothing = np.empty(0, rows.dtype)
    numbers = 5.0, 1.0, 1.0, T_MAX, 17
    arrays = times, rows, nothing, spikes, np.empty(potential, rows.dtype), nothing, status
    fire_linear(0, len(times), *arrays, *numbers, tile_of(rows))
    return spikes, status


def _sample(n_out, dtype, seed=0):
    generator = np.random.default_rng(seed)
    times = np.floor(20 * generator.random((9, 60)))
    times[times >= T_MAX] = np.inf
    times[4] = np.inf
    return times.astype(dtype), generator.integers(-3, 5, (60, n_out)).astype(dtype)


@pytest.mark.parametrize("n_out", [1, 15, 16, 17, 80, 81, 400])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_times_are_the_same_without_potentials(n_out, dtype):
    times, rows = _sample(n_out, dtype)
    times[2, 7] = np.nan
    expected, status = _fired(times, rows, (9, n_out))
    found, own_status = _fired(times, rows, (0, 0))
    good = status == 0
    assert status.tolist() == own_status.tolist() == [0, 0, BAD_TIMES, *[0] * 6]
    np.testing.assert_array_equal(found[good], expected[good])
    assert 0.05 < np.isfinite(found[good]).mean() < 0.95


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("after", [0, 1])
def test_no_number_counts_before_a_crossing_alone(weight, after):
    """An input of NaN comes before the crossing or after it; inputs of both infinities make one."""
    rows = np.array([[6.0], [weight], [-weight]], np.float32)
    times = np.array([[1 - after, after, after]], np.float32)
    (expected,), (status,) = _fired(times, rows, (1, 1))
    (found,), (own_status,) = _fired(times, rows, (0, 0))
    assert own_status == status == (0 if after else NAN_POTENTIAL)
    assert found == expected or own_status
