"""How kernels are compiled, and where their machine code is kept."""

import shutil
import subprocess
import sys
import warnings
from typing import NamedTuple

import numba
import numpy as np
import pytest

from ssnn_plugin.kernels.cpu import compile as compiling
from ssnn_plugin.neurons.exponential import ExponentialResponse


def double(x):
    return 2 * x


def test_without_a_folder_that_can_be_written_kernels_are_kept_in_memory(monkeypatch):
    def nowhere(function):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiling, "_Cache", nowhere)
    monkeypatch.setattr(compiling, "_said", False)
    with pytest.warns(UserWarning, match="set NUMBA_CACHE_DIR to a folder that can be written"):
        compiled = compiling.jit(double)
    assert compiled(3) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiling.jit(double)(4.0) == 8.0


COMPILING = """
import importlib, warnings
from numba.core import caching

caching.FunctionCache._impl_class._locator_classes = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in ("competition", "sleep", "standardized", "stdp_convolution"):
        importlib.import_module(f"reproductions.compiled.{name}")
print(sum("NUMBA_CACHE_DIR" in str(warning.message) for warning in caught))
"""


def test_loops_of_the_suite_need_no_folder_either():
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_machine_code_belongs_to_all_files_of_its_folder(tmp_path):
    (tmp_path / "one.py").write_text("a = 1")
    before = compiling._digest_of_sources.__wrapped__(tmp_path)
    (tmp_path / "other.py").write_text("b = 1")
    assert compiling._digest_of_sources.__wrapped__(tmp_path) != before


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The files of machine code that are kept of a function compiled for whole and for real numbers."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiled = compiling.jit(double)
    assert (compiled(3), compiled(1.5)) == (6, 3.0)
    return sorted(tmp_path.rglob("*.nbc"))


def _hits(compiled):
    return sum(compiled.stats.cache_hits.values())


def test_machine_code_is_kept(kept):
    compiled = compiling.jit(double)
    assert (compiled(3), compiled(1.5), _hits(compiled)) == (6, 3.0, 2)


def test_machine_code_is_compiled_anew_after_any_source_file_changed(kept, monkeypatch):
    monkeypatch.setattr(compiling, "_digest_of_sources", lambda folder: "another")
    compiled = compiling.jit(double)
    assert (compiled(3), _hits(compiled)) == (6, 0)


class Gone(NamedTuple):
    value: int


def first(pair):
    return pair[0]


def test_machine_code_for_a_type_that_no_longer_exists_is_not_even_read(tmp_path, monkeypatch):
    """As after an update that leaves the machine code of the version before where it was."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert compiling.jit(first)(Gone(3)) == 3
    monkeypatch.setattr(compiling, "_digest_of_sources", lambda folder: "another")
    monkeypatch.delattr(sys.modules[__name__], "Gone")
    assert compiling.jit(first)((4, 5)) == 4


def test_machine_code_of_other_types_is_not_used(kept):
    """As it lies there after two processes wrote the first file of a function at once."""
    whole, real = kept
    shutil.copyfile(whole, real)
    compiled = compiling.jit(double)
    assert (compiled(1.5), compiled(3)) == (3.0, 6)


def test_types_of_one_name_are_told_apart():
    def response(factor):
        class Response(NamedTuple):
            tau: float

            def scaled(self):
                return factor * self.tau

        return Response(1.5)

    one, two = (compiling.told_apart(response(factor)) for factor in (2.0, 3.0))
    assert type(one).__name__ != type(two).__name__
    assert one == two == (1.5,)
    own = ExponentialResponse(1.0)
    assert compiling.told_apart(own) is own


def test_an_absent_factor_chooses_the_other_function():
    @compiling.where_given(lambda row, k: 1)
    def element(row, k):
        return row[k]

    @compiling.jit
    def total(row):
        so_far = 0.0
        for k in range(3):
            so_far += element(row, k)
        return so_far

    assert total(np.array([1.0, 2.0, 4.0])) == 7
    assert total(None) == 3


class Doubled(NamedTuple):
    factor: float

    def applied(self, x):
        return 2 * self.factor * x


class Plain(NamedTuple):
    inner: Doubled
    factor: float


def test_a_method_of_a_named_tuple_is_called_or_what_stands_for_it():
    applied = compiling.method("applied", otherwise=lambda owner, x: owner.factor * x)

    @compiling.jit
    def run(owner, x):
        return applied(owner, x)

    assert run(Doubled(3.0), 5.0) == 30
    assert run(Plain(Doubled(1.0), 3.0), 5.0) == 15


def test_named_tuples_are_found_within_others():
    kind = numba.typeof(Plain(Doubled(1.0), 3.0))
    assert list(compiling._named_tuples([numba.float64, kind])) == [Plain, Doubled]
