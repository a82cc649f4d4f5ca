"""Data sets that are folders of image files: ETH-80 and the faces and motorbikes of Caltech-101."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from ..errors import SuiteError
from .cache import fill, sha256
from .images import Images

ETH80, CALTECH = "ETH-80", "caltech101"
ETH80_ARCHIVE = "https://github.com/Kai-Xuan/ETH-80/archive/refs/heads/master.zip"
# Of the names of its images; the branch may move, and what the pixels are is not published.
ETH80_NAMES = "2dabc590838a73e1f7748a7412156e449da036e88518535916adeaf5a3761bc0"
LAYOUTS = {
    ETH80: "ETH-80 (Leibe & Schiele 2003; github.com/Kai-Xuan/ETH-80) is expected as "
    "DIR/ETH-80/<class>/<object>/*.png",
    CALTECH: "Caltech-101 (Fei-Fei et al. 2004; data.caltech.edu) is expected as torchvision has it: "
    "DIR/caltech101/101_ObjectCategories/{Faces,Motorbikes}/*.jpg",
}
# Beside the images in the cache.
DIGEST = "images.sha256"
CALTECH_CLASSES = "Faces", "Motorbikes"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm"}


class Form(BaseModel):
    """What images are converted to: height and width, grey or RGB; None leaves it to the data set."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    size: tuple[PositiveInt, PositiveInt] | None = None
    grey: bool | None = None


@dataclass(frozen=True)
class Files:
    """Image files with their classes, and which of them show the same object."""

    paths: list[Path]
    y: Tensor
    objects: Tensor
    classes: list[str]


@dataclass(frozen=True)
class Kind:
    """How a data set is found, read and split: `test(files, generator)` marks the test samples."""

    folder: str
    find: Callable[[Path], Files]
    download: Callable[[Path], object]
    grey: bool
    size: tuple[int, int]
    test: Callable[[Files, torch.Generator], Tensor]
    by_object: bool = False


def load(
    name: str,
    split: str,
    data_root: Path | None,
    cache: Path,
    seed: int,
    form: Form,
) -> Images:
    """Load "train" or "test" of one of `KINDS`; see `reproductions.datasets.load`.

    Images are converted to one form, whatever they are on disk.
    """
    kind = KINDS[name]
    files = kind.find(data_root or _downloaded(kind, cache))
    size, grey = form.size or kind.size, kind.grey if form.grey is None else form.grey
    testing = kind.test(files, torch.Generator().manual_seed(seed))
    chosen = (testing if split == "test" else ~testing).nonzero().flatten()
    x = read_images([files.paths[i] for i in chosen.tolist()], size, grey)
    groups = files.objects[chosen] if kind.by_object else None
    return Images(x, files.y[chosen], 255, len(files.classes), (1 if grey else 3, *size), groups)


def read_images(paths: list[Path], size: tuple[int, int], grey: bool) -> Tensor:
    """8-bit intensities [files, channels x height x width].

    Raises:
        SuiteError: names the file that cannot be read as an image.
    """
    from PIL import Image, UnidentifiedImageError

    height, width = size
    x = torch.empty(len(paths), 1 if grey else 3, height, width, dtype=torch.uint8)
    for n, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(
                    image.convert("L" if grey else "RGB").resize((width, height), Image.Resampling.BILINEAR)
                )
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise SuiteError(f"{path}: not an image, damaged or cut short: {error}") from error
        x[n] = torch.tensor(pixels).reshape(height, width, -1).permute(2, 0, 1)
    return x.flatten(1)


