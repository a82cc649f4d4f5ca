"""A start with neurons that fire, for models in steps: raises the weights of one layer after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from . import _checks
from .kernels.window import accumulate
from .nn.calibration import APART, beside_ties, evaluating, watched

Run = Callable[[nn.Module, Tensor], Any]
WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)
ROUNDS = 30


class StepNeuron(NamedTuple):
    """What calibration has to know of a single-spike module: its numbers, and how many steps a call takes."""

    threshold: Tensor
    beta: Tensor
    takes_window: bool


class StepHost(Protocol):
    """What calibration asks of an adapter.

    Args:
        run_by_step: what to pass as `run` for a model that takes one step per call.
    """

    run_by_step: str

    def reset(self, model: nn.Module) -> None:
        """Forget the states that a model keeps."""

    def step_neuron(self, module: Any) -> StepNeuron | None:
        """The numbers of a single-spike module; None for other modules."""

    def run_window(self, model: nn.Module, trains: Tensor) -> Any:
        """Run a model anew on spike trains [T, batch, *], as the host's scripts do."""


class _Layer(NamedTuple):
    name: str
    module: nn.Module
    neuron: StepNeuron
    source: str
    weights: Any


@torch.no_grad()
def calibrate(
    model: nn.Module, trains: Tensor, fraction: float, *, host: StepHost, tolerance: float, run: Run | None
) -> dict[str, float]:
    """As `ssnn_plugin.snntorch.calibrate`, for the neurons of a host."""
    _checks.wanted_fraction(fraction)
    if trains.ndim < 3 or not trains.numel():
        raise ValueError(f"trains must be spike trains [T, batch, *], got {list(trains.shape)}")
    neurons = _neurons(model, host)

    def run_once() -> None:
        host.reset(model)
        (run or host.run_window)(model, trains)
        host.reset(model)

    with evaluating(model):
        called = _calls(model, neurons, run_once)
        _check_calls(called, neurons, len(trains), host)
        layers = _layers(model, neurons, called)
        before = [layer.weights.weight.clone() for layer in layers]
        try:
            return {layer.name: _raise(layer, run_once, fraction, tolerance) for layer in layers}
        except Exception:
            for layer, weight in zip(layers, before, strict=True):
                layer.weights.weight.copy_(weight)
            raise


def _neurons(model: nn.Module, host: StepHost) -> dict[nn.Module, tuple[str, StepNeuron]]:
    found = {}
    for name, module in model.named_modules():
        neuron = host.step_neuron(module)
        if neuron is not None:
            found[module] = name or "the model", neuron
    if not found:
        raise ValueError(f"model must have neurons of the adapter, got {type(model).__name__} without any")
    return found


def _calls(
    model: nn.Module, neurons: dict[nn.Module, tuple[str, StepNeuron]], run_once: Callable[[], None]
) -> list[nn.Module]:
    """The neurons, weights and norms of a model as it calls them in a window."""
    called: list[nn.Module] = []

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        called.append(module)

    with watched([m for m in model.modules() if m in neurons or isinstance(m, WEIGHTS + NORMS)], before):
        run_once()
    return called


def _check_calls(
    called: list[nn.Module],
    neurons: dict[nn.Module, tuple[str, StepNeuron]],
    num_steps: int,
    host: StepHost,
) -> None:
    for module, (name, neuron) in neurons.items():
        count, wanted = called.count(module), 1 if neuron.takes_window else num_steps
        if not count:
            raise ValueError(f"the model must call every neuron, got no call of {name!r}")
        if count != wanted:
            raise ValueError(
                f"{name!r} must be called {wanted} times for {num_steps} steps, got {count} calls. "
                f"Say how the model reads a window: {host.run_by_step}"
            )


