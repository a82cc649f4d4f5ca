"""Training steps without autograd: forward, errors, updates, compiled (CPU)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import _checks
from ._rooms import Layer, Room, as_read, described, is_plain, rooms_of, rows_of
from .functional.silent import warn_if_none
from .kernels.backends import BACKENDS
from .kernels.cpu import fused
from .kernels.cpu.errors import relative_errors
from .kernels.cpu.parallel import share_out
from .losses import RelativeTargetLoss
from .neurons.base import SeparableNeuron
from .nn import SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential
from .nn.decision import flattens_samples

MOMENTS = "exp_avg", "exp_avg_sq"
OPTIMIZERS = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
# Of Adam: moments below the smallest normal number count as 0, and eps has to be far above their root.
LEAST_EPS = {torch.float32: 1e-15, torch.float64: 1e-140}
# Options of an optimiser by which a step is another one than here.
REFUSED = "momentum", "nesterov", "amsgrad", "maximize"
# Where modules and optimisers keep hooks, which nothing here would call, or a forward of their own.
HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "forward",
)  # fmt: skip


Loss = Callable[[Tensor, Tensor], Tensor]


class FusedStep:
    """A training step of a feed-forward network: what these lines do, in less time; S4NN's in half of it.

        optimizer.zero_grad()
        for layer in network:
            times = normalize_error(layer(times))
        loss(times, labels).backward()
        optimizer.step()

    Weights and the state of the optimiser are the same after it, to rounding; no gradients are left on the
    weights. All that it is made of can be changed, saved and loaded between two steps, and is looked at anew
    in each; schedulers set the step size. Its arrays are kept between steps: one thread at a time.

    Args:
        network: `SpikeLinear` layers on the CPU, each with weights of its own, without bias, dropout and
            input pool. Any neurons that the compiled kernels run, with numbers as thresholds, leaks and time
            constants; any gradient rule. Before them `SpikeConv2d` layers of one group and a `SpikeFlatten`
            may come, of `IF` neurons without leak with the rule "latency".
        loss: of output times [batch, out] and labels alone, which autograd differentiates. A
            `RelativeTargetLoss` with its default `reduction` and `reference`, S4NN's, is compiled.
        optimizer: `torch.optim.SGD` without momentum, `Adam` or `AdamW`, of weights of the network. Weights
            that it does not hold, or that need no gradient, stay.
        normalize: whether errors are normalised in each layer, as by `functional.normalize_error`, which goes
            with S4NN's rule.

    Calling it with times [batch, in], or [batch, channels, height, width], of the dtype of the weights, and
    labels [batch], int64, gives the loss before the step.

    Raises:
        TypeError, ValueError: a network or an optimiser of another kind; a loss that learns, or that depends
            on weights; times, labels or weights that the layers or the loss would refuse. No weight is
            changed then.
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
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        normalize: bool = True,
    ) -> None:
        if not isinstance(normalize, bool):
            raise TypeError(f"normalize must be True or False, got {normalize!r}")
        self.network, self.loss, self.optimizer, self.normalize = network, loss, optimizer, normalize
        self._forget_rooms()
        _updates(optimizer, _checked(network))
        _check_loss(loss)

    def _forget_rooms(self) -> None:
        self._kinds: list[object] = []
        self._rooms: list[Room] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without what the next step makes anew."""
        return {name: value for name, value in vars(self).items() if name not in ("_kinds", "_rooms")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_rooms()

    def __call__(self, times: Tensor, labels: Tensor) -> float:
        """Learn from spike times of these classes [batch]; return the loss before."""
        if not torch.is_grad_enabled():
            raise RuntimeError("a step cannot be taken under torch.no_grad or torch.inference_mode")
        with torch.no_grad():
            return self._step(times, labels)

    def _step(self, times: Tensor, labels: Tensor) -> float:
        layers = _checked(self.network)
        _check_loss(self.loss)
        _check_data(times, labels, layers[0])
        updates = _updates(self.optimizer, layers)
        rooms = self._rooms_for(times, layers)
        spikes = [as_read(times)]
        for layer, room in zip(layers, rooms, strict=True):
            spikes.append(room.fire(layer, spikes[-1]))
        loss, grads = _errors_of_outputs(self.loss, spikes[-1], labels)
        for number in reversed(range(len(rooms))):
            rooms[number].take(grads, self.normalize)
            if not any(updates[:number]):
                break
            grads = rooms[number].input_grad(spikes[number])
        for update, room, inputs in zip(updates, rooms, spikes, strict=False):
            if update is not None:
                update(room.rows, room.weight_grad(inputs))
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # a scheduler asks for it
        return loss

    def _rooms_for(self, times: Tensor, layers: list[Layer]) -> list[Room]:
        kinds = [times.shape, times.dtype, *(described(layer) for layer in layers)]
        if self._kinds != kinds:
            self._kinds, self._rooms = kinds, rooms_of(layers, times)
        return self._rooms


def _errors_of_outputs(loss: Loss, spikes: np.ndarray, labels: Tensor) -> tuple[float, np.ndarray]:
    """The loss, and its gradient by the spike times of the outputs, which it must have by nothing else."""
    if _is_compiled(loss):
        return _relative_errors(loss, spikes, labels)
    with torch.enable_grad():
        outputs = torch.from_numpy(spikes).requires_grad_()
        value = loss(outputs.clone(), labels)  # a copy that the loss may keep, or change
    if not isinstance(value, Tensor) or value.shape != ():
        raise TypeError(f"loss must give a tensor of one number, got {value!r}")
    learn = _tensors_behind(value)
    if others := [list(tensor.shape) for tensor in learn if tensor is not outputs]:
        raise ValueError(
            f"loss must depend on the times of the outputs alone, got one of tensors {others} that learn too"
        )
    if not learn:
        raise ValueError("loss must depend on the times of the outputs, got one that does not")
    (grad,) = torch.autograd.grad(value, outputs)
    return value.item(), grad.contiguous().numpy()


def _tensors_behind(value: Tensor) -> list[Tensor]:
    """Those that a backward pass from a value would give a gradient."""
    found, seen, ahead = [], set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            found.append(leaf)
        ahead.extend(behind for behind, _ in node.next_functions)
    return found


def _is_compiled(loss: Loss) -> TypeGuard[RelativeTargetLoss]:
    """Whether it is S4NN's own."""
    return type(loss) is RelativeTargetLoss and (loss.reduction, loss.reference) == ("mean", "earliest")


