"""Rate-based back-propagation against back-propagation through time: time and memory of a step against T."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from rich.table import Table
from torch import Tensor

from benchmarks import memory
from benchmarks.printing import cell, ratio
from benchmarks.timing import Timing, in_turn
from reproductions import catalog, methods
from reproductions.methods.multi_spike import MultiSpike

SHAPE, CLASSES = (1, 28, 28), 10
#: how a gradient is called in a config, and here
GRADIENTS = {"rate": "rate-based", "through-time": "through time"}


@dataclass(frozen=True)
class Row:
    """Of one number of steps; cosines are between the gradients of both, by layer of weights."""

    steps: int
    timings: Mapping[str, Timing]
    peaks: Mapping[str, float]
    cosines: Sequence[float]


def measure(steps: int, samples: int, rounds: int, compiled: bool = False) -> Row:
    """Both on the suite's network for MNIST, with the same weights, on random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(samples, 784, generator=generator)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    learners = {name: Learner(gradient, steps, compiled) for gradient, name in GRADIENTS.items()}
    timings = in_turn(
        {name: functools.partial(one, images, labels) for name, one in learners.items()}, rounds
    )
    peaks = {
        name: memory.peak(functools.partial(Learner, gradient, steps, compiled), images, labels)
        for gradient, name in GRADIENTS.items()
    }
    return Row(steps, timings, peaks, cosines(steps, images, labels))


class Learner:
    """A training step of one of the two, called with images [batch, 784] and labels."""

    def __init__(self, gradient: str, steps: int, compiled: bool = False) -> None:
        self.method = build(gradient, steps, compiled)
        self.method.network.train()

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        self.method._step(images, labels)


def build(gradient: str, steps: int, compiled: bool = False) -> MultiSpike:
    """The suite's method with another number of steps, in single precision."""
    content: dict[str, Any] = catalog.find("rate-backprop", "mnist").model_dump(mode="json")
    content["network"]["t_max"] = steps
    content["training"] |= {"gradient": gradient, "compiled": compiled, "precision": "float32"}
    method = methods.build(catalog.validated(content, "benchmark"), SHAPE, CLASSES, 0, "cpu")
    assert isinstance(method, MultiSpike)
    return method


def cosines(steps: int, images: Tensor, labels: Tensor) -> list[float]:
    """Of the angle between the two gradients of every layer's weights."""
    gradients = []
    for gradient in GRADIENTS:
        method = build(gradient, steps)
        method.network.train()
        loss = method.criterion(method.learn(images)[1], labels)
        weights = [value for name, value in method.network.named_parameters() if value.ndim > 1]
        gradients.append([g.flatten() for g in torch.autograd.grad(loss, weights)])
    return [torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(*gradients, strict=True)]


def table(rows: Sequence[Row], samples: int) -> Table:
    """Time, memory and cosines of each number of steps."""
    names = list(GRADIENTS.values())
    heads = *(f"{name} (ms)" for name in names), "ratio", *(f"{name} (MiB)" for name in names), "cosines"
    found = Table("T", *heads, title=f"batch {samples}")
    for row in rows:
        one, other = (row.timings[name] for name in names)
        peaks = [f"{row.peaks[name]:.0f}" for name in names]
        angles = " ".join(f"{cosine:.3f}" for cosine in row.cosines)
        found.add_row(str(row.steps), cell(one), cell(other), ratio(one, other), *peaks, angles)
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds and MiB of a step against the number of steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    steps = [row.steps for row in rows]
    for name in GRADIENTS.values():
        left.plot(
            steps, [1e3 * statistics.median(row.timings[name].wall) for row in rows], marker="o", label=name
        )
        right.plot(steps, [row.peaks[name] for row in rows], marker="o", label=name)
    for axes, label in ((left, "a training step (ms)"), (right, "peak memory of a step (MiB)")):
        axes.set(xlabel="steps T", ylabel=label, xticks=steps, ylim=(0, None))
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
