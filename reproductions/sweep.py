"""Many runs, on the processors of this machine or on the workers of a Dask cluster, by joblib."""

from __future__ import annotations

import contextlib
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import joblib
import torch

from . import catalog, records
from .errors import SuiteError
from .locks import locked
from .runner import Run, execute, name_with_epochs
from .sweep_progress import Board, FileProgress

# Of the engine, without that any run came to its end in between: then a run kills its process.
MOST_RESTARTS = 3
Key: TypeAlias = tuple[str, int]
# A worker of Dask may have several threads, and the random numbers of a process are one stream.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Engine:
    """Where runs are done.

    Args:
        workers: processes on this machine; 1 is this process.
        scheduler: address of a Dask scheduler, such as tcp://host:8786, instead. Its workers have this
            suite installed and see the same folders.
    """

    workers: int = 1
    scheduler: str | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[..., Iterator[Any]]]:
        """What maps a function over arguments, each in a process of its own, results as they come.

        Raises:
            SuiteError: Dask is not installed, or no scheduler answers.
        """
        options: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}
        if self.scheduler is None:
            with warnings.catch_warnings():
                # loky renews a process that has grown, between two runs; nothing is lost.
                warnings.filterwarnings(
                    "ignore", message="A worker stopped while some jobs", category=UserWarning
                )
                yield self._map(joblib.Parallel(self.workers, pre_dispatch="all", **options))
            return
        with self._client() as client, joblib.parallel_config("dask", client=client):
            yield self._map(joblib.Parallel(-1, pre_dispatch="all", **options))

    @staticmethod
    def _map(parallel: joblib.Parallel) -> Callable[..., Iterator[Any]]:
        def over(function: Callable[..., Any], *arguments: Sequence[Any]) -> Iterator[Any]:
            return parallel(joblib.delayed(function)(*each) for each in zip(*arguments, strict=True))  # type: ignore[no-any-return]

        return over

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        try:
            from distributed import Client
        except ModuleNotFoundError as error:
            raise SuiteError('--scheduler needs Dask: pip install "ssnn-plugin[dask]"') from error
        try:
            client = Client(self.scheduler, timeout=10)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise SuiteError(f"--scheduler: no scheduler answers at {self.scheduler} ({error})") from error
        with client:
            if not client.ncores():  # type: ignore[no-untyped-call]
                raise SuiteError(f"--scheduler: {self.scheduler} has no workers; start `dask worker` there")
            yield client

    @property
    def threads(self) -> int | None:
        """For torch in each process; None leaves them as they are."""
        if self.scheduler is not None or self.workers == 1:
            return None
        return max(1, int(joblib.cpu_count()) // self.workers)


@dataclass(frozen=True)
class Failure:
    """A run that came to no record, and why."""

    run: Run
    why: str


def runs_of(
    methods: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    epochs: int | None = None,
    **options: Any,
) -> list[Run]:
    """A run of every method on every data set with every seed, where there is a config; the seeds together.

    Args:
        methods, datasets: names; none are all.
        epochs: instead of the configs' numbers.
        options: of every `Run`.

    Raises:
        SuiteError: a method or data set without any config among those that were asked for.
    """
    configs = catalog.available()
    wanted = {
        (method, dataset): config
        for (method, dataset), config in configs.items()
        if (not methods or method in methods) and (not datasets or dataset in datasets)
    }
    for kind, names, found in (
        ("method", methods, {method for method, _ in wanted}),
        ("data set", datasets, {dataset for _, dataset in wanted}),
    ):
        if missing := [name for name in names if name not in found]:
            known = catalog.listed(configs)
            raise SuiteError(f"no config for {kind} {missing[0]!r} among those asked for; there are: {known}")
    return [
        Run(config.with_epochs(epochs), name_with_epochs(f"{method}-{dataset}", epochs), seed, **options)
        for (method, dataset), config in wanted.items()
        for seed in seeds
    ]


def parse_seeds(text: str) -> list[int]:
    """Seeds of a list such as "0-4" or "0,2,5-7".

    Raises:
        SuiteError: anything else.
    """
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) if part else range(0) for part in parts]
    seeds = [seed for these in ranges for seed in these]
    if not all(ranges) or len(set(seeds)) < len(seeds) or max(seeds) >= 2**32:
        raise SuiteError(f"--seeds must be numbers and ranges such as 0-4 or 0,2,5-7, got {text!r}")
    return seeds


