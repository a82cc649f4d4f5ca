"""Whether the network on spike times does what a model does in steps, on a batch of one's own."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ._steps import Traced
from ._trace import unwrapped
from .convert import connection_in_steps, follow, loaded_hosts, states_returned, to_event_driven
from .decode import first_spikes, spikes_to_times
from .kernels.window import accumulate
from .neurons import IF
from .nn import BinwiseLayer, Currents, EarliestSpikePool2d, EventDrivenNetwork, SpikeReadout
from .nn.connection import SpikeConnection
from .step_calibration import Run

SHOWN = 5
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
EXAMINED = 64
# Of gradients and values: a sum in single precision has about 7 digits, of which cancellation takes some.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
REMEDY = (
    "Weights and thresholds that are multiples of a power of two are added up exactly, in any order;\n"
    "without a leak there are no such ties then. For instance, before training or after it:\n"
    "    with torch.no_grad():\n"
    "        for p in model.parameters():\n"
    "            p.copy_((p * 256).round() / 256)\n"
    "and thresholds such as 0.25, 1 or 3. Whole numbers are exact as well; steps of 0.1 or 0.01 are not."
)


@dataclass(frozen=True)
class Difference:
    """An output that differs: its index [sample, *neuron], and what steps and events give."""

    index: tuple[int, ...]
    steps: float
    events: float

    def __str__(self) -> str:
        return (
            f"sample {self.index[0]}, output {self.index[1:]}: steps {self.steps:g}, events {self.events:g}"
        )


@dataclass(frozen=True)
class Verification:
    """What `verify` has found; printing it tells.

    Args:
        outputs: how many spike times there are, or values of a read-out.
        equal: how many of them are the same in steps and on spike times.
        silent: how many outputs are silent in steps.
        gradients: for each parameter the largest difference of its gradients, relative to the largest one;
            of the samples whose outputs are equal.
        differences: the first outputs that differ.
        explained: how many outputs that differ lie in samples in which a sum comes so close to its threshold
            that rounding decides.
        examined: how many outputs that differ were looked at for that.
        ties: for each layer how many such neurons there are in these samples.
        binwise: the layers that run bin by bin.
        of_times: whether outputs are spike times.
        tolerance: up to which gradients and values count as equal.
    """

    outputs: int
    equal: int
    silent: int
    gradients: dict[str, float]
    differences: list[Difference]
    explained: int
    examined: int
    ties: dict[str, int]
    binwise: list[str]
    of_times: bool
    tolerance: float
    no_gradient: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all outputs and gradients agree, and there is something to compare: not silence alone."""
        compared = self.outputs > (self.silent if self.of_times else 0)
        return compared and self.equal == self.outputs and not self.gradients_that_differ

    @property
    def gradients_that_differ(self) -> list[str]:
        """The parameters whose gradients differ."""
        return [name for name, error in self.gradients.items() if not error <= self.tolerance]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        what = "spike times" if self.of_times else "values"
        silent = f", {self.silent} of them silent" if self.of_times else f" to {self.tolerance:g}"
        yield f"{what}: {self.equal} of {self.outputs} agree{silent}"
        if self.of_times and self.silent == self.outputs:
            yield "  every output is silent: nothing is compared. Use weights that let neurons fire"
        for difference in self.differences:
            yield f"  {difference}"
        hidden = self.outputs - self.equal - len(self.differences)
        if hidden:
            yield f"  and {hidden} more"
        good = len(self.gradients) - len(self.gradients_that_differ)
        largest = max(self.gradients.values(), default=0.0)
        yield (
            f"gradients: {good} of {len(self.gradients)} parameters agree to {self.tolerance:g}, "
            f"the largest difference is {largest:.1e} of a parameter's largest gradient"
        )
        for name in self.gradients_that_differ:
            yield f"  {name}: {self.gradients[name]:.1e}"
        if self.no_gradient:
            yield f"  no gradient reaches {', '.join(self.no_gradient)}"
        if self.binwise:
            yield f"bin by bin, without a form on spike times: {', '.join(self.binwise)}"
        if self.equal < self.outputs:
            yield from self._why()

    def _why(self) -> Iterator[str]:
        if self.explained:
            where = ", ".join(f"{count} in layer {name}" for name, count in self.ties.items() if count)
            yield (
                f"ties: {self.explained} of the {self.examined} differences looked at are in samples in "
                f"which sums come within rounding of their threshold (neurons: {where})."
            )
            yield "The order of the additions decides there, and gradients follow the spikes. " + REMEDY
        if self.explained < self.examined:
            yield (
                f"{self.examined - self.explained} differences are no ties: the network is not the model. "
                "Please report the model"
            )


