"""The chain of modules that a module's own `forward` runs its input through, followed symbolically."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

SUPPORTED = (
    "Linear, Conv2d, Flatten, AvgPool2d, Dropout, Identity, single-spike neurons and first-spike pools"
)
FLATTENING = (torch.flatten, torch.reshape, "flatten", "view", "reshape")


class NoTimeMode(TypeError):
    """A module that has no meaning on spike times; the message names its path, class and a replacement."""


class _WindowProxy(fx.Proxy):
    """A proxy whose sizes are 2: two steps show how the modules of a loop over time follow each other."""

    tracer: _Tracer

    def __index__(self) -> int:
        self.tracer.sized = True
        return 2

    __len__ = __index__


class _Tracer(fx.Tracer):
    def __init__(self, is_container: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_container = is_container
        self.sized = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_container(m) or not any(True for _ in m.children())

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _WindowProxy(node, self)

    def iter(self, obj: Any) -> Iterator[Any]:
        self.sized = True
        return iter((obj[0], obj[1]))


def follow_forward(
    model: nn.Module,
    is_container: Callable[[nn.Module], bool],
    keeps_its_state: Callable[[nn.Module], bool | None],
    t_max: int,
) -> list[tuple[str, nn.Module]]:
    """Paths and modules in the order of the data, through a loop over steps or without one.

    Args:
        model: a module with a `forward` of its own.
        is_container: whether a module runs its children one after the other, and so is taken as one.
        keeps_its_state: whether a stateful module keeps its state or has to be given it; None for others.
        t_max: number of steps, with which a loop of fixed length has to agree.

    Raises:
        NoTimeMode: a forward that cannot be followed, or is more than a chain of modules.
    """
    name = type(model).__name__
    tracer = _Tracer(is_container)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise NoTimeMode(
            f"the forward of {name} cannot be followed ({type(error).__name__}: {error}). "
            "Put its modules into an nn.Sequential"
        ) from error
    before: dict[str, str | None] = {}
    modules: dict[str, nn.Module] = {}
    seen: set[tuple[str, str]] = set()
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        target, argument = str(node.target), next(iter((*node.args, *node.kwargs.values())), None)
        if (target, _formula(argument)) in seen:
            raise NoTimeMode(
                f"{name} feeds the same input to {target} in every step. Encode it as spikes, for instance "
                "with the adapter's latency encoder, and index them by the step"
            )
        seen.add((target, _formula(argument)))
        calls.setdefault(target, []).append(node)
        source, flattened = _source(argument, name)
        modules[target] = model.get_submodule(target)
        if flattened:
            flatten = f"{target} input"
            modules[flatten], before[flatten], source = nn.Flatten(), source, flatten
        if before.setdefault(target, source) != source:
            raise NoTimeMode(f"{name} runs {target} on {before[target]} and on {source}: it is no chain")
    _check_steps(graph, name)
    steps = max(map(len, calls.values()), default=0)
    if steps > 1 and not tracer.sized and steps != t_max:
        raise NoTimeMode(f"{name} runs {steps} steps, but t_max is {t_max}")
    for target, nodes in calls.items():
        _check_state(target, nodes, keeps_its_state(modules[target]), name)
    order = _ordered(before, name)
    if order and order[-1] not in _returned(graph):
        raise NoTimeMode(f"{name} does not return the spikes of its last module, {order[-1]}")
    return [(target, modules[target]) for target in order]


def _check_steps(graph: fx.Graph, name: str) -> None:
    """The steps of the input have to be taken one after the other."""
    steps: dict[fx.Node, list[int]] = {}
    for node in graph.nodes:
        if node.target is not operator.getitem or node.args[0].op != "placeholder":
            continue
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        steps.setdefault(node.args[0], []).extend(part for part in index if isinstance(part, int))
    if any(taken != list(range(len(taken))) for taken in steps.values()):
        raise NoTimeMode(f"{name} does not take the steps of its input one after the other")


def _check_state(target: str, calls: list[fx.Node], keeps_its_state: bool | None, name: str) -> None:
    """A neuron has to go on from its own state, step after step."""
    if keeps_its_state is None:
        return
    for position, call in enumerate(calls):
        given = [*call.args, *call.kwargs.values()][1:]
        state = given[0] if given else None
        if state is None:
            if position and not keeps_its_state:
                raise NoTimeMode(f"{name} starts {target} anew in every step: pass it the state it returned")
        elif isinstance(state, fx.Node) and (position or state.target is operator.getitem):
            own = calls[position - 1] if position else None
            if state.target is not operator.getitem or state.args != (own, 1):
                raise NoTimeMode(f"{name} passes {target} a state that is not its own of the step before")


def _formula(node: Any) -> str:
    """How a value comes about from modules and inputs, so that equal computations look alike."""
    if isinstance(node, fx.Node) and node.op in ("call_function", "call_method"):
        return f"{node.target}({', '.join(map(_formula, node.args))})"
    return str(node)


def _source(argument: Any, name: str) -> tuple[str | None, bool]:
    """The module whose output this is, None for the model's input, and whether it is flattened."""
    flattened = False
    while isinstance(argument, fx.Node):
        if argument.op == "placeholder":
            return None, flattened
        if argument.op == "call_module":
            return str(argument.target), flattened
        called = argument.target
        if called is operator.getitem:
            of, index = argument.args
            if isinstance(of, fx.Node) and of.op == "call_module" and index != 0:
                raise NoTimeMode(
                    f"{name} passes on the state of {of.target}; only its spikes have a time mode"
                )
            parts = index if isinstance(index, tuple) else (index,)
            if any(isinstance(part, slice) and part != slice(None) for part in parts):
                raise NoTimeMode(f"{name} takes only {index} of its input. Pass what it needs")
        elif called in FLATTENING:
            flattened = True
        else:
            label = getattr(called, "__name__", str(called))
            raise NoTimeMode(
                f"{name} calls {label} between its modules, which has no time mode. "
                f"Use modules: {SUPPORTED}; FirstSpikePool2d behind a neuron for max_pool2d"
            )
        argument = argument.args[0]
    raise NoTimeMode(f"{name} runs a module on {argument!r}, which is not its input")


def _ordered(before: dict[str, str | None], name: str) -> list[str]:
    after: dict[str | None, str] = {}
    for target, source in before.items():
        if source in after:
            both = f"both {after[source]} and {target}"
            raise NoTimeMode(f"{name} runs {both} on {source or 'its input'}: it is no chain")
        after[source] = target
    order: list[str] = []
    while (order[-1] if order else None) in after:
        order.append(after[order[-1] if order else None])
    if len(order) < len(before):
        raise NoTimeMode(f"{name} is no chain of modules: {sorted(set(before) - set(order))} are not reached")
    return order


def _returned(graph: fx.Graph) -> set[str]:
    """The modules whose outputs the model returns."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    waiting, seen, found = [output], {output}, set()
    while waiting:
        node = waiting.pop()
        if node.op == "call_module":
            found.add(str(node.target))
            continue
        waiting += [source for source in node.all_input_nodes if source not in seen]
        seen.update(node.all_input_nodes)
    return found
