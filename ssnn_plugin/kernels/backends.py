"""What can carry out the kernels: a folder each, and a line in `BACKENDS`.

The package of a backend has three functions, of which the first takes a `neurons.SeparableNeuron`:

`first_spike(times, weight, bias, geometry, neuron, t_max) -> (crossing, potential, slope)`
`weight_grad(factors, times, kernel_size, geometry) -> grad_weight`
`input_grad(factors, times, weight, geometry) -> grad_times`

What they compute is told in `ops`.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """The two halves of a gradient dL/dV dV/dw; see `ops.weight_grad`."""

    p: Tensor
    q: Tensor | None
    until: Tensor
    a: Tensor | None = None
    b: Tensor | None = None


@dataclass(frozen=True)
class Backend:
    """One implementation of the kernels, and what it can do.

    Args:
        name: of its package in this folder.
        device_types: those that it runs on; None for all.
        dtypes: floating types that it computes in; None for all.
        response: a method of the compiled response of the neurons that it runs; None if it runs every one.
        requires: the package that it needs, which may be missing.
    """

    name: str
    device_types: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    response: str | None = None
    requires: str | None = None
    #: whether that package is there
    installed: bool = field(init=False)

    def __post_init__(self) -> None:
        # Now, as `torch.compile` could not trace a search for a package.
        found = self.requires is None or importlib.util.find_spec(self.requires) is not None
        object.__setattr__(self, "installed", found)

    @cached_property
    def kernels(self) -> Any:
        """Its package, imported when it is first needed: importing numba or triton is slow."""
        return importlib.import_module(f"{__package__}.{self.name}")

    def runs_on(self, device: torch.device) -> bool:
        # On the meta device nothing runs, and shapes are the same for all.
        return self.device_types is None or device.type in (*self.device_types, "meta")

    def computes_in(self, dtype: torch.dtype) -> bool:
        return self.dtypes is None or dtype in self.dtypes

    def runs(self, neuron: Any) -> bool:
        if self.response is None or neuron is None or neuron.jumps:
            return True
        return hasattr(neuron.compiled(), self.response)


# Triton's interpreter, for tests, runs its kernels on the CPU, slowly: it comes after the CPU's own backend.
_TRITON_DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
_FLOATS = torch.float32, torch.float64

#: the fastest first
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cpu", device_types=("cpu",), dtypes=_FLOATS, response="propagators"),
        Backend("triton", device_types=_TRITON_DEVICES, dtypes=_FLOATS, response="decay", requires="triton"),
        Backend("reference"),
    )
}


def select(name: str | None, device: torch.device, dtype: torch.dtype, neuron: Any = None) -> str:
    """The backend that was asked for, or the fastest one for times of this kind that runs the neuron."""
    if name is None:
        fit = (b for b in BACKENDS.values() if b.installed and b.runs_on(device) and b.computes_in(dtype))
        return next(b.name for b in fit if b.runs(neuron))
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {sorted(BACKENDS)} or None, got {name!r}")
    backend = BACKENDS[name]
    if not backend.installed:
        raise ValueError(
            f"backend {name!r} needs the package {backend.requires!r}, which is not installed: use None"
        )
    if not backend.runs_on(device):
        types = " or ".join(backend.device_types or ())
        raise ValueError(f"backend {name!r} takes tensors on {types}, times are on {device}")
    if not backend.computes_in(dtype):
        types = " or ".join(map(str, backend.dtypes or ()))
        raise ValueError(f"backend {name!r} computes in {types}, times are {dtype}: use None")
    if not backend.runs(neuron):
        needed = f"a compiled response with {backend.response!r}"
        raise ValueError(f"backend {name!r} needs {needed}, {neuron!r} has none: use None")
    return name
