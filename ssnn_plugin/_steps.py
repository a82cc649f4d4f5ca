"""What a model computes in a step: its stages, and what drives each of them.

A stage ends with a module that has a state, such as a neuron, and starts at the stages whose spikes
reach it. What lies between is the same function in every step; `Stage.parts` has it as a chain of
modules if it is one, `Stage.currents` as a module in any case.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._segment import FLATTENING, HARMLESS, RECORDS, SIZES, Segment, Stage
from ._trace import IN_PLACE, SUPPORTED, Modules, NoTimeMode, Tracer, label_of, trace

# What gives a tensor another name, or another shape.
NAMES = (*FLATTENING, "detach", "view_as", "squeeze", "unsqueeze", torch.squeeze, torch.unsqueeze)
RECORD_MAKERS = (
    *("zeros", "ones", "empty", "full", "zeros_like", "ones_like", "empty_like"),
    *("new_zeros", "new_ones", "new_empty"),
)
ZEROS = (torch.zeros_like, torch.zeros, "new_zeros")


@dataclass(frozen=True)
class Traced:
    """The stages of a model in the order in which they run, and how its `forward` takes the input.

    Args:
        takes: "step" for the input of one step per call, "window" for [T, batch, *], "values" for values
            [batch, *], which are encoded or the same in every step.
        static: whether they are the same in every step.
        steps: number of steps of a loop of fixed length; None if there is none.
        runs: how many steps a loop ran, of whatever length; None if there is none.
        returned: where in what `forward` returns the spikes, or the values of a read-out, are; None if
            they are not returned.
        output: which part of it they are where the last module returns several.
        time_axis: along which axis of its input a loop takes the steps.
        record_axis: along which axis of what it returns they are joined.
    """

    stages: list[Stage]
    takes: str
    static: bool
    steps: int | None
    runs: int | None
    returned: tuple[int, ...] | None
    output: int
    time_axis: int = 0
    record_axis: int = 0


def follow_forward(model: nn.Module, modules: Modules, steps: int) -> Traced:
    """The stages of a model, through a loop over steps or without one.

    Args:
        model: a module.
        modules: what the hosts say about its modules.
        steps: how often a loop over the input runs.

    Raises:
        NoTimeMode: a forward that cannot be followed, or that does not do the same in every step.
    """
    graph, tracer = trace(model, modules, steps)
    return Steps(model, graph, modules, tracer).traced()


@dataclass(eq=False)
class Place:
    """A stateful module where it stands in a model, and its calls step after step."""

    target: str
    module: nn.Module
    keeps: bool | None
    calls: list[fx.Node] = field(default_factory=list)


class Steps:
    """Reads a graph of several steps as one step that is repeated."""

    def __init__(self, model: nn.Module, graph: fx.Graph, modules: Modules, tracer: Tracer) -> None:
        self.model, self.modules, self.sized, self.lifts = model, modules, tracer.sized, tracer.lifts
        self.name, self.values = type(model).__name__, tracer.values
        self.nodes = list(graph.nodes)
        self.input = next((node for node in self.nodes if node.op == "placeholder"), None)
        self.places: list[Place] = []
        self.place_of: dict[fx.Node, tuple[Place, int]] = {}
        self.formulas: dict[tuple[fx.Node, int], str] = {}
        self.filled: dict[Any, list[fx.Node]] = {}
        self.handed_on: set[Place] = set()
        self.axes: set[int] = set()
        self._find_places()
        self._find_records()
        self.loops = any(len(place.calls) > 1 for place in self.places)
        # Without a step of it, a loop takes the same input in every step.
        self.static = self.loops and not any(self.step_of_input(node) for node in self.nodes)
        self.encodes = any(self.modules.encodes(place.module) for place in self.places)

    def error(self, message: str) -> NoTimeMode:
        return NoTimeMode(f"{self.name} {message}")

    def wrong_output(self, what: str, place: Place) -> NoTimeMode:
        """What to say where a model uses the state of a neuron, or the spikes of a read-out."""
        if self.modules.output(place.module):
            return self.error(f"{what} the spikes of {place.target}, a read-out: use its potential")
        return self.error(f"{what} the state of {place.target}; only its spikes have a time mode")

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
            states = [] if keeps is None else [*node.args, *node.kwargs.values()][1:]
            place = self._place(target, module, keeps, states)
            self.place_of[node] = place, len(place.calls)
            place.calls.append(node)

    def _find_records(self) -> None:
        """Tensors that are filled step after step. Nothing else may be changed in place."""
        order = {node: number for number, node in enumerate(self.nodes)}
        for node in self.nodes:
            overwritten = self._overwritten(node)
            if overwritten is not None:
                self._refuse_to_be_read_again(overwritten, node, order)
            node.target = IN_PLACE.get(node.target, node.target)
            if (
                node.op == "call_method"
                and re.fullmatch(r"[a-z]\w*_", node.target)
                and node.target != "requires_grad_"
            ):
                raise self.error(
                    f"changes a tensor in place ({node.target}). Use the form that returns a new one"
                )
            if node.target is not operator.setitem:
                continue
            record, index, value = node.args
            parts = index if isinstance(index, tuple) else (index,)
            values = self.filled.setdefault(record, [])
            if label_of(record) not in RECORD_MAKERS or not isinstance(value, fx.Node):
                raise self.error(
                    "assigns to parts of a tensor, which is followed for records of the steps only"
                )
            if [part for part in parts if isinstance(part, int)] != [len(values)]:
                raise self.error("does not fill its record step after step")
            values.append(value)

    def _overwritten(self, node: fx.Node) -> fx.Node | None:
        """What an operation writes its result to, if it does that."""
        if node.op == "call_module":
            inplace = getattr(self.model.get_submodule(str(node.target)), "inplace", False)
        else:
            inplace = node.target in IN_PLACE or (node.op == "call_function" and _writes(node))
        given = node.args[0] if node.args else None
        return given if inplace and isinstance(given, fx.Node) else None

    def _refuse_to_be_read_again(self, written: fx.Node, by: fx.Node, order: dict[fx.Node, int]) -> None:
        """A graph keeps what a tensor was before it was overwritten, a model does not."""
        if any(order[user] > order[by] for user in self._users_of_all_names(written)):
            raise self.error(
                f"overwrites {written} ({label_of(by)}), which it reads again. Use the form that returns a "
                "new one, as a = a + b"
            )

    def _users_of_all_names(self, node: fx.Node) -> set[fx.Node]:
        """What reads the values of a tensor, also where these have another name, shape or axes."""
        while self._is_a_name(node):
            node = node.args[0]  # type: ignore[assignment]
        names, users = [node], set()
        while names:
            for user in names.pop().users:
                if self._is_a_name(user):
                    names.append(user)
                if user.target not in SIZES:
                    users.add(user)
        return users

    def _is_a_name(self, node: fx.Node) -> bool:
        """Whether a node is its argument, in another shape at most."""
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            drops = isinstance(module, nn.Dropout) and module.training
            return isinstance(module, nn.Identity | nn.Flatten | nn.Dropout) and not drops
        return node.target in NAMES

    def _place(self, target: str, module: nn.Module, keeps: bool | None, states: list[Any]) -> Place:
        own = [self._call_of(state) for state in states]
        if any(own):
            for state, call in zip(states, own, strict=True):
                if call is None:
                    raise self._no_start(target, state)
            place, ordinal, _ = own[0]  # type: ignore[misc]
            in_order = [(place, ordinal, number) for number in range(1, len(states) + 1)]
            if place.module is not module or ordinal != len(place.calls) - 1 or own != in_order:
                raise self._not_its_own(target)
            return place
        for state in states:
            if not self._is_start(state):
                raise self._no_start(target, state)
        known = [place for place in self.places if place.module is module]
        if keeps and known:
            if any(state is not None for state in states):
                raise self._not_its_own(target)
            return known[0]
        self.places.append(Place(target, module, keeps))
        return self.places[-1]

    def _not_its_own(self, target: str) -> NoTimeMode:
        return self.error(f"passes {target} a state that is not its own of the step before")

    def _no_start(self, target: str, state: Any) -> NoTimeMode:
        where = "detaches or changes the state of" if self._uses_a_place(state) else "starts"
        rest = "" if self._uses_a_place(state) else " from a potential of its own"
        return self.error(
            f"{where} {target}{rest}: a neuron on spike times starts from 0 and goes on from its own state"
        )

    def _call_of(self, state: Any) -> tuple[Place, int, int] | None:
        """The call that returned a state, and where among its outputs."""
        if isinstance(state, fx.Node) and self.unpacked(state) and state.args[1] != 0:
            place, ordinal = self.place_of[state.args[0]]  # type: ignore[index]
            return place, ordinal, int(state.args[1])  # type: ignore[arg-type]
        return None

    def unpacked(self, node: fx.Node) -> Place | None:
        """The place of whose outputs this is one, if it returns its state beside its spikes."""
        if node.target is not operator.getitem or node.args[0] not in self.place_of:
            return None
        place, _ = self.place_of[node.args[0]]  # type: ignore[index]
        return place if self.modules.returns_its_state(place.module) else None

    def _is_start(self, state: Any) -> bool:
        """Whether a state is the one to start from: none, or zeros."""
        if isinstance(state, tuple | list):
            return all(map(self._is_start, state))
        while isinstance(state, fx.Node) and state.target in HARMLESS:
            state = state.args[0]
        if isinstance(state, fx.Node):
            if state.op == "get_attr":
                state = self.values[str(state.target)]
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

    def step_of_input(self, node: fx.Node) -> tuple[int, fx.Node] | None:
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
        if not isinstance(of, fx.Node) or not self.is_input(of):
            return None
        axis = _axis(of) if of.target in ("unbind", torch.unbind) else parts.index(at[0])
        self.axes.add(axis - len(parts) if Ellipsis in parts[:axis] else axis)
        return at[0], of

    def is_input(self, node: fx.Node) -> bool:
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
        at = self.step_of_input(node)
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
            maker = self._made_of_the_input(values[0][0])
            if maker is not None:
                raise self.error(
                    f"takes its steps from what {label_of(maker)} makes of its input: let forward take them "
                    "from the input itself"
                )
            raise self.error(
                f"does not drive {what} in the same way in every step; "
                "if it stands in two places, it keeps one state for two places: use a neuron for each"
            )

    def _made_of_the_input(self, value: fx.Node) -> fx.Node | None:
        """The call that makes something of the whole input of which a value takes a step."""
        waiting = [value]
        while waiting:
            node = waiting.pop()
            of = node.args[0] if node.target is operator.getitem and self.unpacked(node) is None else None
            if (
                isinstance(of, fx.Node)
                and not self.is_input(of)
                and any(map(self.is_input, of.all_input_nodes))
            ):
                return of
            waiting += [] if node in self.place_of else node.all_input_nodes
        return None

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
                f"drives {what} with what happened in a step before: if it stands in two places, it keeps "
                "one state for two places, so use a neuron for each; if it is recurrent, the input of a "
                "neuron is no fixed sum of spikes, which has no time mode"
            )

    def traced(self) -> Traced:
        ends, values = self._returned()
        for place in self.places:
            driven = [(self._driver(call, place), step) for step, call in enumerate(place.calls)]
            if self.loops and (driven[0][0] in self.filled or driven[0][0].target in RECORDS):
                raise self.error(
                    f"passes the record of its steps to {place.target}. Do so with what the network returns"
                )
            self._check_steps(place.target, driven)
        order = self._needed(ends, values)
        numbers = {place: number for number, place in enumerate(order)}
        stages = [Segment(self, self._driver(place.calls[0], place), numbers).stage(place) for place in order]
        if values:
            of_steps = [self._step(value) for value in values]
            self._check_steps("its output", list(zip(values, of_steps, strict=True)))
            self._check_all_or_last(list(dict.fromkeys(of_steps)))
            stages.append(Segment(self, values[0], numbers).stage(None))
        encodes = any(self.modules.encodes(place.module) for place in order)
        takes = "values" if self.static or encodes else "window" if self.takes_a_window() else "step"
        lengths = {len(place.calls) for place in order}
        if self.loops and len(lengths) > 1:
            raise self.error(f"runs its neurons for different numbers of steps ({sorted(lengths)})")
        runs = max(lengths, default=0) if self.loops else None
        steps = None if self.sized else runs
        last = order[-1] if order and not values else None
        if last and last not in self.handed_on:
            raise self.wrong_output("returns only", last)
        output = self.modules.output(last.module) if last else 0
        axis = self.axes.pop() if len(self.axes) == 1 else 0
        where = self._where_returned(last)
        record = self._record_axis(where)
        return Traced(stages, takes, self.static, steps, runs, where, output, axis, record)

    def _driver(self, call: fx.Node, place: Place) -> fx.Node:
        given = next(iter((*call.args, *call.kwargs.values())), None)
        if not isinstance(given, fx.Node):
            raise self.error(f"runs {place.target} on {given!r}, which is not its input")
        return given

    def takes_a_potential(self, place: Place) -> bool:
        """Whether a module without a state, such as a decoder, is given that of a neuron."""
        call = place.calls[0]
        beside = [*call.args, *call.kwargs.values()][1:]
        return place.keeps is None and any(map(self._uses_a_place, beside))

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

    def is_of_values(self, node: fx.Node) -> bool:
        """Whether something is computed of the values that an encoder takes, which have no axis of time."""
        return self.encodes and not self._uses_a_place(node)

    def takes_a_window(self) -> bool:
        windows = any(self.modules.takes_a_window(place.module) for place in self.places)
        return self.loops or self.lifts or windows

    # The output

    def _returned(self) -> tuple[list[Place], list[fx.Node]]:
        """The places whose spikes or states are returned, and the values behind them, one for each step."""
        (output,) = (node for node in self.nodes if node.op == "output")
        ends: list[Place] = []
        values: list[fx.Node] = []

        def look(value: Any) -> None:
            self._check_record(value)
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
                self.handed_on.add(ends[-1])
            elif value.target in RECORDS or value.target in HARMLESS:
                self._check_record(value.args[0], joined=value.target in RECORDS)
                look(value.args[0])
            elif (place := self.unpacked(value)) is not None:
                ends.append(place)
                if value.args[1] == self.modules.output(place.module):
                    self.handed_on.add(place)
            elif value.op != "placeholder":
                self._refuse_records(value)
                values.append(value)

        look(output.args[0])
        return list(dict.fromkeys(ends)), values

    def _check_record(self, value: Any, joined: bool = False) -> None:
        """A list of outputs of one place has to hold those of all steps, in order.

        Returned as it is it may also hold spikes and state of a step; `joined` to one tensor it may not.
        """
        if not isinstance(value, tuple | list) or not all(isinstance(part, fx.Node) for part in value):
            return
        found = [self._place_behind(part) for part in value]
        places = {one[0] for one in found if one}
        if len(found) < 2 or len(places) != 1 or not all(found):
            return
        steps = [one[1] for one in found if one]
        if (joined or len(set(steps)) > 1) and steps != list(range(len(next(iter(places)).calls))):
            raise self.error("does not return the record of all its steps, one after the other")

    def _check_all_or_last(self, steps: list[int]) -> None:
        """Values of a read-out are returned of all steps, in order, or of the last one."""
        count = max((len(place.calls) for place in self.places), default=1)
        if steps not in (list(range(count)), [count - 1]):
            raise self.error(
                "does not return the values of all its steps, one after the other, or of the last"
            )

    def _place_behind(self, node: fx.Node) -> tuple[Place, int] | None:
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        return self.place_of.get(node)

    def _where_returned(self, last: Place | None) -> tuple[int, ...] | None:
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
                return (
                    value.op in ("call_module", "call_function", "call_method") and value not in self.place_of
                )
            if self.unpacked(value) is last:
                return bool(value.args[1] == self.modules.output(last.module))
            return value in last.calls

        (output,) = (node for node in self.nodes if node.op == "output")
        given = output.args[0]
        if isinstance(given, dict):
            return next(((key,) for key, value in given.items() if is_it(value)), None)
        if not isinstance(given, tuple | list):
            return () if is_it(given) else None
        found = [number for number, value in enumerate(given) if is_it(value)]
        return (found[0],) if found else None

    def _record_axis(self, where: tuple[int, ...] | None) -> int:
        """Along which axis the returned steps are stacked."""
        (output,) = (node for node in self.nodes if node.op == "output")
        value = output.args[0]
        for index in where or ():
            value = value[index]
        while isinstance(value, fx.Node) and value.target in HARMLESS:
            value = value.args[0]
        if not isinstance(value, fx.Node) or value.target is not torch.stack:
            return 0
        return _axis(value)

    def _refuse_records(self, value: fx.Node) -> None:
        """Refuse what is computed from all steps together."""
        waiting, seen = [value], {value}
        while waiting:
            node = waiting.pop()
            record = node in self.filled or (
                node.target in RECORDS and len({self._step(one) for one in node.all_input_nodes}) > 1
            )
            if record:
                while value.target is operator.getitem and isinstance(value.args[0], fx.Node):
                    value = value.args[0]
                raise self.error(
                    f"goes on computing with the record of its steps ({label_of(value)}). "
                    "Do so with what the network returns"
                )
            if node not in self.place_of:
                waiting += [one for one in node.all_input_nodes if one not in seen]
                seen.update(node.all_input_nodes)

    def _needed(self, ends: list[Place], values: list[fx.Node]) -> list[Place]:
        """The places that reach the output, in the order in which they run."""
        reached: dict[Place, set[Place]] = {}

        def sources(node: fx.Node) -> set[Place]:
            found, waiting, seen = set(), [node], {node}
            while waiting:
                one = waiting.pop()
                if one in self.place_of:
                    found.add(self.place_of[one][0])
                    continue
                waiting += [more for more in one.all_input_nodes if more not in seen]
                seen.update(one.all_input_nodes)
            return found

        def ancestors(place: Place) -> set[Place]:
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


def _axis(node: fx.Node) -> int:
    """Along which `torch.stack` joins, or `unbind` parts: the second argument of both."""
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(given)


def _writes(node: fx.Node) -> bool:
    """Whether a function writes to its argument: by its name, as `relu_`, or as it was told to."""
    if re.fullmatch(r"[a-z]\w*_", label_of(node)):
        return True
    try:
        told = signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # compiled functions have no signature
        told = node.kwargs
    return bool(told.get("inplace", False))
