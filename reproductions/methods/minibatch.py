"""What the methods that learn in mini-batches share: epochs, random numbers, optimiser, statistics, state."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ssnn_plugin import metrics

from .. import config
from ..config import Config, Fraction, Strict
from ..errors import SuiteError
from ..evaluation import FirstSpikes, SpikesInWindow, SpikeTotals
from ..records import EpochStatistics
from . import random_seed

# What random numbers are for; each purpose has a stream of its own in every epoch.
REDRAWING, SHUFFLING, DROPPING, MODULES, AUGMENTING, NORMALIZING, MIRRORING = 1, 2, 3, 4, 5, 6, 7

# Of an image of 8 bits: less light between pixels is none.
HALF_A_LEVEL = 1 / 512


class Augment(Strict):
    """Changes of the training images, drawn anew in every epoch.

    Turned by up to `rotate` degrees and enlarged or reduced by up to the part `zoom`, which takes an
    encoding of continuous intensities; shifts by up to `shift` pixels, with `border` coming in: silence, or
    the image reflected at its edge; with `mirror`, half of the images left for right, or 'alternate': each
    image in every other epoch (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section
    3.6); `cutout` is the side of a square that is blanked about a random pixel (DeVries & Taylor 2017), 0
    for none.
    """

    shift: NonNegativeInt
    border: Literal["blank", "reflect"] = "blank"
    mirror: bool | Literal["alternate"] = False
    cutout: NonNegativeInt = 0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    zoom: Fraction = 0.0

    @model_validator(mode="after")
    def _changes_something(self) -> Augment:
        if not (self.shift or self.mirror or self.cutout or self.warps):
            raise ValueError(
                "augment must change something, got shift 0, no mirror, cutout 0, rotate 0, zoom 0"
            )
        if self.border != "blank" and not self.shift:
            raise ValueError(f"border goes with a shift above 0, got {self.border!r}")
        return self

    @property
    def warps(self) -> bool:
        """Whether pixels come to lie between those of the image."""
        return bool(self.rotate or self.zoom)

    def check(self, shape: tuple[int, ...], encoding: Any) -> None:
        """Refuse features, images [channels, height, width] too small for the changes, and other codes."""
        if len(shape) != 3:
            raise SuiteError(f"training.augment needs images, got {shape[0]} features per sample")
        _, height, width = shape
        if self.cutout >= (side := min(height, width)):
            raise SuiteError(
                f"training.augment.cutout must be below {side}, for an image of {height} x {width}, "
                f"got {self.cutout}"
            )
        if self.border == "reflect" and self.shift >= min(height, width):
            raise SuiteError(
                f"training.augment.shift must be below {min(height, width)}, to reflect an image of "
                f"{height} x {width}, got {self.shift}"
            )

        if self.warps and not isinstance(encoding, config.Continuous):
            raise SuiteError(
                "training.augment.rotate and zoom go with the encodings 'linear' and 'direct', from which "
                f"intensities can be had back, got {encoding.kind!r}"
            )

    def padded(self, images: Tensor, blank: float) -> Tensor:
        """Images with `shift` more pixels on each side; `blank` is how no light is encoded."""
        sides = [self.shift] * 4
        if self.border == "reflect":
            return nn.functional.pad(images, sides, mode="reflect")
        return nn.functional.pad(images, sides, value=blank)


class Training(config.Training):
    """Settings of the trainer below; `learning_rates` holds one number, or one per stage."""

    batch_size: PositiveInt
    optimizer: Literal["sgd", "adam", "adamw"]
    momentum: Fraction = 0.0
    nesterov: bool = False
    learning_rates: list[PositiveFloat] = Field(min_length=1)
    weight_decay: Fraction = 0.0
    augment: Augment | None = None

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Training:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is an option of optimizer 'sgd', got optimizer {self.optimizer!r}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov goes with a momentum above 0")
        return self


class MixedPrecision(Strict):
    """For the `Training` of a method whose dense operations may be done in half precision."""

    precision: Literal["float32", "bfloat16"] = "float32"

    def autocast(self, device: torch.device) -> torch.autocast:
        """What the operations of a training step are done in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


