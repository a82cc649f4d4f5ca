"""Configs: one TOML file per method and data set, validated key by key."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
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

from .errors import SuiteError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; a config does not change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Uniform(Strict):
    """Weights uniform between two bounds."""

    uniform: tuple[float, float]

    @model_validator(mode="after")
    def _low_before_high(self) -> Uniform:
        low, high = self.uniform
        if low > high:
            raise ValueError(f"uniform must be [low, high] with low <= high, got [{low}, {high}]")
        return self


class Normal(Strict):
    """Weights normal, given mean and standard deviation."""

    normal: tuple[float, NonNegativeFloat]


class Network(Strict):
    """A fully connected network; the output layer comes from the data set."""

    hidden: list[PositiveInt]
    threshold: PositiveFloat
    t_max: PositiveInt
    init: list[Uniform | Normal]
    dtype: Literal["float32", "float64"] = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of weights and times."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @model_validator(mode="after")
    def _one_init_per_layer(self) -> Network:
        if len(self.init) != len(self.hidden) + 1:
            raise ValueError(
                f"init must hold {len(self.hidden) + 1} entries, one per layer, got {len(self.init)}"
            )
        return self


class Schedule(Strict):
    """Factor on the learning rates: 1 before epoch `begin`, then down to 0 at the last epoch."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    begin: NonNegativeInt = 0

    @model_validator(mode="after")
    def _begin_is_used(self) -> Schedule:
        if self.begin and self.kind == "constant":
            raise ValueError(f"begin is an option of the linear and cosine schedules, got begin {self.begin}")
        return self


class Training(Strict):
    """What the two protocols share."""

    epochs: PositiveInt
    learning_rates: list[PositiveFloat]
    schedule: Schedule = Schedule()
    weight_decay: Fraction = 0.0
    gamma: PositiveFloat
    dropout: Fraction = 0.0
    scale_dropout: bool = False
    input_dropout: Fraction = 0.0
    redraw_below: Fraction = 0.0
    average_last: PositiveInt = 1

    @model_validator(mode="after")
    def _average_within_training(self) -> Training:
        if self.average_last > self.epochs:
            raise ValueError(f"average_last must be at most epochs = {self.epochs}, got {self.average_last}")
        if self.schedule.begin >= self.epochs:
            raise ValueError(
                f"schedule.begin must be below epochs = {self.epochs}, got {self.schedule.begin}"
            )
        if self.scale_dropout and not self.dropout:
            raise ValueError("scale_dropout needs a dropout above 0")
        return self


class OnlineTraining(Training):
    """One sample at a time, as S4NN's authors train."""

    protocol: Literal["online"]
    shuffle: bool = False


class MinibatchTraining(Training):
    """Mini-batches through the ordinary layers, autograd and a torch optimiser."""

    protocol: Literal["minibatch"]
    batch_size: PositiveInt
    optimizer: Literal["sgd", "adam"]
    momentum: Fraction = 0.0
    normalize_errors: bool = True
    center_gradients: bool = False
    center_along: Literal["ones", "mean input"] = "ones"

    @model_validator(mode="after")
    def _center_along_is_used(self) -> MinibatchTraining:
        if self.center_along != "ones" and not self.center_gradients:
            raise ValueError(f"center_along needs center_gradients = true, got {self.center_along!r}")
        return self

    @model_validator(mode="after")
    def _momentum_is_used(self) -> MinibatchTraining:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is an option of optimizer 'sgd', got optimizer {self.optimizer!r}")
        return self


class Config(Strict):
    """A method on a data set."""

    method: str
    implementation: Literal["s4nn"]
    dataset: Literal["digits", "mnist", "fashion-mnist"]
    description: str
    validation: NonNegativeInt
    network: Network
    training: Annotated[OnlineTraining | MinibatchTraining, Field(discriminator="protocol")]

    @model_validator(mode="after")
    def _one_rate_per_layer(self) -> Config:
        layers, rates = len(self.network.hidden) + 1, len(self.training.learning_rates)
        if layers != rates:
            raise ValueError(
                f"training.learning_rates must hold {layers} numbers, one per layer, got {rates}"
            )
        if self.training.gamma > self.network.t_max:
            t_max, gamma = self.network.t_max, self.training.gamma
            raise ValueError(f"training.gamma must be at most network.t_max = {t_max}, got {gamma}")
        if self.training.dropout and not self.network.hidden:
            raise ValueError("training.dropout needs a hidden layer")
        if self.training.redraw_below and any(isinstance(init, Normal) for init in self.network.init[:-1]):
            raise ValueError("training.redraw_below needs uniform initial weights in the hidden layers")
        return self

    @property
    def layers(self) -> str:
        """The hidden layers as papers write them, e.g. "400" or "400-400"."""
        return "-".join(map(str, self.network.hidden))

    def digest(self) -> str:
        """Hash of everything that changes a run; the description does not."""
        # Without defaults: an option added later leaves the hashes of older configs alone.
        content = self.model_dump(mode="json", exclude={"description"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def with_epochs(self, epochs: int | None) -> Config:
        """The same config with another number of epochs."""
        if epochs is None:
            return self
        content = self.model_dump(mode="python")
        content["training"]["epochs"] = epochs
        content["training"]["average_last"] = min(self.training.average_last, epochs)
        return _validated(content, "--epochs")


def available() -> dict[tuple[str, str], Config]:
    """The suite's own configs by (method, data set)."""
    configs = (read(path) for path in sorted(CONFIGS.glob("*.toml")))
    return {(config.method, config.dataset): config for config in configs}


def find(method: str, dataset: str) -> Config:
    """The config of a method on a data set.

    Raises:
        SuiteError: there is none; the message lists those that exist.
    """
    configs = available()
    if (method, dataset) not in configs:
        known = ", ".join(f"{m} on {d}" for m, d in configs)
        raise SuiteError(f"no config for method {method!r} on data set {dataset!r}; there are: {known}")
    return configs[method, dataset]


def read(path: Path) -> Config:
    """Read and validate a TOML config.

    Raises:
        SuiteError: names the file, the key, the value and what is allowed.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not valid TOML: {error}") from error
    return _validated(content, str(path))


def _validated(content: dict[str, Any], source: str) -> Config:
    try:
        # TOML has neither tuples nor a float for `1`; JSON mode reads both and stays strict otherwise.
        return Config.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise SuiteError("\n".join(f"{source}: {_explain(e)}" for e in error.errors())) from error


def _explain(error: Any) -> str:
    # Under `training`, pydantic's path names the protocol that it chose, which is no key of the file.
    parts = [str(part) for k, part in enumerate(error["loc"]) if k != 1 or error["loc"][0] != "training"]
    key = ".".join(part for part in parts if not part.startswith("function-"))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key"
    if error["type"] == "missing":
        return f"{key}: missing key"
    value = error["input"]
    shown = "" if isinstance(value, dict) else f", got {value!r}"
    return f"{key}: {message}{shown}" if key else message
