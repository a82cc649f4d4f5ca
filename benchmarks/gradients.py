"""The gradient rules of integrate-and-fire networks side by side: what they learn, and what they tell.

Three rules read V at the moment of firing alone (`latency`, `surrogate`, `local_slope`), one weighs the
same gradient by how long the input has been there, three look at every bin. All train the same networks
from the same weights, on the same batches, with the same loss; accuracy is always that of the network event
by event.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from rich.table import Table
from torch import Tensor, nn

from reproductions.datasets import Images
from ssnn_plugin import IF, encode, metrics, rules, surrogate
from ssnn_plugin.functional import bins_to_times, latch, times_to_bins
from ssnn_plugin.functional.bins import Bins
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import AveragePool, SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential, calibrate
from ssnn_plugin.nn.bins import in_bins

T_MAX = 16
BATCH = 64
# A class that fires so many bins earlier is e times likelier.
TEMPERATURE = 2.0
FIRING = 0.3
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
NETWORKS = "MLP", "conv"

# Width in thresholds of the smooth network's escape noise.
NOISE = 0.25
# Steps along a gradient, relative to the norm of the weights.
STEPS = 0.003, 0.01, 0.03, 0.1

Data = tuple[Tensor, Tensor]
Learner = Callable[[Tensor], Tensor]


class Rule(ABC):
    """How a network of `IF` neurons is differentiated."""

    @abstractmethod
    def learner(self, network: SpikeSequential) -> Learner:
        """The network as a function of spike times [batch, *] to output times, with the rule's gradient."""

    @abstractmethod
    def pull(self, layer: SpikeLinear, times: Tensor, chosen: Tensor) -> Tensor:
        """dt_j / dt_i [batch, in] of one output j of a layer per sample, as the layer before is told it."""


@dataclass(frozen=True)
class AtTheSpike(Rule):
    """A rule of the layers on times, which reads V at the moment of firing."""

    gradient: str

    def learner(self, network: SpikeSequential) -> Learner:
        for layer in connections(network):
            layer.gradient = rules.RULES[self.gradient]
        return network

    def pull(self, layer: SpikeLinear, times: Tensor, chosen: Tensor) -> Tensor:
        layer.gradient = rules.RULES[self.gradient]
        times = times.detach().requires_grad_()
        (grad,) = torch.autograd.grad(_of_chosen(layer(times), chosen), times)
        return grad


@dataclass(frozen=True)
class InEveryBin(Rule):
    """A rule of the latch; the outputs may have one of their own."""

    gradient: surrogate.LatchGradient
    outputs: surrogate.LatchGradient | None = None

    def learner(self, network: SpikeSequential) -> Learner:
        *hidden, last = network

        def run(times: Tensor) -> Tensor:
            bins = Bins(times_to_bins(times, T_MAX))
            for module in hidden:
                bins = in_bins(module, bins, self.gradient)
            return bins_to_times(in_bins(last, bins, self.outputs or self.gradient).activations)

        return run

    def pull(self, layer: SpikeLinear, times: Tensor, chosen: Tensor) -> Tensor:
        """A spike that moves to the next bin takes its activation out of its own."""
        activations = times_to_bins(times, T_MAX).requires_grad_()
        outputs = layer.in_bins(Bins(activations), self.outputs or self.gradient).activations
        (grad,) = torch.autograd.grad(_of_chosen(bins_to_times(outputs), chosen), activations)
        return -self._in_its_bin(grad, times)

    def _in_its_bin(self, grad: Tensor, times: Tensor) -> Tensor:
        return grad.gather(0, times.clamp(max=T_MAX - 1).long().unsqueeze(0)).squeeze(0)


@dataclass(frozen=True)
class AsRamps(InEveryBin):
    """The causal gradient times t_j - t_i: as if an input had raised V by a ramp since it came."""

    def _in_its_bin(self, grad: Tensor, times: Tensor) -> Tensor:
        return (grad * times_to_bins(times, T_MAX)).sum(0)


