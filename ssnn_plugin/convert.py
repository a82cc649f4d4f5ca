"""Host model <-> network on spike times, sharing parameters.

What is particular to a host is asked of its adapter (`snntorch.py`, `norse.py`), and only if the host
has been imported: without it there cannot be a model of that host.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, fx, nn

from . import _checks
from ._assembly import Assembly
from ._builder import Builder
from ._segment import Stage
from ._steps import Traced, follow_forward
from ._trace import NoTimeMode, Tracer, followed, hooks_of, is_leaf, unwrapped
from .neurons import IF
from .nn import (
    BinwiseLayer,
    EarliestSpikePool2d,
    EventDrivenNetwork,
    SpikeConv2d,
    SpikeLinear,
    SpikeSequential,
)
from .nn.binwise import Response
from .nn.connection import SpikeConnection
from .nn.decision import flattens_samples
from .nn.rows import keep_up, runs_in_a_row
from .rules import Latency

__all__ = ["Builder", "NoTimeMode", "to_event_driven", "to_step_mode"]

HOSTS = ("snntorch", "norse")


class Host(Protocol):
    """What an adapter answers about the modules of its host."""

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether a module is one of the host's that is taken as one, such as a neuron."""

    def lifted(self, module: nn.Module) -> nn.Module | None:
        """The module that a container of the host applies to every step."""

    def takes_a_window(self, module: nn.Module) -> bool:
        """Whether a stateful module of the adapter takes all steps in one call."""

    def returns_its_state(self, module: Any) -> bool:
        """Whether a stateful module of the host returns its state beside its output."""

    def encodes(self, module: nn.Module) -> bool:
        """Whether this is an encoder of the adapter."""

    def output(self, module: Any) -> int:
        """Which of the things that a leaf returns is handed on: 0, or 1 for a read-out of the potential."""

    def constants(self, module: Any) -> tuple[Tensor | float, Tensor | float]:
        """Threshold and leak of a single-spike module, as they are now. Raises as `neuron_on_times`."""

    def is_single_spike(self, module: Any) -> bool:
        """Whether this is a single-spike neuron of the adapter."""

    def read_out(self, module: Any) -> tuple[nn.Module | None, Response] | None:
        """The weights in a read-out, if any, and its response to a current; None for other modules."""

    def border_on_times(self, module: Any, t_max: int | None) -> nn.Module | None:
        """What an encoder or a decoder of the adapter is for a network on spike times; None for others.

        Raises ValueError for encoders whose spikes cannot be times, or that do not fit `t_max`, if given.
        """

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

    def forget(self, model: nn.Module) -> None:
        """Let go of the neurons of a copy, where the host keeps a list of all."""

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


def to_event_driven(
    model: nn.Module,
    *,
    t_max: int,
    silent_gradient: bool | None = None,
    binwise: bool = True,
    constant_input: bool = False,
    last_bin: bool = False,
) -> EventDrivenNetwork:
    """The network on spike times that equals a step-by-step model, sharing its parameters.

    Training one trains the other: weights and biases are the same `Parameter` objects, so that an
    optimiser of one is an optimiser of the other. Thresholds and leaks are read from the model before
    every call, checkpoints loaded later included.

    Args:
        model: a snnTorch `nn.Sequential` or module, or a Norse `SequentialState`. Its `forward` is followed
            symbolically, in a loop over steps or not; resets in it are carried out on the way. Linear,
            Conv2d, Flatten, Identity, average pooling on either side of a connection, Dropout on spikes,
            our single-spike neurons and first-spike pools run event by event.
        t_max: number of steps, after which everything is silent.
        silent_gradient: whether silent neurons of the last layer learn from a gradient that reaches
            them, as they do in steps if the decoder or the loss is given their potential, or if they
            have `silent_gradient=True` themselves. None is True where the model ends with neurons.
        binwise: whether layers without a form on spike times run bin by bin (`nn.BinwiseLayer`), with the
            spikes and gradients of the steps and their cost. False refuses them.
        constant_input: whether the model is called with the same values [batch, *] in every step, as by
            snnTorch's `for step in range(num_steps): net(data)`. The network takes these values then. A
            loop inside the model shows that by itself.
        last_bin: whether a read-out behind the last neurons gives its value in the last bin alone.

    Returns:
        An `nn.EventDrivenNetwork`: times [batch, *] -> times. Values instead of times go in where the model
        takes the same values in every step, and come out, [t_max, batch, *], where it ends with a read-out:
        a `Linear`, snnTorch's `Leaky(reset_mechanism="none")`, `Lapicque` and `Synaptic` alike, Norse's `LI`.

    Raises:
        NoTimeMode: the path and class of the first module that has no meaning on spike times, and what to
            use instead.
        ValueError: a `t_max` that is not a whole number above 0; `silent_gradient` for a model that
            does not end with neurons.

    Source: docs/three-modes.md.
    """
    _checks.whole_and_positive("t_max", t_max)
    if isinstance(model, SpikeConnection | SpikeSequential | EventDrivenNetwork):
        raise NoTimeMode(f"{type(model).__name__} runs on spike times already")
    hosts = loaded_hosts()
    traced, path = follow(model, t_max)
    if traced.runs not in (None, t_max):
        raise NoTimeMode(f"{type(model).__name__} runs {traced.runs} steps, but t_max is {t_max}")
    takes = "values" if constant_input else traced.takes
    assembly = Assembly(
        unwrapped(model),
        t_max,
        hosts,
        binwise=binwise,
        last_bin=last_bin,
        alone=path,
        values=takes == "values",
    )
    for stage in traced.stages:
        assembly.add(stage)
    _refuse_mixtures(model, traced.stages, hosts)
    network = assembly.network(takes)
    _let_silence_learn(list(network), assembly, silent_gradient)
    return _in_mode_of(model, network)


