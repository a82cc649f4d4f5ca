"""A layer's part in a training step without autograd: arrays for the kernels, kept between steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .functional.connection import how_to_fire
from .kernels.cpu import fused, work_on_rows
from .kernels.cpu.errors import normalize_rows
from .kernels.cpu.gradients import Arrays, add_input_grad, optional_arrays, write_weight_grad
from .kernels.cpu.lanes import tile_of, width_of
from .kernels.cpu.parallel import share_out
from .kernels.geometry import Geometry
from .kernels.status import refuse_bad_samples
from .neurons import IF
from .neurons.base import SeparableNeuron
from .nn import SpikeLinear
from .rules import Crossing, Latency, Rule, error_of


def rows_of(weight: Tensor) -> np.ndarray:
    """Weights as they lie in memory, [in, out]."""
    return weight.detach().t().numpy()


class Room:
    """What the kernels of a layer read in a step, and the arrays that they write to.

    First `fire`, then `take`, then both gradients.
    """

    rows: np.ndarray
    #: of the window, as the times can hold it
    end: float

    def __init__(self, batch: int, n_out: int, n_in: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.crossings, self.spikes, self.errors = (self._empty(batch, n_out) for _ in range(3))
        self.none, self.unwritten = self._empty(0), self._empty(0, 0)
        self.status, self.tile = np.zeros(batch, np.int8), tile_of(self.crossings)
        self.grad = self._empty(n_in, max(n_out, width_of(self.tile, dtype.itemsize)))

    def _empty(self, *shape: int) -> np.ndarray:
        """Torch's memory begins at a cache line; a register that spans two of them takes twice as long."""
        return torch.empty(shape, dtype=self.dtype).numpy()

    def fire(self, layer: SpikeLinear, times: np.ndarray) -> np.ndarray:
        """Spike times of the layer, of those of its inputs."""
        raise NotImplementedError

    def take(self, grads: np.ndarray, normalize: bool) -> None:
        """Keep the gradients of the spike times as errors."""
        raise NotImplementedError

    def weight_grad(self, times: np.ndarray) -> np.ndarray:
        """Gradient of the weights [in, out], with more columns if there are fewer outputs than a tile has."""
        write_weight_grad(self.arrays(times), self.grad, self.tile)
        return self.grad

    def arrays(self, times: np.ndarray) -> Arrays:
        """What the gradient of the weights is made of."""
        raise NotImplementedError

    def input_grad(self, times: np.ndarray) -> np.ndarray:
        """Gradient of the inputs' spike times."""
        raise NotImplementedError

    def _cross(self, layer: SpikeLinear, times: np.ndarray, potential: np.ndarray, slope: np.ndarray) -> None:
        """Write the crossings, and what else has room."""
        neuron, self.rows = layer._neuron, rows_of(layer.weight)
        self.status.fill(0)
        self.end, outputs = float(times.dtype.type(layer.t_max)), (self.crossings, potential, slope)
        share_out(*work_on_rows(neuron, self.end, times, self.rows, self.none, outputs, self.status))
        refuse_bad_samples(self.status.max())
        np.add(self.crossings, times.dtype.type(neuron.delay), out=self.spikes)


class LatencyRoom(Room):
    """Of `IF` neurons without leak and the rule "latency": all that is left to do is compiled."""

    #: the crossing of a silent neuron, by which inputs are counted
    last: np.floating[Any]

    def __init__(self, batch: int, n_out: int, n_in: int, dtype: torch.dtype) -> None:
        super().__init__(batch, n_out, n_in, dtype)
        self.until, self.errors_of_inputs = self._empty(batch, n_out), self._empty(batch, n_in)

    def fire(self, layer: SpikeLinear, times: np.ndarray) -> np.ndarray:
        number = times.dtype.type
        self._cross(layer, times, self.unwritten, self.none)
        # The last time of the window, at which all inputs count; without a gradient none does.
        last = np.nextafter(number(self.end), number(0))
        self.last = last if layer.silent_gradient else number(np.inf)
        return self.spikes

    def take(self, grads: np.ndarray, normalize: bool) -> None:
        until = self.until, self.until.view(f"i{self.until.itemsize}")
        arrays = grads, normalize, 1 / len(grads), self.errors, self.crossings, self.last, *until
        share_out(len(grads), grads.size, fused.take_errors, *arrays)

    def arrays(self, times: np.ndarray) -> Arrays:
        return self.errors, None, self.until, None, None, times

    def input_grad(self, times: np.ndarray) -> np.ndarray:
        self.errors_of_inputs.fill(0)
        add_input_grad(self.arrays(times), self.rows.T, self.errors_of_inputs)
        return self.errors_of_inputs


class FactorRoom(Room):
    """Of all neurons and rules: the factors of their responses are computed by torch."""

    rule: Rule
    crossing: Crossing
    grads: Tensor
    error: Tensor

    def __init__(self, batch: int, n_out: int, n_in: int, dtype: torch.dtype) -> None:
        super().__init__(batch, n_out, n_in, dtype)
        self.potential, self.slope = self._empty(batch, n_out), self._empty(batch, n_out)

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
        self.error = error_of(self.rule, self.crossing, self.grads)

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


def room_of(layer: SpikeLinear) -> type[Room]:
    """What a layer needs."""
    neuron = layer._neuron  # as `layer.neuron` has it, which takes longer
    plain = type(neuron) is IF and neuron.beta == 1 and type(layer.gradient) is Latency
    return LatencyRoom if plain else FactorRoom
