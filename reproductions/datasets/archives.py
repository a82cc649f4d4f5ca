"""Data sets that torchvision knows as archives: MNIST and Fashion-MNIST."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..errors import SuiteError
from .cache import fill
from .images import Images


def load(name: str, split: str, data_root: Path | None, cache: Path) -> Images:
    """Load "train" or "test" of "mnist" or "fashion-mnist"; see `reproductions.datasets.load`."""
    from torchvision import datasets

    kinds = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}
    return _torchvision(kinds[name], split, data_root, cache)


def _torchvision(kind: Any, split: str, data_root: Path | None, cache: Path) -> Images:
    root = cache
    if data_root is not None and not (data_root / kind.__name__ / "raw").is_dir():
        raise SuiteError(_how_to_get(kind, f"{data_root / kind.__name__ / 'raw'} is no folder"))
    if data_root is not None and _extracted(kind, data_root):
        root = data_root
    elif not _extracted(kind, cache):
        _fill_cache(kind, data_root, cache)
    raw = root / kind.__name__ / "raw"
    try:
        dataset = kind(root, train=split == "train", download=False)
    except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
        raise SuiteError(f"{raw}: the extracted files are damaged or cut short: {error}") from error
    expected = 60_000 if split == "train" else 10_000
    if not len(dataset.data) == len(dataset.targets) == expected:
        raise SuiteError(f"{raw}: expected {expected} {split} images and labels, "
                         f"got {len(dataset.data)} and {len(dataset.targets)}")  # fmt: skip
    return Images(dataset.data.flatten(1), dataset.targets, 255, len(kind.classes), (1, 28, 28))


def _extracted(kind: Any, root: Path) -> bool:
    raw = root / kind.__name__ / "raw"
    return all((raw / name.removesuffix(".gz")).is_file() for name, _ in kind.resources)


def _fill_cache(kind: Any, data_root: Path | None, cache: Path) -> None:
    def make(folder: Path) -> None:
        raw = folder / kind.__name__ / "raw"
        raw.mkdir(parents=True)
        if data_root is not None:
            _copy_archives(kind, data_root, raw)
        try:
            kind(folder, download=True)
        except (RuntimeError, OSError) as error:
            what = "downloading" if data_root is None else "extracting"
            raise SuiteError(_how_to_get(kind, f"{what} it failed ({type(error).__name__})")) from error
        if not _extracted(kind, cache):
            shutil.rmtree(cache / kind.__name__, ignore_errors=True)

    fill(cache, kind.__name__, make)


def _copy_archives(kind: Any, data_root: Path, raw: Path) -> None:
    from torchvision.datasets.utils import calculate_md5

    for name, md5 in kind.resources:
        source = data_root / kind.__name__ / "raw" / name
        if not source.is_file():
            raise SuiteError(_how_to_get(kind, f"{source} is missing"))
        if (found := calculate_md5(source)) != md5:
            raise SuiteError(f"{source}: damaged or cut short: its md5 is {found}, expected {md5}")
        shutil.copyfile(source, raw / name)


def _how_to_get(kind: Any, problem: str) -> str:
    files = "\n".join(f"    {kind.__name__}/raw/{name}" for name, _ in kind.resources)
    return (
        f"{kind.__name__} is not at hand: {problem}.\n"
        f"Without a network, name a folder with --data-root DIR that holds the original archives:\n{files}"
    )
