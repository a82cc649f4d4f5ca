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

from ..kernels.window import (
    accumulate,
    bins_alive,
    hold,
    single_spike_window,
    single_spike_window_grad,
)
from .connection import Size2d

Number: TypeAlias = "float | Tensor"


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
    """A spike where V exceeds the threshold for the first time: dS/dV = 1 there, 0 elsewhere."""

    generate_vmap_rule = True

    @staticmethod
    def forward(potential: Tensor, spent: Tensor, threshold: Number) -> Tensor:
        return ((potential > threshold) & ~spent).to(potential.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.threshold = _shape(inputs[2])
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = grads[0] * ctx.saved_tensors[0]
        grad_threshold = -grad.sum_to_size(ctx.threshold) if ctx.needs_input_grad[2] else None
        return grad, None, grad_threshold


def single_spike_step(
    current: Tensor,
    potential: Tensor | None = None,
    *,
    threshold: Number = 1.0,
    beta: Number = 1.0,
    spike_grad: Callable[[Tensor], Tensor] | None = None,
    quantize: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One bin of neurons that fire at most once: V <- beta V + I, a spike where V first exceeds threshold.

    Args:
        current: input of this bin [*], any floating dtype; whole numbers become the default one.
        potential: state [*]; None is zeros, the start of a window. Above threshold means fired.
        threshold, beta: numbers, or tensors that broadcast to [*]; they get a gradient if they ask for one.
            A threshold is at least 0; tensors are not looked at.
        spike_grad: a surrogate, called with V - threshold; it replaces the latency rule, and V is
            differentiated as it is computed. None is the latency rule.
        quantize: applied to the potential of neurons that have not fired.

    Returns:
        (spikes, potential), both [*] in the dtype of `current`. A NaN current silences a neuron and
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
        return _Fire.apply(v, spent, threshold), v
    return spike_grad(v - threshold).to(v.dtype) * ~spent, v


class _SequenceGrad(torch.autograd.Function):
    """The backward operator, in the form that `torch.func` takes; it has no derivative of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        grad, grad_start = single_spike_window_grad(*tensors)
        return grad, grad_start

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("the latency rule has no second derivative")


def _sequence_grad(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    # `torch.func` takes no registered operator in a backward, `torch.compile` no function with a rule.
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        grad, grad_start = single_spike_window_grad(*tensors)
    else:
        grad, grad_start = _SequenceGrad.apply(*tensors)
    return grad, grad_start


class _Sequence(torch.autograd.Function):
    """`_Integrate` and `_Fire` in every bin of a window."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        currents: Tensor, potential: Tensor, beta: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor]:
        spikes, potentials = single_spike_window(currents, potential, beta, threshold)
        return spikes, potentials

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, start, _, threshold = inputs
        ctx.save_for_backward(start, threshold, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        start, threshold, potentials = ctx.saved_tensors
        grad, grad_start = _sequence_grad(*grads, potentials, start, threshold)
        grad_beta = grad_threshold = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            before = torch.cat([start.unsqueeze(0), potentials[:-1]])
            at_spike = (potentials > threshold) & ~(before > threshold)
            grad_beta = (grad * before).sum(0)
            grad_threshold = -(grads[0] * at_spike).sum(0)
        return grad, grad_start, grad_beta, grad_threshold


def single_spike_sequence(
    currents: Tensor,
    potential: Tensor | None = None,
    *,
    threshold: Number = 1.0,
    beta: Number = 1.0,
    spike_grad: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`single_spike_step` in every bin of a window, without a loop over them.

    On the CPU it is one compiled pass; elsewhere, and with a surrogate, log2(T) passes over the window.

    Args:
        currents: [T, *].
        potential: state [*] before the first bin; None is zeros.
        threshold, beta, spike_grad: as for `single_spike_step`.

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
        spikes, potentials = _Sequence.apply(currents, start, *constants)
        return spikes, potentials
    free = accumulate(currents, start, beta)
    alive = bins_alive(free, start, threshold)
    # Not of the free potential: a surrogate may overflow far behind the spike, and its 0 * inf is NaN.
    potentials = hold(free, start, alive)
    return spike_grad(potentials - threshold).to(free.dtype) * alive, potentials


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
    seen = (pooled != 0).to(pooled.dtype).cummax(0).values
    if fired is not None:
        seen = torch.maximum(seen, fired)
    start = torch.zeros_like(seen[:1]) if fired is None else fired.unsqueeze(0)
    before = torch.cat([start, seen[:-1]])
    return pooled * (before == 0), seen.detach()


def floating(currents: Tensor) -> Tensor:
    """Whole numbers as floating ones: a leak would be truncated."""
    return currents if currents.is_floating_point() else currents.to(torch.get_default_dtype())


def within(value: Tensor, low: float, high: float) -> Tensor:
    """A parameter kept in its range; `clamp` alone would stop its gradient on the edges."""
    if not value.requires_grad:
        return value.clamp(low, high)
    return torch.where((value >= low) & (value <= high), value, value.clamp(low, high))


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