class RampWeighted(surrogate.LatchGradient):
    """dt/dV(t) = -1 / T in every bin before the spike, so that an input at t_i counts t_j - t_i times.

    The error of a spike is what arrives from its bin on; that of an output, which is the same in all
    bins, what arrives in any. A silent neuron's time is T, and it has an error as an output only.
    """

    def __init__(self, output: bool = False) -> None:
        self.output = output

    def potential_grad(self, potentials: Tensor, grad: Tensor, threshold: float) -> Tensor:
        activations = latch(potentials.detach(), threshold)
        error = grad[-1] if self.output else (grad * activations).sum(0)
        return error * (1 - activations) / len(potentials)


RULES: dict[str, Rule] = {
    "latency": AtTheSpike("latency"),
    "surrogate": AtTheSpike("surrogate"),
    "local_slope": AtTheSpike("local_slope"),
    "ramp-weighted": AsRamps(RampWeighted(), RampWeighted(output=True)),
    "every bin, Arctan": InEveryBin(surrogate.Arctan()),
    "every bin, Triangle": InEveryBin(surrogate.Triangle()),
    "every bin, EscapeNoise": InEveryBin(surrogate.EscapeNoise(NOISE)),
}


def connections(network: nn.Module) -> list[SpikeLinear | SpikeConv2d]:
    """The layers with weights, in order."""
    return [module for module in network.modules() if isinstance(module, SpikeLinear | SpikeConv2d)]


def build(kind: str, times: Tensor, seed: int) -> SpikeSequential:
    """A network for images [batch, 1, height, width] of 8 x 8 or 28 x 28, calibrated on them."""
    torch.manual_seed(seed)
    size = times.shape[-1]
    layers: list[nn.Module]
    if kind == "MLP":
        layers = [SpikeFlatten(), _linear(size * size, 50), _linear(50, 50)]
    else:
        kernel, stride, padding = (3, 1, 1) if size == 8 else (5, 2, 0)
        layers = [
            SpikeConv2d(1, 8, kernel, IF(), t_max=T_MAX, stride=stride, padding=padding),
            SpikeConv2d(8, 16, kernel, IF(), t_max=T_MAX, input_pool=AveragePool(2)),
            SpikeFlatten(),
            _linear(64, 50),
        ]
    network = SpikeSequential(*layers, _linear(50, 10, silent_gradient=True))
    for layer in connections(network):
        nn.init.normal_(layer.weight, 0.2, 1.0)
    calibrate(network, times, FIRING)
    return network


def _linear(inputs: int, outputs: int, silent_gradient: bool = False) -> SpikeLinear:
    return SpikeLinear(inputs, outputs, IF(), t_max=T_MAX, silent_gradient=silent_gradient)


def loss_function() -> nn.Module:
    """Cross-entropy on minus the output times."""
    return TemporalCrossEntropyLoss(T_MAX, TEMPERATURE / T_MAX)


def train(network: SpikeSequential, rule: Rule, data: Data, epochs: int, rate: float, seed: int) -> None:
    """Adam with cosine decay; gradients of hidden weights are centred per neuron."""
    times, labels = data
    generator = torch.Generator().manual_seed(seed)
    learner, loss = rule.learner(network), loss_function()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for index in order[: len(labels) // BATCH * BATCH].reshape(-1, BATCH):
            optimizer.zero_grad()
            loss(learner(times[index]), labels[index]).backward()
            for layer in connections(network)[:-1]:
                _centre(layer.weight)
            optimizer.step()
            schedule.step()


def _centre(weight: Tensor) -> None:
    if weight.grad is not None:
        weight.grad -= weight.grad.flatten(1).mean(1).reshape(-1, *[1] * (weight.ndim - 1))


@torch.no_grad()
def accuracy(network: SpikeSequential, data: Data) -> float:
    """Event by event, ties and silence decided by the potential."""
    times, potential = network(data[0], return_potential=True)
    return metrics.accuracy(times, data[1], potential=potential, tie="potential")


def gradient(network: SpikeSequential, rule: Rule, data: Data) -> Tensor:
    """A rule's gradient of the first layer's weights."""
    loss = loss_function()(rule.learner(network)(data[0]), data[1])
    (grad,) = torch.autograd.grad(loss, connections(network)[0].weight)
    return grad


def smooth_gradient(network: SpikeSequential, data: Data) -> Tensor:
    """The exact gradient, for the first layer's weights, of the network made smooth by escape noise.

    In a bin a neuron that has not fired fires with probability p = sigmoid((V - threshold) / NOISE). What
    is passed on is its chance to have fired, 1 - prod (1 - p), and an output's time is the expected one.
    """
    loss = loss_function()(smooth_times(network, data[0]), data[1])
    (grad,) = torch.autograd.grad(loss, connections(network)[0].weight)
    return grad


def smooth_times(network: SpikeSequential, times: Tensor) -> Tensor:
    """Expected output times [batch, classes] of the smooth network, T for certain silence."""
    bins = Bins(times_to_bins(times, T_MAX))
    for module in network:
        bins = in_bins(module, bins, surrogate.Arctan())
        if bins.potentials is not None and bins.neuron is not None:
            stays = nn.functional.logsigmoid((bins.neuron.threshold - bins.potentials) / NOISE)
            bins = Bins(1 - stays.cumsum(0).exp())
    return (1 - bins.activations).sum(0)


def cosine(first: Tensor, second: Tensor) -> float:
    """Of the angle between two tensors as vectors."""
    return float(nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))