def _relative_errors(
    loss: RelativeTargetLoss, spikes: np.ndarray, labels: Tensor
) -> tuple[float, np.ndarray]:
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
    optimizer: torch.optim.Optimizer, layers: list[Layer]
) -> list[Callable[[np.ndarray, np.ndarray], None] | None]:
    """What changes the weights of each layer, as `rows_of` has them; None for those that stay."""
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
        least = LEAST_EPS[layers[0].weight.dtype]
        if group.get("eps", 1.0) < least:
            raise ValueError(f"optimizer must have an eps of at least {least}, got {group['eps']}")
    make = _sgd if isinstance(optimizer, torch.optim.SGD) else _adam
    weights = [layer.weight for layer in layers]
    learn = [weight in held and weight.requires_grad for weight in weights]
    if not any(learn):
        raise ValueError("optimizer must hold a weight of the network that needs a gradient, got none")
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
    if kept := optimizer.state.get(weight):
        for name in MOMENTS:
            _check_moments(name, kept.get(name), weight)
        if not isinstance(kept.get("step"), Tensor):
            raise ValueError(f"optimizer must count its steps in a tensor, got {kept.get('step')!r}")

    def update(rows: np.ndarray, grad: np.ndarray) -> None:
        state = optimizer.state[weight]
        if not state:  # as torch's own begins
            state["step"] = torch.tensor(0.0)
            state.update({name: torch.zeros_like(weight) for name in MOMENTS})
        state["step"] += 1
        for name in MOMENTS:
            if weight.ndim > 2:  # what was loaded may lie otherwise in memory
                state[name] = state[name].contiguous()
        moments = (rows_of(state[name]) for name in MOMENTS)
        numbers = state["step"].item(), rate, betas, eps, decay, options["decoupled_weight_decay"]
        _change(weight, fused.adam, rows, grad, *moments, *numbers)

    return update


def _check_moments(name: str, moments: object, weight: Tensor) -> None:
    """Refuse what cannot be gone on with."""
    if not isinstance(moments, Tensor) or moments.layout is not torch.strided or moments.device.type != "cpu":
        got = repr(moments)
    elif (moments.shape, moments.dtype) != (weight.shape, weight.dtype):
        got = f"{moments.dtype} {list(moments.shape)}"
    else:
        return
    raise ValueError(
        f"optimizer must keep {name} as its weights, {weight.dtype} {list(weight.shape)}, got {got}"
    )


def _change(weight: Tensor, kernel: Callable[..., None], rows: np.ndarray, *arguments: Any) -> None:
    share_out(len(rows), rows.size, kernel, rows, *arguments)
    torch.autograd.graph.increment_version(weight)
    weight.grad = None


