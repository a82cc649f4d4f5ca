"""Symbolic tracing of models: the graph of what a `forward` calls, for two steps of a loop over time."""

from __future__ import annotations

import copy
import operator
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from inspect import Parameter, signature
from typing import Any, Protocol
from unittest import mock

import torch
from torch import fx, nn

SUPPORTED = (
    "Linear, Conv2d, Flatten, AvgPool2d, Dropout, Identity, single-spike neurons and first-spike pools"
)

FACTORIES = ("zeros", "ones", "empty", "full", "rand", "randn", "randint")
# Of a node: whether a container gives it one step of a window after the other.
IN_A_STEP = "in_a_step"
RANDOM = ("rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "bernoulli", "normal")


class NoTimeMode(TypeError):
    """A module that has no meaning on spike times; the message names its path, class and a replacement."""


class Modules(Protocol):
    """What the hosts say about the modules of a model."""

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether a module is taken as one, and ends a stage: a neuron, a pool with a state, a read-out."""

    def keeps_its_state(self, module: nn.Module) -> bool | None:
        """Whether a stateful module keeps its state or has to be given it; None for others."""

    def lifted(self, module: nn.Module) -> nn.Module | None:
        """The module that a container applies to every step."""

    def takes_a_window(self, module: nn.Module) -> bool:
        """Whether a stateful module takes all steps in one call."""

    def returns_its_state(self, module: nn.Module) -> bool:
        """Whether a stateful module returns its state beside its output."""

    def encodes(self, module: nn.Module) -> bool:
        """Whether a module makes spikes of values."""

    def output(self, module: nn.Module) -> int:
        """Which of the things that it returns is handed on: 0, or 1 for a read-out of the potential."""


class _WindowProxy(fx.Proxy):
    """A proxy all of whose sizes are the number of steps, so that loops over time are followed."""

    tracer: Tracer

    def __index__(self) -> int:
        is_size = self.node.op == "placeholder" or self.node.target in ("size", operator.getitem, getattr)
        if not is_size:
            raise TypeError(f"the number of steps is computed ({label_of(self.node)}) from a size")
        return len(self)

    def __len__(self) -> int:
        self.tracer.sized = True
        return self.tracer.steps

    def __setitem__(self, index: Any, value: Any) -> None:
        """A record that is filled step by step, as in `out[step] = spk`."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


# Plain values, which are what they are while a forward is followed.
FIXED = (bool, int, float, str, type(None))
# `a += b` changes a, wherever it is read; without these it would be `a = a + b`.
IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.ipow: operator.pow,
}


