"""A ReLU network that learns as such and decides by single spikes, a recipe of our own.

Convolutions, batch normalisation and ReLU learn with what is known to be fast: stochastic gradient descent
with Nesterov momentum, a short warm-up, label smoothing, an exponential mean of the weights, first filters
that whiten the patches of the images, others that pass their channels through at first, biases that may learn
faster than weights (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024). For every evaluation
`ssnn_plugin.from_relu` makes it a network of windowed ramps (Stanojevic et al. 2024), with batch
normalisation folded: each ReLU is a neuron that fires at most once, and what is reported is what these
neurons do. Batches are normalised without a learned gain, so that a price on activations can be avoided by
silence alone, not by their scale; what silences a neuron is its bias. After every epoch the statistics that
are folded are taken anew, as running means are of weights that were; of images changed as in training, as
the edge of a shifted image may be strong.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, cast

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from ssnn_plugin import NoTimeMode, RampNetwork, from_relu
from ssnn_plugin.functional import highest_in_windows2d
from ssnn_plugin.relu import ClippedSpikesWarning

from ..config import Config, Fraction, Linear
from ..errors import Diverged, SuiteError
from ..evaluation import SpikesInWindow
from ..records import EpochStatistics
from . import layered, minibatch
from .architecture import Convolution, Layers, Pool, parse, size_behind
from .layered import SAMPLE
from .minibatch import (
    NORMALIZING,
    Done,
    Minibatch,
    MixedPrecision,
    Stage,
    in_a_row,
    one_each,
    refuse_a_single_sample,
    spread,
)

# Images whose patches are whitened, and the ridge.
WHITENED, RIDGE = 1000, 5e-4
# Images that the statistics of batch normalisation are of.
NORMALIZED = 2000
# Samples that decide at once.
CHUNK = 500


class Network(layered.Network):
    """`t_max` is the latest end of the last window; windows follow from the activations, `margin` wider.

    With `whiten` the first convolution has the eigenvectors of its patches and their negatives as filters,
    divided by their deviations; these do not learn, its biases do. Logits are `temperature` times smaller
    than potentials.
    `normalize` says whether batch normalisation is of all neurons of a layer, or of those that a max pool
    lets through: the same network, of which fewer neurons fire, learned in less time (Jordan 2024).
    With `inhibition` the first spike of a max-pool's window silences the others there.
    """

    dtype: Literal["float32"] = "float32"
    margin: NonNegativeFloat = 0.5
    whiten: bool = False
    normalize: Literal["all", "pooled"] = "all"
    inhibition: bool = False
    temperature: PositiveFloat = 1.0

    @property
    def name(self) -> str:
        """`P2i` is a max-pool whose first spike inhibits."""
        return "-".join(
            f"{layer}i" if self.inhibition and layer.startswith("P") else layer for layer in self.layers
        )

    @model_validator(mode="after")
    def _a_pool_to_come_first(self) -> Network:
        pooled = [behind.startswith("P") for _, behind in itertools.pairwise(self.layers)]
        if self.normalize == "pooled" and not any(pooled[self.whiten :]):
            raise ValueError(f"normalize 'pooled' needs a pool behind normalised neurons, got {self.layers}")
        if self.inhibition and not any(pooled):
            raise ValueError(f"inhibition needs a max-pool behind neurons, got {self.layers}")
        return self

    @model_validator(mode="after")
    def _a_convolution_to_whiten(self) -> Network:
        first = parse(self.layers[0]) if self.layers else None
        if self.whiten and not isinstance(first, Convolution):
            raise ValueError(f"whiten needs a convolution as first layer, got {self.layers}")
        return self


class Training(MixedPrecision, minibatch.Training):
    """`spike_price`: cost of a hidden activation, in units of the deviation of what its ReLU gets.

    Where a max-pool comes first, or inhibits, of one that it lets through. One number for all hidden layers,
    or one for each. It is also paid up to `price_margin` below the threshold, in the same units, so that it
    does not leave a uniform background there, which other statistics than a batch's would let fire. Neurons
    of a window that fire together, as on such a background, come too late to inhibit each other: with
    `price_ties` each of them pays, else one does.

    Biases of batch normalisation learn `bias_rate` times as fast as weights, and decay as fast.
    """

    bias_rate: PositiveFloat = 1.0
    spike_price: NonNegativeFloat | tuple[NonNegativeFloat, ...] = 0.0
    price_margin: NonNegativeFloat = 0.0
    price_ties: bool = False
    label_smoothing: Fraction = 0.0
    mean_decay: Fraction = 0.0

    def averages(self, epoch: int) -> bool:
        """Whether an epoch ends a mean over epochs; an exponential one is updated after each step."""
        return not self.mean_decay and super().averages(epoch)

    @model_validator(mode="after")
    def _one_mean(self) -> Training:
        if self.mean_decay and self.average_last > 1:
            raise ValueError(f"average_last goes without mean_decay, got {self.average_last}")
        return self

    @model_validator(mode="after")
    def _something_to_pay(self) -> Training:
        if (self.price_margin or self.price_ties) and not self.spike_price:
            raise ValueError("price_margin and price_ties go with a spike_price above 0")
        return self


class Settings(Config):
    encoding: Linear
    network: Network
    training: Training

    @model_validator(mode="after")
    def _ties_are_of_inhibition(self) -> Settings:
        if self.training.price_ties and not self.network.inhibition:
            raise ValueError("training.price_ties goes with network.inhibition")
        return self

    @model_validator(mode="after")
    def _times_are_intensities(self) -> Settings:
        if self.encoding.scale != 1 or self.encoding.silent_below:
            raise ValueError("encoding must have scale 1 and no silent_below: the network takes x = 1 - t")
        return self


class Rectified(Stage):
    """A connection, its normalisation and ReLU, and the pools behind them.

    In this order in the network that decides. With `pooled_first` it learns in another one: a max-pool lets
    the same neuron through before potentials are normalised and rectified, as no gain is negative. With
    `inhibits` only what the max-pool lets through fires.
    """

    neurons: nn.Sequential

    def __init__(self, *connection: nn.Module, norm: nn.Module) -> None:
        super().__init__(nn.Sequential(*connection, norm, nn.ReLU()))
        self.pooled_first = self.inhibits = False
        self.normalizes = not isinstance(norm, nn.Identity)

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The normalisation, if there is one."""
        return cast(nn.BatchNorm2d, self.neurons[-2])

    def normalize_pooled(self) -> None:
        """Learn in the other order from now on."""
        self.pooled_first = True
        # The statistics of the last batch alone, which say what fires; those that decide are taken anew.
        self.norm.momentum = 1.0

    def forward(self, values: Tensor) -> Tensor:
        return self.learn(values).passed_on

    def learn(self, values: Tensor) -> Activity:
        """What it does while it learns."""
        norm, relu = self.neurons[-2:]
        potentials = self._potentials(values)
        if self.pooled_first:
            pooled, winners = self._pool(potentials)
            costly = norm(pooled.float())
            activations = passed_on = relu(costly)
        elif self.inhibits:
            costly, winners = self._pool(norm(potentials.float()))
            activations = passed_on = relu(costly)
        else:
            costly, winners = norm(potentials.float()), None
            activations = relu(costly)
            passed_on = self.after(activations)
        return Activity(potentials, activations, costly, passed_on, winners)

    def _potentials(self, values: Tensor) -> Tensor:
        """Values behind the connection; in half precision only if they are normalised.

        A price is lost beside the gradient it is added to, unless a parameter sees their sum in single
        precision, as the bias of a normalisation does.
        """
        connection = self.neurons[:-2]
        if self.normalizes:
            return connection(values)  # type: ignore[no-any-return]
        with torch.autocast(values.device.type, enabled=False):
            return connection(values)  # type: ignore[no-any-return]

    def _pool(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values behind the pools, and where those come from that an inhibiting one lets through."""
        if not self.inhibits:
            return self.after(values), None
        return nn.functional.max_pool2d(values, self._window, return_indices=True)

    @property
    def _window(self) -> int | tuple[int, int]:
        """Of the pool that inhibits."""
        (pool,) = self.after
        return cast(nn.MaxPool2d, pool).kernel_size

    @torch.no_grad()
    def fire_together(self, potentials: Tensor) -> Tensor | None:
        """How many neurons share the highest potential of each window that inhibits; None without one."""
        if not self.inhibits:
            return None
        highest = highest_in_windows2d(potentials, self._window).float()
        return nn.functional.avg_pool2d(highest, self._window, divisor_override=1)

    @torch.no_grad()
    def spikes(self, activity: Activity) -> Tensor:
        """How often each neuron fires, channels last; also if a pool holds it back, unless that inhibits."""
        if activity.winners is None:
            return _counted(self._above_threshold(activity))
        return _counted_at(activity.winners, activity.passed_on > 0, activity.potentials[0].numel())

    def _above_threshold(self, activity: Activity) -> Tensor:
        if not self.pooled_first:
            return activity.activations > 0
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance = norm.running_var * (1 - norm.num_features / activity.activations.numel())
        zero = norm.running_mean - norm.bias * (variance + norm.eps).sqrt()  # what is normalised to 0
        return activity.potentials > zero[:, None, None]


class Activity(NamedTuple):
    """Of a layer: its potentials, behind its ReLU, of these what costs, and what the next layer gets.

    `winners` says which neuron of a map [height * width] each value comes from that an inhibiting pool lets
    through.
    """

    potentials: Tensor
    activations: Tensor
    costly: Tensor
    passed_on: Tensor
    winners: Tensor | None


class ConvertedReLU(Minibatch):
    settings: Settings
    training: Training

    def __init__(
        self, settings: Settings, shape: tuple[int, ...], classes: int, seed: int, device: str
    ) -> None:
        network = settings.network
        stages = relu_stages(
            network.layers, shape, classes, network.whiten, network.normalize == "pooled", network.inhibition
        )
        super().__init__(settings, stages, shape, seed, device)
        self.network.to(memory_format=torch.channels_last)
        price = settings.training.spike_price
        prices = price if isinstance(price, tuple) else (price,)
        self.prices = one_each(prices, len(stages) - 1, "training.spike_price", "hidden layer")
        if settings.training.mean_decay:
            mean = get_ema_multi_avg_fn(settings.training.mean_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.network, multi_avg_fn=mean)
        self.sample = torch.empty(0, *shape)
        self.converted: RampNetwork | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For each stage a group of weights and one of biases."""
        biases = {stage.norm.bias for stage in _hidden(self.stages) if stage.normalizes}
        rate, split = self.training.bias_rate, []
        for group in super().parameter_groups():
            fast = [parameter for parameter in group["params"] if parameter in biases]
            slow = [parameter for parameter in group["params"] if parameter not in biases]
            decay = self.training.weight_decay / rate
            split.append({"params": slow, "lr": group["lr"]})
            split.append({"params": fast, "lr": rate * group["lr"], "weight_decay": decay})
        return split

    def images(self, times: Tensor) -> Tensor:
        """Intensities [samples, channels, height, width] of spike times [samples, features]."""
        images = (1 - times).clamp_(min=0).reshape(-1, *self.shape)
        return images.contiguous(memory_format=torch.channels_last)

    def before_epoch(self, epoch: int, times: Tensor) -> None:
        if epoch:
            return
        refuse_a_single_sample(len(times), self.training.batch_size)
        self.sample = self.images(spread(times, SAMPLE)).to(self.device)
        if self.settings.network.whiten:
            first = next(module for module in self.network.modules() if isinstance(module, nn.Conv2d))
            whiten(first, self.images(spread(times, WHITENED)))

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        statistics = super().train_epoch(epoch, times, labels, advance)
        inputs = self.varied(spread(times, NORMALIZED), self.generator(epoch, NORMALIZING))
        hidden, parts = nn.Sequential(*_hidden(self._decisive())), math.ceil(len(inputs) / CHUNK)
        update_bn(torch.tensor_split(self.images(inputs).to(self.device), parts), hidden)
        self.spiking()  # whose last window may end too late
        return statistics

    def _step(self, inputs: Tensor, labels: Tensor) -> Done:
        spikes, values = [], self.images(inputs)
        with self.training.autocast(inputs.device):
            for stage, price in zip(_hidden(self.stages), self.prices, strict=True):
                activity = stage.learn(values)
                if price:
                    ties = stage.fire_together(activity.potentials) if self.training.price_ties else None
                    _charge(activity.costly, price / len(labels), self.training.price_margin, ties)
                spikes.append(stage.spikes(activity))
                values = activity.passed_on
            logits = self.stages[-1].neurons(values).float() / self.settings.network.temperature
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.training.label_smoothing)
        self._learn(loss)
        right = (logits.argmax(1) == labels).sum().item()
        return Done(loss.item(), right, [count.cpu() for count in spikes])

    def after_step(self) -> None:
        self.converted = None
        if self.training.mean_decay:
            self.average.update_parameters(self.network)

    def predict(self, times: Tensor) -> SpikesInWindow:
        network = self.spiking()
        layers, potentials = [], []
        for part in torch.split(self.images(times.to(self.device)), CHUNK):
            with torch.no_grad():
                found = network.activity(part)
            layers.append([spikes for name, spikes in found.times.items() if name != "input"])
            potentials.append(found.potential)
        times_of_layers = tuple(map(torch.cat, zip(*layers, strict=True)))
        return SpikesInWindow(times_of_layers, torch.cat(potentials), network.t_max)

    def relu(self) -> nn.Sequential:
        """The network that learns, with averaged weights if there are any; called with images."""
        return in_a_row(self._decisive())

    def _decisive(self) -> list[Stage]:
        """The stages that decide: those of averaged weights, if there are any."""
        network = self.average.module if self.average.n_averaged else self.network
        return [stage for stage in network.modules() if isinstance(stage, Stage)]

    def spiking(self) -> RampNetwork:
        """The network of single-spike neurons, converted anew after learning."""
        if self.converted is not None:
            return self.converted
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClippedSpikesWarning)
            network = self.settings.network
            try:
                converted = from_relu(
                    self.relu(),
                    calibrate_on=self.sample,
                    margin=network.margin,
                    inhibition=network.inhibition,
                )
            except (NoTimeMode, ValueError) as error:  # of what `relu_stages` makes only for want of digits
                raise Diverged(f"training diverged: the network cannot be converted ({error})") from error
        if converted.t_max > network.t_max:
            raise Diverged(
                f"network.t_max must be at least {converted.t_max:.4g}, where the last window ends, unless "
                f"training diverged, got {network.t_max}"
            )
        self.converted = converted
        return converted

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sample": self.sample}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.sample, self.converted = state["sample"].to(self.device), None


