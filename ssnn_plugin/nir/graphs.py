"""Graphs rewritten to others that say the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import nir
import numpy as np
from torch import Tensor

Named: TypeAlias = list[tuple[str, nir.NIRNode]]

CONNECTIONS = nir.Linear | nir.Affine | nir.Conv2d
NEURONS = nir.IF | nir.LIF

# What counts as a reset, or an inhibition, that a neuron does not come back from.
LOWEST_RESET = -1e6


def changed(node: Any, **values: Any) -> Any:
    """A copy of a node with other values."""
    new = copy.copy(node)
    for name, value in values.items():
        setattr(new, name, value)
    return new


def as_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def in_numpy(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Arrays in the place of the tensors that exporters of torch models leave in their nodes.

    Raises:
        ValueError: None in the place of a node.
    """
    nodes = {}
    for name, node in graph.nodes.items():
        if node is None:
            raise ValueError(
                f"{name} is None: the exporter that wrote the graph has no node for this module. "
                "Write it with ssnn_plugin.nir.to_nir, or leave the module out"
            )
        tensors = {key: as_array(value) for key, value in vars(node).items() if isinstance(value, Tensor)}
        nodes[name] = changed(node, **tensors)
    return nir.NIRGraph(nodes, graph.edges, type_check=False)


def integrators_behind_a_bias(nodes: Iterable[tuple[str, nir.NIRNode]]) -> Iterator[tuple[str, nir.IF]]:
    """The IF neurons of a chain that a bias drives, with their names."""
    biased = False
    for name, node in nodes:
        if isinstance(node, CONNECTIONS):
            biased = bool(np.any(getattr(node, "bias", 0.0)))
        if isinstance(node, nir.IF) and biased:
            yield name, node
        biased = biased and not isinstance(node, NEURONS)


def is_first_spike_pool(neuron: Any) -> bool:
    """Whether a neuron behind a SumPool2d makes it a first-spike pool."""
    return isinstance(neuron, NEURONS) and bool(neuron.metadata.get("first_spike_pool", False))


def pools_as(kind: type, nodes: Iterable[tuple[str, nir.NIRNode]]) -> Named:
    """A chain with all its average pools as sums, or all its sums as averages.

    The number of values in a window moves into the weights that the pool stands beside.

    Raises:
        ValueError: a pool without a connection beside it.
    """
    chain = list(nodes)
    for place, (name, node) in enumerate(chain):
        if not isinstance(node, nir.AvgPool2d | nir.SumPool2d) or isinstance(node, kind):
            continue
        if place + 1 < len(chain) and is_first_spike_pool(chain[place + 1][1]):
            continue
        size = math.prod(int(n) for n in np.broadcast_to(node.kernel_size, 2))
        factor = 1 / size if kind is nir.SumPool2d else size
        beside, pools_currents = _connection_beside(chain, place)
        connection: Any = chain[beside][1]
        scaled = {"weight": connection.weight * factor}
        if pools_currents and not isinstance(connection, nir.Linear):
            scaled["bias"] = connection.bias * factor
        chain[beside] = chain[beside][0], changed(connection, **scaled)
        chain[place] = name, kind(node.kernel_size, node.stride, node.padding)
    return chain


def _connection_beside(chain: Named, place: int) -> tuple[int, bool]:
    """Where the connection of a pool's layer stands, and whether it stands in front of the pool."""
    ways = (range(place - 1, -1, -1), True), (range(place + 1, len(chain)), False)
    for way, in_front in ways:
        for other in way:
            if isinstance(chain[other][1], NEURONS):
                break
            if isinstance(chain[other][1], CONNECTIONS):
                return other, in_front
    name, pool = chain[place]
    raise ValueError(f"{name} ({type(pool).__name__}) needs a Linear, Affine or Conv2d node beside it")


def with_self_inhibition(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Every neuron inhibits itself when it fires, as deeply as it is reset.

    Raises:
        ValueError: a leak in which the inhibition fades within the window.
    """
    nodes, edges = dict(graph.nodes), []
    for start, end in graph.edges:
        node: Any = graph.nodes[start]
        if isinstance(node, NEURONS):
            spikes, inhibition = f"{start}_spikes", f"{start}_inhibition"
            # snnTorch 1.0 misreads a loop through one Linear node, so there are two.
            nodes[spikes] = _each_by_itself(node, 1.0)
            nodes[inhibition] = _each_by_itself(node, -_depth(start, node))
            # Norse 1.1 takes the node that it visits last for the output: the loop goes first.
            edges += [(start, spikes), (spikes, inhibition), (inhibition, start)]
        edges.append((start, end))
    return nir.NIRGraph(nodes, edges)


def _depth(name: str, neuron: Any) -> float:
    depth = -float(np.max(neuron.v_reset))
    beta, window = neuron.metadata["beta"], neuron.metadata["T"]
    if depth * beta**window < -LOWEST_RESET:
        raise ValueError(
            f"{name} ({type(neuron).__name__}): with beta = {beta} its inhibition fades in {window} bins, "
            "and it may fire again. Use a larger beta or a shorter window"
        )
    return depth


def _each_by_itself(neuron: Any, weight: float) -> nir.NIRNode:
    """A connection of each neuron with itself."""
    shape = neuron.v_threshold.shape
    diagonal = np.diag(np.full(shape[0], weight, dtype=np.float32))
    if len(shape) == 1:
        return nir.Linear(diagonal)
    return nir.Conv2d(
        input_shape=shape[1:],
        weight=diagonal[:, :, None, None],
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=np.zeros(shape[0], dtype=np.float32),
    )


def without_self_inhibition(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Neurons that are reset as deeply as a loop of connections inhibits them, instead of the loop."""
    nodes, edges = dict(graph.nodes), list(graph.edges)
    for name, node in graph.nodes.items():
        loop = _loop(graph, name) if isinstance(node, NEURONS) else []
        weight = math.prod(_self_weight(graph.nodes[other]) for other in loop)
        if not loop or weight > LOWEST_RESET:
            continue
        nodes[name] = changed(node, v_reset=np.full_like(node.v_reset, weight))
        nodes = {other: kept for other, kept in nodes.items() if other not in loop}
        edges = [edge for edge in edges if not set(edge) & set(loop)]
    return nir.NIRGraph(nodes, edges, type_check=False)


def _loop(graph: nir.NIRGraph, neuron: str) -> list[str]:
    """The connections that lead from a neuron straight back to it; none if there is no such loop."""
    after: dict[str, list[str]] = {}
    for start, end in graph.edges:
        after.setdefault(start, []).append(end)
    for name in after.get(neuron, []):
        path: list[str] = []
        while isinstance(graph.nodes[name], CONNECTIONS) and name not in path:
            path.append(name)
            if len(after.get(name, [])) != 1:
                break
            (name,) = after[name]
        if path and name == neuron:
            return path
    return []


def _self_weight(connection: Any) -> float:
    """The weight by which each unit is connected with itself alone, the weakest of all; 0 for others."""
    weight = np.asarray(connection.weight)
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):
        weight = weight[:, :, 0, 0]
    square = weight.ndim == 2 and weight.shape[0] == weight.shape[1]
    if not square or np.any(getattr(connection, "bias", 0.0)):
        return 0.0
    itself = np.diag(weight)
    only_itself = np.array_equal(weight, np.diag(itself))
    return float(itself[np.argmin(np.abs(itself))]) if only_itself else 0.0
