"""Command line of the reproduction suite: `python -m reproductions --help`."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import catalog, methods, records
from .errors import SuiteError, run_command_line
from .locks import locked
from .records import FewLabelsResult, PretrainingEpoch, Record

# Characters of a description in `list`, in a narrow terminal too.
LEAST_DESCRIPTION = 12
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Re-run published single-spike methods and compare them.\n\n"
    "Start with `table --preset quick`: it trains the methods on scikit-learn's 8x8 digits, without a "
    "download, and prints the comparison table.",
)
console = Console()

ResultsDir = Annotated[Path, typer.Option(help="Folder of the records.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder with MNIST/raw/, FashionMNIST/raw/, CIFAR-10/, ETH-80/ or caltech101/, read only. "
        "Without it, data is downloaded."
    ),
]
ImageSize = Annotated[
    tuple[int, int] | None,
    typer.Option(min=1, metavar="HEIGHT WIDTH", help="Of the images of a folder, instead of the data set's."),
]
Grey = Annotated[
    bool | None, typer.Option("--grey/--colour", help="Of the images of a folder, instead of the data set's.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Run again and replace the record.")]
Methods = Annotated[str, typer.Option(metavar="NAME,NAME,...", help="Only these, by their names in `list`.")]
Datasets = Annotated[str, typer.Option(metavar="NAME,NAME,...", help="Only these, by their names in `list`.")]
ALL = "all"
QUICK = records.RESULTS / "quick"


@app.command("list")
def list_(results_dir: ResultsDir = records.RESULTS) -> None:
    """List methods and data sets, and the seeds that are recorded; in brackets those of another config."""
    recorded = records.read_all(results_dir)
    rows = []
    for (method, dataset), config in catalog.available().items():
        named = [run for run in recorded if (run.method, run.dataset) == (method, dataset)]
        seeds = [str(run.seed) for run in named if run.config_hash == config.digest()]
        others = sorted({str(run.seed) for run in named} - set(seeds))
        shown = [*seeds, *([f"({', '.join(others)})"] if others else [])]
        rows.append((method, dataset, ", ".join(shown) or "-", config.description))
    names = "method", "data set", "seeds"
    widths = [max(map(len, column)) for column in zip(names, *(row[:3] for row in rows), strict=True)]
    # One line each: of a description what does not fit beside the others, with the frame, is left out.
    room = max(console.width - sum(widths) - 13, LEAST_DESCRIPTION)
    table = Table()
    for name, width in zip(names, widths, strict=True):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("description", no_wrap=True)
    for row in rows:
        table.add_row(*row[:3], textwrap.shorten(row[3], room, placeholder=" …"))
    Console(width=sum(widths) + 13 + room, file=console.file).print(table)


@app.command()
def run(
    dataset: Annotated[str, typer.Option(help="A data set that `list` shows beside the method.")],
    method: Annotated[
        str,
        typer.Argument(metavar="METHOD", help="That `list` shows; or none, with --method."),
    ] = "",
    method_file: Annotated[
        Path | None,
        typer.Option(
            "--method",
            metavar="FILE.py",
            help="A method of your own; its config is FILE-DATASET.toml beside it, or that of --config.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the weights and of everything random.")
    ] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the config's number.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file instead of the suite's own.")] = None,
    data_root: DataRoot = None,
    results_dir: ResultsDir = records.RESULTS,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")
    ] = False,
    overwrite: Overwrite = False,
    track_test: Annotated[
        bool,
        typer.Option(
            "--track-test", help="Also record what the best test epoch would print. Chooses nothing."
        ),
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE.pt", help="Write the trained network to a file, too.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train METHOD on a data set, look at the test set once, and record it."""
    from .progress import ConsoleProgress
    from .runner import Run, execute, name_with_epochs

    if device not in ("cpu", "cuda"):
        raise SuiteError(f"--device must be cpu or cuda, got {device!r}")
    if bool(method) == bool(method_file):
        raise SuiteError("name one method: METHOD, which `list` shows, or --method FILE.py, your own")
    own = methods.load(method_file) if method_file else None
    path = config or (own.config(dataset) if own else None)
    chosen = catalog.read(path, own) if path else catalog.find(method, dataset)
    if dataset != chosen.dataset or (method and method != chosen.method):
        asked = f"{method} on {dataset}" if method else f"data set {dataset}"
        raise SuiteError(f"{path}: a config of {chosen.method} on {chosen.dataset}, not of {asked}")
    chosen = chosen.with_epochs(epochs)
    name = name_with_epochs(config.stem if config else f"{chosen.method}-{dataset}", epochs)
    this = Run(
        chosen, name, seed, device, results_dir, data_root,
        resume=resume, overwrite=overwrite, track_test=track_test, keep=keep, implementation=own,
    )  # fmt: skip
    record = execute(this, ConsoleProgress(console))
    _summarise(record, this.record)


