"""Pure functions on spike times."""

from .connection import first_spike_conv2d, first_spike_linear
from .error import fill_silent, normalize_error
from .pool import drop_spikes, earliest_spike_pool2d
from .target import relative_targets

__all__ = [
    "drop_spikes",
    "earliest_spike_pool2d",
    "fill_silent",
    "first_spike_conv2d",
    "first_spike_linear",
    "normalize_error",
    "relative_targets",
]
