"""Marks that several test files share."""

import os
import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++"))),
    reason="torch.compile needs a C++ compiler",
)