def verify(
    model: nn.Module,
    batch: Tensor,
    *,
    t_max: int | None = None,
    constant_input: bool = False,
    run: Run | None = None,
) -> Verification:
    """Run a model in steps and its network on spike times on the same batch, and compare.

    The model is copied, put into evaluation mode and left as it is. Gradients are those of a random
    weighting of the outputs; silent neurons get none.

    Args:
        model: what `to_event_driven` takes.
        batch: spike trains [T, batch, *], at most one spike a line. Where the model gets the same values
            in every step, these values [batch, *].
        t_max: number of steps, for values; for spike trains it is their length.
        constant_input: as for `to_event_driven`.
        run: how the model reads a window, `run(model, batch)`, which returns the spikes of its last
            neurons, or the values of its read-out, [T, batch, *]. None is one call with all steps; of a model
            that takes one step, a call per step with the states that the last one returned.

    Returns:
        A `Verification`: print it, or ask for `.ok`.

    Raises:
        NoTimeMode: as `to_event_driven`.
        ValueError: trains that fire more than once a line or hold other numbers than 0 and 1; values
            without `t_max`; a model that does not return the spikes of its last neurons, or a state that it
            takes; outputs of another shape than the network's.
        TypeError: a `run` that returns no tensor.

    >>> import torch
    >>> from ssnn_plugin.snntorch import SingleSpike, latency
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False), SingleSpike(init_hidden=True))
    >>> _ = torch.nn.init.uniform_(model[0].weight, 0, 0.5)
    >>> report = verify(model, latency(torch.rand(5, 8), num_steps=16))
    >>> report.ok, report.equal, report.outputs
    (True, 20, 20)
    """
    copied = _copied(model).eval()
    try:
        return _verified(copied, batch, t_max, constant_input, run)
    finally:
        for host in loaded_hosts():
            host.forget(copied)


def _copied(model: nn.Module) -> nn.Module:
    """A copy; of tensors that are computed, such as hidden states and pruned weights, their values."""
    held = _computed([vars(module) for module in model.modules()])
    return copy.deepcopy(model, {id(one): one.detach().clone() for one in held})


def _computed(value: Any) -> Iterator[Tensor]:
    """Tensors that are computed, in containers too: torch copies none of them."""
    if isinstance(value, Tensor) and not value.is_leaf:
        yield value
    elif isinstance(value, dict | list | tuple | set | deque):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _computed(one)


def _verified(
    model: nn.Module, batch: Tensor, t_max: int | None, constant_input: bool, run: Run | None
) -> Verification:
    traced, _ = follow(model)
    values = constant_input or traced.takes == "values"
    steps = _number_of_steps(batch, values, t_max or traced.steps)
    network = to_event_driven(model, t_max=steps, constant_input=constant_input)
    given = batch if values else spikes_to_times(batch)
    inputs = batch.expand(steps, *batch.shape) if values and traced.takes != "values" else batch
    _reset(model)
    in_steps = _in_steps(model, traced, inputs) if run is None else run(model, inputs)
    if not isinstance(in_steps, Tensor):
        raise TypeError(
            f"run must return spikes or values [T, batch, *] alone, got {type(in_steps).__name__}"
        )
    on_times = network(given)
    of_times = _ends_with_neurons(network)
    if of_times:
        if in_steps.shape[1:] != on_times.shape:
            raise ValueError(
                f"model must return its spikes of every step, [T, *{list(on_times.shape)}], "
                f"got {list(in_steps.shape)}"
            )
        in_steps = first_spikes(in_steps).to(on_times.dtype)
    elif in_steps.shape == on_times.shape[1:]:
        in_steps, on_times = in_steps[None], on_times[-1:]
    elif in_steps.shape != on_times.shape:
        raise ValueError(
            f"model must return its values of every step, {list(on_times.shape)}, or of the last, "
            f"got {list(in_steps.shape)}"
        )
    return _compare(model, network, in_steps, on_times, given, of_times)


def _in_steps(model: nn.Module, traced: Traced, inputs: Tensor) -> Tensor:
    """What a model returns of its last module in every step."""
    if traced.returned is None:
        raise ValueError("model must return the spikes of its last neurons, or the values of its read-out")
    one_by_one = traced.takes == "step"
    returned = _run(model, inputs) if one_by_one else model(inputs.movedim(0, traced.time_axis))
    for index in traced.returned:
        returned = returned[index]
    if isinstance(returned, tuple):
        returned = returned[traced.output]
    return returned.movedim(traced.record_axis, 0)  # type: ignore[no-any-return]


