"""A convolutional network that learns in all bins at once, and as a snnTorch loop over the bins."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import snntorch as snn
import torch
from rich.table import Table
from snntorch import functional as snn_functional
from snntorch import surrogate as snn_surrogate
from snntorch import utils as snn_utils
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.mnist import BATCH
from benchmarks.printing import cell, ratio
from benchmarks.timing import Timing, in_turn
from reproductions.datasets import Images
from ssnn_plugin import IF, decode, encode
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import EarliestSpikePool2d, InBins, SpikeConv2d, SpikeFlatten, SpikeLinear, calibrate

T_MAX = 8
NAME = "16C5-P2-32C5-P2-300-10"
# Of the neurons of each layer, at first.
FIRING = 0.15

Step = Callable[[Tensor, Tensor], Tensor]


def network(times: Tensor) -> nn.Sequential:
    """16C5-P2-32C5-P2-300-10 on spike times, calibrated on images [batch, 784]."""
    layers = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        SpikeConv2d(1, 16, 5, IF(), t_max=T_MAX),
        EarliestSpikePool2d(2),
        SpikeConv2d(16, 32, 5, IF(), t_max=T_MAX),
        EarliestSpikePool2d(2),
        SpikeFlatten(),
        SpikeLinear(512, 300, IF(), t_max=T_MAX),
        SpikeLinear(300, 10, IF(), t_max=T_MAX),
    )
    for module in layers:
        if isinstance(module, SpikeConv2d | SpikeLinear):
            nn.init.normal_(module.weight, 0.2, 1.0)
    calibrate(layers, times, FIRING)
    return layers


def in_bins(layers: nn.Module, dtype: torch.dtype) -> Step:
    """A training step on spike times [batch, 784]."""
    learning = InBins(layers)
    loss_function = TemporalCrossEntropyLoss(T_MAX, 1 / T_MAX)
    return _step(learning, layers, loss_function, dtype)


def in_a_loop(layers: nn.Module, dtype: torch.dtype) -> Step:
    """The step of a model as snnTorch's tutorials write it, with the same weights.

    Its neurons integrate without reset and fire in every bin in which V is above the threshold, which
    is the least work that snnTorch has for them.
    """
    modules: list[nn.Module] = []
    for module in layers:  # type: ignore[attr-defined]
        modules += _of_the_host(module)
    model = nn.Sequential(*modules)

    def outputs(times: Tensor) -> Tensor:
        snn_utils.reset(model)
        return torch.stack([model(spikes) for spikes in decode.times_to_spikes(times, T_MAX)])

    return _step(outputs, model, snn_functional.ce_temporal_loss(), dtype)


def _of_the_host(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, EarliestSpikePool2d):
        return [nn.MaxPool2d(module.kernel_size)]
    if isinstance(module, SpikeConv2d):
        height, width = module.kernel_size
        dense: nn.Module = nn.Conv2d(module.in_channels, module.out_channels, (height, width), bias=False)
    elif isinstance(module, SpikeLinear):
        dense = nn.Linear(module.in_features, module.out_features, bias=False)
    else:
        return [module]
    dense.weight = nn.Parameter(module.weight.detach().clone())
    atan = snn_surrogate.atan()
    return [dense, snn.Leaky(beta=1.0, spike_grad=atan, reset_mechanism="none", init_hidden=True)]


def _step(
    outputs: Callable[[Tensor], Tensor],
    model: nn.Module,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    dtype: torch.dtype,
) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def step(times: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            predicted = outputs(times)
        loss = loss_function(predicted, labels)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


@dataclass(frozen=True)
class Contender:
    """A way to learn, and the precision of its dense products."""

    build: Callable[[nn.Module, torch.dtype], Step]
    dtype: torch.dtype

    def step(self, layers: nn.Module) -> Step:
        """A training step from the weights of `layers`."""
        return self.build(copy.deepcopy(layers), self.dtype)


CONTENDERS = {
    "snnTorch, Leaky, loop": Contender(in_a_loop, torch.float32),
    "snnTorch, Leaky, loop, bfloat16": Contender(in_a_loop, torch.bfloat16),
    "InBins": Contender(in_bins, torch.float32),
    "InBins, bfloat16": Contender(in_bins, torch.bfloat16),
}


def drawn(images: Images, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Spike times and labels of random batches, one more than steps that are counted."""
    times = encode.latency(images.x, T_MAX, x_max=images.x_max)
    index = torch.randperm(len(times))[: (steps + 1) * BATCH].reshape(-1, BATCH)
    return [(times[i], images.y[i]) for i in index]


def compare(batches: list[tuple[Tensor, Tensor]]) -> tuple[dict[str, Timing], dict[str, float]]:
    """Each contender's steps, in turn, after one that is not counted; and its peak in MiB."""
    layers = network(batches[0][0])
    steps = {name: _in_order(contender.step(layers), batches) for name, contender in CONTENDERS.items()}
    taken = in_turn(steps, len(batches) - 1)
    peaks = {
        name: memory.peak(functools.partial(contender.step, layers), *batches[0])
        for name, contender in CONTENDERS.items()
    }
    return taken, peaks


def _in_order(step: Step, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """A step on one batch after the other."""
    turn = iter(batches)
    return lambda: step(*next(turn))


def table(batches: list[tuple[Tensor, Tensor]]) -> Table:
    """Time and memory of each contender, how many times as fast as the loop it is, and what part it needs."""
    taken, peaks = compare(batches)
    base, *_ = taken
    heads = "ms", "times faster", "peak memory (MiB)", "of the loop's"
    found = Table(f"{NAME}, T = {T_MAX}, batch {len(batches[0][1])}", *heads)
    for name, one in taken.items():
        part = f"1/{peaks[base] / peaks[name]:.1f}"
        found.add_row(name, cell(one), ratio(taken[base], one), f"{peaks[name]:.0f}", part)
    return found
