"""Networks whose neurons fire more than once, over T steps: what single spikes are measured against.

Images are real-valued currents, the same in every step (direct coding). Neurons are snnTorch's. The scores
are the mean over the steps of what the last connection passes on; the highest one decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import snntorch
import torch
from pydantic import PositiveFloat, PositiveInt, field_validator, model_validator
from snntorch.surrogate import custom_surrogate
from torch import Tensor, nn

from ssnn_plugin.nn import AveragePool
from ssnn_plugin.surrogate import Surrogate, Triangle

from ..config import Config, Direct, Fraction
from ..evaluation import SpikeTotals
from . import layered, minibatch
from .architecture import Convolution, Layers, Pool, build_stages, neuron_layers, parse, size_behind
from .minibatch import Done, Minibatch, MixedPrecision, refuse_a_single_sample

# Samples that are predicted at once.
CHUNK = 250
# Convolutions with the channels last are faster alone, and slower in the middle of what is fused here.
COMPILED: dict[str, Any] = {"dynamic": False, "options": {"layout_optimization": False}}


class Network(layered.Network):
    """Leaky neurons over `t_max` steps, of which V keeps the part `beta` from one step to the next."""

    t_max: PositiveInt
    dtype: Literal["float32"] = "float32"  # of snnTorch's spikes
    beta: Fraction = 0.25
    threshold: PositiveFloat = 1.0

    @field_validator("layers")
    @classmethod
    def _pools_are_averages(cls, layers: Layers) -> Layers:
        if not layers:
            raise ValueError("layers must not be empty")
        pools = [
            written for written in layers if isinstance(layer := parse(written), Pool) and not layer.average
        ]
        if pools:
            raise ValueError(f"a pool of spike trains must be an average, such as 'A2', got {pools}")
        return layers


class Training(MixedPrecision, minibatch.Training):
    """`compiled`: `torch.compile` fuses the steps, which takes a C++ compiler and a minute before the first
    batch, and learns three to nine times as fast on a CPU.
    """

    compiled: bool = False

    @model_validator(mode="after")
    def _nothing_is_averaged(self) -> Training:
        if self.average_last > 1:
            raise ValueError("average_last is no option here: statistics and thresholds are not averaged")
        return self


class Settings(Config):
    encoding: Direct
    network: Network
    training: Training


class SoftReset(snntorch.Leaky):  # type: ignore[misc]
    """snnTorch's neuron, from whose V each spike takes the threshold, once.

    Its own, with `reset_delay=False`, looks whether V exceeds the threshold after it has taken one off for a
    V that was left above it, and so misses spikes: V = 2.5 and then 1.2 makes one. `detached` resets have no
    gradient.
    """

    detached = False

    def integrated(self, current: Tensor, v: Tensor | float) -> Tensor:
        """V before the reset."""
        return self.beta * v + current  # type: ignore[no-any-return]

    def forward(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.integrated(current, v)
        spikes = self.spike_grad(v - self.threshold)
        return spikes, v - self.threshold * (spikes.detach() if self.detached else spikes)


def leaky(
    network: Network, gradient: Surrogate, kind: type[snntorch.Leaky] = snntorch.Leaky, **options: Any
) -> snntorch.Leaky:
    """snnTorch's neuron, V <- beta V + I, set to 0 by a spike, with a surrogate gradient of ours.

    snnTorch's own triangle has the wrong slope, hence this one.
    """
    spike = custom_surrogate(lambda distance, grad, spikes: grad * gradient.derivative(distance))
    reset = {"reset_mechanism": "zero"} | options
    neuron = kind(network.beta, threshold=network.threshold, spike_grad=spike, **reset)
    # It asks this number in every step; as the tensor that it keeps it would end a compiled graph there.
    mechanism = int(neuron.reset_mechanism_val)
    del neuron.reset_mechanism_val
    neuron.reset_mechanism_val = mechanism
    return neuron


class Ran(NamedTuple):
    """Spikes of every hidden layer [T, batch, *], and the outputs of every step [T, batch, classes].

    Outputs that fire have a V at the end of the window [batch, classes], which tells equal scores apart.
    """

    hidden: list[Tensor]
    outputs: Tensor
    potential: Tensor | None = None


class OverSteps(nn.Module):
    """A neuron of snnTorch over all steps, which stand in the batch axis: [T * batch, *] to the same."""

    neuron: snntorch.Leaky

    def __init__(self, neuron: snntorch.Leaky, steps: int) -> None:
        super().__init__()
        self.neuron, self.steps = neuron, steps

    def forward(self, currents: Tensor) -> Tensor:
        spikes, v = [], torch.zeros_like(currents[: len(currents) // self.steps])
        for current in currents.chunk(self.steps):
            spike, v = self.neuron(current, v)
            spikes.append(spike)
        # It keeps its last V, with the graph behind it.
        self.neuron.mem = v.new_zeros(0)
        return torch.cat(spikes)


class Repeat(nn.Module):
    """The currents of images, in all steps the same: [batch, *] to [T * batch, *]."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, currents: Tensor) -> Tensor:
        return currents.repeat(self.steps, *[1] * (currents.ndim - 1))


