import functools

import pytest
import torch

from reproductions import datasets


@pytest.fixture(scope="module")
def cheap_runs():
    """For tiny runs: the digits are parsed once, and threads do not wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_digits", functools.cache(datasets._digits))
        yield
    torch.set_num_threads(threads)
