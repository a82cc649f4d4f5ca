"""Side-by-side timings: `python -m benchmarks --help`.

Both sides run alternately in one process, and ratios of medians are printed with the machine's
state; on a shared machine, rerun before you believe a number.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.timing import Timing, in_turn
from reproductions import datasets
from reproductions.allocator import keep_freed_memory
from reproductions.errors import SuiteError, run_command_line
from ssnn_plugin import IF, ExpPSP, ReLPSP, encode
from ssnn_plugin.functional import normalize_error
from ssnn_plugin.losses import RelativeTargetLoss, TemporalCrossEntropyLoss
from ssnn_plugin.nn import SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential, calibrate

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()
T_MAX = 256
BATCH = 128
EPOCH = 60_000 // BATCH

Batch = tuple[Tensor, Tensor, Tensor]
Input = TypeVar("Input")
Seconds = tuple[list[float], list[float]]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with MNIST/raw/, read only.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of both sides; default: torch's choice.")]


@dataclass(frozen=True)
class Recipe:
    """How S4NN is trained, and which optimiser the ReLU network gets beside it."""

    name: str
    threshold: float
    draw: Callable[[Tensor, Tensor], object]
    gamma: float
    spiking_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    dense_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def _draw_as_published(hidden: Tensor, output: Tensor) -> None:
    hidden.uniform_(0, 5)
    output.uniform_(0, 48)


def _draw_small(hidden: Tensor, output: Tensor) -> None:
    hidden.normal_(0.01, 0.05)
    output.normal_(0.02, 0.05)


RECIPES = (
    Recipe(
        "S4NN, plain SGD",
        100.0,
        _draw_as_published,
        3.0,
        lambda parameters: torch.optim.SGD(parameters, lr=20.0, weight_decay=1e-6),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ),
    Recipe(
        "S4NN, small weights, Adam",
        1.0,
        _draw_small,
        10.0,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    ),
)


def build_networks(recipe: Recipe) -> tuple[nn.Sequential, nn.Sequential]:
    """S4NN's MNIST network (784-400-10) and a ReLU MLP of the same shape."""
    neuron = IF(recipe.threshold, delay=1)
    hidden = SpikeLinear(784, 400, neuron, t_max=T_MAX)
    output = SpikeLinear(400, 10, neuron, t_max=T_MAX, silent_gradient=True)
    with torch.no_grad():
        recipe.draw(hidden.weight, output.weight)
    return nn.Sequential(hidden, output), nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 10))


@app.command()
def step(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=20, help="Timed steps at each stage.")] = 300,
    threads: Threads = None,
) -> None:
    """Training step of 784-400-10, batch 128, on MNIST: S4NN in mini-batches against a ReLU MLP."""
    _set_threads(threads)
    batches = _batches(_mnist("train", data_root))
    table = Table("recipe", "stage", "spiking (ms)", "ReLU MLP (ms)", "ratio of medians")
    for recipe in RECIPES:
        both = training_steps(recipe, *build_networks(recipe))
        _add_stages(table, recipe.name, both, batches, steps)
    _print(table)


def _add_stages(
    table: Table,
    name: str,
    both: tuple[Callable[[Batch], None], Callable[[Batch], None]],
    batches: Callable[[int, int], list[Batch]],
    steps: int,
) -> None:
    """Rows of the first steps of training, and of those that follow an epoch."""
    alternate(*both, batches(0, 20))
    _add_row(table, (name, "first steps"), alternate(*both, batches(20, steps)))
    alternate(*both, batches(20 + steps, EPOCH))
    _add_row(table, (name, "after an epoch"), alternate(*both, batches(20 + steps + EPOCH, steps)))


def training_steps(
    recipe: Recipe, spiking: nn.Sequential, dense: nn.Sequential
) -> tuple[Callable[[Batch], None], Callable[[Batch], None]]:
    """One training step of each network."""
    spike_loss, dense_loss = RelativeTargetLoss(recipe.gamma, T_MAX), nn.CrossEntropyLoss()
    spike_optimizer = recipe.spiking_optimizer(spiking.parameters())
    dense_optimizer = recipe.dense_optimizer(dense.parameters())

    def spiking_step(batch: Batch) -> None:
        spike_optimizer.zero_grad()
        hidden = normalize_error(spiking[0](batch[0]))
        spike_loss(normalize_error(spiking[1](hidden)), batch[2]).backward()
        spike_optimizer.step()

    def dense_step(batch: Batch) -> None:
        dense_optimizer.zero_grad()
        dense_loss(dense(batch[1]), batch[2]).backward()
        dense_optimizer.step()

    return spiking_step, dense_step


