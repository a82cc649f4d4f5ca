"""Images with labels, and their fixed validation split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SuiteError

# The split is a property of the data set, the same for every seed of a run.
SPLIT_SEED = 12345


@dataclass(frozen=True)
class Images:
    """Intensities [samples, features] between 0 and `x_max`, and class numbers [samples].

    `shape` is that of an image: [channels, height, width]. `groups`, if there are any, are numbers
    [samples] of what must not be on both sides of a split, such as the views of one object.
    """

    x: Tensor
    y: Tensor
    x_max: int
    classes: int
    shape: tuple[int, ...]
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def select(self, index: Tensor) -> Images:
        """The samples of an index."""
        groups = None if self.groups is None else self.groups[index]
        return dataclasses.replace(self, x=self.x[index], y=self.y[index], groups=groups)


def draw(images: Images, count: int, seed: int) -> Images:
    """Some of the images, in file order.

    Raises:
        SuiteError: there are not so many.
    """
    if count > len(images):
        raise SuiteError(f"samples must be at most the {len(images)} there are, got {count}")
    generator = torch.Generator().manual_seed(seed)
    return images.select(torch.randperm(len(images), generator=generator)[:count].sort().values)


def hold_out(images: Images, validation: int) -> tuple[Images, Images]:
    """Split (training, validation), the same samples every time; training stays in file order.

    Groups stay whole: one of each class after the other is held out, until there are at least
    `validation` samples.

    Raises:
        SuiteError: a validation part that leaves nothing to train on.
    """
    if validation >= len(images):
        raise SuiteError(f"validation must be below the {len(images)} training samples, got {validation}")
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    if images.groups is None or not validation:
        shuffled = torch.randperm(len(images), generator=generator)
        held_out, kept = shuffled[:validation].sort().values, shuffled[validation:].sort().values
    else:
        inside = _whole_groups(images.groups, images.y, validation, generator)
        held_out, kept = inside.nonzero().flatten(), (~inside).nonzero().flatten()
        if not len(kept):
            raise SuiteError(f"validation must leave a group of samples to train on, got {validation}")
    return images.select(kept), images.select(held_out)


def _whole_groups(groups: Tensor, y: Tensor, at_least: int, generator: torch.Generator) -> Tensor:
    """Whether each sample is in one of the groups drawn, of each class in turn."""
    numbers, group_of, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    label = torch.empty_like(numbers).scatter_(0, group_of, y)
    order = torch.randperm(len(numbers), generator=generator)
    same_class_before = (label[order][:, None] == label[order]).tril(-1).sum(1)
    order = order[same_class_before.argsort(stable=True)]
    drawn = int((sizes[order].cumsum(0) < at_least).sum()) + 1
    return torch.isin(groups, numbers[order[:drawn]])
