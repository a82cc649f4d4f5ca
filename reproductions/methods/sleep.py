"""A recurrent network that learns by STDP without labels, and sleeps (Massey et al. 2026), read out by rates.

Inputs fire at random, with probabilities in proportion to the pixels. Excitatory and inhibitory leaky neurons
with thresholds that adapt are connected sparsely, at random; every synapse learns by the spikes next to each
other on its two sides. After `interval` steps awake the network sleeps: no input, noise on V, STDP goes on,
and all weights are pulled towards one value. Network, rule and sleep follow the released code, with its
signs: there an input that fires *after* the neuron strengthens a synapse, the reverse of the textbook's rule.

The rates of all neurons go through a quadratic discriminant analysis, which sees the labels. Three are
fitted on what one simulation gives:

- the one that decides: on all training images;
- `authors`: on four fifths of the last batch, as the network learned; neighbours of one label are merged;
- `input`: on the pixels that the network sees, without any network.

Either learning and sleep go on while test images are shown (`online`), and training images are read out as
they were learned; or weights rest, and training images are shown again. Ours: inputs act at once, neurons on
one another a step later; neurons that have not fired yet change no weight; asleep, weights are pulled and
their sums looked at after every ten steps instead of each; each test image is a segment; the publishers'
split of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from .. import config
from ..compiled import sleep as compiled
from ..compiled.sleep import NEVER, REST, Rule, State, Synapses
from ..config import Config, Fraction, Rates, Strict
from ..evaluation import SpikeTotals
from ..records import EpochStatistics
from . import random_seed, require_cpu

# Images that one compiled call shows, after which progress is told.
CHUNK = 50
# In steps; STDP of older spikes is below 1e-20 of that of new ones.
OLDEST = 512
# Of the discriminant analysis.
VARIANCE, REGULARIZATION, FITTED = 0.95, 0.1, 0.8
DRAWING, ORDER, LEARNING, FITTING, PREDICTING, SPLITTING = range(6)


class Connection(Strict):
    """A pair of neurons is connected with probability `density`; all weights are the same at first."""

    density: Fraction
    weight: PositiveFloat


class Network(config.Network):
    """Neurons, `t_max` steps of 1 ms per image. No neuron inhibits one that excites it, or excites itself."""

    t_max: PositiveInt
    dtype: Literal["float64"] = "float64"
    excitatory: PositiveInt = 200
    inhibitory: PositiveInt = 50
    input_to_excitatory: Connection = Connection(density=0.1, weight=0.15)
    excitatory_to_excitatory: Connection = Connection(density=0.15, weight=0.3)
    excitatory_to_inhibitory: Connection = Connection(density=0.2, weight=0.4)
    inhibitory_to_excitatory: Connection = Connection(density=0.25, weight=0.5)

    @property
    def name(self) -> str:
        return f"{self.excitatory}E-{self.inhibitory}I"


class Sleep(Strict):
    """`ratio` of the `interval` steps awake is slept, `longest` steps at most, with `noise` on V (mV).

    A step takes weights w to towards (w / towards)^pull, applied after `every` steps at once. Sleep ends
    early when the sums of excitatory and of inhibitory weights are both within `tolerance` of those at first.
    `rescale`: at that moment all excitatory weights are divided by a number, and all inhibitory ones, so that
    their sums are those at first; the control that asks whether sleep is more than that.
    """

    interval: PositiveInt = 35_000
    ratio: Fraction = 0.0
    longest: PositiveInt = 10_000
    noise: NonNegativeFloat = 2.0
    pull: Annotated[float, Field(gt=0, le=1)] = 0.99997
    towards: PositiveFloat = 0.01
    tolerance: NonNegativeFloat = 0.001
    every: PositiveInt = 10
    rescale: bool = False

    @model_validator(mode="after")
    def _sleeps_or_rescales(self) -> Sleep:
        if self.ratio and self.rescale:
            raise ValueError(f"rescale is a control without sleep: set ratio to 0, got {self.ratio}")
        if 0 < self.steps < self.every:
            raise ValueError(f"every must be at most the {self.steps} steps of sleep, got {self.every}")
        return self

    @property
    def steps(self) -> int:
        return min(round(self.ratio * self.interval), self.longest)

    def as_compiled(self) -> compiled.Sleep:
        """What a compiled call sleeps by."""
        return compiled.Sleep(
            interval=self.interval,
            steps=self.steps,
            noise=self.noise,
            pull=self.pull,
            towards=self.towards,
            tolerance=self.tolerance,
            every=self.every,
            rescale=self.rescale,
        )


class Training(config.Unscheduled):
    """One pass over the images is an epoch. `rule`: the order of spikes that strengthens a synapse.

    "as-coded": after the neuron behind; "textbook": before it. `last_batch`: images that the authors' readout
    is fitted to. `online`: test images change weights, too; their labels are not used. They come in
    parts of `evaluation.BATCH`, each of which begins with the network as it was after training.
    """

    rate: PositiveFloat = 8e-4
    tau_plus: PositiveFloat = 10.0
    tau_minus: PositiveFloat = 7.5
    rule: Literal["as-coded", "textbook"] = "as-coded"
    last_batch: PositiveInt = 400
    online: bool = False
    sleep: Sleep = Sleep()

    def tables(self) -> Rule:
        """The change of a weight by the age of the other side's spike."""
        ages = np.arange(OLDEST)
        plus, minus = self.rate * np.exp(-ages / self.tau_plus), -self.rate * np.exp(-ages / self.tau_minus)
        plus[-1] = minus[-1] = 0.0
        if self.rule == "as-coded":
            return Rule(plus, minus)
        minus[0] = plus[0]
        return Rule(minus, plus)


