"""What the modules, functions and methods of a ReLU network are to a network of ramps."""

from __future__ import annotations

import builtins
import math
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

SUPPORTED = (
    "Conv2d, Linear, BatchNorm1d, BatchNorm2d, ReLU, ReLU6, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, "
    "Flatten, Unflatten, Dropout, Identity, additions, concatenations and products with constants"
)


def _words(text: str) -> list[str]:
    return text.split()


# By what is done with them; `Hardtanh` includes ReLU6.
WEIGHTS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
RECTIFIERS = (nn.ReLU, nn.Hardtanh)
MAX_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)
MEANS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
DROPOUTS = (nn.Dropout, nn.Dropout2d)

_NAMES = _words(
    "add sub mul truediv div neg cat concat relu relu6 hardtanh clamp clip max_pool2d adaptive_max_pool2d "
    "avg_pool2d adaptive_avg_pool2d flatten reshape squeeze mean dropout dropout2d linear conv2d getitem"
)
_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    torch.clamp_: torch.clamp,
    functional.hardtanh_: functional.hardtanh,
}
_METHODS = {*_NAMES, "view", "size", "dim", "contiguous", "clone", "detach"}
_FUNCTIONS: dict[Any, str] = {builtins.getattr: "getattr"} | {
    getattr(place, name): name
    for name in _NAMES
    for place in (operator, torch, functional)
    if hasattr(place, name)
}
_ALIASES = {"truediv": "div", "concat": "cat", "clip": "clamp"}

_SOFTMAX = "leave it out: it keeps the order of the outputs, and can be applied to what the network returns"
_CURVED = "a ramp neuron is a ReLU: train the model with ReLU or ReLU6 in its place"
_PER_SAMPLE = "it divides by statistics of the sample: use BatchNorm2d, whose statistics are fixed"
_REMEDIES = {
    "softmax": _SOFTMAX,
    "log_softmax": _SOFTMAX,
    **dict.fromkeys(
        _words(
            "leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid log_sigmoid "
            "tanh softplus softsign threshold glu"
        ),
        _CURVED,
    ),
    **dict.fromkeys(_words("group_norm layer_norm instance_norm local_response_norm rms_norm"), _PER_SAMPLE),
}


def in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it overwrites its first argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.target in _OUT_OF_PLACE or node.kwargs.get("inplace") is True


def out_of_place(target: Any) -> Any:
    """The function or method that does the same to a new tensor."""
    return target.rstrip("_") if isinstance(target, str) else _OUT_OF_PLACE.get(target, target)


def operation(node: fx.Node) -> str | None:
    """The name that functions and methods share which do the same; None for unknown ones."""
    if node.op not in ("call_function", "call_method"):
        return None
    target = out_of_place(node.target)
    name = target if isinstance(target, str) else _FUNCTIONS.get(target)
    if isinstance(target, str) and target not in _METHODS:
        return None
    return _ALIASES.get(name or "", name)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by its position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def is_rectifier(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it is a ReLU, or may be one with a cap."""
    return isinstance(module, RECTIFIERS) or (
        module is None and operation(node) in ("relu", "relu6", "hardtanh", "clamp")
    )


def cap(node: fx.Node, module: nn.Module | None) -> float | None:
    """Where a rectifier stops to rise, None for a ReLU.

    Raises:
        ValueError: one that does not start at 0.
    """
    name = operation(node) if module is None else ""
    if isinstance(module, nn.ReLU) or name == "relu":
        return None
    low: Any = 0.0
    high: Any = 6.0
    if isinstance(module, nn.Hardtanh):
        low, high = module.min_val, module.max_val
    elif name == "hardtanh":
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif name == "clamp":
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
    numbers = isinstance(low, int | float) and isinstance(high, int | float | None)
    if not numbers or low != 0 or (high is not None and high <= 0):
        raise ValueError(f"it must clip at 0 and, if at all, above it, got {low!r} and {high!r}: {_CURVED}")
    return None if high is None or high == math.inf else float(high)


def pool_windows(node: fx.Node, module: nn.Module | None) -> tuple[int, int] | None:
    """The size of the windows of a max-pool, if they lie side by side without padding; None otherwise.

    None also for sizes that are not known before it runs.
    """
    if isinstance(module, nn.MaxPool2d):
        given = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
    elif module is None and operation(node) == "max_pool2d":
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
        further = (argument(node, i, name, value) for i, (name, value) in enumerate(defaults.items(), 2))
        given = argument(node, 1, "kernel_size"), *further
    else:
        return None
    kernel, stride, padding, dilation, partial = given
    sizes = map(_pair, (kernel, kernel if stride is None else stride, padding, dilation))
    windows, step, edge, spacing = sizes
    side_by_side = step == windows and edge == (0, 0) and spacing == (1, 1) and not partial
    return windows if side_by_side else None


def _pair(size: Any) -> tuple[int, int] | None:
    sizes = size if isinstance(size, list | tuple) else [size]
    if len(sizes) not in (1, 2) or any(isinstance(n, fx.Node) for n in sizes):
        return None
    return operator.index(sizes[0]), operator.index(sizes[-1])


def remedy(what: nn.Module | str) -> str:
    """What to do about something that has no place in a network of ramps."""
    name = what if isinstance(what, str) else type(what).__name__
    plain = "".join(c for c in name.lower().rstrip("_") if c.isalnum())
    known = {key.replace("_", ""): text for key, text in _REMEDIES.items()}
    plain = plain.removesuffix("1d").removesuffix("2d").removesuffix("3d")
    return known.get(plain, f"a network of ramps is made of {SUPPORTED}")
