"""Argument checks shared by the public functions: errors name the argument, the value, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

DTYPES = (torch.float32, torch.float64)
WHOLE_IN_FLOAT32 = 2**24


def finite(name: str, value: float) -> bool:
    """Whether it is finite; what is no number at all is refused."""
    try:
        return math.isfinite(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def per_neuron(name: str, values: Tensor, allowed: Callable[[Tensor], Tensor], what: str) -> None:
    """Refuse a tensor that does not hold one value per neuron, each of them allowed."""
    if values.ndim != 1 or not values.is_floating_point():
        raise ValueError(
            f"{name} must be a number or hold one per neuron, got {values.dtype} {list(values.shape)}"
        )
    if has_values(values) and not bool((fits := allowed(values)).all()):
        raise ValueError(f"{name} must {what} for every neuron, got {values[~fits][0].item()!r}")


def positive(name: str, value: float | Tensor) -> None:
    """Refuse a number, or a tensor of one value per neuron, that is not positive and finite."""
    if isinstance(value, Tensor):
        per_neuron(name, value, lambda x: (x > 0) & x.isfinite(), "be finite and greater than 0")
    elif not (finite(name, value) and value > 0):
        raise ValueError(f"{name} must be finite and greater than 0, got {value!r}")


def not_negative(name: str, value: float) -> None:
    if not (finite(name, value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}")


def whole_and_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not finite(name, value) or value != int(value) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def distinct_bins(t_max: float, dtype: torch.dtype) -> None:
    """Refuse a window of which the dtype of times has not all bins."""
    if dtype == torch.float32 and t_max > WHOLE_IN_FLOAT32:
        raise ValueError(
            f"t_max must be at most 2**24 for float32, which holds no odd bins beyond; got {t_max!r}. "
            "Use float64"
        )


def dropout(name: str, value: float) -> None:
    if not (finite(name, value) and 0 <= value < 1):
        raise ValueError(f"{name} must be a probability of at least 0 and below 1, got {value!r}")


def wanted_fraction(value: float) -> None:
    """A part of the neurons that calibration shall make fire."""
    if not 0 < value <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {value!r}")


def own_forward(module: object, *kinds: type) -> None:
    """Refuse a subclass that computes something else than the class it is taken for."""
    if has_own_forward(module, *kinds):
        raise ValueError("it has a forward of its own. Use the plain class")


def has_own_forward(module: object, *kinds: type) -> bool:
    """Whether a module computes something else than these classes do."""
    plain = getattr(type(module), "forward", None) in [getattr(kind, "forward", None) for kind in kinds]
    return not plain or "forward" in vars(module)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs hooks, which may change what it takes and returns."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def plain_weights(module: nn.Module) -> None:
    """Refuse weights that are computed anew in every call, which a layer on spike times cannot share.

    Raises:
        ValueError: pruned or parametrized weights, with what makes them plain.
    """
    if parametrize.is_parametrized(module):
        raise ValueError(
            "its weights are parametrized. Make them plain with "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
        )
    if "weight_orig" in module._parameters:
        raise ValueError(
            "its weights are pruned or normalised on the way. Make that permanent with "
            "torch.nn.utils.prune.remove(module, 'weight') or remove_spectral_norm(module)"
        )
    if "weight_g" in module._parameters:
        raise ValueError("its weights are normalised. Use torch.nn.utils.remove_weight_norm(module)")


def in_two_places(model: nn.Module, module: nn.Module) -> bool:
    """Whether a module stands in more than one place of a model."""
    return sum(other is module for _, other in model.named_modules(remove_duplicate=False)) > 1


def not_exported_by_a_host(module: nn.Module) -> None:
    """Refuse the hosts' exporters to NIR, which know no neuron that fires once.

    They run a model once while nirtorch has put a tracer in the place of `nn.Module.__call__`.
    """
    if not torch.compiler.is_compiling() and nn.Module.__call__.__module__ == "nirtorch.graph":
        raise TypeError(
            f"{type(module).__name__} fires at most once: the hosts' exporters to NIR would write a neuron "
            "that fires again, or none. Use ssnn_plugin.nir.to_nir(model, t_max=...)"
        )


def plain_max_pool(pool: nn.MaxPool2d) -> tuple[Any, Any, Any]:
    """The window, stride and padding of a max-pool, if that is all there is to it."""
    if pool.dilation not in (1, (1, 1)) or pool.ceil_mode or pool.return_indices:
        raise ValueError("it must have no dilation, ceil_mode and return_indices")
    return pool.kernel_size, pool.stride, pool.padding


def gap(name: str, value: float, t_max: float) -> None:
    """A wanted gap between spikes has to fit the window."""
    positive(name, value)
    if value > t_max:
        raise ValueError(f"{name} must be at most t_max = {t_max}, got {value!r}")


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def floating(name: str, tensor: Tensor) -> None:
    """Spike times need every bin up to t_max exactly, which half precision loses above 256 (bfloat16)."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}")


