"""What importers of NIR make of a graph, and graphs in which they see what is meant (docs/nir.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import nir
import numpy as np

from .. import _checks
from .graphs import changed, pools_as, with_self_inhibition

Change: TypeAlias = Callable[[nir.NIRGraph], nir.NIRGraph]

# A leak that double precision cannot tell from none.
ENDLESS = 1e20


def leaky(graph: nir.NIRGraph) -> nir.NIRGraph:
    """IF neurons as LIF neurons that lose nothing within any window."""

    def as_lif(node: Any) -> nir.NIRNode:
        tau = np.full_like(node.r, ENDLESS * node.metadata["dt"])
        r = np.full_like(node.r, ENDLESS)
        return nir.LIF(tau, r, np.zeros_like(r), node.v_threshold, node.v_reset, metadata=node.metadata)

    return _each(graph, nir.IF, as_lif)


def unit_resistance(graph: nir.NIRGraph) -> nir.NIRGraph:
    """LIF neurons with their potential in units in which r is 1."""

    def scaled(node: Any) -> Any:
        return changed(
            node,
            r=np.ones_like(node.r),
            v_threshold=node.v_threshold / node.r,
            v_reset=node.v_reset / node.r,
        )

    return _each(graph, nir.LIF, scaled)


def sum_pools(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Average pools as sum pools."""
    return nir.NIRGraph(dict(pools_as(nir.SumPool2d, graph.nodes.items())), graph.edges)


def _each(graph: nir.NIRGraph, kind: type, new: Callable[[Any], nir.NIRNode]) -> nir.NIRGraph:
    nodes = {name: new(node) if isinstance(node, kind) else node for name, node in graph.nodes.items()}
    return nir.NIRGraph(nodes, graph.edges)


def refuse_delays(graph: nir.NIRGraph) -> nir.NIRGraph:
    return _refused(graph, lambda node: isinstance(node, nir.Delay), "it knows no delays. Use delay=0")


def refuse_padded_pools(graph: nir.NIRGraph) -> nir.NIRGraph:
    def padded(node: Any) -> bool:
        return isinstance(node, nir.SumPool2d) and bool(np.any(node.padding))

    return _refused(graph, padded, "it leaves the padding of pools out. Use padding=0")


def refuse_biases(graph: nir.NIRGraph) -> nir.NIRGraph:
    why = (
        "it drops the bias of linear layers. Use bias=False; or leave reader out, and pass "
        "nirtorch.nir_to_torch a function of your own for nir.Affine"
    )
    return _refused(graph, lambda node: isinstance(node, nir.Affine), why)


def _refused(graph: nir.NIRGraph, is_wrong: Callable[[Any], bool], why: str) -> nir.NIRGraph:
    for name, node in graph.nodes.items():
        if is_wrong(node):
            raise ValueError(f"{name} ({type(node).__name__}): {why}")
    return graph


class Reader(NamedTuple):
    """An importer: the seconds that it takes a step for, and what a graph needs to be read as meant."""

    dt: float
    knows_other_steps: bool
    changes: tuple[Change, ...]


# The depth of the inhibition is in the unit of the inputs: it is set before the potential changes its own.
READERS = {
    "snntorch": Reader(1e-4, False, (refuse_delays, refuse_padded_pools, leaky, with_self_inhibition)),
    "norse": Reader(
        1e-3,
        True,
        (refuse_delays, refuse_padded_pools, sum_pools, with_self_inhibition, unit_resistance),
    ),
    "nirtorch": Reader(1.0, True, (refuse_biases, refuse_padded_pools)),
}


def time_step(reader: str | None, dt: float | None) -> float:
    """The length of a bin for a reader, in seconds; 1 if nothing is said.

    Raises:
        ValueError: an unknown reader, a `dt` that is not positive or not the reader's.
    """
    if dt is not None:
        _checks.positive("dt", dt)
    if reader is None:
        return 1.0 if dt is None else dt
    _checks.one_of("reader", reader, READERS)
    its = READERS[reader]
    if dt is None:
        return its.dt
    if dt != its.dt and not its.knows_other_steps:
        raise ValueError(f"dt must be {its.dt} for the reader {reader!r}, which knows no other, got {dt!r}")
    return dt


def for_reader(graph: nir.NIRGraph, reader: str) -> nir.NIRGraph:
    """The graph in which a reader sees what this one says.

    Raises:
        ValueError: a node that it cannot be made to read, by its name.
    """
    try:
        for change in READERS[reader].changes:
            graph = change(graph)
    except ValueError as error:
        raise ValueError(f"the reader {reader!r} cannot have this network: {error}") from error
    return graph


def written_time_step(writer: str | None, dt: float | None) -> float:
    """The length of a bin in the unit of time of a graph that a host's exporter has written.

    Raises:
        ValueError: an unknown writer, a `dt` that is not positive.
    """
    if dt is not None:
        _checks.positive("dt", dt)
    if writer is None:
        return 1.0 if dt is None else dt
    _checks.one_of("writer", writer, ("snntorch", "norse"))
    step = READERS[writer].dt if dt is None else dt
    # Norse 1.1 writes dt / tau_mem_inv for 1 / tau_mem_inv.
    return step * step if writer == "norse" else step
