"""Numba kernels of the latch for the CPU: neurons are shared out over threads, bins stay together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..latch import output_like
from . import latch_bins
from .parallel import share_out


def latch(potentials: Tensor, threshold: float) -> Tensor:
    """See `ssnn_plugin.kernels.latch`, here and below."""
    out = output_like(potentials)
    v = _rows(potentials, out)
    _share_out(latch_bins.latch, v, _computed_in(v)(threshold), _view(out))
    return out


def latch_grad(potentials: Tensor, grad: Tensor) -> Tensor:
    return _gradient(latch_bins.latch_grad, potentials, grad)


def latch_grad_arctan(potentials: Tensor, grad: Tensor, threshold: float, sharpness: float) -> Tensor:
    return _gradient(latch_bins.latch_grad_arctan, potentials, grad, threshold, sharpness)


def latch_grad_triangle(potentials: Tensor, grad: Tensor, threshold: float, width: float) -> Tensor:
    return _gradient(latch_bins.latch_grad_triangle, potentials, grad, threshold, width)


def latch_grad_escape(potentials: Tensor, grad: Tensor, threshold: float, width: float) -> Tensor:
    return _gradient(latch_bins.latch_grad_escape, potentials, grad, threshold, width)


def _gradient(kernel: Callable[..., None], potentials: Tensor, grad: Tensor, *numbers: float) -> Tensor:
    out = output_like(potentials)
    v, g = _rows(potentials, out), _rows(grad, out)
    number = _computed_in(v)
    _share_out(kernel, v, g, *map(number, numbers), _view(out))
    return out


def _computed_in(rows: np.ndarray) -> Any:
    """The type in which the numbers of an array are computed."""
    return np.float64 if rows.dtype == np.float64 else np.float32


def _share_out(kernel: Callable[..., None], v: np.ndarray, *args: Any) -> None:
    bins, neurons = v.shape
    share_out(neurons, 2 * bins * neurons, kernel, v, *args)


def _rows(tensor: Tensor, like: Tensor) -> np.ndarray:
    """A view [T, neurons] with the neurons in the order in which `like` has them in memory."""
    tensor = tensor.detach()
    if tensor.stride() != like.stride() or tensor.dtype != like.dtype:
        tensor = torch.empty_like(like).copy_(tensor)
    return _view(tensor)


def _view(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor whose bins lie one after the other, [T, neurons]; half precision as bits."""
    neurons = tensor[0].numel()
    rows = tensor.as_strided((len(tensor), neurons), (neurons, 1))
    array: np.ndarray = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
    return array
