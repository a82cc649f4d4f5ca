import functools

import pytest
import torch

from reproductions import datasets


@pytest.fixture(scope="module")
def one_thread():
    """For many small operations: on a busy machine threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cheap_runs(one_thread):
    """For tiny runs, on one thread: the digits are parsed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_digits", functools.cache(datasets._digits))
        yield
