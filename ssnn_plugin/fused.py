"""Training steps of fully connected networks without autograd: forward, errors, updates, compiled (CPU)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _checks
from .functional.silent import warn_if_none
from .kernels.cpu import fused, steps
from .kernels.cpu.errors import relative_errors
from .kernels.cpu.gradients import Arrays, add_input_grad, write_weight_grad
from .kernels.cpu.lanes import width_of
from .kernels.cpu.parallel import share_out
from .kernels.status import refuse_bad_samples
from .losses import RelativeTargetLoss
from .neurons import IF
from .nn import SpikeLinear, SpikeSequential
from .rules import Latency

OPTIMIZERS = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
# Options of an optimiser by which a step is another one than here.
REFUSED = "momentum", "nesterov", "amsgrad", "maximize"


class FusedStep:
    """A training step of S4NN on a mini-batch: what these lines do, in about half of the time.

        optimizer.zero_grad()
        for layer in network:
            times = normalize_error(layer(times))
        loss(times, labels).backward()
        optimizer.step()

    Weights and the state of the optimiser are the same after it, to rounding; both can be changed, saved and
    loaded in between, and schedulers set the step size. No gradients are left on the weights.

    Args:
        network: `SpikeLinear` layers with `IF` neurons on the CPU, of one threshold per layer, without leak,
            bias, dropout and input pool, and with the gradient "latency".
        loss: with its default `reduction` and `reference`.
        optimizer: `torch.optim.SGD` without momentum, `Adam` or `AdamW`, of weights of the network. Layers
            whose weights it does not hold keep them.
        normalize: whether errors are normalised in each layer, as by `functional.normalize_error`.

    Calling it with times [batch, in] and labels [batch] gives the mean loss before the step. Layers and loss
    are looked at once, when the step is made, weights and options of the optimiser at every call.

    Raises:
        TypeError, ValueError: a network, a loss or an optimiser of another kind; when called, times and
            labels that do not fit, as the layers and the loss raise them; the weights are then as before.

    Source: Kheradpisheh & Masquelier 2020, in mini-batches as in Liu et al. 2021 (SSTDP).

    >>> import torch
    >>> from ssnn_plugin import IF, FusedStep
    >>> from ssnn_plugin.losses import RelativeTargetLoss
    >>> from ssnn_plugin.nn import SpikeLinear, SpikeSequential
    >>> layer = SpikeLinear(2, 2, IF(threshold=100.0, delay=1), t_max=256, silent_gradient=True)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[60.0, 50.0], [60.0, 50.0]])})
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    >>> step = FusedStep(SpikeSequential(layer), RelativeTargetLoss(3, 256), optimizer)
    >>> _ = step(torch.tensor([[3.0, 7.0]]), torch.tensor([0]))
    >>> layer.weight.tolist()  # the label ties: the other output is pushed back by a step of norm 1
    [[60.0, 50.0], [59.0, 49.0]]
    """

    def __init__(
        self,
        network: SpikeSequential,
        loss: RelativeTargetLoss,
        optimizer: torch.optim.Optimizer,
        *,
        normalize: bool = True,
    ) -> None:
        self.network = _checked(network)
        if type(loss) is not RelativeTargetLoss or (loss.reduction, loss.reference) != ("mean", "earliest"):
            raise TypeError(
                f"loss must be a RelativeTargetLoss with its default reduction and reference, got {loss!r}"
            )
        if type(optimizer) not in OPTIMIZERS:
            names = ", ".join(kind.__name__ for kind in OPTIMIZERS)
            raise TypeError(f"optimizer must be one of {names}, got {type(optimizer).__name__}")
        self.loss, self.optimizer, self.normalize = loss, optimizer, normalize
        self._layers: list[_Layer] = []
        self._options()

    def __call__(self, times: Tensor, labels: Tensor) -> float:
        """Learn from spike times [batch, in] of these classes [batch]; return the mean loss before."""
        _check_data(times, labels, self.network[0])
        options = self._options()
        if not self._layers or len(self._layers[0].status) != len(times):
            self._layers = [_Layer(layer, len(times)) for layer in self.network]
        spikes = times.detach().contiguous().numpy()
        for layer in self._layers:
            spikes = layer.fire(spikes)
        loss, grads = self._errors_of_outputs(spikes, labels)
        for layer in reversed(self._layers):
            layer.take(grads, 1 / len(times) if self.normalize else 0.0)
            if layer is not self._layers[0]:
                grads = layer.input_grad()
        for layer in self._layers:
            if layer.weight in options:
                self._update(layer, options[layer.weight])
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # a scheduler asks for it
        return loss

    def _options(self) -> dict[Tensor, dict[str, Any]]:
        """The options of the optimiser, as they are now, by weight."""
        options = {weight: group for group in self.optimizer.param_groups for weight in group["params"]}
        if not options.keys() <= {layer.weight for layer in self.network}:
            raise ValueError("optimizer must hold weights of the network, and nothing else")
        for group in self.optimizer.param_groups:
            if refused := [name for name in REFUSED if group.get(name)]:
                raise ValueError(f"optimizer must be without {refused[0]}, got {group[refused[0]]!r}")
        return options

    def _errors_of_outputs(self, spikes: np.ndarray, labels: Tensor) -> tuple[float, np.ndarray]:
        """The mean loss, and its gradient by the spike times of the outputs."""
        gamma, t_max = float(self.loss.gamma), float(self.loss.t_max)
        errors, losses = np.empty_like(spikes), np.empty_like(spikes[:, 0])
        valid, fired = relative_errors(spikes, labels.numpy(), gamma, t_max, errors, losses)
        if not valid:
            _checks.labels_of_any_shape(labels, torch.from_numpy(spikes))
        if not fired:
            warn_if_none(torch.zeros(1, dtype=torch.bool))
        errors *= 1 / (t_max * len(errors))
        return float(losses.mean()), errors

    def _update(self, layer: _Layer, options: dict[str, Any]) -> None:
        weights, grad = layer.rows, layer.weight_grad()
        rate, decay = float(options["lr"]), float(options["weight_decay"])
        if isinstance(self.optimizer, torch.optim.SGD):
            share_out(len(weights), weights.size, fused.sgd, weights, grad, rate, decay)
        else:
            state = self._moments(layer.weight)
            moments = (state[name].t().numpy() for name in ("exp_avg", "exp_avg_sq"))
            state["step"] += 1
            others = options["eps"], decay, options["decoupled_weight_decay"], state["step"].item()
            share_out(
                len(weights),
                weights.size,
                fused.adam,
                weights,
                grad,
                *moments,
                rate,
                options["betas"],
                *others,
            )
        torch.autograd.graph.increment_version(layer.weight)

    def _moments(self, weight: Tensor) -> dict[str, Tensor]:
        """What Adam keeps of a weight, as torch's own has it."""
        state: dict[str, Tensor] = self.optimizer.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state


