"""Residual blocks on spike times."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional import (
    add_shortcut_conv2d,
    add_shortcut_linear,
    earliest_spike,
    first_spike_conv2d,
    first_spike_linear,
)
from ..functional.bins import Bins, going_on
from ..surrogate import LatchGradient
from .bins import in_bins
from .connection import SpikeConnection
from .conv import SpikeConv2d
from .linear import SpikeLinear


class EarliestSpikeResidual(nn.Module):
    """A block and a shortcut past it: of the two spikes the earlier goes on, as `functional.earliest_spike`.

    The gradient goes to the one that went on; where they tie, or both are silent, to the block.

    Args:
        block: a module from times to times of the same shape.

    Shape: times [batch, *] -> times [batch, *].

    Raises:
        ValueError: a block that changes the shape.

    >>> import torch
    >>> from ssnn_plugin.nn import SpikeFlatten
    >>> EarliestSpikeResidual(SpikeFlatten())(torch.tensor([[3.0, torch.inf]]))
    tensor([[3., inf]])
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, times: Tensor) -> Tensor:
        """Times [batch, *] -> times [batch, *]."""
        spikes: Tensor = self.block(times)
        if spikes.shape != times.shape:
            raise ValueError(
                f"block must keep the shape of its input {list(times.shape)}, got {list(spikes.shape)}"
            )
        return earliest_spike(spikes, times)

    def in_bins(self, inputs: Bins, gradient: LatchGradient) -> Bins:
        """Over the bins of a window, [T, batch, *] -> [T, batch, *]: from the bin on of the earlier spike."""
        spikes, shortcut = in_bins(self.block, inputs, gradient).activations, inputs.activations
        return Bins(torch.maximum(going_on(spikes, len(shortcut)), going_on(shortcut, len(spikes))))


class AddedCurrentResidual(nn.Module):
    """A connection whose neurons get the spikes of a shortcut as further input current, one each.

    The same as the connection on inputs and shortcut together, with the identity times `gain` as the
    weights of the shortcut. Dropout leaves the shortcut alone. A gain above the threshold lets a
    shortcut's spike fire the neuron by itself.

    Args:
        connection: a `SpikeLinear`, or a `SpikeConv2d` of stride 1 that keeps height and width; without
            groups and pools.
        gain: weight of a shortcut spike.

    Shape: times as the connection takes them, shortcut of the shape of its output -> times, or
    (times, potential) with `return_potential=True`.

    Raises:
        TypeError, ValueError: another kind of connection, shapes that do not fit; in calls, a connection with
            a forward or hooks of its own, as pruned weights have, which the block does not run.

    >>> import torch
    >>> from ssnn_plugin import IF
    >>> layer = SpikeLinear(1, 1, IF(1.0), t_max=16)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[0.75]])})
    >>> block = AddedCurrentResidual(layer, gain=0.5)
    >>> block(torch.tensor([[3.0]]), torch.tensor([[5.0]])).tolist()  # 0.75, and 1.25 from bin 5 on
    [[5.0]]
    """

    def __init__(self, connection: SpikeConnection, gain: float = 1.0) -> None:
        super().__init__()
        _checks.positive("gain", gain)
        if not isinstance(connection, SpikeLinear | SpikeConv2d):
            raise TypeError(f"connection must be a SpikeLinear or SpikeConv2d, got {connection!r}")
        if connection.input_pool is not None or getattr(connection, "output_pool", None) is not None:
            raise ValueError(f"connection must be without pools, got {connection!r}")
        if isinstance(connection, SpikeConv2d) and (connection.groups != 1 or connection.stride != (1, 1)):
            raise ValueError(f"connection must have 1 group and a stride of 1, got {connection!r}")
        self.connection, self.gain = connection, gain

    def extra_repr(self) -> str:
        return f"gain={self.gain}"

    def forward(
        self, times: Tensor, shortcut: Tensor, return_potential: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Times and shortcut -> times, or (times, potential)."""
        layer = self.connection
        _refuse_what_is_not_run(layer)
        times, weight = layer._drop(times)
        if isinstance(layer, SpikeLinear):
            times, weight = add_shortcut_linear(times, weight, shortcut, self.gain)
            return first_spike_linear(
                times, weight, layer.neuron, return_potential=return_potential, **layer._options()
            )
        padding, dilation = layer.padding, layer.dilation
        times, weight = add_shortcut_conv2d(
            times, weight, shortcut, self.gain, padding=padding, dilation=dilation
        )
        return first_spike_conv2d(
            times,
            weight,
            layer.neuron,
            padding=padding,
            dilation=dilation,
            return_potential=return_potential,
            **layer._options(),
        )

    def in_bins(self, inputs: Bins, shortcut: Bins, gradient: LatchGradient) -> Bins:
        """Inputs and shortcut over the bins of a window [T, batch, *] -> spikes and potentials."""
        _refuse_what_is_not_run(self.connection)
        return self.connection.in_bins(inputs, gradient, shortcut=self.gain * shortcut.activations)


def _refuse_what_is_not_run(connection: SpikeConnection) -> None:
    changed = _checks.has_own_forward(connection, SpikeLinear, SpikeConv2d)
    if changed or _checks.has_forward_hooks(connection):
        raise TypeError(
            "connection must have no forward and no hooks of its own, as pruned weights have: the block adds "
            f"the shortcut without calling it, got {connection!r}"
        )
