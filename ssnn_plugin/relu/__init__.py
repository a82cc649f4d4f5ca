"""Trained ReLU networks as networks of neurons that fire at most once."""

from .convert import from_relu
from .network import Activity, RampNetwork
from .neurons import ChannelAffine, ClippedSpikesWarning, RampNeurons

__all__ = [
    "Activity",
    "ChannelAffine",
    "ClippedSpikesWarning",
    "RampNetwork",
    "RampNeurons",
    "from_relu",
]
