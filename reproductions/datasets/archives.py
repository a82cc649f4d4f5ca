"""Data sets that torchvision knows as archives: MNIST and Fashion-MNIST."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..errors import SuiteError
from .cache import fill, sha256
from .images import Images

# Of what the archives hold.
EXTRACTED = {
    "MNIST": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}


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
        if damaged := _damaged(kind, root):
            raise SuiteError(f"{damaged}: not the original file, damaged or cut short")
    else:
        _fill_cache(kind, data_root, cache)
    dataset = kind(root, train=split == "train", download=False)
    return Images(dataset.data.flatten(1), dataset.targets, 255, len(kind.classes), (1, 28, 28))


def _files(kind: Any, root: Path) -> dict[str, Path]:
    """The extracted files by their names."""
    names = [name.removesuffix(".gz") for name, _ in kind.resources]
    return {name: root / kind.__name__ / "raw" / name for name in names}


def _extracted(kind: Any, root: Path) -> bool:
    return all(path.is_file() for path in _files(kind, root).values())


def _damaged(kind: Any, root: Path) -> Path | None:
    """The first of the extracted files that is not the original's content."""
    expected = EXTRACTED[kind.__name__]
    return next((path for name, path in _files(kind, root).items() if sha256(path) != expected[name]), None)


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

    def intact() -> bool:
        return _extracted(kind, cache) and not _damaged(kind, cache)

    fill(cache, kind.__name__, make, intact)


def _copy_archives(kind: Any, data_root: Path, raw: Path) -> None:
    from torchvision.datasets.utils import calculate_md5

    for name, md5 in kind.resources:
        source = data_root / kind.__name__ / "raw" / name
        if not source.is_file():
            raise SuiteError(_how_to_get(kind, f"{source} is missing"))
        try:
            found = calculate_md5(source)
        except OSError as error:
            raise SuiteError(f"{source}: cannot be read ({error.strerror})") from error
        if found != md5:
            raise SuiteError(f"{source}: damaged or cut short: its md5 is {found}, expected {md5}")
        shutil.copyfile(source, raw / name)


def _how_to_get(kind: Any, problem: str) -> str:
    files = "\n".join(f"    {kind.__name__}/raw/{name}" for name, _ in kind.resources)
    return (
        f"{kind.__name__} is not at hand: {problem}.\n"
        f"Without a network, name a folder with --data-root DIR that holds the original archives:\n{files}"
    )
