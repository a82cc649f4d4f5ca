"""Features of a frozen extractor in the place of the images, scaled to 0 ... 1 by the training part alone."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ssnn_plugin.nn import MinMaxScaling

from ..datasets import Images
from ..errors import SuiteError
from ..locks import locked
from ..records import Extractor, load_tensors, remove_temporaries, require_writable, save_tensors
from . import cnn, extractors
from .stdp import STDP, STDPConvolution

BATCH = 100
# Positions in a row that maps are pooled to, unless a config says how many.
GRID = 4


class Features(BaseModel):
    """Which extractor; `grid` and `size` as `extractors.build` has them, `stdp` is how "stdp" learns."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    extractor: str
    grid: Annotated[int, Field(ge=1)] = GRID
    size: Annotated[int, Field(ge=8)] | None = None
    stdp: STDP | None = None

    @model_validator(mode="after")
    def _stdp_is_used(self) -> Features:
        if (self.extractor == "stdp") != (self.stdp is not None):
            raise ValueError(f"stdp goes with extractor 'stdp', which needs it; got {self.extractor!r}")
        return self

    @model_validator(mode="after")
    def _options_are_used(self) -> Features:
        kind = self.extractor.partition(":")[0]
        if self.size is not None and kind not in extractors.OF_IMAGENET:
            raise ValueError(f"size goes with a model trained on ImageNet, got {self.extractor!r}")
        if self.grid != GRID and kind not in extractors.POOLED:
            raise ValueError(f"grid goes with {', '.join(extractors.POOLED)}, got {self.extractor!r}")
        return self

    def build(self) -> nn.Module:
        """The extractor; one that learns from the data has to do so yet."""
        if self.stdp is not None:
            return STDPConvolution(extractors.DifferenceOfGaussians(), self.stdp)
        return extractors.build(self.extractor, self.grid, self.size)


class Pipeline:
    """Extractor and scaling, fitted to a training part; then it turns any images into features.

    Args:
        features: from a config; None passes images on as they are.
        cache: folder in which extracted features are kept.
        seed: of an extractor that learns from the training part; its features are not scaled.
    """

    def __init__(self, features: Features | None, cache: Path, seed: int = 0) -> None:
        self.features, self.cache, self.seed = features, cache, seed
        self.extractor = features.build() if features else None
        self.scaling: MinMaxScaling | None = None

    def fit(self, training: Images) -> Images:
        """Take the range of each feature from the training part; return its features."""
        if self.extractor is None:
            return training
        if isinstance(self.extractor, STDPConvolution):
            self.extractor.learn(intensities(training), self.seed)
            return self._scaled(training, self._extract(training))
        x = self._extract(training)
        self.scaling = MinMaxScaling(x.shape[1]).fit(x)
        return self._scaled(training, x)

    def __call__(self, images: Images) -> Images:
        """The features of images, clipped to the range of the training part."""
        return images if self.extractor is None else self._scaled(images, self._extract(images))

    def description(self) -> Extractor:
        """What a record says of the extractor: its hash, and how the suite trained it if it did."""
        assert self.extractor is not None
        assert self.features is not None
        kind, _, which = self.features.extractor.partition(":")
        trained = {"pretrained": cnn.record(which)} if kind == "cnn" else {}
        return Extractor(hash=extractor_hash(self.extractor), **trained)

    def _extract(self, images: Images) -> Tensor:
        assert self.extractor is not None
        return cached(self.extractor, images, self.cache)

    def _scaled(self, images: Images, x: Tensor) -> Images:
        scaled = x if self.scaling is None else self.scaling(x)
        return dataclasses.replace(images, x=scaled, x_max=1, shape=(x.shape[1],))


def cached(extractor: nn.Module, images: Images, cache: Path) -> Tensor:
    """Features [samples, features], those of images that the cache knows from there, the others extracted.

    A file holds what one extractor made of images of one form; an image is known by its content, so that all
    splits of a data set share their features. A damaged file is made anew.

    Raises:
        SuiteError: a cache that cannot be written, features that are not finite.
    """
    path = cache / "features" / f"{extractor_hash(extractor)}-{'x'.join(map(str, images.shape))}.pt"
    keys = [hashlib.blake2b(x.numpy().tobytes(), digest_size=16).hexdigest() for x in images.x]
    known, features = _kept(path)
    if not known.keys() >= set(keys):
        require_writable(path.parent)
        with locked(path.with_suffix(".lock")):
            remove_temporaries(path)
            known, features = _kept(path)  # another process may have been faster
            new = {key: sample for sample, key in enumerate(keys) if key not in known}
            extracted = extract(extractor, images.select(torch.tensor(list(new.values()), dtype=torch.long)))
            features = torch.cat([features, extracted]) if known else extracted
            known |= {key: row for row, key in enumerate(new, len(known))}
            save_tensors(path, {"keys": list(known), "features": features})
    return features[[known[key] for key in keys]]


def _kept(path: Path) -> tuple[dict[str, int], Tensor]:
    """The row of each image by its key, and the features; none of a file that is not there or damaged."""
    try:
        content = load_tensors(path, with_digest=True)
        return {key: row for row, key in enumerate(content["keys"])}, content["features"]
    except SuiteError:
        return {}, torch.empty(0)


def intensities(images: Images) -> Tensor:
    """In 0 ... 1, [samples, channels, height, width]."""
    return images.x.reshape(-1, *images.shape).float() / images.x_max


@torch.no_grad()
def extract(extractor: nn.Module, images: Images) -> Tensor:
    """Features [samples, features], batch by batch."""
    if not len(images):
        return torch.empty(0)
    features = torch.cat(
        [
            extractor(intensities(images.select(part)))
            for part in torch.split(torch.arange(len(images)), BATCH)
        ]
    )
    if not bool(features.isfinite().all()):
        raise SuiteError("features.extractor: some of its features are NaN or infinite")
    return features


def extractor_hash(extractor: nn.Module) -> str:
    """Hash of an extractor's structure, which its `repr` has to show, and of its weights."""
    digest = hashlib.sha256(repr(extractor).encode())
    for name, tensor in extractor.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
