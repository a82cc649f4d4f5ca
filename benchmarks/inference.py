"""Decisions of S4NN's MNIST network with an early stop, against a ReLU MLP of the same shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.mnist import EPOCH, T_MAX, Batch, Batches
from benchmarks.printing import cell, ratio
from benchmarks.step import RECIPES, dense_network, dense_step, spiking_network, spiking_step
from benchmarks.timing import Timing, alternate, in_turn
from ssnn_plugin.nn import SpikeSequential

MLP = "ReLU MLP"


def table(batches: Batches, test: Batch, pixels: Tensor, rounds: int, tell: Callable[[str], object]) -> Table:
    """Of fresh networks, and after an epoch of training; all images at once, and one by one.

    Args:
        test: the images that are decided; `pixels` are the same as 8-bit intensities.
        tell: called with how many spikes a recipe's network reads.
    """
    found = Table("recipe", "network", "run", "ms", "of the MLP's", title="10 000 test images; one image")
    for recipe in RECIPES:
        spiking, dense = spiking_network(recipe), dense_network()
        for stage in ("fresh", "after an epoch"):
            if stage != "fresh":
                alternate(spiking_step(recipe, spiking), dense_step(recipe, dense), batches(0, EPOCH))
            for title, timings in _time_inference(spiking, dense, test, pixels, rounds):
                for run, taken in timings.items():
                    told = cell(taken), ratio(taken, timings[MLP])
                    found.add_row(recipe.name, stage, f"{run}, {title}", *told)
        read = spiking.decide(test.times).spikes.double().mean(0).tolist()
        sent = (test.times < T_MAX).sum(1).double().mean().item()
        tell(f"{recipe.name}: reads {read[0]:.0f} of {sent:.0f} input spikes, {read[1]:.0f} hidden ones")
    return found


def _time_inference(
    spiking: SpikeSequential, dense: nn.Module, test: Batch, pixels: Tensor, rounds: int
) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Of all test images at once, and one after the other, each run the same ones."""

    def runs(size: int) -> dict[str, Callable[[], object]]:
        kinds: dict[str, tuple[Callable[[Tensor], object], Tensor]] = {
            MLP: (dense, test.images),
            "decide, times": (spiking.decide, test.times),
            "decide, 8-bit images": (spiking.decide, pixels),
            "layer by layer": (spiking, test.times),
        }
        return {name: _on_parts(decide, images, size) for name, (decide, images) in kinds.items()}

    with torch.no_grad():
        yield "all", in_turn(runs(len(pixels)), rounds, warm_up=2)
        single = runs(1)
        yield "one", in_turn(single, 10 * rounds, calls=dict.fromkeys(single, 20), warm_up=2)


def _on_parts(decide: Callable[[Tensor], object], images: Tensor, size: int) -> Callable[[], object]:
    """A call that takes the next images every time, so many at once."""
    parts = itertools.cycle(torch.split(images, size))
    return lambda: decide(next(parts))
