"""Records of runs and checkpoints, written atomically and read with suspicion."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar, cast

import torch
from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)  # fmt: skip
from torch import Tensor

from ssnn_plugin.metrics import RULES

from .errors import SuiteError
from .locks import remove_leftovers

# The runs that come with the suite.
RECORDED = Path(__file__).parent / "results"
SCHEMA: Literal[1] = 1
# Before the digest of a file of tensors.
DIGEST_OF = b"ssnn_plugin sha256 "
# How the names of files end that are being written.
PARTIAL = ".partial"
# A list without strings and other lists, over several lines; a string of JSON has no line break.
LIST_OF_NUMBERS = re.compile(r"\[\n([^][{}\"]*)\]")
CHECKPOINT_KEYS = {"config_hash", "track_test", "state", "method"}


def _of_every_rule(accuracies: dict[str, float]) -> dict[str, float]:
    if set(accuracies) != set(RULES):
        raise ValueError(f"must have the rules {', '.join(RULES)}, got {', '.join(accuracies) or 'none'}")
    return accuracies


# By rule of decision.
Accuracies = Annotated[
    dict[str, Annotated[float, Field(ge=0, le=1)]],
    AfterValidator(_of_every_rule),
]


class Stored(BaseModel):
    """Part of a record: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


Kind = TypeVar("Kind", bound=Stored)


class Machine(Stored):
    """What the wall time was measured on."""

    processor: str
    cores: int | None
    threads: int
    gpu: str | None


class EpochStatistics(Stored):
    """Means over the training samples of an epoch; from `spikes` on, one number per layer of neurons.

    `silent` is the fraction of (sample, neuron) pairs without a spike, of neurons that fire at most once;
    `dead` is the number of neurons that no sample made fire. The first records have neither.
    """

    loss: float
    accuracy: float
    spikes: list[float]
    silent: list[float] = []
    dead: list[int] = []

    @classmethod
    def of(
        cls, loss: float, right: float, spikes: Sequence[Tensor], samples: int, *, fire_once: bool = True
    ) -> EpochStatistics:
        """From sums over the samples; `spikes` counts those of every neuron, layer by layer."""
        per_sample = [layer.sum().item() / samples for layer in spikes]
        silent = [1 - fired / layer.numel() for fired, layer in zip(per_sample, spikes, strict=True)]
        return cls(
            loss=loss / samples,
            accuracy=right / samples,
            spikes=per_sample,
            silent=silent if fire_once else [],
            dead=[int((layer == 0).sum()) for layer in spikes],
        )


class Epoch(Stored):
    """An epoch, counted from 1; accuracy on held-out images if there are some, on the test set if tracked."""

    epoch: int
    train: EpochStatistics
    validation: Accuracies | None = None
    test: Accuracies | None = None


class Example(Stored):
    """Spike times of one sample, layer by layer; JSON has no infinity, so silence is None."""

    label: int
    times: list[list[float | None]]


class Evaluation(Stored):
    """What a network does on a set of images, as `metrics.SpikeStatistics` counts it.

    Histograms are of the time of the first output spike, silence last; `right_histogram` is of those whose
    label was decided for, and the first records lack it. They are over the window, which is as long as
    `window` says where `t_max` is a bound; some records lack that. `multiplications` are those of
    real-valued pixels, where an image does not come as spikes, `readouts` the accuracy of other readouts.
    """

    accuracy: Accuracies
    samples: int
    total: list[float]
    until_decision: list[float]
    response_time: float
    tied: float
    silent: float
    response_histogram: list[int]
    right_histogram: list[int] | None = None
    window: float | None = None
    example: Example
    multiplications: int | None = None
    readouts: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None

    @property
    def neurons_fire(self) -> Literal["once", "repeatedly", "never"]:
        """How often a neuron fires; those that fire repeatedly are read after all steps, of every sample."""
        if not any(self.total) and not self.silent:
            return "never"
        # Runs of one decide in time, but records of the first versions say nothing of that.
        if self.right_histogram is not None:
            return "once"
        return "repeatedly" if self.response_histogram[-2] == self.samples else "once"

    @model_validator(mode="after")
    def _layers_and_samples_agree(self) -> Evaluation:
        layers = {len(self.total), len(self.until_decision), len(self.example.times)}
        if len(layers) > 1 or len(self.total) < 2:
            raise ValueError(
                "total, until_decision and example.times must have one entry per layer, two or more"
            )
        if sum(self.response_histogram) != self.samples:
            raise ValueError(f"response_histogram must add up to samples = {self.samples}")
        return self


