"""Layers on spike times without weights."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional import earliest_spike_pool2d
from ..functional.bins import Bins, NeuronsInBins
from ..functional.connection import Size2d, pool_window
from ..surrogate import LatchGradient


class EarliestSpikePool2d(nn.Module):
    """The earliest spike of each window, as `functional.earliest_spike_pool2d`.

    Args:
        kernel_size, stride, padding: as `torch.nn.MaxPool2d`; padding is silent.

    Shape: times [batch, channels, H, W] -> times [batch, channels, H', W'].

    >>> import torch
    >>> EarliestSpikePool2d(2)(torch.tensor([[[[5.0, 2.0], [torch.inf, 9.0]]]]))
    tensor([[[[2.]]]])
    """

    def __init__(self, kernel_size: Size2d, stride: Size2d | None = None, padding: Size2d = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = pool_window(kernel_size, stride, padding)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"

    def forward(self, times: Tensor) -> Tensor:
        """Times [batch, channels, H, W] -> times [batch, channels, H', W']."""
        return earliest_spike_pool2d(times, self.kernel_size, self.stride, self.padding)

    def in_bins(self, inputs: Bins, gradient: LatchGradient | None = None) -> Bins:
        """Over the bins of a window, [T, batch, channels, H, W] -> [T, batch, channels, H', W'].

        The first neuron of a window fires when the highest of its potentials crosses the threshold. So
        potentials are pooled, and the gradient of a bin goes to the neuron that comes closest.
        """
        if isinstance(inputs, NeuronsInBins):
            return inputs.mapped(self._highest)
        return Bins(self._highest(inputs.activations))

    def _highest(self, values: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(values.flatten(0, 1), self.kernel_size, self.stride, self.padding)
        return pooled.reshape(*values.shape[:2], *pooled.shape[1:])


class SpikeFlatten(nn.Flatten):
    """Flatten the features of a sample: times [batch, *features] -> times [batch, all features].

    >>> import torch
    >>> SpikeFlatten()(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 48])
    """
