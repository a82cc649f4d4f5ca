"""Neurons that fire at most once, as drop-in modules for PyTorch.

What the package offers stands in `__init__.pyi`, and is loaded when it is first asked for.
"""

import lazy_loader

# Registers the operators, which a saved program names before any module of ours is asked for.
from .kernels import latch, ops, window  # noqa: F401

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