def _summarise(record: Record, path: Path) -> None:
    from .tables import comparison, shown

    (row,) = shown(comparison([record], record.dataset)).to_dict("records")
    table = Table(title=Text(f"{record.name}, seed {record.seed}: test set"), show_header=False)
    for key, value in row.items():
        if value:
            table.add_row(Text(str(key)), Text(value))
    console.print(table)
    console.print(f"recorded in {path}", soft_wrap=True, markup=False)


@app.command()
def pretrain(
    on: Annotated[str, typer.Option(help="Data set to train on, such as fashion-mnist.")],
    output: Annotated[Path, typer.Option(help="File of the checkpoint, FILE.pt.")],
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    deformation: Annotated[
        float, typer.Option(min=0, max=1, help="Less for filters that are to serve the same data set.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    image_size: ImageSize = None,
    grey: Grey = None,
    data_root: DataRoot = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a small convolutional network whose maps are features for another data set."""
    from . import datasets
    from .features import cnn

    if output.suffix != ".pt":
        raise SuiteError(f"--output must end in .pt, got {output}")

    def report(epoch: PretrainingEpoch) -> None:
        console.print(f"epoch {epoch.epoch}/{epochs}: validation {100 * epoch.validation:.2f}%")

    def load(split: str) -> datasets.Images:
        return datasets.load(on, split, data_root, None, seed, form)

    form = datasets.Form(size=image_size, grey=grey)
    with _alone_at(output, overwrite):
        network, record = cnn.pretrain(on, load, epochs, seed, report, deformation)
        cnn.save(output, network, record)
    console.print(f"test {100 * record.test:.2f}%, kept in {output}", soft_wrap=True)
    console.print(f'use it as extractor = "cnn:{output}"', soft_wrap=True, markup=False)


@app.command("few-labels")
def few_labels(
    dataset: Annotated[str, typer.Option(help="Such as eth80 or caltech-face-motorbike.")],
    extractor: Annotated[str, typer.Option(help="As in a config: raw, gabor, cnn:mnist, ...")] = (
        "efficientnet-lite0"
    ),
    grid: Annotated[int, typer.Option(min=1, help="Maps are pooled to grid x grid positions.")] = 4,
    size: Annotated[
        int | None, typer.Option(min=8, help="Of the images that an ImageNet model sees.")
    ] = None,
    image_size: ImageSize = None,
    grey: Grey = None,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    config: Annotated[Path | None, typer.Option(help="A TOML file instead of few_labels.toml.")] = None,
    data_root: DataRoot = None,
    results_dir: ResultsDir = records.RESULTS,
    overwrite: Overwrite = False,
) -> None:
    """Learn from 5 ... all labelled images per class, beside logistic regression and a ReLU network."""
    from . import datasets
    from . import few_labels as study
    from .config import parsed
    from .features import Features
    from .figures import draw_few_labels
    from .tables import few_labels_table, render

    # In a folder of its own, as it is no record of a run.
    path = results_dir / "few-labels" / f"{dataset}.json"

    def report(result: FewLabelsResult) -> None:
        size = result.per_class or "all"
        console.print(f"seed {result.seed}, {size}: {result.classifier} {100 * result.accuracy:.2f}%")

    settings = study.read(config or study.SETTINGS)
    features = parsed(Features, {"extractor": extractor, "grid": grid, "size": size}, "few-labels")
    form = datasets.Form(size=image_size, grey=grey)
    cache = datasets.default_cache()
    with _alone_at(path, overwrite):
        record = study.study(dataset, form, features, settings, seeds, data_root, cache, report)
        records.write_record(path, record)
    console.print(render(few_labels_table(record), "md"), soft_wrap=True, markup=False)
    for file in (path, *draw_few_labels(record, path.parent)):
        console.print(f"written: {file}", soft_wrap=True, markup=False)


@app.command()
def table(
    format: Annotated[
        str, typer.Option(help="text, md, tex, html, or csv with a number in every cell.")
    ] = "text",
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...", help="Columns to show, such as method,accuracy,ties,published."
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="Decision rule of the accuracy and the difference; potential if none is named."),
    ] = None,
    methods: Methods = ALL,
    datasets: Datasets = ALL,
    wide: Annotated[bool, typer.Option("--wide", help="All columns as Markdown, however wide.")] = False,
    preset: Annotated[
        str | None, typer.Option(help="quick: first train what is missing on the digits data set.")
    ] = None,
    results_dir: Annotated[
        Path | None, typer.Option(help="Folder of the records; the quick preset has one of its own.")
    ] = None,
    overwrite: Overwrite = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train for the preset.")] = 2,
    cite: Annotated[
        bool, typer.Option("--cite", help="In tex, cite what a method follows; `cite` prints the entries.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write to a file instead of the terminal.")] = None,
) -> None:
    """Print recorded runs beside published numbers, one table per data set.

    Text fits 100 columns of a terminal; md, tex, html and csv have all columns, unless --columns or --rule
    choose some.
    """
    from .tables import WIDTH, render_all

    names = tuple(name.strip() for name in columns.split(",")) if columns is not None else None
    _require_a_table(format, names, rule, wide, cite)
    if preset not in (None, "quick"):
        raise SuiteError(f"--preset must be quick, got {preset!r}")
    if overwrite and not preset:
        raise SuiteError("--overwrite goes with --preset quick: without a preset nothing is trained")
    if output:
        records.require_writable(output.parent)
    folder = results_dir or (QUICK if preset else records.RESULTS)
    if preset:
        _train_quick(folder, _names(methods), _names(datasets), overwrite, workers)
    recorded = _recorded(folder, methods, datasets, "train with `run`, or use --preset quick")
    terminal = shutil.get_terminal_size((WIDTH, 0)).columns
    text = render_all(
        recorded,
        "md" if wide else format,
        names,
        rule,
        terminal if names else min(WIDTH, terminal),
        cite,
    )
    if output:
        with _alone_at(output), records.atomic_write(output) as file:
            file.write(text)
    else:
        sys.stdout.write(text)


def _require_a_table(
    format: str, names: tuple[str, ...] | None, rule: str | None, wide: bool, cite: bool
) -> None:
    """Refuse options that name no table, or contradict each other."""
    from .columns import BRIEF, RULE, require_known
    from .tables import FORMATS

    if format not in FORMATS:
        raise SuiteError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    if wide and (names is not None or rule is not None or format != "text"):
        raise SuiteError("--wide is the whole table as Markdown: leave out --columns, --rule and --format")
    if cite and format != "tex":
        raise SuiteError(f"--cite goes with --format tex, got {format!r}")
    require_known(names or BRIEF, rule or RULE)


@app.command("cite")
def cite_(
    methods: Annotated[
        list[str], typer.Argument(metavar="METHOD...", help="That `list` shows, or of published numbers.")
    ],
) -> None:
    """Print BibTeX of the suite and of the works that methods follow."""
    from .citations import bibliography, works
    from .tables import published

    known = {method for method, _ in catalog.available()} | set(published()["method"])
    if unknown := [method for method in methods if method not in known and not works(method)]:
        raise SuiteError(f"METHOD must be of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    sys.stdout.write(bibliography(methods))


def _train_quick(
    folder: Path, methods: list[str], datasets: list[str], overwrite: bool, workers: int
) -> None:
    from .sweep import Engine, is_recorded, report, runs_of, sweep
    from .sweep_progress import Board

    if others := [name for name in datasets if name != "digits"]:
        raise SuiteError(f"--preset quick is of digits, got --datasets {', '.join(others)}")
    here, keep = folder.resolve(), not overwrite
    runs = runs_of(methods, ["digits"], range(3), results=here, resume=keep, overwrite=overwrite)
    left = [run for run in runs if not is_recorded(run)]
    for run in left:
        if folder == QUICK and not (overwrite or run.checkpoint.exists()):
            run.record.unlink(missing_ok=True)  # of another config
    stderr = Console(stderr=True)
    if len(left) < len(runs):
        stderr.print(f"{len(runs) - len(left)} runs were recorded before, --overwrite trains them again")
    report(sweep(left, Engine(workers), Board(stderr)), len(left))


def _names(written: str) -> list[str]:
    """Names between commas; none for all."""
    return [] if written == ALL else [name.strip() for name in written.split(",")]


def _recorded(folder: Path, methods: str, datasets: str, remedy: str) -> list[Record]:
    """Records of a folder, of methods and data sets as they were written."""
    recorded = records.read_all(folder)
    if not recorded:
        raise SuiteError(f"{folder}: no records there; {remedy}")
    return records.of(recorded, _names(methods), _names(datasets))


@app.command("sweep")
def sweep_(
    methods: Methods = ALL,
    datasets: Datasets = ALL,
    seeds: Annotated[str, typer.Option(help="Such as 0-4 or 0,2,5-7.")] = "0",
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Of a Dask cluster that does the runs, such as tcp://host:8786."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the configs' numbers.")] = None,
    data_root: DataRoot = None,
    results_dir: ResultsDir = records.RESULTS,
    overwrite: Overwrite = False,
) -> None:
    """Train methods on data sets with seeds, several at a time; go on with what is half done."""
    from .sweep import Engine, parse_seeds, report, runs_of, sweep
    from .sweep_progress import Board

    if scheduler and workers > 1:
        raise SuiteError("--workers are processes on this machine, --scheduler has its own: pass one of them")
    runs = runs_of(
        _names(methods),
        _names(datasets),
        parse_seeds(seeds),
        epochs,
        results=results_dir.resolve(),
        data_root=data_root and data_root.resolve(),
        resume=not overwrite,
        overwrite=overwrite,
    )
    report(sweep(runs, Engine(workers, scheduler), Board(Console(stderr=True))), len(runs))
    console.print(f"{len(runs)} runs recorded in {results_dir}", soft_wrap=True, markup=False)


@app.command()
def search(
    ranges: Annotated[Path, typer.Argument(metavar="RANGES.toml", help="Method, data set, trials, ranges.")],
    output: Annotated[Path, typer.Option(help="Where the config that is chosen is written.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    data_root: DataRoot = None,
    storage_dir: Annotated[
        Path | None, typer.Option(help="Folder of the trials; the same one goes on with them.")
    ] = None,
) -> None:
    """Search for a config with Optuna: held-out accuracy against spikes. The test set stays closed."""
    from . import search as searching
    from .sweep import Engine

    records.require_writable(output.parent)
    folder = (storage_dir or records.RESULTS / "searches").resolve()
    root = data_root and data_root.resolve()
    study = searching.find(ranges.resolve(), folder, Engine(workers), root)
    with _alone_at(output):
        chosen = searching.write_chosen(ranges.resolve(), study, output)
    shown = Table("trial", "held-out accuracy", "spikes", "values")
    for trial in sorted(study.best_trials, key=lambda trial: trial.values[1]):
        accuracy, spikes = trial.values
        values = ", ".join(f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
                           for key, value in trial.params.items())  # fmt: skip
        mark = "*" if trial.number == chosen.number else ""
        shown.add_row(f"{trial.number}{mark}", f"{accuracy:.2%}", f"{spikes:.1f}", Text(values))
    console.print(shown)
    complete, diverged = searching.counted(study)
    if diverged:
        console.print(f"{diverged} of {complete + diverged} trials diverged")
    console.print(f"chosen: trial {chosen.number}, written to {output}", soft_wrap=True, markup=False)


@app.command()
def plot(
    methods: Methods = ALL,
    datasets: Datasets = ALL,
    results_dir: ResultsDir = records.RESULTS,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the figures; default: figures/ beside the records.")
    ] = None,
) -> None:
    """Draw learning curves, accuracy against spikes, decision and response times, rasters as PNG and SVG."""
    recorded = _recorded(results_dir, methods, datasets, "train with `run`")
    from .figures import draw_all

    for path in draw_all(recorded, output_dir or results_dir / "figures"):
        console.print(str(path), soft_wrap=True, markup=False)


@app.command()
def report(
    results_dir: ResultsDir = records.RESULTS,
    output: Annotated[Path, typer.Option(help="File of the page, FILE.html.")] = Path("report.html"),
) -> None:
    """Write one web page of all records, for any browser: tables to sort and filter, charts, the records."""
    from .report import write

    with _alone_at(output):
        write(results_dir, output)
    console.print(f"written: {output}", soft_wrap=True, markup=False)


@contextlib.contextmanager
def _alone_at(path: Path, overwrite: bool = True) -> Iterator[None]:
    """Keep other processes away from a file to be written, and remove what a killed one left of it."""
    records.require_writable(path.parent)
    busy = "another process is at this file; wait for it, or name another folder"
    with locked(path.with_name(f"{path.name}.lock"), busy):
        if path.exists() and not overwrite:
            raise SuiteError(f"{path}: exists already; pass --overwrite to write it again")
        records.remove_temporaries(path)
        yield


def main() -> None:
    """Run the command line."""
    run_command_line(app)


if __name__ == "__main__":
    main()
