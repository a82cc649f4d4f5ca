"""Layers on spike times: thin modules over `ssnn_plugin.functional`."""

from ..functional.pool import AveragePool
from .bins import EachBin, InBins, Latch
from .binwise import BinwiseLayer, Currents, SpikeReadout
from .calibration import calibrate
from .classifier import SpikeClassifier
from .conv import SpikeConv2d
from .decision import Decision
from .event_driven import EventDrivenNetwork
from .linear import SpikeLinear
from .pool import EarliestSpikePool2d, SpikeFlatten
from .residual import AddedCurrentResidual, EarliestSpikeResidual
from .scaling import MinMaxScaling
from .sequential import SpikeSequential
from .standardization import WeightStandardization

__all__ = [
    "AddedCurrentResidual",
    "AveragePool",
    "BinwiseLayer",
    "Currents",
    "Decision",
    "EachBin",
    "EarliestSpikePool2d",
    "EarliestSpikeResidual",
    "EventDrivenNetwork",
    "InBins",
    "Latch",
    "MinMaxScaling",
    "SpikeClassifier",
    "SpikeConv2d",
    "SpikeFlatten",
    "SpikeLinear",
    "SpikeReadout",
    "SpikeSequential",
    "WeightStandardization",
    "calibrate",
]
