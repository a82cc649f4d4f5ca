"""Data sets as 8-bit images [samples, features] with labels, and their fixed validation split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..errors import SuiteError
from . import archives, cifar10, folders
from .cache import default_cache
from .folders import Form
from .images import SPLIT_SEED, Images, draw, hold_out

__all__ = ["FOLDERS", "NAMES", "Form", "Images", "default_cache", "draw", "hold_out", "load"]

FOLDERS = tuple(folders.KINDS)
AS_THEY_COME = Form()


def load(
    name: str,
    split: str,
    data_root: Path | None = None,
    cache: Path | None = None,
    seed: int = 0,
    form: Form = AS_THEY_COME,
) -> Images:
    """Load "train" or "test" of a data set.

    "digits", "mnist", "fashion-mnist" and "cifar10" have one split, that of their publishers (of "digits":
    ours). The others are split by `seed`: "eth80" at random, views of one object on both sides;
    "eth80-leave-objects-out", five objects of each class on either side; "caltech-face-motorbike",
    200 images per class for training. Only these, the `FOLDERS` of image files, can be had in another
    `form`.

    `data_root` is read, never written: archives are checked and extracted into `cache`.

    Raises:
        SuiteError: an unknown name, a form for a data set that has its own; else it names the missing or
            damaged file and the layout expected.
    """
    if name not in NAMES:
        raise SuiteError(f"the data set must be one of {', '.join(NAMES)}, got {name!r}")
    if form != AS_THEY_COME and name not in FOLDERS:
        raise SuiteError(f"size and colour can be chosen for {', '.join(FOLDERS)}, got {name!r}")
    cache = cache or default_cache()
    if name in FOLDERS:
        return folders.load(name, split, data_root, cache, seed, form)
    return OF_ONE_FORM[name](split, data_root, cache)


def _digits(split: str, data_root: Path | None, cache: Path) -> Images:
    """scikit-learn's 1 797 digits of 8 x 8, which come with it; a fixed, stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train, test = train_test_split(
        range(len(data.target)), test_size=0.2, stratify=data.target, random_state=SPLIT_SEED
    )
    index = sorted(train if split == "train" else test)
    x, y = torch.from_numpy(data.data[index]).to(torch.uint8), torch.from_numpy(data.target[index])
    return Images(x, y, 16, 10, (1, 8, 8))


# Data sets of one split, whose images have one form: called with split, data root and cache.
OF_ONE_FORM: dict[str, Callable[[str, Path | None, Path], Images]] = {
    "digits": _digits,
    "mnist": partial(archives.load, "mnist"),
    "fashion-mnist": partial(archives.load, "fashion-mnist"),
    "cifar10": cifar10.load,
}
NAMES = (*OF_ONE_FORM, *FOLDERS)
