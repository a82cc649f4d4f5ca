"""Joins connections, pools and neurons to layers on spike times, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from torch import nn

from . import _checks
from ._trace import SUPPORTED, NoTimeMode
from .functional.pool import AveragePool
from .neurons import IF
from .nn import EarliestSpikePool2d, SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential
from .nn.connection import SpikeConnection


class OnTimes(Protocol):
    """What a builder asks the adapters, part of `convert.Host`."""

    def neuron_on_times(self, module: Any) -> IF | None: ...

    def pool_on_times(self, module: Any) -> EarliestSpikePool2d | None: ...

    def refires(self, module: Any) -> bool: ...


class Builder:
    """Joins connections, pools and neurons to layers on spike times, one after the other."""

    def __init__(self, t_max: int, hosts: Sequence[OnTimes]) -> None:
        self.t_max, self.hosts = t_max, hosts
        self.layers: list[nn.Module] = []
        self._start_layer()

    def _start_layer(self) -> None:
        self.connection: nn.Linear | nn.Conv2d | None = None
        self.where = ""
        self.input_pool: AveragePool | None = None
        self.output_pool: AveragePool | None = None
        self.dropout, self.drops = 0.0, True
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
        _checks.plain_weights(module)
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
        self.dropout, self.drops = module.p, module.training

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
            "it mixes the samples of a step. Fold it into the weights in front with "
            "ssnn_plugin.fold_batchnorm(model)"
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
        layer.training = self.drops
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