def _downloaded(kind: Kind, cache: Path) -> Path:
    """The cache, which then holds the data set."""

    def make(folder: Path) -> None:
        try:
            kind.download(folder)
            (folder / kind.folder / DIGEST).write_text(_digest(kind, folder))
        except (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise SuiteError(
                f"downloading it to {cache} failed ({type(error).__name__}: {error}).\n"
                f"Without a network, name a folder with --data-root DIR. {LAYOUTS[kind.folder]}"
            ) from error

    fill(cache, kind.folder, make, lambda: _intact(kind, cache))
    return cache


def _intact(kind: Kind, cache: Path) -> bool:
    """Whether the images in the cache are those that were downloaded."""
    try:
        return (cache / kind.folder / DIGEST).read_text() == _digest(kind, cache)
    except (SuiteError, OSError, UnicodeDecodeError):
        return False


def _digest(kind: Kind, root: Path) -> str:
    """Hash of the names and contents of all images."""
    paths = kind.find(root).paths
    return _hash(f"{_names(paths, root)}\n{sha256(*paths)}")


def _names(paths: list[Path], root: Path) -> str:
    return "\n".join(path.relative_to(root).as_posix() for path in paths)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _download_eth80(root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(ETH80_ARCHIVE, str(root), filename="eth80.zip")
    (unpacked,) = root.glob("ETH-80-*")
    unpacked.rename(root / ETH80)
    paths = _find_eth80(root).paths
    if _hash(_names(paths, root)) != ETH80_NAMES:
        raise RuntimeError(f"expected the 3 280 known images in {ETH80_ARCHIVE}, got {len(paths)} others")


def _download_caltech(root: Path) -> None:
    from torchvision.datasets import Caltech101

    Caltech101(root, download=True)


def _find_eth80(root: Path) -> Files:
    """<class>/<object>/<name>-<polar>-<azimuth>.png; the `maps` folders with segmentations are left out."""
    root = _existing(root / ETH80, ETH80)
    paths: list[Path] = []
    y: list[int] = []
    objects: list[int] = []
    classes: list[str] = []
    for number, folder in enumerate(_numbered_folders(root)):
        for thing in _numbered_folders(folder):
            views = _images_in(thing)
            paths += views
            y += [number] * len(views)
            objects += [objects[-1] + 1 if objects else 0] * len(views)
        classes.append(paths[-1].name.split("-")[0].rstrip("0123456789"))
    if len(classes) < 2:
        raise SuiteError(f"{root}: expected at least two classes, got {len(classes)}")
    return Files(paths, torch.tensor(y), torch.tensor(objects), classes)


def _find_caltech(root: Path) -> Files:
    root = _existing(root / CALTECH / "101_ObjectCategories", CALTECH)
    folders = [_images_in(_existing(root / name, CALTECH)) for name in CALTECH_CLASSES]
    y = [number for number, images in enumerate(folders) for _ in images]
    paths = [path for images in folders for path in images]
    return Files(paths, torch.tensor(y), torch.arange(len(paths)), list(CALTECH_CLASSES))


def _existing(folder: Path, dataset: str) -> Path:
    if not folder.is_dir():
        raise SuiteError(f"{folder} is no folder. {LAYOUTS[dataset]}")
    return folder


def _numbered_folders(root: Path) -> list[Path]:
    folders = [path for path in root.iterdir() if path.is_dir() and path.name.isdigit()]
    if not folders:
        raise SuiteError(f"{root}: expected folders named 1, 2, ..., got none")
    return sorted(folders, key=lambda path: int(path.name))


def _images_in(folder: Path) -> list[Path]:
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise SuiteError(f"{folder}: expected image files ({', '.join(sorted(IMAGE_SUFFIXES))}), got none")
    return images


def _part_of_each_class(fraction: float) -> Callable[[Files, torch.Generator], Tensor]:
    """A part of each class's images is the test set."""

    def test(files: Files, generator: torch.Generator) -> Tensor:
        return _drawn(files.y, lambda n: round(fraction * n), generator)

    return test


def _all_but(training: int) -> Callable[[Files, torch.Generator], Tensor]:
    """All images of a class but `training` are the test set."""

    def test(files: Files, generator: torch.Generator) -> Tensor:
        sizes = files.y.bincount()
        if bool((sizes <= training).any()):
            name, size = files.classes[int(sizes.argmin())], int(sizes.min())
            raise SuiteError(f"class {name!r} must have more than {training} images, got {size}")
        return _drawn(files.y, lambda n: n - training, generator)

    return test


def _half_of_the_objects(files: Files, generator: torch.Generator) -> Tensor:
    """All views of half of each class's objects are the test set."""
    numbers = torch.unique(files.objects)
    first_view = torch.searchsorted(files.objects, numbers)
    chosen = _drawn(files.y[first_view], lambda n: n // 2, generator)
    return torch.isin(files.objects, numbers[chosen])


def _drawn(y: Tensor, how_many: Callable[[int], int], generator: torch.Generator) -> Tensor:
    """Mark `how_many` of each class, at random."""
    marked = torch.zeros(len(y), dtype=torch.bool)
    for number in torch.unique(y):
        members = (y == number).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        marked[members[order[: how_many(len(members))]]] = True
    return marked


_ETH80 = Kind(ETH80, _find_eth80, _download_eth80, grey=False, size=(96, 96), test=_part_of_each_class(0.2))
KINDS = {
    "eth80": _ETH80,
    "eth80-leave-objects-out": replace(_ETH80, test=_half_of_the_objects, by_object=True),
    "caltech-face-motorbike": Kind(
        CALTECH, _find_caltech, _download_caltech, grey=True, size=(160, 250), test=_all_but(200)
    ),
}
