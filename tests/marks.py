"""Marks that several test files share, and what they run over."""

import os
import shutil

import pytest
import torch

from ssnn_plugin.kernels.backends import BACKENDS

BACKEND_NAMES = sorted(BACKENDS)
DTYPES = [torch.float32, torch.float64]
on_every_backend = pytest.mark.parametrize("backend", BACKEND_NAMES)
in_both_precisions = pytest.mark.parametrize("dtype", DTYPES)

_has_compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++")))


def needs_compiler(test):
    """`torch.compile` with its default backend: needs a C++ compiler, and many seconds."""
    skip = pytest.mark.skipif(not _has_compiler, reason="torch.compile needs a C++ compiler")
    return pytest.mark.slow(skip(test))
