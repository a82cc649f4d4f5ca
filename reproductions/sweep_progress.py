"""How far many runs are, in whatever process: each keeps it in a small file beside its checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from .records import Epoch
from .runner import Run

SECONDS = 0.5


class FileProgress:
    """Writes how far a run is, twice a second at most."""

    def __init__(self, run: Run) -> None:
        self.path, self.written = run.progress, 0.0
        self.samples = self.total = 0

    def begin(self, run: Run, epoch: int, samples: int) -> None:
        self.samples, self.total = epoch * samples, run.config.training.epochs * samples
        self._write()

    def advance(self, samples: int) -> None:
        self.samples += samples
        if time.monotonic() - self.written > SECONDS:
            self._write()

    def end_epoch(self, entry: Epoch) -> None:
        pass

    def end(self) -> None:
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        # A display is not worth a run: a full disk stops it at the next checkpoint.
        with contextlib.suppress(OSError):
            self.path.write_text(json.dumps([self.samples, self.total, os.getpid()]))
        self.written = time.monotonic()


class Board:
    """One display for all: a bar over the runs and one for each that is going on; else a line per run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.finished = 0
        self.runs: Sequence[Run] = ()
        self.bars: dict[Path, TaskID] = {}
        self.began = time.monotonic()

    @contextlib.contextmanager
    def over(self, runs: Sequence[Run]) -> Iterator[None]:
        """Show these runs."""
        self.runs, self.finished, self.began = runs, 0, time.monotonic()
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.all = self.bar.add_task("runs", total=len(runs))
        stop = threading.Event()
        watch = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        with self.bar:
            watch.start()
            try:
                yield
            finally:
                stop.set()
                watch.join()

    def done(self, run: Run, why: str | None) -> None:
        """A run came to its end: recorded, or not."""
        self.finished += 1
        self.bar.advance(self.all)
        state = "failed" if why else "recorded"
        seconds = time.monotonic() - self.began
        line = f"{self.finished}/{len(self.runs)} {run.name} seed {run.seed}: {state}, after {seconds:.0f} s"
        self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def restarted(self, why: str) -> None:
        """The engine lost processes; what was going on is taken up from its checkpoints."""
        self.bar.console.print(f"processes were lost ({why}): going on from the checkpoints", markup=False)

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(SECONDS):
            if self.console.is_terminal:
                self._look()

    def _look(self) -> None:
        going = {}
        for run in self.runs:
            with contextlib.suppress(OSError, ValueError):  # not going on, or being written
                going[run.progress] = run, json.loads(run.progress.read_text())
        for path in self.bars.keys() - going.keys():
            self.bar.remove_task(self.bars.pop(path))
        for path, (run, (samples, total, process)) in going.items():
            if path not in self.bars:
                name = f"{run.name} seed {run.seed} (process {process})"
                self.bars[path] = self.bar.add_task(name, total=total)
            self.bar.update(self.bars[path], completed=samples)