def _in_place(change: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: _WindowProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", change, (self, other), {})

    return method


for _change in IN_PLACE:
    setattr(_WindowProxy, f"__{_change.__name__}__", _in_place(_change))


class Tracer(fx.Tracer):
    def __init__(self, modules: Modules, steps: int) -> None:
        super().__init__()
        self.modules, self.steps = modules, steps
        self.sized = self.lifts = False
        self.inside = 0  # of how many containers that apply their module to every step
        self.mode = _mode()
        self.values: dict[str, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m, self.modules)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        inner = self.modules.lifted(m)
        if inner is not None:
            self.lifts = True
            args = signature(m.forward).bind(*args, **kwargs).args
            given = args[0] if isinstance(args[0], tuple) else args
            self.inside += 1
            try:
                return inner(*given) if "state" in signature(inner.forward).parameters else inner(given[0])
            finally:
                self.inside -= 1
        if unwrapped(m) is not m:
            return unwrapped(m)(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _mode() != self.mode:
            raise NoTimeMode(
                "it switches gradients or autocast for a part of what it computes; detach() it instead"
            )
        node = super().create_node(*args, **kwargs)
        node.meta[IN_A_STEP] = self.inside > 0
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _WindowProxy(node, self)

    def iter(self, obj: Any) -> Iterator[Any]:
        self.sized = True
        return (obj[step] for step in range(self.steps))

    def follow(self, model: nn.Module, concrete: dict[str, Any]) -> fx.Graph:
        """The graph of a model; tensors that it makes itself, to fill them or at random, are nodes of it."""
        with ExitStack() as stack:
            for name in FACTORIES:
                stack.enter_context(mock.patch.object(torch, name, self._factory(getattr(torch, name))))
            return self.trace(model, concrete)

    def _factory(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def factory(*args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            sizes = [part for one in given for part in (one if isinstance(one, tuple | list) else (one,))]
            if make.__name__ in RANDOM or any(isinstance(part, fx.Proxy) for part in sizes):
                return self.create_proxy("call_function", make, args, kwargs)
            return make(*args, **kwargs)

        return factory


def _mode() -> tuple[bool, bool]:
    """What a graph does not hold: whether there are gradients, and whether half precision."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def is_leaf(module: nn.Module, modules: Modules) -> bool:
    """Whether a module is taken as one, instead of being looked into."""
    of_torch = type(module).__module__.startswith("torch.nn.") and not isinstance(
        module, nn.Sequential | nn.DataParallel
    )
    of_ours = type(module).__module__.startswith(f"{__package__}.nn")
    return of_torch or of_ours or modules.is_leaf(module)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and `DataParallel`, which compute what it does."""
    while True:
        if isinstance(model, nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def hooks_of(module: nn.Module) -> list[Any]:
    """What is called with a module, apart from what torch prunes or normalises weights by."""
    return [
        *module._forward_hooks.values(),
        *(hook for hook in module._forward_pre_hooks.values() if not _computes_weights(hook)),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    ]


def _computes_weights(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")


def trace(model: nn.Module, modules: Modules, steps: int) -> tuple[fx.Graph, Tracer]:
    """The graph of a model, and what was seen on the way. What the trace assigns to attributes is undone.

    Raises:
        NoTimeMode: a forward that cannot be followed, or that keeps values of its own between steps.
    """
    name = type(model).__name__
    tracer = Tracer(modules, steps)
    try:
        graph, kept = followed(model, tracer)
    except NoTimeMode:
        raise
    except Exception as error:
        raise NoTimeMode(
            f"the forward of {name} cannot be followed ({type(error).__name__}: {error}). "
            "Put its modules into an nn.Sequential"
        ) from error
    if kept:
        raise NoTimeMode(f"{name} keeps {kept} of its own between steps, which has no time mode")
    return graph, tracer


def followed(model: nn.Module, tracer: Tracer, fixed: tuple[type, ...] = FIXED) -> tuple[fx.Graph, str]:
    """The graph of a model, and the name of an attribute in which it keeps a value of its own, or "".

    What the trace assigns to attributes is undone.
    """
    concrete = {key: value for key, value in _defaults(model).items() if isinstance(value, fixed)}
    before = {module: _attributes(module) for module in model.modules()}
    contents = _contents(model)
    try:
        graph = tracer.follow(model, concrete)
        changed = _counted(before) or _filled(contents)
        if changed and not _again(model, tracer, concrete, graph):
            raise NoTimeMode(
                f"what {type(model).__name__} does depends on {changed}, which it changes in every call"
            )
        _by_position(graph, model)
        for node in graph.nodes:
            if node.op == "get_attr":
                tracer.values[str(node.target)] = operator.attrgetter(str(node.target))(model)
    finally:
        kept = _restore(before)
        _refill(contents)
    return graph, kept


def _again(model: nn.Module, tracer: Tracer, concrete: dict[str, Any], graph: fx.Graph) -> bool:
    """Whether a model does the same once more, with what it has changed in the call before."""
    try:
        again = tracer.follow(model, concrete)
        again.lint()  # of what is not its own
    except Exception:
        return False
    if _written(again) != _written(graph):
        return False
    constants = (_constants(model, one) for one in (graph, again))
    return all(map(torch.equal, *constants))


def _by_position(graph: fx.Graph, model: nn.Module) -> None:
    """Write the arguments of all calls by position that have one: a call by keyword is no other call."""
    for node in graph.nodes:
        if not node.kwargs or node.op not in ("call_module", "call_function"):
            continue
        called = model.get_submodule(str(node.target)).forward if node.op == "call_module" else node.target
        try:
            bound = signature(called).bind(*node.args, **node.kwargs)
            node.args, node.kwargs = bound.args, bound.kwargs
        except (TypeError, ValueError):  # compiled functions have no signature
            first = [key for key in ("input", "tensors") if key in node.kwargs and not node.args]
            for key in first:
                node.args = (node.kwargs[key],)
                node.kwargs = {name: value for name, value in node.kwargs.items() if name != key}


def _defaults(model: nn.Module) -> dict[str, Any]:
    parameters = list(signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not Parameter.empty}


def _attributes(module: nn.Module) -> list[dict[str, Any]]:
    return [dict(kept) for kept in (vars(module), module._buffers, module._parameters)]


# What every module has is not what a model keeps.
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
CONTAINERS = list, dict, set, deque


def _contents(model: nn.Module) -> list[tuple[str, Any, Any]]:
    """The containers that modules have as attributes, and those inside of them, by name, and copies."""
    found: dict[int, tuple[str, Any, Any]] = {}

    def look(key: str, value: Any) -> None:
        if isinstance(value, CONTAINERS) and id(value) not in found:
            found[id(value)] = key, value, copy.copy(value)
            for one in value.values() if isinstance(value, dict) else value:
                look(key, one)

    for module in model.modules():
        for key, value in vars(module).items():
            if key not in OF_EVERY_MODULE:
                look(key, value)
    return list(found.values())


def _filled(contents: list[tuple[str, Any, Any]]) -> str:
    """The name of a container that the trace has changed, or ""."""
    for key, now, then in contents:
        old, new = (list(one.items() if isinstance(one, dict) else one) for one in (then, now))
        same = len(old) == len(new) and all(
            all(map(operator.is_, a, b)) if isinstance(now, dict) else a is b
            for a, b in zip(old, new, strict=True)
        )
        if not same:
            return key
    return ""


def _refill(contents: list[tuple[str, Any, Any]]) -> None:
    """Undo what the trace has put into containers."""
    for _, now, then in contents:
        now.clear()
        (now.extend if isinstance(now, list | deque) else now.update)(then)


def _counted(before: dict[nn.Module, list[dict[str, Any]]]) -> str:
    """The name of a number, or of another plain value, that the trace has changed, or ""."""
    for module, (then, *_) in before.items():
        for key, value in vars(module).items():
            if isinstance(value, FIXED) and isinstance(then.get(key, ...), FIXED) and value != then[key]:
                return key
    return ""


def _written(graph: fx.Graph) -> str:
    """A graph as text, apart from the numbers that its constants have."""
    return re.sub(r"_tensor_constant\d+", "constant", str(graph))


def _constants(model: nn.Module, graph: fx.Graph) -> list[torch.Tensor]:
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    return [getattr(model, name) for name in names if name.startswith("_tensor_constant")]


def _restore(before: dict[nn.Module, list[dict[str, Any]]]) -> str:
    """Undo what the trace has assigned to attributes; the name of one that holds more than zeros."""
    kept = ""
    for module, copies in before.items():
        kinds: list[dict[str, Any]] = [vars(module), module._buffers, module._parameters]
        for now, then in zip(kinds, copies, strict=True):
            for key, value in list(now.items()):
                new = value is not then.get(key)
                if (
                    new
                    and not key.startswith("_tensor_constant")
                    and (
                        isinstance(value, fx.Proxy) or (isinstance(value, torch.Tensor) and bool(value.any()))
                    )
                ):
                    kept = key
                if key not in then:
                    del now[key]
            now.update(then)
    return kept


def label_of(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))
