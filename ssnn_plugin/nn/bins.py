"""Train in bins, decide by events: a network on spike times, run over the bins of its window."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional.bins import Bins, NeuronsInBins, bins_to_times, latch, potential_at_crossing, times_to_bins
from ..kernels.precision import full_precision
from ..surrogate import Arctan, LatchGradient
from .connection import SpikeConnection
from .pool import EarliestSpikePool2d
from .rows import keep_up, runs_in_a_row

# Modules of torch that only change the shape of a sample.
SHAPING = nn.Flatten, nn.Unflatten, nn.Identity
NEURONLESS = *SHAPING, EarliestSpikePool2d
# What comes from there has bins that do what a call does.
KNOWN = "ssnn_plugin.", "torch."


class InBins(nn.Module):
    """A network of `IF` layers with a gradient in every bin: the same spikes, the same parameters.

    Call it to learn and the network itself to decide. On spike times the gradient of an `IF` neuron is
    read at its spike alone, and tells every input that came before it the same. Here each layer is a
    dense layer on all bins at once, which costs T times as much as a ReLU layer, and a neuron
    learns from every bin, silent or not. Use it where layers of `IF` neurons are to learn in depth.

    Under `torch.autocast` the hidden layers compute in half precision, the last one does not.

    Args:
        network: a `SpikeSequential`, or another module made of the layers of `ssnn_plugin.nn`.
        gradient: the rule for the step at the threshold; None is `surrogate.Arctan()`.

    Shape: times [batch, *] -> times, or (times, potential) with `return_potential=True`, as the network.
    Silent outputs are `inf`, and learn.

    Raises:
        TypeError: a layer that has no bins, such as one in continuous time.
        ValueError: windows that are no whole number of bins, times that are no whole bins.

    Source: the network as binary activations with shared weights, a threshold decomposition of its times.

    >>> import torch
    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear, SpikeSequential
    >>> network = SpikeSequential(SpikeLinear(4, 8, IF(), t_max=8), SpikeLinear(8, 2, IF(), t_max=8))
    >>> times = torch.tensor([[0.0, 2.0, 5.0, torch.inf]])
    >>> bool((InBins(network)(times) == network(times)).all())
    True
    """

    def __init__(self, network: nn.Module, gradient: LatchGradient | None = None) -> None:
        super().__init__()
        self.network = network
        self.gradient = Arctan() if gradient is None else gradient

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}"

    def forward(self, times: Tensor, return_potential: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Times [batch, *] -> times, or (times, potential).

        Raises:
            ValueError: times that need a gradient, which they would not get.
        """
        if times.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "times must need no gradient, which InBins does not hand back: put the layers that they come "
                "from into the network, or detach them"
            )
        outputs = self.layers(times)[-1]
        spikes = bins_to_times(outputs.activations)
        if not return_potential:
            return spikes
        if outputs.potentials is None or outputs.neuron is None:
            raise TypeError(f"return_potential=True needs a last layer with neurons, got {self.network!r}")
        delay = int(outputs.neuron.delay)
        return spikes, potential_at_crossing(outputs.potentials, outputs.activations, delay)

    def layers(self, times: Tensor) -> list[Bins]:
        """What the inputs and every module send on over the bins of the window."""
        modules = list(_in_a_row(self.network))
        windows = [m.t_max for m in self.network.modules() if isinstance(m, SpikeConnection)]
        if not windows:
            raise TypeError(f"network must hold a layer of neurons such as SpikeLinear, got {self.network!r}")
        keep_up(self.network)
        *_, last = (number for number, module in enumerate(modules) if not isinstance(module, NEURONLESS))
        for window in windows:
            _checks.whole_and_positive("t_max", window)
        outputs = [Bins(times_to_bins(times, int(max(windows))))]
        for number, module in enumerate(modules):
            inputs = outputs[-1]
            if number == last:
                inputs = Bins(inputs.activations.to(times.dtype))
            with full_precision(times.device) if number >= last else nullcontext():
                outputs.append(in_bins(module, inputs, self.gradient))
        return outputs


