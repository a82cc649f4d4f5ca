"""What a model computes in a step, followed symbolically: its stages, and what drives each of them.

A stage ends with a module that has a state, such as a neuron, and starts at the stages whose spikes
reach it. What lies between is the same function in every step; `Stage.parts` has it as a chain of
modules if it is one, `Stage.currents` as a module in any case.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor, fx, nn

SUPPORTED = (
    "Linear, Conv2d, Flatten, AvgPool2d, Dropout, Identity, single-spike neurons and first-spike pools"
)
INPUT = -1

FACTORIES = ("zeros", "ones", "empty", "full", "rand", "randn", "randint")
RANDOM = ("rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "bernoulli", "normal")
ZEROS = (torch.zeros_like, torch.zeros, "new_zeros")
# What changes neither a spike nor which gradient reaches it.
HARMLESS = ("contiguous", "float", "double", "to", "type", "type_as", "clone", "cpu", "cuda", torch.clone)
RECORDS = (torch.stack, torch.cat, torch.concat)
FLATTENING = (torch.flatten, torch.reshape, "flatten", "view", "reshape")
ELEMENTWISE = ("add", "sub", "mul", "truediv", "neg", "relu", "abs", "getitem", "size", "getattr")
SIZES = ("size", "dim", "numel", getattr, len)


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

    def output(self, module: nn.Module) -> int:
        """Which of the things that it returns is handed on: 0, or 1 for a read-out of the potential."""


@dataclass(frozen=True)
class Stage:
    """A module with a state, or the end of the model, and what drives it.

    Args:
        path, module: where and what it is; None for the end of a model behind its last neuron.
        sources: the stages whose output it takes, `INPUT` for the model's input.
        parts: paths and modules between its only source and it; None if it is no such chain.
        problem: why it is none.
        currents: the same as a module, from the outputs of the sources in a step.
    """

    path: str
    module: nn.Module | None
    sources: tuple[int, ...]
    parts: list[tuple[str, nn.Module]] | None
    problem: str
    currents: nn.Module


@dataclass(frozen=True)
class Traced:
    """The stages of a model in the order in which they run, and how its `forward` takes the input.

    Args:
        takes: "step" for the input of one step per call, "window" for [T, batch, *], "values" for the
            same values [batch, *] in every step.
        steps: number of steps of a loop of fixed length; None if there is none.
        returned: where in what `forward` returns the spikes, or the values of a read-out, are; None if
            they are not returned.
    """

    stages: list[Stage]
    takes: str
    steps: int | None
    returned: tuple[int, ...] | None


class _WindowProxy(fx.Proxy):
    """A proxy whose sizes are 2: two steps show how the modules of a loop over time follow each other."""

    tracer: _Tracer

    def __index__(self) -> int:
        self.tracer.sized = True
        return 2

    __len__ = __index__

    def __setitem__(self, index: Any, value: Any) -> None:
        """A record that is filled step by step, as in `out[step] = spk`."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class _Tracer(fx.Tracer):
    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.modules = modules
        self.sized = self.lifts = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m, self.modules)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        inner = self.modules.lifted(m)
        if inner is not None:
            self.lifts = True
            given = args[0] if isinstance(args[0], tuple) else args
            return inner(*given) if "state" in signature(inner.forward).parameters else inner(given[0])
        if unwrapped(m) is not m:
            return unwrapped(m)(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _WindowProxy(node, self)

    def iter(self, obj: Any) -> Iterator[Any]:
        self.sized = True
        return iter((obj[0], obj[1]))

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


def follow_forward(model: nn.Module, modules: Modules) -> Traced:
    """The stages of a model, through a loop over steps or without one.

    Raises:
        NoTimeMode: a forward that cannot be followed, or that does not do the same in every step.
    """
    name = type(model).__name__
    tracer = _Tracer(modules)
    concrete = {key: None for key, value in _defaults(model).items() if value is None}
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        graph = tracer.follow(model, concrete)
    except Exception as error:
        raise NoTimeMode(
            f"the forward of {name} cannot be followed ({type(error).__name__}: {error}). "
            "Put its modules into an nn.Sequential"
        ) from error
    finally:
        kept = _restore(before)
    if kept:
        raise NoTimeMode(f"{name} keeps {kept} of its own between steps, which has no time mode")
    return _Steps(model, graph, modules, tracer).traced()


def _defaults(model: nn.Module) -> dict[str, Any]:
    parameters = list(signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not Parameter.empty}


def _restore(before: dict[nn.Module, dict[str, Any]]) -> str:
    """Undo what the trace has assigned to attributes; the name of one that holds a value of the trace."""
    kept = ""
    for module, attributes in before.items():
        for key, value in list(vars(module).items()):
            if value is not attributes.get(key) and isinstance(value, fx.Proxy):
                kept = key
                vars(module).pop(key)
        vars(module).update(attributes)
    return kept


@dataclass(eq=False)
class _Place:
    """A stateful module where it stands in a model, and its calls step after step."""

    target: str
    module: nn.Module
    keeps: bool | None
    calls: list[fx.Node] = field(default_factory=list)


class _Steps:
    """Reads a graph of several steps as one step that is repeated."""

    def __init__(self, model: nn.Module, graph: fx.Graph, modules: Modules, tracer: _Tracer) -> None:
        self.model, self.modules, self.sized, self.lifts = model, modules, tracer.sized, tracer.lifts
        self.name = type(model).__name__
        self.nodes = list(graph.nodes)
        self.input = next((node for node in self.nodes if node.op == "placeholder"), None)
        self.places: list[_Place] = []
        self.place_of: dict[fx.Node, tuple[_Place, int]] = {}
        self.formulas: dict[tuple[fx.Node, int], str] = {}
        self.filled: dict[Any, list[fx.Node]] = {}
        for node in self.nodes:
            if node.target is operator.setitem and isinstance(node.args[2], fx.Node):
                self.filled.setdefault(node.args[0], []).append(node.args[2])
        self._find_places()
        self.loops = any(len(place.calls) > 1 for place in self.places)

    def error(self, message: str) -> NoTimeMode:
        return NoTimeMode(f"{self.name} {message}")

    # Places: which calls belong to the same neuron

    def _find_places(self) -> None:
        for node in self.nodes:
            if node.op != "call_module":
                continue
            target = str(node.target)
            module = self.model.get_submodule(target)
            if not self.modules.is_leaf(module):
                continue
            keeps = self.modules.keeps_its_state(module)
            state = None if keeps is None else _second(node)
            place = self._place(target, module, keeps, state)
            self.place_of[node] = place, len(place.calls)
            place.calls.append(node)

    def _place(self, target: str, module: nn.Module, keeps: bool | None, state: Any) -> _Place:
        known = [place for place in self.places if place.module is module]
        own = self._call_of(state)
        if own is not None:
            place, ordinal = own
            if place.module is not module or ordinal != len(place.calls) - 1:
                raise self.error(f"passes {target} a state that is not its own of the step before")
            return place
        if not self._is_start(state):
            where = "detaches or changes the state of" if self._uses_a_place(state) else "starts"
            rest = "" if self._uses_a_place(state) else " from a potential of its own"
            raise self.error(
                f"{where} {target}{rest}: a neuron on spike times starts from 0 and goes on from its own state"
            )
        if keeps and known:
            if state is not None:
                raise self.error(f"passes {target} a state that is not its own of the step before")
            return known[0]
        self.places.append(_Place(target, module, keeps))
        return self.places[-1]

    def _call_of(self, state: Any) -> tuple[_Place, int] | None:
        """The call that returned a state."""
        if isinstance(state, fx.Node) and state.target is operator.getitem and state.args[1] != 0:
            return self.place_of.get(state.args[0])  # type: ignore[arg-type]
        return None

    def _is_start(self, state: Any) -> bool:
        """Whether a state is the one to start from: none, or zeros."""
        if isinstance(state, tuple | list):
            return all(map(self._is_start, state))
        if isinstance(state, fx.Node):
            if state.op == "get_attr":
                state = _attribute(self.model, str(state.target))
            else:
                return state.target in ZEROS or (state.op == "placeholder" and state is not self.input)
        if isinstance(state, Tensor):
            return not isinstance(state, nn.Parameter) and not bool(state.detach().any())
        return state is None or (isinstance(state, int | float) and state == 0)

    def _uses_a_place(self, value: Any) -> bool:
        nodes, seen = [value] if isinstance(value, fx.Node) else [], set()
        while nodes:
            node = nodes.pop()
            if node in self.place_of:
                return True
            nodes += [one for one in node.all_input_nodes if one not in seen]
            seen.update(node.all_input_nodes)
        return False

    # Expressions: what drives a place in a step

    def _step_of_input(self, node: fx.Node) -> tuple[int, fx.Node] | None:
        """The step at which the input is taken, and the whole of it."""
        if node.target is not operator.getitem:
            return None
        of, index = node.args
        parts = index if isinstance(index, tuple) else (index,)
        whole = (slice(None), slice(None, None, None), Ellipsis)
        at = [part for part in parts if isinstance(part, int)]
        if len(at) != 1 or any(part not in whole for part in parts if not isinstance(part, int)):
            return None
        if not self.loops and not self.sized:
            return None
        return (at[0], of) if isinstance(of, fx.Node) and self._is_input(of) else None

    def _is_input(self, node: fx.Node) -> bool:
        """Whether a node is the model's input, at most flattened or otherwise the same."""
        while node is not self.input:
            same = node.target in (*HARMLESS, *FLATTENING, "detach", "unbind", torch.unbind, "requires_grad_")
            if not same or not isinstance(node.args[0], fx.Node):
                return False
            node = node.args[0]
        return True

    def _formula(self, value: Any, step: int) -> str:
        """How a value comes about from stages and the input of its step, so that equal steps look alike."""
        if isinstance(value, tuple | list):
            return f"({', '.join(self._formula(part, step) for part in value)})"
        if not isinstance(value, fx.Node):
            return repr(value)
        if (value, step) not in self.formulas:
            self.formulas[value, step] = self._formula_of(value, step)
        return self.formulas[value, step]

    def _formula_of(self, node: fx.Node, step: int) -> str:
        if node is self.input:
            return "x"
        if node in self.place_of:
            place, ordinal = self.place_of[node]
            return f"{self.places.index(place)}@{ordinal - step}"
        at = self._step_of_input(node)
        if at is not None:
            return f"x[{at[0] - step}]:{self._formula(at[1], step)}"
        arguments = [*node.args, *(f"{key}=" for key in node.kwargs), *node.kwargs.values()]
        return f"{node.target}({', '.join(self._formula(one, step) for one in arguments)})"

    def _check_steps(self, what: str, values: list[tuple[fx.Node, int]]) -> None:
        """The same has to happen in every step, to what the step before has not touched."""
        formulas = [self._formula(value, step) for value, step in values]
        for formula in formulas:
            self._check_order(what, formula)
        if len(set(formulas)) > 1:
            raise self.error(
                f"does not drive {what} in the same way in every step; "
                "if it stands in two places, it keeps one state for two places: use a neuron for each"
            )

    def _check_order(self, what: str, formula: str) -> None:
        if any(int(offset) for offset in re.findall(r"x\[(-?\d+)\]:", formula)):
            if all(len(place.calls) == 1 for place in self.places if place.target == what):
                raise self.error(f"starts {what} anew in every step: pass it the state it returned")
            raise self.error("does not take the steps of its input one after the other")
        if any(int(offset) for offset in re.findall(r"\d+@(-?\d+)", formula)):
            fresh = [p for p in self.places if p.target == what and p.keeps is False]
            if len(fresh) > 1:
                raise self.error(f"starts {what} anew in every step: pass it the state it returned")
            raise self.error(
                f"drives {what} with what happened in a step before: if it stands in two places, it keeps one state "
                "for two places, so use a neuron for each; if it is recurrent, the input of a neuron is no fixed "
                "sum of spikes, which has no time mode"
            )

    def traced(self) -> Traced:
        ends, values = self._returned()
        for place in self.places:
            driven = [(self._driver(call, place), step) for step, call in enumerate(place.calls)]
            self._check_steps(place.target, driven)
        order = self._needed(ends, values)
        numbers = {place: number for number, place in enumerate(order)}
        stages = [
            _Segment(self, self._driver(place.calls[0], place), numbers).stage(place) for place in order
        ]
        if values:
            self._check_steps("its output", [(value, self._step(value)) for value in values])
            stages.append(_Segment(self, values[0], numbers).stage(None))
        reads = [stage for stage in stages if INPUT in stage.sources]
        static = self.loops and any(self._formula_is_static(stage, order) for stage in reads)
        takes = "values" if static else "window" if self._takes_a_window() else "step"
        lengths = {len(place.calls) for place in order}
        steps = max(lengths, default=0) if self.loops and not self.sized else None
        last = order[-1] if order and not values else None
        return Traced(stages, takes, steps, self._where_returned(last))

    def _driver(self, call: fx.Node, place: _Place) -> fx.Node:
        given = next(iter((*call.args, *call.kwargs.values())), None)
        if not isinstance(given, fx.Node):
            raise self.error(f"runs {place.target} on {given!r}, which is not its input")
        return given

    def _step(self, value: fx.Node) -> int:
        """The step to which a value behind the last neuron belongs."""
        nodes, found, seen = [value], [0], set()
        while nodes:
            node = nodes.pop()
            if node in self.place_of:
                found.append(self.place_of[node][1])
                continue
            nodes += [one for one in node.all_input_nodes if one not in seen]
            seen.update(node.all_input_nodes)
        return max(found)

    def _formula_is_static(self, stage: Stage, order: list[_Place]) -> bool:
        place = next((p for p in order if p.module is stage.module), None)
        if place is None:
            return False
        formula = self._formula(self._driver(place.calls[0], place), 0)
        return "x[" not in formula

    def _takes_a_window(self) -> bool:
        windows = any(self.modules.takes_a_window(place.module) for place in self.places)
        return self.loops or self.lifts or windows

    # The output

    def _returned(self) -> tuple[list[_Place], list[fx.Node]]:
        """The places whose spikes or states are returned, and the values behind them, one for each step."""
        (output,) = (node for node in self.nodes if node.op == "output")
        ends: list[_Place] = []
        values: list[fx.Node] = []

        def look(value: Any) -> None:
            if isinstance(value, dict):
                value = list(value.values())
            if isinstance(value, tuple | list):
                for part in value:
                    look(part)
            if not isinstance(value, fx.Node):
                return
            if value in self.filled:
                look(self.filled[value])
            elif value in self.place_of:
                ends.append(self.place_of[value][0])
            elif value.target in RECORDS or value.target in HARMLESS:
                look(value.args[0])
            elif value.target is operator.getitem and value.args[0] in self.place_of:
                ends.append(self.place_of[value.args[0]][0])  # type: ignore[index]
            elif value.op != "placeholder":
                self._refuse_records(value)
                values.append(value)

        look(output.args[0])
        return list(dict.fromkeys(ends)), values

    def _where_returned(self, last: _Place | None) -> tuple[int, ...] | None:
        """Where the output of the last place, or of what stands behind it, is among the returned things."""

        def is_it(value: Any) -> bool:
            while isinstance(value, fx.Node) and (value.target in RECORDS or value.target in HARMLESS):
                value = value.args[0]
                value = value[0] if isinstance(value, tuple | list) else value
            if isinstance(value, fx.Node) and value in self.filled:
                value = self.filled[value][0]
            if not isinstance(value, fx.Node):
                return False
            if last is None:
                return value.op in ("call_module", "call_function", "call_method") and value not in self.place_of
            if value.target is operator.getitem and value.args[0] in last.calls:
                return bool(value.args[1] == self.modules.output(last.module))
            return value in last.calls

        (output,) = (node for node in self.nodes if node.op == "output")
        given = output.args[0]
        if not isinstance(given, tuple | list):
            return () if is_it(given) else None
        found = [number for number, value in enumerate(given) if is_it(value)]
        return (found[0],) if found else None

    def _refuse_records(self, value: fx.Node) -> None:
        """Refuse what is computed from all steps together."""
        waiting, seen = [value], {value}
        while waiting:
            node = waiting.pop()
            record = node in self.filled or (
                node.target in RECORDS and len({self._step(one) for one in node.all_input_nodes}) > 1
            )
            if record:
                raise self.error(
                    f"goes on computing with the record of its steps ({_label(value)}). "
                    "Do so with what the network returns"
                )
            if node not in self.place_of:
                waiting += [one for one in node.all_input_nodes if one not in seen]
                seen.update(node.all_input_nodes)

    def _needed(self, ends: list[_Place], values: list[fx.Node]) -> list[_Place]:
        """The places that reach the output, in the order in which they run."""
        reached: dict[_Place, set[_Place]] = {}

        def sources(node: fx.Node) -> set[_Place]:
            found, waiting, seen = set(), [node], {node}
            while waiting:
                one = waiting.pop()
                if one in self.place_of:
                    found.add(self.place_of[one][0])
                    continue
                waiting += [more for more in one.all_input_nodes if more not in seen]
                seen.update(one.all_input_nodes)
            return found

        def ancestors(place: _Place) -> set[_Place]:
            if place not in reached:
                reached[place] = set()
                direct = sources(self._driver(place.calls[0], place))
                reached[place] = direct.union(*(ancestors(one) for one in direct))
            return reached[place]

        for place in self.places:
            ancestors(place)
        if values:
            last = sources(values[0])
            needed = last.union(*(reached[place] for place in last))
            extra = [place for place in ends if place not in needed]
        else:
            final = [place for place in ends if not any(place in reached[other] for other in ends)]
            if not final:
                raise NoTimeMode(f"the model has no layers; a network on spike times is made of {SUPPORTED}")
            if len(final) > 1:
                both = " and ".join(place.target for place in final)
                raise self.error(f"returns the spikes of {both}. A network on spike times has one output")
            needed, extra = {final[0], *reached[final[0]]}, []
        if extra:
            raise self.error(f"returns {extra[0].target} beside its read-out: return one of them")
        return [place for place in self.places if place in needed]


class _Segment:
    """What lies between the sources of a stage and the stage, in one step."""

    def __init__(self, steps: _Steps, end: fx.Node, numbers: dict[_Place, int]) -> None:
        self.steps, self.end, self.numbers = steps, end, numbers
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.done: dict[Any, fx.Node] = {}
        self.sources: dict[int, fx.Node] = {}
        self.parts: list[tuple[str, nn.Module]] = []
        self.problem = ""
        self.tip: fx.Node | None = None

    def stage(self, place: _Place | None) -> Stage:
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
        )

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
        at = steps._step_of_input(node)
        if at is not None:
            return self._emit(at[1])
        if node.target is operator.getitem and node.args[0] in steps.place_of:
            place, _ = steps.place_of[node.args[0]]  # type: ignore[index]
            if node.args[1] != steps.modules.output(place.module):
                raise steps.error(
                    f"passes on the state of {place.target}; only its spikes have a time mode"
                )
            return self._emit(node.args[0])
        if node.target in HARMLESS or (
            node.target in ("detach", "unbind", torch.unbind, "requires_grad_")
            and isinstance(node.args[0], fx.Node)
            and steps._is_input(node.args[0])
        ):
            return self._emit(node.args[0])
        return self._call(node)

    def _call(self, node: fx.Node) -> fx.Node:
        given = self._emit(next(iter((*node.args, *node.kwargs.values())), None))
        path, module = self._module(node, on_spikes=given in self._spikes())
        if module is None:
            new = self._copy(node)
            self._no_chain(node)
        else:
            extra = [*node.args, *node.kwargs.values()][1:] if node.op == "call_module" else []
            key = path.replace(" ", "_").replace(".", "_") if node.op != "call_module" else path
            if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (2, -1):
                # Of a window, whose steps are taken one by one here.
                module = nn.Flatten()
            self.modules[key] = module
            new = self.graph.call_module(key, (given, *map(self._emit, extra)))
            if given is not self.tip or extra:
                self._no_chain(node)
            self.parts.append((path, module))
        self.tip = new
        return new

    def _copy(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            value = _attribute(self.steps.model, str(node.target))
            key = str(node.target)
            self.modules[key] = value
            return self.graph.get_attr(key)
        label = _label(node)
        if label in RANDOM:
            raise self.steps.error(f"adds random numbers ({label}) in every step, which has no time mode")
        if not self.steps.loops and self.steps._takes_a_window() and label not in ELEMENTWISE:
            raise self.steps.error(
                f"calls {label} on a window of steps, which has no time mode. Put it into a module under Lift, "
                f"or use modules: {SUPPORTED}"
            )
        kwargs = {key: self._emit(value) for key, value in node.kwargs.items()}
        return self.graph.create_node(node.op, node.target, self._emit(node.args), kwargs)

    def _no_chain(self, node: fx.Node) -> None:
        if self.problem or node.target in SIZES or node.op == "get_attr":
            return
        owner = self._owner(node)
        self.problem = (
            f"{owner} calls {_label(node)} between its modules, which has no time mode. "
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
        return node.name, _as_module(node, on_spikes)


def _as_module(node: fx.Node, on_spikes: bool) -> nn.Module | None:
    """The module that does what a function does."""
    called, rest = node.target, (*node.args[1:], *node.kwargs.values())
    options: dict[str, Any] = {f"{i}": value for i, value in enumerate(node.args[1:])} | dict(node.kwargs)
    if called in FLATTENING:
        return nn.Flatten() if _flattens(node) else None
    if any(isinstance(value, fx.Node) for value in rest):
        return None
    positional = [value for key, value in options.items() if key.isdigit()]
    named = {key: value for key, value in options.items() if not key.isdigit()}
    if called in (torch.relu, nn.functional.relu, "relu"):
        return nn.Identity() if on_spikes else nn.ReLU()
    if called is nn.functional.avg_pool2d:
        return nn.AvgPool2d(*positional, **named)
    if called is nn.functional.max_pool2d or _label(node) == "max_pool2d":
        return nn.MaxPool2d(*positional, **named)
    if called is nn.functional.dropout:
        training = named.pop("training", positional[1] if len(positional) > 1 else True)
        return nn.Dropout(named.get("p", positional[0] if positional else 0.5)) if training else nn.Identity()
    return None


def _flattens(node: fx.Node) -> bool:
    """Whether a reshape keeps the batch and flattens the rest of a sample, in a step or a window."""
    sizes = list(node.args[1:]) or list(node.kwargs.values())
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = list(sizes[0])
    if node.target in (torch.flatten, "flatten"):
        return sizes in ([1], [2], [1, -1], [2, -1])
    return len(sizes) in (2, 3) and -1 in (sizes[0], sizes[-1])


def _second(node: fx.Node) -> Any:
    given = [*node.args, *node.kwargs.values()][1:]
    return given[0] if given else None


def _label(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _attribute(model: nn.Module, target: str) -> Any:
    return operator.attrgetter(target)(model)
