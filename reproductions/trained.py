"""Trained networks in files: `run --keep` writes one, `load` takes it up."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from . import catalog, methods, records
from .config import Config
from .datasets import Images
from .errors import SuiteError, must_fit
from .methods import Implementation, Method

KEYS = {"name", "seed", "config", "commit", "shape", "classes", "state"}


class Trained(NamedTuple):
    """A method as its last epoch left it; `method.predict(config.encode(images))` is what it does."""

    name: str
    seed: int
    config: Config
    method: Method


def keep(path: Path, trained: Trained, images: Images) -> None:
    """Write a trained method, with the shape and the number of classes of what it was trained on."""
    content = {
        "name": trained.name,
        "seed": trained.seed,
        "config": trained.config.model_dump(mode="json"),
        "commit": records.commit(),
        "shape": list(images.shape),
        "classes": images.classes,
        "state": trained.method.state_dict(),
    }
    records.save_tensors(path, content)


def load(path: Path, implementation: Implementation | None = None, device: str = "cpu") -> Trained:
    """Take up a trained method; with features in front, `method.predict` takes these.

    Args:
        implementation: of a method that is not the suite's own, from `methods.load`.

    Raises:
        SuiteError: the file is damaged, holds something else, or is of another version of the method.
    """
    content = records.load_tensors(path, with_digest=True)
    if set(content) != KEYS:
        raise SuiteError(f"{path}: holds no trained network, which `run --keep` writes")
    config = catalog.validated(content["config"], str(path), implementation)
    chosen = implementation or methods.find(config.implementation)
    method = chosen.build(config, tuple(content["shape"]), content["classes"], content["seed"], device)
    with must_fit(path, "this version of the method"):
        method.load_state_dict(content["state"])
    return Trained(content["name"], content["seed"], config, method)
