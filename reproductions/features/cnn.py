"""A small convolutional network that the suite trains itself on one data set, for use on another."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..datasets import Images, hold_out
from ..errors import SuiteError
from ..records import (
    Pretraining,
    PretrainingEpoch,
    commit,
    load_tensors,
    machine,
    save_tensors,
    versions,
)  # fmt: skip

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CHANNELS = 48, 96, 96
VALIDATION, BATCH, LEARNING_RATE = 5000, 128, 1e-3
# Of the training images: turned, stretched, sheared and shifted by up to this much (radians, log, fraction).
TURN, STRETCH, SHEAR, SHIFT = 0.5, 0.25, 0.3, 0.15


class ConvNet(nn.Module):
    """Three convolutions with ReLUs, pools between them, and a linear classifier: grey images to logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, second, third = CHANNELS
        self.maps = nn.Sequential(
            nn.Conv2d(1, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(second, third, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Dropout(0.3), nn.Linear(9 * third, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, 1, height, width] -> logits [batch, classes]."""
        logits: Tensor = self.classifier(self.maps(images))
        return logits


def grey(images: Images) -> Tensor:
    """Intensities in 0 ... 1, [samples, 1, height, width]."""
    return images.x.reshape(-1, *images.shape).float().mean(1, keepdim=True) / images.x_max


def pretrain(
    name: str,
    load: Callable[[str], Images],
    epochs: int,
    seed: int,
    report: Callable[[PretrainingEpoch], None],
    deformation: float = 1.0,
) -> tuple[ConvNet, Pretraining]:
    """Train on a data set; the test set is read once, at the end.

    Args:
        name: of the data set, for the record.
        load: gives its images by "train" or "test".
        deformation: how far images are deformed while training, as a part of what suits filters for
            another data set; filters for the same data set want less.
        report: called with the numbers of every epoch.

    Returns:
        The network, and how it came about.

    Raises:
        SuiteError: a data set that is no larger than what is held out of it.
    """
    torch.manual_seed(seed)
    images = load("train")
    if len(images) <= VALIDATION:
        raise SuiteError(
            f"pretrain holds {VALIDATION} images out and needs more to learn, got {name} with {len(images)}"
        )
    training, validation = hold_out(images, VALIDATION)
    network = ConvNet(training.classes)
    inputs, labels = grey(training), training.y
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    steps = epochs * math.ceil(len(inputs) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    for epoch in range(1, epochs + 1):
        network.train()
        for batch in torch.split(torch.randperm(len(inputs)), BATCH):
            loss = nn.functional.cross_entropy(network(_deformed(inputs[batch], deformation)), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        history.append(PretrainingEpoch(epoch=epoch, validation=_accuracy(network, validation)))
        report(history[-1])
    record = Pretraining(
        pretrained_on=name, classes=training.classes, epochs=epochs, seed=seed, deformation=deformation,
        versions=versions(), commit=commit(), machine=machine("cpu"),
        history=history, test=_accuracy(network, load("test")),
    )  # fmt: skip
    return network, record


def save(path: Path, network: ConvNet, record: Pretraining) -> None:
    """Write a checkpoint of what `pretrain` returned."""
    save_tensors(path, {"record": record.model_dump(), "weights": network.state_dict()})


def load(checkpoint: str) -> ConvNet:
    """The network of a checkpoint: a file of `pretrain`, or the name of one of the suite's own.

    Raises:
        SuiteError: no such file, or something else in it.
    """
    return _read(checkpoint)[0]


def record(checkpoint: str) -> Pretraining:
    """How a checkpoint came about.

    Raises:
        SuiteError: as `load`.
    """
    return _read(checkpoint)[1]


def _read(checkpoint: str) -> tuple[ConvNet, Pretraining]:
    path = Path(checkpoint) if checkpoint.endswith(".pt") else CHECKPOINTS / f"{checkpoint}.pt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CHECKPOINTS.glob("*.pt")))
        raise SuiteError(
            f"features.extractor: {path} is no file. Train it with `pretrain --on DATASET --output FILE.pt`, "
            f"or name one of the suite's own: {known}"
        )
    try:
        content = load_tensors(path)
        record = Pretraining.model_validate(content["record"])
        network = ConvNet(record.classes)
        network.load_state_dict(content["weights"])
    except (SuiteError, RuntimeError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise SuiteError(f"{path}: not a checkpoint of `pretrain`, or damaged: {error}") from error
    return network, record


@torch.no_grad()
def _accuracy(network: ConvNet, images: Images) -> float:
    network.eval()
    logits = torch.cat([network(part) for part in torch.split(grey(images), 500)])
    return (logits.argmax(1) == images.y).float().mean().item()


def _deformed(images: Tensor, part: float) -> Tensor:
    """Each image turned, stretched, sheared and shifted in its own way, so that filters become general."""
    most = part * torch.tensor([TURN, SHEAR, STRETCH, STRETCH, SHIFT, SHIFT])[:, None]
    turn, shear, across, down, right, below = (2 * torch.rand(len(most), len(images)) - 1) * most
    top = torch.stack([across.exp() * turn.cos(), shear - turn.sin(), right], 1)
    bottom = torch.stack([turn.sin(), down.exp() * turn.cos(), below], 1)
    places = nn.functional.affine_grid(torch.stack([top, bottom], 1), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, places, align_corners=False)
