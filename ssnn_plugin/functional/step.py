"""The single-spike neuron on currents, bin by bin or a whole window at once.

The state is the potential alone: a neuron has fired exactly if its potential is above threshold,
where it stays. After the window the state thus is what layers on spike times return as their
potential: that at the crossing, or at the end of the window for a silent neuron.

Under the latency rule (dt/dV = -1, Kheradpisheh & Masquelier 2020) a spike is differentiated in
the bin in which it fires, dS/dV = 1, and every current up to that bin counts as +1 in V, whatever
its age. See docs/three-modes.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._autograd import call_once
from ..kernels.precision import under_autocast
from ..kernels.window import (
    accumulate,
    bins_alive,
    hold,
    plain_window,
    single_spike_window,
    single_spike_window_grad,
)
from ..surrogate import LatchGradient
from .bins import delayed, latch
from .connection import Size2d

Number: TypeAlias = "float | Tensor"

NEEDS_A_WINDOW = "it learns from all steps of a window at once. Take the window form (sequence=True)"


class _Integrate(torch.autograd.Function):
    """V <- beta V + I for a neuron that has not fired; every current counts as +1, whatever its age."""

    generate_vmap_rule = True

    @staticmethod
    def forward(current: Tensor, potential: Tensor, beta: Number, threshold: Number) -> Tensor:
        return torch.where(potential > threshold, potential, beta * potential + current)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, potential, beta, threshold = inputs
        ctx.beta = _shape(beta)
        ctx.save_for_backward(potential, potential > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        potential, spent = ctx.saved_tensors
        counted = grads[0].masked_fill(spent, 0)
        grad_beta = (counted * potential).sum_to_size(ctx.beta) if ctx.needs_input_grad[2] else None
        return counted, grads[0], grad_beta, None


class _Fire(torch.autograd.Function):
    """A spike where V exceeds the threshold for the first time: dS/dV = 1 there, 0 elsewhere.

    With `silent_gradient` dS/dV is 1 before that bin too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(potential: Tensor, spent: Tensor, threshold: Number, silent_gradient: bool) -> Tensor:
        return ((potential > threshold) & ~spent).to(potential.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        potential, spent, threshold, silent_gradient = inputs
        ctx.threshold = _shape(threshold)
        ctx.save_for_backward(~spent if silent_gradient else (potential > threshold) & ~spent)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = grads[0] * ctx.saved_tensors[0]
        grad_threshold = -grad.sum_to_size(ctx.threshold) if ctx.needs_input_grad[2] else None
        return grad, None, grad_threshold, None


def single_spike_step(
    current: Tensor,
    potential: Tensor | None = None,
    *,
    threshold: Number = 1.0,
    beta: Number = 1.0,
    spike_grad: Callable[[Tensor], Tensor] | None = None,
    quantize: Callable[[Tensor], Tensor] | None = None,
    silent_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """One bin of neurons that fire at most once: V <- beta V + I, a spike where V first exceeds threshold.

    Args:
        current: input of this bin [*], any floating dtype; whole numbers become the default one, and
            half precision becomes float32 under autocast.
        potential: state [*]; None is zeros, the start of a window. Above threshold means fired.
        threshold, beta: numbers, or tensors that broadcast to [*]; they get a gradient if they ask for one.
            A threshold is at least 0; tensors are not looked at.
        spike_grad: a surrogate, called with V - threshold; it replaces the latency rule, and V is
            differentiated as it is computed. None is the latency rule.
        quantize: applied to the potential of neurons that have not fired.
        silent_gradient: whether the latency rule also reads the gradient of a spike that did not come, in
            the bins before a neuron fires. It is for outputs: losses on first spikes hand what they
            want of a silent neuron to its last bin, and nothing to other bins without a spike.

    Returns:
        (spikes, potential), both [*] in that dtype. A NaN current silences a neuron and
        stays in its potential.

    Raises:
        ValueError: a negative threshold, a beta outside 0 ... 1.

    >>> import torch
    >>> potential = torch.zeros(2)
    >>> for current in torch.tensor([[0.6, 0.2], [0.6, 0.2], [0.6, 0.2]]):
    ...     spikes, potential = single_spike_step(current, potential)
    ...     print(spikes, potential)
    tensor([0., 0.]) tensor([0.6000, 0.2000])
    tensor([1., 0.]) tensor([1.2000, 0.4000])
    tensor([0., 0.]) tensor([1.2000, 0.6000])
    """
    _check_numbers(threshold, beta)
    if isinstance(spike_grad, LatchGradient):
        raise TypeError(f"spike_grad must be a surrogate of one step, got {spike_grad!r}: {NEEDS_A_WINDOW}")
    current = floating(current)
    threshold, beta = _like(threshold, current), _like(beta, current)
    potential = torch.zeros_like(current) if potential is None else potential.to(current.dtype)
    spent = potential > threshold
    if spike_grad is None:
        v = _Integrate.apply(current, potential, beta, threshold)
    else:
        v = torch.where(spent, potential, beta * potential + current)
    if quantize is not None:
        v = torch.where(spent, v, quantize(v).to(v.dtype))
    if spike_grad is None:
        return _Fire.apply(v, spent, threshold, silent_gradient), v
    return spike_grad(v - threshold).to(v.dtype) * ~spent, v


class _Sequence(torch.autograd.Function):
    """`_Integrate` and `_Fire` in every bin of a window."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        currents: Tensor, potential: Tensor, beta: Tensor, threshold: Tensor, silent_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        # ONNX has no operator of ours.
        window = plain_window if torch.onnx.is_in_onnx_export() else single_spike_window
        spikes, potentials = window(currents, potential, beta, threshold)
        return spikes, potentials

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, start, _, threshold, ctx.silent_gradient = inputs
        ctx.save_for_backward(start, threshold, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        start, threshold, potentials = ctx.saved_tensors
        of_spikes, of_potentials = grads
        if ctx.silent_gradient:
            of_potentials = of_potentials + of_spikes.masked_fill(potentials > threshold, 0)
        grad, grad_start = call_once(
            single_spike_window_grad, of_spikes, of_potentials, potentials, start, threshold,
            what="the latency rule",
        )  # fmt: skip
        grad_beta = grad_threshold = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            before = torch.cat([start.unsqueeze(0), potentials[:-1]])
            alive = ~(before > threshold)
            read = alive if ctx.silent_gradient else alive & (potentials > threshold)
            grad_beta = (grad * before).sum(0)
            grad_threshold = -(of_spikes * read).sum(0)
        return grad, grad_start, grad_beta, grad_threshold, None


def single_spike_sequence(
    currents: Tensor,
    potential: Tensor | None = None,
    *,
    threshold: Number = 1.0,
    beta: Number = 1.0,
    spike_grad: Callable[[Tensor], Tensor] | LatchGradient | None = None,
    silent_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """`single_spike_step` in every bin of a window, without a loop over them.

    On the CPU it is one compiled pass; elsewhere, and with a surrogate, log2(T) passes over the window.
    With a rule of `ssnn_plugin.surrogate` a neuron learns from every bin of the window, silent or not.

    Args:
        currents: [T, *].
        potential: state [*] before the first bin; None is zeros.
        threshold, beta, spike_grad, silent_gradient: as for `single_spike_step`; `spike_grad` also a rule of
            `ssnn_plugin.surrogate`, by which silent neurons learn anyhow.

    Returns:
        (spikes, potentials), both [T, *]; `potentials[-1]` is the state after the window.

    Raises:
        ValueError: no time axis, or no bins; as `single_spike_step`.

    >>> import torch
    >>> spikes, potentials = single_spike_sequence(torch.tensor([[0.6], [0.6], [0.6]]))
    >>> spikes.squeeze(1), potentials.squeeze(1)
    (tensor([0., 1., 0.]), tensor([0.6000, 1.2000, 1.2000]))
    """
    if currents.ndim == 0 or currents.shape[0] == 0:
        raise ValueError(f"currents must have shape [T >= 1, *], got {list(currents.shape)}")
    _check_numbers(threshold, beta)
    currents = floating(currents)
    threshold, beta = _like(threshold, currents), _like(beta, currents)
    start = torch.zeros_like(currents[0])
    if potential is not None:
        start = potential.to(currents.dtype).expand_as(start)
    if spike_grad is None:
        constants = (
            torch.as_tensor(value, dtype=start.dtype, device=start.device).expand_as(start)
            for value in (beta, threshold)
        )
        spikes, potentials = _Sequence.apply(currents, start, *constants, silent_gradient)
        return spikes, potentials
    if isinstance(spike_grad, LatchGradient):
        return _latched(currents, start, threshold, beta, spike_grad)
    free = accumulate(currents, start, beta)
    alive = bins_alive(free, start, threshold)
    # Not of the free potential: a surrogate may overflow far behind the spike, and its 0 * inf is NaN.
    potentials = hold(free, start, alive)
    return spike_grad(potentials - threshold).to(free.dtype) * alive, potentials


def _latched(
    currents: Tensor, start: Tensor, threshold: Number, beta: Number, gradient: LatchGradient
) -> tuple[Tensor, Tensor]:
    """A window in which V of every bin counts: a spike is where the activation of `latch` turns to 1."""
    if isinstance(beta, Tensor) or beta != 1:
        free = accumulate(currents, start, beta)
    else:
        free = start + currents.cumsum(0)
    activations = latch(free, threshold, gradient)
    before = delayed(activations, 1)
    unspent = ~(start > threshold)
    return (activations - before) * unspent, hold(free, start, (before == 0) & unspent)


def first_spike_pool2d_step(
    spikes: Tensor,
    fired: Tensor | None,
    kernel_size: Size2d,
    stride: Size2d | None = None,
    padding: Size2d = 0,
) -> tuple[Tensor, Tensor]:
    """One bin of `earliest_spike_pool2d` on spike trains: a window fires with its first spike, once.

    Args:
        spikes: [batch, channels, height, width], 0 for no spike.
        fired: state [batch, channels, height_out, width_out], 1 for a window that has fired; None at
            the start.
        kernel_size, stride, padding: as `torch.nn.functional.max_pool2d`.

    Returns:
        (spikes, fired), both [batch, channels, height_out, width_out].

    >>> import torch
    >>> fired = None
    >>> for spikes in torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]):
    ...     pooled, fired = first_spike_pool2d_step(spikes.reshape(1, 1, 2, 2), fired, 2)
    ...     print(pooled.item(), fired.item())
    1.0 1.0
    0.0 1.0
    """
    pooled = torch.nn.functional.max_pool2d(spikes, kernel_size, stride, padding)
    fired = torch.zeros_like(pooled) if fired is None else fired
    first = pooled * (fired == 0)
    return first, torch.maximum(fired, (first != 0).to(fired.dtype)).detach()


def first_spike_pool2d_sequence(
    spikes: Tensor,
    fired: Tensor | None,
    kernel_size: Size2d,
    stride: Size2d | None = None,
    padding: Size2d = 0,
) -> tuple[Tensor, Tensor]:
    """`first_spike_pool2d_step` in every bin of a window, without a loop over them.

    Args:
        spikes: [T, batch, channels, height, width].
        fired: state before the first bin, or None.
        kernel_size, stride, padding: as `torch.nn.functional.max_pool2d`.

    Returns:
        (spikes [T, *], fired [T, *]); `fired[-1]` is the state after the window.
    """
    flat = torch.nn.functional.max_pool2d(spikes.flatten(0, 1), kernel_size, stride, padding)
    pooled = flat.reshape(*spikes.shape[:2], *flat.shape[1:])
    seen = (pooled != 0).cumsum(0).clamp(max=1).to(pooled.dtype)
    if fired is not None:
        seen = torch.maximum(seen, fired)
    start = torch.zeros_like(seen[:1]) if fired is None else fired.unsqueeze(0)
    before = torch.cat([start, seen[:-1]])
    return pooled * (before == 0), seen.detach()


def floating(currents: Tensor) -> Tensor:
    """Currents in the dtype that neurons add them up in.

    Whole numbers become floating ones: a leak would be truncated. Under autocast half precision becomes
    float32: it is meant for products, and a sum of many small currents would stand still in it.
    """
    if not currents.is_floating_point():
        return currents.to(torch.get_default_dtype())
    return currents.float() if currents.itemsize < 4 and under_autocast(currents.device) else currents


def within(value: Tensor, low: float, high: float | None) -> Tensor:
    """A parameter kept in its range; `clamp` alone would stop its gradient on the edges."""
    clamped = value.clamp(low, high)
    return torch.where(value == clamped, value, clamped) if value.requires_grad else clamped


def _check_numbers(threshold: Number, beta: Number) -> None:
    if not isinstance(threshold, Tensor) and not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold!r}")
    if not isinstance(beta, Tensor) and not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in 0 ... 1, got {beta!r}")


def _like(value: Number, like: Tensor) -> Number:
    """A tensor in the dtype and on the device of the input, so that it promotes nothing."""
    return value.to(like.device, like.dtype) if isinstance(value, Tensor) else value


def _shape(value: Number) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None
