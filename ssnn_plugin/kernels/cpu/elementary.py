"""`exp`, `expm1`, `log` and `log1p` without a branch or a call, so that LLVM can vectorise loops with them.

Within one unit in the last place of a float64 of `math`'s. Arguments are taken apart into a power of 2 and
what is left, whose function is a power series: e^r for |r| <= ln(2) / 2, and for m between the roots of 1/2
and 2 ln(m) = 2 artanh((m - 1) / (m + 1)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import overload

from .. import elementary
from .compile import part_of_callers

# ln(2) in two parts: a product of the first with a whole number of 11 bits is exact.
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
# Added to a number it leaves the nearest whole one in the last bits.
TO_WHOLE = 1.5 * 2.0**52
# Of a float64: where its exponent begins, and the bits of 1 and of the root of 1/2.
EXPONENT, ONE, ROOT = np.int64(52), np.int64(0x3FF0000000000000), np.int64(0x3FE6A09E667F3BCD)
# Beyond these an exponential is no normal number; it is taken for that of the bound.
LEAST, MOST = -708.0, 709.0
# Of (e^r - 1 - r) / r^2 by r, and of (artanh(s) / s - 1) / s^2 by s^2; highest power first.
OF_EXP = tuple(1 / math.factorial(k) for k in range(13, 1, -1))
OF_ARTANH = tuple(1 / k for k in range(23, 1, -2))


@part_of_callers
def polynomial(x, coefficients):
    """Its value, by Horner's rule."""
    total = 0.0
    for coefficient in coefficients:
        total = total * x + coefficient
    return total


@part_of_callers
def taken_apart(x):
    """2^k and e^r - 1 of e^x = 2^k e^r."""
    x = min(max(float(x), LEAST), MOST)
    shifted = x * (1 / math.log(2)) + TO_WHOLE
    power = shifted - TO_WHOLE
    r = (x - power * LN2_HIGH) - power * LN2_LOW
    scale = np.int64((np.float64(shifted).view(np.int64) << EXPONENT) + ONE).view(np.float64)
    return scale, polynomial(r, OF_EXP) * r * r + r


@part_of_callers
def exp(x):
    scale, grown = taken_apart(x)
    return (grown + 1.0) * scale


@part_of_callers
def expm1(x):
    scale, grown = taken_apart(x)
    return grown * scale + (scale - 1.0)


@part_of_callers
def log_of_sum(x, rest):
    """ln(x + rest), of a rest that is lost in rounding."""
    bits = np.float64(x).view(np.int64)
    power = (bits - ROOT) >> EXPONENT
    f = np.int64(bits - (power << EXPONENT)).view(np.float64) - 1.0
    s, half = f / (2.0 + f), 0.5 * f * f
    # ln(1 + f) = 2 s + 2 s^3 (...) and 2 s = f - s f: so that f itself is not rounded.
    beyond = half - s * (half + 2.0 * s * s * polynomial(s * s, OF_ARTANH))
    high = float(power) * LN2_HIGH
    return high - ((beyond - (float(power) * LN2_LOW + rest / x)) - f)


@part_of_callers
def log(x):
    return log_of_sum(float(x), 0.0)


@part_of_callers
def log1p(x):
    total = 1.0 + x
    return log_of_sum(total, x - (total - 1.0))


def register() -> None:
    """Let compiled code take these for the functions of `kernels.elementary`."""
    for own in (exp, expm1, log, log1p):
        _take(own, getattr(elementary, own.__name__))


def _take(own: Callable[..., Any], function: Callable[..., Any]) -> None:
    overload(function, jit_options={"forceinline": True})(lambda x: lambda x: own(x))