@dataclass(frozen=True)
class Continuous:
    """A neuron in continuous time, its windows (hidden, output) and initial weights (mean, deviation)."""

    neuron: ReLPSP | ExpPSP
    windows: tuple[float, float]
    hidden: tuple[float, float]
    output: tuple[float, float]

    def network(self) -> nn.Sequential:
        """784-400-10."""
        layers = [
            SpikeLinear(n_in, n_out, self.neuron, t_max=t_max)
            for n_in, n_out, t_max in zip((784, 400), (400, 10), self.windows, strict=True)
        ]
        for layer, init in zip(layers, (self.hidden, self.output), strict=True):
            nn.init.normal_(layer.weight, *init)
        return nn.Sequential(*layers)


CONTINUOUS = (
    Continuous(ReLPSP(), (2.0, 4.0), (0.01, 0.05), (0.02, 0.05)),
    Continuous(ExpPSP(), (3.0, 6.0), (0.02, 0.08), (0.02, 0.05)),
)


@app.command()
def continuous(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=20, help="Timed steps at each stage.")] = 300,
    threads: Threads = None,
) -> None:
    """Training step of 784-400-10, batch 128, on MNIST: the exact gradient against a ReLU MLP."""
    _set_threads(threads)
    _, images, labels = _mnist("train", data_root)
    batches = _batches((torch.where(images > 0, 1 - images, torch.inf), images, labels))
    table = Table("neuron", "stage", "spiking (ms)", "ReLU MLP (ms)", "ratio of medians")
    for each in CONTINUOUS:
        dense = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 10))
        t_max = each.windows[1]
        loss = TemporalCrossEntropyLoss(t_max, 0.1 / t_max)
        both = (
            _adam_step(each.network(), loss, _times),
            _adam_step(dense, nn.CrossEntropyLoss(), _images),
        )
        _add_stages(table, str(each.neuron), both, batches, steps)
    _print(table)


@app.command()
def convolution(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=20, help="Timed steps.")] = 40,
    threads: Threads = None,
) -> None:
    """Training step of 16C5s2-32C5s2-200-10, batch 128, on MNIST, as in DS4NN, against a ReLU CNN."""
    _set_threads(threads)
    batches = _batches(_mnist("train", data_root))
    times = batches(0, 4)
    spiking = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        SpikeConv2d(1, 16, 5, IF(), t_max=T_MAX, stride=2),
        SpikeConv2d(16, 32, 5, IF(), t_max=T_MAX, stride=2),
        SpikeFlatten(),
        SpikeLinear(512, 200, IF(), t_max=T_MAX),
        SpikeLinear(200, 10, IF(), t_max=T_MAX, silent_gradient=True),
    )
    dense = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )
    table = Table("neurons that fire", "spiking (ms)", "ReLU CNN (ms)", "ratio of medians")
    for firing in (0.4, 0.3, 0.15):  # corners are blank: more of the first layer cannot fire
        for module in spiking:
            if isinstance(module, SpikeConv2d | SpikeLinear):
                module.reset_parameters()
                nn.init.normal_(module.weight, 0.2, 1.0)
        calibrate(spiking, torch.cat([batch[0] for batch in times]), firing)
        both = (
            _adam_step(spiking, RelativeTargetLoss(10.0, T_MAX), _times),
            _adam_step(dense, nn.CrossEntropyLoss(), _images),
        )
        alternate(*both, batches(0, 10))
        _add_row(table, (f"{firing:.0%} at first",), alternate(*both, batches(10, steps)))
    _print(table)


def _times(batch: Batch) -> Tensor:
    return batch[0]


def _images(batch: Batch) -> Tensor:
    return batch[1]


