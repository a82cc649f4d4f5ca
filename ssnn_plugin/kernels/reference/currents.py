"""Reference forward pass of neurons with a continuous V: all causal sets, in double precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def first_spike(
    times: Tensor, weight: Tensor, bias: Tensor | None, neuron: Any, t_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Every prefix of the sorted inputs is tried as causal set; the earliest valid crossing counts."""
    t, order = times.double().sort(dim=1, stable=True)
    t = t.masked_fill(t >= t_max, math.inf)
    # No spike reads the weight of a silent input, whatever it holds.
    w = weight.double().t()[order].masked_fill(t.isinf().unsqueeze(-1), 0)
    # The bias is the weight of a spike at time 0, before all others.
    first = weight.new_zeros(len(weight)) if bias is None else bias
    t = torch.cat([t.new_zeros(len(t), 1), t], dim=1).unsqueeze(-1)
    w = torch.cat([first.double().expand(len(t), 1, -1), w], dim=1)
    a, b = ((w * factor).cumsum(dim=1) for factor in neuron.input_factors(t.clamp(max=t_max)))
    t_next = torch.cat([t[:, 1:], t.new_full((len(t), 1, 1), math.inf)], dim=1).clamp(max=t_max)

    crossing = neuron.crossing(a, b, t.expand_as(a), t_next.expand_as(a))
    # A crossing at the very time of an input may round to just before it.
    rounding = 1e-12 * (1 + t)
    valid = (crossing >= t - rounding) & (crossing < t_next)
    fired, chosen = torch.where(valid, crossing.maximum(t), math.inf).min(dim=1)
    fired = torch.where(fired.to(times.dtype) < t_max, fired, math.inf)
    at = chosen.unsqueeze(1)
    a_causal, b_causal = a.gather(1, at).squeeze(1), b.gather(1, at).squeeze(1)
    dp, dq = neuron.output_slopes(fired.clamp(max=t_max))
    # Where V nearly touches the threshold, the slope rounds.
    slope = torch.where(fired.isfinite(), (dp * a_causal - dq * b_causal).clamp(min=0), 0)
    p, q = neuron.output_factors(torch.full_like(fired, t_max))
    potential = torch.where(fired.isfinite(), neuron.threshold, p * a[:, -1] - q * b[:, -1])
    nan = fired.isinf() & (a + b).isnan().any(dim=1)
    potential = potential.masked_fill(nan, math.nan)
    return fired.to(times.dtype), potential.to(times.dtype), slope.to(times.dtype)
