"""Side-by-side timings: `python -m benchmarks --help`.

Both sides run alternately in one process, and their ratios are printed with the machine's
state; on a shared machine, rerun before you believe a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import mnist
from benchmarks.mnist import BATCH, EPOCH
from benchmarks.printing import WITH_QUARTILES, console, show
from reproductions import datasets
from reproductions.allocator import keep_freed_memory
from reproductions.errors import SuiteError, run_command_line
from reproductions.records import require_writable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

DataRoot = Annotated[Path | None, typer.Option(help="Folder with MNIST/raw/, read only.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of both sides; default: torch's choice.")]
FigureFile = Annotated[Path | None, typer.Option(help="File for a figure, .png or .svg.")]


@app.command()
def step(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=20, help="Timed steps at each stage.")] = 300,
    threads: Threads = None,
) -> None:
    """Training step of 784-400-10, batch 128, on MNIST: S4NN in mini-batches against a ReLU MLP."""
    from . import step as fully_connected

    _set_threads(threads)
    batches = mnist.in_batches(mnist.load("train", data_root))
    show(fully_connected.table(batches, steps), WITH_QUARTILES)


@app.command()
def continuous(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=20, help="Timed steps at each stage.")] = 300,
    threads: Threads = None,
) -> None:
    """Training step of 784-400-10, batch 128, on MNIST: the exact gradient against a ReLU MLP."""
    from . import continuous as neurons

    _set_threads(threads)
    data = neurons.in_continuous_time(mnist.load("train", data_root))
    show(neurons.table(mnist.in_batches(data), steps), WITH_QUARTILES)


@app.command()
def convolution(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=20, help="Timed steps.")] = 40,
    threads: Threads = None,
) -> None:
    """Training step of 16C5s2-32C5s2-200-10, batch 128, on MNIST, as in DS4NN, against a ReLU CNN."""
    from . import convolution as convolutional

    _set_threads(threads)
    batches = mnist.in_batches(mnist.load("train", data_root))
    show(convolutional.table(batches, steps), WITH_QUARTILES)


@app.command()
def inference(
    data_root: DataRoot = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timed passes over the test set.")] = 15,
    threads: Threads = None,
) -> None:
    """Inference of 784-400-10 on MNIST's test images: decisions with an early stop against a ReLU MLP.

    Fresh networks, and after an epoch of training; all 10 000 images at once, and one after the other.
    """
    from . import inference as decisions

    _set_threads(threads)
    batches = mnist.in_batches(mnist.load("train", data_root))
    pixels = datasets.load("mnist", "test", data_root).x
    show(decisions.table(batches, mnist.load("test", data_root), pixels, rounds, console.print))


@app.command()
def peers(
    data_root: DataRoot = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each run.")] = 5,
    only: Annotated[
        list[str] | None, typer.Option(help="Modules of the peers; default: all installed.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=BATCH, help="Samples in a batch.")] = BATCH,
    threads: Threads = None,
) -> None:
    """Training step and inference of 784-400-10, T = 256, on MNIST, in every library that is installed.

    All in one process, in turn; ours, which has learned for an epoch, and the ReLU MLP ten calls at a time.
    """
    from . import peers as libraries

    _set_threads(threads)
    batches = [
        mnist.Batch(*(part[:samples] for part in batch))
        for batch in mnist.in_batches(mnist.load("train", data_root))(0, EPOCH)
    ]
    show(libraries.table(libraries.chosen(only), batches, rounds, console.print))


@app.command()
def growth(
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each run.")] = 15,
    axis: Annotated[str | None, typer.Option(help="bins, spiking, neurons or batch; default: all.")] = None,
    figure: FigureFile = None,
    threads: Threads = None,
) -> None:
    """Cost of a layer, a decision, and both passes of 784-400-10 against T, spikes, neurons and batch."""
    from . import growth as curves  # imports matplotlib, which the other commands do without

    if axis is not None and axis not in curves.AXES:
        raise SuiteError(f"the axis must be one of {', '.join(curves.AXES)}, got {axis!r}")
    _check_figure(figure)
    _set_threads(threads)
    found = curves.measured([axis] if axis else curves.AXES, rounds)
    show(curves.table(found))
    if figure is not None:
        curves.draw(found, figure)


@app.command("rate-backprop")
def rate_backprop(
    steps: Annotated[list[int] | None, typer.Option(help="Numbers of steps; default: 4, 8, 16.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timed steps of each.")] = 7,
    samples: Annotated[int, typer.Option(min=2, help="Images in a batch.")] = BATCH,
    compiled: Annotated[
        bool, typer.Option(help="Steps compiled by torch.compile, as the configs do.")
    ] = False,
    figure: FigureFile = None,
    threads: Threads = None,
) -> None:
    """A step of rate-based back-propagation and of that through time, against T: time, memory, gradients.

    16C3-32C3-128, uncompiled unless asked for, on random images. Peak memory is what a step needs beyond the
    model, in a fresh process. The cosines are between both gradients at the same first weights, by layer.
    """
    from . import rates  # imports matplotlib, which the other commands do without

    _check_figure(figure)
    _set_threads(threads)
    rows = [rates.measure(number, samples, rounds, compiled) for number in steps or [4, 8, 16]]
    show(rates.table(rows, samples))
    if figure is not None:
        rates.draw(rows, figure)


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
    show(hosts.table(mnist.in_batches(mnist.load("train", data_root)), steps))


@app.command()
def bins(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=10, max=EPOCH - 1, help="Timed steps of each.")] = 20,
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
    show(networks.table(networks.drawn(images, steps)))
    console.print(f"freed memory {'kept' if keep_memory else 'given back'}, {steps} steps of each in turn")


@app.command()
def gradients(
    dataset: Annotated[str, typer.Option(help="digits or mnist.")] = "digits",
    data_root: DataRoot = None,
    images: Annotated[int, typer.Option(min=500, help="Training images; a fifth is held out.")] = 5000,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    figure: FigureFile = None,
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
    learned, held_out = rules.parts(part, images)
    audits = {}
    with console.status("") as status:
        for kind in rules.NETWORKS:
            audits[kind] = rules.audit(kind, learned, held_out, epochs, seeds, status.console.log)
    title = f"{dataset}, {len(learned[1])} images, {epochs} epochs, {seeds} seeds"
    show(rules.table(audits, title), "means ± standard deviations over the seeds")
    if figure is not None:
        rules.draw(audits, figure)


@app.command("from-relu")
def from_relu_(
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = BATCH,
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each.")] = 10,
    network: Annotated[str | None, typer.Option(help="One of the networks; default: all.")] = None,
    trained: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pt",
            help="Instead, a converted-relu that `python -m reproductions run --keep` wrote; also "
            "compares both networks on all test images.",
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Of its windows, instead of the config's.")
    ] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
) -> None:
    """Inference of converted networks, on images of 32 x 32, against the ReLU networks they were made of."""
    from . import relu as networks

    if network is not None and network not in networks.NETWORKS:
        raise SuiteError(f"the network must be one of {', '.join(networks.NETWORKS)}, got {network!r}")
    if network is not None and trained is not None:
        raise SuiteError(f"pass --network or --trained, got {network!r} and {trained}")
    if margin is not None and trained is None:
        raise SuiteError(f"--margin goes with --trained, got {margin}")
    _set_threads(threads)
    if trained is not None:
        kept = networks.OfTheSuite(trained, data_root, margin)
        console.print(kept.agreement())
        show(networks.table({kept.name: kept.timings(batch, rounds)}, batch))
        return
    names = [network] if network else networks.NETWORKS
    show(networks.table({name: networks.measure(name, batch, rounds) for name in names}, batch))


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
    show(layers.table(batch, images, repeats), "medians")
    console.print(layers.settings())


@app.command("import")
def import_(repeats: Annotated[int, typer.Option(min=3, help="Fresh interpreters per side.")] = 7) -> None:
    """Start-up: `import ssnn_plugin` against `import torch`, each in fresh interpreters."""
    from . import start

    show(start.table(repeats), start.TIMES)


def _check_figure(figure: Path | None) -> None:
    """Refuse a file that could not be written after hours of measuring."""
    if figure is None:
        return
    if figure.suffix not in (".png", ".svg"):
        raise SuiteError(f"the figure must be a .png or an .svg, got {figure}")
    require_writable(figure.parent)


def _set_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    run_command_line(app)