class _Layer:
    """The kernels of a layer, and their arrays for mini-batches of one size."""

    def __init__(self, layer: SpikeLinear, batch: int) -> None:
        self.weight, neuron = layer.weight, layer.neuron
        self.rows = self.weight.detach().t().numpy()
        dtype, shape = self.rows.dtype, (batch, layer.out_features)
        self.kernel, self.tile = steps.kernel_of(neuron, None, self.rows)
        self.numbers = steps.numbers_of(neuron, float(dtype.type(layer.t_max)))
        self.status, self.none = np.zeros(batch, np.int8), np.empty(0, dtype)
        self.crossings, self.potential, self.errors, self.until = (np.empty(shape, dtype) for _ in range(4))
        self.delay = dtype.type(neuron.delay)
        self.spikes = np.empty(shape, dtype) if self.delay else self.crossings
        # What a crossing of a silent neuron is, for which all inputs of the window count.
        last = np.nextafter(dtype.type(layer.t_max), dtype.type(0))
        self.last = last if layer.silent_gradient else dtype.type(np.inf)
        columns = max(layer.out_features, width_of(self.tile, dtype.itemsize))
        self.grad = np.empty((layer.in_features, columns), dtype)

    def fire(self, times: np.ndarray) -> np.ndarray:
        """Spike times of the layer, of those of its inputs."""
        self.times, self.rows, self.status[:] = times, self.weight.detach().t().numpy(), 0
        arrays = times, self.rows, self.none, self.crossings, self.potential, self.none, self.status
        share_out(
            len(times), times.size * len(self.weight) // 4, self.kernel, *arrays, *self.numbers, self.tile
        )
        refuse_bad_samples(self.status.max())
        if self.delay:
            np.add(self.crossings, self.delay, out=self.spikes)
        return self.spikes

    def take(self, grads: np.ndarray, norm: float) -> None:
        """Keep the gradients of the spike times as errors, of this norm in each sample if it is not 0."""
        until = self.until, self.until.view(f"i{self.until.itemsize}")
        arrays = grads, self.crossings, self.last, norm, self.errors, *until
        share_out(len(grads), grads.size, fused.unit_errors, *arrays)

    def weight_grad(self) -> np.ndarray:
        """Gradient of the weights [in, out], with more columns if there are fewer outputs than a tile has."""
        write_weight_grad(self._arrays(), self.grad, self.tile)
        return self.grad

    def input_grad(self) -> np.ndarray:
        """Gradient of the inputs' spike times."""
        grad = np.zeros_like(self.times)
        add_input_grad(self._arrays(), self.rows.T, grad)
        return grad

    def _arrays(self) -> Arrays:
        return self.errors, None, self.until, None, None, self.times


