"""Numba kernels for the CPU: a sample costs (input spikes) x (outputs)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..geometry import Geometry
from ..status import refuse_bad_samples
from . import currents, steps
from .gradients import input_grad, weight_grad

__all__ = ["first_spike", "input_grad", "weight_grad"]


def first_spike(
    times: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, neuron: Any, t_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.ops.first_spike`."""
    status = np.zeros(len(times), np.int8)
    kind = steps if neuron.jumps else currents
    fire = kind.first_spike_linear if geometry.linear else kind.first_spike_conv2d
    outputs: tuple[Tensor, Tensor, Tensor] = fire(times, weight, bias, geometry, neuron, t_max, status)
    refuse_bad_samples(status.max(initial=0))
    return outputs
