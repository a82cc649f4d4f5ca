"""glibc told to keep large blocks: a training step asks for the same ones again and again."""

from __future__ import annotations

import contextlib
import ctypes

# Of malloc.h: blocks from mmap, and what is kept at the top of the heap.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Never give freed memory back to the system while the process lives; without glibc, do nothing.

    Tensors of tens of MiB are mapped anew for every operation otherwise, and each of their pages is
    zeroed by the system when it is first touched, which takes as long as a small convolution.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, MOST)
        mallopt(M_TOP_PAD, 2**28)
