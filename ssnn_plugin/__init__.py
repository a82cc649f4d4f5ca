"""Neurons that fire at most once, as drop-in modules for PyTorch."""

from . import decode, encode, functional, losses, metrics, nn, online
from .neurons import IF

__version__ = "0.1.0"

__all__ = ["IF", "decode", "encode", "functional", "losses", "metrics", "nn", "online"]
