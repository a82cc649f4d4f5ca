"""Reference kernels in plain PyTorch: readable, any device, and the yardstick of the fast ones.

A convolution is a fully connected layer on every patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import Factors
from ..geometry import Geometry
from ..precision import in_full_precision
from ..status import BAD_TIMES, NAN_POTENTIAL, refuse_bad_samples
from . import currents, steps

# Elements of the [samples, events, outputs] table that one chunk of the batch may use.
CHUNK = 1 << 24


@in_full_precision
def first_spike(
    times: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, neuron: Any, t_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.ops.first_spike`."""
    refuse_bad_samples(0 if bool((times >= 0).all()) else BAD_TIMES)
    fire = steps.first_spike if neuron.jumps else currents.first_spike
    weights = weight.flatten(1).chunk(geometry.groups)
    biases = [None] * geometry.groups if bias is None else bias.chunk(geometry.groups)
    groups = []
    for t, w, current in zip(geometry.patches(times, weight.shape[2:]), weights, biases, strict=True):
        parts = [fire(t[rows], w, current, neuron, t_max) for rows in _chunks(len(t), w, neuron)]
        groups.append([torch.cat(part) for part in zip(*parts, strict=True)])
    shape = geometry.output_shape(times, weight)
    crossings, potentials, slopes = zip(*groups, strict=True)
    crossing, potential = geometry.outputs(crossings, shape), geometry.outputs(potentials, shape)
    slope = slopes[0] if neuron.jumps else geometry.outputs(slopes, shape)
    refuse_bad_samples(NAN_POTENTIAL if bool(potential.isnan().any()) else 0)
    return crossing, potential, slope


def _chunks(length: int, weight: Tensor, neuron: Any = None) -> Iterator[slice]:
    """Ranges of the batch whose tables fit; one, if it is empty."""
    table = max(1, weight.numel(), 0 if neuron is None or neuron.beta == 1 else weight.shape[1] ** 2)
    step = max(1, CHUNK // table)
    return (slice(start, start + step) for start in range(0, max(1, length), step))


@in_full_precision
def weight_grad(factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """See `kernels.ops.weight_grad`."""
    parts = []
    for p, q, until, a, b, t in _by_group(factors, times, kernel_size, geometry):
        grad = p.new_zeros(p.shape[1], t.shape[1])
        for rows in _chunks(len(t), grad):
            causal = _causal(until[rows], t[rows])
            grad -= _sum("bj,bi,bji->ji", p, a, causal, rows)
            if q is not None:
                grad += _sum("bj,bi,bji->ji", q, b, causal, rows)
        parts.append(grad)
    return torch.cat(parts).reshape(geometry.weight_shape(times, factors.p.shape[-1], kernel_size))


@in_full_precision
def input_grad(factors: Factors, times: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """See `kernels.ops.input_grad`."""
    parts = []
    weights = weight.flatten(1).chunk(geometry.groups)
    for (p, q, until, a, b, t), w in zip(
        _by_group(factors, times, weight.shape[2:], geometry), weights, strict=True
    ):
        grad = torch.zeros_like(t, memory_format=torch.contiguous_format)
        for rows in _chunks(len(t), w):
            weighted = _causal(until[rows], t[rows]) * w
            grad[rows] = _sum("bj,bi,bji->bi", p, a, weighted, rows)
            if q is not None:
                grad[rows] -= _sum("bj,bi,bji->bi", q, b, weighted, rows)
        parts.append(grad)
    return geometry.add_patches(parts, times, weight.shape[2:])


def _sum(equation: str, output: Tensor, inputs: Tensor | None, causal: Tensor, rows: slice) -> Tensor:
    """Sum of the products of a factor of the outputs, one of the inputs, 1 if there is none, and `causal`."""
    if inputs is None:
        return torch.einsum(equation.replace("bi,", ""), output[rows], causal)
    return torch.einsum(equation, output[rows], inputs[rows], causal)


def _causal(until: Tensor, times: Tensor) -> Tensor:
    """[batch, out, in]: did input i spike before the end of output j?"""
    return (times.unsqueeze(1) < until.unsqueeze(2)).to(times.dtype)


def _by_group(
    factors: Factors, times: Tensor, kernel_size: Sequence[int], geometry: Geometry
) -> Iterator[tuple[Any, ...]]:
    """Of each group (p, q, until) by location and (a, b, times) by patch: what a linear layer takes."""
    never = factors.until.isnan()
    p, q = (x if x is None else x.masked_fill(never, 0) for x in factors[:2])
    outputs = (geometry.rows(output) for output in (p, q, factors.until))
    inputs = (
        [None] * geometry.groups if x is None else geometry.patches(x, kernel_size)
        for x in (factors.a, factors.b, times)
    )
    return zip(*outputs, *inputs, strict=True)
