"""From the stages of a model in steps to the layers of its network on spike times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from . import _checks
from ._builder import Builder
from ._segment import INPUT, Parts, Stage
from ._trace import SUPPORTED, NoTimeMode, hooks_of
from .nn import BinwiseLayer, EarliestSpikePool2d, EventDrivenNetwork, SpikeFlatten, SpikeReadout
from .nn.binwise import Currents
from .nn.connection import SpikeConnection

if TYPE_CHECKING:
    from .convert import Host

WEIGHTED = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
NEURONS_OR_BEHIND = (SpikeConnection, BinwiseLayer, SpikeReadout, EarliestSpikePool2d)
NOT_IN_FRONT = (
    "what is in front of it has a state of its own, or weights that are neither float32 nor float64. Use "
    "Linear layers, convolutions and pools"
)
SAME_INPUT = (
    "it gets the same input in every step, which is no spike. Encode it as spikes, for instance with the "
    "adapter's latency encoder, and index them by the step"
)


class Follower:
    """Keeps a layer to the model that it was made from: weights, threshold, leak, how much is dropped."""

    def __init__(
        self,
        layer: SpikeConnection,
        connection: nn.Linear | nn.Conv2d,
        neuron: nn.Module,
        host: Host,
        dropout: nn.Dropout | None,
    ) -> None:
        self.layer, self.connection, self.neuron, self.host = layer, connection, neuron, host
        self.dropout = dropout
        self.weight, self.bias = connection.weight, connection.bias

    def __call__(self) -> None:
        neuron = self.host.neuron_on_times(self.neuron)
        if neuron is not None and neuron != self.layer.neuron:
            self.layer.set_neuron(neuron)
        # The layer may have other parameters for the time of a call, as `torch.func` gives it.
        if self.connection.weight is not self.weight:
            _checks.plain_weights(self.connection)
            self.layer.weight = self.weight = self.connection.weight  # type: ignore[assignment]
        if self.connection.bias is not self.bias:
            self.layer.bias = self.bias = self.connection.bias
        if self.dropout is not None and self.dropout.p != self.layer.dropout:
            _checks.dropout("p of the model's Dropout", self.dropout.p)
            self.layer.dropout = self.dropout.p


class ReadOutWeights:
    """Keeps a read-out to the weights of the module that it was made from."""

    def __init__(self, weights: nn.Module, module: nn.Module, host: Host) -> None:
        self.weights, self.module, self.host = weights, module, host

    def __call__(self) -> None:
        weights, _ = self.host.read_out(self.module)  # type: ignore[misc]
        self.weights.weight = weights.weight  # type: ignore[union-attr]


class StillThere(Parts):
    """Refuses a network whose model has got other modules than those that it was made from, or hooks."""

    #: paths of modules that a call of the model runs and one of the network does not
    bypassed: tuple[str, ...] = ()

    def bypass(self, network: nn.Module) -> None:
        """Look for hooks of the modules, and of those that they are in, unless the network runs them."""
        run = set(network.modules())
        inside = [path.split(".") for path, part in self.parts.items() if part not in run]
        every = {".".join(names[:depth]) for names in inside for depth in range(len(names) + 1)}
        self.bypassed = tuple(sorted(every))

    def __call__(self) -> None:
        for path, _ in self.replaced():
            raise ValueError(
                f"{path} of the model is not the module that the network was made from. Convert the "
                "model again"
            )
        for path in self.bypassed:
            module = self.at(path)
            if module is not None and hooks_of(module):
                raise ValueError(
                    f"{path or 'the model'} has got hooks, which may change what it computes. Remove them "
                    "(handle.remove()), or register them on the network"
                )


class Assembly:
    """Turns stages into layers, one after the other.

    Args:
        model: what the stages are of.
        t_max, binwise, last_bin: as for `to_event_driven`.
        hosts: the adapters.
        values: whether the network takes values that stay instead of times.
        alone: the path of a model that is a single module, which errors call "the model".
    """

    def __init__(
        self,
        model: nn.Module,
        t_max: int,
        hosts: list[Host],
        *,
        binwise: bool,
        last_bin: bool,
        alone: str = "",
        values: bool = False,
    ) -> None:
        self.t_max, self.hosts, self.binwise = t_max, hosts, binwise
        self.last_bin, self.alone, self.values = last_bin, alone, values
        self.still_there = StillThere(model)
        self.layers: list[nn.Module] = []
        self.sources: list[tuple[int, ...]] = []
        self.output: list[int] = []
        self.follow: list[Callable[[], None]] = [self.still_there]
        self.decoders: list[nn.Module] = []
        self.read_out = self.listening = ""

    def add(self, stage: Stage) -> None:
        """Add the layers of a stage.

        Raises:
            NoTimeMode: a stage that has no meaning on spike times.
        """
        if self.read_out:
            raise NoTimeMode(
                f"{self.read_out} has no time mode: it is no neuron that fires, so nothing can follow it"
            )
        module = stage.module
        if module is None:
            layers = self._end(stage)
        else:
            self.still_there.add(stage.path, module)
            host = next(host for host in self.hosts if host.is_leaf(module))
            try:
                layers = self._stage(stage, module, host)
            except ValueError as error:
                raise NoTimeMode(f"{self._where(stage.path, module)} has no time mode: {error}") from error
        if self.listening and any(isinstance(layer, NEURONS_OR_BEHIND) for layer in layers):
            raise NoTimeMode(
                f"{self.listening} has silent_gradient=True, which only the last neurons can have on spike "
                "times. Set it to False; snnTorch's output=True turns it on"
            )
        if module is not None and any(host.listens_when_silent(module) for host in self.hosts):
            self.listening = self._where(stage.path, module)
        given = tuple(INPUT if source == INPUT else self.output[source] for source in stage.sources)
        shapes = all(isinstance(layer, SpikeFlatten) for layer in layers)
        if not shapes and any(one != INPUT and self.layers[one] in self.decoders for one in given):
            raise NoTimeMode(
                "the model goes on computing with what a decoder returns, which is no spike: do so with what "
                "the network returns"
            )
        for layer in layers:
            self.layers.append(layer)
            self.sources.append(given)
            given = (len(self.layers) - 1,)
        self.output.append(given[0])

    def network(self, takes: str) -> EventDrivenNetwork:
        """The layers as a network."""
        if not self.layers:
            raise NoTimeMode(f"the model has no layers; a network on spike times is made of {SUPPORTED}")
        network = EventDrivenNetwork(
            *self.layers, t_max=self.t_max, takes=takes, sources=self.sources, follow=self.follow
        )
        self.still_there.bypass(network)
        return network

    def _where(self, path: str, module: nn.Module) -> str:
        return f"{'the model' if path == self.alone else path} ({type(module).__name__})"

    def _stage(self, stage: Stage, module: nn.Module, host: Host) -> list[nn.Module]:
        border = host.border_on_times(module, self.t_max)
        if border is not None:
            if INPUT not in stage.sources:
                self.decoders.append(border)
                self.listening = self.listening or (stage.path if stage.given_potential else "")
            front = _flattened(stage)
            if front is None or not host.encodes(module):
                front = self._by_events(stage, None, encodes=host.encodes(module))
            return [*front, border]
        read_out = host.read_out(module)
        if read_out is not None and INPUT not in stage.sources:
            self.read_out = self._where(stage.path, module)
            weights, response = read_out
            if weights is not None:
                self.follow.append(ReadOutWeights(weights, module, host))
            self._check_bins(stage, NoTimeMode(f"{self.read_out} has no time mode: {NOT_IN_FRONT}"))
            return [SpikeReadout(self._currents(stage, weights), module, response, last_bin=self.last_bin)]
        if read_out is not None:
            raise ValueError(
                "it is a read-out, which needs neurons in front. Put a single-spike neuron there"
            )
        if host.refires(module):
            Builder(self.t_max, self.hosts).add(stage.path, module)
        if not host.is_single_spike(module):
            return self._by_events(stage, module)
        try:
            return self._neurons(stage, module, host)
        except NoTimeMode as error:
            if not self.binwise:
                raise
            host.constants(module)
            if not _has_weights(stage) and not stage.problem:
                raise
            self._check_bins(stage, error)
            return [BinwiseLayer(self._currents(stage), module, host.constants)]

    def _neurons(self, stage: Stage, module: nn.Module, host: Host) -> list[nn.Module]:
        layers = self._by_events(stage, module)
        connection = next(part for _, part in stage.parts or () if isinstance(part, nn.Linear | nn.Conv2d))
        layer = next(layer for layer in layers if isinstance(layer, SpikeConnection))
        dropout = next((part for _, part in stage.parts or () if isinstance(part, nn.Dropout)), None)
        self.follow.append(Follower(layer, connection, module, host, dropout))
        return layers

    def _by_events(self, stage: Stage, module: nn.Module | None, *, encodes: bool = False) -> list[nn.Module]:
        """The layers event by event. Raises NoTimeMode."""
        if INPUT in stage.sources and self.values and not encodes:
            first = stage.parts[0] if stage.parts else (stage.path, module or stage.currents)
            where = self._where(*first)
            raise NoTimeMode(f"{where} has no time mode: {SAME_INPUT}")
        if stage.parts is None:
            raise NoTimeMode(stage.problem)
        builder = Builder(self.t_max, self.hosts)
        for path, part in [*stage.parts, *([(stage.path, module)] if module is not None else [])]:
            builder.add("" if path == self.alone else path, part)
        for path, part in stage.parts:
            self.still_there.add(path, part)
        if module is None and stage.parts:
            return list(builder.finish())
        return builder.layers

    def _check_bins(self, stage: Stage, error: NoTimeMode) -> None:
        """Refuse what has no meaning bin by bin either."""
        if any(parameter.dtype not in _checks.DTYPES for parameter in stage.currents.parameters()):
            raise error
        for path, part in stage.parts or _modules(stage.currents):
            ours = type(part).__module__.startswith(f"{__package__}.")
            if (
                ours
                or isinstance(part, nn.RNNBase | nn.RNNCellBase)
                or any(host.is_leaf(part) for host in self.hosts)
            ):
                raise error
            mixes = isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training
            if mixes:
                raise NoTimeMode(
                    f"{self._where(path, part)} has no time mode: it mixes the samples of a step in "
                    "training. Call model.eval() first, or fold it into the weights with "
                    "ssnn_plugin.fold_batchnorm(model)"
                ) from error

    def _currents(self, stage: Stage, weights: nn.Module | None = None) -> Currents:
        function = stage.currents
        if stage.follow is not None:
            self.follow.append(stage.follow)
        if weights is not None:
            function = nn.Sequential(function, weights) if _computes(function) else weights
        constant = [source == INPUT and self.values for source in stage.sources]
        return Currents(function, constant, self.t_max)

    def _end(self, stage: Stage) -> list[nn.Module]:
        """What stands behind the last neuron: a flattening, or a read-out with weights."""
        shaped = _flattened(stage)
        if shaped is not None and INPUT not in stage.sources:
            return shaped
        if not _has_weights(stage) or INPUT in stage.sources:
            if stage.parts is None:
                raise NoTimeMode(
                    f"{stage.problem}. Behind the last neuron, do so with what the network returns"
                )
            return self._by_events(stage, None)
        self._check_bins(stage, NoTimeMode(f"the read-out of the model has no time mode: {NOT_IN_FRONT}"))
        return [SpikeReadout(self._currents(stage), last_bin=self.last_bin)]


def _flattened(stage: Stage) -> list[nn.Module] | None:
    """The layers of a stage that flattens samples at most; None for others."""
    parts = [part for _, part in stage.parts or ()]
    if not parts or not all(isinstance(part, nn.Flatten | nn.Identity) for part in parts):
        return None
    return [SpikeFlatten()] if any(isinstance(part, nn.Flatten) for part in parts) else []


def _has_weights(stage: Stage) -> bool:
    return any(isinstance(part, WEIGHTED) for part in stage.currents.modules())


def _modules(currents: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in currents.named_modules() if path]


def _computes(currents: Any) -> bool:
    """Whether there is anything between the sources and the stage."""
    return not isinstance(currents, fx.GraphModule) or any(
        node.op not in ("placeholder", "output") for node in currents.graph.nodes
    )
