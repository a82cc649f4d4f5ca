"""Integrate-and-fire networks that learn in every bin and decide by events, a recipe of our own.

DS4NN, S4NN, BS4NN and TS4TL read V at the moment of firing alone. Here the same networks, with the
same losses, learn over all bins at once (`ssnn_plugin.nn.InBins`), with a surrogate gradient in each, and
are measured event by event, on spike times.

Weights are standardised per neuron with a learned gain (Qiao et al. 2019; for single spikes Che et
al. 2024), average pools are part of the next layer. Inputs and hidden layers share the bins of the encoding;
the outputs may go on for longer, up to `t_max`, driven by a constant current. What V is at the end of the
hidden window is then told by when the neuron fires, and ties are rare.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssnn_plugin import IF, surrogate
from ssnn_plugin.functional import bins_to_times
from ssnn_plugin.functional.bins import Bins, potential_at_crossing, times_to_bins
from ssnn_plugin.losses import RelativeTargetLoss, SingleTargetLoss, TemporalCrossEntropyLoss
from ssnn_plugin.nn.bins import in_bins

from ..compiled.standardized import Standardize
from ..config import Config, Latency, Part, Strict
from . import layered
from .architecture import neuron_layers
from .layered import Layered
from .minibatch import Done, MixedPrecision
from .teacher import Teacher, TeacherSettings

# Spread at first of the directions, in units of 1 / sqrt(inputs), and of the real weights behind binary ones.
DIRECTION_STD = 0.58
REAL_STD = 0.1
# The device on which weights are standardised in one compiled pass.
COMPILED_FOR = "cpu"


class CrossEntropy(Strict):
    """Cross-entropy on -t; `temperature` is the difference in bins that makes a class e times likelier."""

    kind: Literal["cross-entropy"]
    temperature: PositiveFloat

    def build(self, t_max: int) -> nn.Module:
        return TemporalCrossEntropyLoss(t_max, self.temperature / t_max)

    def logits(self, times: Tensor, t_max: int) -> Tensor:
        """What the cross-entropy is of; silence counts as a spike at the end, and gets no gradient."""
        return -times.clamp(max=t_max) / self.temperature


class SingleTarget(Strict):
    """TS4TL: only the label fires, at `t_target`."""

    kind: Literal["single-target"]
    t_target: NonNegativeFloat
    variant: Literal["one-sided", "fixed", "own"] = "one-sided"

    def build(self, t_max: int) -> nn.Module:
        return SingleTargetLoss(self.t_target, t_max, self.variant)


class RelativeTarget(Strict):
    """S4NN: the label first, all others `gamma` bins later."""

    kind: Literal["relative-target"]
    gamma: PositiveFloat

    def build(self, t_max: int) -> nn.Module:
        return RelativeTargetLoss(self.gamma, t_max)


Loss = Annotated[CrossEntropy | SingleTarget | RelativeTarget, Field(discriminator="kind")]


class Network(layered.Network):
    """Integrate-and-fire neurons of threshold 1 in bins.

    Initial weights are scaled so that the fraction `firing` of each layer's neurons fires on the first
    training images. `output_current` is what V of an output grows by in every bin at first; it is learned.
    Binary weights are +alpha or -alpha, with one learned alpha per layer (BS4NN).
    """

    t_max: PositiveInt
    firing: Part = 0.15
    output_current: NonNegativeFloat = 0.0
    weights: Literal["standardized", "binary"] = "standardized"


class Training(MixedPrecision, layered.Training):
    """`potential_loss` weighs a cross-entropy on twice V of the outputs at the end of the hidden window.

    `sharpness` is that of the arctan; `spike_price` is that of a hidden spike, whenever it comes. From a
    `teacher` both the cross-entropy on -t and that on V learn; outputs that are silent, by V alone.
    """

    loss: Loss
    potential_loss: NonNegativeFloat = 0.0
    sharpness: PositiveFloat = 2.0
    teacher: TeacherSettings | None = None

    @model_validator(mode="after")
    def _taught_by_logits(self) -> Training:
        if self.teacher and not isinstance(self.loss, CrossEntropy):
            raise ValueError(f"teacher goes with loss 'cross-entropy', got {self.loss.kind!r}")
        return self


class Settings(Config):
    encoding: Latency = Latency(kind="latency")
    network: Network
    training: Training

    @property
    def bins(self) -> int:
        """Of the inputs and hidden layers."""
        return self.encoding.bins or self.network.t_max

    @model_validator(mode="after")
    def _bins_within_window(self) -> Settings:
        if self.bins > self.network.t_max:
            raise ValueError(
                f"encoding.bins must be at most network.t_max = {self.network.t_max}, got {self.bins}"
            )
        self.training.loss.build(self.network.t_max)  # which refuses targets outside of the window
        return self


class EveryBin(Layered):
    """In training a dense network on all bins, else layers on spike times."""

    settings: Settings
    training: Training

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        self.last = neuron_layers(settings.network.layers)
        super().__init__(settings, shape, classes, seed, device)
        self.timing = settings.training.loss.build(settings.network.t_max)
        self.gradient = surrogate.Arctan(settings.training.sharpness)
        self.fired: list[Tensor] = []
        self.teacher: Teacher | None = None
        if taught := self.training.teacher:
            self.teacher = Teacher(taught, shape, classes, settings.bins, self.training, device)

    def options(self, number: int) -> dict[str, Any]:
        network = self.settings.network
        if number < self.last:
            return {"neuron": IF(), "t_max": self.settings.bins}
        return {"neuron": IF(), "t_max": network.t_max, "bias": network.output_current > 0}

    def initialize(self, number: int, weight: Tensor) -> None:
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5)

    def _linear(self, *args: Any) -> nn.Module:
        return self._parametrized(super()._linear(*args))

    def _convolution(self, *args: Any) -> nn.Module:
        return self._parametrized(super()._convolution(*args))

    def _parametrized(self, layer: nn.Module) -> nn.Module:
        kind = BinaryWeights if self.settings.network.weights == "binary" else StandardizedWeights
        parametrize.register_parametrization(layer, "weight", kind())
        return layer

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if epoch:
            return
        self.calibrate(times, self.settings.network.firing)
        if (current := self.connections[-1].bias) is not None:
            nn.init.constant_(current, self.settings.network.output_current)

    def forward(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        """In training the times of the outputs alone: of hidden neurons, all that is asked is who fired."""
        if not self.network.training:
            return super().forward(times)
        bins, self.fired = Bins(times_to_bins(times, self.settings.bins)), []
        with self.training.autocast(times.device):
            for stage in self.stages[:-1]:
                bins = in_bins(stage.neurons, bins, self.gradient)
                bins.activations, fired = Counted.apply(bins.activations)
                self.fired.append(fired)
                bins = in_bins(stage.after, bins, self.gradient)
        inputs = Bins(bins.activations.to(times.dtype))
        outputs = in_bins(self.stages[-1].neurons, inputs, self.gradient)
        assert outputs.potentials is not None
        self.at_end = outputs.potentials[self.settings.bins - 1]
        potential = potential_at_crossing(outputs.potentials, outputs.activations)
        return [bins_to_times(outputs.activations)], potential

    def costs(self, layers: list[Tensor]) -> Tensor | float:
        if not self.training.spike_price:
            return 0.0
        return self.training.spike_price * sum(fired.sum() for fired in self.fired) / len(layers[-1])

    def counted(self, layers: list[Tensor]) -> list[Tensor]:
        return [*(fired.detach() for fired in self.fired), *super().counted(layers)]

    def _step(self, inputs: Tensor, labels: Tensor) -> Done:
        if self.teacher:
            self.teacher.learn(inputs, labels, self.factor)
        return super()._step(inputs, labels)

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.timing(outputs, labels)
        if self.teacher:
            assert isinstance(self.training.loss, CrossEntropy)
            loss = self._taught(loss, self.training.loss.logits(outputs, self.settings.network.t_max))
        if weight := self.training.potential_loss:
            logits = 2 * self.at_end
            loss = loss + weight * self._taught(nn.functional.cross_entropy(logits, labels), logits)
        return loss

    def _taught(self, loss: Tensor, logits: Tensor) -> Tensor:
        """A loss on the labels; of it a share on the answers of the teacher instead, if there is one."""
        if self.teacher is None:
            return loss
        share = self.teacher.settings.share
        return (1 - share) * loss + share * self.teacher.loss(logits)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"teacher": self.teacher.state_dict()} if self.teacher else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.teacher:
            self.teacher.load_state_dict(state["teacher"])


class Counted(torch.autograd.Function):
    """Activations [T, batch, *] as they are, and the spikes of each neuron [*], float32.

    One function of both, as the sum of their gradients takes as long as a convolution otherwise.
    """

    @staticmethod
    def forward(ctx: Any, activations: Tensor) -> tuple[Tensor, Tensor]:
        return activations.view_as(activations), activations[-1].sum(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        grad: Tensor = grads[0].clone()
        grad[-1] += grads[1]
        return grad


class StandardizedWeights(nn.Module):
    """Parametrization of a weight by directions without mean and a learned gain per neuron, 1 at first.

    Without a common shift of a neuron's weights, which would only make it fire ever earlier, or never.
    What the gains are relative to is the norm of the weight as it was assigned last, a number per layer.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, direction: Tensor, gain: Tensor) -> Tensor:
        """Directions [out, *] and gains [out] -> weight [out, *]."""
        gain = self.scale * gain
        if direction.device.type == COMPILED_FOR:
            return Standardize.apply(direction, gain)  # type: ignore[no-any-return]
        centred = _centred(direction)
        return _per_neuron(gain / centred.flatten(1).norm(dim=1), direction) * centred

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and gains for a weight [out, *]."""
        weight = weight.contiguous()
        self.scale.copy_(_centred(weight).flatten(1).norm(dim=1).mean())
        return DIRECTION_STD * weight / weight.std() * weight[0].numel() ** -0.5, weight.new_ones(len(weight))


class BinaryWeights(nn.Module):
    """Parametrization of a weight by +alpha and -alpha, the signs of real weights v without their mean.

    The gradient of a weight goes straight through to v where |v| <= 1; alpha is a learned factor of what
    the weight was when it was assigned last, 1 at first.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, real: Tensor, alpha: Tensor) -> Tensor:
        """Real weights [out, *] and alpha [] -> weight [out, *]."""
        passed = _centred(real).clamp(-1, 1)
        sign = torch.where(passed >= 0, 1.0, -1.0).to(real)
        return self.scale * alpha * (sign + (passed - passed.detach()))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Real weights of the same signs, and alpha, for a weight [out, *]."""
        self.scale.copy_(weight.abs().mean())
        return REAL_STD * weight / weight.std(), torch.ones_like(self.scale)


def _centred(weight: Tensor) -> Tensor:
    return weight - _per_neuron(weight.flatten(1).mean(1), weight)


def _per_neuron(values: Tensor, weight: Tensor) -> Tensor:
    """Values [out] in a shape that goes with a weight [out, *]."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))


build = EveryBin
