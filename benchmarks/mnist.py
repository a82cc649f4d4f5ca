"""MNIST as the benchmarks take it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reproductions import datasets
from ssnn_plugin import encode

T_MAX = 256
BATCH = 128
EPOCH = 60_000 // BATCH


class Batch(NamedTuple):
    """Spike times and intensities [batch, 784], and classes."""

    times: Tensor
    images: Tensor
    labels: Tensor


# `batches(first, count)`.
Batches = Callable[[int, int], list[Batch]]


def load(split: str, data_root: Path | None) -> Batch:
    """All images of a split, in T = 256 bins."""
    images = datasets.load("mnist", split, data_root)
    times = encode.latency(images.x, T_MAX, x_max=images.x_max)
    return Batch(times, images.x.float() / images.x_max, images.y)


def in_batches(data: Batch) -> Batches:
    """`batches(first, count)` of a fixed random order that starts again after an epoch."""
    order = torch.randperm(len(data.labels))

    def batches(first: int, count: int) -> list[Batch]:
        index = [order[(first + k) % EPOCH * BATCH :][:BATCH] for k in range(count)]
        return [Batch(*(part[i] for part in data)) for i in index]

    return batches
