"""Functions that compiled loops take many at a time, against those of `math`."""

import math

import numpy as np
import pytest

from ssnn_plugin.kernels import elementary
from ssnn_plugin.kernels.cpu.compile import jit
from ssnn_plugin.kernels.cpu.elementary import register

register()


def loop(function):
    @jit
    def run(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    def of(x):
        out = np.empty_like(x)
        run(x, out)
        return out

    return of


LOOPS = {name: loop(getattr(elementary, name)) for name in elementary.__all__}
EITHER_SIDE = np.concatenate([side * 10.0 ** np.linspace(-300, -0.01, 5000) for side in (-1, 1)])
NUMBERS = {
    "exp": np.concatenate([np.linspace(-708, 709, 20001), EITHER_SIDE]),
    "expm1": np.concatenate([np.linspace(-708, 709, 20001), np.linspace(-2, 2, 20001), EITHER_SIDE]),
    "log": np.concatenate([10.0 ** np.linspace(-307, 308, 9001), np.linspace(0.4, 2.5, 9001)]),
    "log1p": np.concatenate([EITHER_SIDE, 10.0 ** np.linspace(0, 308, 5000), np.linspace(-0.999, 3, 20001)]),
}

UNITS = {"expm1": 2}  # in the last place


@pytest.mark.parametrize("name", elementary.__all__)
def test_within_units_in_the_last_place(name):
    x = NUMBERS[name]
    expected = np.array([getattr(math, name)(each) for each in x])
    assert (np.abs(LOOPS[name](x) - expected) <= UNITS.get(name, 1) * np.spacing(np.abs(expected))).all()


@pytest.mark.parametrize("name", elementary.__all__)
def test_without_a_compiler_it_is_that_of_math(name):
    for x in (0.25, 1.0, 2.0):
        assert getattr(elementary, name)(x) == getattr(math, name)(x)


def test_exact_where_the_result_is_a_whole_number():
    assert LOOPS["exp"](np.zeros(9)).tolist() == [1.0] * 9
    assert LOOPS["expm1"](np.zeros(9)).tolist() == [0.0] * 9
    assert LOOPS["log"](np.ones(9)).tolist() == [0.0] * 9
    assert LOOPS["log1p"](np.zeros(9)).tolist() == [0.0] * 9


def test_far_below_zero_the_exponential_is_as_good_as_0():
    small = LOOPS["exp"](np.array([-709.0, -745.2, -1e6, -math.inf]))
    assert ((small >= 0) & (small < 1e-306)).all()
