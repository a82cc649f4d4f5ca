"""Triton kernels for GPUs: a sample costs (input spikes) x (outputs), and nothing has a time axis.

Beside inputs, outputs and weights the forward pass needs the indices of the spikes of as many patches as
fit a quarter of their bytes, and the weights with outputs side by side, unless they lie so already.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import Factors
from ..geometry import Geometry
from ..status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples
from . import currents, gradients, steps
from .events import bytes_of_row, sort_events
from .patches import Patches, rows_of_weights

__all__ = ["first_spike", "input_grad", "weight_grad"]

# Indices of spikes may always take so many bytes.
LEAST_BYTES = 1 << 22
# Bins up to which there are tables of the leak; a longer window is left to the reference kernels.
MOST_BINS = 1 << 22


def first_spike(
    times: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, neuron: Any, t_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.ops.first_spike`."""
    if neuron.jumps and t_max > MOST_BINS and (bias is not None or neuron.beta != 1):
        return reference.first_spike(times, weight, bias, geometry, neuron, t_max)
    crossing = times.new_empty(geometry.output_shape(times, weight))
    outputs = crossing, torch.empty_like(crossing), crossing.new_empty(0 if neuron.jumps else crossing.shape)
    if crossing.numel():
        with _device_of(times):
            _fire(times, weight, bias, geometry, neuron, t_max, outputs)
            # One answer for both, which the host waits for.
            bad_times, nan = torch.stack([~(times.amin() >= 0), outputs[1].amax().isnan()]).tolist()
        refuse_bad_samples(BAD_TIMES if bad_times else NAN_POTENTIAL if nan else 0)
    return outputs


def _fire(
    times: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, neuron: Any, t_max: float,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """Write the outputs, part by part of the rows."""
    patches = Patches.of(times, weight.shape[2:], geometry)
    rows = rows_of_weights(weight, geometry.groups)
    kind = steps if neuron.jumps else currents
    by_row = [output.view(patches.rows, -1) if output.numel() else output for output in outputs]
    needed = sum(tensor.nbytes for tensor in (times, weight, *outputs))
    at_once = max(1, max(LEAST_BYTES, needed // 4) // bytes_of_row(patches.size))
    for part, seen in patches.parts(at_once):
        kind.fire(sort_events(seen, t_max), rows, bias, neuron, t_max, *(output[part] for output in by_row))


def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    with _device_of(times):
        return gradients.weight_grad(factors, times, kernel_size, geometry)


def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`."""
    with _device_of(times):
        return gradients.input_grad(factors, times, weight, geometry)


def _device_of(times: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(times.device) if times.is_cuda else nullcontext()
