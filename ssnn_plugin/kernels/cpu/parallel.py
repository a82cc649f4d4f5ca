"""Work on NumPy views of tensors, shared out over as many threads as torch uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import openmp

# Additions that take about as long as handing work to another thread, which is awake, or has to be woken up.
WORTH_A_THREAD, WORTH_WAKING_ONE = 1 << 16, 1 << 21


def as_arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Row-major NumPy views, or copies where a tensor is laid out otherwise."""
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def share_out(length: int, work: int, kernel: Callable[..., None], *args: Any) -> None:
    """Run `kernel(first, last, *args)` over ranges of 0 ... length, on as many threads as torch uses.

    `work` estimates the additions; what is done sooner than it is handed over stays on this thread.
    """
    addresses = openmp.addresses()
    worth = WORTH_A_THREAD if addresses else WORTH_WAKING_ONE
    parts = min(torch.get_num_threads(), length, 1 + work // worth)
    if parts <= 1:
        kernel(0, length, *args)
    elif addresses:
        openmp.run(addresses, kernel, length, parts, args)
    else:
        _run_on_pool(kernel, length, parts, args)


def _run_on_pool(kernel: Callable[..., None], length: int, threads: int, args: tuple[Any, ...]) -> None:
    """The same on threads of Python's, where torch has none of OpenMP's that could be asked."""
    pool = _pools.get(threads) or _pools.setdefault(threads, ThreadPoolExecutor(threads - 1))
    bounds = [length * i // threads for i in range(threads + 1)]
    others = [pool.submit(kernel, bounds[i], bounds[i + 1], *args) for i in range(1, threads)]
    kernel(bounds[0], bounds[1], *args)
    for other in others:
        other.result()
