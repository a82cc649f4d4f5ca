"""From the graph of a ReLU network to that of windowed ramps.

Between two layers of neurons everything is an affine map of leads, which is one connection: convolutions,
averages, folded normalisations, sums with shortcuts. So the graph stays, computed factor by factor; ReLUs
become neurons, and what else is not affine is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import _checks
from .._trace import NoTimeMode
from ..fold import factor_and_shift, fold_into
from . import operations
from .neurons import ChannelAffine, RampNeurons
from .trace import is_normalize

INPUT, OUTPUT = "input", "output"


class Kind(Enum):
    """What a value of the graph is."""

    CONSTANT = "a constant"
    SPIKES = "leads of spikes"
    CURRENTS = "an affine map of leads"


class Follower:
    """Rewrites the graph of a model, node by node, to one of leads.

    Args:
        model: as `trace` returns it; it is changed.
        sizes: as `shapes` returns them.
        x_max: the greatest input.
        signed: whether inputs may be negative; they then are the differences of two spikes.
    """

    def __init__(
        self, model: fx.GraphModule, sizes: dict[fx.Node, torch.Size], x_max: float, signed: bool
    ) -> None:
        self.model, self.graph, self.sizes, self.x_max, self.signed = model, model.graph, sizes, x_max, signed
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.calls = Counter(str(node.target) for node in self.graph.nodes if node.op == "call_module")
        self.kinds: dict[fx.Node, Kind] = {}
        # Leads do not exceed it.
        self.bounds: dict[fx.Node, float] = {}
        # Which layers of neurons a value depends on, without others in between.
        self.sources: dict[fx.Node, frozenset[str]] = {}
        self.taken = {INPUT, OUTPUT}

    def follow(self) -> tuple[dict[str, frozenset[str]], frozenset[str]]:
        """Rewrite the graph; the sources of each layer of neurons, in order, and those of the output.

        Raises:
            NoTimeMode: what is no affine map, ReLU or max-pool, by its path and class.
        """
        for node in list(self.graph.nodes):
            if node.op == "output":
                break
            try:
                self._out_of_place(node)
                kind = self._kind(node)
            except ValueError as error:
                raise NoTimeMode(f"{self._where(node)} cannot become ramps: {error}") from error
            if kind is not None:
                self._note(node, kind)
        result = self.graph.output_node().args[0]
        if not isinstance(result, fx.Node) or self.kinds[result] is Kind.CONSTANT:
            raise NoTimeMode("the model must return one tensor. Wrap it so that it returns its logits alone")
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.model.delete_all_unused_submodules()
        self.model.recompile()
        layers = {
            str(node.target): self.sources[node.all_input_nodes[0]]
            for node in self.graph.nodes
            if node.op == "call_module" and isinstance(self._now(node), RampNeurons)
        }
        return layers, self.sources[result]

    def pooled(self) -> dict[str, tuple[int, int]]:
        """After `follow`, the layers of neurons that only a max-pool reads: the size of its windows.

        Of pools whose windows lie side by side, on [batch, channels, height, width].
        """
        found = {}
        for node in self.graph.nodes:
            if node.op != "call_module" or not isinstance(self._now(node), RampNeurons):
                continue
            if len(node.users) == 1 and len(self.sizes[node]) == 4:
                (user,) = node.users
                module = self._now(user) if user.op == "call_module" else None
                if (windows := operations.pool_windows(user, module)) is not None:
                    found[str(node.target)] = windows
        return found

    def _note(self, node: fx.Node, kind: Kind) -> None:
        self.kinds[node] = kind
        if node not in self.sources:
            before = [self.sources[x] for x in node.all_input_nodes if x in self.sources]
            self.sources[node] = frozenset().union(*before)

    def _where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("the model", None)
        name = getattr(node.target, "__name__", str(node.target))
        name = operations.operation(node) or name
        return f"{name} in {path}" + (f" ({kind.__name__})" if isinstance(kind, type) else "")

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _now(self, node: fx.Node) -> nn.Module:
        return self.model.get_submodule(str(node.target))

    def _out_of_place(self, node: fx.Node) -> None:
        """Whoever reads a tensor that has been overwritten reads the result instead."""
        module = self._module(node)
        if node.op in ("placeholder", "get_attr") or not operations.in_place(node, module):
            return
        if not node.args or not isinstance(node.args[0], fx.Node):
            return
        overwritten = node.args[0]
        later = {user for user in overwritten.users if user > node}
        overwritten.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        if isinstance(module, operations.DROPOUTS):
            module.inplace = False
        elif module is None and not self._may_overwrite(node):
            node.target = operations.out_of_place(node.target)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}

    def _may_overwrite(self, node: fx.Node) -> bool:
        """Whether it is a sum in place that overwrites a fresh result of a connection."""
        return operations.operation(node) == "add" and self._is_fresh(node.args[0])

    def _is_fresh(self, node: Any) -> bool:
        """Whether a value is a tensor of its own, which nobody else reads."""
        if not isinstance(node, fx.Node) or self.kinds.get(node) is not Kind.CURRENTS or len(node.users) > 1:
            return False
        if node.op == "call_module":
            return isinstance(self._now(node), nn.Conv2d | nn.Linear | ChannelAffine)
        return operations.operation(node) == "add"

    # What a node is; None for one that is gone.

    def _kind(self, node: fx.Node) -> Kind | None:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return Kind.CONSTANT
        if node.op == "call_module":
            return self._of_module(node, self.modules[str(node.target)])
        name = operations.operation(node)
        if name in ("getattr", "size", "dim"):
            return self._size(node)
        known = name is not None and not name.startswith("dropout")
        if not self._tensors(node) and (known or getattr(node.target, "__module__", "") == "_operator"):
            return Kind.CONSTANT
        if name is None:
            raise ValueError(operations.remedy(getattr(node.target, "__name__", str(node.target))))
        handlers: dict[str, Callable[[fx.Node], Kind | None]] = {
            **dict.fromkeys(("add", "sub"), self._sum),
            **dict.fromkeys(("neg", "avg_pool2d", "adaptive_avg_pool2d", "linear", "conv2d"), self._affine),
            **dict.fromkeys(("mul", "div"), self._product),
            **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp"), self._rectifier),
            **dict.fromkeys(("max_pool2d", "adaptive_max_pool2d"), self._max_pool),
            **dict.fromkeys(("flatten", "reshape", "view", "squeeze"), self._flatten),
            **dict.fromkeys(("contiguous", "clone", "detach"), self._as_it_is),
            **dict.fromkeys(("dropout", "dropout2d"), self._functional_dropout),
            "cat": self._concatenation,
            "mean": self._mean,
        }
        if name not in handlers:
            raise ValueError(operations.remedy(name))
        return handlers[name](node)

    def _of_module(self, node: fx.Node, module: nn.Module) -> Kind | None:
        if len(node.all_input_nodes) != 1 or node.kwargs or node.args != (node.all_input_nodes[0],):
            raise ValueError("it must be called with one tensor")
        if not self._tensors(node):
            raise ValueError("it must be called with what depends on the input")
        handlers: tuple[tuple[tuple[type, ...], Callable[[fx.Node], Kind | None]], ...] = (
            (operations.RECTIFIERS, self._rectifier),
            (operations.NORMS, self._norm),
            (operations.MAX_POOLS, self._max_pool),
            ((*operations.WEIGHTS, *operations.MEANS, ChannelAffine), self._affine),
            (operations.DROPOUTS, self._dropout),
            ((nn.Flatten,), self._flatten),
            ((nn.Unflatten,), self._as_it_is),
            ((nn.Identity,), self._gone),
        )
        if is_normalize(module):
            return self._normalize(node)
        for kinds, handler in handlers:
            if isinstance(module, kinds):
                return handler(node)
        raise ValueError(operations.remedy(module))

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
        """The arguments that depend on the input, one that is given twice twice."""
        given: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), given.append)
        return [x for x in given if self.kinds[x] is not Kind.CONSTANT]

    def _input(self, node: fx.Node) -> Kind:
        if self.sources:
            raise ValueError("the model must take one tensor")
        self.sources[node], self.bounds[node] = frozenset([INPUT]), self.x_max
        return Kind.CURRENTS if self.signed else Kind.SPIKES

    def _size(self, node: fx.Node) -> Kind:
        attribute = node.args[1] if operations.operation(node) == "getattr" else "shape"
        if attribute not in ("shape", "ndim", "dtype", "device"):
            raise ValueError(operations.remedy(str(attribute)))
        self.sources[node] = frozenset()
        return Kind.CONSTANT

    def _affine(self, node: fx.Node) -> Kind:
        """In its first argument, the others being constants."""
        if self._tensors(node) != [operations.argument(node, 0, "input")]:
            raise ValueError("its weights must not depend on the input")
        return Kind.CURRENTS

    def _sum(self, node: fx.Node) -> Kind:
        return Kind.CURRENTS

    def _product(self, node: fx.Node) -> Kind:
        if (rounding := node.kwargs.get("rounding_mode")) is not None:
            raise ValueError(f"it rounds, which is no affine map: leave rounding_mode={rounding!r} out")
        tensors = self._tensors(node)
        divided = operations.argument(node, 0, "input")
        if len(tensors) > 1 or (operations.operation(node) == "div" and tensors != [divided]):
            raise ValueError(
                "it multiplies or divides activations, as gates, attention and squeeze-and-excitation do, "
                "which is no affine map: use a model without"
            )
        return Kind.CURRENTS

    def _concatenation(self, node: fx.Node) -> Kind:
        parts = operations.argument(node, 0, "tensors")
        if operations.argument(node, 1, "dim", operations.argument(node, 1, "axis", 0)) in (
            0,
            -len(self.sizes[node]),
        ):
            raise ValueError("it joins samples: join channels, dim=1")
        if any(self.kinds[part] is not Kind.SPIKES for part in parts):
            return Kind.CURRENTS
        self.bounds[node] = max(self.bounds[part] for part in parts)
        return Kind.SPIKES

    def _mean(self, node: fx.Node) -> Kind:
        dims = operations.argument(node, 1, "dim")
        dims = dims if isinstance(dims, list | tuple) else [dims]
        n = len(self.sizes[operations.argument(node, 0, "input")])
        if any(not isinstance(dim, int) or dim % n == 0 for dim in dims):
            raise ValueError("its dimensions must be named, without that of the batch, as in mean((2, 3))")
        return self._affine(node)

    def _as_it_is(self, node: fx.Node) -> Kind:
        (x,) = self._tensors(node)
        self.bounds[node] = self.bounds.get(x, math.inf)
        return self.kinds[x]

    def _gone(self, node: fx.Node) -> None:
        node.replace_all_uses_with(node.all_input_nodes[0])
        self.graph.erase_node(node)

    def _flatten(self, node: fx.Node) -> Kind:
        """Whatever flattens a sample, as `flatten(1)`, so that it does not depend on the size of a batch."""
        x = self._tensors(node)[0]
        before, after = self.sizes[x], self.sizes[node]
        if after != (before[0], math.prod(before[1:])):
            raise ValueError(
                f"it makes {list(after)} of {list(before)}; only the features of a sample can be flattened, "
                "as by flatten(1)"
            )
        node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (x, 1), {}
        return self._as_it_is(node)

    def _dropout(self, node: fx.Node) -> Kind:
        (x,) = self._tensors(node)
        self.bounds[node] = math.inf  # in training what is left is scaled up
        return self.kinds[x]

    def _functional_dropout(self, node: fx.Node) -> Kind:
        if operations.argument(node, 2, "training", True) is not False:
            raise ValueError(
                "it drops at random in evaluation mode too: use nn.Dropout, or training=self.training"
            )
        kind = nn.Dropout if operations.operation(node) == "dropout" else nn.Dropout2d
        p = operations.argument(node, 1, "p", 0.5)
        node.target, node.args = self._add(node.name, kind(p)), (operations.argument(node, 0, "input"),)
        node.op, node.kwargs = "call_module", {}
        return self._dropout(node)

    def _max_pool(self, node: fx.Node) -> Kind:
        """The earliest spike; the maximum of currents is rectified first where it would be right behind."""
        module = self._module(node)
        if getattr(module, "return_indices", False) or node.kwargs.get("return_indices"):
            raise ValueError("it must return no indices")
        (x,) = self._tensors(node)
        if self.kinds[x] is not Kind.SPIKES:
            caps = {self._cap_behind(user) for user in node.users}
            if len(caps) != 1 or math.nan in caps:
                raise ValueError(
                    "it takes the maximum of values that may be negative, and of which no spikes are made "
                    "first: put it behind a ReLU, or right in front of one"
                )
            with self.graph.inserting_before(node):
                neurons = self._neurons(x, caps.pop(), f"{node.name}_relu", node)
            node.replace_input_with(x, neurons)
            x = neurons
        self.bounds[node] = self.bounds[x]
        return Kind.SPIKES

    def _cap_behind(self, user: fx.Node) -> float | None:
        """The cap of a rectifier, NaN for others."""
        module = self._module(user)
        try:
            return operations.cap(user, module) if operations.is_rectifier(user, module) else math.nan
        except ValueError as error:
            raise NoTimeMode(f"{self._where(user)} cannot become ramps: {error}") from error

    def _rectifier(self, node: fx.Node) -> None:
        cap = operations.cap(node, self._module(node))
        (x,) = self._tensors(node)
        if self.kinds[x] is Kind.SPIKES and (cap is None or self.bounds[x] <= cap):
            node.replace_all_uses_with(x)
        else:
            with self.graph.inserting_before(node):
                neurons = self._neurons(x, cap, self._name(node), node)
            node.replace_all_uses_with(neurons)
        self.graph.erase_node(node)

    def _neurons(self, x: fx.Node, cap: float | None, name: str, replaced: fx.Node) -> fx.Node:
        """Neurons whose V is a value of the graph."""
        fresh = self._is_fresh(x) and list(x.users) == [replaced]
        target = self._add(name, RampNeurons(cap, inplace=fresh), replaced)
        node = self.graph.call_module(target, (x,))
        node.meta = dict(replaced.meta)
        self.kinds[node], self.bounds[node] = Kind.SPIKES, math.inf if cap is None else cap
        self.sources[node], self.sizes[node] = frozenset([target]), self.sizes[x]
        return node

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return f"{stack[-1][0]}.{node.name}" if stack and stack[-1][0] else node.name

    def _add(self, name: str, module: nn.Module, instead_of: fx.Node | None = None) -> str:
        """Put a module into the model, at this path or one like it."""
        free = str(instead_of.target) if instead_of is not None and instead_of.op == "call_module" else None
        path, number = name, 0
        while path in self.taken or (path != free and self._is_there(path)):
            number += 1
            path = f"{name}_{number}"
        self.taken.add(path)
        self.model.add_submodule(path, module.train(False))
        return path

    def _is_there(self, path: str) -> bool:
        parent, _, name = path.rpartition(".")
        return parent in self.modules and hasattr(self.modules[parent], name)

    def _norm(self, node: fx.Node) -> Kind | None:
        norm: Any = self._module(node)
        if norm.running_mean is None:
            raise ValueError("it has no running statistics: use track_running_stats=True")
        (x,) = self._tensors(node)
        connection = self._now(x) if x.op == "call_module" else None
        if self._takes_up(x, connection):
            fold_into(connection, norm)  # type: ignore[arg-type]
            self._gone(node)
            return None
        return self._channel_affine(node, *factor_and_shift(norm), norm)

    def _takes_up(self, x: fx.Node, connection: nn.Module | None) -> bool:
        """Whether a normalisation can be folded into a connection: nobody else reads it, nor its weights.

        Behind a Linear it must be of features.
        """
        if not isinstance(connection, operations.WEIGHTS) or len(x.users) > 1:
            return False
        read = f"{x.target}."
        if self.calls[str(x.target)] > 1 or any(
            node.op == "get_attr" and str(node.target).startswith(read) for node in self.graph.nodes
        ):
            return False
        if isinstance(connection, nn.Linear) and len(self.sizes[x]) != 2:
            return False
        try:
            _checks.plain_weights(connection)
        except ValueError:
            return False
        return True

    def _normalize(self, node: fx.Node) -> Kind:
        """torchvision's `Normalize`, known by its name."""
        module: Any = self._module(node)
        x = self._tensors(node)[0]
        like = next(self.model.parameters())
        mean, std = (as_channels(value, like, self.sizes[x][1]) for value in (module.mean, module.std))
        return self._channel_affine(node, 1 / std, -mean / std)

    def _channel_affine(self, node: fx.Node, factor: Tensor, shift: Tensor, norm: Any = None) -> Kind:
        """What a normalisation learns is learned on; what is frozen in it stays so."""
        learned = norm is not None and norm.affine
        affine = ChannelAffine(factor, shift, learned=learned)
        if learned:
            affine.factor.requires_grad_(norm.weight.requires_grad)
            affine.shift.requires_grad_(norm.bias.requires_grad)
        node.target = self._add(str(node.target), affine, node)
        return Kind.CURRENTS


def as_channels(values: float | Sequence[float] | Tensor, like: Tensor, channels: int) -> Tensor:
    """One value per channel, of the dtype and on the device of `like`."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).flatten().expand(channels).clone()