class SpikingLayer(nn.Module):
    """Currents from a connection, normalised, into neurons."""

    def __init__(self, connection: nn.Module, norm: nn.Module, neurons: nn.Module) -> None:
        super().__init__()
        self.connection, self.norm, self.neurons = connection, norm, neurons

    def forward(self, inputs: Tensor) -> Tensor:
        spikes: Tensor = self.neurons(self.norm(self.connection(inputs)))
        return spikes


class MultiSpike(Minibatch):
    """Base of the methods: cross-entropy on the scores, gradients by back-propagation through time.

    A method defines `norm` and `neurons` of its layers, and may define `readout` and `loss` anew.
    """

    settings: Settings
    training: Training
    layer = SpikingLayer
    fire_once = False

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        self.settings, self.training, self.steps = settings, settings.training, settings.network.t_max
        self.last = neuron_layers(settings.network.layers)
        stages = build_stages(settings.network.layers, shape, classes, self._linear, self._convolution)
        super().__init__(settings, stages, shape, seed, device)
        first = parse(settings.network.layers[0])
        assert not isinstance(first, Pool)
        self.multiplications = multiplications(first, shape)
        self.compiled = torch.compile(self.learn, **COMPILED) if self.training.compiled else self.learn

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if any(isinstance(module, nn.BatchNorm1d) for module in self.network.modules()):
            refuse_a_single_sample(len(times), self.training.batch_size)

    def norm(self, number: int, channels: int, spatial: bool) -> nn.Module:
        """Of the currents of the layer with that number: [T * batch, channels, *] to the same.

        Those of the first layer are the same in all steps, and come as [batch, channels, *].
        """
        return self.in_all_steps(number)

    def in_all_steps(self, number: int) -> nn.Module:
        """What gives the currents of the layer with that number for every step."""
        return Repeat(self.steps) if number == 0 else nn.Identity()

    def neurons(self, number: int) -> nn.Module:
        """Of the layer with that number: currents [T * batch, *] to spikes."""
        return OverSteps(leaky(self.settings.network, Triangle(1.0)), self.steps)

    def readout(self, connection: nn.Module) -> nn.Module:
        """Spikes of the last hidden layer [T * batch, features] to outputs [T * batch, classes]."""
        return connection

    def shaped(self, images: Tensor) -> Tensor:
        """Flat images as the first connection takes them."""
        first = self.stages[0].neurons
        return first[0](images) if isinstance(first, nn.Sequential) else images

    def run(self, images: Tensor) -> Ran:
        """What all steps make of images."""
        layers, values = [], images
        for stage in self.stages[:-1]:
            spikes = stage.neurons(values)
            layers.append(spikes.unflatten(0, (self.steps, -1)))
            values = stage.after(spikes)
        outputs = self.stages[-1].neurons(values).to(images.dtype)
        return Ran(layers, outputs.unflatten(0, (self.steps, -1)))

    def learn(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Numbers of spikes of every hidden layer [batch, *], and the outputs, with a graph."""
        hidden, outputs, _ = self.run(images)
        return [layer.ne(0).sum(0) for layer in hidden], outputs

    def criterion(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss on the outputs of every step [T, batch, classes]."""
        return nn.functional.cross_entropy(outputs.mean(0), labels)

    def fired(self, outputs: Tensor) -> Tensor:
        """Spikes of the outputs; here they have none, and pass on their currents."""
        return torch.zeros_like(outputs)

    def scores(self, outputs: Tensor) -> Tensor:
        """Of the classes [batch, classes], from the outputs of every step."""
        return outputs.mean(0)

    def _step(self, inputs: Tensor, labels: Tensor) -> Done:
        with self.training.autocast(inputs.device):
            spikes, outputs = self.learner(inputs)(inputs)
        loss = self.criterion(outputs, labels)
        self._learn(loss)
        right = (self.scores(outputs).argmax(1) == labels).sum().item()
        return Done(loss.item(), right, [count.detach().sum(0).cpu() for count in spikes])

    def learner(self, inputs: Tensor) -> Callable[..., tuple[list[Tensor], Tensor]]:
        """`learn`, compiled for whole mini-batches: another size would be compiled anew."""
        return self.compiled if len(inputs) == self.training.batch_size else self.learn

    def predict(self, inputs: Tensor) -> SpikeTotals:
        self.network.eval()
        spikes, scores, potentials = [], [], []
        first: tuple[Tensor, ...] = ()
        with torch.no_grad(), self._averaged_weights():
            for part in torch.split(inputs.to(self.device), CHUNK):
                hidden, outputs, potential = self.run(part)
                layers = [*hidden, self.fired(outputs)]
                scores.append(self.scores(outputs))
                potentials += [] if potential is None else [potential]
                fired = [layer.ne(0).transpose(0, 1).flatten(1).sum(1) for layer in layers]
                spikes.append(torch.stack(fired, dim=1))
                first = first or tuple(_first_spikes(layer[:, :1]) for layer in layers)
        return SpikeTotals(
            torch.cat(spikes), torch.cat(scores), first, self.multiplications,
            potential=torch.cat(potentials) if potentials else None,
        )  # fmt: skip

    def _linear(
        self, number: int, in_features: int, out_features: int, pool: AveragePool | None
    ) -> nn.Module:
        connection = nn.Linear(in_features, out_features)
        if pool is None:
            return self._layer(number, connection, out_features, spatial=False)
        pooled = nn.Sequential(_dense(pool), nn.Flatten(), connection)
        return self._layer(number, pooled, out_features, spatial=False)

    def _convolution(
        self, number: int, channels: int, layer: Convolution, pool: AveragePool | None
    ) -> nn.Module:
        connection: nn.Module = nn.Conv2d(channels, *layer)
        if pool is not None:
            connection = nn.Sequential(_dense(pool), connection)
        return self._layer(number, connection, layer.channels, spatial=True)

    def _layer(self, number: int, connection: nn.Module, channels: int, spatial: bool) -> nn.Module:
        if number == self.last:
            return self.readout(connection)
        norm, neurons = self.norm(number, channels, spatial), self.neurons(number)
        return self.layer(connection, norm, neurons)


def multiplications(first: Convolution | int, shape: tuple[int, ...]) -> int:
    """Of the first connection, for real-valued pixels [channels, height, width]; once for all steps."""
    if isinstance(first, int):
        return first * math.prod(shape)
    channels, *size = shape
    return first.channels * channels * first.kernel**2 * math.prod(size_behind(first, size))


def _dense(pool: AveragePool) -> nn.Module:
    """The pool of spike times as one of ordinary values."""
    return nn.AvgPool2d(*pool.window)


def _first_spikes(spikes: Tensor) -> Tensor:
    """Step of the first spike of each neuron, `inf` without one: [T, batch, *] to [batch, *]."""
    fired = spikes.ne(0).int()
    return fired.argmax(0).float().masked_fill(fired.sum(0) == 0, torch.inf)
