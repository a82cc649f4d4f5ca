"""Neurons that fire at most once, as drop-in modules for PyTorch."""

from . import decode, encode, functional, losses, metrics, nn, online
from ._trace import NoTimeMode
from .convert import Replacement, replace_neurons, to_event_driven, to_step_mode
from .fold import fold_batchnorm
from .neurons import IF, LIF, AlphaPSP, ExpPSP, ReLPSP
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
    "to_event_driven",
    "to_step_mode",
    "verify",
]