def _number_of_steps(batch: Tensor, values: bool, t_max: int | None) -> int:
    if values:
        if t_max is None:
            raise ValueError("t_max must be given for a model that takes values instead of spikes")
        return t_max
    if t_max is not None and t_max != len(batch):
        raise ValueError(
            f"batch must have t_max = {t_max} steps, got {list(batch.shape)}: pass [T, batch, *]"
        )
    if not bool(((batch == 0) | (batch == 1)).all()):
        raise ValueError(
            "batch must hold spikes, 0 or 1; encode values, for instance with the adapter's latency encoder, "
            "or say constant_input=True if the model gets them in every step"
        )
    again = int(((batch != 0).sum(0) > 1).sum())
    if again:
        raise ValueError(
            f"batch must fire at most once a line, got {again} lines that fire more than once: rate codes "
            "and event cameras are no input of a network on spike times"
        )
    return len(batch)


def _reset(model: nn.Module) -> None:
    """Forget what neurons that keep their state have kept."""
    for module in model.modules():
        if callable(getattr(module, "reset_mem", None)):
            module.reset_mem()  # type: ignore[operator]


def _run(model: nn.Module, inputs: Tensor) -> Any:
    """A model that takes one step per call, with its states if it is given them."""
    places = _states(model)
    states: dict[str, Any] = dict.fromkeys(places)
    outputs = []
    for x in inputs:
        outputs.append(model(x, **states))
        states = {name: _at(outputs[-1], place) for name, place in places.items()}
    return _joined(outputs)


def _states(model: nn.Module) -> dict[str, Any]:
    """Where the states that a model takes besides its input are among what it returns.

    Raises:
        ValueError: several of which that cannot be told.
    """
    model = unwrapped(model)
    further = list(signature(model.forward).parameters.values())[1:]
    needed = [one.name for one in further if one.default is Parameter.empty and one.kind not in VARIADIC]
    optional = [one.name for one in further if one.default is None]
    found = states_returned(model) if needed or optional else {}
    if found is None:
        names, found = [*needed, *optional], {}
    else:
        names = [*needed, *(name for name in optional if name in found)]
    if len(names) == 1 and found.get(names[0]) is None:
        found[names[0]] = 1
    if any(found.get(name) is None for name in names):
        raise ValueError(
            f"model must return the states that it takes ({', '.join(names)}), each beside its spikes. Say "
            "how it reads a window, as in run=lambda model, trains: ..., which returns spikes [T, batch, *]"
        )
    return {name: found[name] for name in names}


def _at(output: Any, place: Any) -> Any:
    return output[place] if isinstance(output, tuple | list | dict) else None


