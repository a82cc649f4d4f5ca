"""What a run shows while it runs: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from .records import Epoch
from .runner import Run


def describe(entry: Epoch) -> str:
    """Loss, accuracy, spikes, silent and dead neurons of an epoch in one line."""
    train = entry.train
    text = f"loss {train.loss:.2e}, train {train.accuracy:.2%} lenient"
    for part, accuracy in (("validation", entry.validation), ("test", entry.test)):
        if accuracy:
            text += f", {part} {accuracy['lenient']:.2%} lenient / {accuracy['potential']:.2%} potential"
    for name, form in (("spikes", ".0f"), ("silent", ".0%"), ("dead", "d")):
        if values := getattr(train, name):
            text += f", {name} " + " + ".join(f"{value:{form}}" for value in values)
    return text


class ConsoleProgress:
    """A bar over all epochs with the time left; where there is no terminal, up to `lines` lines a run."""

    def __init__(self, console: Console, lines: int = 20) -> None:
        self.console = console
        self.lines = lines
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

    def end_epoch(self, entry: Epoch) -> None:
        assert self.task is not None
        following = min(entry.epoch + 1, self.epochs)
        self.bar.update(self.task, description=f"epoch {following}/{self.epochs}", state=describe(entry))
        if not self.console.is_terminal and self._is_told(entry.epoch):
            self.console.print(f"epoch {entry.epoch}/{self.epochs}: {describe(entry)}", soft_wrap=True)

    def _is_told(self, epoch: int) -> bool:
        """Whether another of `lines` equal parts of the run is over; the last epoch ends the last one."""
        return epoch * self.lines // self.epochs > (epoch - 1) * self.lines // self.epochs

    def end(self) -> None:
        self.bar.stop()
