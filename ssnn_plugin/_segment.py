"""What lies between the sources of a stage and the stage, as a module and as a chain of modules."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from ._trace import IN_A_STEP, RANDOM, SUPPORTED, label_of

if TYPE_CHECKING:
    from ._steps import Place, Steps

INPUT = -1

# What changes neither a spike nor which gradient reaches it.
HARMLESS = ("contiguous", "float", "double", "to", "type", "type_as", "clone", "cpu", "cuda", torch.clone)
SAME_CURRENTS = ("contiguous", "clone", torch.clone)
RECORDS = (torch.stack, torch.cat, torch.concat)
FLATTENING = (torch.flatten, torch.reshape, "flatten", "view", "reshape")
ELEMENTWISE = ("add", "sub", "mul", "truediv", "neg", "relu", "abs", "getitem", "size", "getattr")
# Modules that take the second axis for channels.
CHANNELS_SECOND = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
SIZES = ("size", "dim", "numel", getattr, len)
# What a tensor knows besides its shape.
KINDS = (("dtype",), ("device",))


@dataclass(frozen=True)
class Stage:
    """A module with a state, or the end of the model, and what drives it.

    Args:
        path, module: where and what it is; None for the end of a model behind its last neuron.
        sources: the stages whose output it takes, `INPUT` for the model's input.
        parts: paths and modules between its only source and it; None if it is no such chain.
        problem: why it is none.
        currents: the same as a module, from the outputs of the sources in a step.
        given_potential: whether a decoder is given the potential of the neurons in front of it.
    """

    path: str
    module: nn.Module | None
    sources: tuple[int, ...]
    parts: list[tuple[str, nn.Module]] | None
    problem: str
    currents: nn.Module
    given_potential: bool = False
    follow: Captured | None = None


class Parts:
    """Modules and tensors by the paths at which a model has them, while the model is there.

    Copies and pickles have none, as nobody can reach their model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Callable[[], nn.Module | None] = weakref.ref(model)
        self.parts: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"model": _gone, "parts": {}}

    def add(self, path: str, part: Any) -> None:
        """Look after a part that stands there; others are made of functions."""
        if _part_at(self.model(), path) is part:
            self.parts[path] = part

    def at(self, path: str) -> Any:
        """What stands at a path now, the model itself at ""; None for nothing."""
        model = self.model()
        return _part_at(model, path) if path else model

    def replaced(self) -> list[tuple[str, Any]]:
        """The paths at which something else stands now, and what; what is gone is left out."""
        now = ((path, self.at(path)) for path in self.parts)
        return [(path, part) for path, part in now if part is not None and part is not self.parts[path]]


class Captured:
    """Keeps currents to the modules and tensors that the model has, where it had those captured.

    Args:
        currents: made of parts of a model.
        parts: those, by the path that they have in both.
    """

    def __init__(self, currents: nn.Module, parts: Parts) -> None:
        self.currents, self.parts = currents, parts

    def __call__(self) -> None:
        for path, now in self.parts.replaced():
            self.parts.add(path, now)
            parent, _, name = path.rpartition(".")
            owner = self.currents.get_submodule(parent)
            delattr(owner, name)
            if isinstance(now, Tensor) and not isinstance(now, nn.Parameter):
                owner.register_buffer(name, now)
            else:
                setattr(owner, name, now)


def _gone() -> None:
    """In the place of a reference to a model, in copies."""


def _part_at(model: nn.Module | None, path: str) -> Any:
    """What stands at a path of a model; None for nothing."""
    if model is None:
        return None
    parent, _, name = path.rpartition(".")
    try:
        return getattr(model.get_submodule(parent), name, None)
    except AttributeError:
        return None