def _joined(outputs: list[Any]) -> Any:
    """What the calls have returned, step after step."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.stack(outputs)
    if isinstance(first, dict):
        return {key: _joined([one[key] for one in outputs]) for key in first}
    if isinstance(first, tuple | list) and not hasattr(first, "_fields"):
        return tuple(_joined(list(part)) for part in zip(*outputs, strict=True))
    return outputs


def _ends_with_neurons(network: EventDrivenNetwork) -> bool:
    firing = SpikeConnection | BinwiseLayer | EarliestSpikePool2d | nn.Flatten
    return isinstance(network[-1], firing) and not any(isinstance(one, SpikeReadout) for one in network)


def _compare(
    model: nn.Module,
    network: EventDrivenNetwork,
    in_steps: Tensor,
    on_times: Tensor,
    given: Tensor,
    of_times: bool,
) -> Verification:
    tolerance = max(TOLERANCE.get(outputs.dtype, 1e-4) for outputs in (in_steps, on_times))
    in_steps = in_steps.to(on_times.dtype)
    if of_times:
        same = in_steps == on_times
    else:
        same = (in_steps - on_times).abs() <= tolerance * in_steps.detach().abs().max().clamp(min=1)
    by_sample = same if of_times else same.all(0)
    right = by_sample.flatten(1).all(1)
    gradients, missing = _gradients(model, in_steps, on_times, right, of_times)
    wrong = [tuple(index) for index in (~same).nonzero().tolist()]
    shown = [Difference(index, in_steps[index].item(), on_times[index].item()) for index in wrong[:SHOWN]]
    looked_at = (~right).nonzero().flatten().tolist()[:EXAMINED] if of_times else []
    ties = _ties(network, given[looked_at]) if looked_at else {}
    tied = torch.stack(list(ties.values())).sum(0) > 0 if ties else torch.zeros(len(looked_at)).bool()
    per_sample = (~same).flatten(1).sum(1)[looked_at] if of_times else torch.zeros(0)
    return Verification(
        outputs=same.numel(),
        equal=int(same.sum()),
        silent=int(in_steps.isinf().sum()) if of_times else 0,
        gradients=gradients,
        differences=shown,
        explained=int(per_sample[tied.to(per_sample.device)].sum()) if looked_at else 0,
        examined=int(per_sample.sum()),
        ties={name: int(count.sum()) for name, count in ties.items()},
        binwise=[
            f"{name} ({type(layer.neuron).__name__})"
            for name, layer in network.named_children()
            if isinstance(layer, BinwiseLayer)
        ],
        of_times=of_times,
        tolerance=tolerance,
        no_gradient=missing,
    )


def _gradients(
    model: nn.Module, in_steps: Tensor, on_times: Tensor, right: Tensor, of_times: bool
) -> tuple[dict[str, float], list[str]]:
    """For each parameter the difference of its gradients, and the parameters without one."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shape = on_times.shape
    along = 0 if of_times else 1
    # Of both signs, apart from 0, and the same wherever it is run.
    count = math.prod(shape)
    weights = torch.arange(1, count + 1, device=on_times.device, dtype=on_times.dtype).sin()
    weights = weights.reshape(shape) * right.to(on_times.dtype).reshape(
        *[1] * along, -1, *[1] * (len(shape) - along - 1)
    )
    found: list[tuple[Tensor | None, ...]] = []
    for outputs in (in_steps, on_times):
        finite = outputs.masked_fill(outputs.isinf(), 0) if of_times else outputs
        total = (weights * finite).sum()
        if total.requires_grad:
            found.append(
                torch.autograd.grad(total, list(parameters.values()), allow_unused=True, retain_graph=True)
            )
        else:
            found.append((None,) * len(parameters))
    errors, missing = {}, []
    for name, a, b in zip(parameters, *found, strict=True):
        if a is None and b is None:
            missing.append(name)
            continue
        a, b = (torch.zeros_like(parameters[name]) if one is None else one for one in (a, b))
        largest = max(float(a.abs().max()), float(b.abs().max()))
        errors[name] = float((a - b).abs().max()) / largest if largest else 0.0
    return errors, missing


@torch.no_grad()
def _ties(network: EventDrivenNetwork, given: Tensor) -> dict[str, Tensor]:
    """For each layer how many neurons of each sample come within rounding of their threshold."""
    precision = torch.finfo(given.dtype).eps
    found: dict[str, Tensor] = {}
    outputs = [given]
    for number, (name, layer) in enumerate(network.named_children()):
        sources = (number - 1,) if network.sources is None else network.sources[number]
        inputs = [outputs[source + 1] for source in sources]
        outputs.append(layer(*inputs))
        driven = _drive(layer, network.t_max)
        if driven is None:
            continue
        currents, threshold, beta = driven
        found[name] = _close(currents, inputs, threshold, beta, precision).flatten(1).sum(1)
    return found


def _drive(layer: nn.Module, t_max: int) -> tuple[Currents, Any, Any] | None:
    """What drives a layer, and its threshold and leak, in double precision."""
    if isinstance(layer, SpikeConnection) and isinstance(layer.neuron, IF):
        function = nn.Sequential(*connection_in_steps(layer, shared=False)).eval()
        currents = Currents(copy.deepcopy(function).double(), [False], t_max)
        return currents, layer.neuron.threshold, layer.neuron.beta
    if isinstance(layer, BinwiseLayer):
        return copy.deepcopy(layer.currents).double().eval(), *layer.constants(layer.neuron)
    return None


def _close(currents: Currents, inputs: list[Tensor], threshold: Any, beta: Any, precision: float) -> Tensor:
    """Whether V comes within rounding of the threshold, up to the bin in which a neuron fires."""
    given = [x.double() for x in inputs]
    flowing = currents(*given)
    threshold, beta = (
        torch.as_tensor(x, dtype=torch.float64, device=flowing.device) for x in (threshold, beta)
    )
    potential = accumulate(flowing, torch.zeros_like(flowing[0]), beta)
    with_size = copy.deepcopy(currents)
    for parameter in with_size.parameters():
        parameter.abs_()
    size = accumulate(with_size(*given).abs(), torch.zeros_like(flowing[0]), beta) + threshold
    near = (potential - threshold).abs() <= 4 * precision * size
    undecided: Tensor = near & ~_before(potential > threshold, near)
    return undecided.any(0)


def _before(above: Tensor, near: Tensor) -> Tensor:
    """Whether a neuron has clearly fired before a bin."""
    fired = (above & ~near).to(torch.uint8).cummax(0).values.bool()
    return torch.cat([torch.zeros_like(fired[:1]), fired[:-1]])
