"""Training steps of fully connected networks without autograd: forward, errors, updates, compiled (CPU)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import _checks
from .functional.silent import warn_if_none
from .kernels.cpu import fused, work_on_rows
from .kernels.cpu.errors import relative_errors
from .kernels.cpu.gradients import Arrays, add_input_grad, write_weight_grad
from .kernels.cpu.lanes import tile_of, width_of
from .kernels.cpu.parallel import share_out
from .kernels.status import refuse_bad_samples
from .losses import RelativeTargetLoss
from .neurons import IF
from .nn import SpikeLinear, SpikeSequential
from .rules import Latency

OPTIMIZERS = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
# Options of an optimiser by which a step is another one than here.
REFUSED = "momentum", "nesterov", "amsgrad", "maximize"
# Where modules and optimisers keep hooks, which nothing here would call, or a forward of their own.
HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "forward",
)  # fmt: skip


class FusedStep:
    """A training step of S4NN on a mini-batch: what these lines do, in about half of the time.

        optimizer.zero_grad()
        for layer in network:
            times = normalize_error(layer(times))
        loss(times, labels).backward()
        optimizer.step()

    Weights and the state of the optimiser are the same after it, to rounding; no gradients are left on the
    weights. All that it is made of can be changed, saved and loaded between two steps, and is looked at anew
    in each; schedulers set the step size. Its arrays are kept between steps: one thread at a time.

    Args:
        network: `SpikeLinear` layers with `IF` neurons on the CPU, of one threshold per layer, without leak,
            bias, dropout and input pool, and with the gradient "latency"; each with weights of its own.
        loss: with its default `reduction` and `reference`.
        optimizer: `torch.optim.SGD` without momentum, `Adam` or `AdamW`, of weights of the network. Weights
            that it does not hold, or that need no gradient, stay.
        normalize: whether errors are normalised in each layer, as by `functional.normalize_error`.

    Calling it with times [batch, in], of the dtype of the weights, and labels [batch], int64, gives the mean
    loss before the step.

    Raises:
        TypeError, ValueError: a network, a loss or an optimiser of another kind; times, labels or weights
            that the layers or the loss would refuse. No weight is changed then.
        RuntimeError: under `torch.no_grad` or `torch.inference_mode`.

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
        if not isinstance(normalize, bool):
            raise TypeError(f"normalize must be True or False, got {normalize!r}")
        self.network, self.loss, self.optimizer, self.normalize = network, loss, optimizer, normalize
        self._rooms: list[_Room] = []
        _updates(optimizer, _checked(network))
        _check_loss(loss)

    def __call__(self, times: Tensor, labels: Tensor) -> float:
        """Learn from spike times [batch, in] of these classes [batch]; return the mean loss before."""
        if not torch.is_grad_enabled():
            raise RuntimeError("a step cannot be taken under torch.no_grad or torch.inference_mode")
        layers = _checked(self.network)
        _check_loss(self.loss)
        _check_data(times, labels, layers[0].weight)
        updates = _updates(self.optimizer, layers)
        rooms = self._rooms_for(len(times), layers)
        spikes = [times.detach().contiguous().numpy()]
        for layer, room in zip(layers, rooms, strict=True):
            spikes.append(room.fire(layer, spikes[-1]))
        loss, grads = _errors_of_outputs(self.loss, spikes[-1], labels)
        for number, room in reversed(list(enumerate(rooms))):
            room.take(grads, self.normalize)
            if number:
                grads = room.input_grad(spikes[number])
        for update, room, inputs in zip(updates, rooms, spikes, strict=False):
            if update is not None:
                update(room.rows, room.weight_grad(inputs))
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # a scheduler asks for it
        return loss

    def _rooms_for(self, batch: int, layers: list[SpikeLinear]) -> list[_Room]:
        sizes = [(batch, *layer.weight.shape, layer.weight.dtype) for layer in layers]
        if [room.sizes for room in self._rooms] != sizes:
            self._rooms = [_Room(*size) for size in sizes]
        return self._rooms


