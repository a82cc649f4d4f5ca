"""Layers of integrate-and-fire neurons whose errors are normalised and whose gradients are centred.

What S4NN's family and DS4NN share. Every counted input has the same dV/dw = 1, so that a hidden neuron's
gradient is mostly a common shift of all its weights: it fires ever earlier, or dies. Without that shift in
the gradient (gradient centralization, Yong et al., ECCV 2020) the pattern is learned instead.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ssnn_plugin.functional import normalize_error
from ssnn_plugin.nn import SpikeLinear

from ..config import Config
from . import layered
from .layered import SAMPLE, Layered


class Training(layered.Training):
    """Errors are scaled to unit L2 norm in every layer; the common shift is of all weights alike, or, fully
    connected, as often as each input spikes.
    """

    normalize_errors: bool = True
    center_gradients: bool = False
    center_along: Literal["ones", "mean input"] = "ones"

    @model_validator(mode="after")
    def _center_along_is_used(self) -> Training:
        if self.center_along != "ones" and not self.center_gradients:
            raise ValueError(f"center_along needs center_gradients = true, got {self.center_along!r}")
        return self

    @model_validator(mode="after")
    def _a_price_keeps_its_size(self) -> Training:
        if self.spike_price and self.normalize_errors:
            raise ValueError(
                "spike_price must be 0 with normalize_errors = true, which makes errors of any price equally "
                f"long, got {self.spike_price}"
            )
        return self


class Centered(Layered):
    """A method defines its layers and its loss; a subclass that defines `before_epoch` calls this one's."""

    training: Training

    def __init__(
        self, settings: Config, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        super().__init__(settings, shape, classes, seed, device)
        self.connections[-1].silent_gradient = True
        self.directions: list[Tensor] = []

    @property
    def learned(self) -> list[Tensor]:
        """Weights as the optimiser has them; those of `connections` are what the neurons see."""
        return [layer.weight for layer in self.connections]

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if self.training.center_gradients:
            self.directions = self._common_directions(times)

    def passed_on(self, spikes: Tensor) -> Tensor:
        return normalize_error(spikes) if self.training.normalize_errors else spikes

    def after_backward(self) -> None:
        for weight, direction in zip(self.learned, self.directions, strict=False):
            assert weight.grad is not None
            grad = weight.grad.flatten(1)
            weight.grad = (grad - torch.outer(grad @ direction, direction)).view_as(weight)

    @torch.no_grad()
    def _common_directions(self, times: Tensor) -> list[Tensor]:
        """Unit vectors of the common shift in each hidden layer: of the first one's inputs all are known."""
        self.network.eval()
        directions = [torch.ones_like(weight[0]).flatten() for weight in self.learned[:-1]]
        if self.training.center_along == "mean input":
            for number, stage in enumerate(self.stages[:-1]):
                layer = self.connections[number]
                if isinstance(layer, SpikeLinear):
                    directions[number] = _mean_input(layer, times)
                times = stage.after(stage.neurons(times[:SAMPLE].to(self.device)))
        return [nn.functional.normalize(direction, dim=0) for direction in directions]


def _mean_input(layer: SpikeLinear, times: Tensor) -> Tensor:
    """How often each input of a layer spikes, as its weights see it: behind an average pool."""
    spikes = times.isfinite().to(layer.weight)
    if layer.input_pool is not None:
        spikes = nn.functional.avg_pool2d(spikes, *layer.input_pool.window).flatten(1)
    return spikes.mean(0)