def _hidden(stages: Iterable[Stage]) -> list[Rectified]:
    return [stage for stage in stages if isinstance(stage, Rectified)]


def relu_stages(
    layers: Layers,
    shape: tuple[int, ...],
    classes: int,
    whiten: bool = False,
    normalize_pooled: bool = False,
    inhibition: bool = False,
    key: str = "network.layers",
) -> list[Stage]:
    """Connections with their normalisation and ReLU, the pools behind them, and the outputs.

    Args:
        shape: of an image, [channels, height, width].
        whiten: leave the first convolution to be whitened.
        normalize_pooled: batch normalisation is of what a max-pool lets through.
        inhibition: only what it lets through fires.
        key: what the layers are called in a config.

    Raises:
        SuiteError: features instead of images; a layer that does not fit what is left of an image.
    """
    if len(shape) != 3:
        raise SuiteError(f"{key}: a ReLU network needs images, got {shape[0]} features per sample")
    stages: list[Rectified] = []
    for written in layers:
        layer = parse(written)
        if isinstance(layer, Pool):
            stage = stages[-1]
            stage.after.append((nn.AvgPool2d if layer.average else nn.MaxPool2d)(layer.kernel))
            stage.inhibits = inhibition and not layer.average
            if normalize_pooled and stage.normalizes and not layer.average:
                stage.normalize_pooled()
            shape = shape[0], *size_behind(layer, shape[1:])
        elif isinstance(layer, Convolution):
            whitening = whiten and not stages
            convolution, norm = _convolution(shape[0], layer, whitening)
            stages.append(Rectified(convolution, norm=norm))
            shape = layer.channels, *size_behind(layer, shape[1:])
        else:
            linear = nn.Linear(math.prod(shape), layer, bias=False)
            stages.append(Rectified(nn.Flatten(), linear, norm=_without_gain(nn.BatchNorm1d(layer))))
            shape = (layer,)
        if min(shape) < 1:
            raise SuiteError(f"{key}: {written!r} does not fit what is left of an image")
    return [*stages, Stage(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)))]


