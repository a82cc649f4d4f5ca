"""BS4NN (Kheradpisheh, Mirsadeghi & Masquelier 2021): S4NN with binary weights, in mini-batches.

The neurons see alpha * sign(w), with one learned factor alpha per layer; the gradient passes the
sign straight through to the real weights w. Unlike the authors, who learn from one sample at a
time, we take mini-batches, and errors travel back through the binary weights, not the real ones;
black pixels are silent, not spikes in the last bin; and where all outputs are silent the label is
wanted `gamma` before the end of the window, where the authors have no error.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import s4nn
from .layered import check_gamma, check_one_per_layer


class Network(s4nn.Network):
    """`alpha` holds the factors to begin with, one per layer."""

    alpha: list[PositiveFloat]

    @model_validator(mode="after")
    def _one_alpha_per_layer(self) -> Network:
        check_one_per_layer("alpha", self.alpha, self.layers)
        return self


class Training(s4nn.RelativeRecipe):
    """The rates of the factors are their own; real weights are kept within -clip ... clip."""

    alpha_rate: PositiveFloat
    clip: PositiveFloat


class Settings(s4nn.BaseSettings):
    """Fully connected networks with binary weights."""

    network: Network
    training: Training

    @model_validator(mode="after")
    def _gamma_within_window(self) -> Settings:
        check_gamma(self.training.gamma, self.network)
        return self


class _Binarize(torch.autograd.Function):
    """alpha * sign(w), never 0; straight through to w, and the mean of sign * gradient to alpha."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, alpha: Tensor) -> Tensor:
        sign = torch.where(weight >= 0, 1.0, -1.0).to(weight)
        ctx.save_for_backward(sign)
        return alpha * sign

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        (sign,) = ctx.saved_tensors
        return grads[0], (grads[0] * sign).mean()


class Binary(nn.Module):
    """Parametrization of a layer's weight: two values, alpha and -alpha."""

    def __init__(self, alpha: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha, dtype=dtype))

    def forward(self, weight: Tensor) -> Tensor:
        return _Binarize.apply(weight, self.alpha)  # type: ignore[no-any-return]


class BS4NN(s4nn.S4NNMinibatch):
    """S4NN in mini-batches; the optimiser moves the real weights and the factors."""

    settings: Settings
    training: Training

    def _linear(self, number: int, *rest: Any) -> nn.Module:
        layer = super()._linear(number, *rest)
        network = self.settings.network
        parametrize.register_parametrization(
            layer, "weight", Binary(network.alpha[number], network.torch_dtype)
        )
        return layer

    @property
    def learned(self) -> list[Tensor]:
        return [layer.get_parameter("parametrizations.weight.original") for layer in self.connections]

    @property
    def alphas(self) -> list[Tensor]:
        """The factors, one per layer."""
        return [layer.get_parameter("parametrizations.weight.0.alpha") for layer in self.connections]

    def parameter_groups(self) -> list[dict[str, Any]]:
        rates = self.training.learning_rates
        groups = [{"params": [w], "lr": lr} for w, lr in zip(self.learned, rates, strict=True)]
        return [*groups, {"params": self.alphas, "lr": self.training.alpha_rate, "weight_decay": 0.0}]

    def after_step(self) -> None:
        """A real weight that grew without bound could not change its sign any more."""
        with torch.no_grad():
            for weight in self.learned:
                weight.clamp_(-self.training.clip, self.training.clip)


build = BS4NN
