"""Pure functions on spike times."""

from .bins import bins_to_times, latch, times_to_bins
from .connection import first_spike_conv2d, first_spike_linear
from .error import fill_silent, normalize_error
from .pool import drop_spikes, earliest_spike_pool2d, highest_in_windows2d, lateral_inhibition2d
from .residual import add_shortcut_conv2d, add_shortcut_linear, earliest_spike
from .silent import Bump, no_spike_penalty, overdue_times, weight_sum_cost
from .step import (
    first_spike_pool2d_sequence,
    first_spike_pool2d_step,
    single_spike_sequence,
    single_spike_step,
)
from .target import relative_targets, single_targets

__all__ = [
    "Bump",
    "add_shortcut_conv2d",
    "add_shortcut_linear",
    "bins_to_times",
    "drop_spikes",
    "earliest_spike",
    "earliest_spike_pool2d",
    "fill_silent",
    "first_spike_conv2d",
    "first_spike_linear",
    "first_spike_pool2d_sequence",
    "first_spike_pool2d_step",
    "highest_in_windows2d",
    "latch",
    "lateral_inhibition2d",
    "no_spike_penalty",
    "normalize_error",
    "overdue_times",
    "relative_targets",
    "single_spike_sequence",
    "single_spike_step",
    "single_targets",
    "times_to_bins",
    "weight_sum_cost",
]
