"""Layers on spike times: thin modules over `ssnn_plugin.functional`."""

from ..functional.pool import AveragePool
from .calibration import calibrate
from .conv import SpikeConv2d
from .linear import SpikeLinear
from .pool import EarliestSpikePool2d, SpikeFlatten
from .residual import AddedCurrentResidual, EarliestSpikeResidual
from .sequential import SpikeSequential
from .standardization import WeightStandardization

__all__ = [
    "AddedCurrentResidual",
    "AveragePool",
    "EarliestSpikePool2d",
    "EarliestSpikeResidual",
    "SpikeConv2d",
    "SpikeFlatten",
    "SpikeLinear",
    "SpikeSequential",
    "WeightStandardization",
    "calibrate",
]
