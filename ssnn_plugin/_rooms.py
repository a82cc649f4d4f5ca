"""A layer's part in a training step without autograd: arrays for the kernels, kept between steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .functional.connection import borders, how_to_fire, surrounded
from .kernels.backends import Factors
from .kernels.cpu import conv2d, conv2d_gradients, fused, work_on_rows
from .kernels.cpu.errors import normalize_rows
from .kernels.cpu.gradients import Arrays, add_input_grad, optional_arrays, write_weight_grad
from .kernels.cpu.lanes import in_whole_tiles, tile_of
from .kernels.cpu.parallel import share_out
from .kernels.geometry import Geometry, output_size
from .kernels.status import refuse_bad_samples
from .neurons import IF
from .neurons.base import SeparableNeuron
from .nn import SpikeConv2d, SpikeLinear
from .rules import Crossing, Latency, Rule, error_of, rule_of

Layer: TypeAlias = "SpikeLinear | SpikeConv2d"


def rows_of(weight: Tensor) -> np.ndarray:
    """Weights as they lie in memory: [in, out], or of a convolution [out, in * taps]."""
    weight = weight.detach()
    return (weight.t() if weight.ndim == 2 else weight.view(len(weight), -1)).numpy()


class Room:
    """What the kernels of a layer read in a step, and the arrays that they write to.

    First `fire`, then `take`, then both gradients. Times, and gradients by them, are [batch, all].
    """

    #: its weights, as `rows_of` has them
    rows: np.ndarray
    #: of the window, as the times can hold it
    end: float

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.none, self.status = self._empty(0), np.zeros(batch, np.int8)

    def _empty(self, *shape: int) -> np.ndarray:
        """Torch's memory begins at a cache line; a register that spans two of them takes twice as long."""
        return torch.empty(shape, dtype=self.dtype).numpy()

    def fire(self, layer: Any, times: np.ndarray) -> np.ndarray:
        """Spike times of the layer, of those of its inputs."""
        raise NotImplementedError

    def take(self, grads: np.ndarray, normalize: bool) -> None:
        """Keep the gradients of the spike times as errors."""
        raise NotImplementedError

    def weight_grad(self, times: np.ndarray) -> np.ndarray:
        """Gradient of the weights, as `rows` has them; of full connections there may be more columns."""
        raise NotImplementedError

    def input_grad(self, times: np.ndarray) -> np.ndarray:
        """Gradient of the inputs' spike times."""
        raise NotImplementedError


class LinearRoom(Room):
    """Of a fully connected layer."""

    def __init__(self, batch: int, dtype: torch.dtype, n_out: int, n_in: int) -> None:
        super().__init__(batch, dtype)
        self.crossings, self.spikes = self._empty(batch, n_out), self._empty(batch, n_out)
        self.unwritten, self.tile = self._empty(0, 0), tile_of(self.crossings)
        self.grad = self._empty(n_in, in_whole_tiles(n_out, self.tile, dtype.itemsize))

    def weight_grad(self, times: np.ndarray) -> np.ndarray:
        write_weight_grad(self.arrays(times), self.grad, self.tile)
        return self.grad

    def arrays(self, times: np.ndarray) -> Arrays:
        """What the gradient of the weights is made of."""
        raise NotImplementedError

    def _cross(self, layer: SpikeLinear, times: np.ndarray, potential: np.ndarray, slope: np.ndarray) -> None:
        """Write the crossings, and what else has room."""
        neuron, self.rows = layer._neuron, rows_of(layer.weight)
        self.status.fill(0)
        self.end, outputs = float(times.dtype.type(layer.t_max)), (self.crossings, potential, slope)
        share_out(*work_on_rows(neuron, self.end, times, self.rows, self.none, outputs, self.status))
        refuse_bad_samples(self.status.max())
        np.add(self.crossings, times.dtype.type(neuron.delay), out=self.spikes)


class LatencyErrors:
    """Errors of `IF` neurons without leak by the rule "latency": those of the spike times, as they are."""

    errors: np.ndarray

    def __init__(self, crossings: Tensor) -> None:
        self.crossings = crossings.numpy()
        self.unit, self.until = (torch.empty_like(crossings).numpy() for _ in range(2))

    def take(self, grads: np.ndarray, normalize: bool, end: float, silent: bool) -> None:
        """Of gradients [batch, out] that come in; silent neurons listen to theirs, or do not."""
        number = grads.dtype.type
        # The crossing of a silent neuron: the last time of the window, at which all inputs count; or never.
        last = np.nextafter(number(end), number(0)) if silent else number(np.inf)
        until = self.until, self.until.view(f"i{self.until.itemsize}")
        arrays = grads, normalize, 1 / len(grads), self.unit, self.crossings, last, *until
        share_out(len(grads), grads.size, fused.take_errors, *arrays)
        self.errors = self.unit if normalize else grads


