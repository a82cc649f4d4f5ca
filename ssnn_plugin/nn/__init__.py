"""Layers on spike times: thin modules over `ssnn_plugin.functional`."""

from .linear import SpikeLinear

__all__ = ["SpikeLinear"]
