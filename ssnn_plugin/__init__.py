"""Neurons that fire at most once, as drop-in modules for PyTorch."""

from . import decode, encode, functional, losses, metrics, nn, online, surrogate
from ._trace import NoTimeMode
from .convert import to_event_driven, to_step_mode
from .fold import fold_batchnorm
from .functional.silent import SilentNetworkWarning
from .neurons import IF, LIF, AlphaPSP, ExpPSP, ReLPSP
from .replace import Replacement, replace_neurons
from .verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "IF",
    "LIF",
    "AlphaPSP",
    "ExpPSP",
    "NoTimeMode",
    "ReLPSP",
    "Replacement",
    "SilentNetworkWarning",
    "Verification",
    "decode",
    "encode",
    "fold_batchnorm",
    "functional",
    "losses",
    "metrics",
    "nn",
    "online",
    "replace_neurons",
    "surrogate",
    "to_event_driven",
    "to_step_mode",
    "verify",
]
