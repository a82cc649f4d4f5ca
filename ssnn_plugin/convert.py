"""Host model <-> network on spike times, sharing parameters.

What is particular to a host is asked of its adapter (`snntorch.py`, `norse.py`), and only if the host
has been imported: without it there cannot be a model of that host.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from . import _checks
from ._trace import SUPPORTED, NoTimeMode, follow_forward
from .functional.pool import AveragePool
from .neurons import IF
from .nn import EarliestSpikePool2d, SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential
from .nn.connection import SpikeConnection

HOSTS = ("snntorch", "norse")


class Host(Protocol):
    """What an adapter answers about the modules of its host."""

    def is_container(self, module: nn.Module) -> bool:
        """Whether a module of the host runs its children one after the other."""

    def keeps_its_state(self, module: Any) -> bool | None:
        """Whether a stateful module of the adapter keeps its state or has to be given it; None for others."""

    def neuron_on_times(self, module: Any) -> IF | None:
        """The neuron of a single-spike module. Raises ValueError if an option has no meaning on times."""

    def listens_when_silent(self, module: Any) -> bool:
        """Whether this is a single-spike module whose silent neurons read the gradient of their spikes."""

    def pool_on_times(self, module: Any) -> EarliestSpikePool2d | None:
        """The pool on times of the host's first-spike pool."""

    def refires(self, module: Any) -> bool:
        """Whether this is a neuron of the host, which may fire more than once."""

    def stays(self, module: Any) -> str | None:
        """Why `replace_neurons` leaves a module of the host where it is, and what to do; None for others."""

    def first_spike_pool(self, pool: Any, model: nn.Module) -> nn.Module:
        """The first-spike pool in place of a max-pool of spikes. Raises ValueError."""

    def calibrate(self, model: nn.Module, trains: Tensor, fraction: float) -> dict[str, float]:
        """The adapter's `calibrate`."""

    def single_spike(self, module: Any) -> tuple[nn.Module, tuple[str, ...]]:
        """The single-spike module for a neuron of the host, and what is lost. Raises ValueError."""

    def neuron_in_steps(self, neuron: IF, last: bool, silent_gradient: bool) -> nn.Module:
        """The single-spike module of the host for a neuron on times."""

    def pool_in_steps(self, pool: EarliestSpikePool2d, last: bool) -> nn.Module:
        """The host's first-spike pool."""

    def sequential(self, modules: Sequence[nn.Module]) -> nn.Module:
        """The host's container of modules that work on one step each, or are the adapter's own."""


def _adapter(name: str) -> Host:
    adapter: Any = importlib.import_module(f"{__package__}.{name}")
    host: Host = adapter.HOST
    return host


def loaded_hosts() -> list[Host]:
    """The adapters of the hosts that have been imported."""
    return [_adapter(name) for name in HOSTS if name in sys.modules]


def to_event_driven(model: nn.Module, *, t_max: int, silent_gradient: bool | None = None) -> SpikeSequential:
    """The network on spike times that equals a step-by-step model, sharing its parameters.

    Training one trains the other: weights and biases are the same `Parameter` objects, so that an
    optimiser of one is an optimiser of the other. Thresholds and leaks are copied.

    Args:
        model: a snnTorch `nn.Sequential` or module, or a Norse `SequentialState`, made of Linear,
            Conv2d, Flatten, Identity, average pooling on either side of a connection, Dropout on
            spikes, our single-spike neurons and first-spike pools. The `forward` of a module of
            your own is followed symbolically: it has to be a chain of such modules, in a loop over
            steps or not. Resets in it are carried out on the way.
        t_max: number of steps, after which everything is silent.
        silent_gradient: whether silent neurons of the last layer learn from a gradient that reaches
            them, as they do in steps if the decoder or the loss is given their potential, or if they
            have `silent_gradient=True` themselves. None is True where the model ends with neurons.

    Returns:
        A `SpikeSequential`: times [batch, *] -> times.

    Raises:
        NoTimeMode: the path and class of the first module that has no meaning on spike times, and what to
            use instead.
        ValueError: a `t_max` that is not a whole number above 0; `silent_gradient` for a model that
            does not end with neurons.

    Source: docs/three-modes.md.
    """
    _checks.whole_and_positive("t_max", t_max)
    hosts = loaded_hosts()
    builder = Builder(t_max, hosts)
    listening: list[str] = []
    for path, module in _chain(model, hosts, t_max):
        if listening:
            raise NoTimeMode(
                f"{listening[0]} has silent_gradient=True, which only the last neurons can have on spike "
                "times. Set it to False; snnTorch's output=True turns it on"
            )
        builder.add(path, module)
        if any(host.listens_when_silent(module) for host in hosts):
            listening.append(f"{path or 'the model'} ({type(module).__name__})")
    network = builder.finish()
    last = next(layer for layer in reversed(network) if not isinstance(layer, nn.Flatten))
    if isinstance(last, SpikeConnection):
        last.silent_gradient = silent_gradient is not False
    elif silent_gradient:
        raise ValueError(f"silent_gradient needs a last layer with neurons, got {type(last).__name__}")
    return network.train(model.training)