def _checked(network: SpikeSequential) -> list[SpikeLinear]:
    """The layers of a network that has no others."""
    if type(network) is not SpikeSequential or not len(network):
        raise TypeError(f"network must be a SpikeSequential of layers, got {type(network).__name__}")
    layers: list[SpikeLinear] = []
    for name, layer in network.named_children():
        if type(layer) is not SpikeLinear:
            raise TypeError(f"network.{name} must be a SpikeLinear, got {type(layer).__name__}")
        if missing := _missing(layer):
            raise ValueError(f"network.{name} must have {missing}, got {layer!r}")
        _checks.distinct_bins(layer.t_max, layer.weight.dtype)
        layers.append(layer)
    for before, after in itertools.pairwise(layers):
        if before.out_features != after.in_features or before.weight.dtype != after.weight.dtype:
            raise ValueError(f"network must have layers that fit, got {before!r} before {after!r}")
    return layers


def _missing(layer: SpikeLinear) -> str | None:
    """What a layer would have to have."""
    neuron, weight = layer.neuron, layer.weight
    if type(neuron) is not IF or neuron.parameters or neuron.beta != 1:
        return "IF neurons with one threshold and no leak"
    if layer.bias is not None or layer.input_pool is not None or layer.dropout:
        return "no bias, dropout and input pool"
    if layer.gradient != Latency():
        return "the gradient 'latency'"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or weight._backward_hooks:
        return "no hooks"
    if weight.device.type != "cpu" or not weight.t().is_contiguous():
        return "its weight on the CPU, which lies in memory as it was made, [in, out]"
    return None


def _check_data(times: Tensor, labels: Tensor, first: SpikeLinear) -> None:
    if times.ndim != 2 or not len(times) or times.shape[1] != first.in_features:
        raise ValueError(f"times must have shape [batch, {first.in_features}], got {list(times.shape)}")
    if times.dtype != first.weight.dtype or times.device.type != "cpu":
        raise TypeError(f"times must be {first.weight.dtype} on the CPU, got {times.dtype} on {times.device}")
    if labels.shape != times.shape[:1] or labels.dtype != torch.int64 or labels.device.type != "cpu":
        raise ValueError(
            f"labels must be int64 of shape [{len(times)}] on the CPU, "
            f"got {labels.dtype} {list(labels.shape)} on {labels.device}"
        )
