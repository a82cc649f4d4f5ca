"""Training steps and inference of 784-400-10, T = 256, in other libraries that are installed.

Each peer is written as its own documentation writes such a network: the least work that it has for neurons
of this kind. Inputs are made beforehand, in the form that it takes. Our own network has learned from all
batches, as what it costs depends on its spikes; what the others cost does not. It and the MLP take another
batch in every call, the others the same one, as trains of all would not fit into memory.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.mnist import T_MAX, Batch
from benchmarks.printing import cell, ratio
from benchmarks.step import (
    SMALL_WEIGHTS,
    Recipe,
    Step,
    dense_network,
    dense_step,
    fused_step,
    spiking_network,
    spiking_step,
)
from benchmarks.timing import in_turn
from reproductions.errors import SuiteError
from ssnn_plugin import decode
from ssnn_plugin.nn import SpikeSequential


class Runs(NamedTuple):
    """A training step, and what decides a batch without learning."""

    step: Callable[[], object]
    infer: Callable[[], object]


@dataclass(frozen=True)
class Peer:
    """A library by the name it is imported by, the model, and how its runs are built.

    `calls` of its runs are timed at once, which suits short ones.
    """

    module: str | None
    name: str
    build: Callable[[list[Batch]], Runs]
    calls: int = 1

    @property
    def installed(self) -> bool:
        return self.module is None or importlib.util.find_spec(self.module) is not None

    def runs(self, batches: list[Batch]) -> Runs | str:
        """Its runs, or why there are none."""
        if not self.installed:
            return "not installed"
        try:
            return self.build(batches)
        except ImportError as error:
            if self.module is None:
                raise
            return f"cannot be imported: {error}"


def _trains(batch: Batch) -> Tensor:
    return decode.times_to_spikes(batch.times, T_MAX)


def _learning(
    model: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    run: Callable[[Any], Any],
    batch: tuple[Any, Tensor],
) -> Runs:
    """Steps with Adam on one batch of inputs and labels."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    inputs, labels = batch

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss(run(inputs), labels))
        optimizer.step()

    def infer() -> None:
        with torch.no_grad():
            run(inputs)

    return Runs(step, infer)


def _own(batches: list[Batch], make: Callable[[Recipe, SpikeSequential], Step] = spiking_step) -> Runs:
    network = spiking_network(SMALL_WEIGHTS)
    step = make(SMALL_WEIGHTS, network)
    turn: Iterator[Batch] = itertools.cycle(batches)
    for batch in batches:
        step(batch)
    return Runs(lambda: step(next(turn)), lambda: network.decide(next(turn).times))


def _own_fused(batches: list[Batch]) -> Runs:
    return _own(batches, fused_step)


def _dense(batches: list[Batch]) -> Runs:
    model = dense_network()
    step, turn = dense_step(SMALL_WEIGHTS, model), itertools.cycle(batches)

    def infer() -> None:
        with torch.no_grad():
            model(next(turn).images)

    return Runs(lambda: step(next(turn)), infer)


def _snntorch(batches: list[Batch]) -> Runs:
    import snntorch as snn
    from snntorch import functional, utils

    model = nn.Sequential(
        nn.Linear(784, 400),
        snn.Leaky(beta=0.95, init_hidden=True),
        nn.Linear(400, 10),
        snn.Leaky(beta=0.95, init_hidden=True, output=True),
    )

    def run(spikes: Tensor) -> Tensor:
        utils.reset(model)
        return torch.stack([model(step)[0] for step in spikes])

    return _learning(model, functional.ce_temporal_loss(), run, (_trains(batches[0]), batches[0].labels))


def _norse(batches: list[Batch]) -> Runs:
    import norse.torch as norse

    model = norse.SequentialState(nn.Linear(784, 400), norse.LIFCell(), nn.Linear(400, 10), norse.LIFCell())

    def run(spikes: Tensor) -> Tensor:
        state, outputs = None, []
        for step in spikes:
            output, state = model(step, state)
            outputs.append(output)
        return torch.stack(outputs)

    return _learning(model, _rate_loss, run, (_trains(batches[0]), batches[0].labels))


def _spikingjelly(batches: list[Batch]) -> Runs:
    from spikingjelly.activation_based import functional, layer, neuron

    model = nn.Sequential(
        layer.Linear(784, 400, bias=False),
        neuron.IFNode(),
        layer.Linear(400, 10, bias=False),
        neuron.IFNode(),
    )
    functional.set_step_mode(model, "m")

    def run(spikes: Tensor) -> Tensor:
        functional.reset_net(model)
        outputs: Tensor = model(spikes)
        return outputs

    return _learning(model, _rate_loss, run, (_trains(batches[0]), batches[0].labels))