class LatencyRoom(LinearRoom):
    """Of `IF` neurons without leak and the rule "latency": all that is left to do is compiled."""

    def __init__(self, batch: int, dtype: torch.dtype, n_out: int, n_in: int) -> None:
        super().__init__(batch, dtype, n_out, n_in)
        self.kept, self.errors_of_inputs = (
            LatencyErrors(torch.from_numpy(self.crossings)),
            self._empty(batch, n_in),
        )

    def fire(self, layer: SpikeLinear, times: np.ndarray) -> np.ndarray:
        self._cross(layer, times, self.unwritten, self.none)
        self.silent = layer.silent_gradient
        return self.spikes

    def take(self, grads: np.ndarray, normalize: bool) -> None:
        self.kept.take(grads, normalize, self.end, self.silent)

    def arrays(self, times: np.ndarray) -> Arrays:
        return self.kept.errors, None, self.kept.until, None, None, times

    def input_grad(self, times: np.ndarray) -> np.ndarray:
        self.errors_of_inputs.fill(0)
        add_input_grad(self.arrays(times), self.rows.T, self.errors_of_inputs)
        return self.errors_of_inputs


class FactorRoom(LinearRoom):
    """Of all neurons and rules: the factors of their responses are computed by torch."""

    rule: Rule
    crossing: Crossing
    grads: Tensor
    error: Tensor

    def __init__(self, batch: int, dtype: torch.dtype, n_out: int, n_in: int) -> None:
        super().__init__(batch, dtype, n_out, n_in)
        self.potential, self.slope, self.errors = (self._empty(batch, n_out) for _ in range(3))

    def fire(self, layer: SpikeLinear, times: np.ndarray) -> np.ndarray:
        neuron, silent, inputs = layer._neuron, layer.silent_gradient, torch.from_numpy(times)
        assert isinstance(neuron, SeparableNeuron)
        self.rule = how_to_fire(neuron, layer.gradient, silent, layer.t_max, bias=False).rule
        neuron.check_times(inputs, layer.t_max, False)
        self.rule.check_times(inputs)
        found = self.crossings, self.potential, self.none if neuron.jumps else self.slope
        self._cross(layer, times, *found[1:])
        at, potential, slope = map(torch.from_numpy, found)
        of_layer = neuron, Geometry(), self.end, silent, "cpu"
        until = neuron.until(at, self.end, silent)
        self.crossing = Crossing(inputs, layer.weight.detach(), at, until, potential, slope, *of_layer)
        return self.spikes

    def take(self, grads: np.ndarray, normalize: bool) -> None:
        if normalize:
            normalize_rows(grads, 1 / len(grads), self.errors)
        self.grads = self.crossing.counted(torch.from_numpy(self.errors if normalize else grads))
        error = error_of(self.rule, self.crossing, self.grads)
        # The rate of a rule may be infinite where a neuron is silent.
        self.error = error if error is self.grads else self.crossing.counted(error)

    def arrays(self, times: np.ndarray) -> Arrays:
        return optional_arrays(*self.crossing.weight_factors(self.error), self.crossing.times)

    def input_grad(self, times: np.ndarray) -> np.ndarray:
        grad: Tensor | None = self.rule.input_grad(self.crossing, self.error, self.grads)
        if grad is None:
            return np.zeros_like(times)
        if grad.shape != times.shape:
            raise ValueError(
                f"input_grad of {self.rule} must have shape {list(times.shape)}, got {list(grad.shape)}"
            )
        return grad.to(self.dtype).contiguous().numpy()


