"""Marks that several test files share."""

import os
import shutil

import pytest

_has_compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++")))


def needs_compiler(test):
    """`torch.compile` with its default backend: needs a C++ compiler, and many seconds."""
    skip = pytest.mark.skipif(not _has_compiler, reason="torch.compile needs a C++ compiler")
    return pytest.mark.slow(skip(test))
