"""What layers of neurons that fire at most once have in common."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import _checks
from ..functional import drop_spikes
from ..functional.bins import Bins, NeuronsInBins, going_on, integrate
from ..functional.connection import how_to_fire
from ..functional.pool import AveragePool
from ..kernels.precision import full_precision
from ..neurons import IF, Neuron
from ..neurons.base import Number
from ..rules import Rule, rule_of
from ..surrogate import LatchGradient


class SpikeConnection(nn.Module):
    """Weights, a bias if wanted, and the neuron behind them: the base of the layers on spike times."""

    bias: Tensor | None
    _neuron: Neuron

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        neuron: Neuron,
        *,
        t_max: float,
        gradient: str | Rule | None,
        silent_gradient: bool,
        bias: bool,
        init_range: tuple[float, float] | None,
        input_pool: AveragePool | None,
        dropout: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.gradient = how_to_fire(neuron, gradient, silent_gradient, t_max, bias).rule
        _checks.dropout("dropout", dropout)
        self.t_max, self.silent_gradient = t_max, silent_gradient
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self._take_over(neuron, **factory)
        self.input_pool, self.dropout = input_pool, dropout
        if init_range is not None and not init_range[0] <= init_range[1]:
            raise ValueError(f"init_range must be (low, high) with low <= high, got {init_range!r}")
        self.weight = nn.Parameter(self._empty_weight(weight_shape, **factory))
        _checks.floating("dtype: the weight", self.weight)
        inputs = self.weight[0].numel()
        threshold = _mean(neuron.threshold)
        self.init_range = init_range or (0.0, 40 * (threshold or 1.0) / inputs)
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(weight_shape[0], **factory)) if bias else None
        )
        self.reset_parameters()

    @property
    def neuron(self) -> Neuron:
        """What the layer's neurons are, with the values per neuron as they are now."""
        values = {name: getattr(self, name) for name in self._neuron.parameters}
        return replace(self._neuron, **values) if values else self._neuron  # type: ignore[type-var]

    def set_neuron(self, neuron: Neuron) -> None:
        """Give the layer other neurons; their values per neuron become its parameters or buffers."""
        self._take_over(neuron)

    def _take_over(
        self, neuron: Neuron, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        own = {"weight", "training", *inspect.signature(type(self).__init__).parameters}
        for name in neuron.parameters:
            if name in own or hasattr(type(self), name):
                raise ValueError(
                    f"{name} of {type(neuron).__name__} must have another name to hold a value per neuron: "
                    f"{type(self).__name__} has a {name} of its own"
                )
        for name in self._neuron.parameters if hasattr(self, "_neuron") else ():
            delattr(self, name)
        self._neuron = neuron
        for name, value in neuron.parameters.items():
            moved = value.detach().to(device=device, dtype=dtype)
            if not isinstance(value, nn.Parameter):
                self.register_buffer(name, moved.clone())
            elif moved.dtype == value.dtype and moved.device == value.device:
                self.register_parameter(name, value)
            else:
                self.register_parameter(name, nn.Parameter(moved, value.requires_grad))

    def reset_parameters(self) -> None:
        """Draw the weights anew from `init_range` and set the bias to 0."""
        # What is drawn does not depend on how the weights lie in memory.
        drawn = torch.empty_like(self.weight, memory_format=torch.contiguous_format)
        self.assign_weight(drawn.uniform_(*self.init_range))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def assign_weight(self, weight: Tensor) -> None:
        """Take these values as the weights, also where they are computed by a parametrization.

        Raises:
            ValueError: pruned weights, and such as a hook computes in another way.
        """
        if parametrize.is_parametrized(self, "weight"):
            self.weight = weight  # type: ignore[assignment]
        else:
            if "weight" not in self._parameters:
                _checks.plain_weights(self)
            self.weight.copy_(weight)

    @staticmethod
    def _empty_weight(shape: tuple[int, ...], **factory: Any) -> Tensor:
        """The weights as they lie in memory."""
        return torch.empty(shape, **factory)

    def _drop(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Input spikes and weights, in training after dropout: what is left counts for more."""
        if not (self.training and self.dropout):
            return times, self.weight
        return drop_spikes(times, self.dropout), self.weight / (1 - self.dropout)

    def in_bins(
        self, inputs: Bins, gradient: LatchGradient | None = None, shortcut: Tensor | None = None
    ) -> Bins:
        """Inputs over the bins of a window [T, batch, *in] -> spikes and potentials [t_max, batch, *out].

        Spikes are those of the layer on times, to the bin; the gradient is one in every bin, by the rule
        `gradient` of `functional.latch`. The window is that of the layer: of inputs that end before it,
        what they are at their end is kept.

        Args:
            shortcut: cumulative currents [T, batch, *out] that are added to those of the inputs.

        Raises:
            TypeError: neurons in continuous time. ValueError: a `t_max` that is no whole number of bins, a
                shortcut of another shape.
        """
        neuron = self.neuron
        if not isinstance(neuron, IF):
            raise TypeError(f"only IF neurons have bins, got {neuron!r}")
        if neuron.parameters:
            raise TypeError(f"neurons in bins share their threshold and leak, got {neuron!r}")
        _checks.whole_and_positive("t_max", self.t_max)
        window, bins = int(self.t_max), inputs.activations
        # No slice where there is nothing to cut: its backward pass copies.
        bins = bins[:window] if len(bins) > window else bins
        if self.training and self.dropout:
            bins = nn.functional.dropout(torch.ones_like(bins[0]), self.dropout) * bins
        rows, leaks = bins.flatten(0, 1), neuron.beta != 1
        # A leak takes differences of cumulative currents, of which half precision would leave few digits.
        with full_precision(bins.device) if leaks else nullcontext():
            currents = self._currents(rows.to(self.weight.dtype) if leaks else rows)
        currents = currents.reshape(*bins.shape[:2], *currents.shape[1:])
        if shortcut is not None:
            if shortcut.shape[1:] != currents.shape[1:]:
                raise ValueError(
                    f"shortcut must have shape [T, {', '.join(map(str, currents.shape[1:]))}], "
                    f"got {list(shortcut.shape)}"
                )
            shortcut = shortcut[:window]
            currents = going_on(currents, len(shortcut)) + going_on(shortcut, len(currents))
        bias = None if self.bias is None else self.bias.reshape(-1, *[1] * (self.weight.ndim - 2))
        return NeuronsInBins(integrate(currents, window, bias, float(neuron.beta)), neuron, gradient)

    def _currents(self, inputs: Tensor) -> Tensor:
        """The connection as a dense layer, [batch, *in] -> [batch, *out], without bias."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        return {
            "t_max": self.t_max,
            "bias": self.bias,
            "gradient": self.gradient,
            "silent_gradient": self.silent_gradient,
        }

    def extra_repr(self) -> str:
        rule = rule_of(self.gradient, self.neuron)
        options = [
            repr(self.neuron),
            f"t_max={self.t_max}",
            f"gradient={rule.name!r}" if str(rule) == rule.name else f"gradient={rule}",
            f"silent_gradient={self.silent_gradient}",
            f"bias={self.bias is not None}",
            f"init_range={self.init_range}",
        ]
        if self.input_pool is not None:
            options.append(f"input_pool={self.input_pool}")
        if self.dropout:
            options.append(f"dropout={self.dropout}")
        return ", ".join(options)


def _mean(threshold: Number) -> float:
    """Of a number what a tensor holds of it, also where tensors have no values."""
    if isinstance(threshold, Tensor):
        return float(threshold.detach().mean()) if _checks.has_values(threshold) else 1.0
    return float(torch.tensor(threshold, device="cpu"))
