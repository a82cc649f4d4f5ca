"""Time-based training of neurons that fire more than once (Zhu et al., NeurIPS 2023).

In each step m <- (m + I)(1 - 1/tau_m) and s <- (s + I)(1 - 1/tau_s); V is their scaled difference, and a
neuron fires where it reaches the threshold, which sets all to 0. Learning is event-driven: the error of a
spike's time becomes one of V by dt/dV = -1 / (V - V of the step before), at most 4, and goes to the inputs
since the neuron's spike before, by the response for the weights and by an exponential of its own,
tau_gradient, for the times of the input spikes.

Losses set that error by the numbers of output spikes (`count`, and `count-plus`, by which errors count for
all spikes of an output together and those of the labels weigh more while the others fire more), or by a
cross-entropy on first spikes (`first-spike`) or on numbers (`cross-entropy-plus`; that its error is shared by
the spikes of an output, as with `count-plus`, is our reading). The error on first spikes is T times that of
`TemporalCrossEntropyLoss(T, 1)`, with another time for silence; the others are of neurons that fire again,
and so no losses of the plug-in. While learning, the label fires in the last step in which its V still
rises, if it did not.

Weights are standardised per neuron, with a gain and a shift; the gain moves into the threshold. Average pools
share an error among the spikes that they have counted.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from ssnn_plugin.nn import AveragePool

from ..config import Fraction
from . import multi_spike
from .architecture import Convolution
from .minibatch import Done
from .multi_spike import MultiSpike, Ran

# Of dt/dV for the weights, and of 1 / q for the times.
STEEPEST, LONGEST = 4.0, 1e4
LARGEST_WEIGHT = 4.0
LARGEST_GRADIENT = 1000.0
# V rises if it gains more than that in a step.
RISING = 0.05
# What the cross-entropies hold against a silent class.
SILENT_TIME, SILENT_COUNT = -3.0, -20.0
# An earlier spike counts for up to a tenth more.
EARLY = 0.1
# Spikes asked of the label, and of all others, unless a config says how many.
WANTED, OTHERS = 5, 1
# Of the search for thresholds: bounds of the factor, and the ratio at which it ends.
LOWEST, HIGHEST, CLOSE = 0.01, 100.0, 1.01


class Network(multi_spike.Network):
    """`firing` is how often a neuron fires in the window at first."""

    tau_membrane: PositiveFloat = 5.0
    tau_synapse: PositiveFloat = 3.0
    tau_gradient: PositiveFloat = 2.5
    firing: PositiveFloat = 0.6

    @model_validator(mode="after")
    def _two_time_constants(self) -> Network:
        if self.tau_membrane == self.tau_synapse:
            raise ValueError(f"tau_membrane and tau_synapse must differ, got {self.tau_membrane} for both")
        return self

    @model_validator(mode="after")
    def _leak_and_threshold_are_not_chosen(self) -> Network:
        if (self.beta, self.threshold) != (0.25, 1.0):
            raise ValueError(
                "beta and threshold are no options of time-based training, where time constants and "
                f"calibration take their place, got {self.beta} and {self.threshold}"
            )
        return self


class Training(multi_spike.Training):
    """`wanted` and `others` are the numbers of spikes asked of the label and of all others.

    One learning rate is that of all weights.
    """

    learning_rates: list[PositiveFloat] = Field(min_length=1, max_length=1)
    precision: Literal["float32"] = "float32"
    loss: Literal["count", "count-plus", "first-spike", "cross-entropy-plus"]
    wanted: PositiveInt = WANTED
    others: PositiveInt = OTHERS
    gain_decay: Fraction = 0.0

    @model_validator(mode="after")
    def _numbers_are_used(self) -> Training:
        if not self.loss.startswith("count") and (self.wanted, self.others) != (WANTED, OTHERS):
            raise ValueError(f"wanted and others go with losses that count spikes, got {self.loss!r}")
        return self


class Settings(multi_spike.Settings):
    network: Network
    training: Training


def keeps(network: Network) -> tuple[float, float, float]:
    """What is kept of m, s and q in a step."""
    return tuple(1 - 1 / tau for tau in (network.tau_membrane, network.tau_synapse, network.tau_gradient))  # type: ignore[return-value]


class Step(NamedTuple):
    """What a step makes of neurons [batch, *]: spikes, V before a reset, what V gained, and q."""

    fired: Tensor
    v: Tensor
    rise: Tensor
    q: Tensor


def integrate(currents: Tensor, threshold: Tensor, network: Network) -> list[Step]:
    """Neurons over the steps of their currents [T, batch, *]."""
    keep_m, keep_s, keep_q = keeps(network)
    scale = (1 - keep_s) / (keep_m - keep_s)
    m = s = q = before = torch.zeros_like(currents[0])
    steps = []
    for current in currents:
        m, s, q = (m + current) * keep_m, (s + current) * keep_s, (q + current) * keep_q
        v = scale * (m - s)
        # Numbers: a compiled loop that keeps truth values takes twenty times as long.
        fired = (v >= threshold).to(v)
        steps.append(Step(fired, v, v - before, q))
        m, s, q, before = (x * (1 - fired) for x in (m, s, q, v))
    return steps


class EventNeurons(torch.autograd.Function):
    """Spikes [T, batch, *] of the same currents given twice: one learns for the weights, one for the times.

    With labels, the spikes that learn hold that of the supervisor, too; the second output are those without,
    the third is V in the last step before a reset [batch, *].
    """

    @staticmethod
    def forward(
        ctx: Any,
        for_weights: Tensor,
        for_times: Tensor,
        threshold: Tensor,
        labels: Tensor | None,
        network: Network,
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps = integrate(for_weights, threshold, network)
        raw, v = torch.stack([step.fired for step in steps]), steps[-1].v
        learning = raw.clone()
        if labels is not None:
            learning += supervised(torch.stack([step.rise for step in steps]), labels) * (1 - raw)
        ctx.save_for_backward(learning, for_weights, threshold)
        ctx.network = network
        ctx.mark_non_differentiable(raw, v)
        return learning, raw, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of a spike is dL/dt."""
        spikes, currents, threshold = ctx.saved_tensors
        keep_m, keep_s, keep_q = keeps(ctx.network)
        scale = (1 - keep_s) / (keep_m - keep_s)
        # What an input is worth falls with the steps until the spike that it belongs to.
        m = s = q = torch.zeros_like(currents[0])
        for_weights, for_times = [], []
        steps = integrate(currents, threshold, ctx.network)
        for spike, error, step in reversed(list(zip(spikes, grads[0], steps, strict=True))):
            of_v = spike * error * (-1 / step.rise).clamp(-STEEPEST, 0)
            of_q = spike * error * (-1 / step.q).clamp(-LONGEST, 0)
            m = (of_v + (1 - spike) * m) * keep_m
            s = (of_v + (1 - spike) * s) * keep_s
            q = (of_q + (1 - spike) * q) * keep_q
            for_weights.append(scale * (m - s))
            for_times.append(-q)
        return torch.stack(for_weights[::-1]), torch.stack(for_times[::-1]), None, None, None