class _Room:
    """What the kernels of a layer read in a step, and the arrays that they write to, kept between steps."""

    rows: np.ndarray
    #: the crossing of a silent neuron, by which inputs are counted
    last: np.floating[Any]

    def __init__(self, batch: int, n_out: int, n_in: int, dtype: torch.dtype) -> None:
        self.sizes = batch, n_out, n_in, dtype
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        self.crossings, self.spikes, self.errors, self.until = (
            np.empty((batch, n_out), kind) for _ in range(4)
        )
        self.errors_of_inputs = np.empty((batch, n_in), kind)
        self.status, self.none, self.unwritten = (
            np.zeros(batch, np.int8),
            np.empty(0, kind),
            np.empty((0, 0), kind),
        )
        self.tile = tile_of(self.crossings)
        self.grad = np.empty((n_in, max(n_out, width_of(self.tile, kind.itemsize))), kind)

    def fire(self, layer: SpikeLinear, times: np.ndarray) -> np.ndarray:
        """Spike times of the layer, of those of its inputs."""
        neuron, number, self.rows = layer._neuron, times.dtype.type, _rows(layer.weight)
        end = number(layer.t_max)  # as the times can hold it
        # The last time of the window, at which all inputs count; without a gradient none does.
        self.last = np.nextafter(end, number(0)) if layer.silent_gradient else number(np.inf)
        self.status.fill(0)
        outputs = self.crossings, self.unwritten, self.none
        work = work_on_rows(neuron, float(end), times, self.rows, self.none, outputs, self.status)
        share_out(*work)
        refuse_bad_samples(self.status.max())
        return np.add(self.crossings, number(neuron.delay), out=self.spikes)  # type: ignore[no-any-return]

    def take(self, grads: np.ndarray, normalize: bool) -> None:
        """Keep the gradients of the spike times as errors, and before when inputs count for them."""
        until = self.until, self.until.view(f"i{self.until.itemsize}")
        arrays = grads, normalize, 1 / len(grads), self.errors, self.crossings, self.last, *until
        share_out(len(grads), grads.size, fused.take_errors, *arrays)

    def weight_grad(self, times: np.ndarray) -> np.ndarray:
        """Gradient of the weights [in, out], with more columns if there are fewer outputs than a tile has."""
        write_weight_grad(self._arrays(times), self.grad, self.tile)
        return self.grad

    def input_grad(self, times: np.ndarray) -> np.ndarray:
        """Gradient of the inputs' spike times."""
        self.errors_of_inputs.fill(0)
        add_input_grad(self._arrays(times), self.rows.T, self.errors_of_inputs)
        return self.errors_of_inputs

    def _arrays(self, times: np.ndarray) -> Arrays:
        return self.errors, None, self.until, None, None, times


def _rows(weight: Tensor) -> np.ndarray:
    """Weights as they lie in memory, [in, out]."""
    return weight.detach().t().numpy()


def _errors_of_outputs(
    loss: RelativeTargetLoss, spikes: np.ndarray, labels: Tensor
) -> tuple[float, np.ndarray]:
    """The mean loss, and its gradient by the spike times of the outputs."""
    errors, losses = np.empty_like(spikes), np.empty_like(spikes[:, 0])
    gamma, t_max = float(loss.gamma), float(loss.t_max)
    valid, fired = relative_errors(spikes, labels.numpy(), gamma, t_max, errors, losses)
    if not valid:
        _checks.labels_of_any_shape(labels, torch.from_numpy(spikes))
    if not fired:
        warn_if_none(torch.zeros(1, dtype=torch.bool))
    errors *= 1 / (t_max * len(errors))
    return float(losses.sum()) / len(losses), errors


def _updates(
    optimizer: torch.optim.Optimizer, layers: list[SpikeLinear]
) -> list[Callable[[np.ndarray, np.ndarray], None] | None]:
    """What changes the weights of each layer [in, out] by their gradient; None for those that stay."""
    if type(optimizer) not in OPTIMIZERS:
        names = ", ".join(kind.__name__ for kind in OPTIMIZERS)
        raise TypeError(f"optimizer must be one of {names}, got {type(optimizer).__name__}")
    _refuse_hooks("optimizer", optimizer)
    held = {weight: group for group in optimizer.param_groups for weight in group["params"]}
    if others := held.keys() - {layer.weight for layer in layers}:
        raise ValueError(f"optimizer must hold weights of the network alone, got {len(others)} others")
    for group in optimizer.param_groups:
        if refused := [name for name in REFUSED if group.get(name)]:
            raise ValueError(f"optimizer must be without {refused[0]}, got {group[refused[0]]!r}")
    make = _sgd if isinstance(optimizer, torch.optim.SGD) else _adam
    weights = [layer.weight for layer in layers]
    learn = [weight in held and weight.requires_grad for weight in weights]
    return [make(optimizer, w, held[w]) if learns else None for w, learns in zip(weights, learn, strict=True)]


def _sgd(
    optimizer: torch.optim.Optimizer, weight: Tensor, options: dict[str, Any]
) -> Callable[[np.ndarray, np.ndarray], None]:
    rate, decay = float(options["lr"]), float(options["weight_decay"])

    def update(rows: np.ndarray, grad: np.ndarray) -> None:
        _change(weight, fused.sgd, rows, grad, rate, decay)

    return update


