"""Numba kernels for the CPU: a sample costs (input spikes) x (outputs)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..geometry import Geometry
from ..status import refuse_bad_samples
from . import currents, steps
from .gradients import input_grad, weight_grad
from .lanes import tile_of
from .parallel import as_arrays, share_out

__all__ = ["first_spike", "input_grad", "weight_grad"]


def first_spike(
    times: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, neuron: Any, t_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.ops.first_spike`."""
    status, kind = np.zeros(len(times), np.int8), steps if neuron.jumps else currents
    outputs: tuple[Tensor, Tensor, Tensor]
    if geometry.linear:
        shape = len(times), len(weight)
        outputs = *(times.new_empty(shape) for _ in range(2)), times.new_empty(0 if neuron.jumps else shape)
        rows, *arrays = as_arrays(weight.t(), times, *outputs)
        current = None if bias is None else as_arrays(bias)[0]
        numbers, work = kind.numbers_of(neuron, t_max), times.numel() * len(weight) // 4
        given = arrays[0], rows, current, *arrays[1:], status, *numbers, tile_of(rows)
        share_out(len(times), work, kind.kernel_of(neuron, bias), *given)
    else:
        outputs = kind.first_spike_conv2d(times, weight, bias, geometry, neuron, t_max, status)
    refuse_bad_samples(status.max(initial=0))
    return outputs