def sweep(runs: Sequence[Run], engine: Engine, board: Board) -> list[Failure]:
    """Do all runs that are not recorded yet, going on from their checkpoints; return those that failed.

    A run whose process dies is taken up by another one, and ends with the same numbers.

    Raises:
        SuiteError: the engine cannot be had.
    """
    for run in runs:
        if run.overwrite and run.checkpoint.exists():
            # Whoever is at it keeps it: what is wrong then is told when the run begins.
            with contextlib.suppress(SuiteError, OSError), locked(run.lock, "another process is at it"):
                run.checkpoint.unlink(missing_ok=True)
    left = {(run.name, run.seed): run for run in runs}
    failures: list[Failure] = []
    restarts = 0
    with board.over(runs):
        while left and restarts <= MOST_RESTARTS:
            waiting = in_order(left.values())
            with engine.open() as over:
                try:
                    for key, why in over(_run_one, waiting, [engine.threads] * len(waiting)):
                        run, restarts = left.pop(key), 0
                        failures += [Failure(run, why)] if why else []
                        board.done(run, why)
                except SuiteError:
                    raise
                except Exception as error:  # the engine's own: runs hand theirs over
                    restarts, reason = restarts + 1, error
                    left = {key: going_on_with(run) for key, run in left.items()}
                    board.restarted(type(error).__name__)
        for run in left.values():
            failures.append(Failure(run, f"its process died {restarts} times ({type(reason).__name__})"))
            board.done(run, failures[-1].why)
    return failures


def going_on_with(run: Run) -> Run:
    """A run that is to go on from its checkpoint, if there is one; what it overwrites it has begun to."""
    begun = run.overwrite and run.checkpoint.exists()
    return replace(run, overwrite=False, resume=True) if begun else run


def in_order(runs: Iterable[Run]) -> list[Run]:
    """First a run of each config, which compiles what its other seeds need, before these.

    Of either the longest first, as far as a config tells: one that starts last is waited for alone.
    """
    longest = sorted(runs, key=lambda run: -run.config.training.epochs)
    firsts = {run.name: run for run in reversed(longest)}
    return sorted(longest, key=lambda run: run is not firsts[run.name])


def _run_one(run: Run, threads: int | None) -> tuple[Key, str | None]:
    """Do a run in this process; return what was wrong with it, if anything."""
    with _one_at_a_time:
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            if not is_recorded(run):
                execute(run, FileProgress(run))
        except SuiteError as error:
            return (run.name, run.seed), str(error)
        except Exception:
            return (run.name, run.seed), traceback.format_exc()
    return (run.name, run.seed), None


def is_recorded(run: Run) -> bool:
    """Whether there is a record of the same config that is not to be, or being, overwritten."""
    if run.overwrite or not run.record.exists() or (run.resume and run.checkpoint.exists()):
        return False
    record = records.read_record(run.record)
    return (record.config_hash, record.method_sha256) == (run.config.digest(), run.chosen.sha256())


def report(failures: Sequence[Failure], of: int) -> None:
    """Raise what is to be said of runs that failed, if any did."""
    if failures:
        told = "\n".join(f"{f.run.name} seed {f.run.seed}: {f.why}" for f in failures)
        advice = "the same command goes on with them"
        if any(failure.run.overwrite for failure in failures):
            advice = "for these alone, run the same command: --overwrite begins anew, without it they go on"
        raise SuiteError(f"{len(failures)} of {of} runs failed; {advice}.\n{told}")
