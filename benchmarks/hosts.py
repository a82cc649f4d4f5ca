"""Models of snnTorch and Norse, step by step, against the same networks event by event."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import norse.torch as norse
import snntorch as snn
import torch
from rich.table import Table
from snntorch import functional as snn_functional
from snntorch import utils as snn_utils
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.mnist import EPOCH, T_MAX, Batches
from benchmarks.printing import cell, ratio
from benchmarks.timing import Timing
from ssnn_plugin import decode, losses, to_event_driven
from ssnn_plugin.norse import SingleSpikeIF, SingleSpikeIFCell
from ssnn_plugin.snntorch import SingleSpike

GAMMA = 20

Step = Callable[[Tensor, Tensor], Tensor]


def _weights() -> tuple[nn.Linear, nn.Linear]:
    """784-400-10, drawn as in examples/."""
    hidden, output = nn.Linear(784, 400, bias=False), nn.Linear(400, 10, bias=False)
    nn.init.normal_(hidden.weight, 0.01, 0.05)
    nn.init.normal_(output.weight, 0.01, 0.02)
    return hidden, output


def _snntorch(neuron: Callable[..., nn.Module], **options: object) -> nn.Sequential:
    hidden, output = _weights()
    return nn.Sequential(
        hidden,
        neuron(init_hidden=True, **options),
        output,
        neuron(init_hidden=True, output=True, **options),
    )


def _snntorch_steps(model: nn.Module, spikes: Tensor) -> Tensor:
    snn_utils.reset(model)
    return torch.stack([model(step)[0] for step in spikes])


def _snntorch_window(model: nn.Module, spikes: Tensor) -> Tensor:
    snn_utils.reset(model)
    outputs: Tensor = model(spikes)[0]
    return outputs


def _norse_cells() -> nn.Module:
    hidden, output = _weights()
    cells = norse.SequentialState(hidden, SingleSpikeIFCell(), output, SingleSpikeIFCell())
    return norse.Lift(cells)  # type: ignore[no-any-return]


def _norse_layers(neuron: Callable[[], nn.Module]) -> nn.Module:
    hidden, output = _weights()
    return norse.SequentialState(  # type: ignore[no-any-return]
        norse.Lift(hidden), neuron(), norse.Lift(output), neuron()
    )


def _norse_window(model: nn.Module, spikes: Tensor) -> Tensor:
    outputs: Tensor = model(spikes)[0]
    return outputs


def _ours(trains: Tensor, labels: Tensor) -> Tensor:
    loss: Tensor = losses.RelativeTargetLoss(GAMMA, T_MAX)(decode.spikes_to_times(trains), labels)
    return loss


@dataclass(frozen=True)
class StepModel:
    """A host's model, how it runs a window of spikes, and its loss on the output trains."""

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor] = _ours
    #: whether it is the same network as the event-driven one, or the host's own neuron
    single_spike: bool = True


MODELS = {
    "snnTorch, SingleSpike, loop": StepModel(lambda: _snntorch(SingleSpike), _snntorch_steps),
    "snnTorch, SingleSpike(sequence=True)": StepModel(
        lambda: _snntorch(SingleSpike, sequence=True), _snntorch_window
    ),
    "snnTorch, Leaky and ce_temporal_loss, loop": StepModel(
        lambda: _snntorch(snn.Leaky, beta=1.0), _snntorch_steps, snn_functional.ce_temporal_loss(), False
    ),
    "Norse, SingleSpikeIFCell, loop": StepModel(_norse_cells, _norse_window),
    "Norse, SingleSpikeIF": StepModel(lambda: _norse_layers(SingleSpikeIF), _norse_window),
    "Norse, IAF, loop": StepModel(lambda: _norse_layers(norse.IAF), _norse_window, _ours, False),
}


def step_by_step(name: str, model: nn.Module) -> Step:
    """A training step of a host's model on input spike trains [T, batch, 784]."""
    of = MODELS[name]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def step(spikes: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = of.loss(of.run(model, spikes), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def event_by_event(model: nn.Module) -> Step:
    """A training step of the same kind of network on input spike times [batch, 784]."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loss_function = losses.RelativeTargetLoss(GAMMA, T_MAX)

    def step(times: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_function(model(times), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def event_network(name: str) -> tuple[nn.Module, nn.Module]:
    """A host's model, and the network on spike times: the same, or that of the host's neuron replaced."""
    model = MODELS[name].build()
    twin = model if MODELS[name].single_spike else _snntorch(SingleSpike)
    if twin is not model:
        for own, other in zip(twin.parameters(), model.parameters(), strict=True):
            own.data.copy_(other.data)
    return model, to_event_driven(twin, t_max=T_MAX)


@dataclass(frozen=True)
class Comparison:
    """Training steps, the share of equal output spikes, and peak memory in MiB, of both sides."""

    in_steps: Timing
    by_events: Timing
    same: float | None
    peaks: tuple[float, float]


def compare(name: str, batches: Batches, steps: int) -> Comparison:
    """Train the event-driven network for an epoch, then time steps of both in turn, ten of its own to one."""
    model, network = event_network(name)
    in_steps, by_events = step_by_step(name, model), event_by_event(network)
    for times, _, labels in batches(0, EPOCH):
        by_events(times, labels)
    taken = Timing(), Timing()
    for k in range(steps + 1):
        slow, fast = taken if k else (Timing(), Timing())  # the first ones are not counted
        (times, _, labels), *others = batches(EPOCH + 11 * k, 11)
        spikes = decode.times_to_spikes(times, T_MAX)
        slow.add(in_steps, spikes, labels)
        for t, _, y in others:
            fast.add(by_events, t, y)
    same = None
    if MODELS[name].single_spike:
        with torch.no_grad():
            expected = decode.spikes_to_times(MODELS[name].run(model, spikes))
            same = (expected == network(times)).double().mean().item()
    peaks = [memory.peak(functools.partial(build, name), times, labels) for build in (_loop, _events)]
    return Comparison(*taken, same, (peaks[0], peaks[1]))


def table(batches: Batches, steps: int) -> Table:
    """All models: time and memory of both sides."""
    heads = "in steps (ms)", "event by event (ms)", "times faster", "same spikes", "peak memory (MiB)", ""
    found = Table("model", *heads)
    for name in MODELS:
        result = compare(name, batches, steps)
        found.add_row(
            name,
            cell(result.in_steps),
            cell(result.by_events),
            ratio(result.in_steps, result.by_events),
            "" if result.same is None else f"{result.same:.2%}",
            f"{result.peaks[0]:.0f} / {result.peaks[1]:.1f}",
            f"1/{result.peaks[0] / result.peaks[1]:.0f}",
        )
    return found


def _loop(name: str) -> Step:
    """A step of the host's model on spike times, whose trains are part of what it needs."""
    step = step_by_step(name, event_network(name)[0])
    return lambda times, labels: step(decode.times_to_spikes(times, T_MAX), labels)


def _events(name: str) -> Step:
    return event_by_event(event_network(name)[1])
