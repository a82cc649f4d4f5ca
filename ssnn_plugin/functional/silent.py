"""What can be done about neurons that do not fire: costs on their weights, and raising those directly.

The weights are those of a linear [out, in] or a convolutional layer [out, in / groups, *kernel_size].
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import _checks
from ..neurons import Neuron, WindowedRamp

REDUCTIONS = ("sum", "mean")


class SilentNetworkWarning(UserWarning):
    """No neuron of a layer fired in a whole training batch, so that next to nothing can be learned."""


SILENT = """\
In training no neuron of a layer fired in a whole batch. Silent neurons pass no gradient on, so the network
may never learn. What helps:
- reset(net) before every window: a neuron that has fired does not fire again until it is reset;
- start from weights that let neurons fire: calibrate(model, trains) of ssnn_plugin.snntorch or .norse,
  ssnn_plugin.nn.calibrate on spike times; torch's default weights leave most neurons silent;
- let silent outputs learn: silent_gradient=True for the last neurons, or pass the loss their potential;
- leave out biases (bias=False): a bias is a current in every step;
- a smaller learning rate.
docs/training.md has the details. This is said once; warnings.simplefilter("ignore", SilentNetworkWarning)
turns it off."""


def warn_if_none(fired: Tensor) -> None:
    """Warn if no neuron fired, once: Python shows a warning of one text and place a single time.

    Args:
        fired: which neurons fired, any shape.
    """
    if not _checks.has_values(fired) or not fired.numel():
        return
    try:
        silent = not bool(fired.any())
    except RuntimeError:  # under vmap there is no value to look at
        return
    if silent:
        warnings.warn(SILENT, SilentNetworkWarning, stacklevel=1)


def weight_sum_cost(weight: Tensor, threshold: float | Tensor, *, reduction: str = "sum") -> Tensor:
    """What the neurons lack to fire once all their inputs have: sum_j max(0, threshold - sum_i w_ji).

    Scale it (Mostafa: by 100) and add it to the loss. A neuron of a convolution sees the whole kernel
    only away from the padding.

    Args:
        weight: [out, in] or [out, in / groups, *kernel_size].
        threshold: of the neurons, one number or one for each [out].
        reduction: "sum" over the neurons (Mostafa), or their "mean" (Zhou et al.).

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: a weight without inputs, arguments out of range.

    Source: Mostafa 2018, threshold 1; Zhou et al. 2021.

    >>> import torch
    >>> weight_sum_cost(torch.tensor([[0.5, 0.25], [2.0, 1.0], [-1.0, 0.5]]), 1.0)  # 0.25 + 0 + 1.5
    tensor(1.7500)
    """
    if isinstance(threshold, Tensor):
        _checks.positive("threshold", threshold)
    else:
        _checks.not_negative("threshold", threshold)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    _check_weight(weight)
    if isinstance(threshold, Tensor) and threshold.shape != weight.shape[:1]:
        raise ValueError(
            f"threshold must be a number, or have shape [{len(weight)}], got {list(threshold.shape)}"
        )
    lacking = (threshold - weight.flatten(1).sum(dim=1)).clamp(min=0)
    return lacking.sum() if reduction == "sum" else lacking.mean()


def no_spike_penalty(times: Tensor, weight: Tensor) -> Tensor:
    """A term whose gradient is -1 on every weight into a neuron, for each sample it is silent in.

    Averaged over the batch; scale it (Comsa: by 48.4) and add it to the loss. Only its gradient means
    something, its value does not. A channel of a convolution counts with the part of its neurons
    that is silent.

    Args:
        times: what the layer returned, [*, out] or [batch, out, height, width], `inf` = silent.
        weight: the layer's weight, [out, in] or [out, in / groups, *kernel_size].

    Returns:
        A scalar, differentiable with respect to `weight`.

    Raises:
        TypeError, ValueError: shapes that do not fit, NaN or negative times.

    Source: Comsa et al. 2020, no-spike penalty.

    >>> import torch
    >>> weight = torch.zeros(2, 3, requires_grad=True)
    >>> no_spike_penalty(torch.tensor([[4.0, torch.inf], [torch.inf, torch.inf]]), weight).backward()
    >>> weight.grad  # the first neuron is silent in one sample of two
    tensor([[-0.5000, -0.5000, -0.5000],
            [-1.0000, -1.0000, -1.0000]])
    """
    silent = _silent_neurons(times, weight).to(weight.dtype)
    # No product of matrices, which autocast would take in half precision.
    return -(silent.sum(dim=0) / max(1, len(silent)) * weight.flatten(1).sum(dim=1)).sum()


def overdue_times(times: Tensor, potential: Tensor, neuron: Neuron, t_max: float) -> Tensor:
    """When silent ramp neurons would have fired, had their window gone on: V rises with slope 1 in it.

    A loss on these times teaches silent outputs, which have no time of their own.

    Args:
        times, potential: what a layer of `WindowedRamp` returned, [*, out].
        neuron, t_max: of that layer.

    Returns:
        Finite times [*, out]: `t_max` + threshold - potential for a silent neuron.

    Raises:
        ValueError: another neuron, whose potential after the window is not known.

    Source: B1-model of Stanojevic et al. 2024, where V has slope 1 in its window.

    >>> import torch
    >>> from ssnn_plugin import WindowedRamp
    >>> times, potential = torch.tensor([2.0, torch.inf]), torch.tensor([3.0, 1.0])
    >>> overdue_times(times, potential, WindowedRamp(3.0, start=1.0), 4.0)
    tensor([2., 6.])
    """
    if not isinstance(neuron, WindowedRamp):
        raise ValueError(f"neuron must be a WindowedRamp, got {neuron!r}")
    _checks.positive("t_max", t_max)
    return torch.where(times.isfinite(), times, t_max + neuron.threshold - potential)


# Neurons that are silent after so many bumps have no input; the weights stay finite.
MOST_DOUBLINGS = 30


@dataclass
class Bump:
    """Raises the weights into silent neurons when a layer lacks too many spikes: Fast & Deep's bump.

    Call it with what the layer returned, after the backward pass. If more than a fraction of the
    layer's spikes is missing, every neuron that is silent in any sample (of a convolution: every
    channel with such a neuron) gets `size` on each of its weights, twice as much with every call in a
    row that does so, up to 2**30 times as much. Fast & Deep leaves the optimiser's step out then:

        if not any([bump(times, layer.weight) for bump, times, layer in ...]):
            optimizer.step()

    Args:
        missing: fraction of the (sample, neuron) pairs that may be silent; Fast & Deep takes 0.15 for
            the hidden layer and 0.05 for the output.
        size: the first bump.

    Raises:
        ValueError: arguments out of range.

    Source: Göltz et al. 2021 (Fast & Deep). How the bump meets a convolution is ours.

    >>> import torch
    >>> bump, weight = Bump(missing=0.15, size=0.5), torch.zeros(2, 2)
    >>> times = torch.tensor([[4.0, torch.inf]])
    >>> bump(times, weight), bump(times, weight), bump.repeats
    (True, True, 2)
    >>> weight  # 0.5, then 1
    tensor([[0.0000, 0.0000],
            [1.5000, 1.5000]])
    """

    missing: float = 0.15
    size: float = 5e-4
    repeats: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.missing <= 1:
            raise ValueError(f"missing must be a fraction in 0 ... 1, got {self.missing!r}")
        _checks.positive("size", self.size)

    @torch.no_grad()
    def __call__(self, times: Tensor, weight: Tensor) -> bool:
        """Raise `weight` in place if too many of `times` are silent; return whether that was so.

        Args:
            times: [*, out] or [batch, out, height, width], `inf` = silent.
            weight: [out, in] or [out, in / groups, *kernel_size], not computed from other tensors.

        Raises:
            TypeError, ValueError: shapes that do not fit, NaN or negative times, a computed weight.
        """
        if not weight.is_leaf:
            raise ValueError("weight must be a parameter, got a tensor that was computed from others")
        silent = _silent_neurons(times, weight)
        if int(silent.sum()) <= self.missing * silent.numel():
            self.repeats = 0
            return False
        weight[silent.any(dim=0)] += self.size * 2.0 ** min(self.repeats, MOST_DOUBLINGS)
        self.repeats += 1
        return True

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint has to hold."""
        return {"repeats": self.repeats}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state_dict()`."""
        self.repeats = state["repeats"]


def _check_weight(weight: Tensor) -> None:
    _checks.floating("weight", weight)
    if weight.ndim not in (2, 4):
        raise ValueError(
            f"weight must have shape [out, in] or [out, in / groups, *kernel_size], got {list(weight.shape)}"
        )


def _silent_neurons(times: Tensor, weight: Tensor) -> Tensor:
    """Who is silent, [samples, out]; every position of a channel counts as a sample."""
    _check_weight(weight)
    _checks.floating("times", times)
    neurons = -1 if weight.ndim == 2 else 1
    if times.ndim < 2 or (weight.ndim == 4 and times.ndim != 4) or times.shape[neurons] != len(weight):
        layout = "[*, out]" if weight.ndim == 2 else "[batch, out, height, width]"
        raise ValueError(
            f"times must have shape {layout} with out = {len(weight)} for the weight, got {list(times.shape)}"
        )
    _checks.spike_times("times", times)
    return times.isinf().movedim(neurons, -1).flatten(0, -2)
