"""Layers that compute their currents in every bin: for what has no form on spike times, exact but slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from ..decode import first_spikes, times_to_spikes
from ..functional import single_spike_sequence

Constants = Callable[[nn.Module], tuple[Tensor | float, Tensor | float]]
Response = Callable[[nn.Module, int, Tensor], tuple[Tensor, Tensor | float]]


class Currents(nn.Module):
    """What reaches a layer in each bin: spike times, or values that stay -> currents [T, batch, *].

    Args:
        function: from the inputs of one bin to the currents of one bin; it has no state.
        constant: for each input, whether it is the same in every bin instead of spike times.
        t_max: number of bins.
    """

    def __init__(self, function: nn.Module, constant: Sequence[bool], t_max: int) -> None:
        super().__init__()
        self.function, self.constant, self.t_max = function, tuple(constant), t_max

    def extra_repr(self) -> str:
        return f"constant={self.constant}, t_max={self.t_max}"

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs [batch, *] -> currents [T, batch, *]."""
        for name, module in self.function.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                raise ValueError(
                    f"{name} ({type(module).__name__}) mixes the samples of a step in training. Call eval(), "
                    "or ssnn_plugin.fold_batchnorm(model) before the conversion"
                )
        if all(self.constant):
            if self._draws():
                return torch.stack([self.function(*inputs) for _ in range(self.t_max)])
            current: Tensor = self.function(*inputs)
            return current.expand(self.t_max, *current.shape)
        given = [
            x if constant else times_to_spikes(x, self.t_max)
            for x, constant in zip(inputs, self.constant, strict=True)
        ]
        along = tuple(None if constant else 0 for constant in self.constant)
        currents: Tensor = torch.func.vmap(self.function.forward, along, randomness="different")(*given)
        return currents

    def _draws(self) -> bool:
        """Whether currents differ from bin to bin by chance."""
        dropouts = (one for one in self.function.modules() if isinstance(one, nn.modules.dropout._DropoutNd))
        return any(one.training and one.p for one in dropouts)


