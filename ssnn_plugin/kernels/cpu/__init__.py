"""Numba kernels for the CPU: a sample costs (input spikes) x (outputs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..backends import Factors
from ..geometry import Geometry
from ..status import refuse_bad_samples
from . import conv2d, conv2d_gradients, currents, gradients, steps
from .parallel import as_arrays, share_out

__all__ = ["first_spike", "input_grad", "weight_grad"]


def first_spike(
    times: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, neuron: Any, t_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.ops.first_spike`."""
    status, shape = np.zeros(len(times), np.int8), geometry.output_shape(times, weight)
    slope = times.new_empty(0 if neuron.jumps else shape)
    outputs = times.new_empty(shape), times.new_empty(shape), slope
    if geometry.linear:
        # An array in any case: code for None would be compiled beside that for arrays.
        seen, rows, current = as_arrays(times, weight.t(), times.new_empty(0) if bias is None else bias)
        share_out(*work_on_rows(neuron, t_max, seen, rows, current, as_arrays(*outputs), status))
    else:
        conv2d.first_spike(times, weight, bias, geometry, neuron, t_max, outputs, status)
    refuse_bad_samples(status.max(initial=0))
    return outputs


def work_on_rows(
    neuron: Any,
    t_max: float,
    times: np.ndarray,
    rows: np.ndarray,
    bias: np.ndarray,
    outputs: tuple[np.ndarray, ...],
    status: np.ndarray,
) -> tuple[Any, ...]:
    """What `share_out` takes to write crossings, potentials and slopes of a fully connected layer.

    Its weights are rows [in, out]; its bias may be empty, and so may be the potentials of neurons without
    leak and bias whose V jumps: they are not written then.
    """
    kind: Any = steps if neuron.jumps else currents
    kernel, tile = kind.kernel_of(neuron, bias.size > 0, rows)
    arrays = times, rows, bias, *outputs, status
    work = times.size * rows.shape[1] // 4
    return len(times), work, kernel, *arrays, *kind.numbers_of(neuron, t_max), tile


def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    kind: Any = gradients if geometry.linear else conv2d_gradients
    grad: Tensor = kind.weight_grad(factors, times, kernel_size, geometry)
    return grad


def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`."""
    kind: Any = gradients if geometry.linear else conv2d_gradients
    grad: Tensor = kind.input_grad(factors, times, weight, geometry)
    return grad
