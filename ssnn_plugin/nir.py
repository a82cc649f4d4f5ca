"""Networks of neurons that fire at most once as NIR graphs, and back.

Needs the extra `nir`. NIR has no "at most one spike": a neuron becomes an IF (LIF with a leak) node
with a reset potential so low that it stays silent in simulators that honour it, and metadata that
say what is meant. Host models go through their network on spike times, so that one mapping serves all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import _checks
from .convert import Builder, as_network, children, connection_in_steps, to_event_driven, to_step_mode
from .decode import TIES
from .neurons import IF
from .nn import EarliestSpikePool2d, SpikeConv2d, SpikeSequential
from .nn.connection import SpikeConnection

try:
    import nir
except ImportError as error:
    raise ImportError("ssnn_plugin.nir needs NIR: pip install 'ssnn-plugin[nir]'") from error

__all__ = ["from_nir", "to_nir"]

# Far below what inputs add up to, and finite: several simulators turn infinities into NaN.
V_RESET = -1e9
DEEPEST_RESET = 1e30
# What counts as such a reset in graphs of others.
LOWEST_RESET = -1e6


def to_nir(
    model: nn.Module,
    *,
    input_shape: Sequence[int] | None = None,
    t_max: int | None = None,
    tie_rule: str = "potential",
) -> nir.NIRGraph:
    """A NIR graph of a network on spike times, or of a snnTorch or Norse model that has one.

    Every neuron node carries the metadata `single_spike`, `T`, `delay`, `beta`, `tie_rule`; its time
    unit is a bin. A first-spike pool becomes a SumPool2d with an IF node of threshold 1/2 behind it.
    Dropout, which belongs to training, is left out.

    Args:
        model: a layer of `ssnn_plugin.nn` or several in a row, or what `to_event_driven` takes.
        input_shape: shape of a sample, [in] or [channels, height, width]. It may be left out where
            a Linear layer comes first.
        t_max: number of steps, for a host model.
        tie_rule: how the decision among output spikes that tie is meant, see `decode.first_to_fire`;
            a note for whoever reads the graph.

    Raises:
        NoTimeMode: a module that has no time mode, by its path and class.
        ValueError: a missing `input_shape` or `t_max`, an unknown `tie_rule`, layers with different windows,
            convolutions with groups or kernels that are not square, whose shapes NIR 1.0 gets wrong.
        TypeError: a layer that is none of `ssnn_plugin.nn`.

    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear
    >>> graph = to_nir(SpikeSequential(SpikeLinear(4, 2, IF(), t_max=16)))
    >>> {name: type(node).__name__ for name, node in graph.nodes.items()}
    {'input': 'Input', 'linear': 'Linear', 'if': 'IF', 'output': 'Output'}
    """
    _checks.one_of("tie_rule", tie_rule, TIES)
    if any(isinstance(module, SpikeConnection) for module in model.modules()):
        network = as_network(model)
    elif t_max is None:
        raise ValueError("t_max must be the number of steps for a host model, got None")
    else:
        network = to_event_driven(model, t_max=t_max)
    window = next(layer.t_max for layer in network if isinstance(layer, SpikeConnection))
    shape = _input_shape(network, input_shape)
    metadata = {"T": window, "tie_rule": tie_rule}
    parameters = next(network.parameters())
    times = torch.full((1, *shape), math.inf, dtype=parameters.dtype, device=parameters.device)
    nodes: list[nir.NIRNode] = [nir.Input(input_type={"input": np.array(shape)})]
    for path, layer in children(network):
        before, times = times, layer(times)
        nodes += _nodes(path, layer, tuple(before.shape[1:]), tuple(times.shape[1:]), metadata)
    nodes.append(nir.Output(output_type={"output": np.array(times.shape[1:])}))
    return nir.NIRGraph.from_list(*nodes)


def _input_shape(model: SpikeSequential, given: Sequence[int] | None) -> tuple[int, ...]:
    first = model[0]
    if given is not None:
        return tuple(given)
    if hasattr(first, "in_features") and first.input_pool is None:
        return (first.in_features,)
    raise ValueError(f"input_shape must be given for a model that starts with {type(first).__name__}")


def _nodes(
    path: str, layer: nn.Module, shape_in: tuple[int, ...], shape: tuple[int, ...], metadata: dict[str, Any]
) -> Iterator[nir.NIRNode]:
    if isinstance(layer, EarliestSpikePool2d):
        window = (np.array(size) for size in (layer.kernel_size, layer.stride, layer.padding))
        yield nir.SumPool2d(*window)
        yield from _neuron_nodes(IF(0.5), shape, {**metadata, "first_spike_pool": True})
    elif isinstance(layer, nn.Flatten):
        yield nir.Flatten({"input": np.array(shape_in)}, start_dim=0)
    elif isinstance(layer, SpikeConnection):
        if not isinstance(layer.neuron, IF):
            raise ValueError(f"{path} ({type(layer).__name__}): NIR has IF neurons only, got {layer.neuron}")
        if isinstance(layer, SpikeConv2d) and (layer.groups > 1 or len(set(layer.kernel_size)) > 1):
            raise ValueError(
                f"{path} (SpikeConv2d): NIR 1.0 infers shapes for square kernels without groups only, "
                f"got kernel_size {layer.kernel_size}, groups {layer.groups}"
            )
        for module in connection_in_steps(layer):
            if not isinstance(module, nn.Dropout):
                yield _torch_node(module, shape_in)
                shape_in = _shape_behind(module, shape_in, layer.weight)
        yield from _neuron_nodes(layer.neuron, shape, metadata)
    else:
        raise TypeError(f"{path} ({type(layer).__name__}) is no layer of ssnn_plugin.nn")


def _torch_node(module: nn.Module, shape_in: tuple[int, ...]) -> nir.NIRNode:
    if isinstance(module, nn.Linear):
        weight = _array(module.weight)
        return nir.Linear(weight) if module.bias is None else nir.Affine(weight, _array(module.bias))
    if isinstance(module, nn.Conv2d):
        return nir.Conv2d(
            input_shape=shape_in[1:],
            weight=_array(module.weight),
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=np.zeros(len(module.weight)) if module.bias is None else _array(module.bias),
            metadata={"has_bias": module.bias is not None},
        )
    if isinstance(module, nn.AvgPool2d):
        return nir.AvgPool2d(*(np.array(size) for size in (module.kernel_size, module.stride, (0, 0))))
    return nir.Flatten({"input": np.array(shape_in)}, start_dim=0)


@torch.no_grad()
def _shape_behind(module: nn.Module, shape: tuple[int, ...], like: Tensor) -> tuple[int, ...]:
    return tuple(module(like.new_zeros(1, *shape)).shape[1:])


def _neuron_nodes(neuron: IF, shape: tuple[int, ...], metadata: dict[str, Any]) -> Iterator[nir.NIRNode]:
    def full(value: float) -> np.ndarray:
        return np.full(shape, value)

    metadata = {"single_spike": True, "delay": neuron.delay, "beta": float(neuron.beta), **metadata}
    # A leak lets the reset fade: it starts deeper, as far as single precision goes.
    depth = min(abs(V_RESET) / max(neuron.beta ** metadata["T"], 1e-30), DEEPEST_RESET)
    rest = {"v_threshold": full(neuron.threshold), "v_reset": full(-depth), "metadata": metadata}
    if neuron.beta == 1:
        yield nir.IF(r=full(1.0), **rest)
    else:
        # Euler's step of one bin, v + (r I - v) / tau, keeps beta and adds I.
        tau = full(1 / (1 - neuron.beta))
        yield nir.LIF(tau=tau, r=tau, v_leak=full(0.0), **rest)
    if neuron.delay:
        yield nir.Delay(full(float(neuron.delay)))


def from_nir(
    graph: nir.NIRGraph,
    *,
    host: str | None = None,
    t_max: int | None = None,
    dt: float = 1.0,
    single_spike: bool = False,
) -> nn.Module:
    """The network on spike times of a NIR graph, or the step-by-step model of a host.

    Args:
        graph: a chain of Linear, Affine, Conv2d, AvgPool2d, Flatten, IF and LIF nodes, first-spike pools as
            `to_nir` writes them, and Delay nodes behind neurons.
        host: None for a `SpikeSequential`, "snntorch" or "norse" for a step-by-step model, as `to_step_mode`.
        t_max: length of the window; None takes it from the metadata.
        dt: length of a bin in the graph's unit of time, for nodes without our metadata: a LIF node then
            keeps 1 - dt / tau and counts an input r dt / tau times, a delay is in that unit. An IF node
            counts an input r times, a spike being an impulse, so that a bias, a current, needs dt = 1.
        single_spike: whether neurons that are not marked as single-spike are taken for it.

    Raises:
        ValueError: an unknown node, a graph that is no chain, a neuron that may fire more than once,
            parameters that differ between the neurons of a layer, no window.
        NoTimeMode: a chain that has no time mode.

    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear
    >>> model = SpikeSequential(SpikeLinear(4, 2, IF(2.0, delay=1), t_max=16))
    >>> from_nir(to_nir(model))[0].neuron
    IF(threshold=2.0, delay=1, beta=1.0)
    """
    _checks.positive("dt", dt)
    nodes = _chain(graph)
    builder = Builder(_window(nodes, t_max), [])
    for name, part in _parts(nodes, dt, single_spike):
        builder.add(name, part)
    network = builder.finish()
    return network if host is None else to_step_mode(network, host)


def _chain(graph: nir.NIRGraph) -> list[tuple[str, nir.NIRNode]]:
    after = dict(graph.edges)
    starts = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(after) != len(graph.edges) or len(set(after.values())) != len(after) or len(starts) != 1:
        raise ValueError(
            "graph must be a chain with one Input node; it branches, joins or has several inputs"
        )
    nodes: list[tuple[str, nir.NIRNode]] = []
    name = starts[0]
    while name in after and len(nodes) < len(graph.nodes):
        name = after[name]
        nodes.append((name, graph.nodes[name]))
    if len(nodes) != len(graph.nodes) - 1 or not nodes or not isinstance(nodes[-1][1], nir.Output):
        raise ValueError("graph must be a chain from its Input node to its Output node")
    return nodes[:-1]


def _window(nodes: list[tuple[str, nir.NIRNode]], t_max: int | None) -> int:
    if t_max is None:
        windows = {float(node.metadata["T"]) for _, node in nodes if "T" in node.metadata}
        if len(windows) != 1:
            raise ValueError(
                f"t_max must be given: the graph's metadata have {sorted(windows) or 'no window T'}"
            )
        t_max = windows.pop()  # type: ignore[assignment]
    _checks.whole_and_positive("t_max", t_max)  # type: ignore[arg-type]
    return int(t_max)  # type: ignore[arg-type]


def _parts(
    nodes: list[tuple[str, nir.NIRNode]], dt: float, single_spike: bool
) -> Iterator[tuple[str, nn.Module | IF]]:
    """What the builder joins to layers; neurons take the delay and the pool beside them along."""
    following: list[Any] = [node for _, node in nodes[1:]] + [None]
    before: Any = None
    pool: nir.SumPool2d | None = None
    for (name, node), behind in zip(nodes, following, strict=True):
        _check_place(name, node, before, dt)
        before = node
        if isinstance(node, nir.SumPool2d):
            if behind is None or not behind.metadata.get("first_spike_pool", False):
                raise ValueError(f"{name} (SumPool2d) is supported only as a first-spike pool of to_nir's")
            pool = node
        elif isinstance(node, nir.IF | nir.LIF):
            if pool is not None:
                window = (_sizes(size) for size in (pool.kernel_size, pool.stride, pool.padding))
                yield name, EarliestSpikePool2d(*window)
                pool = None
            else:
                yield name, _neuron(name, node, behind, dt, single_spike)
        elif not isinstance(node, nir.Delay):
            yield name, _module(name, node)


def _check_place(name: str, node: Any, before: Any, dt: float) -> None:
    """Refuse a delay of anything but a neuron, and a bias that a bin would not count once."""
    if isinstance(node, nir.Delay) and not isinstance(before, nir.IF | nir.LIF):
        raise ValueError(f"{name} (Delay) must stand right behind a neuron")
    biased = isinstance(before, nir.Affine | nir.Conv2d) and bool(np.any(before.bias))
    if isinstance(node, nir.IF) and biased and dt != 1 and "single_spike" not in node.metadata:
        raise ValueError(f"{name} (IF): dt must be 1 behind a node with a bias, got {dt}")


def _neuron(name: str, node: Any, behind: Any, dt: float, single_spike: bool) -> IF:
    marked = bool(node.metadata.get("single_spike", False))
    if not (single_spike or marked or float(np.max(node.v_reset)) <= LOWEST_RESET):
        raise ValueError(
            f"{name} ({type(node).__name__}) may fire more than once: v_reset is {np.max(node.v_reset)}. "
            "Pass single_spike=True to take it for a neuron that fires once"
        )
    threshold, gain = _one_value(name, "v_threshold", node.v_threshold), _one_value(name, "r", node.r)
    if not gain > 0:
        raise ValueError(f"{name} ({type(node).__name__}): r must be above 0, got {gain}")
    beta = 1.0
    if isinstance(node, nir.LIF):
        if _one_value(name, "v_leak", node.v_leak) != 0:
            raise ValueError(f"{name} (LIF): v_leak must be 0, got {np.max(node.v_leak)}")
        tau = _one_value(name, "tau", node.tau)
        beta = float(node.metadata.get("beta", 1 - dt / tau))
        if not 0 <= beta <= 1:
            raise ValueError(f"{name} (LIF): tau must be at least dt = {dt}, in the graph's unit, got {tau}")
        # Our own nodes add an input as it is; the rounding of r / tau would move the threshold.
        gain = 1.0 if marked else gain * dt / tau
    delay = 0.0
    if isinstance(behind, nir.Delay):
        delay = _one_value(name, "delay", behind.delay) / (1.0 if marked else dt)
    if marked and delay != float(node.metadata.get("delay", delay)):
        raise ValueError(
            f"{name}: the Delay node behind it has {delay} bins, its metadata {node.metadata['delay']}"
        )
    return IF(threshold / gain, delay=int(delay) if delay == int(delay) else delay, beta=beta)  # type: ignore[arg-type]


def _module(name: str, node: Any) -> nn.Module:
    if isinstance(node, nir.Linear | nir.Affine):
        weight = torch.from_numpy(np.array(node.weight))
        if weight.ndim != 2:
            raise ValueError(f"{name}: weight must have shape [out, in], got {list(weight.shape)}")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=isinstance(node, nir.Affine), device="meta")
        return _with_parameters(linear, weight, getattr(node, "bias", None))
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
        return _with_parameters(conv, weight, node.bias if has_bias else None)
    if isinstance(node, nir.AvgPool2d):
        return nn.AvgPool2d(_sizes(node.kernel_size), _sizes(node.stride), _sizes(node.padding))
    if isinstance(node, nir.Flatten):
        shape = node.input_type["input"]
        if int(node.start_dim) != 0 or (shape is not None and len(node.output_type["output"]) != 1):
            raise ValueError(
                f"{name} (Flatten) must flatten the whole sample, start_dim 0, got {node.start_dim}"
            )
        return nn.Flatten()
    raise ValueError(f"{name} ({type(node).__name__}) has no counterpart among the layers on spike times")


def _with_parameters(
    module: nn.Linear | nn.Conv2d, weight: Tensor, bias: np.ndarray | None
) -> nn.Linear | nn.Conv2d:
    module.weight = nn.Parameter(weight)
    if bias is not None:
        module.bias = nn.Parameter(torch.from_numpy(np.array(bias)).to(weight.dtype))
    return module


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def _sizes(values: Any) -> tuple[int, int]:
    height, width = np.broadcast_to(np.asarray(values), 2)
    return int(height), int(width)


def _one_value(name: str, parameter: str, values: np.ndarray) -> float:
    return _checks.one_value(f"{name}: {parameter}", torch.as_tensor(np.asarray(values)))
