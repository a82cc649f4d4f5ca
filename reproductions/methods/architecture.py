"""Networks as papers write them: "16C5s2p1", "P2" (earliest spike), "A2" (average), "500" (full)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator
from torch import nn

from ssnn_plugin.nn import AveragePool, EarliestSpikePool2d, SpikeFlatten

from ..errors import SuiteError
from .minibatch import Stage


class Convolution(NamedTuple):
    channels: int
    kernel: int
    stride: int
    padding: int


class Pool(NamedTuple):
    """Of the earliest spike, or the average of the spikes, which is part of the connection behind."""

    kernel: int
    stride: int
    average: bool = False
    padding: int = 0


def size_behind(layer: Convolution | Pool, size: Sequence[int]) -> list[int]:
    """Height and width of what a layer makes of images of this height and width."""
    return [(n + 2 * layer.padding - layer.kernel) // layer.stride + 1 for n in size]


def parse(layer: str) -> Convolution | Pool | int:
    """A layer from how it is written; a number is the width of a fully connected one.

    Raises:
        ValueError: says how layers are written.
    """
    if match := re.fullmatch(r"([1-9]\d*)C([1-9]\d*)(?:s([1-9]\d*))?(?:p(\d+))?", layer):
        channels, kernel, stride, padding = match.groups()
        return Convolution(int(channels), int(kernel), int(stride or 1), int(padding or 0))
    if match := re.fullmatch(r"([AP])([1-9]\d*)", layer):
        return Pool(int(match[2]), int(match[2]), average=match[1] == "A")
    if re.fullmatch(r"[1-9]\d*", layer):
        return int(layer)
    raise ValueError(
        f"a layer must be written as '16C5' (s2: stride, p1: padding), 'P2', 'A2' or '500', got {layer!r}"
    )


def _written(layers: Any) -> Any:
    """The width of a fully connected layer may be written as a number."""
    if not isinstance(layers, list):
        return layers
    return [str(layer) if type(layer) is int else layer for layer in layers]


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


Layers = Annotated[list[str], BeforeValidator(_written), AfterValidator(_checked)]


def neuron_layers(layers: Sequence[str]) -> int:
    """How many of the layers have neurons; a pool has none."""
    return sum(not isinstance(parse(layer), Pool) for layer in layers)


def build_stages(
    layers: Sequence[str],
    shape: tuple[int, ...],
    classes: int,
    linear: Callable[[int, int, int, AveragePool | None], nn.Module],
    convolution: Callable[[int, int, Convolution, AveragePool | None], nn.Module],
) -> list[Stage]:
    """The hidden layers and the outputs, for flat images of `shape` [channels, height, width].

    `linear(number, in_features, out_features, pool)` and `convolution(number, in_channels, layer, pool)`
    build the neurons of the layer with that number, behind an average pool or None.

    Raises:
        SuiteError: a layer that does not fit the size that is left.
    """
    stages: list[Stage] = []
    average: AveragePool | None = None
    for written in [*layers, str(classes)]:
        layer, number = parse(written), len(stages)
        if isinstance(layer, int):
            if stages and len(shape) == 3 and average is None:
                stages[-1].after.append(SpikeFlatten())
            stages.append(Stage(linear(number, math.prod(shape), layer, average)))
            shape, average = (layer,), None
            continue
        if len(shape) != 3:
            raise SuiteError(f"network.layers: {written!r} needs images, got {shape[0]} features per sample")
        channels, *size = shape
        left = size_behind(layer, size)
        if min(left) < 1:
            raise SuiteError(f"network.layers: {written!r} does not fit what is left of the image, {size}")
        if isinstance(layer, Pool) and layer.average:
            average = AveragePool(layer.kernel)
        elif isinstance(layer, Pool):
            stages[-1].after.append(EarliestSpikePool2d(layer.kernel))
        else:
            neurons, average = convolution(number, channels, layer, average), None
            stages.append(Stage(neurons if stages else nn.Sequential(nn.Unflatten(1, shape), neurons)))
            channels = layer.channels
        shape = channels, *left
    return stages
