"""Which methods and configs there are: the suite's own, those of installed packages, or of one file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import datasets, methods
from .config import Config, parsed, read_toml
from .errors import SuiteError
from .methods import Implementation

CONFIGS = Path(__file__).parent / "configs"


def available() -> dict[tuple[str, str], Config]:
    """The configs of the suite and of installed methods, by (method, data set); of one name, the suite's."""
    installed = map(methods.find, methods.installed())
    beside = (method.config(dataset) for method in installed for dataset in datasets.NAMES)
    found: dict[tuple[str, str], Config] = {}
    for path in (*sorted(CONFIGS.glob("*.toml")), *filter(Path.is_file, beside)):
        config = read(path)
        found.setdefault((config.method, config.dataset), config)
    return found


def find(method: str, dataset: str) -> Config:
    """The config of a method on a data set; for one of the suite's own no other file is read.

    Raises:
        SuiteError: there is none; the message lists those that exist.
    """
    path = CONFIGS / f"{method}-{dataset}.toml"
    if path.is_file():
        config = read(path)
        if (config.method, config.dataset) == (method, dataset):
            return config
    configs = available()
    if (method, dataset) not in configs:
        known = listed(configs)
        raise SuiteError(f"no config for method {method!r} on data set {dataset!r}; there are: {known}")
    return configs[method, dataset]


def listed(configs: Iterable[tuple[str, str]]) -> str:
    """Methods and data sets in a line.

    >>> listed([("s4nn", "digits"), ("s4nn", "mnist")])
    's4nn on digits, s4nn on mnist'
    """
    return ", ".join(f"{method} on {dataset}" for method, dataset in configs)


def read(path: Path, implementation: Implementation | None = None) -> Config:
    """Read and validate a TOML config.

    Raises:
        SuiteError: names the file, the key, the value and what is allowed.
    """
    return validated(read_toml(path), str(path), implementation)


def validated(content: dict[str, Any], source: str, implementation: Implementation | None = None) -> Config:
    """The settings that tables describe, as the implementation reads them: the one given, or that they name.

    Raises:
        SuiteError: names the source, the key, the value and what is allowed.
    """
    if "implementation" not in content:
        raise SuiteError(f"{source}: implementation: missing key")
    name = content["implementation"]
    if implementation or name not in methods.IMPLEMENTATIONS:  # else in all that is installed
        names = (implementation.name,) if implementation else methods.names()
        if name not in names:
            allowed = ", ".join(map(repr, names))
            raise SuiteError(f"{source}: implementation: must be one of {allowed}, got {name!r}")
    return parsed((implementation or methods.find(name)).settings, content, source)