def _in_mode_of(model: nn.Module, network: EventDrivenNetwork) -> EventDrivenNetwork:
    """The network in the mode of its model; what the model has frozen in evaluation mode stays so."""
    frozen = [module for module in (*model.modules(), *network.modules()) if not module.training]
    network.train(model.training)
    for module in frozen:
        module.training = False
    return network


def _refuse_mixtures(model: nn.Module, stages: list[Stage], hosts: list[Host]) -> None:
    """Of neurons that take a window and neurons that take a step, which cannot have the same input."""
    modules = _HostModules(hosts)
    containers = (inner for inner in map(modules.lifted, model.modules()) if inner is not None)
    lifted = {module for inner in containers for module in inner.modules()}
    takes: dict[bool, str] = {}
    for stage in stages:
        if stage.module is not None and modules.keeps_its_state(stage.module) is not None:
            window = modules.takes_a_window(stage.module) or stage.module in lifted
            takes[window] = f"{stage.path} ({type(stage.module).__name__})"
    if len(takes) > 1:
        raise NoTimeMode(
            f"{takes[True]} takes a window of steps, and {takes[False]} in the same model takes one: let all "
            "neurons take the same"
        )


def _let_silence_learn(layers: list[nn.Module], assembly: Assembly, asked: bool | None) -> None:
    """Whether the silent neurons of the last layer learn, and those in front of a decoder."""
    behind = (nn.Flatten, *map(type, assembly.decoders))
    last = next(layer for layer in reversed(layers) if not isinstance(layer, behind))
    if isinstance(last, SpikeConnection | BinwiseLayer):
        # A decoder hands on what a loss wants of silence, if it is given the potential.
        last.silent_gradient = (not assembly.decoders or bool(assembly.listening)) if asked is None else asked
    elif asked:
        raise ValueError(f"silent_gradient needs a last layer with neurons, got {type(last).__name__}")


def follow(model: nn.Module, t_max: int | None = None) -> tuple[Traced, str]:
    """What a model computes in a step, and the path of a model that is a single module."""
    _refuse_hooks(model)
    model, hosts = unwrapped(model), loaded_hosts()
    _refuse_borders(model, hosts, t_max)
    modules = _HostModules(hosts)
    if is_leaf(model, modules):
        return follow_forward(nn.Sequential(model).train(model.training), modules, t_max or 2), "0"
    return follow_forward(model, modules, t_max or 2), ""


def states_returned(model: nn.Module) -> dict[str, Any] | None:
    """Where the states that `forward` takes are among what it returns, None for one that is not seen there.

    None for all of them where a forward cannot be followed with states that are given.
    """
    modules = _HostModules(loaded_hosts())
    try:
        graph, _ = followed(model, Tracer(modules, 2), (bool, int, float, str))
    except Exception:  # a state that is unpacked, or asked for its values
        return None
    _, *given = (node for node in graph.nodes if node.op == "placeholder")
    (output,) = (node for node in graph.nodes if node.op == "output")
    parts = output.args[0]
    if not isinstance(parts, dict):
        parts = dict(enumerate(parts if isinstance(parts, tuple | list) else [parts]))
    found: dict[str, Any] = {str(state.target): None for state in given if state.users}
    for call in (node for node in graph.nodes if node.op == "call_module"):
        for number, state in enumerate(call.args[1:], 1):
            if state in given:
                own = (place for place, value in parts.items() if _is_part(value, call, number))
                found[str(state.target)] = next(own, found[str(state.target)])
    return found


