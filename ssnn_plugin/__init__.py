"""Neurons that fire at most once, as drop-in modules for PyTorch."""

from . import decode, encode, functional, losses, metrics, nn, online, rules, surrogate
from ._trace import NoTimeMode
from .convert import to_event_driven, to_step_mode
from .fold import fold_batchnorm
from .functional.silent import SilentNetworkWarning
from .neurons import IF, LIF, AlphaPSP, CurrentNeuron, ExpPSP, Neuron, ReLPSP, WindowedRamp
from .replace import Replacement, replace_neurons
from .verify import Verification, verify

__version__ = "0.2.0"

__all__ = [
    "IF",
    "LIF",
    "AlphaPSP",
    "CurrentNeuron",
    "ExpPSP",
    "Neuron",
    "NoTimeMode",
    "ReLPSP",
    "Replacement",
    "SilentNetworkWarning",
    "Verification",
    "WindowedRamp",
    "decode",
    "encode",
    "fold_batchnorm",
    "functional",
    "losses",
    "metrics",
    "nn",
    "online",
    "replace_neurons",
    "rules",
    "surrogate",
    "to_event_driven",
    "to_step_mode",
    "verify",
]
