"""Argument checks shared by the public functions: errors name the argument, the value, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and greater than 0, got {value!r}")


def not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}")


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def floating(name: str, tensor: Tensor) -> None:
    """Spike times need every bin up to t_max exactly, which half precision loses above 256 (bfloat16)."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}")


def spike_times(name: str, times: Tensor) -> None:
    """Refuse NaN and negative times. Reads the values, so it is skipped while a graph is traced."""
    if torch.compiler.is_compiling():
        return
    if not bool((times >= 0).all()):
        kind = "NaN" if bool(times.isnan().any()) else f"a negative time ({times.min().item()})"
        raise ValueError(f"{name} must hold spike times >= 0, with inf for silence; got {kind}")


def class_labels(labels: Tensor, times: Tensor) -> None:
    """Refuse labels that do not fit output times of shape [batch, classes]."""
    if times.ndim != 2:
        raise ValueError(f"times must have shape [batch, classes], got {list(times.shape)}")
    if labels.shape != times.shape[:1]:
        raise ValueError(f"labels must have shape [{times.shape[0]}], got {list(labels.shape)}")
    if labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"labels must hold whole numbers, got {labels.dtype}")
    if labels.device != times.device:
        raise ValueError(f"labels are on {labels.device}, times are on {times.device}")
    if torch.compiler.is_compiling() or labels.numel() == 0:
        return
    low, high = (int(extreme) for extreme in labels.aminmax())
    if low < 0 or high >= times.shape[1]:
        wrong = low if low < 0 else high
        raise ValueError(f"labels must lie in 0 ... {times.shape[1] - 1}, got {wrong}")
