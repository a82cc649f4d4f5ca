"""Marks that several test files share, and what they run over."""

import os
import shutil

import pytest
import torch

from ssnn_plugin.kernels.backends import BACKENDS

# Triton's runs on the CPU where TRITON_INTERPRET=1 is set.
BACKEND_NAMES = sorted(
    backend.name
    for backend in BACKENDS.values()
    if backend.installed and backend.runs_on(torch.device("cpu"))
)
DTYPES = [torch.float32, torch.float64]
on_every_fast_backend = pytest.mark.parametrize("fast", [b for b in BACKEND_NAMES if b != "reference"])
on_every_backend = pytest.mark.parametrize("backend", BACKEND_NAMES)
# Kernels of double precision are compiled for themselves.
SINGLE_AND_SLOW_DOUBLE = [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
in_both_precisions = pytest.mark.parametrize("dtype", SINGLE_AND_SLOW_DOUBLE)

_has_compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++")))


def needs_compiler(test):
    """`torch.compile` with its default backend: needs a C++ compiler, and many seconds."""
    skip = pytest.mark.skipif(not _has_compiler, reason="torch.compile needs a C++ compiler")
    return pytest.mark.slow(skip(test))