class ConvolutionRoom(Room):
    """Of a convolution of such neurons.

    Channels come last in the rows that convolutions read, and first in those of fully connected layers.

    Args:
        layer: one that is laid out as those that `fire` is called with.
        image: height and width of its inputs.
        flat: whether a fully connected layer reads the spikes.
    """

    def __init__(
        self, batch: int, dtype: torch.dtype, layer: SpikeConv2d, image: tuple[int, int], flat: bool
    ) -> None:
        super().__init__(batch, dtype)
        self.image, self.flat, self.kernel_size = image, flat, layer.weight.shape[2:]
        self.border, self.geometry, size = layout_of(layer, image)
        shape = batch, math.prod(size), len(layer.weight)
        self.size, self.crossings = size, torch.empty(shape, dtype=dtype)
        self.spikes, self.unwritten = torch.empty_like(self.crossings), self.crossings[:0]
        self.kept = LatencyErrors(self.crossings.flatten(1))

    def fire(self, layer: SpikeConv2d, times: np.ndarray) -> np.ndarray:
        neuron, weight = layer._neuron, layer.weight.detach()
        self.weight, self.rows, self.silent = weight, rows_of(weight), layer.silent_gradient
        self.status.fill(0)
        self.end, self.seen = float(times.dtype.type(layer.t_max)), self._images(times)
        outputs = self.crossings, self.unwritten, torch.from_numpy(self.none)
        conv2d.first_spike(self.seen, weight, None, self.geometry, neuron, self.end, outputs, self.status)
        refuse_bad_samples(self.status.max())
        spikes = self.crossings
        if neuron.delay:
            spikes = torch.add(spikes, neuron.delay, out=self.spikes)
        return _as_rows(spikes.transpose(1, 2) if self.flat else spikes)

    def take(self, grads: np.ndarray, normalize: bool) -> None:
        if self.flat:
            batch, locations, channels = self.crossings.shape
            grads = _as_rows(torch.from_numpy(grads).view(batch, channels, locations).transpose(1, 2))
        self.kept.take(grads, normalize, self.end, self.silent)
        arrays = self.kept.errors, self.kept.until
        errors, until = (torch.from_numpy(array).view(self.crossings.shape) for array in arrays)
        factors = Factors(errors, None, until, None, None)
        self.backward = conv2d_gradients.prepared(factors, self.seen, self.kernel_size, self.geometry)

    def weight_grad(self, times: np.ndarray) -> np.ndarray:
        size = len(self.weight), self.kernel_size, self.geometry.groups
        return _as_rows(conv2d_gradients.weight_grad_of(self.backward, self.seen, *size))

    def input_grad(self, times: np.ndarray) -> np.ndarray:
        groups = self.geometry.groups
        grad = conv2d_gradients.input_grad_of(self.backward, self.seen, self.weight, groups)
        left, _, top, _ = self.border
        height, width = self.image
        return _as_rows(grad[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1))

    def _images(self, times: np.ndarray) -> Tensor:
        """[batch, channels, height, width], with what is silent around them."""
        images = torch.from_numpy(times).view(len(times), *self.image, -1).permute(0, 3, 1, 2)
        return surrounded(images, self.border)


def as_read(times: Tensor) -> np.ndarray:
    """Spike times [batch, in] or [batch, channels, height, width] as the first layer reads them."""
    times = times.detach()
    return _as_rows(times if times.ndim == 2 else times.permute(0, 2, 3, 1))


def _as_rows(values: Tensor) -> np.ndarray:
    rows: np.ndarray = values.reshape(len(values), -1).contiguous().numpy()
    return rows


def layout_of(
    layer: SpikeConv2d, image: tuple[int, int]
) -> tuple[tuple[int, int, int, int], Geometry, list[int]]:
    """Silence around images of this size, geometry, and the size of what the layer makes of them."""
    kernel_size = layer.weight.shape[2:]
    border = borders(layer.padding, kernel_size, layer.stride, layer.dilation)
    left, right, top, bottom = border
    seen = image[0] + top + bottom, image[1] + left + right
    size = output_size(seen, kernel_size, layer.stride, layer.dilation)
    if min(size) < 1:
        raise ValueError(f"kernel_size must fit the padded input {list(seen)}, got {layer!r}")
    return border, Geometry(layer.stride, layer.dilation), size


def is_plain(layer: Layer) -> bool:
    """Whether its neurons are `IF` without leak, with the rule "latency"."""
    neuron = layer._neuron  # as `layer.neuron` has it, which takes longer
    return type(neuron) is IF and bool(neuron.beta == 1) and type(rule_of(layer.gradient, neuron)) is Latency


def described(layer: Layer) -> tuple[object, ...]:
    """What its room is made for, beside what comes in."""
    shape = layer.weight.shape, layer.weight.dtype
    if isinstance(layer, SpikeConv2d):
        padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
        return *shape, tuple(layer.stride), padding, tuple(layer.dilation)
    return *shape, is_plain(layer)


def rooms_of(layers: Sequence[Layer], times: Tensor) -> list[Room]:
    """What the layers need for such times, one after the other.

    Raises:
        ValueError: a kernel, or a number of inputs, that does not fit what comes before.
    """
    rooms: list[Room] = []
    (batch, *shape), dtype = times.shape, times.dtype
    for number, layer in enumerate(layers):
        if isinstance(layer, SpikeConv2d):
            flat = number + 1 == len(layers) or isinstance(layers[number + 1], SpikeLinear)
            room = ConvolutionRoom(batch, dtype, layer, (shape[-2], shape[-1]), flat)
            shape = [len(layer.weight), *room.size]
            rooms.append(room)
        else:
            n_out, n_in = layer.weight.shape
            if math.prod(shape) != n_in:
                raise ValueError(f"network must have layers that fit each other, got {shape} for {layer!r}")
            kind = LatencyRoom if is_plain(layer) else FactorRoom
            shape = [n_out]
            rooms.append(kind(batch, dtype, n_out, n_in))
    return rooms
