"""Layers on spike times without weights."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional import earliest_spike_pool2d
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

    def in_bins(self, activations: Tensor, gradient: LatchGradient | None = None) -> tuple[Tensor, None]:
        """Activations [T, batch, channels, H, W] -> [T, batch, channels, H', W'], and no potentials."""
        window = self.kernel_size, self.stride, self.padding
        pooled = nn.functional.max_pool2d(activations.flatten(0, 1), *window)
        return pooled.reshape(*activations.shape[:2], *pooled.shape[1:]), None


class SpikeFlatten(nn.Flatten):
    """Flatten the features of a sample: times [batch, *features] -> times [batch, all features].

    >>> import torch
    >>> SpikeFlatten()(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 48])
    """
