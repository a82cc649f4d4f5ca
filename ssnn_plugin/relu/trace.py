"""The graph of a model, and the shapes in it."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._trace import NoTimeMode
from ..kernels.precision import in_full_precision


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_normalize(m) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The graph of a model in evaluation mode, whose further arguments have their defaults.

    Raises:
        NoTimeMode: a forward that cannot be followed.
    """
    parameters = list(signature(model.forward).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    try:
        graph = _Tracer().trace(model, defaults)
    except Exception as error:
        raise NoTimeMode(
            f"the forward of {type(model).__name__} cannot be followed ({type(error).__name__}: {error}). "
            "Put its modules into an nn.Sequential, without decisions that depend on values"
        ) from error
    for node in reversed(graph.nodes):
        asserts = getattr(node.target, "__name__", "") in ("_assert", "_assert_is_none", "eq")
        further = node.op == "placeholder" and node.prev.op == "placeholder"
        if (asserts or further) and not node.users:
            graph.erase_node(node)
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise NoTimeMode("the model must take one tensor. Wrap it so that it takes its images alone")
    return fx.GraphModule(model, graph)


class _Shapes(fx.Interpreter):
    """Notes the shape of every tensor."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.of: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.of[n] = result.shape
        return result


@in_full_precision
@torch.no_grad()
def shapes(model: fx.GraphModule, sample: Tensor) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor of a graph."""
    noted = _Shapes(model)
    noted.run(sample.clone())
    return noted.of


def is_normalize(module: nn.Module) -> bool:
    """Whether it is torchvision's `Normalize`, which is not to be imported for that."""
    kind = type(module)
    return kind.__name__ == "Normalize" and kind.__module__.startswith("torchvision.transforms")