class BestEpoch(Stored):
    """What the best test epoch would print; chooses nothing."""

    epoch: int
    accuracy: Accuracies


class PretrainingEpoch(Stored):
    """Accuracy on held-out images after an epoch, counted from 1."""

    epoch: int
    validation: float


class Pretraining(Stored):
    """How the suite trained an extractor."""

    pretrained_on: str
    classes: int
    epochs: int
    seed: int
    deformation: float = 1.0
    versions: dict[str, str]
    commit: str
    machine: Machine
    history: list[PretrainingEpoch]
    test: float


class Extractor(Stored):
    """Hash of a frozen extractor, and how it was trained if the suite did it."""

    hash: str
    pretrained: Pretraining | None = None


class Record(Stored):
    """A run. `data_sha256` is of all images and labels, which the first records lack.

    `method_sha256` is of the file of a method that is not the suite's own.
    """

    version: Literal[1] = Field(alias="schema")
    name: str
    method: str
    dataset: str
    config: dict[str, JsonValue]
    config_hash: str
    network_name: str
    t_max: int | float
    seed: int
    versions: dict[str, str]
    commit: str
    commits: list[str] = []
    machine: Machine
    wall_time_s: float
    history: list[Epoch]
    test: Evaluation
    best_test_epoch: BestEpoch | None = None
    extractor: Extractor | None = None
    data_sha256: str | None = None
    method_sha256: str | None = None

    @property
    def made_of(self) -> tuple[str, str, str]:
        """What records of one row share: name, hash of the config, hash of a method's own code."""
        return self.name, self.config_hash, self.method_sha256 or ""

    @property
    def features(self) -> str | None:
        """The extractor in front of the network, if there is one."""
        features = self.config.get("features")
        return str(features["extractor"]) if isinstance(features, dict) else None

    @property
    def counts_all_spikes(self) -> bool:
        """Whether the network fires, and nothing in front of it does that is not counted."""
        return self.features is None and self.test.neurons_fire != "never"

    @property
    def outputs_per_class(self) -> int:
        """Output neurons that stand for one class."""
        several = cast(dict[str, Any], self.config["network"]).get("per_class", 1)
        return int(several)

    @property
    def window(self) -> float | None:
        """Where the window of the outputs ends; None where `t_max` is but a bound and nothing says more."""
        if self.test.window is not None:
            return self.test.window
        *parts, _ = self.test.response_histogram
        begun = sum(part * samples for part, samples in enumerate(parts)) / len(parts) / self.test.samples
        # Images answer no earlier than the parts that they are in begin.
        return self.t_max if begun * self.t_max <= self.test.response_time * (1 + 1e-6) else None

    @property
    def time_unit(self) -> Literal["bins", "units"]:
        """Of times: in continuous time a unit is a time constant, or for ramps the span of the inputs."""
        return "bins" if isinstance(self.t_max, int) else "units"


class FewLabelsScores(Stored):
    """Test accuracy of a classifier; of a single-spike one that under every rule, and spikes per image.

    `C` is the inverse regularisation that logistic regression chose.
    """

    accuracy: float
    rules: Accuracies | None = None
    spikes: list[float] | None = None
    spikes_until_decision: list[float] | None = None
    C: float | None = None


class FewLabelsResult(FewLabelsScores):
    """Scores of a classifier that learned `labelled` images; `per_class` None is for all of them."""

    seed: int
    per_class: int | None
    labelled: int
    classifier: str


