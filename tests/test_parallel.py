"""Work shared out over threads: all of it, once, whatever hands it over."""

import itertools
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numba import typeof

from ssnn_plugin.kernels.cpu import openmp, parallel
from ssnn_plugin.kernels.cpu.compile import jit

MUCH = 64 * parallel.WORTH_WAKING_ONE
needs_openmp = pytest.mark.skipif(openmp.addresses() is None, reason="torch has no threads of OpenMP")
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")


class Step(NamedTuple):
    length: float
    of: tuple[int, ...]


@pytest.fixture(params=["openmp", "pool"])
def way(request, monkeypatch):
    """What hands work over."""
    if request.param == "pool":
        monkeypatch.setattr(openmp, "addresses", lambda: None)
    elif openmp.addresses() is None:
        pytest.skip("torch has no threads of OpenMP")
    return request.param


@jit
def note(first, last, rows, scale, step, absent, ranges):
    for i in range(first, last):
        for j in range(rows.shape[1]):
            rows[i, j] += scale * step.length * len(step.of) + (1 if absent is None else 0)
        ranges[i] = first, last


@jit
def fail(first, last, rows):
    if first > 0:
        raise ValueError("one range is refused")
    rows[first:last] = 1


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_row_is_taken_once(way, set_threads, length, threads):
    set_threads(threads)
    rows, ranges = np.zeros((length, 5), np.float32), np.zeros((length, 2), np.int64)
    for _ in range(20):
        parallel.share_out(length, MUCH, note, rows, np.float32(2), Step(3.0, (0, 0)), None, ranges)
    assert (rows == 20 * 13).all()
    taken = min(threads, length)
    assert len(np.unique(ranges, axis=0)) == taken
    bounds = [length * i // taken for i in range(taken + 1)]
    assert sorted({tuple(pair) for pair in ranges.tolist()}) == list(itertools.pairwise(bounds))


def test_less_work_than_threads_is_cut_in_fewer_parts(way, set_threads):
    set_threads(8)
    worth = parallel.WORTH_A_THREAD if way == "openmp" else parallel.WORTH_WAKING_ONE
    rows, ranges = np.zeros((100, 5), np.float32), np.zeros((100, 2), np.int64)
    for _ in range(20):
        parallel.share_out(100, 2 * worth, note, rows, np.float32(2), Step(3.0, (0, 0)), None, ranges)
    assert (rows == 20 * 13).all()
    assert np.unique(ranges, axis=0).tolist() == [[0, 33], [33, 66], [66, 100]]


def test_code_for_types_of_other_packages_is_not_kept():
    is_foreign = openmp._run_on_threads._cache._is_foreign
    assert is_foreign((typeof((1, 2, 3)), typeof((4.0, (Step(1.0, (0,)), 2.0)))))
    assert not is_foreign((typeof((1, 2, 3)), typeof((4.0, (5, (2.0,))))))


def test_arguments_of_other_types_find_code_of_their_own(way, set_threads):
    set_threads(2)
    for dtype in (np.float32, np.float64):
        for layout in ("C", "F"):
            for length, present in ((3.0, None), (2, 1.0)):
                rows, ranges = np.zeros((4, 3), dtype, layout), np.zeros((4, 2), np.int64)
                step = Step(length, (0,) * 5)
                parallel.share_out(4, MUCH, note, rows, dtype(1), step, present, ranges)
                assert (rows == 5 * length + (present is None)).all()


def test_a_kernel_that_fails_on_a_thread_is_an_error(way, set_threads):
    set_threads(2)
    expected = ValueError if way == "pool" else RuntimeError
    with pytest.raises(expected, match=r"one range is refused|fail failed in one of 2 parts"):
        parallel.share_out(2, MUCH, fail, np.zeros(2))


def test_little_work_stays_on_one_thread(way, set_threads):
    set_threads(4)
    rows, ranges = np.zeros((8, 1)), np.zeros((8, 2), np.int64)
    parallel.share_out(8, parallel.WORTH_A_THREAD - 1, note, rows, 1.0, Step(1.0, (0,)), None, ranges)
    assert (ranges == (0, 8)).all()


@needs_openmp
def test_threads_of_the_interpreter_share_out_at_once(set_threads):
    def add(_):
        rows, ranges = np.zeros((40, 3)), np.zeros((40, 2), np.int64)
        for _ in range(50):
            parallel.share_out(40, MUCH, note, rows, 1.0, Step(1.0, (0,)), 0.0, ranges)
        return rows

    set_threads(2)
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(2,)) as pool:
        for rows in pool.map(add, range(8)):
            assert (rows == 50).all()


def shared_out():
    rows, ranges = np.zeros((10, 3)), np.zeros((10, 2), np.int64)
    parallel.share_out(10, MUCH, note, rows, 1.0, Step(1.0, (0,)), 0.0, ranges)
    return rows.tolist(), ranges.tolist()


def send(connection):
    connection.send((openmp.addresses(), shared_out()))


@needs_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks(set_threads):
    set_threads(2)
    here = shared_out()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=send, args=(sender,), daemon=True)
    child.start()
    assert receiver.poll(60), "the child hangs"
    assert receiver.recv() == (None, here)
    child.join()
