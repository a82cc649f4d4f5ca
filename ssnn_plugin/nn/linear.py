"""Fully connected layer of neurons that fire at most once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional import first_spike_linear
from ..functional.connection import GRADIENTS
from ..neurons import IF


class SpikeLinear(nn.Module):
    """Fully connected neurons that fire at most once: times [*, in] -> times [*, out].

    Args:
        in_features, out_features: as `torch.nn.Linear`; `weight` is [out, in].
        neuron: a description such as `IF(threshold=100.0, delay=1)`.
        t_max: length of the window in bins; a spike at `t_max` or later is silence (`inf`).
        gradient: the rule for dt/dV; "latency" is S4NN's dt/dV = -1.
        silent_gradient: whether silent neurons learn from a gradient that reaches them.
        bias: whether to learn a constant current, added to the potential in every bin.
        init_range: weights are drawn uniformly from it. None is (0, 40 threshold / in_features),
            with which a neuron fires after about 5 % of its inputs. The bias starts at 0.
        device, dtype: of the parameters; float32 or float64.

    Calling the layer with `return_potential=True` returns (times, potential), the potential being
    that at the crossing, or at the end of the window for a silent neuron.

    Raises:
        TypeError, ValueError: as `functional.first_spike_linear`; arguments out of range.

    >>> import torch
    >>> from ssnn_plugin import IF
    >>> layer = SpikeLinear(2, 1, IF(threshold=100.0, delay=1), t_max=256)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[60.0, 50.0]])})
    >>> layer(torch.tensor([[3.0, 7.0]]))
    tensor([[8.]], grad_fn=<ViewBackward0>)
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        neuron: IF,
        *,
        t_max: float,
        gradient: str = "latency",
        silent_gradient: bool = False,
        bias: bool = False,
        init_range: tuple[float, float] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.whole_and_positive("in_features", in_features)
        _checks.whole_and_positive("out_features", out_features)
        _checks.positive("t_max", t_max)
        _checks.one_of("gradient", gradient, GRADIENTS)
        if not isinstance(neuron, IF):
            raise TypeError(f"neuron must be an ssnn_plugin.IF, got {neuron!r}")
        self.in_features, self.out_features = in_features, out_features
        self.neuron, self.t_max = neuron, t_max
        self.gradient, self.silent_gradient = gradient, silent_gradient
        if init_range is not None and not init_range[0] <= init_range[1]:
            raise ValueError(f"init_range must be (low, high) with low <= high, got {init_range!r}")
        self.init_range = init_range or (0.0, 40 * neuron.threshold / in_features)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **factory))
        _checks.floating("dtype: the weight", self.weight)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, **factory)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew from `init_range` and set the bias to 0."""
        nn.init.uniform_(self.weight, *self.init_range)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, {self.neuron!r}, t_max={self.t_max}, "
            f"gradient={self.gradient!r}, silent_gradient={self.silent_gradient}, "
            f"bias={self.bias is not None}, init_range={self.init_range}"
        )

    def forward(self, times: Tensor, return_potential: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Times [*, in] -> times [*, out], or (times, potential)."""
        return first_spike_linear(
            times,
            self.weight,
            self.neuron,
            t_max=self.t_max,
            bias=self.bias,
            gradient=self.gradient,
            silent_gradient=self.silent_gradient,
            return_potential=return_potential,
        )