@torch.no_grad()
def descent(network: SpikeSequential, direction: Tensor, data: Data) -> float:
    """How the best of a few steps of the first layer against `direction` changes the loss, relative to it."""
    weight, loss = connections(network)[0].weight, loss_function()
    start, unit = weight.clone(), weight.norm() * direction / direction.norm()
    before = float(loss(network(data[0]), data[1]))
    after = []
    for step in STEPS:
        weight.copy_(start - step * unit)
        after.append(float(loss(network(data[0]), data[1])))
    weight.copy_(start)
    return min(after) / before - 1


def told_apart(network: SpikeSequential, rule: Rule, times: Tensor, seed: int) -> tuple[float, list[float]]:
    """Whether a rule tells the causal inputs of a neuron apart by when they came.

    One neuron that fired is drawn for each sample from a network's last hidden layer. What an input is told
    is dt_j / dt_i over w_ji.

    Returns:
        Its standard deviation over its mean, over the inputs at or before the spike, the median of samples;
        and its mean for inputs that came 0 ... T - 1 bins before the spike, relative to that of all.
    """
    hidden = connections(network)[-2]
    assert isinstance(hidden, SpikeLinear)
    with torch.no_grad():
        for module in list(network)[:-2]:
            times = module(times)
        spikes = hidden(times)
    fires = spikes.isfinite()
    times, spikes, fires = (part[fires.any(1)] for part in (times, spikes, fires))
    chosen = torch.multinomial(fires.float(), 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    pull = rule.pull(hidden, times, chosen) / hidden.weight.detach()[chosen]
    lag = spikes.gather(1, chosen.unsqueeze(1)) - times
    causal = lag >= 0
    spreads = [float(row.std() / row.mean()) for row in _rows(pull, causal) if row.mean()]
    told = pull / pull[causal].mean()
    by_lag = [told[lag == k] for k in range(T_MAX)]
    means = [float(part.mean()) if len(part) >= 20 else float("nan") for part in by_lag]
    return statistics.median(spreads), means


def _rows(values: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """The chosen values of each row that has two or more."""
    for row, chosen in zip(values, mask, strict=True):
        if chosen.sum() > 1:
            yield row[chosen]


def _of_chosen(times: Tensor, chosen: Tensor) -> Tensor:
    return times.gather(1, chosen.unsqueeze(1)).sum()


@dataclass
class Finding:
    """What is found of a rule on a network, by seed; cosines and descents at the start and after training."""

    rate: float
    accuracies: list[float] = field(default_factory=list)
    cosines: list[tuple[float, float]] = field(default_factory=list)
    descents: list[tuple[float, float]] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    by_lag: list[list[float]] = field(default_factory=list)


Audit = dict[str, Finding]


def audit(
    kind: str, learned: Data, held_out: Data, epochs: int, seeds: int, progress: Callable[[str], None]
) -> Audit:
    """Train a network by each rule; look at gradients at the start and after training in every bin."""
    trained: dict[str, list[SpikeSequential]] = {}
    rates: dict[str, float] = {}
    for name, rule in RULES.items():

        def run(rate: float, seed: int, rule: Rule = rule) -> SpikeSequential:
            network = build(kind, learned[0][:500], seed)
            train(network, rule, learned, epochs, rate, seed)
            return network

        tried = {rate: accuracy(run(rate, seeds), held_out) for rate in LEARNING_RATES}
        rates[name] = max(tried, key=lambda rate: tried[rate])
        trained[name] = [run(rates[name], seed) for seed in range(seeds)]
        progress(f"{kind}, {name}: " + ", ".join(f"{rate:g} {value:.2%}" for rate, value in tried.items()))
    findings = {name: Finding(rates[name]) for name in RULES}
    for seed in range(seeds):
        points = build(kind, learned[0][:500], seed), trained["every bin, Arctan"][seed]
        references = [smooth_gradient(point, learned) for point in points]
        for name, rule in RULES.items():
            gradients = [gradient(point, rule, learned) for point in points]
            spread, by_lag = told_apart(points[1], rule, learned[0], seed)
            finding = findings[name]
            finding.accuracies.append(accuracy(trained[name][seed], held_out))
            finding.cosines.append((cosine(gradients[0], references[0]), cosine(gradients[1], references[1])))
            finding.descents.append(
                (descent(points[0], gradients[0], learned), descent(points[1], gradients[1], learned))
            )
            finding.spreads.append(spread)
            finding.by_lag.append(by_lag)
    return findings


def draw(audits: dict[str, Audit], path: Path) -> None:
    """Accuracy by rule, and what a rule tells an input by how long before the spike it came."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    height = 0.8 / len(audits)
    for offset, (kind, found) in enumerate(audits.items()):
        values = [100 * statistics.mean(finding.accuracies) for finding in found.values()]
        spans = [100 * _deviation(finding.accuracies) for finding in found.values()]
        places = [number + offset * height for number in range(len(values))]
        left.barh(places, values, height, xerr=spans, label=kind)
    left.set_yticks([number + 0.4 - height / 2 for number in range(len(RULES))], list(RULES))
    left.invert_yaxis()
    left.set_xlim(0, 100)
    left.set_xlabel("accuracy on held-out images, rule potential (%)")
    # The bars fill the axes.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=len(audits))
    styles = ["-", "--", "-.", ":", "-", "--", "-."]
    for style, (name, finding) in zip(styles, audits[NETWORKS[0]].items(), strict=True):
        lags = list(zip(*finding.by_lag, strict=True))
        means = [statistics.mean(told) for told in lags]
        spans = [_deviation(told) for told in lags]
        right.errorbar(range(T_MAX), means, spans, ls=style, capsize=2, label=name)
    right.set_xlabel("bins between the input spike and the spike of the neuron")
    right.set_ylabel("what the input is told, mean = 1")
    right.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def parts(images: Images, count: int) -> tuple[Data, Data]:
    """Spike times and labels of some images, drawn always alike: to learn from, and a fifth held out."""
    order = torch.randperm(len(images.y), generator=torch.Generator().manual_seed(0))[:count]
    x = images.x[order].reshape(-1, *images.shape)
    times, labels = encode.latency(x, T_MAX, x_max=images.x_max), images.y[order]
    few = len(order) // 5
    return (times[few:], labels[few:]), (times[:few], labels[:few])


def table(audits: dict[str, Audit], title: str) -> Table:
    """All rules on every network."""
    told = "accuracy (rate)", "cosine", "loss", "spread"
    found = Table("rule", *(f"{kind}: {what}" for kind in audits for what in told), title=title)
    for name in RULES:
        found.add_row(*row(name, audits))
    return found


def row(name: str, audits: dict[str, Audit]) -> list[str]:
    """Cells of a table, means ± standard deviations over seeds: for each network accuracy (rate), cosines and
    descents (start / trained), spread."""
    cells = [name]
    for found in audits.values():
        finding = found[name]
        cells.append(f"{_told([100 * value for value in finding.accuracies], '.1f')} ({finding.rate:g})")
        cells.append(" / ".join(_told(values, ".2f") for values in zip(*finding.cosines, strict=True)))
        descents = [[100 * value for value in values] for values in zip(*finding.descents, strict=True)]
        cells.append(" / ".join(_told(values, "+.1f") for values in descents))
        cells.append(_told(finding.spreads, ".2f"))
    return cells


def _told(values: Sequence[float], form: str) -> str:
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else mean
