"""Forward pass of neurons with a synaptic current.

Between input spikes V' = x V + y I and I' = -z I, with numbers that the neuron's compiled response knows.
A program takes rows and outputs as in `steps`. It notes the state (V, I) after the last spike before V
reaches the threshold, and solves for the crossing in the end.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .events import Events, event, start_of
from .steps import tile

# Of Newton's method; near a tangent each halves the error.
MOST_ITERATIONS = tl.constexpr(100)
# Of the series of (e^u - 1) / u for |u| < 1 / 2, in double precision.
TERMS = tl.constexpr(14)


def fire(
    events: Events, weight: Tensor, bias: Tensor | None, neuron: Any, t_max: float,
    crossing: Tensor, potential: Tensor, slope: Tensor,
) -> None:  # fmt: skip
    """Write crossings, potentials and slopes [rows, width]; weights are [groups, size, width]."""
    (times, offsets, layout, rows), inputs, counts = events
    width, response = weight.shape[2], neuron.compiled()
    numbers = map(float, (*response.rates(), response.decay(), neuron.threshold, t_max))
    n_rows, n_outputs = tile(width)
    grid = triton.cdiv(rows, n_rows), triton.cdiv(width, n_outputs)
    _fire[grid](
        times, offsets, layout, len(offsets), inputs, counts, rows, weight, width, bias,
        crossing, potential, slope, *numbers, ROWS=n_rows, OUTPUTS=n_outputs, num_warps=1,
    )  # fmt: skip


@triton.jit
def _fire(
    times, offsets, layout, size, inputs, counts, rows, weight, width, bias, crossing, potential, slope,
    x: tl.float64, y: tl.float64, z: tl.float64, threshold: tl.float64, t_max: tl.float64,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = times.dtype.element_ty
    silent: tl.constexpr = float("inf")
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = (row < rows)[:, None] & (j < width)[None, :]
    x, y, z = tl.full([1, 1], x, dtype), tl.full([1, 1], y, dtype), tl.full([1, 1], z, dtype)
    limit, end = tl.full([1, 1], threshold, dtype), tl.full([1, 1], t_max, dtype)
    start, count = start_of(row, layout), tl.load(counts + row, mask=row < rows, other=0)
    group = (row + layout.first)[:, None] % layout.groups
    first_weight = weight + group * size * width + j[None, :]
    v, current = tl.zeros([ROWS, OUTPUTS], dtype), tl.zeros([ROWS, OUTPUTS], dtype)
    if bias is not None:
        current = tl.load(bias + group * width + j[None, :], mask=inside, other=0)
    # V and I before the crossing, and the spikes between which it lies.
    v_before, current_before = v, current
    since, until = tl.full([ROWS, OUTPUTS], silent, dtype), v
    k, most, waiting = -1, tl.max(count), 1
    t = tl.zeros([ROWS, 1], dtype)
    i, next_t = event(0, times, offsets, start, size, inputs, row, count)
    while (k < most) & (waiting > 0):
        next_t = tl.minimum(next_t[:, None], end)
        alpha, beta, gamma = propagators(next_t - t, x, y, z)
        next_v, next_current = alpha * v + beta * current, gamma * current
        new = (next_v > limit) & (since == silent)
        # At a peak of x V + y I = 0, V is at most what it would be with the current as it is now.
        peaks = (since == silent) & (y * current >= -x * limit) & (y * next_current <= -x * next_v) & (x < 0)
        if tl.max(peaks.to(tl.int32)) > 0:
            wait = time_to_crossing(v, current, limit, x, y, z, peaks)
            new = new | (peaks & (wait < next_t - t) & (t + wait < end))
        v_before, current_before = tl.where(new, v, v_before), tl.where(new, current, current_before)
        since, until = tl.where(new, t, since), tl.where(new, next_t, until)
        waiting = tl.max((inside & (since == silent)).to(tl.int32))
        k += 1
        there = inside & (k < count)[:, None]
        v, t = next_v, next_t
        current = next_current + tl.load(first_weight + i[:, None].to(tl.int64) * width, mask=there, other=0)
        i, next_t = event(k + 1, times, offsets, start, size, inputs, row, count)
    crosses = since < silent
    since = tl.where(crosses, since, 0)
    wait = time_to_crossing(v_before, current_before, limit, x, y, z, crosses)
    # Not after the next spike, however it rounds: that one would count as causal.
    wait = tl.minimum(wait, until - since)
    fired = tl.minimum(since + wait, until)
    fires = crosses & (fired < end)
    rise = x * limit + y * tl.exp(-z * wait) * current_before
    at = row[:, None] * width + j[None, :]
    tl.store(crossing + at, tl.where(fires, fired, silent), mask=inside)
    tl.store(potential + at, tl.where(crosses, limit, v), mask=inside)
    tl.store(slope + at, tl.where(fires, tl.maximum(rise, 0), 0), mask=inside)


@triton.jit
def propagators(d, x, y, z):
    """alpha, beta and gamma of V(t + d) = alpha V + beta I, I(t + d) = gamma I."""
    alpha, gamma, u = tl.exp(x * d), tl.exp(-z * d), (x + z) * d
    # Rates that are close to each other would leave few digits of the difference.
    close = tl.abs(u) < 0.5
    growth = tl.full([1, 1], 1, d.dtype)
    for n in tl.static_range(TERMS, 0, -1):
        growth = 1 + growth * tl.where(close, u, 0) / (n + 1)
    grown = tl.where(close, gamma * d * growth, (alpha - gamma) / tl.where(close, 1, x + z))
    return alpha, y * grown, gamma


@triton.jit
def time_to_crossing(v, current, limit, x, y, z, wanted):
    """Time until V rises through the limit without further input; `inf` if it does not, or is not wanted.

    Newton's method: V rises along a concave arc, so that it comes to the crossing and never beyond it.
    """
    rounding: tl.constexpr = 1e-15 if v.dtype == tl.float64 else 5e-7
    # Else V falls, or is drawn to less than the limit.
    active = wanted & (y * current > -x * tl.maximum(v, limit))
    d, n = tl.where(active, 0.0, float("inf")).to(v.dtype), 0
    while (tl.max(active.to(tl.int32)) > 0) & (n < MOST_ITERATIONS):
        alpha, beta, gamma = propagators(tl.where(active, d, 0), x, y, z)
        level = alpha * v + beta * current
        missing, slope = limit - level, x * level + y * gamma * current
        # Past the peak, where V only touched the limit, or never came near it.
        past = active & (missing > rounding * limit) & (slope <= 0)
        active = active & (missing > 0) & (slope > 0)
        step = tl.where(active, missing / tl.where(active, slope, 1), 0)
        d = tl.where(past, float("inf"), d + step)
        active = active & (step > rounding * (1 + d))
        n += 1
    return d