def _convolution(channels: int, layer: Convolution, whitening: bool) -> tuple[nn.Module, nn.Module]:
    """A convolution and its normalisation; its first filters pass the channels through, or it will whiten."""
    convolution = nn.Conv2d(channels, *layer, bias=whitening)
    if whitening:
        convolution.weight.requires_grad_(False)
        return convolution, nn.Identity()
    nn.init.dirac_(convolution.weight.data[:channels])
    return convolution, _without_gain(nn.BatchNorm2d(layer.channels))


def _charge(values: Tensor, price: float, margin: float, ties: Tensor | None) -> None:
    """Add the gradient of what they cost above minus `margin`; a sum of them would be far slower."""
    now = values.detach()
    paid = torch.gt(now, -margin, out=torch.empty_like(now))  # as numbers, which is faster than a mask
    if ties is not None:
        paid *= ties
    values.register_hook(lambda grad: grad.add(paid, alpha=price))  # type: ignore[no-untyped-call]


def _counted_at(places: Tensor, fired: Tensor, neurons: int) -> Tensor:
    """As `_counted`, of so many neurons, of which those that can fire are told by their places in maps."""
    channels = places.shape[1]
    which = places.movedim(1, -1) * channels + torch.arange(channels, device=places.device)
    counts = torch.zeros(neurons, device=places.device)
    return counts.index_add_(0, which.flatten(), fired.movedim(1, -1).flatten().float()).long()


