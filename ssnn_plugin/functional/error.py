"""Small pieces that shape the error on its way back through spike times."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._autograd import Function
from ..kernels.ops import plain
from .silent import warn_if_none

REDUCTIONS = ("mean", "sum")


class _FillSilent(Function):
    @staticmethod
    def forward(times: Tensor, value: float) -> Tensor:
        return times.clamp(max=value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


def fill_silent(times: Tensor, t_max: float) -> Tensor:
    """Replace silence by the finite stand-in `t_max` and let the gradient through, for losses of your own.

    A loss needs the stand-in to ask a silent neuron to fire; whether the neuron listens is the
    layer's `silent_gradient`. In training a batch in which nothing fired gives a `SilentNetworkWarning`.

    Args:
        times: spike times of any shape; `inf`, and any time after `t_max`, is silence.
        t_max: length of the window.

    Raises:
        ValueError: a `t_max` that is not positive.

    >>> import torch
    >>> fill_silent(torch.tensor([3.0, torch.inf]), 256)
    tensor([  3., 256.])
    """
    _checks.positive("t_max", t_max)
    if times.requires_grad:
        warn_if_none(times < t_max)
    return _FillSilent.fit(times).apply(times, float(t_max))  # type: ignore[no-any-return]


class _NormalizeError(Function):
    @staticmethod
    def forward(times: Tensor, reduction: str) -> Tensor:
        return times.view_as(times)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.reduction = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        grad: Tensor = grads[0]
        samples = max(1, len(grad)) if ctx.reduction == "mean" else 1
        return _normalized(grad, samples), None


def _normalized(grad: Tensor, samples: int) -> Tensor:
    """Of the norm 1 / samples in each sample, where it is not 0."""
    if (
        grad.device.type == "cpu"
        and grad.dtype in _checks.DTYPES
        and not torch.is_grad_enabled()
        and plain(grad)
        and not torch._C._functorch.is_legacy_batchedtensor(grad)
    ):
        from ..kernels.cpu.errors import normalize_rows

        rows = grad.detach().flatten(1).contiguous()
        unit = torch.empty_like(rows)
        normalize_rows(rows.numpy(), 1 / samples, unit.numpy())
        return unit.view(grad.shape)
    grad = _within_range(grad)
    norm = torch.linalg.vector_norm(grad, dim=_features(grad), keepdim=True)
    normalized: Tensor = grad / (norm.masked_fill(norm == 0, 1) * samples)
    return normalized


def _within_range(grad: Tensor) -> Tensor:
    """Each sample times a power of two, which rounds nothing, so that the squares stay within the dtype."""
    if grad.numel() == 0:
        return grad
    largest = grad.abs().amax(_features(grad), keepdim=True)
    most = math.frexp(torch.finfo(grad.dtype).max)[1] - 2
    return torch.ldexp(grad, -torch.frexp(largest).exponent.clamp(-most, most))


def _features(grad: Tensor) -> list[int]:
    return list(range(1, grad.ndim))


def normalize_error(times: Tensor, *, reduction: str = "mean") -> Tensor:
    """Pass spike times on unchanged; scale the error of each sample to unit L2 norm on its way back.

    Put it on a layer's output: `times = normalize_error(layer(times))`. A sample without error
    stays without. S4NN normalises in every layer and steps once per sample ("sum"); over
    mini-batches the sample errors are averaged ("mean").

    What comes in is forgotten, and with it every factor of the loss: `torch.amp.GradScaler` would divide
    gradients by a scale that they do not have, so leave it out, and where gradients are accumulated over k
    batches, divide them by k afterwards, not the losses.

    Args:
        times: [batch, *features].
        reduction: "mean" divides the unit errors by the batch size, "sum" does not.

    Raises:
        ValueError: an unknown reduction, times without a batch dimension.

    Source: Kheradpisheh & Masquelier 2020, in mini-batches as in Liu et al. 2021 (SSTDP).

    >>> import torch
    >>> t = torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> (normalize_error(t) * torch.tensor([3.0, 4.0])).sum().backward()
    >>> t.grad
    tensor([[0.6000, 0.8000]])
    """
    _checks.one_of("reduction", reduction, REDUCTIONS)
    if times.ndim < 2:
        raise ValueError(f"times must have shape [batch, *features], got {list(times.shape)}")
    return _NormalizeError.fit(times).apply(times, reduction)  # type: ignore[no-any-return]