class Settings(Config):
    encoding: Rates
    network: Network
    training: Training

    @model_validator(mode="after")
    def _of_images(self) -> Settings:
        if self.features:
            raise ValueError(f"features go with no sleeping network, which needs images, got {self.features}")
        return self


class SleepingNetwork:
    """The network and what is read out of it."""

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        require_cpu(settings.method, device)
        self.settings, self.classes, self.seed = settings, classes, seed
        self.synapses, self.weight = connect(
            settings.network, settings.encoding.size**2, self._random(0, DRAWING)
        )
        self.state = at_rest(self.synapses, self.weight)
        self.seen: dict[str, Tensor] = {}
        self.readouts: dict[str, Readout] = {}

    def train_epoch(
        self, epoch: int, rates: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        order = torch.from_numpy(self._random(epoch, ORDER).permutation(len(labels)))
        images, labels = rates[order], labels[order]
        last = self.settings.training.last_batch
        while_learning, _ = self._show(
            images, self.state, self.weight, self._random(epoch, LEARNING), True, advance
        )
        online = self.settings.training.online
        read_out = while_learning if online else self._look(images, self._random(epoch, FITTING))[0]
        neurons = self.synapses.inputs
        self.seen = {
            "images": images,
            "labels": labels,
            "read_out": read_out[:, neurons:],
            "last": while_learning[-last:, neurons:],
        }
        self._fit()
        scores = self.readouts["fair"].scores(read_out[:, neurons:])
        loss = cross_entropy(scores, labels)
        right = (scores.argmax(1) == labels).sum().item()
        layers = self._by_layer(while_learning)
        return EpochStatistics(
            loss=loss / len(labels),
            accuracy=right / len(labels),
            spikes=[layer.sum().item() / len(labels) for layer in layers],
            silent=[(layer == 0).double().mean().item() for layer in layers],
            dead=[int((layer == 0).all(0).sum()) for layer in layers],
        )

    def predict(self, inputs: Tensor) -> SpikeTotals:
        spikes, first = self._look(inputs, self._random(0, PREDICTING))
        of_neurons = spikes[:, self.synapses.inputs :]
        scores = {
            name: readout.scores(inputs if name == "input" else of_neurons)
            for name, readout in self.readouts.items()
        }
        per_image = [layer.sum(1) for layer in self._by_layer(spikes)]
        silent = torch.zeros(len(inputs), dtype=per_image[0].dtype)
        never = torch.full((1, self.classes), math.inf)
        return SpikeTotals(
            torch.stack([*per_image, silent], dim=1),
            scores.pop("fair"),
            (*(layer.unsqueeze(0) for layer in self._by_layer(first)), never),
            inputs=(spikes[:, : self.synapses.inputs].sum(1), first[None, : self.synapses.inputs]),
            readouts=scores,
        )

    def state_dict(self) -> dict[str, Any]:
        state = {name: torch.from_numpy(array.copy()) for name, array in self.state._asdict().items()}
        return {"weight": torch.from_numpy(self.weight.copy()), "state": state, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"].numpy().copy()
        self.state = State(**{name: tensor.numpy().copy() for name, tensor in state["state"].items()})
        self.seen = state["seen"]
        self._fit()

    def _random(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng(random_seed(self.seed, epoch, purpose))

    def _by_layer(self, of_units: Tensor) -> list[Tensor]:
        """Excitatory and inhibitory neurons, of what is there for each unit."""
        start, border = self.synapses.inputs, self.synapses.inputs + self.synapses.excitatory
        return [of_units[..., start:border], of_units[..., border:]]

    def _look(self, images: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """What the network does on images from the end of training on, which leave it as it is."""
        online = self.settings.training.online
        return self._show(images, copied(self.state), self.weight.copy(), random, online)

    def _show(
        self,
        images: Tensor,
        state: State,
        weight: Any,
        random: np.random.Generator,
        learning: bool,
        advance: Callable[[int], None] = lambda samples: None,
    ) -> tuple[Tensor, Tensor]:
        """Spikes [samples, units], and the first spikes of the first image [units]."""
        training, steps = self.settings.training, self.settings.network.t_max
        x = images.contiguous().numpy()
        spikes: Any = np.empty((len(x), len(state.last)), dtype=np.int32)
        first, later = np.empty(len(state.last)), np.empty(len(state.last))
        rule, sleep = training.tables(), training.sleep.as_compiled()
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            compiled.present(
                x[part], steps, state, self.synapses, weight, rule, sleep, learning, random,
                spikes[part], later if start else first,
            )  # fmt: skip
            advance(len(x[part]))
        return torch.from_numpy(spikes), torch.from_numpy(first)

    def _fit(self) -> None:
        """The readouts, from what was seen in the last epoch; without one there are none."""
        if not self.seen:
            return
        labels, last = self.seen["labels"], self.seen["last"]
        segments, names = merged(last, labels[-len(last) :])
        chosen = self._random(0, SPLITTING).permutation(len(names))[: round(FITTED * len(names))]
        self.readouts = {
            "fair": Readout(self.seen["read_out"], labels, self.classes),
            "authors": Readout(segments[chosen], names[chosen], self.classes),
            "input": Readout(self.seen["images"], labels, self.classes),
        }


class Readout:
    """Standardised, main components with most of the variance, whitened, a Gaussian for each class.

    Its covariance is 0.9 of that of the class, and 0.1 of the identity.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int) -> None:
        # Here, as `list` imports all methods, and scikit-learn takes seconds.
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        self.scaler = StandardScaler().fit(x.double().numpy())
        scaled = self.scaler.transform(x.double().numpy())
        # Where no neuron fires there is nothing to find a component in.
        self.components = PCA(VARIANCE, whiten=True).fit(scaled) if scaled.any() else None
        z = self._components(scaled)
        self.gaussians = [self._gaussian(z[y.numpy() == k], len(z)) for k in range(classes)]

    def scores(self, x: Tensor) -> Tensor:
        """Logarithm of the density of each class, [samples, classes]; -inf of those with no two samples."""
        z = self._components(self.scaler.transform(x.double().numpy()))
        scores = np.full((len(z), len(self.gaussians)), -np.inf)
        for k, gaussian in enumerate(self.gaussians):
            if gaussian is not None:
                mean, variances, axes, prior = gaussian
                distances = (((z - mean) @ axes) ** 2 / variances).sum(1)
                scores[:, k] = math.log(prior) - 0.5 * (distances + np.log(variances).sum())
        return torch.from_numpy(scores)

    def _components(self, scaled: Any) -> Any:
        return scaled[:, :0] if self.components is None else self.components.transform(scaled)

    @staticmethod
    def _gaussian(z: Any, samples: int) -> tuple[Any, Any, Any, float] | None:
        if len(z) < 2:
            return None
        centred = z - z.mean(0)
        covariance = (1 - REGULARIZATION) * (centred.T @ centred) / (len(z) - 1)
        variances, axes = np.linalg.eigh(covariance + REGULARIZATION * np.eye(z.shape[1]))
        return z.mean(0), variances, axes, len(z) / samples


def connect(network: Network, inputs: int, random: np.random.Generator) -> tuple[Synapses, Any]:
    """Draw the synapses, and their weights at first."""
    excitatory, inhibitory = network.excitatory, network.inhibitory

    def draw(connection: Connection, before: int, behind: int) -> Any:
        return connection.weight * (random.random((before, behind)) < connection.density)

    weight = np.zeros((inputs + excitatory + inhibitory, excitatory + inhibitory))
    e, i = slice(0, excitatory), slice(excitatory, None)
    of_e, of_i = slice(inputs, inputs + excitatory), slice(inputs + excitatory, None)
    weight[:inputs, e] = draw(network.input_to_excitatory, inputs, excitatory)
    weight[of_e, e] = draw(network.excitatory_to_excitatory, excitatory, excitatory)
    weight[of_e, e] *= 1 - np.eye(excitatory)
    weight[of_e, i] = draw(network.excitatory_to_inhibitory, excitatory, inhibitory)
    weight[of_i, e] = draw(network.inhibitory_to_excitatory, inhibitory, excitatory)
    weight[of_i, e] *= weight[of_e, i].T == 0
    return synapses_of(weight, inputs, excitatory)


def synapses_of(weight: Any, inputs: int, excitatory: int) -> tuple[Synapses, Any]:
    """The graph of a matrix [units, neurons], and its weights other than 0."""
    pre, post = np.nonzero(weight)
    by_post = np.lexsort((pre, post))
    outgoing = np.searchsorted(pre, np.arange(len(weight) + 1))
    incoming = np.searchsorted(post[by_post], np.arange(weight.shape[1] + 1))
    return Synapses(
        outgoing=unsigned(outgoing),
        post=unsigned(post),
        incoming=unsigned(incoming),
        pre=unsigned(pre[by_post]),
        place=unsigned(by_post),
        inputs=inputs,
        excitatory=excitatory,
    ), weight[pre, post]


def unsigned(indices: Any) -> Any:
    """Indices for which the compiled loop need not look whether they are negative."""
    return indices.astype(np.uint32)


def at_rest(synapses: Synapses, weight: Any) -> State:
    """Neurons that have never fired."""
    neurons = len(synapses.incoming) - 1
    units = synapses.inputs + neurons
    return State(
        v=np.full(neurons, REST),
        current=np.zeros(neurons),
        raised=np.zeros(neurons),
        last=np.full(units, NEVER),
        fired=np.zeros(units, dtype=np.int64),
        clock=np.zeros(4, dtype=np.int64),
        balance=np.array(compiled.sums(synapses, weight)),
    )


def copied(state: State) -> State:
    """A state that goes on by itself."""
    return State(*(array.copy() for array in state))


def merged(spikes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means over neighbours of one label, [segments, neurons], and their labels."""
    names, sizes = torch.unique_consecutive(labels, return_counts=True)
    parts = torch.split(spikes.double(), sizes.tolist())
    return torch.stack([part.mean(0) for part in parts]), names


def cross_entropy(scores: Tensor, labels: Tensor) -> float:
    """Sum of the cross-entropies; of one sample it is 100 at most."""
    of_label = scores.log_softmax(1).gather(1, labels.long().unsqueeze(1))
    return -of_label.clamp(min=-100).sum().item()


build = SleepingNetwork
