"""Pure functions on spike times."""

from .connection import first_spike_linear
from .error import fill_silent, normalize_error
from .target import relative_targets

__all__ = ["fill_silent", "first_spike_linear", "normalize_error", "relative_targets"]
