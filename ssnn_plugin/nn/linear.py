"""Fully connected layer of neurons that fire at most once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional import first_spike_conv2d, first_spike_linear
from ..functional.pool import AveragePool, Convolution
from ..neurons import Neuron
from ..rules import Rule
from .connection import SpikeConnection


class SpikeLinear(SpikeConnection):
    """Fully connected neurons that fire at most once: times [*, in] -> times [*, out].

    Args:
        in_features, out_features: as `torch.nn.Linear`; `weight` is [out, in].
        neuron: a description such as `IF(threshold=100.0, delay=1)` or `ReLPSP()`. Its values per neuron
            become the layer's: `nn.Parameter`s its parameters, other tensors its buffers.
        t_max: length of the window; a spike at `t_max` or later is silence (`inf`).
        gradient: the rule for dt/dV, or its short name, as in `functional.first_spike_linear`; None for the
            neuron's own. The layer's `gradient` is the rule.
        silent_gradient: whether silent `IF` neurons learn from a gradient that reaches them.
        bias: whether to learn a bias: a constant current per bin for `IF`, else a spike at time 0.
        init_range: weights are drawn uniformly from it. None is (0, 40 threshold / in_features), for a
            threshold of 0 (0, 40 / in_features): a neuron fires after about 5 % of its inputs. The bias
            starts at 0.
        input_pool: an average pool in front of the weights; times are [batch, channels, height,
            width] then, and are flattened.
        dropout: in training, the probability that an input spike is dropped; the others count
            1 / (1 - dropout) times, as with `torch.nn.Dropout` on a spike train.
        device, dtype: of the parameters; float32 or float64.

    `weight` lies in memory as [in, out], as the kernels read it, and so do its gradient and the state of an
    optimiser. What takes flat views of it, as `torch.optim.LBFGS`, `parameters_to_vector` and unstructured
    pruning do, wants it the other way: `layer.weight.data = layer.weight.data.contiguous()`. The results
    are the same, and come later. Optimizers with `fused=True` take weight, gradient and state to lie alike
    without a look: turn the weights before their first step, and leave `.grad` to `backward`.

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

    def __init__(
        self,
        in_features: int,
        out_features: int,
        neuron: Neuron,
        *,
        t_max: float,
        gradient: str | Rule | None = None,
        silent_gradient: bool = False,
        bias: bool = False,
        init_range: tuple[float, float] | None = None,
        input_pool: AveragePool | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _checks.whole_and_positive("in_features", in_features)
        _checks.whole_and_positive("out_features", out_features)
        super().__init__(
            (out_features, in_features),
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
        self.in_features, self.out_features = in_features, out_features

    @staticmethod
    def _empty_weight(shape: tuple[int, ...], **factory: Any) -> Tensor:
        """Row by row of inputs, as the kernels read them: an input spike adds the weights of one row."""
        return torch.empty(shape[::-1], **factory).t()

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {super().extra_repr()}"

    def forward(self, times: Tensor, return_potential: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Times [*, in] -> times [*, out], or (times, potential)."""
        _checks.not_exported_by_a_host(self)
        times, weight = self._drop(times)
        if self.input_pool is not None:
            outputs = self._on_pooled(times, weight, self.input_pool)
            return outputs if return_potential else outputs[0]
        return first_spike_linear(
            times, weight, self.neuron, return_potential=return_potential, **self._options()
        )

    def _on_pooled(self, times: Tensor, weight: Tensor, pool: AveragePool) -> tuple[Tensor, Tensor]:
        """A linear layer behind a pool is a convolution that fits its input once."""
        size = pool.output_size(times)
        if times.shape[1] * size[0] * size[1] != self.in_features:
            raise ValueError(
                f"times must have {self.in_features} values per sample after {pool}, "
                f"got {list(times.shape)}, which is {times.shape[1]} x {size[0]} x {size[1]}"
            )
        kernels = weight.reshape(self.out_features, times.shape[1], *size)
        convolution = Convolution(kernels, [1, 1], [0, 0], [1, 1]).after(pool)
        spikes, potential = first_spike_conv2d(
            pool.crop(times), convolution.weight, self.neuron, return_potential=True, **self._options()
        )
        return spikes.flatten(1), potential.flatten(1)

    def _currents(self, inputs: Tensor) -> Tensor:
        if self.input_pool is not None:
            inputs = nn.functional.avg_pool2d(inputs, *self.input_pool.window).flatten(1)
        return nn.functional.linear(inputs, self.weight)