def has_values(tensor: Tensor) -> bool:
    """Values cannot be looked at while a graph is traced, under `torch.vmap`, nor on the meta device."""
    return not torch.compiler.is_compiling() and tensor.device.type != "meta" and not is_batched(tensor)


def has_nan(tensor: Tensor) -> bool:
    """Whether any value is NaN, if values can be looked at.

    Then the least one is, which is found without a mask of all of them.
    """
    return has_values(tensor) and tensor.numel() > 0 and bool(tensor.amin().isnan())


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for a batch under `torch.vmap`."""
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return bool(functorch.is_batchedtensor(tensor))


def spike_times(name: str, times: Tensor) -> None:
    """Refuse NaN and negative times."""
    if not has_values(times) or not times.numel():
        return
    if not bool(times.amin() >= 0):
        kind = "NaN" if has_nan(times) else f"a negative time ({times.min().item()})"
        raise ValueError(f"{name} must hold spike times >= 0, with inf for silence; got {kind}")


def whole_bins(name: str, times: Tensor, reason: str = "a bias or a leak") -> None:
    """Refuse times between bins, for which what is done per bin has no meaning."""
    if has_values(times) and bool((times.isfinite() & (times != times.floor())).any()):
        raise ValueError(f"{name} must be whole bins with {reason}, got times between bins")


def one_value(name: str, values: Tensor) -> float:
    """The value that all neurons of a layer share."""
    different = torch.unique(values.detach())
    if different.numel() != 1:
        raise ValueError(f"{name} must be the same for all neurons, got {different.numel()} values")
    return float(different.item())


def class_labels(labels: Tensor, times: Tensor) -> None:
    """Refuse labels that do not fit output times of shape [batch, classes]."""
    if times.ndim != 2:
        raise ValueError(f"times must have shape [batch, classes], got {list(times.shape)}")
    labels_of_any_shape(labels, times)


def labels_of_any_shape(labels: Tensor, times: Tensor) -> None:
    """Refuse labels [batch, *] that do not fit output times of shape [batch, classes, *]."""
    if times.ndim < 2:
        raise ValueError(f"times must have shape [batch, classes, *], got {list(times.shape)}")
    expected = [times.shape[0], *times.shape[2:]]
    if list(labels.shape) != expected:
        raise ValueError(f"labels must have shape {expected}, got {list(labels.shape)}")
    if labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"labels must hold whole numbers, got {labels.dtype}")
    if labels.device != times.device:
        raise ValueError(f"labels are on {labels.device}, times are on {times.device}")
    if not has_values(labels) or labels.numel() == 0:
        return
    low, high = (int(extreme) for extreme in labels.aminmax())
    if low < 0 or high >= times.shape[1]:
        wrong = low if low < 0 else high
        raise ValueError(f"labels must lie in 0 ... {times.shape[1] - 1}, got {wrong}")
