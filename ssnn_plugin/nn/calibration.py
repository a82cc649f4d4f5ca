"""Weights with which a wanted part of the neurons fires."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from .connection import SpikeConnection
from .residual import AddedCurrentResidual

# Octaves by which weights are scaled in search of a bracket, then halvings of that.
DISTANCES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
STEPS = 40
# A change of weights, in octaves, that exceeds rounding.
APART = 1e-5


@torch.no_grad()
def calibrate(
    layers: nn.Module | Iterable[nn.Module], times: Tensor, fraction: float, *, tolerance: float = 0.01
) -> dict[str, float]:
    """Scale the weights of one layer after the other so that a wanted part of its neurons fires.

    Each connection's weights are multiplied by one positive factor in 2^-30 ... 2^30, found by bisection
    on the input that the layers before it, calibrated already, make of `times`. Where many factors
    do, one near 1 is taken: a fraction that only huge weights reach leaves nothing to learn, as
    gradients hardly move them. Dropout is off meanwhile; a bias and everything that is not a
    connection stay as they are.

    Args:
        layers: a model on spike times, or modules that are applied in turn.
        times: a batch of input spike times.
        fraction: of the (sample, neuron) pairs that shall fire, above 0 and at most 1.
        tolerance: how far off will do. A layer of few pairs gets as close as it can.

    Returns:
        The fraction that each connection reached, under the name of its module, in order.

    Raises:
        ValueError: a fraction out of reach, as it is without positive weights; a fraction out of range; no
            samples; layers without connections, or with one that was not called.

    Source: calibration before training as Zhu et al. 2023 do, who bisect the thresholds.

    >>> import torch
    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear
    >>> layer = SpikeLinear(1, 4, IF(100.0), t_max=8)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[1.0], [2.0], [3.0], [4.0]])})
    >>> calibrate([layer], torch.tensor([[3.0]]), 0.5)
    {'0': 0.5}
    >>> layer(torch.tensor([[3.0]])).tolist()
    [[inf, inf, 3.0, 3.0]]
    """
    _checks.wanted_fraction(fraction)
    _checks.not_negative("tolerance", tolerance)
    if not times.numel():
        raise ValueError(f"times must hold samples to calibrate on, got shape {list(times.shape)}")
    network = _network(layers)
    named = _connections(network)
    reached: dict[str, float] = {}

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        name, connection = named[module]
        if name in reached:
            return

        def fires() -> float:
            outputs = module.forward(*inputs)
            spikes = outputs[0] if isinstance(outputs, tuple) else outputs
            return float(spikes.isfinite().double().mean())

        try:
            reached[name] = _bisect(connection, fires, fraction, tolerance)
        except _OutOfReach as error:
            raise ValueError(
                f"fraction must be in reach of layer {name!r} ({type(module).__name__}), of whose neurons "
                f"{error} fire with weights scaled down or up, got {fraction!r}"
            ) from None

    with watched(named, before), evaluating(network):
        network(times)
    idle = [name for name, _ in named.values() if name not in reached]
    if idle:
        raise ValueError(f"layers must call every connection, got no call of {', '.join(map(repr, idle))}")
    return reached


@contextmanager
def watched(
    modules: Iterable[nn.Module], before: Callable[[nn.Module, tuple[Any, ...]], None]
) -> Iterator[None]:
    """Call `before` with a module and its inputs, by position, ahead of each of its calls."""

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before(module, signature(module.forward).bind(*args, **kwargs).args)

    hooks = [module.register_forward_pre_hook(called, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module returns to the mode that it was in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _OutOfReach(Exception):
    pass


def _network(layers: nn.Module | Iterable[nn.Module]) -> nn.Module:
    if isinstance(layers, SpikeConnection):
        return nn.Sequential(layers)
    if isinstance(layers, nn.Module) and not isinstance(layers, nn.ModuleList):
        return layers
    return nn.Sequential(*layers)


def _connections(network: nn.Module) -> dict[nn.Module, tuple[str, SpikeConnection]]:
    """The modules that run a connection, each with its name and that connection."""
    found: dict[nn.Module, tuple[str, SpikeConnection]] = {}
    inside = set()
    for name, module in network.named_modules():
        if isinstance(module, AddedCurrentResidual):
            found[module] = name, module.connection
            inside.add(module.connection)
        elif isinstance(module, SpikeConnection) and module not in inside:
            found[module] = name, module
    if not found:
        raise ValueError(f"layers must hold a connection such as SpikeLinear, got {network!r}")
    owners: dict[Tensor, str] = {}
    for name, connection in found.values():
        other = owners.setdefault(connection.weight, name)
        if other != name:
            raise ValueError(
                f"{name!r} must have weights of its own, but has those of {other!r}: what lets one fire "
                "changes the other"
            )
    return found


def _bisect(layer: SpikeConnection, fires: Callable[[], float], fraction: float, tolerance: float) -> float:
    """Scale the weights of a layer, no further than needed; return the fraction that fires then."""
    weight = layer.weight.clone()
    tried: dict[float, float] = {}

    def at(octave: float) -> float:
        layer.assign_weight(weight * 2.0**octave)
        tried[octave] = fires()
        return tried[octave]

    def off(octave: float) -> float:
        return abs(tried[octave] - fraction)

    def closest() -> float:
        return min(tried, key=lambda octave: (off(octave), abs(octave)))

    def short(octave: float) -> bool:
        return off(octave) > tolerance and (tried[octave] < fraction) == (direction > 0)

    direction = 1 if at(0.0) < fraction else -1
    near = far = 0.0
    for distance in DISTANCES:
        if not short(far):
            break
        near, far = far, direction * distance
        at(far)
    if short(far):
        least, most = at(-DISTANCES[-1]), at(DISTANCES[-1])
        layer.assign_weight(weight)
        raise _OutOfReach(f"{least:.3g} ... {most:.3g}")
    low, high = sorted((near, far))
    for _ in range(STEPS):
        if off(closest()) <= tolerance:
            break
        middle = (low + high) / 2
        if at(middle) < fraction:
            low = middle
        else:
            high = middle
    return at(beside_ties(at, closest(), APART, fraction, tolerance))


def beside_ties(
    at: Callable[[float], float], found: float, apart: float, fraction: float, tolerance: float
) -> float:
    """Where the wanted fraction fires, but not where rounding decides of many neurons at the threshold.

    Args:
        at: the fraction that fires, the more the greater the argument.
        found: where it is as wanted; left for a place beside it if the fraction jumps there.
    """
    reached, around = at(found), {place: at(place) for place in (found - apart, found + apart)}
    if all(abs(beside - reached) <= tolerance for beside in around.values()):
        return found
    return min(around, key=lambda place: (abs(around[place] - fraction), -place))
