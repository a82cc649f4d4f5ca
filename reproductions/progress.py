"""What a run shows while it runs: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from .runner import Run


class Progress(Protocol):
    """What the runner reports."""

    def begin(self, run: Run, epoch: int, samples: int) -> None: ...
    def advance(self, samples: int) -> None: ...
    def end_epoch(self, entry: dict[str, Any]) -> None: ...
    def end(self) -> None: ...


def describe(entry: dict[str, Any]) -> str:
    """Loss, accuracy, spikes, silent and dead neurons of an epoch in one line."""
    train = entry["train"]
    text = f"loss {train['loss']:.2e}, train {train['accuracy']:.2%} lenient"
    for part in ("validation", "test"):
        if part in entry:
            accuracy = entry[part]
            text += f", {part} {accuracy['lenient']:.2%} lenient / {accuracy['potential']:.2%} potential"
    for name, form in (("spikes", ".0f"), ("silent", ".0%"), ("dead", "d")):
        text += f", {name} " + " + ".join(f"{value:{form}}" for value in train[name])
    return text


class ConsoleProgress:
    """A bar over all epochs with the time left; one line per epoch where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.epochs = 0

    def begin(self, run: Run, epoch: int, samples: int) -> None:
        self.epochs = run.config.training.epochs
        self.console.print(
            f"{run.name} seed {run.seed}: {self.epochs} epochs of {samples} samples"
            + (f", going on after epoch {epoch}" if epoch else ""),
            markup=False,
        )
        self.bar.start()
        self.task = self.bar.add_task(
            f"epoch {epoch + 1}/{self.epochs}", total=self.epochs * samples, state=""
        )
        self.bar.advance(self.task, epoch * samples)

    def advance(self, samples: int) -> None:
        assert self.task is not None
        self.bar.advance(self.task, samples)

    def end_epoch(self, entry: dict[str, Any]) -> None:
        assert self.task is not None
        following = min(entry["epoch"] + 1, self.epochs)
        self.bar.update(self.task, description=f"epoch {following}/{self.epochs}", state=describe(entry))
        if not self.console.is_terminal:
            self.console.print(f"epoch {entry['epoch']}/{self.epochs}: {describe(entry)}", soft_wrap=True)

    def end(self) -> None:
        self.bar.stop()
