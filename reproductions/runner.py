"""One run: train, checkpoint after every epoch, look at the test set once, write the record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import BaseModel

from . import datasets, methods, records, trained
from .allocator import keep_freed_memory
from .config import Config
from .datasets import Images
from .errors import Diverged, SuiteError, must_fit
from .evaluation import evaluate
from .features import Pipeline
from .locks import locked
from .methods import Implementation, Method
from .records import BestEpoch, Epoch, Evaluation, Extractor, Record
from .trained import Trained


@dataclass(frozen=True)
class Run:
    """What to run and where to keep it; without an implementation, by the one that the config names."""

    config: Config
    name: str
    seed: int = 0
    device: str = "cpu"
    results: Path = records.RESULTS
    data_root: Path | None = None
    cache: Path | None = None
    resume: bool = False
    overwrite: bool = False
    track_test: bool = False
    keep: Path | None = None
    implementation: Implementation | None = None

    @property
    def chosen(self) -> Implementation:
        return self.implementation or methods.find(self.config.implementation)

    @property
    def record(self) -> Path:
        return records.record_path(self.results, self.name, self.seed)

    @property
    def checkpoint(self) -> Path:
        return records.checkpoint_path(self.results, self.name, self.seed)

    @property
    def lock(self) -> Path:
        return self.checkpoint.with_suffix(".lock")

    @property
    def progress(self) -> Path:
        """Where a run of a sweep says how far it is."""
        return self.checkpoint.with_suffix(".progress")


def name_with_epochs(name: str, epochs: int | None) -> str:
    """The name of a run that has another number of epochs than its config, if it has.

    >>> name_with_epochs("s4nn-mnist", None), name_with_epochs("s4nn-mnist", 3)
    ('s4nn-mnist', 's4nn-mnist-epochs3')
    """
    return f"{name}-epochs{epochs}" if epochs else name


class Progress(Protocol):
    """What is told of a run while it runs."""

    def begin(self, run: Run, epoch: int, samples: int) -> None: ...
    def advance(self, samples: int) -> None: ...
    def end_epoch(self, entry: Epoch) -> None: ...
    def end(self) -> None: ...


class State(BaseModel):
    """What a checkpoint holds beside the method's own state; the suite's first ones have no `origin`."""

    epoch: int = 0
    wall_time_s: float = 0.0
    history: list[Epoch] = []
    commits: list[str] = []
    origin: str | None = None


class Origin(NamedTuple):
    """What the numbers of a run depend on beside its config, as it was when the run began.

    Hash of the images and labels, the extractor, hash of the file of a method that is not the suite's own.
    """

    data: str
    extractor: Extractor | None
    method: str | None

    @classmethod
    def of(cls, run: Run, pipeline: Pipeline, *parts: Images) -> Origin:
        """Of the parts of a data set that a run reads, with the pipeline fitted to it."""
        extractor = pipeline.description() if run.config.features else None
        return cls(_content(*parts), extractor, run.chosen.sha256())

    def digest(self) -> str:
        """One hash of them all."""
        extractor = self.extractor.hash if self.extractor else None
        return hashlib.sha256(json.dumps([self.data, extractor, self.method]).encode()).hexdigest()


def execute(run: Run, progress: Progress) -> Record:
    """Run to the end, or on from the checkpoint; return the record that was written.

    Raises:
        SuiteError: a record or checkpoint is in the way, another process is at the same run, the device,
            the data or the results folder cannot be used.
    """
    with _alone_at(run):
        pipeline, whole = _pipeline(run), _load(run, "train")
        training, validation = _split(run, whole, pipeline)
        # Opened now, so that what is wrong with it shows before hours of training; used after the last epoch.
        test = _load(run, "test")
        origin = Origin.of(run, pipeline, whole, test)
        test = pipeline(test)
        looked_at = {"validation": validation} | ({"test": test} if run.track_test else {})
        method, state = _train(run, training, looked_at, origin, progress)
        record = _record(run, state, evaluate(method, run.config, test), origin)
        records.write_record(run.record, record)
        if run.keep:
            trained.keep(run.keep, Trained(run.name, run.seed, run.config, method), training)
        run.checkpoint.unlink(missing_ok=True)
        return record


def validate(run: Run, progress: Progress) -> Evaluation:
    """Train as `execute` does, and look at the held-out images; the test set is not opened, nothing recorded.

    Raises:
        SuiteError: as `execute`; a config that holds no images out.
    """
    if not run.config.validation:
        raise SuiteError(f"{run.name}: validation must be above 0 to look at held-out images, got 0")
    with _alone_at(run):
        pipeline, whole = _pipeline(run), _load(run, "train")
        training, validation = _split(run, whole, pipeline)
        origin = Origin.of(run, pipeline, whole)
        method, _ = _train(run, training, {"validation": validation}, origin, progress)
        held_out = evaluate(method, run.config, validation)
        run.checkpoint.unlink(missing_ok=True)
        return held_out


@contextlib.contextmanager
def _alone_at(run: Run) -> Iterator[None]:
    """Refuse what would overwrite earlier work; keep other processes away from the run."""
    records.require_writable(run.results)
    records.require_writable(run.checkpoint.parent)
    if run.keep:
        records.require_writable(run.keep.parent)
    with locked(run.lock, "another process is at this run; wait for it, or name another results folder"):
        for path in (run.record, run.checkpoint):
            records.remove_temporaries(path)
        run.progress.unlink(missing_ok=True)
        _prepare(run)
        yield


def _pipeline(run: Run) -> Pipeline:
    return Pipeline(run.config.features, run.cache or datasets.default_cache(), run.seed)


def _split(run: Run, whole: Images, pipeline: Pipeline) -> tuple[Images, Images]:
    """What is trained on, to which the pipeline is fitted, and what is held out."""
    training, validation = datasets.hold_out(whole, run.config.validation)
    training = pipeline.fit(training)
    return training, pipeline(validation) if len(validation) else validation


def _train(
    run: Run, training: Images, looked_at: dict[str, Images], origin: Origin, progress: Progress
) -> tuple[Method, State]:
    """Train from the checkpoint or the beginning, with a checkpoint after every epoch."""
    keep_freed_memory()
    method = run.chosen.build(run.config, training.shape, training.classes, run.seed, run.device)
    if run.overwrite:
        run.checkpoint.unlink(missing_ok=True)
    state = _restore(run, method, origin.digest()) if run.resume else State(origin=origin.digest())
    commit = records.commit()
    state.commits = [*(earlier for earlier in state.commits if earlier != commit), commit]
    times = run.config.encode(training)

    progress.begin(run, state.epoch, len(training))
    try:
        while state.epoch < run.config.training.epochs:
            started = time.perf_counter()
            learned = method.train_epoch(state.epoch, times, training.y, progress.advance)
            if not math.isfinite(learned.loss):
                raise Diverged(f"training diverged in epoch {state.epoch + 1}: the loss is {learned.loss}")
            accuracies = {
                part: evaluate(method, run.config, images).accuracy
                for part, images in looked_at.items()
                if len(images)
            }
            entry = Epoch(epoch=state.epoch + 1, train=learned, **accuracies)
            state.epoch += 1
            state.wall_time_s += time.perf_counter() - started
            state.history.append(entry)
            _save(run, state, method)
            progress.end_epoch(entry)
    finally:
        progress.end()
    return method, state


def _load(run: Run, split: str) -> Images:
    config = run.config
    images = datasets.load(config.dataset, split, run.data_root, run.cache, run.seed, config.images)
    count = config.samples.train if split == "train" else config.samples.test
    return images if count is None else datasets.draw(images, count, run.seed)


def _prepare(run: Run) -> None:
    """Refuse what would overwrite earlier work or fail only after hours."""
    if run.resume and run.overwrite:
        raise SuiteError("--resume goes on with a run, --overwrite starts it again: pass one of them")
    if run.device == "cuda" and not torch.cuda.is_available():
        raise SuiteError("--device: 'cuda' was asked for, but torch finds no GPU; use 'cpu'")
    if run.keep and run.keep.is_dir():
        raise SuiteError(f"{run.keep}: is a folder; name a file to keep the network in")
    # A run that was killed between its record and its end has kept its network.
    ended = run.resume and run.record.exists()
    if run.keep and run.keep.exists() and not (run.overwrite or ended):
        raise SuiteError(f"{run.keep}: exists; name another file to keep the network in, or remove it")
    if run.overwrite:
        return
    if run.record.exists() and not (run.resume and run.checkpoint.exists()):
        raise SuiteError(f"{run.record}: this run is recorded already; pass --overwrite to run it again")
    if run.checkpoint.exists() and not run.resume:
        raise SuiteError(
            f"{run.checkpoint}: an unfinished run of the same name; pass --resume to go on with it "
            f"or --overwrite to start again"
        )


def _save(run: Run, state: State, method: Method) -> None:
    content = {
        "config_hash": run.config.digest(),
        "track_test": run.track_test,
        "state": state.model_dump(exclude_none=True),
        "method": method.state_dict(),
    }
    records.write_checkpoint(run.checkpoint, content)


def _restore(run: Run, method: Method, origin: str) -> State:
    if not run.checkpoint.exists():
        return State(origin=origin)
    content = records.read_checkpoint(run.checkpoint)
    if content["config_hash"] != run.config.digest():
        raise SuiteError(
            f"{run.checkpoint}: written under another config ({content['config_hash']}, "
            f"this is {run.config.digest()}); pass --overwrite to start again"
        )
    if content["track_test"] != run.track_test:
        was = "with" if content["track_test"] else "without"
        raise SuiteError(f"{run.checkpoint}: the run was begun {was} --track-test; go on in the same way")
    with must_fit(run.checkpoint, "this run", "; pass --overwrite to start again"):
        method.load_state_dict(content["method"])
        # JSON, for the tuples of older checkpoints.
        state = State.model_validate_json(json.dumps(content["state"]))
    if state.origin not in (None, origin):
        raise SuiteError(
            f"{run.checkpoint}: begun with other images, another extractor or another version of the "
            "method's file; pass --overwrite to start again"
        )
    if [entry.epoch for entry in state.history] != list(range(1, state.epoch + 1)):
        raise SuiteError(
            f"{run.checkpoint}: is of epoch {state.epoch} and tells of {len(state.history)}; "
            "pass --overwrite to start again"
        )
    return state


def _content(*parts: Images) -> str:
    """Hash of images and labels, whatever files they came in."""
    digest = hashlib.sha256()
    for images in parts:
        digest.update(f"{list(images.x.shape)}".encode())
        for tensor in (images.x, images.y):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _record(run: Run, state: State, test: Evaluation, origin: Origin) -> Record:
    config, kept = run.config, dict[str, Any]()
    if tracked := [(entry.test, entry.epoch) for entry in state.history if entry.test]:
        best, epoch = max(tracked, key=lambda pair: pair[0]["lenient"])
        kept["best_test_epoch"] = BestEpoch(epoch=epoch, accuracy=best)
    if origin.extractor:
        kept["extractor"] = origin.extractor
    if origin.method:
        kept["method_sha256"] = origin.method
    return Record(
        schema=records.SCHEMA,
        name=run.name,
        method=config.method,
        dataset=config.dataset,
        config=config.model_dump(mode="json"),
        config_hash=config.digest(),
        network_name=config.network_name,
        t_max=config.t_max,
        seed=run.seed,
        versions=records.versions(),
        commit=state.commits[-1],
        commits=state.commits,
        machine=records.machine(run.device),
        wall_time_s=round(state.wall_time_s, 1),
        history=state.history,
        test=test,
        data_sha256=origin.data,
        **kept,
    )