class Stage(nn.Module):
    """A layer of neurons, and what its spikes pass on their way to the next stage, such as a pool."""

    neurons: nn.Module
    after: nn.Sequential

    def __init__(self, neurons: nn.Module, *after: nn.Module) -> None:
        super().__init__()
        self.neurons, self.after = neurons, nn.Sequential(*after)


def in_a_row(stages: Iterable[Stage]) -> nn.Sequential:
    """Stages as one module that runs them."""
    return nn.Sequential(*(nn.Sequential(stage.neurons, stage.after) for stage in stages))


def refuse_a_single_sample(samples: int, batch_size: int) -> None:
    """Refuse a last mini-batch of one sample, which cannot be normalised."""
    if batch_size == 1 or samples % batch_size == 1:
        raise SuiteError(
            f"training.batch_size must not leave a single one of {samples} samples, which cannot be "
            f"normalised, got {batch_size}"
        )


def spread(times: Tensor, count: int) -> Tensor:
    """At most so many samples, from all over a data set, which may come class by class.

    >>> spread(torch.arange(10), 4)
    tensor([0, 2, 5, 7])
    """
    count = min(count, len(times))
    return times[torch.arange(count) * len(times) // count]


def one_each(values: Sequence[float], layers: int, key: str, kind: str = "layer") -> list[float]:
    """The value of each of so many layers, of which one may be given for all.

    >>> one_each([0.1], 3, "training.learning_rates")
    [0.1, 0.1, 0.1]

    Raises:
        SuiteError: another number of values.
    """
    if len(values) not in (1, layers):
        raise SuiteError(f"{key} must hold one number, or {layers}, one per {kind}, got {len(values)}")
    return list(values) * layers if len(values) == 1 else list(values)


def restore_average(average: AveragedModel, state: dict[str, Any]) -> None:
    """Take up a mean of weights from a checkpoint; those of the suite's first versions hold sums."""
    if "sums" in state:
        average.n_averaged.fill_(state["epochs"])
        for mean, total in zip(average.module.parameters(), state["sums"], strict=bool(state["sums"])):
            mean.data.copy_(total / state["epochs"])
    else:
        average.load_state_dict(state)


def lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give the state of an optimiser the strides of its parameters: torch's fused Adam reads past them.

    Those of a checkpoint may be others.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Done(NamedTuple):
    """Of a mini-batch: the loss without what `costs` adds, samples right, and spikes per neuron by layer."""

    loss: float
    right: float
    spikes: list[Tensor]


class Minibatch:
    """Base of the methods that learn in mini-batches, through autograd and a torch optimiser.

    A method passes its stages and defines `loss`. It may add `costs`, shape what is `passed_on` and the
    gradients `after_backward`, project the weights `after_step`, or define `forward` anew. `stream` is the
    purpose whose random numbers torch's modules draw from in training; `fire_once` says whether neurons do.

    Args:
        settings: with a `Training` of this module.
        stages: modules on spike times, each a layer of neurons or a `Stage`; the last one, the
            outputs, is called with `return_potential=True`.
        shape: of an image, [channels, height, width].
        seed, device: as for `methods.build`.

    Raises:
        SuiteError: `augment` without images or with too small ones; another number of learning rates than of
            stages.
    """

    stream = MODULES
    fire_once = True

    def __init__(
        self, settings: Config, stages: Sequence[nn.Module], shape: tuple[int, ...], seed: int, device: str
    ) -> None:
        assert isinstance(settings.training, Training)
        self.settings, self.training = settings, settings.training
        if self.training.augment:
            self.training.augment.check(shape, settings.encoding)
        self.shape, self.seed, self.device = shape, seed, device
        self.stages = [stage if isinstance(stage, Stage) else Stage(stage) for stage in stages]
        self.network = nn.ModuleList(self.stages).to(device)
        self.optimizer = self._optimizer()
        self.rates: list[float] = [group["lr"] for group in self.optimizer.param_groups]
        self.average = AveragedModel(self.network)
        self.spikes: list[Tensor] = []
        # What the schedule multiplies all learning rates by.
        self.factor = 1.0

    def loss(self, outputs: Tensor, potential: Tensor, labels: Tensor) -> Tensor:
        """Loss of a mini-batch on the spike times and the potential of the outputs."""
        raise NotImplementedError

    def costs(self, layers: list[Tensor]) -> Tensor | float:
        """Added to the loss, e.g. costs of the weights, or of the spikes of the layers."""
        return 0.0

    def counted(self, layers: list[Tensor]) -> list[Tensor]:
        """Spikes of every neuron in a mini-batch, by layer."""
        # In the order of a convolution's outputs in memory, in which torch is ten times as fast.
        in_order = [(layer.movedim(1, -1) < math.inf).sum(0, dtype=torch.int32) for layer in layers]
        return [spikes.movedim(-1, 0) for spikes in in_order]

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        """Called with all training samples before each epoch; `self.spikes` is of the last one."""

    def after_backward(self) -> None:
        """Called between the backward pass and the optimiser's step."""

    def after_step(self) -> None:
        """Called after each step of the optimiser."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters and learning rates for the optimiser, one group per stage."""
        rates = one_each(self.training.learning_rates, len(self.stages), "training.learning_rates")
        return [{"params": list(s.parameters()), "lr": lr} for s, lr in zip(self.stages, rates, strict=True)]

    def forward(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        """Spike times of every layer of neurons, and the potential of the outputs."""
        layers = []
        for number, stage in enumerate(self.stages[:-1]):
            layers.append(self.passed_on(stage.neurons(self.arriving(number, times))))
            times = stage.after(layers[-1])
        times = self.arriving(len(layers), times)
        outputs, potential = self.stages[-1].neurons(times, return_potential=True)
        return [*layers, self.passed_on(outputs)], potential

    def arriving(self, number: int, times: Tensor) -> Tensor:
        """What of a layer's input spikes reaches it."""
        return times

    def passed_on(self, spikes: Tensor) -> Tensor:
        """What a layer's spikes pass on their way out, which shapes the error on its way back."""
        return spikes

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        self.before_epoch(epoch, times)
        self.network.train()
        torch.manual_seed(random_seed(self.seed, epoch, self.stream))
        order = torch.randperm(len(times), generator=self.generator(epoch, SHUFFLING))
        augmenting = self.generator(epoch, AUGMENTING)
        mirrored = self._mirrored(epoch, len(times))
        loss = right = 0.0
        spikes: list[Tensor] = []
        for start in range(0, len(order), self.training.batch_size):
            batch = order[start : start + self.training.batch_size]
            inputs = self.varied(times[batch], augmenting, None if mirrored is None else mirrored[batch])
            self._set_rates(epoch + start / len(order))
            target = labels[batch].to(self.device)
            done = self._step(inputs.to(self.device), target)
            loss += done.loss * len(batch)
            right += done.right
            spikes = [a + b for a, b in zip(spikes, done.spikes, strict=True)] if spikes else done.spikes
            advance(len(batch))
        self.spikes = spikes
        if self.training.averages(epoch):
            self.average.update_parameters(self.network)
        return EpochStatistics.of(loss, right, spikes, len(order), fire_once=self.fire_once)

    def _mirrored(self, epoch: int, count: int) -> Tensor | None:
        """Which of all images are mirrored in an epoch; None where that is drawn with their other changes."""
        augment = self.training.augment
        if augment is None or augment.mirror != "alternate":
            return None
        at_first = torch.rand(count, generator=self.generator(0, MIRRORING)) < 0.5
        return at_first ^ bool(epoch % 2)

    def varied(self, inputs: Tensor, generator: torch.Generator, mirrored: Tensor | None = None) -> Tensor:
        """Inputs as they are learned: changed, where the settings say how; `mirrored` may be drawn before."""
        augment, encoding = self.training.augment, self.settings.encoding
        if augment is None:
            return inputs
        if augment.warps:
            assert isinstance(encoding, config.Continuous)
            intensities = encoding.intensities(inputs).reshape(-1, *self.shape)
            inputs = encoding.of_intensities(warped(intensities, augment, generator).flatten(1))
        return augmented(inputs, self.shape, augment, encoding.blank, generator, mirrored)

    def _step(self, inputs: Tensor, labels: Tensor) -> Done:
        """Learn from a mini-batch."""
        layers, potential = self.forward(inputs)
        loss = self.loss(layers[-1], potential, labels)
        self._learn(loss + self.costs(layers))
        right = metrics.accuracy(layers[-1].detach(), labels, tie="lenient") * len(labels)
        return Done(loss.item(), right, [spikes.cpu() for spikes in self.counted(layers)])

    def _learn(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.after_backward()
        self.optimizer.step()
        self.after_step()

    def predict(self, times: Tensor) -> FirstSpikes | SpikesInWindow | SpikeTotals:
        self.network.eval()
        with torch.no_grad(), self._averaged_weights():
            layers, potential = self.forward(times.to(self.device))
        return FirstSpikes(tuple(layers), potential)

    def generator(self, epoch: int, purpose: int) -> torch.Generator:
        """Random numbers that depend on seed, epoch and purpose alone."""
        return torch.Generator().manual_seed(random_seed(self.seed, epoch, purpose))

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The mean of the last epochs' weights in their place, as soon as there is one."""
        own = [parameter.data for parameter in self.network.parameters()]
        means = self.average.module.parameters() if self.average.n_averaged else own
        try:
            for parameter, mean in zip(self.network.parameters(), means, strict=True):
                parameter.data = mean.data
            yield
        finally:
            for parameter, before in zip(self.network.parameters(), own, strict=True):
                parameter.data = before

    def _optimizer(self) -> torch.optim.Optimizer:
        groups, decay = self.parameter_groups(), self.training.weight_decay
        if self.training.optimizer == "sgd":
            momentum, nesterov = self.training.momentum, self.training.nesterov
            return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, weight_decay=decay)
        kind = torch.optim.Adam if self.training.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, weight_decay=decay, fused=True)

    def _set_rates(self, progress: float) -> None:
        self.factor = self.training.schedule.factor(progress, self.training.epochs)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "spikes": self.spikes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_as_parameters(self.optimizer)
        restore_average(self.average, state["average"])
        self.spikes = state["spikes"]


def warped(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Intensities [batch, channels, height, width], each image turned and scaled by itself; 0 comes in."""
    turn, zoom = 2 * torch.rand(2, len(images), generator=generator, dtype=images.dtype) - 1
    angle, scale = turn * math.radians(augment.rotate), 1 + zoom * augment.zoom
    cosine, sine, aspect = angle.cos() / scale, angle.sin() / scale, images.shape[-1] / images.shape[-2]
    rows = (cosine, -sine / aspect, 0 * sine), (sine * aspect, cosine, 0 * sine)
    places = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = nn.functional.affine_grid(places, list(images.shape), align_corners=False)
    sampled = nn.functional.grid_sample(images, grid, align_corners=False)
    return nn.functional.threshold(sampled, HALF_A_LEVEL, 0.0)


def augmented(
    inputs: Tensor,
    shape: tuple[int, ...],
    augment: Augment,
    blank: float,
    generator: torch.Generator,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Flat encoded images, each changed in its own way; `blank` is how no light is encoded.

    `mirrored` says which images are, where `augment` has them mirrored; drawn if not given.
    """
    images = _moved(augment.padded(inputs.reshape(-1, *shape), blank), shape, augment, generator, mirrored)
    if augment.cutout:
        images = images.where(~_squares(images.shape, augment.cutout, generator), blank)
    return images.flatten(1)


def _moved(
    padded: Tensor,
    shape: tuple[int, ...],
    augment: Augment,
    generator: torch.Generator,
    mirrored: Tensor | None,
) -> Tensor:
    """Of each padded image a window of the shape [channels, height, width], perhaps mirrored."""
    channels, height, width = shape
    down, right = torch.randint(2 * augment.shift + 1, (2, len(padded), 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    if augment.mirror:
        if mirrored is None:
            mirrored = torch.rand(len(padded), generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    sample = torch.arange(len(padded))[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _squares(shape: torch.Size, side: int, generator: torch.Generator) -> Tensor:
    """True in a square of `side` pixels of each image [batch, 1, height, width], clipped at its edges."""
    batch, _, height, width = shape
    top = torch.randint(height, (batch, 1, 1, 1), generator=generator) - side // 2
    left = torch.randint(width, (batch, 1, 1, 1), generator=generator) - side // 2
    row, column = torch.arange(height)[:, None], torch.arange(width)
    return (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
