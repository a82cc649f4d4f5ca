"""Autocast would round what spike times are computed from: they need all their digits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def under_autocast(device: torch.device) -> bool:
    """Whether operators on this device are given half precision."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Without autocast on this device."""
    return torch.autocast(device.type, enabled=False) if under_autocast(device) else nullcontext()


def in_full_precision(kernel: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A kernel without autocast on the device of its first tensor."""

    @functools.wraps(kernel)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        device = next(value.device for value in arguments if isinstance(value, Tensor))
        with full_precision(device):
            return kernel(*arguments, **options)

    return call
