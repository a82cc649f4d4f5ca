"""Autograd functions that `torch.func` can transform, at the speed of those that it cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels.ops import plain


class Function(torch.autograd.Function):
    """A function with `forward(*inputs)` and `setup_context(ctx, inputs, output)`, as `torch.func` takes it.

    Where nothing is transformed, `fit` takes a twin that sets up its context in `forward`: otherwise torch
    inspects the signature at every call, which takes longer than a small layer.
    """

    generate_vmap_rule = True
    eager: type[torch.autograd.Function]

    def __init_subclass__(cls) -> None:
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = cls.forward(*inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        twin = {"forward": staticmethod(forward), "backward": staticmethod(cls.backward)}
        cls.eager = type(cls.__name__, (torch.autograd.Function,), twin)

    @classmethod
    def fit(cls, *tensors: Tensor) -> type[torch.autograd.Function]:
        """Itself, or its faster twin if none of these tensors is transformed."""
        return cls.eager if all(map(plain, tensors)) else cls


def call_once(operator: Any, *arguments: Any, what: str = "a spike time") -> Any:
    """An operator of the backward pass of what has no second derivative."""
    if torch.is_grad_enabled():
        return _Once.apply(what, operator, *arguments)
    return operator(*arguments)


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(what: str, operator: Any, *arguments: Any) -> Any:
        return operator(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.what = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(f"{ctx.what} has no second derivative")
