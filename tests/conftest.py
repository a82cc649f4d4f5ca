import functools

import pytest
import torch

from reproductions import datasets, records


def pytest_collection_modifyitems(items):
    """The test of `torch.compile` that every subclass of the contract inherits is slow."""
    for item in items:
        if item.name == "test_compiles":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Also of the processes that a test starts: with many small operations threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def set_threads():
    """For a test that asks for more threads than one."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cheap_runs():
    """For tiny runs: the digits are parsed once, and versions and commit are looked up once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.OF_ONE_FORM, "digits", functools.cache(datasets.OF_ONE_FORM["digits"]))
        for name in ("commit", "versions"):
            patch.setattr(records, name, functools.cache(getattr(records, name)))
        assert datasets.load("digits", "train") is datasets.load("digits", "train")
        yield
