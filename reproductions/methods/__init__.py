"""The methods, one file each, which has its `Settings` and `build`; a config names its implementation.

Other packages add theirs as entry points of the group `ssnn_plugin.methods`; a file of one's own needs none.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..errors import SuiteError
from ..evaluation import Prediction
from ..records import EpochStatistics

IMPLEMENTATIONS = (
    "s4nn",
    "ts4tl",
    "bs4nn",
    "ds4nn",
    "every_bin",
    "mostafa",
    "sparse_ramp",
    "converted_relu",
    "tebn",
    "ltmd",
    "rate_backprop",
    "time_based",
    "s2stdp",
    "logistic",
    "sleep",
)
GROUP = "ssnn_plugin.methods"


class Method(Protocol):
    """What the runner asks of a method."""

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        """Train on all samples once; call `advance` with the number of samples done."""
        ...

    def predict(self, inputs: Tensor) -> Prediction:
        """What the network does on encoded images, e.g. spike times by layer and potentials of outputs."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was called."""
        ...


@dataclass(frozen=True)
class Implementation:
    """A method's module: `settings` reads its configs, `builder` makes the method."""

    name: str
    settings: type[Config]
    builder: Callable[[Any, tuple[int, ...], int, int, str], Method]
    file: Path

    @classmethod
    def of(cls, name: str, module: ModuleType) -> Implementation:
        """From a module.

        Raises:
            SuiteError: it has no `Settings` that is a `Config`, or no `build`.
        """
        settings, build = getattr(module, "Settings", None), getattr(module, "build", None)
        if not (isinstance(settings, type) and issubclass(settings, Config) and callable(build)):
            raise SuiteError(
                f"{module.__file__}: a method's file must have a class `Settings(Config)` and "
                f"`build(settings, shape, classes, seed, device)`, got {settings} and {build}"
            )
        return cls(name, settings, build, Path(str(module.__file__)))

    def build(self, settings: Config, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
        """The method with fresh weights, for images [channels, height, width]."""
        torch.manual_seed(random_seed(seed))
        return self.builder(settings, shape, classes, seed, device)

    def config(self, dataset: str) -> Path:
        """The config beside a method of another package or of one's own: `rule-digits.toml` for `rule.py`."""
        return self.file.with_name(f"{self.file.stem}-{dataset}.toml")

    def sha256(self) -> str | None:
        """Hash of the file; of the suite's own, none: their commit is recorded."""
        own = self.file.parent == Path(__file__).parent
        return None if own else hashlib.sha256(self.file.read_bytes()).hexdigest()


def names() -> tuple[str, ...]:
    """All implementations that a config can name."""
    return *IMPLEMENTATIONS, *installed()


def installed() -> dict[str, metadata.EntryPoint]:
    """The entry points of other packages, by name."""
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def find(name: str) -> Implementation:
    """An implementation by its name.

    Raises:
        SuiteError: there is none of that name, or the entry point of another package cannot be loaded.
    """
    if name in IMPLEMENTATIONS:
        return Implementation.of(name, importlib.import_module(f".{name}", __name__))
    if (entry := installed().get(name)) is None:
        raise SuiteError(f"implementation: must be one of {', '.join(map(repr, names()))}, got {name!r}")
    try:
        return Implementation.of(name, entry.load())
    except (ImportError, AttributeError) as error:
        raise SuiteError(f"entry point {name} = {entry.value} of {GROUP}: {error}") from error


def load(file: Path) -> Implementation:
    """The implementation in a file, under the file's name.

    Raises:
        SuiteError: no such file, or no method in it.
    """
    if file.suffix != ".py" or not file.is_file():
        raise SuiteError(f"--method must be a Python file, got {file}")
    spec = importlib.util.spec_from_file_location(f"_method_{file.stem}", file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks up what annotations name
    spec.loader.exec_module(module)
    return Implementation.of(file.stem, module)


def build(settings: Config, shape: tuple[int, ...], classes: int, seed: int, device: str) -> Method:
    """The method that a config names, with fresh weights, for images [channels, height, width]."""
    return find(settings.implementation).build(settings, shape, classes, seed, device)


def require_cpu(what: str, device: str) -> None:
    """Refuse another device for what is compiled for the CPU alone.

    Raises:
        SuiteError: names the device.
    """
    if device != "cpu":
        raise SuiteError(f"--device: {what} runs on the CPU, got {device!r}")


def random_seed(*key: int) -> int:
    """A seed that depends on the key alone, e.g. on seed, epoch and purpose: a resumed run repeats it."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])
