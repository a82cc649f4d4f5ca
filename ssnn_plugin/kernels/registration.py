"""Registered operators with a reference for all devices, and a compiled kernel for some dtypes on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def register(
    reference: Callable[..., Any],
    name: str,
    module: str,
    dtypes: Collection[torch.dtype],
    fake: Callable[..., Any],
) -> Any:
    """Register `ssnn_plugin::name`, which differentiates nothing by itself.

    Args:
        module: of `kernels.cpu`, with a function of that name.
        dtypes: of the first argument, for which that is used.
        fake: room for the outputs, from the same arguments.
    """
    operator = torch.library.custom_op(f"ssnn_plugin::{name}", reference, mutates_args=())

    def on_cpu(first: Tensor, *args: Any) -> Any:
        if first.dtype not in dtypes:
            return reference(first, *args)
        # When it first runs: importing numba is slow.
        compiled = getattr(import_module(f"{__package__}.cpu.{module}"), name)
        return compiled(first, *args)

    operator.register_kernel("cpu", on_cpu)
    operator.register_fake(fake)
    return operator


def over_neurons(operator: Any) -> Any:
    """Let `vmap` map an operator on tensors [T, *] or [*], in which neurons do not see each other.

    A batch of calls is one call with an axis more.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        def last(argument: Any, axis: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            if axis is None:
                return argument.unsqueeze(-1).expand(*argument.shape, info.batch_size)
            return argument.movedim(axis, -1)

        outputs = operator(*map(last, arguments, in_dims))
        return outputs, tree_map(lambda output: output.ndim - 1, outputs)

    torch.library.register_vmap(operator, rule)
    return operator