class EachBin(nn.Module):
    """A module of torch over the bins of a window, which lie in its batch axis: a connection in one call.

    Args:
        module: called with [T x batch, *], such as `nn.Conv2d`, `nn.Linear` or `nn.AvgPool2d`.

    Shape: activations [T, batch, *] -> what the module makes of them, [T, batch, *].
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, bins: Tensor) -> Tensor:
        """Activations, or what else changes from bin to bin, [T, batch, *] -> [T, batch, *]."""
        return _each_bin(self.module, bins)


class Latch(nn.Module):
    """Neurons that fire at most once, on potentials of every bin: `functional.latch` as a module.

    With `EachBin` it makes a network of torch's own layers, on activations instead of spike times; bins
    are the first axis.

    Args:
        threshold: V above it fires; a number (`functional.latch` takes tensors too).
        gradient: the rule for the step at the threshold; None is `surrogate.Arctan()`.

    Shape: potentials [T, batch, *] float -> activations [T, batch, *], 1 from the bin of the spike on.

    Raises:
        ValueError, TypeError: when called, as `functional.latch`.

    >>> import torch
    >>> from ssnn_plugin.functional import bins_to_times, times_to_bins
    >>> network = nn.Sequential(EachBin(nn.Linear(4, 8)), Latch(), EachBin(nn.Linear(8, 2)), Latch())
    >>> activations = times_to_bins(torch.tensor([[0.0, 2.0, 5.0, torch.inf]]), t_max=8)
    >>> bins_to_times(network(activations)).shape
    torch.Size([1, 2])
    """

    def __init__(self, threshold: float = 1.0, gradient: LatchGradient | None = None) -> None:
        super().__init__()
        self.threshold = threshold
        self.gradient = Arctan() if gradient is None else gradient

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, gradient={self.gradient!r}"

    def forward(self, potentials: Tensor) -> Tensor:
        """Potentials [T, batch, *] -> activations [T, batch, *]."""
        return latch(potentials, self.threshold, self.gradient)


def in_bins(module: nn.Module, inputs: Bins, gradient: LatchGradient) -> Bins:
    """Run a module over the bins of a window.

    A module of your own needs a method `in_bins(inputs, gradient)` that returns `functional.bins.Bins`.
    """
    if isinstance(module, nn.Sequential) and runs_in_a_row(module):
        for child in _in_a_row(module):
            inputs = in_bins(child, inputs, gradient)
        return inputs
    if isinstance(module, SHAPING):
        shape = partial(_each_bin, module)
        if isinstance(inputs, NeuronsInBins):
            return inputs.reshaped(shape)
        return Bins(shape(inputs.activations))
    run = getattr(module, "in_bins", None)
    if run is None:
        raise TypeError(
            f"{type(module).__name__} has no bins: use the layers and pools of ssnn_plugin.nn, or give it a "
            "method in_bins(inputs, gradient)"
        )
    _refuse_other_forwards(module)
    outputs: Bins = run(inputs, gradient)
    return outputs


def _refuse_other_forwards(module: nn.Module) -> None:
    """Refuse what a call of a module does besides, and its bins would not."""
    own = itertools.takewhile(lambda kind: not kind.__module__.startswith(KNOWN), type(module).__mro__)
    names = set(vars(module)).union(*map(vars, own))
    if "forward" in names and "in_bins" not in names:
        raise TypeError(f"{type(module).__name__} has a forward of its own: give it a method in_bins too")
    if _checks.has_forward_hooks(module):
        raise TypeError(
            f"{type(module).__name__} must have no hooks, as pruned weights have: bins would leave them out"
        )


def _each_bin(module: nn.Module, bins: Tensor) -> Tensor:
    outputs: Tensor = module(bins.flatten(0, 1))
    return outputs.reshape(*bins.shape[:2], *outputs.shape[1:])


def _in_a_row(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of nested sequences, in the order in which they run."""
    if isinstance(module, nn.Sequential) and runs_in_a_row(module):
        _refuse_other_forwards(module)
        keep_up(module)
        for child in module:
            yield from _in_a_row(child)
    else:
        yield module
