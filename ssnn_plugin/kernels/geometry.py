"""How the synapses of a layer are laid out: fully connected, or a convolution of any stride."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold


class Geometry(NamedTuple):
    """Of a convolution without padding; a fully connected layer has no stride.

    Fully connected: times [batch, in], weights [out, in], outputs [batch, out]. Convolution: times
    [batch, in, height, width], weights [out, in / groups, *kernel_size], outputs [batch, locations, out].
    """

    stride: Sequence[int] = ()
    dilation: Sequence[int] = ()
    groups: int = 1

    @property
    def linear(self) -> bool:
        return not self.stride

    def output_shape(self, times: Tensor, weight: Tensor) -> tuple[int, ...]:
        """Of a layer with these inputs and weights."""
        if self.linear:
            return len(times), len(weight)
        size = output_size(times.shape[2:], weight.shape[2:], self.stride, self.dilation)
        return len(times), math.prod(size), len(weight)

    def weight_shape(self, times: Tensor, out: int, kernel_size: Sequence[int]) -> tuple[int, ...]:
        """Of the weights from these inputs to `out` outputs."""
        return out, times.shape[1] // self.groups, *kernel_size

    def dense(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer as torch's dense operator, laid out as the outputs."""
        if self.linear:
            return torch.nn.functional.linear(inputs, weight, bias)
        v = torch.nn.functional.conv2d(
            inputs, weight, bias, tuple(self.stride), 0, tuple(self.dilation), self.groups
        )
        return v.flatten(2).transpose(1, 2)

    def patches(self, inputs: Tensor, kernel_size: Sequence[int]) -> Sequence[Tensor]:
        """What each location of each group sees: [batch * locations, in / groups * kernel]."""
        if self.linear:
            return [inputs]
        window = tuple(kernel_size), tuple(self.dilation)
        return [
            unfold(part, *window, stride=tuple(self.stride)).transpose(1, 2).flatten(0, 1)
            for part in inputs.chunk(self.groups, dim=1)
        ]

    def add_patches(self, patches: Sequence[Tensor], like: Tensor, kernel_size: Sequence[int]) -> Tensor:
        """The adjoint of `patches`: each value goes back to the input that it was read from."""
        if self.linear:
            return patches[0]
        window = tuple(kernel_size), tuple(self.dilation)
        locations = math.prod(output_size(like.shape[2:], kernel_size, self.stride, self.dilation))
        columns = [part.reshape(len(like), locations, part.shape[1]).transpose(1, 2) for part in patches]
        parts = [fold(part, like.shape[2:], *window, stride=tuple(self.stride)) for part in columns]
        return torch.cat(parts, dim=1).contiguous()

    def rows(self, outputs: Tensor | None) -> Sequence[Tensor | None]:
        """Outputs of each group, one row per location: [batch * locations, out / groups]."""
        if outputs is None or self.linear:
            return [outputs] * self.groups
        return outputs.flatten(0, 1).chunk(self.groups, dim=1)

    def outputs(self, rows: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        """The inverse of `rows`."""
        return rows[0] if self.linear else torch.cat(list(rows), dim=1).reshape(shape)


def output_size(
    size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Height and width of the output of a convolution without padding."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    return [(n - span) // s + 1 for n, span, s in zip(size, spans, stride, strict=True)]


def weight_rows(weight: Tensor, groups: int) -> Tensor:
    """[out, in / groups, *kernel] -> [groups, taps, in / groups, out / groups]: a row per tap and input."""
    out, in_group, *kernel = weight.shape
    return weight.reshape(groups, out // groups, in_group, math.prod(kernel)).permute(0, 3, 2, 1)


def by_group(outputs: Tensor, groups: int) -> Tensor:
    """[..., out] -> [..., groups, out / groups]."""
    return outputs.reshape(*outputs.shape[:-1], groups, outputs.shape[-1] // groups)


def whole_lanes(outputs: Tensor, lanes: int) -> Tensor:
    """Pad the last dimension with zeros to whole vectors."""
    *shape, n = outputs.shape
    if n % lanes == 0:
        return outputs
    padded = outputs.new_empty(*shape, n + -n % lanes)
    padded[..., :n] = outputs
    padded[..., n:] = 0
    return padded
