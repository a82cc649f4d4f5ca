"""Side-by-side timings: `python -m benchmarks --help`.

Both sides run alternately in one process, and ratios of medians are printed with the machine's
state; on a shared machine, rerun before you believe a number.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from reproductions import datasets
from reproductions.errors import SuiteError
from ssnn_plugin import IF, encode
from ssnn_plugin.functional import normalize_error
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeLinear

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()
T_MAX = 256
BATCH = 128

Batch = tuple[Tensor, Tensor, Tensor]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with MNIST/raw/, read only.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of both sides; default: torch's choice.")]


def build_networks() -> tuple[nn.Sequential, nn.Sequential]:
    """S4NN's MNIST network (784-400-10) and a ReLU MLP of the same shape."""
    neuron = IF(threshold=100.0, delay=1)
    spiking = nn.Sequential(
        SpikeLinear(784, 400, neuron, t_max=T_MAX, init_range=(0.0, 5.0)),
        SpikeLinear(400, 10, neuron, t_max=T_MAX, init_range=(0.0, 48.0), silent_gradient=True),
    )
    return spiking, nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 10))


@app.command()
def step(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=20, help="Timed steps at each stage.")] = 300,
    threads: Threads = None,
) -> None:
    """Training step of 784-400-10, batch 128, on MNIST: S4NN in mini-batches against a ReLU MLP."""
    _set_threads(threads)
    times, pixels, labels = _mnist("train", data_root)
    spiking, dense = build_networks()
    spike_loss, dense_loss = RelativeTargetLoss(3, T_MAX), nn.CrossEntropyLoss()
    spike_sgd = torch.optim.SGD(spiking.parameters(), lr=20.0, weight_decay=1e-6)
    dense_sgd = torch.optim.SGD(dense.parameters(), lr=0.1)
    order = torch.randperm(len(labels))

    def spiking_step(batch: Batch) -> None:
        spike_sgd.zero_grad()
        hidden = normalize_error(spiking[0](batch[0]))
        spike_loss(normalize_error(spiking[1](hidden)), batch[2]).backward()
        spike_sgd.step()

    def dense_step(batch: Batch) -> None:
        dense_sgd.zero_grad()
        dense_loss(dense(batch[1]), batch[2]).backward()
        dense_sgd.step()

    def batches(first: int, count: int) -> list[Batch]:
        index = [order[(first + k) * BATCH % 59_000 :][:BATCH] for k in range(count)]
        return [(times[i], pixels[i], labels[i]) for i in index]

    table = Table(
        "stage", "spiking (ms)", "ReLU MLP (ms)", "ratio of medians", title="training step, batch 128"
    )
    warm_up = batches(0, 20)
    alternate(spiking_step, dense_step, warm_up)
    _add_row(table, "from random weights", alternate(spiking_step, dense_step, batches(20, steps)), 1e3)
    alternate(spiking_step, dense_step, batches(20 + steps, 469))
    _add_row(
        table, "after an epoch more", alternate(spiking_step, dense_step, batches(489 + steps, steps)), 1e3
    )
    _print(table)


@app.command()
def inference(
    data_root: DataRoot = None,
    repeats: Annotated[int, typer.Option(min=3, help="Timed passes over the test set.")] = 30,
    threads: Threads = None,
) -> None:
    """Inference over MNIST's 10 000 test images, 784-400-10, in one batch."""
    _set_threads(threads)
    batch = _mnist("test", data_root)
    spiking, dense = build_networks()
    table = Table("weights", "spiking (ms)", "ReLU MLP (ms)", "ratio of medians", title="10 000 test images")
    with torch.no_grad():
        passes = [batch] * repeats
        alternate(lambda x: spiking(x[0]), lambda x: dense(x[1]), passes[:3])
        measured = alternate(lambda x: spiking(x[0]), lambda x: dense(x[1]), passes)
    _add_row(table, "random", measured, 1e3)
    _print(table)


def alternate(
    first: Callable[[Batch], object], second: Callable[[Batch], object], inputs: Sequence[Batch]
) -> tuple[list[float], list[float]]:
    """Seconds that each takes on each input, in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for x in inputs:
        for function, kept in zip((first, second), seconds, strict=True):
            started = time.perf_counter()
            function(x)
            kept.append(time.perf_counter() - started)
    return seconds


def _add_row(table: Table, stage: str, seconds: tuple[list[float], list[float]], scale: float) -> None:
    medians = [statistics.median(part) for part in seconds]
    quartiles = [statistics.quantiles(part, n=4) for part in seconds]
    cells = [
        f"{scale * m:.2f} ({scale * q[0]:.2f} ... {scale * q[2]:.2f})"
        for m, q in zip(medians, quartiles, strict=True)
    ]
    table.add_row(stage, *cells, f"{medians[0] / medians[1]:.2f}")


def _print(table: Table) -> None:
    console.print(table)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"median (quartiles); torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{os.cpu_count()} cores {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"load {load}"
    )


def _set_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


def _mnist(split: str, data_root: Path | None) -> Batch:
    images = datasets.load("mnist", split, data_root)
    return encode.latency(images.x, T_MAX, x_max=images.x_max), images.x.float() / images.x_max, images.y


def main() -> None:
    """Run the command line; show what the user can mend without a traceback."""
    try:
        app()
    except SuiteError as error:
        Console(stderr=True).print("error:", error, soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
