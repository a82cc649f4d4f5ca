"""A network on spike times."""

from __future__ import annotations

from torch import Tensor, nn

from .binwise import BinwiseLayer
from .connection import SpikeConnection


class SpikeSequential(nn.Sequential):
    """`torch.nn.Sequential` on spike times, which hands on the potential of its last layer if asked.

    Shape: times [batch, *] -> times, or (times, potential) with `return_potential=True`.

    Raises:
        TypeError: `return_potential=True` and a last layer without neurons.

    >>> import torch
    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear
    >>> model = SpikeSequential(SpikeLinear(4, 3, IF(), t_max=8), SpikeLinear(3, 2, IF(), t_max=8))
    >>> times, potential = model(torch.zeros(1, 4), return_potential=True)
    >>> times.shape, potential.shape
    (torch.Size([1, 2]), torch.Size([1, 2]))
    """

    def forward(self, times: Tensor, return_potential: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Times [batch, *] -> times, or (times, potential)."""
        layers = list(self)
        if not return_potential:
            for layer in layers:
                times = layer(times)
            return times
        flattening = []
        while layers and isinstance(layers[-1], nn.Flatten):
            flattening.append(layers.pop())
        if not layers or not isinstance(layers[-1], SpikeConnection | BinwiseLayer):
            last = type(layers[-1]).__name__ if layers else "Flatten"
            raise TypeError(f"return_potential=True needs a last layer with neurons, got {last}")
        for layer in layers[:-1]:
            times = layer(times)
        times, potential = layers[-1](times, return_potential=True)
        for layer in flattening:
            times, potential = layer(times), layer(potential)
        return times, potential
