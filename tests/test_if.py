"""The description of `IF`."""

import math

import pytest

from ssnn_plugin import IF

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -1.0}, "threshold must be finite and at least 0, got -1.0"),
        ({"threshold": NAN}, "threshold must be finite and at least 0, got nan"),
        ({"threshold": INF}, "threshold must be finite and at least 0, got inf"),
        ({"delay": -1}, "delay must be a whole number of bins >= 0, got -1"),
        ({"delay": 0.5}, "delay must be a whole number of bins >= 0, got 0.5"),
        ({"delay": NAN}, "delay must be a whole number of bins >= 0, got nan"),
        ({"delay": INF}, "delay must be a whole number of bins >= 0, got inf"),
        ({"beta": -0.1}, r"beta must lie in 0 \.\.\. 1, got -0\.1"),
        ({"beta": 1.5}, r"beta must lie in 0 \.\.\. 1, got 1\.5"),
        ({"beta": NAN}, r"beta must lie in 0 \.\.\. 1, got nan"),
    ],
)
def test_bad_neurons_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        IF(**arguments)


def test_neurons_are_values():
    assert IF(2.0, delay=1) == IF(threshold=2.0, delay=1) != IF(2.0)
    assert IF(2.0) != IF(2.0, beta=0.5)
    assert len({IF(), IF(1.0, delay=0, beta=1.0)}) == 1
    assert eval(repr(IF(2.5, delay=1, beta=0.9))) == IF(2.5, delay=1, beta=0.9)
