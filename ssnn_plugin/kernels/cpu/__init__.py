"""Numba kernels for the CPU: a sample costs (input spikes) x (outputs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..backends import Factors
from ..geometry import Geometry
from ..status import refuse_bad_samples
from . import conv2d_currents, conv2d_gradients, conv2d_steps, currents, gradients, steps

__all__ = ["first_spike", "input_grad", "weight_grad"]


def first_spike(
    times: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, neuron: Any, t_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.ops.first_spike`."""
    status = np.zeros(len(times), np.int8)
    if geometry.linear:
        fire = steps.first_spike_linear if neuron.jumps else currents.first_spike_linear
    else:
        fire = conv2d_steps.first_spike if neuron.jumps else conv2d_currents.first_spike
    outputs: tuple[Tensor, Tensor, Tensor] = fire(times, weight, bias, geometry, neuron, t_max, status)
    refuse_bad_samples(status.max(initial=0))
    return outputs


def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    kind = gradients if geometry.linear else conv2d_gradients
    return kind.weight_grad(factors, times, kernel_size, geometry)


def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`."""
    kind = gradients if geometry.linear else conv2d_gradients
    return kind.input_grad(factors, times, weight, geometry)