def _adam_step(
    network: nn.Module, loss: nn.Module, inputs: Callable[[Batch], Tensor]
) -> Callable[[Batch], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def training_step(batch: Batch) -> None:
        optimizer.zero_grad()
        loss(network(inputs(batch)), batch[2]).backward()
        optimizer.step()

    return training_step


@app.command()
def inference(
    data_root: DataRoot = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timed passes over the test set.")] = 15,
    threads: Threads = None,
) -> None:
    """Inference of 784-400-10 on MNIST's test images: decisions with an early stop against a ReLU MLP.

    Fresh networks, and after an epoch of training; all 10 000 images at once, and one by one.
    """
    _set_threads(threads)
    batches = _batches(_mnist("train", data_root))
    pixels = datasets.load("mnist", "test", data_root).x
    test = _mnist("test", data_root)
    columns = *_TAKEN, "p10 / MLP's", "median / MLP's", "thread p10 / MLP's"
    table = Table("recipe", "network", "run", *columns, title="10 000 test images; one image")
    for recipe in RECIPES:
        layers, dense = build_networks(recipe)
        spiking = SpikeSequential(*layers)
        for stage in ("fresh", "after an epoch"):
            if stage != "fresh":
                alternate(*training_steps(recipe, layers, dense), batches(0, EPOCH))
            for title, timings in _time_inference(spiking, dense, test, pixels, rounds):
                base = timings[_MLP]
                for run, taken in timings.items():
                    table.add_row(recipe.name, stage, f"{run}, {title}", *_cells(taken, base))
        read = spiking.decide(test[0]).spikes.double().mean(0).tolist()
        sent = (test[0] < T_MAX).sum(1).double().mean().item()
        console.print(
            f"{recipe.name}: reads {read[0]:.0f} of {sent:.0f} input spikes, {read[1]:.0f} hidden ones"
        )
    _print(table, cells="")


_MLP = "ReLU MLP"
_TAKEN = "p10 (ms)", "median (ms)", "thread p10 (ms)"


def _time_inference(
    spiking: SpikeSequential, dense: nn.Module, test: Batch, pixels: Tensor, rounds: int
) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Of all test images, and of each of the first ones alone."""
    times, images, _ = test

    def runs(part: slice) -> dict[str, Callable[[], object]]:
        given, bytes_, ordinary = times[part].contiguous(), pixels[part].contiguous(), images[part]
        return {
            _MLP: lambda: dense(ordinary),
            "decide, times": lambda: spiking.decide(given),
            "decide, 8-bit images": lambda: spiking.decide(bytes_),
            "layer by layer": lambda: spiking(given),
        }

    with torch.no_grad():
        yield "all", in_turn(runs(slice(None)), rounds, warm_up=2)
        single = runs(slice(1))
        yield "one", in_turn(single, 10 * rounds, calls=dict.fromkeys(single, 20), warm_up=2)


@app.command()
def peers(
    data_root: DataRoot = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each run.")] = 5,
    only: Annotated[
        list[str] | None, typer.Option(help="Modules of the peers; default: all installed.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = BATCH,
    threads: Threads = None,
) -> None:
    """Training step and inference of 784-400-10, T = 256, on MNIST, in every library that is installed.

    All in one process, in turn; ours, which has learned for an epoch, and the ReLU MLP ten calls at a time.
    """
    from . import peers as libraries

    _set_threads(threads)
    batches = [
        libraries.Batch(*(part[:samples] for part in batch))
        for batch in _batches(_mnist("train", data_root))(0, EPOCH)
    ]
    chosen = [peer for peer in libraries.PEERS if peer.module is None or not only or peer.module in only]
    for peer in chosen:
        if not peer.installed:
            console.print(f"{peer.name}: not installed")
    chosen = [peer for peer in chosen if peer.installed]
    built = {peer.name: peer.build(batches) for peer in chosen}
    calls = {peer.name: peer.calls for peer in chosen}
    columns = *_TAKEN, "p10 / ours", "median / ours", "thread p10 / ours"
    table = Table("library", "run", *columns, title=f"784-400-10, T = {T_MAX}, batch {samples}")
    for kind in ("step", "infer"):
        timings = in_turn({name: getattr(runs, kind) for name, runs in built.items()}, rounds, calls=calls)
        ours = timings[libraries.PEERS[0].name]
        for name, one in timings.items():
            what = "training step" if kind == "step" else "inference"
            table.add_row(name, what, *_cells(one, ours))
    _print(table, cells="")


@app.command()
def growth(
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each run.")] = 15,
    axis: Annotated[str | None, typer.Option(help="bins, spiking, neurons or batch; default: all.")] = None,
    figure: Annotated[Path | None, typer.Option(help="File for a figure, .png or .svg.")] = None,
    threads: Threads = None,
) -> None:
    """Cost of a layer, a decision and a training step of 784-400-10 against T, spikes, neurons and batch."""
    from . import growth as curves  # imports matplotlib, which the other commands do without

    if axis is not None and axis not in curves.AXES:
        raise SuiteError(f"the axis must be one of {', '.join(curves.AXES)}, got {axis!r}")
    _check_figure(figure)
    _set_threads(threads)
    names = curves.FORWARD, curves.DECIDE, curves.STEP, curves.DENSE
    table = Table(
        "",
        "",
        *(f"{name} (ms)" for name in names),
        "thread p10: step / MLP's",
        title="p10 / median / thread p10",
    )
    found = {}
    for varied in [axis] if axis else curves.AXES:
        rows = [(case, curves.measure(case, rounds)) for case in curves.cases(varied)]
        found[varied] = rows
        for case, timings in rows:
            taken = [timings[name] for name in names]
            cells = [
                " / ".join(f"{1e3 * value:.3g}" for value in (one.p10, one.median, one.thread_p10))
                for one in taken
            ]
            ratio = timings[curves.STEP].thread_p10 / timings[curves.DENSE].thread_p10
            table.add_row(curves.AXES[varied][0], f"{getattr(case, varied):g}", *cells, f"{ratio:.2f}")
    _print(table, cells="")
    if figure is not None:
        curves.draw(found, figure)


@app.command("rate-backprop")
def rate_backprop(
    steps: Annotated[list[int] | None, typer.Option(help="Numbers of steps; default: 4, 8, 16.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timed steps of each.")] = 7,
    samples: Annotated[int, typer.Option(min=2, help="Images in a batch.")] = BATCH,
    figure: Annotated[Path | None, typer.Option(help="File for a figure, .png or .svg.")] = None,
    threads: Threads = None,
) -> None:
    """A step of rate-based back-propagation and of that through time, against T: time, memory, gradients.

    16C3-32C3-128, uncompiled, on random images. Peak memory is what a step needs beyond the model, in a fresh
    process. The cosines are between both gradients at the same first weights, by layer.
    """
    from . import rates  # imports matplotlib, which the other commands do without

    _check_figure(figure)
    _set_threads(threads)
    rows = [rates.measure(number, samples, rounds) for number in steps or [4, 8, 16]]
    names = list(rates.GRADIENTS.values())
    columns = *(f"{name} (ms)" for name in names), "ratio", *(f"{name} (MiB)" for name in names), "cosines"
    table = Table("T", *columns, title=f"batch {samples}; p10 / median")
    for row in rows:
        one, other = (row.timings[name] for name in names)
        taken = [f"{1e3 * timing.p10:.0f} / {1e3 * timing.median:.0f}" for timing in (one, other)]
        ratios = f"{one.p10 / other.p10:.2f} / {one.median / other.median:.2f}"
        peaks = [f"{row.peaks[name]:.0f}" for name in names]
        angles = " ".join(f"{cosine:.3f}" for cosine in row.cosines)
        table.add_row(str(row.steps), *taken, ratios, *peaks, angles)
    _print(table, cells="")
    if figure is not None:
        rates.draw(rows, figure)


def _check_figure(figure: Path | None) -> None:
    if figure is not None and figure.suffix not in (".png", ".svg"):
        raise SuiteError(f"the figure must be a .png or an .svg, got {figure}")


def _cells(taken: Timing, base: Timing) -> list[str]:
    """Milliseconds, and how many times as long as the other run."""
    pairs = [(taken.p10, base.p10), (taken.median, base.median), (taken.thread_p10, base.thread_p10)]
    ratios = [one / other for one, other in pairs]
    return [f"{1e3 * one:.4g}" for one, _ in pairs] + [f"{r:.2f}" if r < 20 else f"{r:.0f}" for r in ratios]


@app.command("event-driven")
def event_driven(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=3, help="Timed steps of each model in its loop.")] = 7,
    threads: Threads = None,
) -> None:
    """Training step of 784-400-10, T = 256, batch 128, on MNIST: snnTorch and Norse against event by event.

    Input trains and times are made beforehand. The event-driven network has learned for an epoch; it
    takes ten steps for each step of the loop.
    """
    from . import hosts  # imports both hosts, which the other commands do without

    _set_threads(threads)
    batches = _batches(_mnist("train", data_root))
    columns = ("in steps (ms)", "event by event (ms)", "times faster", "same spikes", "peak memory (MiB)", "")
    table = Table("model", *columns)
    for name in hosts.MODELS:
        result = hosts.compare(name, batches, EPOCH, steps)
        medians = [statistics.median(part) for part in (result.in_steps, result.by_events)]
        table.add_row(
            name,
            f"{1e3 * medians[0]:.0f}",
            f"{1e3 * medians[1]:.2f}",
            f"{medians[0] / medians[1]:.0f}",
            "" if result.same is None else f"{result.same:.2%}",
            f"{result.peaks[0]:.0f} / {result.peaks[1]:.1f}",
            f"1/{result.peaks[0] / result.peaks[1]:.0f}",
        )
    _print(table)


@app.command()
def bins(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=10, help="Timed steps of each.")] = 20,
    keep_memory: Annotated[bool, typer.Option(help="Have glibc keep freed memory, for all.")] = True,
    threads: Threads = None,
) -> None:
    """Training step of 16C5-P2-32C5-P2-300-10, T = 8, batch 128, on MNIST: all bins at once against snnTorch.

    Peak memory is what a step needs beyond the model, in a fresh process under glibc's defaults.
    """
    from . import bins as networks  # imports snnTorch, which most commands do without

    if keep_memory:
        keep_freed_memory()
    _set_threads(threads)
    images = datasets.load("mnist", "train", data_root)
    times = encode.latency(images.x, networks.T_MAX, x_max=images.x_max)
    index = torch.randperm(len(times))[: (steps + 1) * BATCH].reshape(-1, BATCH)
    taken, peaks = networks.compare([(times[i], images.y[i]) for i in index])
    base, *_ = medians = {name: statistics.median(part) for name, part in taken.items()}
    columns = "p10 (ms)", "median (ms)", "of the loop's", "peak memory (MiB)", "of the loop's"
    table = Table(f"{networks.NAME}, T = {networks.T_MAX}, batch {BATCH}", *columns)
    for name, part in taken.items():
        table.add_row(
            name,
            f"{1e3 * statistics.quantiles(part, n=10)[0]:.0f}",
            f"{1e3 * medians[name]:.0f}",
            f"1/{medians[base] / medians[name]:.1f}",
            f"{peaks[name]:.0f}",
            f"1/{peaks[base] / peaks[name]:.1f}",
        )
    _print(table, cells="")
    console.print(f"freed memory {'kept' if keep_memory else 'given back'}, {steps} steps of each in turn")


@app.command()
def gradients(
    dataset: Annotated[str, typer.Option(help="digits or mnist.")] = "digits",
    data_root: DataRoot = None,
    images: Annotated[int, typer.Option(min=500, help="Training images; a fifth is held out.")] = 5000,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    figure: Annotated[Path | None, typer.Option(help="File for a figure, .png or .svg.")] = None,
    threads: Threads = None,
) -> None:
    """Gradient rules of IF networks: accuracy, agreement with a smooth network, spread over inputs.

    Means and standard deviations over the seeds; learning rates are chosen on the held-out images with one
    more. Gradients are those of the first layer, at the start / after training in every bin: their cosine to
    that of the network made smooth by escape noise, and how the best of a few steps along them changes the
    loss.
    """
    from . import gradients as rules  # imports matplotlib, which the other commands do without

    if dataset not in ("digits", "mnist"):
        raise SuiteError(f"the data set must be digits or mnist, got {dataset!r}")
    _check_figure(figure)
    _set_threads(threads)
    part = datasets.load(dataset, "train", data_root)
    order = torch.randperm(len(part.y), generator=torch.Generator().manual_seed(0))[:images]
    times = encode.latency(part.x[order].reshape(-1, *part.shape), rules.T_MAX, x_max=part.x_max)
    labels, few = part.y[order], len(order) // 5
    learned, held_out = (times[few:], labels[few:]), (times[:few], labels[:few])
    audits = {}
    with console.status("") as status:
        for kind in rules.NETWORKS:
            audits[kind] = rules.audit(kind, learned, held_out, epochs, seeds, status.console.log)
    columns = [
        f"{kind}: {what}" for kind in audits for what in ("accuracy (rate)", "cosine", "loss", "spread")
    ]
    table = Table(
        "rule", *columns, title=f"{dataset}, {len(learned[1])} images, {epochs} epochs, {seeds} seeds"
    )
    for name in rules.RULES:
        table.add_row(*rules.row(name, audits))
    console.print(table)
    if figure is not None:
        rules.draw(audits, figure)


@app.command("from-relu")
def from_relu_(
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = BATCH,
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each.")] = 10,
    network: Annotated[str | None, typer.Option(help="One of the networks; default: all.")] = None,
    threads: Threads = None,
) -> None:
    """Inference of converted networks, on images of 32 x 32, against the ReLU networks they were made of."""
    from . import relu as networks

    if network is not None and network not in networks.NETWORKS:
        raise SuiteError(f"the network must be one of {', '.join(networks.NETWORKS)}, got {network!r}")
    _set_threads(threads)
    columns = "ms", "of the ReLU network's", "of the folded one's"
    title = "p10 / median / thread p10"
    table = Table("network", f"inference, batch {batch}", *columns, title=title)
    for name in [network] if network else networks.NETWORKS:
        timings = networks.measure(name, batch, rounds)
        for run, taken in timings.items():
            of_model, of_folded = (_cells(taken, timings[base]) for base in (networks.MODEL, networks.FOLDED))
            parts = of_model[:3], of_model[3:], of_folded[3:]
            table.add_row(name, run, *(" / ".join(part) for part in parts))
    _print(table, cells="")


@app.command()
def gpu(
    repeats: Annotated[int, typer.Option(min=10, help="Timed calls of each.")] = 50,
    batch: Annotated[int, typer.Option(min=8, help="Samples of the fully connected networks.")] = 1024,
    images: Annotated[int, typer.Option(min=8, help="Images of the convolution.")] = 128,
) -> None:
    """On a GPU, 10% of the inputs spiking: Triton's kernels against torch's dense layers; memory."""
    from . import gpu as layers

    if not torch.cuda.is_available():
        raise SuiteError("this benchmark needs a GPU that torch can use, and there is none here")
    columns = "spiking (ms)", "dense (ms)", "ratio of medians", "of p10", "memory / needed", "same spikes"
    table = Table("network", "", *columns)
    for case in layers.cases(torch.device("cuda"), batch, images):
        for row in layers.rows(case, repeats):
            table.add_row(
                row.name,
                row.what,
                *(f"{statistics.median(part):.3f}" for part in (row.spiking, row.dense)),
                f"{row.ratio():.2f}",
                f"{row.ratio(layers.p10):.2f}",
                "" if row.memory is None else f"{row.memory:.2f}",
                "" if row.same is None else f"{row.same:.2%}",
            )
    _print(table, cells="medians; ")
    precision = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    console.print(
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; "
        f"products in {precision[0]!r} precision, TF32 in convolutions: {precision[1]}"
    )


@app.command("import")
def import_(repeats: Annotated[int, typer.Option(min=3, help="Fresh interpreters per side.")] = 7) -> None:
    """Start-up: `import ssnn_plugin` against `import torch`, each in fresh interpreters."""

    def start(module: str) -> Callable[[None], object]:
        return lambda _: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    table = Table(
        "", "ssnn_plugin (ms)", "torch (ms)", "ratio of medians", title="import in a fresh interpreter"
    )
    _add_row(table, ("import",), alternate(start("ssnn_plugin"), start("torch"), [None] * repeats))
    _print(table)


def alternate(
    first: Callable[[Input], object], second: Callable[[Input], object], inputs: Sequence[Input]
) -> Seconds:
    """Seconds that each takes on each input, in turn."""
    taken: Seconds = ([], [])
    for x in inputs:
        for function, kept in zip((first, second), taken, strict=True):
            kept.append(timing.seconds(function, x))
    return taken


def _add_row(table: Table, labels: tuple[str, ...], seconds: Seconds) -> None:
    medians = [statistics.median(part) for part in seconds]
    quartiles = [statistics.quantiles(part, n=4) for part in seconds]
    cells = [
        f"{1e3 * m:.2f} ({1e3 * q[0]:.2f} ... {1e3 * q[2]:.2f})"
        for m, q in zip(medians, quartiles, strict=True)
    ]
    table.add_row(*labels, *cells, f"{medians[0] / medians[1]:.2f}")


def _print(table: Table, cells: str = "median (quartiles); ") -> None:
    console.print(table)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{cells}torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{os.cpu_count()} cores {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{_processor()}, load {load}"
    )


def _processor() -> str:
    """Its name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def _set_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


def _batches(data: Batch) -> Callable[[int, int], list[Batch]]:
    """`batches(first, count)` of a fixed random order that starts again after an epoch."""
    order = torch.randperm(len(data[2]))

    def batches(first: int, count: int) -> list[Batch]:
        index = [order[(first + k) % EPOCH * BATCH :][:BATCH] for k in range(count)]
        return [(data[0][i], data[1][i], data[2][i]) for i in index]

    return batches


def _mnist(split: str, data_root: Path | None) -> Batch:
    images = datasets.load("mnist", split, data_root)
    return encode.latency(images.x, T_MAX, x_max=images.x_max), images.x.float() / images.x_max, images.y


if __name__ == "__main__":
    run_command_line(app)
