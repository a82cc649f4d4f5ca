"""What a network decides by its first output spike, and what it had to read until then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks, decode, encode
from ..kernels import ops
from ..neurons import IF
from .binwise import BinwiseLayer
from .connection import SpikeConnection
from .linear import SpikeLinear
from .residual import AddedCurrentResidual

if TYPE_CHECKING:
    from ..kernels.cpu.decide import Layer, Ranks
    from .sequential import SpikeSequential

NEURONS = SpikeConnection, BinwiseLayer, AddedCurrentResidual


class Decision(NamedTuple):
    """What a network decides for each sample.

    Args:
        winner: the class [batch], -1 for undecided.
        time: of the first output spike [batch], `inf` without any.
        times: of the outputs that fire then [batch, classes], `inf` for all others.
        potential: V of the outputs that fire then, of all at the end of the window without any output spike,
            0 for the others [batch, classes]. With the times it is what `decode.first_to_fire` and
            `metrics.accuracy` need, under all of their rules.
        spikes: up to and including that time, of the inputs and of every layer of neurons, outputs last
            [batch, layers + 1]; of the whole window without any output spike.
    """

    winner: Tensor
    time: Tensor
    times: Tensor
    potential: Tensor
    spikes: Tensor


def decide_event_by_event(
    network: SpikeSequential, inputs: Tensor, tie: str, by_potential: bool
) -> Decision | None:
    """One compiled pass over all layers until the first output spike; None for networks that need another.

    That is fully connected `IF` neurons on the CPU which share a leak per layer.
    """
    layers = [] if _is_changed(network) else list(_unnested(network))
    while layers and flattens_samples(layers[0]):
        inputs = inputs.flatten(1)
        layers.pop(0)
    stack = [layer for layer in layers if isinstance(layer, SpikeLinear)]
    if not stack or len(stack) < len(layers) or not all(map(_is_plain, stack)) or not _fit(inputs, stack):
        return None
    from ..kernels.cpu import decide as compiled  # when it first runs: importing numba is slow

    ranks = None
    if inputs.dtype == torch.uint8:
        ranks = _ranks(stack[0].t_max, stack[0].weight.dtype)
    threshold = _threshold(stack[-1])
    scale = threshold if isinstance(threshold, Tensor) else None
    rule = decode.TIES.index(tie), by_potential
    found = compiled.decide(inputs, [_layer(one) for one in stack], ranks, scale, *rule)
    return None if found is None else Decision(*found)


def decide_layer_by_layer(network: SpikeSequential, inputs: Tensor, tie: str, by_potential: bool) -> Decision:
    """The same decision of any network, from the spikes of the whole window."""
    layer = next((m for m in network.modules() if isinstance(m, SpikeConnection | BinwiseLayer)), None)
    if layer is None:
        raise TypeError(f"decide needs a layer of neurons such as SpikeLinear, got {network!r}")
    window = layer.t_max
    if inputs.dtype == torch.uint8:
        dtype = next((p.dtype for p in network.parameters()), torch.get_default_dtype())
        inputs = _latency(inputs, window).to(dtype)
    layers: list[Tensor] = [torch.where(inputs < window, inputs, torch.inf)]
    thread = threading.get_ident()

    def note(layer: nn.Module, given: Any, spikes: Any) -> None:
        if threading.get_ident() == thread:
            layers.append(spikes[0] if isinstance(spikes, tuple) else spikes)

    inside = {m.connection for m in network.modules() if isinstance(m, AddedCurrentResidual)}
    layers_of_neurons = [m for m in network.modules() if isinstance(m, NEURONS) and m not in inside]
    handles = [module.register_forward_hook(note) for module in layers_of_neurons]
    try:
        outputs, potential = network(inputs, return_potential=True)
    finally:
        for handle in handles:
            handle.remove()
    return decision_of(layers, outputs, potential, tie, by_potential)


def silent_by_potential(tie: str, all_silent: str | None) -> bool:
    """Whether a sample without output spikes is decided by potential, by arguments of `first_to_fire`.

    Raises:
        ValueError: an unknown rule.
    """
    _checks.one_of("tie", tie, decode.TIES)
    _checks.one_of("all_silent", all_silent, (None, "potential", "undecided"))
    return all_silent == "potential" or (all_silent is None and tie != "unique")


def decision_of(
    layers: list[Tensor], outputs: Tensor, potential: Tensor, tie: str, by_potential: bool
) -> Decision:
    """The decision of a network whose layers, inputs first and outputs last, have these spikes."""
    all_silent = "potential" if by_potential else "undecided"
    winner = decode.first_to_fire(outputs, potential, tie=tie, all_silent=all_silent)
    time = outputs.amin(1)
    counted = [(spikes.flatten(1) <= time.unsqueeze(1)) & spikes.flatten(1).isfinite() for spikes in layers]
    first = (outputs == time.unsqueeze(1)) & outputs.isfinite()
    return Decision(
        winner,
        time,
        outputs.masked_fill(~first, torch.inf),
        potential.masked_fill(~first & time.isfinite().unsqueeze(1), 0),
        torch.stack([spikes.sum(1) for spikes in counted], 1),
    )


def _unnested(network: nn.Module) -> Iterator[nn.Module]:
    """The layers of a chain, those of chains inside it too; one that stands twice comes twice."""
    for layer in network:  # type: ignore[attr-defined]
        if type(layer) in (nn.Sequential, type(network)) and not _is_changed(layer):
            yield from _unnested(layer)
        else:
            yield layer


def flattens_samples(layer: nn.Module) -> bool:
    """Whether a layer makes features of whole samples."""
    return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


def _is_changed(layer: nn.Module) -> bool:
    """Whether calling it does something else than its class."""
    return _checks.has_forward_hooks(layer) or "forward" in vars(layer)


def _is_plain(layer: SpikeLinear) -> bool:
    """Whether the kernel computes what calling the layer does."""
    if type(layer) is not SpikeLinear or _is_changed(layer) or layer.input_pool is not None:
        return False
    if type(layer._neuron) is not IF or isinstance(layer._neuron.beta, Tensor):
        return False
    if not _is_accepted(layer):
        return False
    whole = layer.t_max == int(layer.t_max) or not _drifts(layer)
    bias = layer.bias is None or bool(layer.bias.isfinite().all())
    return whole and bias and not (layer.training and layer.dropout) and layer.weight.device.type == "cpu"


def _is_accepted(layer: SpikeLinear) -> bool:
    """Whether calling the layer takes its window and values per neuron; if not, it is left to say why."""
    try:
        if layer._neuron.delay or _drifts(layer):
            _checks.distinct_bins(layer.t_max, layer.weight.dtype)
        if layer._neuron.parameters:
            layer.neuron.check_parameters(layer.weight)
    except (ValueError, TypeError):
        return False
    return True


def _drifts(layer: SpikeLinear) -> bool:
    """Whether V changes between spikes, so that only whole bins have a meaning."""
    return layer.bias is not None or bool(layer._neuron.beta != 1)


def _fit(inputs: Tensor, stack: list[SpikeLinear]) -> bool:
    """Whether inputs and layers go together; what does not is left to the layers to refuse."""
    sizes = [inputs.shape[1] if inputs.ndim == 2 else -1, *(layer.out_features for layer in stack)]
    dtypes = {layer.weight.dtype for layer in stack}
    if inputs.dtype != torch.uint8:
        dtypes.add(inputs.dtype)
        whole = not any(map(_drifts, stack)) or bool((inputs.isinf() | (inputs == inputs.floor())).all())
    else:
        whole = stack[0].t_max == int(stack[0].t_max)
    fit = all(layer.in_features == size for layer, size in zip(stack, sizes, strict=False))
    known = len(dtypes) == 1 and dtypes <= set(_checks.DTYPES)
    return ops.plain(inputs) and inputs.device.type == "cpu" and fit and whole and known


def _layer(layer: SpikeLinear) -> Layer:
    """Where thresholds differ, weights are measured in them, as the layers do."""
    from ..kernels.cpu.decide import Layer

    weight, bias, threshold = layer.weight.detach(), layer.bias, _threshold(layer)
    bias = None if bias is None else bias.detach()
    if isinstance(threshold, Tensor):
        weight = weight / threshold.unsqueeze(1)
        bias, threshold = None if bias is None else bias / threshold, 1.0
    neuron: Any = layer._neuron
    return Layer(weight.t(), bias, threshold, float(neuron.beta), neuron.delay, layer.t_max)


def _threshold(layer: SpikeLinear) -> float | Tensor:
    """As `layer.neuron` has it, which takes longer."""
    threshold = layer._neuron.threshold
    return layer.threshold.detach() if isinstance(threshold, Tensor) else threshold  # type: ignore[operator]


@lru_cache
def _ranks(t_max: float, dtype: torch.dtype) -> Ranks:
    """How bytes are sorted by their latency."""
    from ..kernels.cpu.decide import ranks

    return ranks(_latency(torch.arange(256, dtype=torch.uint8), t_max).to(dtype))


def _latency(images: Tensor, t_max: float) -> Tensor:
    """Refuses a `t_max` that is no whole number."""
    return encode.latency(images, t_max, x_max=255)  # type: ignore[arg-type]
