"""TS4TL's single-target rule (Moqadasi, Safari & Mateo 2025), shallow and deep, re-implemented.

S4NN's neuron, gradient and normalised errors with an absolute target: the label's neuron should
fire, all others should stay silent. The text that we could read leaves open when the label
should fire; the variants are our readings, and the recipe is that of our tuned S4NN.
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, model_validator

from ssnn_plugin.losses import SingleTargetLoss

from . import s4nn


class Training(s4nn.MinibatchRecipe):
    """The label should fire at `t_target`, or up to it, or only not be silent."""

    t_target: NonNegativeFloat
    variant: Literal["one-sided", "fixed", "own"] = "one-sided"

    def criterion(self, t_max: float) -> SingleTargetLoss:
        return SingleTargetLoss(self.t_target, t_max, self.variant)


class Settings(s4nn.BaseSettings):
    """Fully connected networks of any depth."""

    training: Training

    @model_validator(mode="after")
    def _target_within_window(self) -> Settings:
        if self.training.t_target >= self.network.t_max:
            t_max, t_target = self.network.t_max, self.training.t_target
            raise ValueError(f"training.t_target must be below network.t_max = {t_max}, got {t_target}")
        return self


build = s4nn.S4NNMinibatch