def _sinabs(batches: list[Batch]) -> Runs:
    import sinabs.layers

    neurons = sinabs.layers.IAF(), sinabs.layers.IAF()
    model = nn.Sequential(
        nn.Linear(784, 400, bias=False), neurons[0], nn.Linear(400, 10, bias=False), neurons[1]
    )

    def run(spikes: Tensor) -> Tensor:
        for one in neurons:
            one.reset_states()
        outputs: Tensor = model(spikes)
        return outputs.transpose(0, 1)

    trains = _trains(batches[0]).transpose(0, 1).contiguous()
    return _learning(model, _rate_loss, run, (trains, batches[0].labels))


def _exact_snn(batches: list[Batch]) -> Runs:
    from exact_snn import ExactTTFSLinear, latency_cross_entropy, latency_encode

    t_max = 40.0
    model = nn.Sequential(
        ExactTTFSLinear(784, 400, t_max=t_max, bias_val=1.5, w_scale=0.2),
        ExactTTFSLinear(400, 10, t_max=t_max, bias_val=1.5),
    )
    batch = batches[0]
    times = latency_encode(batch.images.T.contiguous(), t_max=t_max).float()
    return _learning(
        model,
        lambda output, labels: latency_cross_entropy(output, labels, t_max),
        model,
        (times, batch.labels),
    )


def _exact_event_adjoint(batches: list[Batch]) -> Runs:
    from exact_event_adjoint import ExactAdjointLinear, latency_cross_entropy

    options = {"tau_m": 15.0, "tau_s": 4.0, "theta": 1.0, "t_max": 50.0}
    model = nn.Sequential(ExactAdjointLinear(784, 400, **options), ExactAdjointLinear(400, 10, **options))
    images = batches[0].images
    times = torch.where(images > 0, (1 - images) * 40 + 1, 50.0)
    return _learning(model, latency_cross_entropy, model, (times, batches[0].labels))


def _rate_loss(spikes: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(spikes.mean(0), labels)


PEERS = (
    Peer(None, "ssnn_plugin, IF", _own, calls=10),
    Peer(None, "ssnn_plugin, IF, FusedStep", _own_fused, calls=10),
    Peer(None, "ReLU MLP (torch)", _dense, calls=10),
    Peer("snntorch", "snnTorch, Leaky", _snntorch),
    Peer("norse", "Norse, LIFCell", _norse),
    Peer("spikingjelly", "SpikingJelly, IFNode, multi-step", _spikingjelly),
    Peer("sinabs", "Sinabs, IAF", _sinabs),
    Peer("exact_snn", "exact-snn-nn, ExactTTFSLinear", _exact_snn),
    Peer("exact_event_adjoint", "exact-event-adjoint, ExactAdjointLinear", _exact_event_adjoint),
)


def chosen(only: Sequence[str] | None) -> list[Peer]:
    """Our own networks and the peers of these modules, or all.

    Raises:
        SuiteError: there is no peer of a module.
    """
    modules = [peer.module for peer in PEERS if peer.module]
    if unknown := [module for module in only or [] if module not in modules]:
        raise SuiteError(f"--only must be of {', '.join(modules)}, got {', '.join(unknown)}")
    return [peer for peer in PEERS if peer.module is None or not only or peer.module in only]


def table(peers: Sequence[Peer], batches: list[Batch], rounds: int, tell: Callable[[str], object]) -> Table:
    """Training steps and inference of the peers that there are, ours first, in turn.

    `tell` is called with why others are left out.
    """
    built = {}
    for peer in peers:
        runs = peer.runs(batches)
        if isinstance(runs, str):
            tell(f"{peer.name}: {runs}")
        else:
            built[peer.name] = runs
    calls = {peer.name: peer.calls for peer in peers}
    title = f"784-400-10, T = {T_MAX}, batch {len(batches[0].labels)}"
    found = Table("library", "run", "ms", "of ours", title=title)
    for kind, what in (("step", "training step"), ("infer", "inference")):
        timings = in_turn({name: getattr(runs, kind) for name, runs in built.items()}, rounds, calls=calls)
        for name, one in timings.items():
            found.add_row(name, what, cell(one), ratio(one, timings[PEERS[0].name]))
    return found