class Builder:
    """Joins connections, pools and neurons to layers on spike times, one after the other."""

    def __init__(self, t_max: int, hosts: list[Host]) -> None:
        self.t_max, self.hosts = t_max, hosts
        self.layers: list[nn.Module] = []
        self.with_state: dict[nn.Module, str] = {}
        self._start_layer()

    def _start_layer(self) -> None:
        self.connection: nn.Linear | nn.Conv2d | None = None
        self.where = ""
        self.input_pool: AveragePool | None = None
        self.output_pool: AveragePool | None = None
        self.dropout = 0.0
        self.flatten = False

    def add(self, path: str, module: nn.Module | IF) -> None:
        """Add a torch module, a module of a host, or the neuron behind what came before.

        Raises:
            NoTimeMode: what has no meaning on spike times, here.
        """
        self.where = f"{path or 'the model'} ({type(module).__name__})"
        try:
            self._join(self._on_times(module))
        except (TypeError, ValueError) as error:
            raise NoTimeMode(f"{self.where} has no time mode: {error}") from error

    def _join(self, part: nn.Module | IF) -> None:
        for kinds, handle in self._handlers():
            if isinstance(part, kinds):
                _checks.own_forward(part, *kinds)
                handle(part)
                return
        raise ValueError(f"a network on spike times is made of {SUPPORTED}")

    def _on_times(self, module: nn.Module | IF) -> nn.Module | IF:
        """What a module of a host is on spike times; others as they are."""
        for host in self.hosts:
            if isinstance(module, nn.Module) and host.keeps_its_state(module):
                if module in self.with_state:
                    raise ValueError(
                        f"it keeps one state for two places, here and at {self.with_state[module]}"
                    )
                self.with_state[module] = self.where
            part = host.neuron_on_times(module) or host.pool_on_times(module)
            if part is not None:
                return part
            if host.refires(module):
                raise ValueError(
                    "it may fire more than once. Use a single-spike neuron; "
                    "ssnn_plugin.replace_neurons(model) puts them in place"
                )
        return module

    def _handlers(self) -> Iterable[tuple[tuple[type, ...], Callable[[Any], None]]]:
        return (
            ((IF,), self._neuron),
            ((EarliestSpikePool2d,), self._first_spike_pool),
            ((nn.Linear, nn.Conv2d), self._weights),
            ((nn.Flatten,), self._flatten),
            ((nn.AvgPool2d,), self._average_pool),
            ((nn.Dropout,), self._dropout),
            ((nn.Identity,), lambda module: None),
            ((nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d), self._max_pool),
            ((nn.BatchNorm1d, nn.BatchNorm2d), self._batch_norm),
        )

    def _weights(self, module: nn.Linear | nn.Conv2d) -> None:
        if self.connection is not None:
            raise ValueError(
                "two weight layers follow each other. Put a neuron between them, or multiply them"
            )
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                raise ValueError(
                    f"padding_mode must be 'zeros', which is silence, got {module.padding_mode!r}"
                )
            if self.flatten:
                raise ValueError(
                    "a convolution needs an input with height and width, which Flatten has removed"
                )
        elif self.input_pool is not None and not self.flatten:
            raise ValueError("a Linear layer on pooled spikes needs a Flatten between them")
        elif self.input_pool is None and self.flatten:
            self.layers.append(SpikeFlatten())
        self.connection, self.flatten = module, False

    def _flatten(self, module: nn.Flatten) -> None:
        # A window of steps has its time axis in front of the batch, a single step has none.
        if module.start_dim not in (1, 2) or module.end_dim != -1:
            raise ValueError("only the features of a sample can be flattened. Use Flatten() or Flatten(2)")
        self.flatten = True

    def _average_pool(self, module: nn.AvgPool2d) -> None:
        if module.padding not in (0, (0, 0)) or module.ceil_mode or module.divisor_override is not None:
            raise ValueError("use AvgPool2d without padding, ceil_mode and divisor_override")
        pool = AveragePool(module.kernel_size, module.stride)
        if self.flatten or isinstance(self.connection, nn.Linear):
            raise ValueError("pool before Flatten and Linear")
        if self.connection is None and self.input_pool is None:
            self.input_pool = pool
        elif self.connection is not None and self.output_pool is None:
            self.output_pool = pool
        else:
            raise ValueError("two average pools follow each other. Use one with the product of their kernels")

    def _dropout(self, module: nn.Dropout) -> None:
        if self.connection is not None or self.input_pool is not None:
            what = "currents" if self.connection is not None else "averages of spikes"
            raise ValueError(
                f"it drops {what} anew in every step. Put it right behind a neuron, on its spikes"
            )
        if self.dropout:
            raise ValueError("two Dropouts follow each other. Use one")
        if not 0 <= module.p < 1:
            raise ValueError(f"p must be at least 0 and below 1, got {module.p!r}")
        self.dropout = module.p

    def _max_pool(self, module: nn.Module) -> None:
        why = (
            "the maximum of currents is no sum of spikes"
            if self.connection is not None
            else "max-pooling of spike trains lets a unit fire several times"
        )
        raise ValueError(
            f"{why}. Use FirstSpikePool2d of ssnn_plugin's adapter behind the neuron, or AvgPool2d"
        )

    def _batch_norm(self, module: nn.Module) -> None:
        raise ValueError(
            "it mixes the steps of a batch. Fold it into the weights in front, for instance with "
            "torch.nn.utils.fusion.fuse_conv_bn_eval or fuse_linear_bn_eval"
        )

    def _first_spike_pool(self, pool: EarliestSpikePool2d) -> None:
        if self.connection is not None:
            raise ValueError("it pools spikes, not currents. Put it behind the neuron")
        if self.input_pool is not None or self.flatten or self.dropout:
            raise ValueError("put it right behind the neuron")
        self.layers.append(pool)

    def _neuron(self, neuron: IF) -> None:
        if self.connection is None:
            raise ValueError("it needs a Linear or Conv2d in front")
        self.layers.append(self._layer(self.connection, neuron))
        if self.flatten:
            self.layers.append(SpikeFlatten())
        self._start_layer()

    def _layer(self, connection: nn.Linear | nn.Conv2d, neuron: IF) -> SpikeConnection:
        options: dict[str, Any] = {
            "t_max": self.t_max,
            "bias": connection.bias is not None,
            "input_pool": self.input_pool,
            "dropout": self.dropout,
            "device": "meta",
            "dtype": connection.weight.dtype,
        }
        layer: SpikeConnection
        if isinstance(connection, nn.Linear):
            layer = SpikeLinear(connection.in_features, connection.out_features, neuron, **options)
        else:
            layer = SpikeConv2d(
                connection.in_channels,
                connection.out_channels,
                connection.kernel_size,
                neuron,
                stride=connection.stride,
                padding=connection.padding,
                dilation=connection.dilation,
                groups=connection.groups,
                output_pool=self.output_pool,
                **options,
            )
        layer.weight = connection.weight  # type: ignore[assignment]
        layer.bias = connection.bias
        return layer

    def finish(self) -> SpikeSequential:
        if self.connection is not None or self.input_pool is not None or self.dropout:
            raise NoTimeMode(
                f"{self.where} has no time mode: the model must end with neurons, so put one behind it"
            )
        if not self.layers:
            raise NoTimeMode(f"the model has no layers; a network on spike times is made of {SUPPORTED}")
        if self.flatten:
            self.layers.append(SpikeFlatten())
        return SpikeSequential(*self.layers)


