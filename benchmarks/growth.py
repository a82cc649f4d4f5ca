"""How the cost of a layer, a decision, and a step's two passes grows with bins, spikes, neurons and batch.

Steps are without an optimiser's update, whose cost depends on the weights alone. Weights are random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from rich.table import Table
from torch import nn

from benchmarks.printing import cell, ratio
from benchmarks.timing import Timing, in_turn, tenth
from ssnn_plugin import IF
from ssnn_plugin.functional import normalize_error
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeLinear, SpikeSequential

INPUTS, CLASSES = 784, 10
RUNS = FORWARD, DECIDE, STEP, DENSE = (
    "layer, forward",
    "decision",
    "forward and backward",
    "ReLU MLP's",
)


@dataclass(frozen=True)
class Case:
    """784 inputs, of which a part spikes in random bins, a hidden layer and 10 outputs."""

    bins: int = 256
    spiking: float = 0.2
    neurons: int = 400
    batch: int = 128


#: what is varied, how it is called, and its values
AXES: dict[str, tuple[str, tuple[float, ...]]] = {
    "bins": ("bins T", (16, 64, 256, 1024, 4096, 16384, 65536)),
    "spiking": ("part of the inputs that spikes", (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)),
    "neurons": ("hidden neurons", (100, 200, 400, 1000, 2000, 4000)),
    "batch": ("samples in a batch", (1, 8, 32, 128, 512, 1024)),
}


# Cases with their timings, by what is varied.
Found = dict[str, list[tuple[Case, dict[str, Timing]]]]


def cases(axis: str) -> list[Case]:
    """The usual case with one thing varied."""
    varied: list[dict[str, Any]] = [{axis: value} for value in AXES[axis][1]]
    return [dataclasses.replace(Case(), **one) for one in varied]


def measure(case: Case, rounds: int) -> dict[str, Timing]:
    """Forward pass of the hidden layer, decision, forward and backward pass, and those of an MLP, in turn."""
    generator = torch.Generator().manual_seed(0)
    shape = case.batch, INPUTS
    # Whatever the number of bins, the same inputs spike in the same order.
    moments = torch.rand(shape, generator=generator)
    times = (moments * case.bins).floor()
    times = times.masked_fill(torch.rand(shape, generator=generator) >= case.spiking, torch.inf)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator)
    images = torch.rand(shape, generator=generator)
    network = _network(case)
    dense = nn.Sequential(nn.Linear(INPUTS, case.neurons), nn.ReLU(), nn.Linear(case.neurons, CLASSES))
    loss, dense_loss = RelativeTargetLoss(case.bins / 25, case.bins), nn.CrossEntropyLoss()

    def forward() -> None:
        with torch.no_grad():
            network[0](times)

    def step() -> None:
        network.zero_grad()
        outputs = network[1](normalize_error(network[0](times)))
        loss(normalize_error(outputs), labels).backward()

    def dense_step() -> None:
        dense.zero_grad()
        dense_loss(dense(images), labels).backward()

    runs = {FORWARD: forward, DECIDE: lambda: network.decide(times), STEP: step, DENSE: dense_step}
    several = max(1, 128 // case.batch)
    return in_turn(runs, rounds, calls=dict.fromkeys(runs, several))


def _network(case: Case) -> SpikeSequential:
    """Weights are the smaller the more spikes come, so that about as many neurons fire in all cases."""
    layers = (
        SpikeLinear(INPUTS, case.neurons, IF(delay=1), t_max=case.bins),
        SpikeLinear(case.neurons, CLASSES, IF(delay=1), t_max=case.bins, silent_gradient=True),
    )
    torch.manual_seed(0)
    few, wide = 0.2 / case.spiking, 400 / case.neurons
    nn.init.normal_(layers[0].weight, 0.01 * few, 0.05 * few**0.5)
    nn.init.normal_(layers[1].weight, 0.02 * wide, 0.05 * wide**0.5)
    return SpikeSequential(*layers)


def measured(axes: Iterable[str], rounds: int) -> Found:
    """All cases of each axis, with their timings."""
    return {axis: [(case, measure(case, rounds)) for case in cases(axis)] for axis in axes}


def table(found: Found) -> Table:
    """Milliseconds of each run, and how many times as long as the MLP's passes our own take."""
    rows = Table("", "", *(f"{name} (ms)" for name in RUNS), "forward and backward / MLP's")
    for axis, timed in found.items():
        for case, timings in timed:
            told = *(cell(timings[name]) for name in RUNS), ratio(timings[STEP], timings[DENSE])
            rows.add_row(AXES[axis][0], f"{getattr(case, axis):g}", *told)
    return rows


def draw(found: Found, path: Path) -> None:
    """Milliseconds of the thread, a tenth of the calls taking less, against what is varied."""
    size = 4 * len(found), 4
    figure, ((*all_axes,),) = plt.subplots(1, len(found), squeeze=False, figsize=size, layout="constrained")
    for axes, (axis, rows) in zip(all_axes, found.items(), strict=True):
        values = [getattr(case, axis) for case, _ in rows]
        for style, name in zip(("o-", "s--", "^-.", "x:"), RUNS, strict=True):
            axes.loglog(values, [1e3 * tenth(timings[name].cpu) for _, timings in rows], style, label=name)
        axes.set_xlabel(AXES[axis][0])
        axes.set_ylabel("ms")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)
    plt.close(figure)
