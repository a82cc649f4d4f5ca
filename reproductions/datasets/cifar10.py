"""CIFAR-10: as torchvision has it, or as folders of image files, in archives or unpacked."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import SuiteError
from ..locks import locked
from .cache import fill, sha256
from .images import Images

FOLDER = "CIFAR-10"
BATCHES = "cifar-10-batches-py"
SHAPE = 3, 32, 32
CLASSES = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
SIZES = {"train": 50_000, "test": 10_000}
# Beside the images in the cache: what they were made of, and the hash of what was made.
ORIGIN = "origin.sha256"
LAYOUT = (
    f"CIFAR-10 (Krizhevsky 2009) is expected as torchvision has it, DIR/{BATCHES}/, or as image files "
    f"DIR/{FOLDER}/{{train,test}}/<class>/*.png or *.webp, or the same in DIR/{FOLDER}/{{train,test}}.tar.gz"
)


class File(NamedTuple):
    """An image file with the name of its class."""

    name: str
    label: str
    content: bytes


def load(split: str, data_root: Path | None, cache: Path) -> Images:
    """Load "train" or "test"; see `reproductions.datasets.load`.

    Image files come class by class, torchvision's in another order: other images are held out of the two.
    """
    root = cache if data_root is None else data_root
    if data_root is None or (root / BATCHES).is_dir():
        return _torchvision(split, root, download=data_root is None)
    _decode(root, cache)
    with np.load(cache / FOLDER / f"{split}.npz") as content:
        return _images(torch.from_numpy(content["x"]), torch.from_numpy(content["y"]))


def _torchvision(split: str, root: Path, download: bool) -> Images:
    from torchvision.datasets import CIFAR10

    try:
        with _alone(root) if download else contextlib.nullcontext():
            data = CIFAR10(root, train=split == "train", download=download)
    except (RuntimeError, OSError, tarfile.TarError) as error:
        raise SuiteError(f"{root}: {type(error).__name__}: {error}.\n{LAYOUT}") from error
    return _images(torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets))


def _alone(root: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from downloading to the same folder; they find the files there."""
    root.mkdir(parents=True, exist_ok=True)
    return locked(root / f".{BATCHES}.lock")


def _images(x: Tensor, y: Tensor) -> Images:
    return Images(x.flatten(1), y, 255, len(CLASSES), SHAPE)


def _decode(root: Path, cache: Path) -> None:
    """Make the cache hold the images of both splits as arrays."""
    origin = _origin(root)

    def make(folder: Path) -> None:
        made = folder / FOLDER
        made.mkdir(parents=True)
        for split in SIZES:
            x, y = _read(root, split)
            np.savez(made / f"{split}.npz", x=x, y=y)
        (made / ORIGIN).write_text(f"{origin}\n{_digest(made)}")

    def intact() -> bool:
        try:
            return (cache / FOLDER / ORIGIN).read_text() == f"{origin}\n{_digest(cache / FOLDER)}"
        except OSError:
            return False

    fill(cache, FOLDER, make, intact)


def _digest(folder: Path) -> str:
    return sha256(*(folder / f"{split}.npz" for split in SIZES))


def _origin(root: Path) -> str:
    """Hash of the archives, or of the files' contents."""
    return sha256(*(path for split in SIZES for path in _sources(root, split)))


def _sources(root: Path, split: str) -> list[Path]:
    """The archive of a split, or else its files."""
    archive = _archive(root, split)
    return [archive] if archive.is_file() else _paths(root, split)


def _archive(root: Path, split: str) -> Path:
    return root / FOLDER / f"{split}.tar.gz"


def _paths(root: Path, split: str) -> list[Path]:
    paths = sorted((root / FOLDER / split).glob("*/*.*"))
    if not paths:
        raise SuiteError(f"{root / FOLDER / split} holds no images. {LAYOUT}")
    return paths


def _files(root: Path, split: str) -> Iterator[File]:
    if not (archive := _archive(root, split)).is_file():
        for path in _paths(root, split):
            yield File(str(path), path.parent.name, path.read_bytes())
        return
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    name = Path(member.name)
                    yield File(f"{archive}: {name}", name.parent.name, content.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SuiteError(f"{archive}: damaged or cut short: {error}") from error


def _read(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """8-bit images [samples, 3, 32, 32] and labels, in the order of classes and names."""
    from PIL import Image, UnidentifiedImageError

    images, labels = [], []
    for file in sorted(_files(root, split)):
        try:
            with Image.open(BytesIO(file.content)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise SuiteError(f"{file.name}: not an image, damaged or cut short: {error}") from error
        if pixels.shape != (32, 32, 3) or file.label not in CLASSES:
            raise SuiteError(
                f"{file.name}: expected an image of 32 x 32 in a folder named after one of "
                f"{', '.join(CLASSES)}, got {pixels.shape[0]} x {pixels.shape[1]} in {file.label!r}"
            )
        images.append(pixels.transpose(2, 0, 1))
        labels.append(CLASSES.index(file.label))
    if len(images) != SIZES[split]:
        raise SuiteError(f"{root / FOLDER}: expected {SIZES[split]} {split} images, got {len(images)}")
    return np.stack(images), np.array(labels)
