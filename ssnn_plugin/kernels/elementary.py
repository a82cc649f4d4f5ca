"""Elementary functions for compiled responses: as in `math`, many at a time in a loop.

Nothing is raised there: exponentials of less than -708 or more than 709 are those of the bound, logarithms of
what is not positive, or no normal number, can be anything.
"""

from __future__ import annotations

import math

__all__ = ["exp", "expm1", "log", "log1p"]


def exp(x: float) -> float:
    """e^x."""
    return math.exp(x)


def expm1(x: float) -> float:
    """e^x - 1, which keeps its digits where x is close to 0."""
    return math.expm1(x)


def log(x: float) -> float:
    """Natural logarithm of a positive number."""
    return math.log(x)


def log1p(x: float) -> float:
    """Natural logarithm of 1 + x, which keeps its digits where x is close to 0."""
    return math.log1p(x)