def _is_part(value: Any, call: fx.Node, number: int) -> bool:
    is_one = isinstance(value, fx.Node) and value.target is operator.getitem
    return is_one and value.args == (call, number)


class _HostModules:
    """The hosts' answers together, see `_trace.Modules`."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts

    def is_leaf(self, module: nn.Module) -> bool:
        return any(host.is_leaf(module) for host in self.hosts)

    def keeps_its_state(self, module: nn.Module) -> bool | None:
        answers = (host.keeps_its_state(module) for host in self.hosts)
        return next((answer for answer in answers if answer is not None), None)

    def lifted(self, module: nn.Module) -> nn.Module | None:
        answers = (host.lifted(module) for host in self.hosts)
        return next((answer for answer in answers if answer is not None), None)

    def takes_a_window(self, module: nn.Module) -> bool:
        return any(host.takes_a_window(module) for host in self.hosts)

    def returns_its_state(self, module: nn.Module) -> bool:
        return any(host.returns_its_state(module) for host in self.hosts if host.is_leaf(module))

    def encodes(self, module: nn.Module) -> bool:
        return any(host.encodes(module) for host in self.hosts)

    def output(self, module: nn.Module) -> int:
        return next((host.output(module) for host in self.hosts if host.is_leaf(module)), 0)


def _refuse_hooks(model: nn.Module) -> None:
    """Hooks may change what a model computes, and would not be called event by event."""
    for path, module in model.named_modules():
        hooks = hooks_of(module)
        if "forward" in vars(module) and unwrapped(module) is module:
            raise NoTimeMode(
                f"{path or 'the model'} ({type(module).__name__}) has a forward that was assigned to it. "
                "Define it in a class"
            )
        if hooks:
            named = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
            raise NoTimeMode(
                f"{path or 'the model'} ({type(module).__name__}) has hooks ({named}), which may change what "
                "it computes. Remove them before the conversion (handle.remove()) and register them on the "
                "network"
            )


def _refuse_borders(model: nn.Module, hosts: list[Host], t_max: int | None) -> None:
    """Encoders whose spikes cannot be times, before what they lead to is looked at."""
    for path, module in model.named_modules():
        for host in hosts:
            try:
                host.border_on_times(module, t_max)
            except ValueError as error:
                raise NoTimeMode(f"{path} ({type(module).__name__}) has no time mode: {error}") from error


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
    if not isinstance(model, nn.Sequential) or not runs_in_a_row(model):
        raise TypeError(f"model must be a row of layers of ssnn_plugin.nn, got {type(model).__name__}")
    keep_up(model)
    windows = {layer.t_max for layer in model if isinstance(layer, SpikeConnection | BinwiseLayer)}
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
    flat_end = len(layers) > 1 and flattens_samples(layers[-1][1])
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
        if not flattens_samples(layer):
            raise ValueError("it must flatten whole samples: use nn.Flatten()")
        yield nn.Flatten()
    elif isinstance(layer, SpikeConnection):
        if not isinstance(layer.neuron, IF) or layer.neuron.parameters:
            raise ValueError(
                f"only IF neurons run in steps, and share threshold and leak, got {layer.neuron}"
            )
        if layer.gradient != Latency():
            raise ValueError(f"in steps the gradient is 'latency', got {str(layer.gradient)!r}")
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
    elif isinstance(layer, BinwiseLayer):
        raise ValueError("it runs in bins; the model that it was made of is its step mode")
    else:
        raise ValueError("it is no layer of ssnn_plugin.nn")


def connection_in_steps(layer: SpikeConnection, *, shared: bool = True) -> Iterator[nn.Module]:
    """The torch modules in front of the neuron, with the layer's parameters or, not shared, their values."""
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
    if shared:
        _checks.plain_weights(layer)
        connection.weight, connection.bias = layer.weight, layer.bias
    else:
        connection.weight = nn.Parameter(layer.weight.detach())
        connection.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach())
    yield connection
    if isinstance(layer, SpikeConv2d) and layer.output_pool is not None:
        yield nn.AvgPool2d(*layer.output_pool.window)
