"""Convolutional layer of neurons that fire at most once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional import first_spike_conv2d
from ..functional.bins import channels_last
from ..functional.connection import Size2d, check_padding, pair
from ..functional.pool import AveragePool, Convolution
from ..neurons import Neuron
from ..rules import Rule
from .connection import SpikeConnection


class SpikeConv2d(SpikeConnection):
    """Convolutional neurons that fire at most once: times [B, in, H, W] -> times [B, out, H', W'].

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: as `torch.nn.Conv2d`;
            `weight` is [out, in / groups, *kernel_size].
        padding: silent inputs around the border; a number, a pair, "same" or "valid".
        neuron, t_max, gradient, silent_gradient, bias, init_range, dropout: as `SpikeLinear`.
        input_pool, output_pool: an average pool of the spikes before the convolution, or of the
            currents after it; both are linear and so part of the connection.
        device, dtype: of the parameters; float32 or float64.

    Calling the layer with `return_potential=True` returns (times, potential).

    Raises:
        TypeError, ValueError: as `functional.first_spike_conv2d`; arguments out of range, an
            overlapping `input_pool` with padding.

    >>> import torch
    >>> from ssnn_plugin import IF
    >>> layer = SpikeConv2d(1, 4, 3, IF(1.0), t_max=16, padding=1, stride=2)
    >>> layer(torch.full((2, 1, 8, 8), torch.inf)).shape
    torch.Size([2, 4, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        neuron: Neuron,
        *,
        t_max: float,
        stride: Size2d = 1,
        padding: Size2d | str = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        gradient: str | Rule | None = None,
        silent_gradient: bool = False,
        bias: bool = False,
        init_range: tuple[float, float] | None = None,
        input_pool: AveragePool | None = None,
        output_pool: AveragePool | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _checks.whole_and_positive("in_channels", in_channels)
        _checks.whole_and_positive("out_channels", out_channels)
        _checks.whole_and_positive("groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups must divide {in_channels} and {out_channels} channels, got {groups}")
        size = pair("kernel_size", kernel_size, 1)
        super().__init__(
            (out_channels, in_channels // groups, *size),
            neuron,
            t_max=t_max,
            gradient=gradient,
            silent_gradient=silent_gradient,
            bias=bias,
            init_range=init_range,
            input_pool=input_pool,
            dropout=dropout,
            device=device,
            dtype=dtype,
        )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, tuple(size)
        self.stride = tuple(pair("stride", stride, 1))
        self.dilation = tuple(pair("dilation", dilation, 1))
        self.padding = padding if isinstance(padding, str) else tuple(pair("padding", padding, 0))
        self.groups, self.output_pool = groups, output_pool
        if isinstance(padding, str):
            check_padding(padding, list(self.stride))
        self._check_pools()

    def _check_pools(self) -> None:
        if self.input_pool is None and self.output_pool is None:
            return
        if isinstance(self.padding, str):
            raise ValueError(f"padding must be given in numbers with a pool, got {self.padding!r}")
        pool = self.input_pool
        if pool is None:
            return
        for kernel, step, edge in zip(*pool.window, self.padding, strict=True):
            if edge and kernel > step:
                raise ValueError(f"input_pool must not overlap with padding {self.padding}, got {pool}")

    def extra_repr(self) -> str:
        geometry = (
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}"
        )
        after = "" if self.output_pool is None else f", output_pool={self.output_pool}"
        shape = f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"
        return f"{shape}, {super().extra_repr()}, {geometry}{after}"

    def forward(self, times: Tensor, return_potential: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Times [B, in, H, W] -> times [B, out, H', W'], or (times, potential)."""
        _checks.not_exported_by_a_host(self)
        times, weight = self._drop(times)
        stride, dilation = list(self.stride), list(self.dilation)
        padding: Size2d | str = self.padding
        if not isinstance(self.padding, str):
            convolution = Convolution(weight, stride, list(self.padding), dilation)
            if self.output_pool is not None:
                convolution = convolution.before(self.output_pool)
            if self.input_pool is not None:
                times = self.input_pool.crop(times)
                convolution = convolution.after(self.input_pool)
            weight, stride, padding, dilation = convolution
        return first_spike_conv2d(
            times,
            weight,
            self.neuron,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=self.groups,
            return_potential=return_potential,
            **self._options(),
        )

    def _currents(self, inputs: Tensor) -> Tensor:
        inputs = channels_last(inputs)
        if self.input_pool is not None:
            inputs = nn.functional.avg_pool2d(inputs, *self.input_pool.window)
        currents = nn.functional.conv2d(
            inputs, self.weight, None, self.stride, self.padding, self.dilation, self.groups
        )
        if self.output_pool is not None:
            currents = nn.functional.avg_pool2d(currents, *self.output_pool.window)
        return currents
