"""Configs: one TOML file per method and data set, validated key by key.

Here is what all methods share. The module of a method adds its own `network` and `training` tables in a
class `Settings(Config)`, which reads the files that name it.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from torch import Tensor
from torch.nn import functional

from ssnn_plugin import encode

from .datasets import FOLDERS, NAMES, Form, Images
from .errors import SuiteError
from .features import Features

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Images; codes are made in double precision, of which a whole data set of features would need gigabytes.
ENCODED_AT_ONCE = 2000
Fraction = Annotated[float, Field(ge=0, lt=1)]
# A fraction that is not none.
Part = Annotated[float, Field(gt=0, lt=1)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; a config does not change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Schedule(Strict):
    """Factor on the learning rates: 1 before epoch `begin`, then down.

    In the first `warm_up` epochs it rises from 0 to 1 instead, and then drops to where it would be without.
    "linear" and "cosine" reach 0 at the last epoch; "exponential" multiplies by `decay` per epoch.
    """

    kind: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    begin: NonNegativeInt = 0
    warm_up: NonNegativeFloat = 0.0
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _options_are_used(self) -> Schedule:
        if self.begin and self.kind == "constant":
            raise ValueError(f"begin is no option of the constant schedule, got begin {self.begin}")
        if (self.decay < 1) != (self.kind == "exponential"):
            raise ValueError(
                f"decay below 1 goes with kind 'exponential', got {self.decay} and {self.kind!r}"
            )
        return self

    def factor(self, progress: float, epochs: int) -> float:
        """Factor at a moment of training; `progress` counts epochs and fractions of one."""
        if progress < self.warm_up:
            return progress / self.warm_up
        if self.kind == "constant" or progress < self.begin:
            return 1.0
        if self.kind == "exponential":
            return float(self.decay ** (progress - self.begin))
        done = (progress - self.begin) / (epochs - self.begin)
        return 1 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))


class Spikes(Strict):
    """Base of the encodings by spikes: no light, no spike."""

    blank: ClassVar[float] = math.inf


class Latency(Spikes):
    """Bins 0 ... T - 1, the brighter the earlier; T is `bins`, or else the network's window."""

    kind: Literal["latency"]
    bins: PositiveInt | None = None

    def latest(self, t_max: float) -> float:
        """The last time at which an input may spike."""
        return (self.bins or int(t_max)) - 1

    def code(self, images: Images, t_max: float) -> Tensor:
        return encode.latency(images.x, self.bins or int(t_max), x_max=images.x_max)


class Continuous(Strict):
    """Base of the encodings from which intensities x in 0 ... 1 can be had back, to be coded anew."""

    def of_intensities(self, x: Tensor) -> Tensor:
        """What they are coded as."""
        raise NotImplementedError

    def intensities(self, coded: Tensor) -> Tensor:
        """What was coded; 0 for silence."""
        raise NotImplementedError

    def code(self, images: Images, t_max: float) -> Tensor:
        return self.of_intensities(images.x.double() / images.x_max)


class Linear(Continuous, Spikes):
    """Continuous times scale * (1 - x) of intensities x in 0 ... 1; up to `silent_below`, no spike."""

    kind: Literal["linear"]
    scale: PositiveFloat
    silent_below: Fraction = 0.0

    def latest(self, t_max: float) -> float:
        """Before when inputs spike, as no light is no spike."""
        return math.nextafter(self.scale, 0.0)

    def of_intensities(self, x: Tensor) -> Tensor:
        return (self.scale * (1 - x)).masked_fill(x <= self.silent_below, math.inf)

    def intensities(self, coded: Tensor) -> Tensor:
        return (1 - coded / self.scale).clamp(min=0)


class TwoTimes(Spikes):
    """Mostafa's code: one time for intensities above `threshold`, another, or silence, for the rest."""

    kind: Literal["two-times"]
    threshold: Fraction = 0.5
    early: NonNegativeFloat = 0.0
    late: NonNegativeFloat = math.log(6.0)
    bright_early: bool = True
    dark_silent: bool = False

    @model_validator(mode="after")
    def _early_before_late(self) -> TwoTimes:
        if self.early > self.late:
            raise ValueError(f"early must be at most late, got {self.early} and {self.late}")
        return self

    def latest(self, t_max: float) -> float:
        """The last time at which an input may spike."""
        late, early = (self.late, self.early) if self.bright_early else (self.early, self.late)
        return max(early, 0.0 if self.dark_silent else late)

    def code(self, images: Images, t_max: float) -> Tensor:
        x = images.x.double() / images.x_max
        times = encode.binary(x, self.early, self.late, at=self.threshold, bright_early=self.bright_early)
        return times.masked_fill(x <= self.threshold, math.inf) if self.dark_silent else times


class Direct(Continuous):
    """No spikes: real-valued pixels (x - mean) / deviation, x in 0 ... 1, the same in every step."""

    kind: Literal["direct"]
    mean: float = 0.0
    deviation: PositiveFloat = 1.0

    @property
    def blank(self) -> float:
        return -self.mean / self.deviation

    def of_intensities(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def intensities(self, coded: Tensor) -> Tensor:
        return coded * self.deviation + self.mean


class Rates(Strict):
    """Probabilities of a spike per step: images of `size` x `size` pixels, all of one mean."""

    blank: ClassVar[float] = 0.0

    kind: Literal["rates"]
    size: PositiveInt
    mean: Fraction

    def code(self, images: Images, t_max: float) -> Tensor:
        x = images.x.double().reshape(-1, *images.shape).mean(1, keepdim=True)
        size = (self.size, self.size)
        x = functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).flatten(1)
        mean = x.mean(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)  # of a black image
        return (x * (self.mean / mean)).clamp(max=1)


