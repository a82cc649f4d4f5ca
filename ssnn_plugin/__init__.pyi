from . import decode, encode, functional, losses, metrics, nn, online, rules, surrogate
from ._trace import NoTimeMode
from .convert import to_event_driven, to_step_mode
from .fold import fold_batchnorm
from .functional.silent import SilentNetworkWarning
from .fused import FusedStep
from .neurons import (
    IF,
    LIF,
    AlphaPSP,
    CurrentNeuron,
    ExpPSP,
    Neuron,
    ReLPSP,
    UnencodedInputWarning,
    WindowedRamp,
)
from .relu import ClippedSpikesWarning, RampNetwork, from_relu
from .replace import Replacement, replace_neurons
from .verification import Verification, verify

__version__: str

__all__ = [
    "IF",
    "LIF",
    "AlphaPSP",
    "ClippedSpikesWarning",
    "CurrentNeuron",
    "ExpPSP",
    "FusedStep",
    "Neuron",
    "NoTimeMode",
    "RampNetwork",
    "ReLPSP",
    "Replacement",
    "SilentNetworkWarning",
    "UnencodedInputWarning",
    "Verification",
    "WindowedRamp",
    "decode",
    "encode",
    "fold_batchnorm",
    "from_relu",
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
