"""Descriptions of neurons that fire at most once: small frozen values that know their response."""

from .alpha import AlphaPSP
from .base import CurrentNeuron, Neuron
from .exponential import ExpPSP
from .lif import LIF
from .ramp import ReLPSP
from .step import IF, UnencodedInputWarning
from .windowed_ramp import WindowedRamp

__all__ = [
    "IF",
    "LIF",
    "AlphaPSP",
    "CurrentNeuron",
    "ExpPSP",
    "Neuron",
    "ReLPSP",
    "UnencodedInputWarning",
    "WindowedRamp",
]
