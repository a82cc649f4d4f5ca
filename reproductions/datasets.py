"""Data sets as 8-bit images [samples, features] with labels, and their fixed validation split."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_dir
from torch import Tensor

from .errors import SuiteError

# The split is a property of the data set, the same for every seed of a run.
SPLIT_SEED = 12345


@dataclass(frozen=True)
class Images:
    """Intensities [samples, features] between 0 and `x_max`, and class numbers [samples].

    `shape` is that of an image: [channels, height, width].
    """

    x: Tensor
    y: Tensor
    x_max: int
    classes: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.y)

    def select(self, index: Tensor) -> Images:
        """The samples of an index."""
        return dataclasses.replace(self, x=self.x[index], y=self.y[index])


def load(name: str, split: str, data_root: Path | None = None, cache: Path | None = None) -> Images:
    """Load "train" or "test" of "digits", "mnist" or "fashion-mnist".

    `data_root` is read, never written: archives are checked and extracted into `cache`.

    Raises:
        SuiteError: names the missing or damaged file and the layout expected.
    """
    if name == "digits":
        return _digits(split)
    from torchvision import datasets

    kinds = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}
    return _torchvision(kinds[name], split, data_root, cache or default_cache())


def default_cache() -> Path:
    """Where extracted data sets are kept: $SSNN_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SSNN_CACHE") or user_cache_dir("ssnn_plugin")) / "data"


def hold_out(images: Images, validation: int) -> tuple[Images, Images]:
    """Split (training, validation), the same samples every time; training stays in file order.

    Raises:
        SuiteError: a validation part that leaves nothing to train on.
    """
    if validation >= len(images):
        raise SuiteError(f"validation must be below the {len(images)} training samples, got {validation}")
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out, kept = shuffled[:validation].sort().values, shuffled[validation:].sort().values
    return images.select(kept), images.select(held_out)


def _digits(split: str) -> Images:
    """scikit-learn's 1 797 digits of 8 x 8; a fixed, stratified fifth of them is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train, test = train_test_split(
        range(len(data.target)), test_size=0.2, stratify=data.target, random_state=SPLIT_SEED
    )
    index = sorted(train if split == "train" else test)
    x, y = torch.from_numpy(data.data[index]).to(torch.uint8), torch.from_numpy(data.target[index])
    return Images(x, y, 16, 10, (1, 8, 8))


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
    """Extract into a temporary folder first, so that the cache never holds half a data set."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            raw = Path(temporary, kind.__name__, "raw")
            raw.mkdir(parents=True)
            if data_root is not None:
                _copy_archives(kind, data_root, raw)
            try:
                kind(temporary, download=True)
            except (RuntimeError, OSError) as error:
                what = "downloading" if data_root is None else "extracting"
                raise SuiteError(_how_to_get(kind, f"{what} it failed ({type(error).__name__})")) from error
            if not _extracted(kind, cache):
                shutil.rmtree(cache / kind.__name__, ignore_errors=True)
            # Another process may have been faster; its copy is as good.
            with contextlib.suppress(OSError):
                Path(temporary, kind.__name__).rename(cache / kind.__name__)
    except OSError as error:
        raise SuiteError(
            f"{cache}: the cache cannot be written ({error.strerror}); set SSNN_CACHE to a folder of yours"
        ) from error


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