def supervised(rise: Tensor, labels: Tensor) -> Tensor:
    """The last step in which V of the label rises, if it does: [T, batch, classes]."""
    steps = torch.arange(1, len(rise) + 1, device=rise.device).reshape(-1, 1, 1)
    last = ((rise > RISING) * steps).max(0).values
    return (steps == last) & F.one_hot(labels, rise.shape[-1]).bool()


class Connect(torch.autograd.Function):
    """The currents of spikes, twice, as `EventNeurons` takes them; the gradient of a spike is dL/dt."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, convolution: Convolution | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(inputs, weight)
        ctx.convolution = convolution
        if convolution is None:
            currents = inputs @ weight.t()
        else:
            currents = F.conv2d(inputs, weight, None, convolution.stride, convolution.padding)
        return currents, currents.view_as(currents)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inputs, weight), layer = ctx.saved_tensors, ctx.convolution
        for_weights, for_times = grads
        if layer is None:
            of_weight, of_inputs = for_weights.t() @ inputs, for_times @ weight
        else:
            of_weight = conv2d_weight(inputs, weight.shape, for_weights, layer.stride, layer.padding)  # type: ignore[no-untyped-call]
            of_inputs = conv2d_input(inputs.shape, weight, for_times, layer.stride, layer.padding)  # type: ignore[no-untyped-call]
        return of_inputs * inputs, of_weight, None


class SharingPool(torch.autograd.Function):
    """An average pool whose error goes to the spikes that it counted, in equal parts."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, size: int) -> Tensor:
        pooled = F.avg_pool2d(spikes, size)
        ctx.save_for_backward(pooled)
        ctx.size, ctx.shape = size, spikes.shape
        return pooled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (pooled,) = ctx.saved_tensors
        shares = torch.where(pooled > 0, grads[0] / (pooled * ctx.size**2), 0)
        whole = F.interpolate(shares, scale_factor=float(ctx.size))
        rest = [n for a, b in zip(ctx.shape[:1:-1], whole.shape[:1:-1], strict=True) for n in (0, a - b)]
        return F.pad(whole, rest), None


