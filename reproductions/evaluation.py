"""What a network does on a set of images: accuracy under all rules, spikes, response time.

A method predicts either the first spikes of single-spike neurons, or what neurons that fire more often did.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from ssnn_plugin import decode, metrics

from .config import Config
from .datasets import Images
from .errors import Diverged
from .records import Evaluation, Example

BATCH = 2000
# Of a window in continuous time, for the histogram of response times.
PARTS = 256


class FirstSpikes(NamedTuple):
    """Spike times of every layer of neurons, outputs last, and the potential of the outputs."""

    layers: tuple[Tensor, ...]
    potential: Tensor


class SpikesInWindow(NamedTuple):
    """As `FirstSpikes`, of outputs whose window ends at `window` and not at the `t_max` of the config."""

    layers: tuple[Tensor, ...]
    potential: Tensor
    window: float


class PopulationSpikes(NamedTuple):
    """As `FirstSpikes`, where several outputs stand for a class: potential and times are of the `classes`."""

    layers: tuple[Tensor, ...]
    potential: Tensor
    classes: Tensor


class SpikeTotals(NamedTuple):
    """Of neurons that fire more than once: spikes [samples, layers], and the scores [samples, classes].

    The highest score decides, after all steps. `first` are the times of the first spikes by layer,
    `multiplications` those that the real-valued pixels of an image need. Of an image that comes as spikes,
    `inputs` are their number [samples] and the first ones of each input. `readouts` are scores by name that
    other ways to read the same spikes give. `potential` [samples, classes] decides among equal scores under
    the rule of that name; without one, the first does.
    """

    spikes: Tensor
    scores: Tensor
    first: tuple[Tensor, ...]
    multiplications: int = 0
    inputs: tuple[Tensor, Tensor] | None = None
    readouts: Mapping[str, Tensor] = MappingProxyType({})
    potential: Tensor | None = None


Prediction: TypeAlias = (
    FirstSpikes | SpikesInWindow | PopulationSpikes | SpikeTotals | tuple[tuple[Tensor, ...], Tensor]
)


class Predicts(Protocol):
    """What is asked of a method here."""

    def predict(self, inputs: Tensor) -> Prediction:
        """What the network does on encoded images; a plain pair is that of `FirstSpikes`."""
        ...


def evaluate(method: Predicts, config: Config, images: Images) -> Evaluation:
    """Accuracy under all rules, spikes, response time; the first sample as an example."""
    tally: _FirstSpikeTally | _TotalsTally | None = None
    for start in range(0, len(images), BATCH):
        part = images.select(torch.arange(start, min(start + BATCH, len(images))))
        inputs = config.encode(part)
        prediction = method.predict(inputs)
        if tally is None:
            tally = (_TotalsTally if isinstance(prediction, SpikeTotals) else _FirstSpikeTally)(config)
        tally.add(part, inputs, prediction)
    assert tally is not None
    return tally.evaluation(images.y)


class _FirstSpikeTally:
    """Layers of single-spike neurons: the first output spike decides."""

    def __init__(self, config: Config) -> None:
        self.t_max = self.window = config.t_max
        self.counts = metrics.SpikeCounts(config.t_max)
        self.outputs: list[Tensor] = []
        self.potentials: list[Tensor] = []
        self.example: Example | None = None

    def add(self, images: Images, times: Tensor, prediction: Any) -> None:
        spikes, potential, *_ = prediction
        layers = tuple(layer.cpu() for layer in spikes)
        self.counts.update(times, *layers)
        several = isinstance(prediction, PopulationSpikes)
        self.outputs.append(prediction.classes.cpu() if several else layers[-1])
        self.potentials.append(potential.cpu())
        self.window = prediction.window if isinstance(prediction, SpikesInWindow) else self.t_max
        self.example = self.example or _example(images, (times, *layers))

    def evaluation(self, labels: Tensor) -> Evaluation:
        output, potential = torch.cat(self.outputs), torch.cat(self.potentials)
        right = decode.first_to_fire(output, potential, tie="potential", all_silent="undecided") == labels
        found = dataclasses.asdict(self.counts.compute())
        # Of the classes, each of which may have several outputs.
        first = output.min(1, keepdim=True).values
        tied = ((output == first).sum(1) > 1) & (first.squeeze(1) < self.t_max)
        found["tied"] = tied.double().mean().item()
        if self.window != self.t_max:
            found["window"] = self.window
            found["response_time"] -= found["silent"] * (self.t_max - self.window)
        assert self.example is not None
        return Evaluation(
            accuracy={
                rule: metrics.accuracy(output, labels, potential=potential, tie=rule)
                for rule in metrics.RULES
            },
            **found | {key: list(found[key]) for key in ("total", "until_decision")},
            response_histogram=_response_histogram(output, self.window),
            right_histogram=_response_histogram(output[right], self.window),
            example=self.example,
        )


class _TotalsTally:
    """Neurons that fire more than once: the highest score decides, after all steps.

    A sample without output spikes whose scores are all equal is one without an answer: decided by the
    potential, if there is one, except under `unique`.
    """

    def __init__(self, config: Config) -> None:
        self.steps = int(config.t_max)
        self.parts: list[SpikeTotals] = []
        self.example: Example | None = None

    def add(self, images: Images, inputs: Tensor, prediction: Any) -> None:
        self.parts.append(prediction)
        pixels = torch.full((1, images.x.shape[1]), math.inf)  # which do not fire
        first = prediction.inputs[1] if prediction.inputs else pixels
        self.example = self.example or _example(images, (first, *prediction.first))

    def evaluation(self, labels: Tensor) -> Evaluation:
        scores = torch.cat([part.scores.cpu() for part in self.parts])
        spikes = torch.cat([part.spikes.cpu() for part in self.parts])
        if bool((scores.isnan() | scores.isposinf()).any()):  # -inf is of a class that cannot be
            raise Diverged("training diverged: the network gives scores that are no finite numbers")
        best = scores == scores.max(dim=1, keepdim=True).values
        silent, tied = best.all(1) & (spikes[:, -1] == 0), best.sum(1) > 1
        of_label = best.gather(1, labels.long().unsqueeze(1)).squeeze(1)
        first = best.int().argmax(1) == labels
        by_potential = self.parts[0].potential is not None
        potential = self._highest(best) == labels if by_potential else first
        of_silence = potential if by_potential else torch.zeros_like(first)
        right = {
            "lenient": torch.where(silent, of_silence, of_label),
            "first_index": torch.where(silent, of_silence, first),
            "potential": torch.where(silent, of_silence, potential),
            "unique": of_label & ~tied,
        }
        inputs = [part.inputs[0].cpu() for part in self.parts if part.inputs]
        of_inputs = torch.cat(inputs).double().mean().item() if inputs else 0.0
        total: list[float] = [of_inputs, *spikes.double().mean(0).tolist()]
        assert self.example is not None
        return Evaluation(
            accuracy={rule: right[rule].double().mean().item() for rule in metrics.RULES},
            samples=len(labels),
            total=total,
            until_decision=total,
            response_time=float(self.steps),
            tied=(tied & ~silent).double().mean().item(),
            silent=silent.double().mean().item(),
            response_histogram=[0] * (self.steps - 1) + [len(labels), 0],
            example=self.example,
            multiplications=self.parts[0].multiplications or None,
            **self._readouts(labels),
        )

    def _highest(self, best: Tensor) -> Tensor:
        """The class of the highest potential among those of the best score."""
        potential = torch.cat([part.potential.cpu() for part in self.parts if part.potential is not None])
        return potential.masked_fill(~best, -math.inf).argmax(1)

    def _readouts(self, labels: Tensor) -> dict[str, Any]:
        """Accuracy of the other readouts, if there are any."""
        names = self.parts[0].readouts
        scores = {name: torch.cat([part.readouts[name].cpu() for part in self.parts]) for name in names}
        right = {name: (of.argmax(1) == labels).double().mean().item() for name, of in scores.items()}
        return {"readouts": right} if right else {}


def _response_histogram(output: Tensor, t_max: float) -> list[int]:
    """Samples by the time of their first output spike, in equal parts of the window; the silent ones last.

    A part is a bin; of a window in continuous time, the `PARTS`th part.
    """
    parts = t_max if isinstance(t_max, int) else PARTS
    first = output.min(1).values.double()
    part = (first.clamp(max=t_max) * (parts / t_max)).long().clamp(max=parts - 1)
    return part.masked_fill(first >= t_max, parts).bincount(minlength=parts + 1).tolist()


def _example(images: Images, layers: tuple[Tensor, ...]) -> Example:
    rows = [layer[0].flatten().tolist() for layer in layers]
    return Example(
        label=int(images.y[0]), times=[[None if t == math.inf else t for t in row] for row in rows]
    )
