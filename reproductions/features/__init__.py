"""Features of a frozen extractor in the place of the images, scaled to 0 ... 1 by the training part alone."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ssnn_plugin.nn import MinMaxScaling

from ..datasets import Images
from ..errors import SuiteError
from ..records import atomic_write, require_writable
from . import cnn, extractors

BATCH = 100


class Features(BaseModel):
    """Which extractor; `grid` and `size` as `extractors.build` has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    extractor: str
    grid: Annotated[int, Field(ge=1)] = 4
    size: Annotated[int, Field(ge=8)] | None = None


class Pipeline:
    """Extractor and scaling, fitted to a training part; then it turns any images into features.

    Args:
        features: from a config; None passes images on as they are.
        cache: folder in which extracted features are kept.
    """

    def __init__(self, features: Features | None, cache: Path) -> None:
        self.features, self.cache = features, cache
        self.extractor = (
            extractors.build(features.extractor, features.grid, features.size) if features else None
        )
        self.scaling: MinMaxScaling | None = None

    def fit(self, training: Images) -> Images:
        """Take the range of each feature from the training part; return its features."""
        if self.extractor is None:
            return training
        x = self._extract(training)
        self.scaling = MinMaxScaling(x.shape[1]).fit(x)
        return self._scaled(training, x)

    def __call__(self, images: Images) -> Images:
        """The features of images, clipped to the range of the training part."""
        return images if self.extractor is None else self._scaled(images, self._extract(images))

    def description(self) -> dict[str, Any]:
        """What a record says of the extractor: its hash, and how the suite trained it if it did."""
        assert self.extractor is not None
        assert self.features is not None
        kind, _, which = self.features.extractor.partition(":")
        trained = {"pretrained": cnn.record(which)} if kind == "cnn" else {}
        return {"hash": content_hash(self.extractor), **trained}

    def _extract(self, images: Images) -> Tensor:
        assert self.extractor is not None
        return cached(self.extractor, images, self.cache)

    def _scaled(self, images: Images, x: Tensor) -> Images:
        assert self.scaling is not None
        return dataclasses.replace(images, x=self.scaling(x), x_max=1, shape=(x.shape[1],))


def cached(extractor: nn.Module, images: Images, cache: Path) -> Tensor:
    """Features [samples, features] from the cache, or extracted and kept there.

    The file is named after the content of everything that the features depend on.

    Raises:
        SuiteError: a cache that cannot be written, features that are not finite.
    """
    path = cache / "features" / f"{content_hash(extractor, images)}.pt"
    if path.is_file():
        features: Tensor = torch.load(path, weights_only=True)
        return features
    require_writable(path.parent)
    features = extract(extractor, images)
    with atomic_write(path, "wb") as file:
        torch.save(features, file)
    return features


@torch.no_grad()
def extract(extractor: nn.Module, images: Images) -> Tensor:
    """Features [samples, features], batch by batch."""
    parts = []
    for x in torch.split(images.x, BATCH):
        parts.append(extractor(x.reshape(-1, *images.shape).float() / images.x_max))
    features = torch.cat(parts)
    if not bool(features.isfinite().all()):
        raise SuiteError("features.extractor: some of its features are NaN or infinite")
    return features


def content_hash(extractor: nn.Module, images: Images | None = None) -> str:
    """Hash of the extractor's structure and weights, and of images."""
    digest = hashlib.sha256(repr(extractor).encode())
    for name, tensor in extractor.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    if images is not None:
        digest.update(f"{list(images.x.shape)} {images.shape} {images.x_max} {images.x.dtype}".encode())
        digest.update(images.x.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
