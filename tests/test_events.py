"""The order in which input spikes are taken: by time, and by index at one time."""

import numpy as np
import pytest

from ssnn_plugin.kernels.cpu.events import find_events, sort_batch, sort_events
from ssnn_plugin.kernels.status import BAD_TIMES

TIMES = {
    "continuous": lambda rng, n: 4 * rng.random(n),
    "more bins than buckets": lambda rng, n: np.floor(4096 * rng.random(n)),
    "all early": lambda rng, n: 1e-4 * rng.random(n),
    "half of them in one bucket": lambda rng, n: np.where(rng.random(n) < 0.5, 3 + 1e-6 * rng.random(n), 0),
    "ties": lambda rng, n: np.floor(5 * rng.random(n)),
}


def _times(kind, n, dtype):
    rng = np.random.default_rng(n)
    times = TIMES[kind](rng, n).astype(dtype)
    times[rng.random(n) < 0.2] = np.inf
    return times


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 40, 3000])
@pytest.mark.parametrize("kind", TIMES)
def test_events_are_sorted_by_time_and_index(kind, n, dtype):
    times = _times(kind, n, dtype)
    for t_max, table in ((4096.0, 1025), (4.0, 5), (4.0, 1025)):
        expected = [i for i in np.argsort(times, kind="stable") if times[i] < t_max]
        events = sort_batch(times[None], t_max, table, np.zeros(1, np.int8))
        assert events.inputs[: events.ends[0]].tolist() == expected
        assert (events.when[: events.ends[0]] == times[expected]).all()
        (order, spiking), when = np.empty((2, n), np.int32), np.empty_like(times)
        found = sort_events(times, t_max, order, when, spiking, np.empty(table, np.int32))
        assert order[:found].tolist() == expected
        assert (when[:found] == times[expected]).all()


@pytest.mark.parametrize(("dtype", "t_max"), [(np.float32, 1e-39), (np.float64, 1e-310)])
@pytest.mark.parametrize("table", [2, 1025])
def test_a_window_of_which_no_number_holds_the_inverse(table, dtype, t_max):
    times = np.array([0, np.inf, t_max / 2, 0, t_max], dtype)
    order, spiking = np.empty((2, 5), np.int32)
    n = sort_events(times, t_max, order, np.empty_like(times), spiking, np.empty(table, np.int32))
    assert order[:n].tolist() == [0, 3, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 784])
def test_inputs_that_spike_are_listed_and_nothing_behind_them_is_touched(n, dtype):
    times = np.random.default_rng(n).choice([0, 3, 4, np.inf], n).astype(dtype)
    spiking = np.full(n + 32, -1, np.int32)
    found = find_events(times, 4.0, spiking)
    assert spiking[:found].tolist() == np.flatnonzero(times < 4).tolist()
    assert (spiking[n:] == -1).all()


def test_samples_follow_one_another_and_bad_ones_have_no_events():
    times = np.array([[3.0, 1.0], [np.nan, 0.0], [np.inf, 2.0], [-1.0, 0.0]])
    status = np.zeros(4, np.int8)
    events = sort_batch(times, 8.0, 9, status)
    assert events.ends.tolist() == [2, 2, 3, 3]
    assert events.inputs[:3].tolist() == [1, 0, 1]
    assert events.when[:3].tolist() == [1, 3, 2]
    assert status.tolist() == [0, BAD_TIMES, 0, BAD_TIMES]


@pytest.mark.parametrize("bad", [np.nan, -1.0])
@pytest.mark.parametrize("n", [1, 1000])
def test_a_bad_sample_is_told_and_left_unsorted(bad, n):
    times = np.zeros(n)
    times[-1] = bad
    order, spiking = np.full((2, n), 7, np.int32)
    assert sort_events(times, 8.0, order, np.empty_like(times), spiking, np.empty(9, np.int32)) == -1
    assert (order == 7).all()
