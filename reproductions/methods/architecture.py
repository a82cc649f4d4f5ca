"""Networks as papers write them: "16C5s2p1" (convolution), "P2" (earliest-spike pool), "500" (full)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

from pydantic import AfterValidator
from torch import nn

from ssnn_plugin.nn import EarliestSpikePool2d, SpikeFlatten

from ..errors import SuiteError
from .minibatch import Stage


class Convolution(NamedTuple):
    channels: int
    kernel: int
    stride: int
    padding: int


class Pool(NamedTuple):
    kernel: int
    stride: int
    padding: int = 0


def parse(layer: str) -> Convolution | Pool | int:
    """A layer from how it is written; a number is the width of a fully connected one.

    Raises:
        ValueError: says how layers are written.
    """
    if match := re.fullmatch(r"(\d+)C(\d+)(?:s(\d+))?(?:p(\d+))?", layer):
        channels, kernel, stride, padding = match.groups()
        return Convolution(int(channels), int(kernel), int(stride or 1), int(padding or 0))
    if match := re.fullmatch(r"P(\d+)", layer):
        return Pool(int(match[1]), int(match[1]))
    if re.fullmatch(r"[1-9]\d*", layer):
        return int(layer)
    raise ValueError(
        f"a layer must be written as '16C5' (s2: stride, p1: padding), 'P2' or '500', got {layer!r}"
    )


def _checked(layers: list[str]) -> list[str]:
    previous: Convolution | Pool | int | None = None
    for layer in layers:
        parsed = parse(layer)
        if isinstance(parsed, Pool) and not isinstance(previous, Convolution):
            raise ValueError(f"a pool must follow a convolution, got {layers}")
        if isinstance(parsed, Convolution) and isinstance(previous, int):
            raise ValueError(f"a convolution must not follow a fully connected layer, got {layers}")
        previous = parsed
    return layers


Layers = Annotated[list[str], AfterValidator(_checked)]


def neuron_layers(layers: Sequence[str]) -> int:
    """How many of the layers have neurons; a pool has none."""
    return sum(not isinstance(parse(layer), Pool) for layer in layers)


def build_stages(
    layers: Sequence[str],
    shape: tuple[int, ...],
    classes: int,
    linear: Callable[[int, int, int], nn.Module],
    convolution: Callable[[int, int, Convolution], nn.Module],
) -> list[Stage]:
    """The hidden layers and the outputs, for flat images of `shape` [channels, height, width].

    `linear(number, in_features, out_features)` and `convolution(number, in_channels, layer)` build the
    neurons of the layer with that number.

    Raises:
        SuiteError: a layer that does not fit the size that is left.
    """
    stages: list[Stage] = []
    for written in [*layers, str(classes)]:
        layer, number = parse(written), len(stages)
        if isinstance(layer, int):
            if stages and len(shape) == 3:
                stages[-1].after.append(SpikeFlatten())
            stages.append(Stage(linear(number, math.prod(shape), layer)))
            shape = (layer,)
            continue
        if len(shape) != 3:
            raise SuiteError(f"network.layers: {written!r} needs images, got {shape[0]} features per sample")
        channels, *size = shape
        left = [(n + 2 * layer.padding - layer.kernel) // layer.stride + 1 for n in size]
        if min(left) < 1:
            raise SuiteError(f"network.layers: {written!r} does not fit what is left of the image, {size}")
        if isinstance(layer, Pool):
            stages[-1].after.append(EarliestSpikePool2d(layer.kernel))
        else:
            neurons = convolution(number, channels, layer)
            stages.append(Stage(neurons if stages else nn.Sequential(nn.Unflatten(1, shape), neurons)))
            channels = layer.channels
        shape = channels, *left
    return stages
