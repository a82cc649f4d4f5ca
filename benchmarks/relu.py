"""Networks of windowed ramps against the ReLU networks that they were made of: time, and the same outputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.printing import cell, ratio
from benchmarks.timing import Timing, in_turn
from reproductions import datasets, trained
from reproductions.errors import SuiteError
from reproductions.methods.converted_relu import ConvertedReLU
from ssnn_plugin import RampNetwork, fold_batchnorm, from_relu
from ssnn_plugin.decode import first_to_fire
from ssnn_plugin.relu import Activity, ClippedSpikesWarning

MODEL, FOLDED = "ReLU network", "ReLU network, folded"
# Test images at once.
CHUNK = 250


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
    return inference(model.eval(), from_relu(model, calibrate_on=images, margin=1.0), images)


def inference(model: nn.Module, ramps: RampNetwork, images: Tensor) -> dict[str, Callable[[], object]]:
    """As `runs`, of a trained network and what it was converted to."""
    folded = copy.deepcopy(model)
    fold_batchnorm(folded)
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


def table(measured: dict[str, dict[str, Timing]], batch: int) -> Table:
    """Timings of each network, and how many times as long as both forms of the ReLU network they are."""
    heads = "ms", "of the ReLU network's", "of the folded one's"
    found = Table("network", f"inference, batch {batch}", *heads)
    for name, timings in measured.items():
        for run, taken in timings.items():
            ratios = (ratio(taken, timings[base]) for base in (MODEL, FOLDED))
            found.add_row(name, run, cell(taken), *ratios)
    return found


class OfTheSuite:
    """A trained `converted-relu` in a file that `run --keep` wrote, and the test images of its data set.

    Its windows are `margin` wider than the activations of some training images, or as its config has them.

    Raises:
        SuiteError: no such file, another method's network, missing data.
    """

    def __init__(self, path: Path, data_root: Path | None, margin: float | None = None) -> None:
        kept = trained.load(path)
        if not isinstance(kept.method, ConvertedReLU):
            raise SuiteError(f"{path}: must hold a converted-relu, got {kept.config.method}")
        config = kept.config
        test = datasets.load(config.dataset, "test", data_root, seed=kept.seed, form=config.images)
        self.name, self.method, self.labels = kept.name, kept.method, test.y
        self.images = kept.method.images(config.encode(test))
        self.margin = self.method.settings.network.margin if margin is None else margin

    def timings(self, batch: int, rounds: int) -> dict[str, Timing]:
        """Timings on the first test images, in turn."""
        with torch.no_grad():
            both = self._both(torch.float32)
            return in_turn(inference(*both, self.images[:batch]), rounds, warm_up=1)

    @torch.no_grad()
    def agreement(self) -> Table:
        """Both networks on all test images: how far apart their logits are, and who is right how often.

        And the hidden spikes of an image, without and with pools that inhibit.
        """
        table = Table(
            "precision", "difference of logits, of the greatest", "ReLU network %", "potentials %",
            "first spikes %", "clipped spikes", "hidden spikes", "if pools inhibit",
            title=f"{self.name}, {len(self.labels)} test images",
        )  # fmt: skip
        for dtype in (torch.float64, torch.float32):
            table.add_row(str(dtype).removeprefix("torch."), *self._compared(dtype))
        return table

    def _both(self, dtype: torch.dtype, *, inhibition: bool = False) -> tuple[nn.Module, RampNetwork]:
        model = copy.deepcopy(self.method.relu()).to(dtype).eval()
        pools = any(isinstance(module, nn.MaxPool2d) for module in model.modules())
        sample = self.method.sample.to(dtype)
        return model, from_relu(
            model, calibrate_on=sample, margin=self.margin, inhibition=inhibition and pools
        )

    def _in_parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(torch.split(self.images, CHUNK), torch.split(self.labels, CHUNK), strict=True)

    def _compared(self, dtype: torch.dtype) -> tuple[str, ...]:
        (model, ramps), (_, inhibited) = self._both(dtype), self._both(dtype, inhibition=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClippedSpikesWarning)  # they are counted below
            apart = greatest = 0.0
            right, spikes, clipped = torch.zeros(3), torch.zeros(2), 0
            for images, labels in self._in_parts():
                expected, activity = model(images.to(dtype)), ramps.activity(images.to(dtype))
                apart = max(apart, (activity.potential - expected).abs().max().item())
                greatest = max(greatest, expected.abs().max().item())
                first = first_to_fire(activity.times["output"], activity.potential)
                decisions = expected.argmax(1), activity.potential.argmax(1), first
                right += torch.tensor([(decided == labels).sum() for decided in decisions])
                clipped += sum(activity.clipped.values())
                left = inhibited.activity(images.to(dtype))
                spikes += torch.tensor([_hidden_spikes(activity), _hidden_spikes(left)])
        shares = (f"{100 * share:.2f}" for share in right / len(self.labels))
        fired = (f"{count:.0f}" for count in spikes / len(self.labels))
        return f"{apart / greatest:.1e}", *shares, str(clipped), *fired


def _hidden_spikes(activity: Activity) -> int:
    return sum(int(leads.count_nonzero()) for leads in [*activity.leads.values()][1:-1])
