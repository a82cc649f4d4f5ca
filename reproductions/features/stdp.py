"""Features of an unsupervised spiking convolution (Falez et al. 2019; Goupy et al. 2024).

Images pass differences of Gaussians, on and off; every position is scaled to 0 ... 1 by the training part and
fires at 1 - x. Filters see one random patch of each image in an epoch; the first one to fire learns by a
multiplicative STDP. Thresholds move so that winners fire near a target time, and those that win too often
win less. Then every neuron fires at most once, the earliest one of a pool goes on, and features are 1 - t.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ssnn_plugin.nn import MinMaxScaling

from ..errors import SuiteError

SIZE, WINDOW = 5, 4
INIT = 0.5, 0.01
THRESHOLD, LOWEST = 5.0, 2.0
THRESHOLD_RATE, AMOUNT, STEEPNESS, SHRINKING = 1.0, 0.1, 1.0, 0.95


class STDP(BaseModel):
    """How the filters learn. `target_time` is when winners should fire."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    target_time: Annotated[float, Field(gt=0, lt=1)]
    filters: Annotated[int, Field(ge=2)] = 128
    epochs: Annotated[int, Field(ge=1)] = 100


class STDPConvolution(nn.Module):
    """Contrast maps [batch, channels, height, width] to features; `learn` comes first.

    Args:
        contrast: images to maps, e.g. `extractors.DifferenceOfGaussians`.
        settings: see `STDP`.
    """

    weight: Tensor
    thresholds: Tensor

    def __init__(self, contrast: nn.Module, settings: STDP) -> None:
        super().__init__()
        self.contrast, self.settings = contrast, settings
        self.scaling: MinMaxScaling | None = None
        self.register_buffer("weight", torch.empty(0))
        self.register_buffer("thresholds", torch.full((settings.filters,), THRESHOLD).double())

    def extra_repr(self) -> str:
        return f"{self.settings}"

    def learn(self, images: Tensor, seed: int) -> None:
        """Learn from images [samples, 1, height, width] in 0 ... 1, in file order.

        Raises:
            SuiteError: images of several channels, or too small for a patch to be drawn.
        """
        if images.shape[1] != 1 or min(images.shape[2:]) < 2 * SIZE:
            raise SuiteError(
                f"features.extractor 'stdp' takes grey images of {2 * SIZE} x {2 * SIZE} pixels or more, "
                f"got {list(images.shape[1:])}"
            )
        # Numba, which every command of the suite would wait for, is loaded by those that learn alone.
        from ..compiled.stdp_convolution import learn_patches

        maps = self.contrast(images)
        self.scaling = MinMaxScaling(maps[0].numel()).fit(maps.flatten(1))
        times = self.times(maps)
        random = np.random.default_rng(seed)
        inputs, settings = maps.shape[1] * SIZE**2, self.settings
        weight = random.normal(*INIT, (inputs, settings.filters))
        thresholds = np.full(settings.filters, THRESHOLD)
        # The last positions are never drawn, as in the authors' code.
        most = [n - 2 * SIZE + 2 for n in maps.shape[2:]]
        for epoch in range(settings.epochs):
            rows, columns = (random.integers(0, n, len(times)) for n in most)
            shrunk = SHRINKING**epoch
            rates = THRESHOLD_RATE * shrunk, AMOUNT * shrunk
            learn_patches(
                times, rows, columns, weight, thresholds, *rates, STEEPNESS, settings.target_time, LOWEST
            )
        self.weight, self.thresholds = torch.from_numpy(weight), torch.from_numpy(thresholds)

    def times(self, maps: Tensor) -> Any:
        """Spike times 1 - x of scaled maps; 1 is silence."""
        assert self.scaling is not None
        return (1 - self.scaling(maps.flatten(1))).reshape(maps.shape).numpy()

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, 1, height, width] in 0 ... 1 to features [batch, filters x rows x columns]."""
        from ..compiled.stdp_convolution import first_spikes

        times = self.times(self.contrast(images))
        places = [(n - SIZE + 1) // WINDOW for n in times.shape[2:]]
        out = np.empty((len(times), *places, self.settings.filters), dtype=np.float32)
        learned = self.weight.float().numpy(), self.thresholds.float().numpy()
        first_spikes(times, *learned, WINDOW, out)
        return torch.from_numpy(1 - out).flatten(1)
