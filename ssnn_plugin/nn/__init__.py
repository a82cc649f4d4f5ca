"""Layers on spike times: thin modules over `ssnn_plugin.functional`."""

from .conv import SpikeConv2d
from .linear import SpikeLinear
from .pool import EarliestSpikePool2d, SpikeFlatten
from .sequential import SpikeSequential

__all__ = ["EarliestSpikePool2d", "SpikeConv2d", "SpikeFlatten", "SpikeLinear", "SpikeSequential"]