SpikeTimes = Annotated[Latency | Linear | TwoTimes, Field(discriminator="kind")]
Encoding = Annotated[Latency | Linear | TwoTimes | Direct | Rates, Field(discriminator="kind")]


class Network(Strict):
    """What the suite asks of every network. In discrete time `t_max` is a whole number of bins."""

    t_max: PositiveFloat
    dtype: Literal["float32", "float64"] = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of weights and times."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def name(self) -> str:
        """The hidden layers as papers write them, e.g. "400-400" or "16C5s2-32C5s2-128"."""
        raise NotImplementedError

    def hashed(self) -> dict[str, Any]:
        """What the hash of a config is taken of: an option added later leaves older hashes alone."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Training(Strict):
    """What the suite asks of every training; the weights of the last epochs are averaged."""

    epochs: PositiveInt
    average_last: PositiveInt = 1
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _parts_within_training(self) -> Training:
        if self.average_last > self.epochs:
            raise ValueError(f"average_last must be at most epochs = {self.epochs}, got {self.average_last}")
        if self.schedule.begin >= self.epochs:
            raise ValueError(
                f"schedule.begin must be below epochs = {self.epochs}, got {self.schedule.begin}"
            )
        if self.schedule.warm_up >= self.epochs:
            raise ValueError(
                f"schedule.warm_up must be below epochs = {self.epochs}, got {self.schedule.warm_up}"
            )
        return self

    def averages(self, epoch: int) -> bool:
        """Whether the weights after an epoch, counted from 0, are among those averaged."""
        return epoch >= self.epochs - self.average_last


class Unscheduled(Training):
    """For methods whose rates follow rules of their own, and whose weights are not averaged."""

    @model_validator(mode="after")
    def _nothing_that_is_ignored(self) -> Unscheduled:
        if self.average_last > 1 or self.schedule != Schedule():
            raise ValueError("schedule and average_last are no options of this method")
        return self


class Samples(Strict):
    """How many images of each part are used, drawn by the seed of a run; all, unless it is said."""

    train: PositiveInt | None = None
    test: PositiveInt | None = None


def _known(dataset: str) -> str:
    if dataset not in NAMES:
        raise ValueError(f"must be one of {', '.join(map(repr, NAMES))}")
    return dataset


class Config(Strict):
    """A method on a data set: on its images, or on the features of a frozen extractor."""

    method: str
    implementation: str
    dataset: Annotated[str, AfterValidator(_known)]
    description: str
    validation: NonNegativeInt
    samples: Samples = Samples()
    images: Form = Form()
    features: Features | None = None
    encoding: Encoding = Latency(kind="latency")
    network: Network
    training: Training

    @model_validator(mode="after")
    def _images_have_no_form_of_their_own(self) -> Config:
        if self.images != Form() and self.dataset not in FOLDERS:
            raise ValueError(f"images goes with dataset {', '.join(FOLDERS)}, got {self.dataset!r}")
        return self

    @property
    def t_max(self) -> float:
        """Window of the outputs."""
        return self.network.t_max

    @property
    def network_name(self) -> str:
        """The hidden part of the network as papers write it."""
        return self.network.name

    def encode(self, images: Images) -> Tensor:
        """Spike times, or real-valued pixels, [samples, features] of images, in the network's precision."""
        parts = torch.split(torch.arange(len(images)), ENCODED_AT_ONCE)
        coded = (self.encoding.code(images.select(part), self.network.t_max) for part in parts)
        return torch.cat([part.to(self.network.torch_dtype) for part in coded])

    def digest(self) -> str:
        """Hash of everything that changes a run; the description does not."""
        content = self.model_dump(mode="json", exclude={"description", "network"}, exclude_defaults=True)
        content["network"] = self.network.hashed()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def with_epochs(self, epochs: int | None) -> Config:
        """The same config with another number of epochs, of which the warm-up takes at most half."""
        if epochs is None:
            return self
        content = self.model_dump(mode="python")
        training = content["training"]
        training["epochs"] = epochs
        training["average_last"] = min(self.training.average_last, epochs)
        training["schedule"]["warm_up"] = min(self.training.schedule.warm_up, epochs / 2)
        return parsed(type(self), content, "--epochs")


Parsed = TypeVar("Parsed", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        SuiteError: names the file that cannot be read or is no TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not valid TOML: {error}") from error


def parsed(settings: type[Parsed], content: dict[str, Any], source: str) -> Parsed:
    """The settings that tables describe.

    Raises:
        SuiteError: names the source, the key, the value and what is allowed.
    """
    try:
        # TOML has neither tuples nor a float for `1`; JSON mode reads both and stays strict otherwise.
        return settings.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise SuiteError("\n".join(f"{source}: {_explain(e, content)}" for e in error.errors())) from error


def _explain(error: Any, content: dict[str, Any]) -> str:
    key = _key(error["loc"], content)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key"
    if error["type"] == "missing":
        return f"{key}: missing key"
    value = error["input"]
    shown = "" if isinstance(value, dict) else f", got {value!r}"
    return f"{key}: {message}{shown}" if key else message


def _key(location: tuple[str | int, ...], content: dict[str, Any]) -> str:
    """The key as the file has it: pydantic's path also names the member of a union that it chose."""
    parts: list[str] = []
    table: Any = content
    chosen: tuple[Any, ...] = ()
    for part in location:
        is_choice, chosen = part in chosen, ()
        if is_choice or str(part).startswith("function-"):
            continue
        parts.append(str(part))
        table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict):
            chosen = (table.get("protocol"), table.get("kind"))
    return ".".join(parts)