def _adam(
    optimizer: torch.optim.Optimizer, weight: Tensor, options: dict[str, Any]
) -> Callable[[np.ndarray, np.ndarray], None]:
    rate, eps, decay = (float(options[name]) for name in ("lr", "eps", "weight_decay"))
    betas = float(options["betas"][0]), float(options["betas"][1])
    for name in ("exp_avg", "exp_avg_sq"):
        moments = optimizer.state.get(weight, {}).get(name, weight)
        if (moments.shape, moments.dtype) != (weight.shape, weight.dtype):
            raise ValueError(
                f"optimizer must keep {name} as its weights, {weight.dtype} {list(weight.shape)}, "
                f"got {moments.dtype} {list(moments.shape)}"
            )

    def update(rows: np.ndarray, grad: np.ndarray) -> None:
        state = optimizer.state[weight]
        if not state:  # as torch's own begins
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        state["step"] += 1
        moments = _rows(state["exp_avg"]), _rows(state["exp_avg_sq"])
        numbers = state["step"].item(), rate, betas, eps, decay, options["decoupled_weight_decay"]
        _change(weight, fused.adam, rows, grad, *moments, *numbers)

    return update


def _change(weight: Tensor, kernel: Callable[..., None], rows: np.ndarray, *arguments: Any) -> None:
    share_out(len(rows), rows.size, kernel, rows, *arguments)
    torch.autograd.graph.increment_version(weight)
    weight.grad = None


def _checked(network: SpikeSequential) -> list[SpikeLinear]:
    """The layers of a network that has no others."""
    if type(network) is not SpikeSequential:
        raise TypeError(f"network must be a SpikeSequential, got {type(network).__name__}")
    _refuse_hooks("network", network)
    layers: list[SpikeLinear] = list(network)  # type: ignore[arg-type]
    for number, layer in enumerate(layers):
        if type(layer) is not SpikeLinear:
            raise TypeError(f"network[{number}] must be a SpikeLinear, got {type(layer).__name__}")
        if missing := _missing(layer, layer.weight):
            raise ValueError(f"network[{number}] must have {missing}, got {layer!r}")
        _checks.distinct_bins(layer.t_max, layer.weight.dtype)
    weights = [layer.weight for layer in layers]
    if not layers or len(set(weights)) < len(layers):
        raise ValueError(f"network must have layers with weights of their own, got {network!r}")
    for one, other in itertools.pairwise(weights):
        if len(one) != other.shape[1] or one.dtype != other.dtype:
            raise ValueError(f"network must have layers that fit each other, got {network!r}")
    return layers


def _missing(layer: SpikeLinear, weight: Tensor) -> str | None:
    """What a layer would have to have."""
    neuron = layer._neuron  # as `layer.neuron` has it, which takes longer
    if (
        type(neuron) is not IF
        or isinstance(neuron.threshold, Tensor)
        or isinstance(neuron.beta, Tensor)
        or neuron.beta != 1
    ):
        return "IF neurons with one threshold and no leak"
    if layer.bias is not None or layer.input_pool is not None or layer.dropout:
        return "no bias, dropout and input pool"
    if type(layer.gradient) is not Latency:
        return "the gradient 'latency'"
    if any(map(vars(layer).get, HOOKS)) or weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return "no hooks and no forward of its own, which a fused step would not call"
    if weight.device.type != "cpu" or weight.dtype not in _checks.DTYPES or not weight.t().is_contiguous():
        return "a weight of float32 or float64 on the CPU, which lies in memory as it was made, [in, out]"
    return None


def _refuse_hooks(name: str, owner: nn.Module | torch.optim.Optimizer) -> None:
    if any(map(vars(owner).get, HOOKS)):
        raise ValueError(
            f"{name} must have no hooks and no forward of its own, which a fused step would not call"
        )


def _check_loss(loss: RelativeTargetLoss) -> None:
    if type(loss) is not RelativeTargetLoss or (loss.reduction, loss.reference) != ("mean", "earliest"):
        raise TypeError(
            f"loss must be a RelativeTargetLoss with its default reduction and reference, got {loss!r}"
        )
    _checks.positive("t_max of the loss", loss.t_max)
    _checks.gap("gamma of the loss", loss.gamma, loss.t_max)
    _refuse_hooks("loss", loss)


def _check_data(times: Tensor, labels: Tensor, weight: Tensor) -> None:
    for name, tensor in (("times", times), ("labels", labels)):
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
        ):
            raise TypeError(f"{name} must be a dense tensor on the CPU, got {tensor!r}")
    if times.ndim != 2 or not len(times) or times.shape[1] != weight.shape[1]:
        raise ValueError(f"times must have shape [batch, {weight.shape[1]}], got {list(times.shape)}")
    if times.dtype != weight.dtype:
        raise TypeError(f"times must be {weight.dtype}, as the weights, got {times.dtype}")
    if labels.shape != times.shape[:1]:
        raise ValueError(f"labels must have shape [{len(times)}], got {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be torch.int64, got {labels.dtype}")