def _checked(network: SpikeSequential) -> list[Layer]:
    """The layers of a network that has no others, but for what flattens the outputs of convolutions."""
    if type(network) is not SpikeSequential:
        raise TypeError(f"network must be a SpikeSequential, got {type(network).__name__}")
    _refuse_hooks("network", network)
    layers: list[Layer] = []
    for number, layer in enumerate(network):
        if _flattens(layer):
            _refuse_hooks(f"network[{number}]", layer)
            continue
        if type(layer) is not SpikeLinear and type(layer) is not SpikeConv2d:
            raise TypeError(
                f"network[{number}] must be a SpikeLinear, a SpikeConv2d or a SpikeFlatten of all features, "
                f"got {type(layer).__name__}"
            )
        if missing := _missing(layer, layer.weight):
            raise ValueError(f"network[{number}] must have {missing}, got {layer!r}")
        layer._neuron.check(layer.t_max)
        if layer._neuron.jumps:
            _checks.distinct_bins(layer.t_max, layer.weight.dtype)
        layers.append(layer)
    if not re.fullmatch("C+FL*|L*", "".join(map(_letter, network))):
        raise ValueError(
            "network must be fully connected layers, or convolutions, one SpikeFlatten and fully connected "
            f"layers, in this order, got {network!r}"
        )
    weights = [layer.weight for layer in layers]
    if not layers or len(set(weights)) < len(layers):
        raise ValueError(f"network must have layers with weights of their own, got {network!r}")
    for one, other in itertools.pairwise(weights):
        fits = len(one) == other.shape[1] or one.ndim != other.ndim
        if not fits or one.dtype != other.dtype:
            raise ValueError(f"network must have layers that fit each other, got {network!r}")
    return layers


def _letter(layer: nn.Module) -> str:
    return "F" if _flattens(layer) else "L" if type(layer) is SpikeLinear else "C"


def _flattens(layer: nn.Module) -> bool:
    """Whether it makes [batch, all] of outputs, and does nothing else."""
    return type(layer) in (nn.Flatten, SpikeFlatten) and flattens_samples(layer)


def _missing(layer: Layer, weight: Tensor) -> str | None:
    """What a layer would have to have."""
    neuron = layer._neuron  # as `layer.neuron` has it, which takes longer
    if neuron.parameters:
        return "numbers as thresholds, leaks and time constants, not one for each neuron"
    if not isinstance(neuron, SeparableNeuron) or not BACKENDS["cpu"].runs(neuron):
        return "neurons that the compiled kernels run"
    if layer.bias is not None or layer.input_pool is not None or layer.dropout:
        return "no bias, dropout and input pool"
    if any(map(vars(layer).get, HOOKS)) or weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return "no hooks and no forward of its own, which a fused step would not call"
    if isinstance(layer, SpikeConv2d):
        if layer.output_pool is not None or layer.groups != 1:
            return "no output pool, and a single group"
        if not is_plain(layer):
            return 'IF neurons without leak and the gradient "latency", as it is a convolution'
    rows = weight if weight.ndim > 2 else weight.t()
    if weight.device.type != "cpu" or weight.dtype not in _checks.DTYPES or not rows.is_contiguous():
        return "a weight of float32 or float64 on the CPU, which lies in memory as it was made"
    return None


def _refuse_hooks(name: str, owner: nn.Module | torch.optim.Optimizer) -> None:
    of_all = _has_any_global_hook()  # type: ignore[no-untyped-call]
    if isinstance(owner, torch.optim.Optimizer):
        of_all = of_all or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
    if any(map(vars(owner).get, HOOKS)) or of_all:
        raise ValueError(
            f"{name} must have no hooks and no forward of its own, which a fused step would not call"
        )


def _check_loss(loss: Loss) -> None:
    if not callable(loss):
        raise TypeError(f"loss must be callable with times and labels, got {loss!r}")
    if _is_compiled(loss):
        _checks.positive("t_max of the loss", loss.t_max)
        _checks.gap("gamma of the loss", loss.gamma, loss.t_max)
        _refuse_hooks("loss", loss)
    elif isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
        raise ValueError(f"loss must have no parameters that learn, got {loss!r}")


def _check_data(times: Tensor, labels: Tensor, first: Layer) -> None:
    for name, tensor in (("times", times), ("labels", labels)):
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
        ):
            raise TypeError(f"{name} must be a dense tensor on the CPU, got {tensor!r}")
    weight, image = first.weight, ", height, width" if first.weight.ndim > 2 else ""
    if times.ndim != weight.ndim or not len(times) or times.shape[1] != weight.shape[1]:
        raise ValueError(f"times must have shape [batch, {weight.shape[1]}{image}], got {list(times.shape)}")
    if times.requires_grad:
        raise ValueError("times must need no gradient, which a fused step would not give them")
    if times.dtype != weight.dtype:
        raise TypeError(f"times must be {weight.dtype}, as the weights, got {times.dtype}")
    if labels.shape != times.shape[:1]:
        raise ValueError(f"labels must have shape [{len(times)}], got {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be torch.int64, got {labels.dtype}")