def _chain(
    model: nn.Module, hosts: list[Host], t_max: int, path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model in the order in which they run, with their paths."""

    def is_container(module: nn.Module) -> bool:
        plain = type(module).forward is nn.Sequential.forward
        return plain or any(host.is_container(module) for host in hosts)

    def keeps_its_state(module: nn.Module) -> bool | None:
        answers = (host.keeps_its_state(module) for host in hosts)
        return next((answer for answer in answers if answer is not None), None)

    if is_container(model):
        parts = children(model)
    elif children(model):
        parts = follow_forward(model, is_container, keeps_its_state, t_max)
    else:
        yield path, model
        return
    for name, part in parts:
        yield from _chain(part, hosts, t_max, f"{path}.{name}" if path else name)


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """As `named_children`, which leaves out the second place of a module that has two."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def as_network(model: nn.Module) -> SpikeSequential:
    """A layer on spike times, or a row of them, as a network with one window.

    Raises:
        TypeError: a model that is no row of layers.
        ValueError: no neurons in it, or windows that differ.
    """
    if isinstance(model, SpikeConnection):
        model = SpikeSequential(model).train(model.training)
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be a row of layers of ssnn_plugin.nn, got {type(model).__name__}")
    windows = {layer.t_max for layer in model if isinstance(layer, SpikeConnection)}
    if len(windows) != 1:
        raise ValueError(f"model must have layers with neurons and one t_max, got {sorted(windows)}")
    return SpikeSequential(*model._modules.values()).train(model.training)


def to_step_mode(model: nn.Module, host: str) -> nn.Module:
    """A host's step-by-step model that equals a network on spike times, sharing its parameters.

    Args:
        model: a layer of `ssnn_plugin.nn` or several in a row, such as `to_event_driven` returns.
        host: "snntorch" gives an `nn.Sequential` with hidden states that takes a step per call and
            returns (spikes, mem); "norse" a `SequentialState` that takes [T, batch, *] and returns
            (spikes, state).

    Raises:
        NoTimeMode: a layer that has no step mode, such as one with a delay, or a hidden one with
            `silent_gradient=True`.
        ValueError: an unknown host, windows that differ.
        TypeError: a model that is no row of layers.

    What silent neurons learn from is a choice of the decoder in steps: pass it their potential if
    the last layer has `silent_gradient=True`.
    """
    _checks.one_of("host", host, HOSTS)
    adapter = _adapter(host)
    layers = children(as_network(model))
    # The neurons come last in steps, so that there is a state to return: flatten their currents instead.
    flat_end = len(layers) > 1 and isinstance(layers[-1][1], nn.Flatten)
    if flat_end:
        layers = layers[:-1]
    modules: list[nn.Module] = []
    for position, (path, layer) in enumerate(layers):
        last = position == len(layers) - 1
        try:
            modules += _in_steps(layer, adapter, last, flat=last and flat_end)
        except ValueError as error:
            raise NoTimeMode(f"{path} ({type(layer).__name__}) has no step mode: {error}") from error
    return adapter.sequential(modules).train(model.training)


def _in_steps(layer: nn.Module, adapter: Host, last: bool, flat: bool) -> Iterator[nn.Module]:
    if isinstance(layer, EarliestSpikePool2d):
        if flat:
            raise ValueError("a Flatten behind it leaves no state to return. Flatten the times instead")
        yield adapter.pool_in_steps(layer, last)
    elif isinstance(layer, nn.Flatten):
        yield nn.Flatten()
    elif isinstance(layer, SpikeConnection):
        if not isinstance(layer.neuron, IF):
            raise ValueError(f"only IF neurons run in steps, got {layer.neuron}")
        if layer.gradient != "latency":
            raise ValueError(f"in steps the gradient is 'latency', got {layer.gradient!r}")
        if layer.neuron.delay:
            raise ValueError(f"the hosts' neurons have no delay, got {layer.neuron}")
        if layer.silent_gradient and not last:
            raise ValueError(
                "in steps a silent hidden neuron has no gradient, so silent_gradient must be False"
            )
        yield from connection_in_steps(layer)
        if flat:
            yield nn.Flatten()
        yield adapter.neuron_in_steps(layer.neuron, last, layer.silent_gradient)
    else:
        raise ValueError("it is no layer of ssnn_plugin.nn")


def connection_in_steps(layer: SpikeConnection) -> Iterator[nn.Module]:
    """The torch modules in front of the neuron, sharing the layer's parameters."""
    if layer.dropout:
        yield nn.Dropout(layer.dropout)
    if layer.input_pool is not None:
        yield nn.AvgPool2d(*layer.input_pool.window)
        if isinstance(layer, SpikeLinear):
            yield nn.Flatten()
    options: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    connection: nn.Linear | nn.Conv2d
    if isinstance(layer, SpikeLinear):
        connection = nn.Linear(layer.in_features, layer.out_features, **options)
    elif isinstance(layer, SpikeConv2d):
        connection = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            **options,
        )
    else:
        raise ValueError("it is no layer of ssnn_plugin.nn")
    connection.weight = layer.weight
    connection.bias = layer.bias
    yield connection
    if isinstance(layer, SpikeConv2d) and layer.output_pool is not None:
        yield nn.AvgPool2d(*layer.output_pool.window)
