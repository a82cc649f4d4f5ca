"""NIR graphs of networks of neurons that fire at most once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from .. import _checks
from ..convert import as_network, children, connection_in_steps, to_event_driven
from ..decode import TIES
from ..neurons import IF
from ..nn import EarliestSpikePool2d, SpikeConv2d, SpikeSequential
from ..nn.connection import SpikeConnection
from ..relu import RampNetwork
from .graphs import as_array, integrators_behind_a_bias
from .readers import for_reader, time_step

# Far below what inputs add up to, and finite: several simulators turn infinities into NaN.
V_RESET = -1e9
DEEPEST_RESET = 1e30


def to_nir(
    model: nn.Module,
    *,
    input_shape: Sequence[int] | None = None,
    t_max: int | None = None,
    tie_rule: str = "potential",
    reader: str | None = None,
    dt: float | None = None,
) -> nir.NIRGraph:
    """A NIR graph of a network on spike times, or of a snnTorch or Norse model that has one.

    Every neuron node carries the metadata `single_spike`, `T`, `dt`, `threshold`, `delay`, `beta` and
    `tie_rule`. A first-spike pool becomes a SumPool2d with an IF node of threshold 1/2 behind it. Dropout,
    which belongs to training, is left out.

    Args:
        model: a layer of `ssnn_plugin.nn` or several in a row, or what `to_event_driven` takes.
        input_shape: shape of a sample, [in] or [channels, height, width]. It may be left out where
            a Linear layer comes first.
        t_max: number of steps, for a host model.
        tie_rule: how the decision among output spikes that tie is meant, see `decode.first_to_fire`;
            a note for whoever reads the graph.
        reader: whose importer is to read the graph: "snntorch" (`import_from_nir`), "norse" (`from_nir`) or
            "nirtorch" (`nir_to_torch`, to which you pass the neurons). The graph is then written so that
            it sees the same network, in its time step; docs/nir.md says what that takes, and how to run
            it. None is for simulators that keep to NIR's equations, and for `from_nir`, which reads all.
        dt: length of a bin in seconds, the unit of time constants and delays. None is the time step that
            the reader assumes: 1e-4 for snnTorch, which knows no other, 1e-3 for Norse, else 1, so that
            the unit is a bin.

    Raises:
        NoTimeMode: a module that has no time mode, by its path and class.
        ValueError: a missing `input_shape` or `t_max`, an unknown `tie_rule`, layers with different windows,
            convolutions with groups or kernels that are not square, whose shapes NIR 1.0 gets wrong. An
            unknown `reader`, a `dt` that it does not know, a network that it cannot have. IF neurons
            behind a bias without a reader and with a dt other than 1: whether the bias counts once a
            bin or dt times is left open by NIR.
        TypeError: a layer that is none of `ssnn_plugin.nn`.
        ValueError: a `RampNetwork`.

    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear
    >>> graph = to_nir(SpikeSequential(SpikeLinear(4, 2, IF(), t_max=16)))
    >>> {name: type(node).__name__ for name, node in graph.nodes.items()}
    {'input': 'Input', 'linear': 'Linear', 'if': 'IF', 'output': 'Output'}
    """
    _checks.one_of("tie_rule", tie_rule, TIES)
    if isinstance(model, RampNetwork):
        raise ValueError(
            "NIR has no neuron whose slope changes at a given time, as that of a ramp in a window does: "
            "write the ReLU network with an exporter for such networks, or use IF neurons"
        )
    dt = time_step(reader, dt)
    if any(isinstance(module, SpikeConnection) for module in model.modules()):
        network = as_network(model)
    elif t_max is None:
        raise ValueError("t_max must be the number of steps for a host model, got None")
    else:
        network = to_event_driven(model, t_max=t_max, binwise=False)
    window = next(layer.t_max for layer in network if isinstance(layer, SpikeConnection))
    metadata = {"T": window, "dt": dt, "tie_rule": tie_rule}
    graph = _graph(network, _input_shape(network, input_shape), metadata)
    if reader is not None:
        return for_reader(graph, reader)
    for name, _ in integrators_behind_a_bias(graph.nodes.items()):
        if dt != 1:
            raise ValueError(
                f"{name} (IF): dt must be 1 behind a node with a bias, got {dt}, as NIR leaves open whether "
                "the bias counts once a bin. Leave dt out, or name the reader"
            )
    return graph


def _graph(network: SpikeSequential, shape: tuple[int, ...], metadata: dict[str, Any]) -> nir.NIRGraph:
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
        if not isinstance(layer.neuron, IF) or layer.neuron.parameters:
            raise ValueError(
                f"{path} ({type(layer).__name__}): NIR has IF neurons only, which share threshold and leak, "
                f"got {layer.neuron}"
            )
        if isinstance(layer, SpikeConv2d) and (layer.groups > 1 or len(set(layer.kernel_size)) > 1):
            raise ValueError(
                f"{path} (SpikeConv2d): NIR 1.0 infers shapes for square kernels without groups only, "
                f"got kernel_size {layer.kernel_size}, groups {layer.groups}"
            )
        for module in connection_in_steps(layer, shared=False):
            if not isinstance(module, nn.Dropout):
                yield _torch_node(module, shape_in)
                shape_in = _shape_behind(module, shape_in, layer.weight)
        yield from _neuron_nodes(layer.neuron, shape, metadata)
    else:
        raise TypeError(f"{path} ({type(layer).__name__}) is no layer of ssnn_plugin.nn")


def _torch_node(module: nn.Module, shape_in: tuple[int, ...]) -> nir.NIRNode:
    if isinstance(module, nn.Linear):
        weight = as_array(module.weight)
        return nir.Linear(weight) if module.bias is None else nir.Affine(weight, as_array(module.bias))
    if isinstance(module, nn.Conv2d):
        return nir.Conv2d(
            input_shape=shape_in[1:],
            weight=as_array(module.weight),
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=np.zeros(len(module.weight)) if module.bias is None else as_array(module.bias),
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

    metadata = {
        "single_spike": True,
        "threshold": float(neuron.threshold),
        "delay": neuron.delay,
        "beta": float(neuron.beta),
        **metadata,
    }
    # A leak lets the reset fade: it starts deeper, as far as single precision goes.
    depth = min(abs(V_RESET) / max(neuron.beta ** metadata["T"], 1e-30), DEEPEST_RESET)
    rest = {"v_threshold": full(float(neuron.threshold)), "v_reset": full(-depth), "metadata": metadata}
    if neuron.beta == 1:
        yield nir.IF(r=full(1.0), **rest)
    else:
        # Euler's step of one bin, v + (r I - v) dt / tau, keeps beta and adds I.
        bins = 1 / (1 - float(neuron.beta))
        yield nir.LIF(tau=full(bins * metadata["dt"]), r=full(bins), v_leak=full(0.0), **rest)
    if neuron.delay:
        yield nir.Delay(full(neuron.delay * metadata["dt"]))
