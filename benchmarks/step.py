"""Training steps of S4NN's MNIST network, 784-400-10, in mini-batches, beside those of a ReLU MLP.

Optimisers are torch's fused ones on both sides: on a CPU its default is a loop over single operations, and
takes about a millisecond more with Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.mnist import EPOCH, T_MAX, Batch, Batches
from benchmarks.printing import add_row
from benchmarks.timing import alternate
from ssnn_plugin import IF, FusedStep
from ssnn_plugin.functional import normalize_error
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeLinear, SpikeSequential

Step = Callable[[Batch], object]


@dataclass(frozen=True)
class Recipe:
    """How S4NN is trained, and which optimiser the ReLU network gets beside it."""

    name: str
    threshold: float
    draw: Callable[[Tensor, Tensor], object]
    gamma: float
    spiking_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    dense_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def _draw_as_published(hidden: Tensor, output: Tensor) -> None:
    hidden.uniform_(0, 5)
    output.uniform_(0, 48)


def _draw_small(hidden: Tensor, output: Tensor) -> None:
    hidden.normal_(0.01, 0.05)
    output.normal_(0.02, 0.05)


AS_PUBLISHED = Recipe(
    "S4NN, plain SGD",
    100.0,
    _draw_as_published,
    3.0,
    lambda parameters: torch.optim.SGD(parameters, lr=20.0, weight_decay=1e-6, fused=True),
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True),
)
SMALL_WEIGHTS = Recipe(
    "S4NN, small weights, Adam",
    1.0,
    _draw_small,
    10.0,
    lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
    lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
)
RECIPES = AS_PUBLISHED, SMALL_WEIGHTS


def spiking_network(recipe: Recipe) -> SpikeSequential:
    """784-400-10 with one bin of delay per layer."""
    neuron = IF(recipe.threshold, delay=1)
    hidden = SpikeLinear(784, 400, neuron, t_max=T_MAX)
    output = SpikeLinear(400, 10, neuron, t_max=T_MAX, silent_gradient=True)
    with torch.no_grad():
        recipe.draw(hidden.weight, output.weight)
    return SpikeSequential(hidden, output)


def dense_network() -> nn.Sequential:
    """The ReLU MLP of the same shape."""
    return nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 10))


def spiking_step(recipe: Recipe, network: SpikeSequential) -> Step:
    """A training step with normalised errors, called with a batch."""
    loss, optimizer = RelativeTargetLoss(recipe.gamma, T_MAX), recipe.spiking_optimizer(network.parameters())

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        outputs = network[1](normalize_error(network[0](batch.times)))
        torch.autograd.backward(loss(normalize_error(outputs), batch.labels))
        optimizer.step()

    return step


def fused_step(recipe: Recipe, network: SpikeSequential) -> Step:
    """The same training step as one object, called with a batch."""
    loss, optimizer = RelativeTargetLoss(recipe.gamma, T_MAX), recipe.spiking_optimizer(network.parameters())
    return _with_batches(FusedStep(network, loss, optimizer))


def _with_batches(fused: FusedStep) -> Step:
    return lambda batch: fused(batch.times, batch.labels)


def dense_step(recipe: Recipe, network: nn.Sequential) -> Step:
    """A training step of the ReLU MLP, called with a batch."""
    loss, optimizer = nn.CrossEntropyLoss(), recipe.dense_optimizer(network.parameters())

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        loss(network(batch.images), batch.labels).backward()
        optimizer.step()

    return step


def add_stages(table: Table, name: str, both: tuple[Step, Step], batches: Batches, steps: int) -> None:
    """Rows of the first steps of training, and of those that follow an epoch."""
    alternate(*both, batches(0, 20))
    add_row(table, (name, "first steps"), alternate(*both, batches(20, steps)))
    alternate(*both, batches(20 + steps, EPOCH))
    add_row(table, (name, "after an epoch"), alternate(*both, batches(20 + steps + EPOCH, steps)))


def table(batches: Batches, steps: int) -> Table:
    """Training steps of both by each recipe, those of the spiking network in two ways."""
    found = Table("recipe", "stage", "spiking (ms)", "ReLU MLP (ms)", "ratio")
    for recipe in RECIPES:
        for name, make in (("", spiking_step), (", FusedStep", fused_step)):
            both = make(recipe, spiking_network(recipe)), dense_step(recipe, dense_network())
            add_stages(found, recipe.name + name, both, batches, steps)
    return found


def of_times(batch: Batch) -> Tensor:
    """What a network on spike times takes."""
    return batch.times


def of_images(batch: Batch) -> Tensor:
    """What a ReLU network takes."""
    return batch.images


def step_with_adam(
    network: nn.Module, loss: nn.Module, inputs: Callable[[Batch], Tensor] = of_times, rate: float = 1e-3
) -> Step:
    """A training step by autograd, called with a batch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, fused=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        loss(network(inputs(batch)), batch.labels).backward()
        optimizer.step()

    return step


def fused_with_adam(network: SpikeSequential, loss: nn.Module, rate: float = 1e-3) -> Step:
    """The same training step of a network on spike times as one object."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
    return _with_batches(FusedStep(network, loss, optimizer, normalize=False))