class FewLabels(Stored):
    """A study of accuracy against labelled images per class."""

    version: Literal[1] = Field(alias="schema")
    kind: Literal["few-labels"]
    dataset: str
    images: dict[str, JsonValue]
    features: dict[str, JsonValue]
    settings: dict[str, JsonValue] = {}
    seeds: int
    # Instead of the settings, in the first records.
    hidden: int | None = None
    steps: int | None = None
    versions: dict[str, str]
    commit: str
    machine: Machine
    results: list[FewLabelsResult]


def _own_results() -> Path:
    """Where records are kept unless told otherwise: never inside an installed package.

    In a clone that is the suite's own folder, else $SSNN_RESULTS or the user's data folder.
    """
    if (Path(__file__).parents[1] / "pyproject.toml").is_file():
        return RECORDED
    return Path(os.environ.get("SSNN_RESULTS") or user_data_path("ssnn_plugin") / "results")


RESULTS = _own_results()


def record_path(results: Path, name: str, seed: int) -> Path:
    """Where the record of a run is kept."""
    return results / f"{name}-seed{seed}.json"


def checkpoint_path(results: Path, name: str, seed: int) -> Path:
    """Where the checkpoint of a run in progress is kept."""
    return results / "checkpoints" / f"{name}-seed{seed}.pt"


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes its place only when it is complete.

    Raises:
        SuiteError: the folder or the disk does not take it.
    """
    require_writable(path.parent)
    try:
        with _taking_its_place(path, mode) as file:
            yield file
    except OSError as error:
        raise SuiteError(f"{path}: cannot be written ({error.strerror or error})") from error


def remove_temporaries(path: Path) -> None:
    """Remove what `atomic_write` left of a file when it was killed; for the only one who writes it."""
    remove_leftovers(path.parent, f".{path.name}.*{PARTIAL}")


@contextlib.contextmanager
def _taking_its_place(path: Path, mode: str) -> Iterator[IO[Any]]:
    handle, temporary = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def require_writable(folder: Path) -> None:
    """Create a folder, or say why nothing can be written there.

    Raises:
        SuiteError: names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SuiteError(
            f"{folder}: nothing can be written there ({error.strerror}); name another folder"
        ) from error


