"""Trained ReLU networks as networks of windowed ramps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from .. import _checks
from .._trace import NoTimeMode, unwrapped
from ..kernels.precision import in_full_precision
from .follow import OUTPUT, Follower, as_channels
from .network import RampNetwork
from .neurons import ChannelAffine
from .trace import shapes, trace

# Of the largest output; folding batch normalisations rounds otherwise.
MOST_DIFFERENCE = {torch.float32: 1e-3, torch.float64: 1e-9}

Statistics = tuple[float | Sequence[float], float | Sequence[float]]


def from_relu(
    model: nn.Module,
    *,
    calibrate_on: Tensor,
    margin: float = 0.5,
    x_max: float = 1.0,
    signed: bool = False,
    normalize: Statistics | None = None,
    inhibition: bool = False,
) -> RampNetwork:
    """The network of neurons that fire at most once with the same outputs as a trained ReLU network.

    A layer of `WindowedRamp` neurons is a layer of ReLUs in spike times, exactly. The forward of the model is
    followed symbolically: Conv2d, Linear, BatchNorm1d and BatchNorm2d, folded, ReLU and ReLU6, max-pools,
    which are the earliest spike, average pools and means, Flatten, Dropout, residual additions,
    concatenations, constants. All that is affine between two layers of neurons is one connection, computed
    factor by factor. The model is left as it is; the network has copies of its parameters, and can be trained
    further.

    Args:
        model: takes one tensor [batch, *] and returns one; what it does in evaluation mode is converted.
        calibrate_on: inputs [batch, *] as the network shall take them, on which windows are set and the
            outputs of both are compared. They should be of all classes: a data set in the order of its
            classes begins with one.
        margin: by which windows exceed the highest potentials on `calibrate_on`: (1 + margin) times. A
            higher one is clipped to the start of the window, with a `ClippedSpikesWarning`. The window
            of a ReLU6 is its 6.
        x_max: the greatest input, which spikes at 0; x spikes at x_max - x.
        signed: whether inputs go from -x_max to x_max; each then has two neurons, one for either sign.
        normalize: (mean, std), numbers or one per channel, where the model was trained on normalised images,
            (x - mean) / std, and the network is to take x. They become part of the first connection, zero
            padding included, which pads with the mean.
        inhibition: whether the first spike of a max-pool's window silences the others there, which the pool
            holds back anyway: the same outputs with fewer spikes.

    Returns:
        A `RampNetwork` in evaluation mode.

    Raises:
        NoTimeMode: what cannot be followed or is no ReLU network, by its path and class, and what to use
            instead; outputs that differ from those of the model.
        TypeError: a dtype other than float32 or float64, or another one than the model's.
        ValueError: inputs out of range, a standard deviation that is not positive, arguments out of range;
            `inhibition` without a max-pool, of windows side by side, that alone reads a layer of neurons.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> images = torch.rand(8, 2)
    >>> network = from_relu(model, calibrate_on=images)
    >>> torch.allclose(network(images), model(images), atol=1e-6)
    True
    >>> times, potential = network.first_spikes(images)
    >>> torch.equal(times.argmin(1), model(images).argmax(1))
    True
    """
    _checks.positive("x_max", x_max)
    if not isinstance(x_max, int | float):
        raise TypeError(f"x_max must be a number, got {x_max!r}")
    original = _copied(unwrapped(model)).eval()
    _check_samples(original, calibrate_on)
    body = trace(copy.deepcopy(original))
    if normalize is not None:
        _prepend(body, normalize, calibrate_on)
    follower = Follower(body, shapes(body, calibrate_on), x_max, signed)
    sources, of_output = follower.follow()
    pooled = follower.pooled() if inhibition else {}
    if inhibition and not pooled:
        raise ValueError(
            "inhibition needs a MaxPool2d right behind a layer of neurons that nothing else reads, with a "
            f"stride as its kernel, without padding and ceil_mode, got none in {type(model).__name__}"
        )
    sources[OUTPUT] = of_output
    network = RampNetwork(body, sources, x_max=x_max, signed=signed, inhibition=pooled).eval()
    network.calibrate(calibrate_on, margin)
    _compare(network, original, calibrate_on, normalize)
    return network


def _copied(model: nn.Module) -> nn.Module:
    for path, module in model.named_modules():
        try:
            if not parametrize.is_parametrized(module):
                _checks.plain_weights(module)
        except ValueError as error:
            raise NoTimeMode(f"{path} ({type(module).__name__}) cannot become ramps: {error}") from error
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise NoTimeMode(
            f"{type(model).__name__} cannot be copied ({error}). Detach tensors that it keeps as attributes"
        ) from error


def _check_samples(model: nn.Module, inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"calibrate_on must be a tensor, got {type(inputs).__name__}")
    _checks.floating("calibrate_on", inputs)
    if not len(inputs):
        raise ValueError("calibrate_on must hold at least one sample, got none")
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError("model must have parameters, got none")
    if first.dtype != inputs.dtype:
        raise TypeError(f"calibrate_on is {inputs.dtype}, the model {first.dtype}: they must be the same")
    if first.device != inputs.device:
        raise ValueError(f"calibrate_on is on {inputs.device}, the model on {first.device}")


def _statistics(normalize: Statistics, inputs: Tensor) -> tuple[Tensor, Tensor]:
    channels = inputs.shape[1]
    try:
        mean, std = (as_channels(values, inputs, channels) for values in normalize)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"normalize must be (mean, std), numbers or {channels} each, got {normalize!r}"
        ) from error
    if not bool((std > 0).all() and std.isfinite().all() and mean.isfinite().all()):
        raise ValueError(f"normalize must be finite, with std above 0, got {normalize!r}")
    return mean, std


def _prepend(body: fx.GraphModule, normalize: Statistics, inputs: Tensor) -> None:
    """Let a graph begin with the normalisation of its input."""
    mean, std = _statistics(normalize, inputs)
    placeholder = next(node for node in body.graph.nodes if node.op == "placeholder")
    path = "normalize"
    while hasattr(body, path):
        path += "_"
    body.add_submodule(path, ChannelAffine(1 / std, -mean / std, learned=False))
    with body.graph.inserting_after(placeholder):
        first = body.graph.call_module(path, (placeholder,))
    placeholder.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
    body.recompile()


@in_full_precision
def _compare(network: RampNetwork, model: nn.Module, inputs: Tensor, normalize: Statistics | None) -> None:
    """Refuse a network that does something else than the model."""
    given = inputs.clone()
    if normalize is not None:
        shape = 1, -1, *[1] * (inputs.ndim - 2)
        mean, std = (values.view(shape) for values in _statistics(normalize, inputs))
        given = (inputs - mean) / std
    with torch.no_grad():
        expected, found = model(given), network(inputs)
    difference, largest = float((found - expected).abs().amax()), float(expected.abs().amax())
    if not difference <= MOST_DIFFERENCE[inputs.dtype] * largest:
        raise NoTimeMode(
            f"the outputs of the network differ from those of {type(model).__name__} by {difference:.2g}, "
            f"the largest is {largest:.2g}: its forward does what its graph does not show, as hooks and "
            "random numbers do"
        )
