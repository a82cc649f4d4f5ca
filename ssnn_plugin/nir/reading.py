"""Networks on spike times, and models of the hosts, from NIR graphs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from .. import _checks
from ..convert import Builder, to_step_mode
from ..neurons import IF
from ..nn import EarliestSpikePool2d
from .graphs import (
    LOWEST_RESET,
    Named,
    in_numpy,
    integrators_behind_a_bias,
    pools_as,
    without_self_inhibition,
)
from .readers import written_time_step

# Time constants in seconds, or in single precision, do not give back a bin or a leak to the last digit.
ROUNDING = 1e-6


def from_nir(
    graph: nir.NIRGraph,
    *,
    host: str | None = None,
    t_max: int | None = None,
    dt: float | None = None,
    single_spike: bool = False,
    writer: str | None = None,
) -> nn.Module:
    """The network on spike times of a NIR graph, or the step-by-step model of a host.

    Args:
        graph: a chain of Linear, Affine, Conv2d, AvgPool2d, SumPool2d, Flatten, IF and LIF nodes,
            first-spike pools as `to_nir` writes them, Delay nodes behind neurons, and loops in which neurons
            inhibit themselves so strongly that they do not fire again.
        host: None for a `SpikeSequential`, "snntorch" or "norse" for a step-by-step model, as `to_step_mode`.
        t_max: length of the window; None takes it from the metadata.
        dt: length of a bin in the graph's unit of time, 1 if left out, for nodes without our metadata: a LIF
            node then keeps 1 - dt / tau and counts an input r dt / tau times, a delay is in that unit. An
            IF node counts an input r times, a spike being an impulse, so that a bias, a current, needs
            dt = 1.
        single_spike: whether neurons that are not marked as single-spike are taken for it.
        writer: "snntorch" or "norse" for a graph of the host's own exporter: `dt` is then the time step of
            its model in seconds, 1e-4 or 1e-3 if left out.

    Raises:
        ValueError: an unknown node, a graph that is no chain, a neuron that may fire more than once,
            parameters that differ between the neurons of a layer, no window.
        NoTimeMode: a chain that has no time mode.

    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear
    >>> from ssnn_plugin.nir import to_nir
    >>> from_nir(to_nir(SpikeLinear(4, 2, IF(2.0, delay=1), t_max=16)))[0].neuron
    IF(threshold=2.0, delay=1, beta=1.0)
    """
    step = written_time_step(writer, dt)
    nodes = pools_as(nir.AvgPool2d, _chain(without_self_inhibition(in_numpy(graph))))
    for name, neuron in integrators_behind_a_bias(nodes):
        if writer is None and step != 1 and "single_spike" not in neuron.metadata:
            raise ValueError(f"{name} (IF): dt must be 1 behind a node with a bias, got {dt}")
    builder = Builder(_window(nodes, t_max), [])
    for name, part in _parts(nodes, step, single_spike):
        builder.add(name, part)
    network = builder.finish()
    # Weights of several precisions get the highest, as spike times have one.
    network.to(functools.reduce(torch.promote_types, (weight.dtype for weight in network.parameters())))
    return network if host is None else to_step_mode(network, host)


def _chain(graph: nir.NIRGraph) -> Named:
    after = dict(graph.edges)
    starts = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(after) != len(graph.edges) or len(set(after.values())) != len(after) or len(starts) != 1:
        raise ValueError(
            "graph must be a chain with one Input node; it branches, joins or has several inputs"
        )
    nodes: Named = []
    name = starts[0]
    while name in after and len(nodes) < len(graph.nodes):
        name = after[name]
        nodes.append((name, graph.nodes[name]))
    if len(nodes) != len(graph.nodes) - 1 or not nodes or not isinstance(nodes[-1][1], nir.Output):
        raise ValueError("graph must be a chain from its Input node to its Output node")
    if len(nodes) == 1:
        raise ValueError("graph must have neurons between its Input and its Output node, got none")
    return nodes[:-1]


def _window(nodes: Named, t_max: int | None) -> int:
    if t_max is None:
        windows = {float(node.metadata["T"]) for _, node in nodes if "T" in node.metadata}
        if len(windows) != 1:
            raise ValueError(
                f"t_max must be given: the graph's metadata have {sorted(windows) or 'no window T'}"
            )
        t_max = windows.pop()  # type: ignore[assignment]
    _checks.whole_and_positive("t_max", t_max)  # type: ignore[arg-type]
    return int(t_max)  # type: ignore[arg-type]


def _parts(nodes: Named, dt: float, single_spike: bool) -> Iterator[tuple[str, nn.Module | IF]]:
    """What the builder joins to layers; neurons take the delay and the pool beside them along."""
    following: list[Any] = [node for _, node in nodes[1:]] + [None]
    before: Any = None
    pool: nir.SumPool2d | None = None
    for (name, node), behind in zip(nodes, following, strict=True):
        if isinstance(node, nir.Delay) and not isinstance(before, nir.IF | nir.LIF):
            raise ValueError(f"{name} (Delay) must stand right behind a neuron")
        before = node
        if isinstance(node, nir.SumPool2d):
            pool = node
        elif isinstance(node, nir.IF | nir.LIF):
            if pool is not None:
                window = (_sizes(size) for size in (pool.kernel_size, pool.stride, pool.padding))
                yield name, EarliestSpikePool2d(*window)
                # A delay behind a pool would be one of the neurons in front of it.
                pool = before = None
            else:
                yield name, _neuron(name, node, behind, dt, single_spike)
        elif not isinstance(node, nir.Delay):
            yield name, _module(name, node)


def _neuron(name: str, node: Any, behind: Any, dt: float, single_spike: bool) -> IF:
    marked = bool(node.metadata.get("single_spike", False))
    if not (single_spike or marked or float(np.max(node.v_reset)) <= LOWEST_RESET):
        raise ValueError(
            f"{name} ({type(node).__name__}) may fire more than once: v_reset is {np.max(node.v_reset)}. "
            "Pass single_spike=True to take it for a neuron that fires once"
        )
    if marked:
        dt = float(node.metadata.get("dt", 1.0))
    threshold, gain = _one_value(name, "v_threshold", node.v_threshold), _one_value(name, "r", node.r)
    if not gain > 0:
        raise ValueError(f"{name} ({type(node).__name__}): r must be above 0, got {gain}")
    lost = _leak(name, node, dt) if isinstance(node, nir.LIF) else 0.0
    # A LIF node counts an input r dt / tau times.
    counted = gain * lost if isinstance(node, nir.LIF) else gain
    delay = _one_value(name, "delay", behind.delay) / dt if isinstance(behind, nir.Delay) else 0.0
    neuron = {"threshold": threshold / counted, "delay": delay, "beta": max(1 - lost, 0.0)}
    if marked:
        neuron = {key: _as_noted(name, key, value, node.metadata) for key, value in neuron.items()}
    if math.isclose(neuron["delay"], round(neuron["delay"]), rel_tol=ROUNDING):
        neuron["delay"] = round(neuron["delay"])
    return IF(**neuron)  # type: ignore[arg-type]


def _leak(name: str, node: nir.LIF, dt: float) -> float:
    """What a neuron loses of its potential in a bin, dt / tau."""
    if _one_value(name, "v_leak", node.v_leak) != 0:
        raise ValueError(f"{name} (LIF): v_leak must be 0, got {np.max(node.v_leak)}")
    tau = _one_value(name, "tau", node.tau)
    if not math.isfinite(tau):
        raise ValueError(f"{name} (LIF): tau must be finite, got {tau}. Without a leak use an IF node")
    if tau <= 0 or dt / tau > 1 + ROUNDING:
        raise ValueError(
            f"{name} (LIF): tau must be at least dt = {dt}, in the graph's unit, got {tau:.6g}. "
            "Pass the dt of the graph, or its writer"
        )
    return dt / tau


def _as_noted(name: str, key: str, value: float, metadata: dict[str, Any]) -> float:
    """The value in the metadata, which is free of rounding; a node that says something else is refused."""
    noted = float(metadata.get(key, value))
    if not math.isclose(value, noted, rel_tol=ROUNDING, abs_tol=ROUNDING):
        raise ValueError(f"{name}: its {key} is {value} in the graph and {noted} in its metadata")
    return noted


def _module(name: str, node: Any) -> nn.Module:
    if isinstance(node, nir.Linear | nir.Affine):
        weight = torch.from_numpy(np.array(node.weight))
        if weight.ndim != 2:
            raise ValueError(f"{name}: weight must have shape [out, in], got {list(weight.shape)}")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=isinstance(node, nir.Affine), device="meta")
        return _with_parameters(name, linear, weight, getattr(node, "bias", None))
    if isinstance(node, nir.Conv2d):
        weight = torch.from_numpy(np.array(node.weight))
        has_bias = bool(node.metadata.get("has_bias", np.any(node.bias)))
        conv = nn.Conv2d(
            weight.shape[1] * int(node.groups),
            weight.shape[0],
            _sizes(weight.shape[2:]),
            _sizes(node.stride),
            node.padding if isinstance(node.padding, str) else _sizes(node.padding),
            _sizes(node.dilation),
            int(node.groups),
            bias=has_bias,
            device="meta",
        )
        return _with_parameters(name, conv, weight, node.bias if has_bias else None)
    if isinstance(node, nir.AvgPool2d):
        return nn.AvgPool2d(_sizes(node.kernel_size), _sizes(node.stride), _sizes(node.padding))
    if isinstance(node, nir.Flatten):
        shape = node.input_type["input"]
        if int(node.start_dim) != 0 or (shape is not None and len(node.output_type["output"]) != 1):
            raise ValueError(
                f"{name} (Flatten) must flatten the whole sample, start_dim 0, got {node.start_dim}"
            )
        return nn.Flatten()
    nothing = f"{name} ({type(node).__name__}) has no counterpart among the layers on spike times"
    if isinstance(node, nir.CubaLIF | nir.CubaLI):
        nothing += ": its synaptic current spreads an input over many bins. In a LIF node it acts at once"
    raise ValueError(nothing)


def _with_parameters(
    name: str, module: nn.Linear | nn.Conv2d, weight: Tensor, bias: np.ndarray | None
) -> nn.Linear | nn.Conv2d:
    if not weight.is_floating_point():
        raise ValueError(f"{name}: weight must be floating-point, got {weight.dtype}")
    module.weight = nn.Parameter(weight)
    if bias is not None:
        module.bias = nn.Parameter(torch.from_numpy(np.array(bias)).to(weight.dtype))
    return module


def _sizes(values: Any) -> tuple[int, int]:
    height, width = np.broadcast_to(np.asarray(values), 2)
    return int(height), int(width)


def _one_value(name: str, parameter: str, values: np.ndarray) -> float:
    return _checks.one_value(f"{name}: {parameter}", torch.as_tensor(np.asarray(values)))
