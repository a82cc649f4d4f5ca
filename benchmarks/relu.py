"""Networks of windowed ramps against the ReLU networks that they were made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.printing import cell, ratio
from benchmarks.timing import Timing, in_turn
from ssnn_plugin import fold_batchnorm, from_relu

MODEL, FOLDED = "ReLU network", "ReLU network, folded"


def nine_layers() -> nn.Module:
    """64C3-128C3-P2-128C3-128C3-P2-256C3-256C3-P2-256C3-256C3-P2-10, with batch normalisation."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 0, 128, 128, 0, 256, 256, 0, 256, 256, 0):
        if width:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            layers += nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, 10))


def _resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=10)  # type: ignore[no-any-return]


def _mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(num_classes=10)  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nine layers": nine_layers,
    "ResNet-18": _resnet,
    "MobileNetV2": _mobilenet,
}


def runs(name: str, images: Tensor) -> dict[str, Callable[[], object]]:
    """Inference of a ReLU network, without and with its normalisations folded, and of the ramps."""
    model = NETWORKS[name]()
    with torch.no_grad():
        model.train()(images[:32])  # statistics that fit the weights
    folded = copy.deepcopy(model.eval())
    fold_batchnorm(folded)
    ramps = from_relu(model, calibrate_on=images, margin=1.0)
    return {
        MODEL: lambda: model(images),
        FOLDED: lambda: folded(images),
        "ramps, logits": lambda: ramps(images),
        "ramps, first spikes": lambda: ramps.first_spikes(images),
        "ramps, all spike times": lambda: ramps.activity(images).times,
    }


@torch.no_grad()
def measure(name: str, batch: int, rounds: int) -> dict[str, Timing]:
    """Timings of all, in turn, on random images of 32 x 32."""
    return in_turn(runs(name, torch.rand(batch, 3, 32, 32)), rounds, warm_up=1)


def table(names: Iterable[str], batch: int, rounds: int) -> Table:
    """Timings of each network, and how many times as long as both forms of the ReLU network they are."""
    heads = "ms", "of the ReLU network's", "of the folded one's"
    found = Table("network", f"inference, batch {batch}", *heads)
    for name in names:
        timings = measure(name, batch, rounds)
        for run, taken in timings.items():
            ratios = (ratio(taken, timings[base]) for base in (MODEL, FOLDED))
            found.add_row(name, run, cell(taken), *ratios)
    return found