class Segment:
    """What lies between the sources of a stage and the stage, in one step."""

    def __init__(self, steps: Steps, end: fx.Node, numbers: dict[Place, int]) -> None:
        self.steps, self.end, self.numbers = steps, end, numbers
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.done: dict[Any, fx.Node] = {}
        self.sources: dict[int, fx.Node] = {}
        self.parts: list[tuple[str, nn.Module]] = []
        self.problem = ""
        self.in_step = False
        self.tip: fx.Node | None = None

    def stage(self, place: Place | None) -> Stage:
        self.graph.output(self._emit(self.end))
        if not self.sources:
            raise self.steps.error("drives a neuron with what is not its input")
        self._order_placeholders()
        currents = fx.GraphModule(self.modules, self.graph)
        chain = not self.problem and len(self.sources) == 1
        if len(self.sources) > 1 and not self.problem:
            self.problem = f"{self.steps.name} adds up several stages: it is no chain of modules"
        return Stage(
            place.target if place else "",
            place.module if place else None,
            tuple(self.sources),
            self.parts if chain else None,
            self.problem,
            currents,
            place is not None and self.steps.takes_a_potential(place),
            Captured(currents, self._captured()),
        )

    def _captured(self) -> Parts:
        parts = Parts(self.steps.model)
        for path, part in self.modules.items():
            parts.add(path, part)
        return parts

    def _order_placeholders(self) -> None:
        for node in reversed(self.sources.values()):
            first = next(iter(self.graph.nodes))
            if node is not first:
                first.prepend(node)

    def _source(self, number: int) -> fx.Node:
        if number not in self.sources:
            self.sources[number] = self.graph.placeholder(f"source{len(self.sources)}")
            self.tip = self.sources[number]
        return self.sources[number]

    def _emit(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(self._emit, value))
        if isinstance(value, slice):
            return slice(self._emit(value.start), self._emit(value.stop), self._emit(value.step))
        if not isinstance(value, fx.Node):
            return value
        if value is self.steps.input and self.steps.loops and not self.steps.static and not self.in_step:
            raise self.steps.error(
                "takes its input as a whole beside the steps of it, which has no time mode"
            )
        if value not in self.done:
            self.done[value] = self._emit_node(value)
        return self.done[value]

    def _emit_node(self, node: fx.Node) -> fx.Node:
        steps = self.steps
        if node is steps.input:
            return self._source(INPUT)
        if node in steps.place_of:
            return self._source(self.numbers[steps.place_of[node][0]])
        if node.op == "placeholder":
            raise steps.error(f"computes with its argument {node.target!r}. Give it a fixed value")
        at = steps.step_of_input(node)
        if at is not None:
            self.in_step = True
            whole: fx.Node = self._emit(at[1])
            self.in_step = False
            return whole
        place = steps.unpacked(node)
        if place is not None:
            if node.args[1] != steps.modules.output(place.module):
                raise steps.wrong_output("passes on", place)
            spikes: fx.Node = self._emit(node.args[0])
            return spikes
        if self._changes_nothing(node):
            same: fx.Node = self._emit(node.args[0])
            return same
        return self._call(node)

    def _changes_nothing(self, node: fx.Node) -> bool:
        """Whether an operation leaves spikes as they are, or currents."""
        of = node.args[0] if node.args else None
        if not isinstance(of, fx.Node):
            return False
        if node.target in ("detach", "unbind", torch.unbind, "requires_grad_"):
            return self.steps.is_input(of) or self.steps.step_of_input(of) is not None
        if node.target not in HARMLESS:
            return False
        # A cast rounds currents, and values that are the same in every step.
        given = self._emit(of)
        spikes = self._spikes()
        if not self.steps.static and INPUT in self.sources:
            spikes.append(self.sources[INPUT])
        return node.target in SAME_CURRENTS or given in spikes

    def _call(self, node: fx.Node) -> fx.Node:
        given = self._emit(next(iter((*node.args, *node.kwargs.values())), None))
        path, module = self._module(node, on_spikes=given in self._spikes())
        if module is None:
            new = self._copy(node)
            self._no_chain(node)
        else:
            extra = [*node.args, *node.kwargs.values()][1:] if node.op == "call_module" else []
            key = path if node.op == "call_module" else self._free(path.replace(" ", "_").replace(".", "_"))
            if node.op == "call_module" and self._of_a_window(node) and not node.meta.get(IN_A_STEP):
                module = self._in_a_step(path, module)
            elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (2, -1):
                self._no_chain(node)
            self.modules[key] = module
            new = self.graph.call_module(key, (given, *map(self._emit, extra)))
            if given is not self.tip or extra:
                self._no_chain(node)
            self.parts.append((path, module))
        self.tip = new
        return new

    def _in_a_step(self, path: str, module: nn.Module) -> nn.Module:
        """A module on a window [T, batch, *] as one on a step [batch, *] of it."""
        counted = {name: getattr(module, name, None) for name in ("dim", "start_dim", "end_dim")}
        axes = {name: axis for name, axis in counted.items() if isinstance(axis, int) and axis >= 0}
        if isinstance(module, CHANNELS_SECOND) or any(axis < 2 for axis in axes.values()):
            raise self.steps.error(
                f"gives {path} ({type(module).__name__}) a window of steps, of which it takes the axis of "
                "time or of the batch for another. Put it under Lift, or count axes from the end"
            )
        if not axes:
            return module
        module = copy.copy(module)
        for name, axis in axes.items():
            setattr(module, name, axis - 1)
        return module

    def _free(self, key: str) -> str:
        """A name like this that no module of the model has."""
        taken = dict(self.steps.model.named_modules())
        while key in taken:
            key += "_"
        return key

    def _copy(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            value = self.steps.values[str(node.target)]
            key = str(node.target)
            self.modules[key] = value
            return self.graph.get_attr(key)
        label = label_of(node)
        if self.in_step and node.target in FLATTENING and not _same_from_the_end(node):
            raise self.steps.error(
                f"calls {label} on its whole window of steps, with axes or sizes of a window. Do so with a "
                "step of it, as in x[step].reshape(...)"
            )
        if node in self.steps.filled:
            raise self.steps.error("goes on computing with a record of its steps, which has no time mode")
        if label == "getitem" and not self.steps.loops and self._picks_of_the_input(node):
            raise self.steps.error(f"takes only {node.args[1]} of its input. Pass what it needs")
        if label in RANDOM:
            raise self.steps.error(f"adds random numbers ({label}) in every step, which has no time mode")
        of_windows = self._of_a_window(node) and not self.in_step
        if of_windows and label not in ELEMENTWISE:
            raise self.steps.error(
                f"calls {label} on a window of steps, which has no time mode. Put it into a module under "
                f"Lift, or use modules: {SUPPORTED}"
            )
        if of_windows:
            return self._copy_of_a_window(node, label)
        kwargs = {key: self._emit(value) for key, value in node.kwargs.items()}
        return self.graph.create_node(node.op, node.target, self._emit(node.args), kwargs)

    def _copy_of_a_window(self, node: fx.Node, label: str) -> fx.Node:
        """An operation on [T, *] as one on [*]."""
        of, *rest = node.args
        if _counts_axes(node, label):
            raise self.steps.error(
                "computes with the size of a window of steps, which has no time mode. Put it into a "
                "module under Lift, or count sizes from the end, as in x.shape[-1]"
            )
        if label == "getitem" and not _is_size(of):
            rest = [self._index_in_a_step(rest[0])]
        given = [self._emit(one) for one in (of, *rest)]
        whole = next((one for one in given if isinstance(one, fx.Node) and one.op != "get_attr"), None)
        given = [
            self.graph.call_function(of_a_step, (one, whole))
            if whole is not None and isinstance(one, fx.Node) and one.op == "get_attr"
            else one
            for one in given
        ]
        return self.graph.create_node(node.op, node.target, tuple(given), dict(node.kwargs))

    def _index_in_a_step(self, index: Any) -> Any:
        """An index of [T, *] as one of [*]."""
        parts = index if isinstance(index, tuple) else (index,)
        if parts[0] is Ellipsis:
            return index
        if parts[0] != slice(None):
            raise self.steps.error(
                f"takes a part of a window of steps ({index}), which has no time mode. Pass what it needs"
            )
        return parts[1:] or Ellipsis

    def _picks_of_the_input(self, node: fx.Node) -> bool:
        """Whether an index may be a step, or a sample, of the input."""
        of, index = node.args
        parts = index if isinstance(index, tuple) else (index,)
        return isinstance(of, fx.Node) and self.steps.is_input(of) and isinstance(parts[0], int)

    def _no_chain(self, node: fx.Node) -> None:
        if self.problem or node.target in SIZES or node.op == "get_attr":
            return
        owner = self._owner(node)
        self.problem = (
            f"{owner} calls {label_of(node)} between its modules, which has no time mode. "
            f"Use modules: {SUPPORTED}; FirstSpikePool2d behind a neuron for max_pool2d"
        )

    def _owner(self, node: fx.Node) -> str:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        kind = stack[-1][1] if stack else None
        return kind.__name__ if isinstance(kind, type) else self.steps.name

    def _spikes(self) -> list[fx.Node]:
        return [node for number, node in self.sources.items() if number != INPUT]

    def _module(self, node: fx.Node, on_spikes: bool) -> tuple[str, nn.Module | None]:
        """A call as a module; None if it has no such form."""
        if node.op == "call_module":
            return str(node.target), self.steps.model.get_submodule(str(node.target))
        if node.op == "get_attr" or not node.args:
            return node.name, None
        if node.target is nn.functional.dropout and _drops(node) and not self.steps.model.training:
            raise self.steps.error("drops values in evaluation mode too: give dropout training=self.training")
        if node.target is nn.functional.dropout and not _drops(node) and self.steps.model.training:
            return node.name, nn.Identity()  # of a module that is frozen in evaluation mode
        return node.name, _as_module(node, on_spikes, self._of_a_window(node))

    def _of_a_window(self, node: fx.Node) -> bool:
        """Whether what is computed here has the axis of time in front."""
        window = self.steps.takes_a_window() and not self.steps.loops and not self.steps.is_of_values(node)
        return self.in_step or window


def _as_module(node: fx.Node, on_spikes: bool, of_a_window: bool) -> nn.Module | None:
    """The module that does what a function does."""
    called, rest = node.target, (*node.args[1:], *node.kwargs.values())
    options: dict[str, Any] = {f"{i}": value for i, value in enumerate(node.args[1:])} | dict(node.kwargs)
    if called in FLATTENING:
        return nn.Flatten() if _flattens(node, of_a_window) else None
    if any(isinstance(value, fx.Node) for value in rest):
        return None
    positional = [value for key, value in options.items() if key.isdigit()]
    named = {key: value for key, value in options.items() if not key.isdigit()}
    if called in (torch.relu, nn.functional.relu, "relu"):
        return nn.Identity() if on_spikes else nn.ReLU()
    if called is nn.functional.avg_pool2d:
        return nn.AvgPool2d(*positional, **named)
    if called is nn.functional.max_pool2d or label_of(node) == "max_pool2d":
        return nn.MaxPool2d(*positional, **named)
    if called is nn.functional.dropout:
        return nn.Dropout(named.get("p", positional[0] if positional else 0.5))
    return None


def _drops(node: fx.Node) -> bool:
    """Whether a call of `dropout` was told to."""
    return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def of_a_step(value: Tensor, currents: Tensor) -> Tensor:
    """A tensor that goes with a window [T, batch, *] as one that goes with a step [batch, *] of it."""
    beyond = max(0, value.ndim - currents.ndim)
    if any(size > 1 for size in value.shape[:beyond]):
        raise ValueError(
            f"a model on spike times must not compute with a tensor that differs from step to step, got one "
            f"of shape {list(value.shape)} with a window whose steps have the shape {list(currents.shape)}"
        )
    return value.reshape(value.shape[beyond:])


def _is_size(value: Any) -> bool:
    """Whether this is a whole shape."""
    return isinstance(value, fx.Node) and (value.target, *value.args[1:]) in (("size",), (getattr, "shape"))


def _counts_axes(node: fx.Node, label: str) -> bool:
    """Whether an operation gives something else for a window than for a step of it."""
    rest = node.args[1:]
    if label == "getitem":
        return _is_size(node.args[0]) and not _from_the_end(rest)
    if _is_size(node):
        return not all(_from_the_end(user.args[1:]) for user in node.users)
    return (label == "size" and not _from_the_end(rest)) or (label == "getattr" and rest not in KINDS)


def _from_the_end(index: Any) -> bool:
    """Whether a size is counted from the end, where those of a window and of its steps agree."""
    return len(index) == 1 and isinstance(index[0], int) and index[0] < 0


def _same_from_the_end(node: fx.Node) -> bool:
    """Whether a flattening counts its axes from the end, where those of a window and of its steps agree."""
    axes = _flattened_axes(node)
    return axes is not None and all(isinstance(axis, int) and axis < 0 for axis in axes)


def _flattened_axes(node: fx.Node) -> tuple[Any, Any] | None:
    """The first and the last axis that `flatten` joins; None for what is none."""
    if node.target not in (torch.flatten, "flatten"):
        return None
    names = zip(("start_dim", "end_dim"), node.args[1:], strict=False)
    axes: dict[str, Any] = {"start_dim": 0, "end_dim": -1, **dict(names), **node.kwargs}
    return axes["start_dim"], axes["end_dim"]


def _flattens(node: fx.Node, of_a_window: bool) -> bool:
    """Whether a reshape keeps the batch and flattens the rest of a sample, in a step or a window."""
    axes = _flattened_axes(node)
    if axes is not None:
        return axes in ([(1, -1), (2, -1)] if of_a_window else [(1, -1)])
    sizes = list(node.args[1:]) or list(node.kwargs.values())
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = list(sizes[0])
    return (len(sizes) == 2 or (of_a_window and len(sizes) == 3)) and -1 in (sizes[0], sizes[-1])