def _counted(fired: Tensor) -> Tensor:
    """How often each neuron fired, channels last; bytes, which hold up to 255, are added up far faster."""
    parts = torch.split(fired.movedim(1, -1).flatten(1).view(torch.uint8), 255)
    return torch.stack([part.sum(0, dtype=torch.uint8) for part in parts]).sum(0)


def _without_gain(norm: nn.Module) -> nn.Module:
    norm.weight.requires_grad_(False)
    return norm


@torch.no_grad()
def whiten(convolution: nn.Conv2d, images: Tensor) -> None:
    """Give a convolution the filters that whiten the patches of images, and their negatives.

    Raises:
        SuiteError: another number of filters than twice the values of a patch.
    """
    patches = nn.functional.unfold(images, convolution.kernel_size).transpose(1, 2).flatten(0, 1).double()
    size = patches.shape[1]
    if convolution.out_channels != 2 * size:
        raise SuiteError(f"network.whiten needs {2 * size} filters in the first layer, got {convolution}")
    values, vectors = torch.linalg.eigh(patches.T.cov())
    filters = (vectors / (values + RIDGE).sqrt()).T.reshape(size, *convolution.weight.shape[1:])
    convolution.weight.copy_(torch.cat([filters, -filters]))
    # The mean of the patches is taken out, so that half of the ReLUs are active.
    centre = (filters.flatten(1) @ patches.mean(0)).to(convolution.weight)
    assert convolution.bias is not None
    convolution.bias.copy_(torch.cat([-centre, centre]))


build = ConvertedReLU