def _layers(
    model: nn.Module, neurons: dict[nn.Module, tuple[str, StepNeuron]], called: list[nn.Module]
) -> list[_Layer]:
    """The neurons in the order in which they run, each with the last weights in front of it."""
    names = {module: name for name, module in model.named_modules()}
    layers: dict[nn.Module, _Layer] = {}
    source: nn.Module | None = None
    for module in called:
        if module not in neurons:
            source = module
        elif module not in layers:
            name, neuron = neurons[module]
            if isinstance(source, NORMS):
                raise ValueError(
                    f"the weights in front of {name!r} are normalised by {names[source]!r} "
                    f"({type(source).__name__}), which undoes what calibration does: fold it into the weights"
                )
            if not isinstance(source, WEIGHTS):
                order = ", ".join(repr(names[one]) for one in dict.fromkeys(called))
                raise ValueError(
                    f"{name!r} must have a Linear or convolution of its own in front, called right before "
                    f"it; the calls are {order}"
                )
            shared = [layer.name for layer in layers.values() if layer.weights.weight is source.weight]
            if shared:
                raise ValueError(
                    f"{name!r} must have weights of its own, but {names[source]!r} drives {shared[0]!r} as "
                    "well: what lets one fire changes the other"
                )
            if not isinstance(source.weight, nn.Parameter):
                raise ValueError(
                    f"the weight of {names[source]!r} is computed from others: remove its parametrization"
                )
            layers[module] = _Layer(name, module, neuron, names[source], source)
            source = None
    return list(layers.values())


def _raise(layer: _Layer, run_once: Callable[[], None], fraction: float, tolerance: float) -> float:
    """Raise the weights in front of a neuron until a fraction fires; return the one reached.

    V is linear in a constant c added to the weights, V + c V', so that a neuron fires if c exceeds the
    least (threshold - V) / V' of its bins. More than one round is needed only if something in between
    is not linear, such as a max-pool; halving brackets c then where these steps leave them.
    """
    weight = layer.weights.weight
    start, low, high, c = weight.clone(), -torch.inf, torch.inf, 0.0
    tried: dict[float, float] = {}

    def at(c: float) -> tuple[Tensor, Tensor]:
        weight.copy_(start + c)
        potential, threshold = _potential(layer, run_once)
        tried[c] = float((potential > threshold).any(0).double().mean())
        return potential, threshold

    def fires(c: float) -> float:
        at(c)
        return tried[c]

    for _ in range(ROUNDS):
        potential, threshold = at(c)
        reached = tried[c]
        if abs(reached - fraction) <= max(tolerance, 1.0 / potential[0].numel()):
            break
        low, high = (max(low, c), high) if reached < fraction else (low, min(high, c))
        step = weight.abs().mean().clamp(min=1e-3)
        weight.add_(step)
        slope = (_potential(layer, run_once)[0] - potential) / step
        if not slope.any():
            raise ValueError(
                f"raising the weights of {layer.source!r} changes nothing for {layer.name!r}: no spike "
                "reaches them, or they do not drive it; its own must be called right before it"
            )
        c += _needed(potential, slope, threshold, fraction)
        if not low < c < high:
            c = high - 2 * float(step) if low == -torch.inf else (low + high) / 2
        if not math.isfinite(c):
            reachable = float((slope > 0).any(0).double().mean())
            raise ValueError(
                f"fraction must be at most {reachable:.3g}, as the others have no input, got {fraction!r}"
            )
    else:
        if low == -torch.inf or high == torch.inf:
            raise ValueError(
                f"fraction must be in reach of {layer.name!r}, got {fraction!r}: raising the weights of "
                f"{layer.source!r} made {reached:.3g} of its neurons fire"
            )
    closest = min(tried, key=lambda c: abs(tried[c] - fraction))
    apart = APART * float(start.abs().mean() + abs(closest))
    return fires(beside_ties(fires, closest, apart, fraction, tolerance))


def _potential(layer: _Layer, run_once: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """V [T, batch, *] of the neurons as if none fired, and their threshold."""
    calls: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls.append(inputs[0])

    with watched([layer.module], before):
        run_once()
    currents = calls[0] if layer.neuron.takes_window else torch.stack(calls)
    threshold, beta = (x.to(currents) for x in (layer.neuron.threshold, layer.neuron.beta))
    return accumulate(currents, torch.zeros_like(currents[0]), beta), threshold


def _needed(potential: Tensor, slope: Tensor, threshold: Tensor, fraction: float) -> float:
    """What the weights lack for a fraction of the neurons to fire; inf if too few have an input."""
    lacking = torch.where(slope > 0, (threshold - potential) / slope, torch.inf)
    each = lacking.amin(0).flatten().sort().values
    count = max(1, round(fraction * len(each)))
    last, following = float(each[count - 1]), float(each[min(count, len(each) - 1)])
    # Halfway to the next neuron, so that rounding changes none of them.
    return (last + following) / 2 if last < following < torch.inf else last + 1e-3 * max(abs(last), 1e-3)