def write_record(path: Path, record: Stored) -> None:
    """Write a record as JSON, with what was set alone; numbers of one list stand on one line."""
    content = record.model_dump(mode="json", by_alias=True, exclude_unset=True)
    text = json.dumps(content, indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(LIST_OF_NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def read_record(path: Path) -> Record:
    """Read the record of a run.

    Raises:
        SuiteError: names the file that is cut short or is no record of this version, and what is wrong.
    """
    content = _read(path)
    with contextlib.suppress(KeyError, TypeError):  # what the first records lack
        network = content["config"]["network"]
        content = {"t_max": network["t_max"], "network_name": "-".join(map(str, network["hidden"]))} | content
    return _checked(Record, content, path)


def paths_of(results: Path) -> list[Path]:
    """The records of a folder, by file name; of the user's own also those that come with the suite."""
    folders = {RECORDED, results} if results == RESULTS else {results}
    paths = {
        path.name: path for folder in sorted(folders, key=results.__eq__) for path in folder.glob("*.json")
    }
    return [paths[name] for name in sorted(paths)]


def read_all(results: Path) -> list[Record]:
    """The records of a folder, as `read_by_path`."""
    return list(read_by_path(results).values())


def read_by_path(results: Path) -> dict[Path, Record]:
    """The records of `paths_of` a folder, and where they are.

    Raises:
        SuiteError: as `read_record`; two records of one run.
    """
    found: dict[object, Path] = {}
    recorded = {}
    for path in paths_of(results):
        record = read_record(path)
        other = found.setdefault((record.dataset, record.seed, *record.made_of), path)
        if other != path:
            raise SuiteError(f"{other} and {path} are records of one run: keep one of them")
        recorded[path] = record
    return recorded


def of(recorded: Sequence[Record], methods: Sequence[str], datasets: Sequence[str]) -> list[Record]:
    """Those of some methods and data sets; of all, where none is named.

    Raises:
        SuiteError: a name that no record has, or none of the methods, or data sets, that are named besides.
    """
    for kind, names, known in (
        ("--methods", methods, {record.method for record in recorded}),
        ("--datasets", datasets, {record.dataset for record in recorded}),
    ):
        if unknown := [name for name in names if name not in known]:
            raise SuiteError(
                f"{kind} must be recorded, of {', '.join(sorted(known))}, got {', '.join(map(repr, unknown))}"
            )
    chosen = [
        record
        for record in recorded
        if (not methods or record.method in methods) and (not datasets or record.dataset in datasets)
    ]
    without = [name for name in methods if name not in {record.method for record in chosen}]
    nowhere = [name for name in datasets if name not in {record.dataset for record in chosen}]
    if without or nowhere:
        raise SuiteError(f"no record of {', '.join(without or methods)} on {', '.join(nowhere or datasets)}")
    return chosen


def read_few_labels(path: Path) -> FewLabels:
    """Read the record of a study of few labels.

    Raises:
        SuiteError: as `read_record`.
    """
    return _checked(FewLabels, _read(path), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"{path}: not a complete record ({error}); delete it and run again") from error
    if not isinstance(content, dict):
        raise SuiteError(f"{path}: not a record but a {type(content).__name__}; delete it and run again")
    if content.get("schema", SCHEMA) != SCHEMA:
        found = content["schema"]
        raise SuiteError(f"{path}: written by another version (schema {found}, expected {SCHEMA})")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _checked(kind: type[Kind], content: dict[str, Any], path: Path) -> Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SuiteError(f"{path}: not a record ({wrong}); delete it and run again") from error


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values behind their digest."""
    saved = io.BytesIO()
    torch.save(content, saved)
    with atomic_write(path, "wb") as file:
        file.write(DIGEST_OF + hashlib.sha256(saved.getbuffer()).hexdigest().encode() + b"\n")
        file.write(saved.getbuffer())


def load_tensors(path: Path, with_digest: bool = False) -> dict[str, Any]:
    """Read what `save_tensors` wrote; nothing but tensors and plain values is unpickled.

    Args:
        with_digest: refuse files of the first versions, which have none.

    Raises:
        SuiteError: names the file that is damaged or holds something else.
    """
    try:
        saved = path.read_bytes()
        if saved.startswith(DIGEST_OF):
            head, _, saved = saved.partition(b"\n")
            if hashlib.sha256(saved).hexdigest().encode() != head.removeprefix(DIGEST_OF):
                raise ValueError("its content does not have its digest")
        elif with_digest or not saved.startswith(b"PK"):
            raise ValueError("it begins with no digest")
        content = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    except Exception as error:
        why = str(error) if type(error) in (ValueError, OSError) else type(error).__name__
        raise SuiteError(f"{path}: damaged, or no file of tensors: {why}") from error
    if not isinstance(content, dict):
        raise SuiteError(f"{path}: not a table of tensors but a {type(content).__name__}")
    return content


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values."""
    save_tensors(path, content)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        SuiteError: names the file that cannot be read.
    """
    try:
        content = load_tensors(path)
    except SuiteError as error:
        why = str(error).removeprefix(f"{path}: ")
        raise SuiteError(
            f"{path}: the checkpoint cannot be read ({why}); start again with --overwrite"
        ) from error
    if set(content) != CHECKPOINT_KEYS:
        raise SuiteError(f"{path}: not a checkpoint of this version; start again with --overwrite")
    return content


def versions() -> dict[str, str]:
    """Python and the packages that the numbers rest on."""
    names = ("ssnn-plugin", "torch", "numpy", "numba", "torchvision", "scikit-learn", "snntorch")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """Commit of the working tree, with "-dirty" where code was changed since; "unknown" outside it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--", "../ssnn_plugin", "../reproductions", ":!results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: str) -> Machine:
    """This one."""
    return Machine(
        processor=platform.machine(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if device == "cuda" else None,
    )