class EventLayer(nn.Module):
    """A connection and its neurons: inputs [T * batch, *], of the first layer [batch, *], to spikes."""

    threshold: Tensor

    def __init__(
        self,
        connection: nn.Linear | nn.Conv2d,
        pool: int | None,
        layer: Convolution | None,
        network: Network,
        repeat: nn.Module,
    ) -> None:
        super().__init__()
        self.pool, self.layer, self.network, self.repeat = pool, layer, network, repeat
        self.weight = connection.weight
        shape = [-1, *[1] * (self.weight.ndim - 1)]
        self.gain = nn.Parameter(torch.ones(len(self.weight)).reshape(shape))
        self.shift = nn.Parameter(torch.zeros(len(self.weight)).reshape(shape))
        self.register_buffer("threshold", torch.ones(len(self.weight)).reshape(shape[:-1]))

    def effective(self) -> Tensor:
        """The weights, standardised per neuron."""
        variance, mean = torch.var_mean(self.weight.flatten(1), 1, unbiased=False)
        mean, variance = mean.reshape_as(self.gain), variance.reshape_as(self.gain)
        return self.gain * (self.weight - mean) * (variance + 1e-5).rsqrt() + self.shift

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes that learn, spikes without those of the supervisor, both [T * batch, *], and the last V."""
        for_weights, for_times = (
            self.repeat(currents).unflatten(0, (self.network.t_max, -1))
            for currents in Connect.apply(self.pooled(inputs), self.effective(), self.layer)
        )
        spikes, raw, v = EventNeurons.apply(for_weights, for_times, self.threshold, labels, self.network)
        return spikes.flatten(0, 1), raw.flatten(0, 1), v

    def pooled(self, inputs: Tensor) -> Tensor:
        """The inputs as the connection takes them."""
        values = inputs if self.pool is None else SharingPool.apply(inputs, self.pool)
        return values.flatten(1) if self.layer is None else values

    @torch.no_grad()
    def take_gain(self) -> None:
        """Move the gain into the threshold, and keep the weights in their bounds."""
        self.threshold.div_(self.gain.reshape_as(self.threshold))
        self.shift.div_(self.gain)
        self.gain.fill_(1.0)
        self.weight.clamp_(-LARGEST_WEIGHT, LARGEST_WEIGHT)

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """Search the threshold at which neurons fire as often as they should in the last steps."""
        steps = self.network.t_max
        late = steps - 2 * steps // 3
        low, high = LOWEST, HIGHEST
        whole = self.threshold.clone()
        while high / low > CLOSE:
            factor = (low * high) ** 0.5
            self.threshold.copy_(whole / factor)
            spikes = torch.stack(self(inputs)[0].chunk(steps)[-late:])
            fired = spikes.sum().item() / spikes[0].numel()
            low, high = (low, factor) if fired > self.network.firing * late / steps else (factor, high)


class TimeBased(MultiSpike):
    settings: Settings
    training: Training

    def parameter_groups(self) -> list[dict[str, Any]]:
        (rate,) = self.training.learning_rates
        gains = [p for name, p in self.network.named_parameters() if not name.endswith("weight")]
        weights = [p for name, p in self.network.named_parameters() if name.endswith("weight")]
        decay = self.training.gain_decay
        return [{"params": weights, "lr": rate}, {"params": gains, "lr": rate, "weight_decay": decay}]

    @property
    def layers(self) -> list[EventLayer]:
        return [layer for layer in self.network.modules() if isinstance(layer, EventLayer)]

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if epoch:
            return
        values = self.shaped(times[: self.training.batch_size].to(self.device))
        for layer, stage in zip(self.layers, self.stages, strict=True):
            layer.calibrate(values)
            with torch.no_grad():
                values = stage.after(layer(values)[0])

    def after_backward(self) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)

    def after_step(self) -> None:
        for layer in self.layers:
            layer.take_gain()

    def run(self, images: Tensor) -> Ran:
        (*hidden, outputs), _, potential = self.fire(images)
        return Ran(hidden, outputs, potential)

    def learn(self, images: Tensor, labels: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Spikes of every layer [T, batch, *], and those of the outputs that learn."""
        trains, learning, _ = self.fire(images, labels)
        return trains, learning

    def fire(self, images: Tensor, labels: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        """As `learn`, and V of the outputs in the last step, before a reset [batch, classes]."""
        trains, values = [], self.shaped(images)
        for layer, stage in zip(self.layers, self.stages, strict=True):
            learning, spikes, v = layer(values, labels if layer is self.layers[-1] else None)
            trains.append(spikes.unflatten(0, (self.steps, -1)))
            values = stage.after(learning)
        return trains, torch.stack(values.chunk(self.steps)), v

    def fired(self, outputs: Tensor) -> Tensor:
        return outputs

    def scores(self, outputs: Tensor) -> Tensor:
        # 1 + EARLY (1 - t / T), in whole numbers, so that equal sums are equal.
        early = round((1 + EARLY) / EARLY * self.steps) - torch.arange(self.steps, device=outputs.device)
        return torch.einsum("tbc,t->bc", outputs, early.to(outputs))

    def _step(self, inputs: Tensor, labels: Tensor) -> Done:
        trains, outputs = self.learner(inputs)(inputs, labels)
        loss, errors = self.errors(outputs.detach(), labels)
        self._learn((outputs * errors).sum())
        right = (self.scores(trains[-1]).argmax(1) == labels).sum().item()
        return Done(loss / len(labels), right, [layer.sum((0, 1)).cpu() for layer in trains])

    def errors(self, spikes: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Loss of a batch, and the errors dL/dt of output spikes [T, batch, classes], or [batch, classes]."""
        loss = self.training.loss
        if loss == "first-spike":
            return first_spike_errors(spikes, labels)
        counts = spikes.sum(0)
        share = 1 / counts.clamp(min=1)
        if loss == "cross-entropy-plus":
            value, errors = cross_entropy_errors(counts, labels, self.steps)
        else:
            value, errors = self.count_errors(counts, labels)
        return value, errors if loss == "count" else errors * share

    def count_errors(self, counts: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """(wanted - n) / T, and 0 beyond what is wanted."""
        label = F.one_hot(labels, counts.shape[1]).bool()
        missing = (self.training.wanted - counts).clamp(min=0)
        excess = (counts - self.training.others).clamp(min=0)
        error = torch.where(label, missing, -excess) / self.steps
        value = 0.5 * (error * error).sum().item()
        if self.training.loss == "count-plus":
            ratio = counts[~label].sum() / counts[label].sum().clamp(min=1)
            error = torch.where(label, error * (ratio / 10).clamp(min=1), error)
        return value, error

    def _linear(
        self, number: int, in_features: int, out_features: int, pool: AveragePool | None
    ) -> nn.Module:
        return self._event_layer(number, nn.Linear(in_features, out_features, bias=False), None, pool)

    def _convolution(
        self, number: int, channels: int, layer: Convolution, pool: AveragePool | None
    ) -> nn.Module:
        return self._event_layer(number, nn.Conv2d(channels, *layer, bias=False), layer, pool)

    def _event_layer(
        self, number: int, connection: Any, layer: Convolution | None, pool: AveragePool | None
    ) -> nn.Module:
        size = pool.window[0][0] if pool else None
        return EventLayer(connection, size, layer, self.settings.network, self.in_all_steps(number))


def first_spike_errors(spikes: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """T times the cross-entropy on 1 - t / T of the first spikes."""
    steps = len(spikes)
    first, fired = spikes.argmax(0), spikes.sum(0) > 0
    logits = torch.where(fired, 1 - first / steps, SILENT_TIME).requires_grad_()
    with torch.enable_grad():
        loss = steps * F.cross_entropy(logits, labels, reduction="sum")
    (grad,) = torch.autograd.grad(loss, logits)
    is_first = torch.zeros_like(spikes).scatter_(0, first.unsqueeze(0), 1.0) * spikes
    return loss.item(), is_first * (-grad / steps)


def cross_entropy_errors(counts: Tensor, labels: Tensor, steps: int) -> tuple[float, Tensor]:
    """T / 2 times the cross-entropy on 2 n / T; nothing where the label is silent."""
    logits = torch.where(counts > 0, 2 * counts / steps, SILENT_COUNT).requires_grad_()
    with torch.enable_grad():
        losses = steps / 2 * F.cross_entropy(logits, labels, reduction="none")
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    heard = counts.gather(1, labels.unsqueeze(1)) > 0
    return losses.sum().item(), torch.where(heard, -grad * 2 / steps, 0)


build = TimeBased