class BinwiseLayer(nn.Module):
    """Neurons that fire at most once, run over the bins of the window: times -> times.

    For layers that have no form on spike times: thresholds or leaks that are learned or differ between
    neurons, pooled or otherwise computed currents, the same values in every step. Spike times and
    gradients are those of a loop over steps; so is the cost.

    Args:
        currents: what drives the neurons.
        neuron: module of a host whose threshold and leak they have; shared, not copied.
        constants: reads (threshold, beta) from it.
        silent_gradient: whether silent neurons learn from a gradient that reaches them.

    Shape: times [batch, *] for each input of `currents` -> times [batch, *], or (times, potential) with
    `return_potential=True`.
    """

    def __init__(
        self, currents: Currents, neuron: nn.Module, constants: Constants, *, silent_gradient: bool = False
    ) -> None:
        super().__init__()
        self.currents, self.neuron, self.constants = currents, neuron, constants
        self.t_max, self.silent_gradient = currents.t_max, silent_gradient

    def extra_repr(self) -> str:
        return f"t_max={self.t_max}, silent_gradient={self.silent_gradient}"

    def forward(self, *times: Tensor, return_potential: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Times, or values -> times, or (times, potential)."""
        threshold, beta = self.constants(self.neuron)
        spikes, potentials = single_spike_sequence(self.currents(*times), threshold=threshold, beta=beta)
        outputs = first_spikes(spikes, potentials[-1] if self.silent_gradient else None)
        return (outputs, potentials[-1]) if return_potential else outputs


class SpikeReadout(nn.Module):
    """Values that are read behind the last neurons: a weighted sum of their spikes, or a leaky one.

    A read-out is linear: a spike adds its weight times the response at its age. Without a response it
    adds its weight in its own bin alone, which is what `Linear` does to a spike train.

    Args:
        currents: the weights.
        membrane: module of a host that integrates them; None for the weighted spikes themselves.
        response: gives its response to a current 0, 1, ... bins ago, and its value without any.
        last_bin: whether to return the value of the last bin alone. For a `Linear` layer this is a
            closed form of the spike times, without a loop over bins.

    Shape: times [batch, *] -> values [T, batch, *], or [batch, *] with `last_bin`.
    """

    def __init__(
        self,
        currents: Currents,
        membrane: nn.Module | None = None,
        response: Response | None = None,
        *,
        last_bin: bool = False,
    ) -> None:
        super().__init__()
        self.currents, self.membrane, self.response = currents, membrane, response
        self.last_bin, self.t_max = last_bin, currents.t_max
        self.only_weights = _calls_one_module(currents.function)

    def extra_repr(self) -> str:
        return f"last_bin={self.last_bin}"

    def forward(self, *times: Tensor) -> Tensor:
        """Times -> values."""
        linear = self._linear()
        if self.last_bin and linear is not None:
            return self._closed_form(times[0], linear)
        currents: Tensor = self.currents(*times)
        if self.response is None or self.membrane is None:
            return currents[-1] if self.last_bin else currents
        response, rest = self.response(self.membrane, self.t_max, currents)
        if self.last_bin:
            total: Tensor = (_along(response.flip(0), currents) * currents).sum(0)
            return total + rest
        return _integrate(currents, response) + rest

    def _linear(self) -> nn.Linear | None:
        """The weights, if they are a Linear on spike times and nothing else is computed."""
        if not self.only_weights or self.currents.constant != (False,):
            return None
        (module,) = self.currents.function.children()
        # torch prunes weights, and normalises them, in a hook.
        if type(module) is not nn.Linear or _checks.has_forward_hooks(module):
            return None
        return module

    def _closed_form(self, times: Tensor, linear: nn.Linear) -> Tensor:
        rest: Tensor | float = 0.0
        if self.response is None or self.membrane is None:
            response = (torch.arange(self.t_max, device=times.device) == 0).to(times.dtype)
        else:
            response, rest = self.response(self.membrane, self.t_max, times.new_empty(()))
        if response.ndim > 1 and response[0].numel() > 1:
            spikes = times_to_spikes(times, self.t_max)
            total: Tensor = (_along(response.flip(0), spikes) * linear(spikes)).sum(0)
            return total + rest
        response = response.reshape(self.t_max)
        values = nn.functional.linear(_weigh(times, response), linear.weight)
        if linear.bias is not None:
            values = values + linear.bias * response.sum()
        return values + rest


def _calls_one_module(function: nn.Module) -> bool:
    """Whether a function is one of its modules, and computes nothing besides."""
    if not isinstance(function, torch.fx.GraphModule):
        return type(function) is nn.Sequential and len(function) == 1
    steps = [node.op for node in function.graph.nodes if node.op not in ("placeholder", "output")]
    return steps == ["call_module"]


def _weigh(times: Tensor, response: Tensor) -> Tensor:
    """What is left at the end of a spike of weight 1 at each time; its gradient is that of the spike."""
    last = len(response) - 1
    age = last - times.detach().floor()
    heard = (age >= 0) & (age <= last)
    left = response[age.clamp(0, last).nan_to_num(0).long()] * heard
    finite = torch.where(heard, times, torch.zeros_like(times))
    # dL/dt = -dL/dS of the spike's own bin, as `times_to_spikes` hands it back.
    handed_back: Tensor = left.detach() * (finite - finite.detach())
    return left - handed_back


def _along(response: Tensor, like: Tensor) -> Tensor:
    return response.reshape(len(response), *[1] * (like.ndim - response.ndim), *response.shape[1:])


def _integrate(currents: Tensor, response: Tensor) -> Tensor:
    """The sum of the currents up to each bin, each weighted by the response at its age."""
    bins = torch.arange(len(currents), device=currents.device)
    age = bins.unsqueeze(1) - bins.unsqueeze(0)
    table = response[age.clamp(min=0)]
    table = table * (age >= 0).reshape(*age.shape, *[1] * (table.ndim - 2))
    if table[0, 0].numel() == 1:
        summed: Tensor = torch.tensordot(table.reshape(age.shape), currents, 1)
    else:
        summed = torch.einsum("nb...,bz...->nz...", table, currents)
    return summed
