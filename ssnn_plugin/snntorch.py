"""snnTorch: neurons that fire at most once, temporal losses, accuracy and encoding, with its conventions.

Needs the extra `snntorch`. The neuron is the one of `functional.single_spike_step`; with the plug-in's
losses it has the spike times and gradients of the layers on spike times, apart from sums
that tie with the threshold by rounding (docs/three-modes.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks, decode, encode, losses, metrics, step_calibration
from .functional import (
    first_spike_pool2d_sequence,
    first_spike_pool2d_step,
    single_spike_sequence,
    single_spike_step,
)
from .functional.connection import Size2d, pool_window
from .functional.silent import warn_if_none
from .functional.step import NEEDS_A_WINDOW, floating, within
from .kernels.geometry import output_size
from .neurons import IF
from .nn import EarliestSpikePool2d
from .nn.binwise import Response
from .step_calibration import Run, StepNeuron
from .surrogate import LatchGradient

try:
    import snntorch as snn
except ImportError as error:
    raise ImportError("ssnn_plugin.snntorch needs snnTorch: pip install 'ssnn-plugin[snntorch]'") from error

__all__ = [
    "FirstSpikePool2d",
    "SingleSpike",
    "accuracy_temporal",
    "calibrate",
    "ce_temporal_loss",
    "latency",
    "mse_temporal_loss",
    "relative_temporal_loss",
    "reset",
]


class _Stateful(snn.Leaky):  # type: ignore[misc]
    """What snnTorch's utilities expect of a neuron whose whole state is `mem`.

    Being a `Leaky` is what makes `utils.reset`, `backprop.BPTT` and the monitors of snnTorch 1.0
    handle it; they know their own classes only.
    """

    sequence: bool

    def _state(self, input_: Tensor, mem: Tensor | None, shape: torch.Size) -> Tensor:
        """`mem`, or the hidden state; zeros where it does not fit the input, as in `Leaky`."""
        if self.init_hidden and mem is not None:
            raise TypeError("mem must not be passed with init_hidden=True: the neuron keeps it itself")
        if mem is not None and self.sequence and mem.ndim == input_.ndim:
            mem = mem[-1]
        if mem is None and self.sequence and not self.init_hidden:
            return input_.new_zeros(shape)
        state = self.mem if mem is None else mem
        if state.shape != shape:
            return input_.new_zeros(shape)
        if not torch.compiler.is_compiling() and state.is_inference() != torch.is_inference_mode_enabled():
            state = state.clone()
        return state.to(input_.device, input_.dtype)

    def _outputs(self, spikes: Tensor, mem: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # A copy: snnTorch detaches hidden states in place, which a view does not allow.
        self.mem = mem[-1].clone() if self.sequence else mem
        return spikes if self.init_hidden and not self.output else (spikes, mem)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the graph, which neither can take along."""
        state = self.__dict__.copy()
        state["_buffers"] = {**self._buffers, "mem": self.mem.detach()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """`utils.reset` of snnTorch 1.0 reaches only neurons in its registry; copies are left out of it."""
        super().__setstate__(state)
        snn.SpikingNeuron.instances.append(self)


class SingleSpike(_Stateful):
    """A neuron that fires at most once, in place of `snntorch.Leaky`.

    Its spikes are differentiated by the latency rule, dt/dV = -1 (Kheradpisheh & Masquelier 2020):
    a spike's gradient is read in the bin in which it fires and handed to every current up to that
    bin. `mem` changes until the neuron fires and then stays above threshold, which is how it is known
    to have fired; after the window it is the potential at the crossing, or at the end of a silent one.

    Args:
        beta: what is left of the potential after a step; 1 is no leak. Clamped to 0 ... 1.
        threshold: at least 0, below which a learned one counts as 0; the neuron fires above it, strictly.
        spike_grad: a surrogate of snnTorch's, which replaces the latency rule; with `sequence=True` also a
            rule of `ssnn_plugin.surrogate`, by which a neuron learns from every step. None is the rule.
        surrogate_disable: whether spikes pass no gradient at all.
        init_hidden, output, state_quant, graded_spikes_factor: as `snntorch.Leaky`.
        inhibition: of neurons [batch, features] that cross in the same step only the one with the
            highest potential fires; the others are spent, as `Leaky` resets them.
        learn_beta, learn_threshold, learn_graded_spikes_factor: as `snntorch.Leaky`.
        reset_mechanism: None or "none": a neuron that fires once is not reset.
        reset_delay: refused, as there is no reset to delay.
        silent_gradient: whether a loss on the spikes reaches neurons that have not fired, as the outputs of a
            network need it that falls silent: dS/dV = 1 before the spike too. None is True with `init_hidden`
            and `output`, which mark the last neurons; False with a surrogate. Hidden neurons do without.
        sequence: whether a call takes all steps at once, [T, batch, *], without a loop over them.

    Shape: [batch, *] -> (spikes, mem) of that shape, or spikes alone with `init_hidden=True` and
    `output=False`. With `sequence=True` all are [T, batch, *], and without a hidden state every call starts
    anew. The dtype is kept, so that half precision also adds up in half precision; under autocast it is
    float32, as in `Leaky`.

    Raises:
        ValueError: a negative threshold; a `reset_mechanism`, `reset_delay`; `state_quant` with `sequence`;
            `silent_gradient` with a surrogate.
        TypeError: `mem` passed with `init_hidden=True`.

    >>> import torch
    >>> lif = SingleSpike()
    >>> mem = lif.reset_mem()
    >>> for _ in range(3):
    ...     spk, mem = lif(torch.tensor([[0.6, 0.2]]), mem)
    ...     print(spk, mem)
    tensor([[0., 0.]]) tensor([[0.6000, 0.2000]])
    tensor([[1., 0.]]) tensor([[1.2000, 0.4000]])
    tensor([[0., 0.]]) tensor([[1.2000, 0.6000]])
    """

    def __init__(
        self,
        beta: float | Tensor = 1.0,
        threshold: float | Tensor = 1.0,
        spike_grad: Callable[[Tensor], Tensor] | LatchGradient | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str | None = None,
        state_quant: Callable[[Tensor], Tensor] | bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool | None = None,
        *,
        silent_gradient: bool | None = None,
        sequence: bool = False,
    ) -> None:
        _check_no_reset(reset_mechanism)
        if reset_delay is not None:
            raise ValueError(
                f"reset_delay must be left out, got {reset_delay!r}: the neuron fires once, without reset"
            )
        if not bool((torch.as_tensor(threshold) >= 0).all()):
            raise ValueError(f"threshold must be at least 0, got {threshold!r}")
        if isinstance(spike_grad, LatchGradient) and not sequence:
            raise ValueError(
                f"spike_grad must be a surrogate of one step, got {spike_grad!r}: {NEEDS_A_WINDOW}"
            )
        if sequence and state_quant:
            raise ValueError(
                f"state_quant must be False with sequence=True, got {state_quant!r}: "
                "it makes each step wait for the last"
            )
        latency_rule = spike_grad is None and not surrogate_disable
        if silent_gradient and not latency_rule:
            raise ValueError(
                "silent_gradient must be left out with spike_grad or surrogate_disable: it belongs to the "
                f"latency rule, got {silent_gradient!r}"
            )
        super().__init__(
            beta=beta,
            threshold=threshold,
            spike_grad=spike_grad,
            init_hidden=init_hidden,
            learn_beta=learn_beta,
            learn_threshold=learn_threshold,
            reset_mechanism="none",
            state_quant=state_quant,
            output=output,
            graded_spikes_factor=graded_spikes_factor,
            learn_graded_spikes_factor=learn_graded_spikes_factor,
        )
        self.surrogate_disable, self.inhibition, self.sequence = surrogate_disable, inhibition, sequence
        self.silent_gradient = latency_rule and (
            init_hidden and output if silent_gradient is None else silent_gradient
        )
        # None is the latency rule; the default surrogate of `Leaky` would also keep it from being pickled.
        self.spike_grad = _without_gradient if surrogate_disable else spike_grad

    @property
    def reset_mechanism(self) -> str:
        """ "none", and no other: snnTorch lets it be set."""
        return "none"

    @reset_mechanism.setter
    def reset_mechanism(self, mechanism: str) -> None:
        _check_no_reset(mechanism)

    def __setattr__(self, name: str, value: Any) -> None:
        # snnTorch resets a neuron by setting `mem`: the end of a window, which may have been silent.
        if name == "mem" and self.__dict__.get("_learning") and not value.requires_grad and not value.any():
            self.__dict__["_learning"] = False
            warn_if_none(self.mem > self.threshold)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        numbers = (f"{name}={_short(getattr(self, name))}" for name in ("beta", "threshold"))
        names = ("init_hidden", "output", "silent_gradient", "sequence")
        flags = (f"{name}={getattr(self, name)}" for name in names)
        return ", ".join((*numbers, *flags))

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Currents [batch, *] and state -> spikes and state; [T, batch, *] with `sequence=True`."""
        _checks.not_exported_by_a_host(self)
        input_ = floating(input_)
        if self.inhibition and input_.ndim != 2 + self.sequence:
            raise ValueError(f"input_ must be [batch, features] with inhibition, got {list(input_.shape)}")
        state = self._state(input_, mem, input_.shape[1:] if self.sequence else input_.shape)
        threshold = within(self.threshold, 0, None)
        neuron: dict[str, Any] = {
            "threshold": threshold,
            "beta": within(self.beta, 0, 1),
            "spike_grad": self.spike_grad,
            "silent_gradient": self.silent_gradient,
        }
        if self.sequence:
            spikes, mem = single_spike_sequence(input_, state, **neuron)
            if mem.requires_grad:
                warn_if_none(mem[-1] > threshold)
        else:
            quantize = self.state_quant or None
            spikes, mem = single_spike_step(input_, state, quantize=quantize, **neuron)
            if not torch.compiler.is_compiling():
                self.__dict__["_learning"] = mem.requires_grad
        if self.inhibition:
            spikes = _only_the_highest(spikes, mem, mem > threshold)
        return self._outputs(spikes * self.graded_spikes_factor.to(spikes.dtype), mem)

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes at potential `mem` of neurons that have not fired yet, as `Leaky.fire`."""
        rule: dict[str, Any] = {
            "threshold": within(self.threshold, 0, None),
            "spike_grad": self.spike_grad,
        }
        if self.sequence:
            spikes = single_spike_sequence(mem.unsqueeze(0), **rule)[0].squeeze(0)
        else:
            spikes, _ = single_spike_step(mem, quantize=self.state_quant or None, **rule)
        graded: Tensor = spikes * self.graded_spikes_factor.to(spikes.dtype)
        return graded


def _check_no_reset(mechanism: str | None) -> None:
    if mechanism not in (None, "none"):
        raise ValueError(
            f"reset_mechanism must be 'none', got {mechanism!r}: the neuron fires once, without reset"
        )


def _without_gradient(mem_shift: Tensor) -> Tensor:
    return (mem_shift > 0).to(mem_shift.dtype)


def _only_the_highest(spikes: Tensor, mem: Tensor, above: Tensor) -> Tensor:
    """Of the neurons [..., features] that may still fire, the one with the highest potential."""
    highest = mem.masked_fill(above & (spikes == 0), -torch.inf).argmax(-1, keepdim=True)
    return spikes * torch.zeros_like(spikes).scatter(-1, highest, 1.0)


class SingleSpikeLapicque(SingleSpike):
    """`SingleSpike` where a `snntorch.Lapicque` was: with its names and its checkpoints."""

    def init_lapicque(self) -> Tensor:
        """As `reset_mem`."""
        mem: Tensor = self.reset_mem()
        return mem

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        host = [prefix + name for name in ("R", "C", "time_step")]
        if all(name in state_dict for name in host):
            beta, gain = _lapicque(*(state_dict.pop(name) for name in host))
            state_dict[prefix + "beta"] = beta.reshape(self.beta.shape)
            state_dict[prefix + "threshold"] = state_dict[prefix + "threshold"] / gain
        super()._load_from_state_dict(state_dict, prefix, *args)


class _OfSynaptic(snn.Synaptic):  # type: ignore[misc]
    """`snntorch.Synaptic` as a base for what its utilities ask for, without its parameters."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super(snn.Synaptic, self).__init__(*args, **options)


class SingleSpikeSynaptic(SingleSpike, _OfSynaptic):
    """`SingleSpike` where a `snntorch.Synaptic` was: with its states, its names and its checkpoints.

    An input acts at once, so that the synaptic current `syn` is 0.

    Shape: [batch, *] and states -> (spikes, syn, mem), or spikes alone, as `snntorch.Synaptic`.
    """

    def _init_mem(self) -> None:
        super()._init_mem()
        self.register_buffer("syn", torch.zeros(0), persistent=False)

    def reset_mem(self) -> tuple[Tensor, Tensor]:
        """States (syn, mem) of zeros."""
        mem = super().reset_mem()
        self.syn = torch.zeros_like(mem)
        return self.syn, mem

    def init_synaptic(self) -> tuple[Tensor, Tensor]:
        """As `reset_mem`."""
        return self.reset_mem()

    def forward(  # type: ignore[override]
        self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Currents [batch, *] and states -> spikes and states."""
        outputs = super().forward(input_, mem)
        if isinstance(outputs, Tensor):
            return outputs
        spikes, mem = outputs
        return spikes, torch.zeros_like(mem), mem

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "alpha" in state_dict:
            gain = _charge(state_dict.pop(prefix + "alpha"))
            state_dict[prefix + "threshold"] = state_dict[prefix + "threshold"] / gain
        super()._load_from_state_dict(state_dict, prefix, *args)


REPLACED: dict[type, type[SingleSpike]] = {
    snn.Leaky: SingleSpike,
    snn.Lapicque: SingleSpikeLapicque,
    snn.Synaptic: SingleSpikeSynaptic,
}


class FirstSpikePool2d(_Stateful):
    """Pooling of spike trains: a window fires with its first spike, and never again.

    The step-mode twin of `nn.EarliestSpikePool2d`, used like a neuron; `mem` says which windows
    have fired. Max-pooling of spike trains would let a window fire once per input.

    Args:
        kernel_size, stride, padding: as `torch.nn.MaxPool2d`.
        init_hidden, output, sequence: as `SingleSpike`.

    Shape: [batch, channels, H, W] -> (spikes, mem) [batch, channels, H', W'], or spikes alone with
    `init_hidden=True` and `output=False`. With `sequence=True` all have a time axis in front.

    >>> import torch
    >>> pool = FirstSpikePool2d(2, init_hidden=True)
    >>> [pool(torch.ones(1, 1, 2, 2)).item() for _ in range(3)]
    [1.0, 0.0, 0.0]
    """

    def __init__(
        self,
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Size2d = 0,
        *,
        init_hidden: bool = False,
        output: bool = False,
        sequence: bool = False,
    ) -> None:
        super().__init__(beta=1.0, init_hidden=init_hidden, output=output, reset_mechanism="none")
        self.spike_grad = None
        self.kernel_size, self.stride, self.padding = pool_window(kernel_size, stride, padding)
        self.sequence = sequence
        # `Leaky` registers parameters of a neuron, which a pool does not have.
        self._non_persistent_buffers_set.update(self._buffers)

    def extra_repr(self) -> str:
        return (
            f"{self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"init_hidden={self.init_hidden}, output={self.output}, sequence={self.sequence}"
        )

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Spikes [batch, channels, H, W] and state -> pooled spikes and state."""
        _checks.not_exported_by_a_host(self)
        window = self.kernel_size, self.stride, self.padding
        padded = [n + 2 * p for n, p in zip(input_.shape[-2:], self.padding, strict=True)]
        size = output_size(padded, list(self.kernel_size), list(self.stride), [1, 1])
        shape = torch.Size((*input_.shape[1 if self.sequence else 0 : -2], *size))
        if self.init_hidden and not torch.compiler.is_compiling():
            self._check_place(shape)
        pool = first_spike_pool2d_sequence if self.sequence else first_spike_pool2d_step
        return self._outputs(*pool(input_, self._state(input_, mem, shape), *window))

    def _check_place(self, shape: torch.Size) -> None:
        """Refuse images of another size while some windows have fired: one state cannot serve two places."""
        known, given = self.mem.shape[1:], shape[1:]
        if len(known) == len(given) and known != given and bool(self.mem.any()):
            raise ValueError(
                f"input must have windows {list(known)}, as those that have fired, got {list(given)}: "
                "use a pool for each place, or reset it first"
            )


def reset(net: nn.Module) -> None:
    """Reset the hidden states of all snnTorch neurons in `net`, however deeply nested, and of no other net.

    `snntorch.utils.reset` of 1.0 looks at the direct children only, and resets every net of the process.

    >>> import torch
    >>> net = nn.Sequential(nn.Sequential(SingleSpike(init_hidden=True)))
    >>> _ = net(torch.ones(1, 2)); reset(net); net[0][0].mem
    tensor([[0., 0.]])
    """
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron) and hasattr(module, "reset_mem"):
            if _checks.is_batched(module.mem):  # left there by a `torch.vmap` that has ended
                module.mem = torch.zeros(0)
            module.reset_mem()


def calibrate(
    net: nn.Module, trains: Tensor, fraction: float = 0.5, *, tolerance: float = 0.01, run: Run | None = None
) -> dict[str, float]:
    """Raise the weights of one layer after the other so that a wanted part of its neurons fires.

    A start for training: single-spike neurons that never fire learn nothing, and torch's default weights,
    of mean 0, leave most of them silent. The weights in front of each neuron are raised by one constant,
    found on a batch; a bias and all else stay as they are.

    Args:
        net: a model with `SingleSpike` neurons.
        trains: a batch of spike trains [T, batch, *], as the model reads them.
        fraction: of the (sample, neuron) pairs that shall fire within the window, above 0 and at most 1.
        tolerance: how far off will do. A layer of few pairs, or of many that fire together, gets as close
            as it can.
        run: how the model reads a window, `run(model, trains)`. None is a call per step for
            an `nn.Sequential` with hidden states, else one call with all steps.

    Returns:
        The fraction that each layer reached, under the name of its neuron, in order.

    Raises:
        ValueError: a fraction out of reach or range; a neuron without weights of its own in front, or
            not called once a step; normalisation between the two. The model is left as it was.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(64, 50, bias=False), SingleSpike(init_hidden=True, output=True))
    >>> reached = calibrate(net, latency(torch.rand(20, 64), num_steps=32), fraction=0.4)
    >>> round(reached["1"], 1)
    0.4
    """
    return step_calibration.calibrate(net, trains, fraction, host=HOST, tolerance=tolerance, run=run)


def latency(data: Tensor, num_steps: int, *, x_max: float = 1.0) -> Tensor:
    """Intensities [batch, *] -> spike trains [num_steps, batch, *], the brighter the earlier.

    Each value is encoded by itself, whatever the rest of the batch; a value of 0 does not spike.

    Raises:
        ValueError, TypeError: as `encode.latency`.

    >>> import torch
    >>> latency(torch.tensor([[1.0, 0.5, 0.0]]), num_steps=4).argmax(0)
    tensor([[0, 2, 0]])
    """
    return decode.times_to_spikes(encode.latency(data, num_steps, x_max=x_max), num_steps)


class _TemporalLoss:
    """snnTorch's calling convention, `loss_fn(spk_rec, targets)`: a loss on the first-spike times."""

    def __call__(
        self, spk_out: Tensor, targets: Tensor, mem: Tensor | Sequence[Tensor] | None = None
    ) -> Tensor:
        """Loss of spike trains [T, batch, classes, *] against targets.

        The gradient of a silent neuron's stand-in time goes to the last bin of its train, which a neuron
        reads with `silent_gradient=True`; or to its potential at the end of the window, given `mem`,
        recorded [T, batch, classes, *] or of the last step.
        """
        loss: Tensor = self._loss(len(spk_out))(first_spike_times(spk_out, mem), targets)
        return loss

    def _loss(self, num_steps: int) -> nn.Module:
        raise NotImplementedError


class ce_temporal_loss(_TemporalLoss):
    """Cross-entropy on first-spike times, `losses.TemporalCrossEntropyLoss` on spike trains.

    Args:
        temperature: as a fraction of the window, so that it does not depend on the number of steps.
        silent: "t_max" counts a silent neuron as firing right after the last step, "ignore" leaves it out.
        reduction, weight: as `torch.nn.CrossEntropyLoss`.

    >>> import torch
    >>> spk_rec = latency(torch.tensor([[0.75, 0.65, 0.0]]), num_steps=100)
    >>> ce_temporal_loss(temperature=0.1)(spk_rec, torch.tensor([0]))
    tensor(0.3137)
    """

    __name__ = "ce_temporal_loss"

    def __init__(
        self,
        temperature: float = 0.1,
        silent: str = "t_max",
        reduction: str = "mean",
        weight: Tensor | None = None,
    ) -> None:
        self.temperature, self.silent, self.reduction, self.weight = temperature, silent, reduction, weight
        self._loss(1)

    def _loss(self, num_steps: int) -> nn.Module:
        return losses.TemporalCrossEntropyLoss(
            num_steps, self.temperature, silent=self.silent, weight=self.weight, reduction=self.reduction
        )


class mse_temporal_loss(_TemporalLoss):
    """Mean squared distance to target times, `losses.TargetTimeLoss` on spike trains.

    Args:
        target_is_time: whether targets are times in steps, [batch, classes, *] or what broadcasts to it,
            instead of labels; negative times count from the end.
        on_target, off_target: step at which the label and the others should fire; negative steps
            count from the end, so that the default of -1 is the last one. None is silence.
        tolerance: a distance up to it, in steps, is no error.
        silent: "t_max" counts a silent neuron as firing right after the last step, "ignore" leaves it out.
        reduction: "mean", "sum" or "none".
        weight: [classes], how often the errors of a sample count, by its label.

    Raises:
        TypeError: when called, for floating targets that are not said to be times.
        ValueError: a weight of classes with target times; when called, if a target lies outside the window;
            inf is silence.

    >>> import torch
    >>> spk_rec = latency(torch.tensor([[0.75, 0.5]]), num_steps=100)
    >>> mse_temporal_loss(on_target=25, off_target=40, reduction="none")(spk_rec, torch.tensor([0]))
    tensor([[0.0000, 0.0100]])
    """

    __name__ = "mse_temporal_loss"

    def __init__(
        self,
        target_is_time: bool = False,
        on_target: float | None = 0,
        off_target: float | None = -1,
        tolerance: float = 0,
        silent: str = "t_max",
        reduction: str = "mean",
        weight: Tensor | None = None,
    ) -> None:
        if target_is_time and weight is not None:
            raise ValueError("weight must be None with target_is_time=True: target times name no class")
        self.target_is_time, self.on_target, self.off_target = target_is_time, on_target, off_target
        self.tolerance, self.silent, self.reduction, self.weight = tolerance, silent, reduction, weight
        self._target_loss(1)  # refuses what is out of range

    def __call__(
        self, spk_out: Tensor, targets: Tensor, mem: Tensor | Sequence[Tensor] | None = None
    ) -> Tensor:
        if self.target_is_time:
            targets = self._steps(targets, spk_out)
        elif targets.is_floating_point():
            raise TypeError(f"targets must be labels, or times with target_is_time=True, got {targets.dtype}")
        return super().__call__(spk_out, targets, mem)

    @staticmethod
    def _steps(targets: Tensor, spk_out: Tensor) -> Tensor:
        """Target times for every neuron, negative ones counted from the end."""
        num_steps = len(spk_out)
        targets = targets.to(torch.promote_types(spk_out.dtype, torch.float32))
        inside = (targets >= -num_steps) & (targets < num_steps) | (targets == torch.inf)
        if not bool(inside.all()):
            raise ValueError(f"targets must lie in {-num_steps} ... {num_steps - 1} or be inf, got {targets}")
        return torch.where(targets < 0, targets + num_steps, targets).expand_as(spk_out[0])

    def _loss(self, num_steps: int) -> nn.Module:
        wanted = (
            num_steps if step is None else step + num_steps if step < 0 else step
            for step in (self.on_target, self.off_target)
        )
        return self._target_loss(num_steps, *wanted)

    def _target_loss(self, num_steps: int, *wanted: float) -> nn.Module:
        return losses.TargetTimeLoss(
            num_steps,
            *wanted,
            tolerance=self.tolerance,
            silent=self.silent,
            weight=self.weight,
            reduction=self.reduction,
        )


class relative_temporal_loss(_TemporalLoss):
    """S4NN's relative targets, `losses.RelativeTargetLoss` on spike trains [T, batch, classes, *].

    Args:
        gamma: wanted gap in steps between the label and the others.
        reduction: "mean" over the batch, "sum" or "none".

    Silent neurons count as firing right after the last step, which is what the targets are made for.

    Raises:
        ValueError: when called, if gamma is longer than the window.

    >>> import torch
    >>> spk_rec = latency(torch.tensor([[0.8, 0.7]]), num_steps=100)
    >>> relative_temporal_loss(gamma=5)(spk_rec, torch.tensor([0]))
    tensor(0.)
    """

    # The name that `backprop.BPTT` takes a loss on spike trains by.
    __name__ = "mse_temporal_loss"

    def __init__(self, gamma: float, reduction: str = "mean") -> None:
        self.gamma, self.reduction = gamma, reduction
        self._loss(max(1, gamma))

    def _loss(self, num_steps: float) -> nn.Module:
        return losses.RelativeTargetLoss(self.gamma, num_steps, self.reduction)


def accuracy_temporal(
    spk_out: Tensor,
    targets: Tensor,
    mem: Tensor | Sequence[Tensor] | None = None,
    *,
    tie: str | None = None,
) -> float:
    """Fraction of samples whose label fires first, in spike trains [T, batch, classes, *].

    Args:
        targets: labels [batch, *].
        mem: potentials, recorded or of the last step; they decide ties and silent samples.
        tie: "lenient", "first_index", "potential" or "unique", as `metrics.accuracy`. None is
            "potential" if there is one, else "unique". Silence is never class 0.

    >>> import torch
    >>> spk_rec = torch.zeros(4, 2, 3); spk_rec[1, 0, 2] = 1
    >>> accuracy_temporal(spk_rec, torch.tensor([2, 0]))
    0.5
    """

    def samples(outputs: Tensor) -> Tensor:
        return outputs.detach().movedim(1, -1).flatten(0, -2)

    times = samples(decode.first_spikes(spk_out))
    potential = None if mem is None else samples(_last(mem, spk_out))
    if tie is None:
        tie = "unique" if mem is None else "potential"
    return metrics.accuracy(times, targets.flatten(), potential=potential, tie=tie)


def first_spike_times(spk_out: Tensor, mem: Tensor | Sequence[Tensor] | None = None) -> Tensor:
    """First-spike times [batch, *] of spike trains [T, batch, *]; see `decode.spikes_to_times`."""
    return decode.first_spikes(spk_out, None if mem is None else _last(mem, spk_out))


def _last(mem: Tensor | Sequence[Tensor], spk_out: Tensor) -> Tensor:
    """The potential of the last step, if all are given, as a tensor or one by one."""
    if not isinstance(mem, Tensor):
        return mem[-1]
    return mem[-1] if mem.shape == spk_out.shape else mem


class _SnnTorch:
    """snnTorch's answers to `convert.Host`."""

    run_by_step = "run=lambda model, trains: [model(step) for step in trains]"

    def is_leaf(self, module: nn.Module) -> bool:
        return isinstance(module, snn.SpikingNeuron)

    def lifted(self, module: nn.Module) -> nn.Module | None:
        return None

    def keeps_its_state(self, module: Any) -> bool | None:
        return True if isinstance(module, snn.SpikingNeuron) else None

    def takes_a_window(self, module: nn.Module) -> bool:
        return isinstance(module, _Stateful) and module.sequence

    def returns_its_state(self, module: Any) -> bool:
        return not module.init_hidden or module.output

    def encodes(self, module: nn.Module) -> bool:
        return False

    def output(self, module: Any) -> int:
        if not _reads_its_potential(module):
            return 0
        return 2 if type(module) is snn.Synaptic else 1

    def is_single_spike(self, module: Any) -> bool:
        return isinstance(module, SingleSpike)

    def constants(self, module: Any) -> tuple[Tensor | float, Tensor | float]:
        _check_time_mode(module)
        return within(module.threshold, 0, torch.inf), within(module.beta, 0, 1)

    def read_out(self, module: Any) -> tuple[None, Response] | None:
        if not _reads_its_potential(module):
            return None
        if module.init_hidden and not module.output:
            raise ValueError("it returns its spikes alone. Set output=True, so that its potential is read")
        if module.state_quant:
            raise ValueError("the option state_quant has no meaning on spike times. Leave it out")
        return None, _RESPONSES[type(module)]

    def border_on_times(self, module: Any, t_max: int | None) -> nn.Module | None:
        return None

    def neuron_on_times(self, module: Any) -> IF | None:
        if not isinstance(module, SingleSpike):
            return None
        _check_time_mode(module)
        for name in ("beta", "threshold"):
            if isinstance(getattr(module, name), nn.Parameter):
                raise ValueError(f"the option learn_{name} has no meaning on spike times. Leave it out")
        beta = _checks.one_value("beta", module.beta.clamp(0, 1))
        return IF(_checks.one_value("threshold", module.threshold), beta=beta)

    def step_neuron(self, module: Any) -> StepNeuron | None:
        if not isinstance(module, SingleSpike):
            return None
        return StepNeuron(module.threshold.clamp(min=0), module.beta.clamp(0, 1), module.sequence)

    def reset(self, model: nn.Module) -> None:
        reset(model)

    def run_window(self, model: nn.Module, trains: Tensor) -> Any:
        by_step = type(model).forward is nn.Sequential.forward and not any(
            module.sequence for module in model.modules() if isinstance(module, _Stateful)
        )
        return [model(step) for step in trains] if by_step else model(trains)

    def listens_when_silent(self, module: Any) -> bool:
        return isinstance(module, SingleSpike) and module.silent_gradient

    def pool_on_times(self, module: Any) -> EarliestSpikePool2d | None:
        if not isinstance(module, FirstSpikePool2d):
            return None
        _checks.own_forward(module, FirstSpikePool2d)
        return EarliestSpikePool2d(module.kernel_size, module.stride, module.padding)

    def refires(self, module: Any) -> bool:
        return isinstance(module, snn.SpikingNeuron) and not isinstance(module, _Stateful)

    def forget(self, model: nn.Module) -> None:
        gone, known = set(model.modules()), snn.SpikingNeuron.instances
        known[:] = [neuron for neuron in known if neuron not in gone]

    def stays(self, module: Any) -> str | None:
        if isinstance(module, snn.LeakyParallel):
            return (
                "it owns its input weights and takes all steps at once: put a Linear with them and a "
                "SingleSpike(sequence=True) in its place"
            )
        if type(module) in REPLACED and module.reset_mechanism == "none":
            return "a membrane read-out, as its reset_mechanism is 'none'; for spikes put a SingleSpike there"
        return None

    def first_spike_pool(self, pool: Any, model: nn.Module) -> nn.Module:
        if not all(m.init_hidden for m in model.modules() if isinstance(m, snn.SpikingNeuron)):
            raise ValueError(
                "it has to keep its state, and the neurons of the model are given theirs. Write "
                "FirstSpikePool2d into the model, with a state like theirs"
            )
        return FirstSpikePool2d(*_checks.plain_max_pool(pool), init_hidden=True)

    def calibrate(self, model: nn.Module, trains: Tensor, fraction: float) -> dict[str, float]:
        return calibrate(model, trains, fraction)

    def single_spike(self, module: Any) -> tuple[nn.Module, tuple[str, ...]]:
        beta, gain, lost = _integration(module)
        threshold = module.threshold if gain is None else module.threshold.detach() / gain
        lost.append(f"reset_mechanism {module.reset_mechanism!r}: a neuron that fires once is not reset")
        if not module.surrogate_disable:
            lost.append("spike_grad: the latency rule replaces the surrogate")
        neuron = REPLACED[type(module)](
            beta=beta.detach(),
            threshold=threshold.detach(),
            surrogate_disable=module.surrogate_disable,
            init_hidden=module.init_hidden,
            inhibition=module.inhibition,
            state_quant=module.state_quant,
            output=module.output,
            graded_spikes_factor=module.graded_spikes_factor.detach(),
        )
        kept = {"beta": beta, "threshold": threshold, "graded_spikes_factor": module.graded_spikes_factor}
        for name, value in kept.items():
            if isinstance(value, nn.Parameter):
                setattr(neuron, name, value)
            elif isinstance(getattr(module, name), nn.Parameter):
                lost.append(f"learn_{name}: what is learned there has another meaning now, and is fixed")
        return neuron, tuple(lost)

    def neuron_in_steps(self, neuron: IF, last: bool, silent_gradient: bool) -> nn.Module:
        # In double precision, so that both modes compare with the same number.
        beta, threshold = (torch.tensor(x, dtype=torch.float64) for x in (neuron.beta, neuron.threshold))
        options: dict[str, Any] = {"init_hidden": True, "output": last, "silent_gradient": silent_gradient}
        return SingleSpike(beta=beta, threshold=threshold, **options)

    def pool_in_steps(self, pool: EarliestSpikePool2d, last: bool) -> nn.Module:
        return FirstSpikePool2d(pool.kernel_size, pool.stride, pool.padding, init_hidden=True, output=last)

    def sequential(self, modules: Sequence[nn.Module]) -> nn.Module:
        return nn.Sequential(*modules)


HOST = _SnnTorch()


def _check_time_mode(module: Any) -> None:
    """Refuse the options of a neuron that have no meaning on spike times."""
    _checks.own_forward(module, SingleSpike, SingleSpikeSynaptic)
    refused = {
        "learn_graded_spikes_factor": isinstance(module.graded_spikes_factor, nn.Parameter),
        "graded_spikes_factor": _checks.has_values(module.graded_spikes_factor)
        and bool((module.graded_spikes_factor != 1).any()),
        "state_quant": bool(module.state_quant),
        "inhibition": module.inhibition,
        "spike_grad or surrogate_disable": module.spike_grad is not None,
    }
    for name, given in refused.items():
        if given:
            raise ValueError(f"the option {name} has no meaning on spike times. Leave it out")


def _reads_its_potential(module: Any) -> bool:
    """Whether this is a neuron that is not reset, which leaves its potential to be read."""
    return type(module) in _RESPONSES and module.reset_mechanism == "none"


def _leaky_response(module: Any, t_max: int, like: Tensor) -> tuple[Tensor, float]:
    """What is left of a current in the potential of a `Leaky` without reset, 0, 1, ... bins later."""
    return _fading(within(module.beta, 0, 1).to(like.device, like.dtype), t_max), 0.0


def _fading(beta: Tensor, t_max: int) -> Tensor:
    """Powers 0 ... t_max - 1 of a leak, [t_max, *]."""
    ages = torch.arange(t_max, device=beta.device, dtype=beta.dtype)
    return beta ** ages.reshape(-1, *[1] * beta.ndim)


def _lapicque_response(module: Any, t_max: int, like: Tensor) -> tuple[Tensor, float]:
    """As `_leaky_response`, of a `Lapicque`."""
    numbers = (x.to(like.device, like.dtype) for x in (module.R, module.C, module.time_step))
    beta, gain = _step_of_lapicque(*numbers)
    return gain * _fading(beta, t_max), 0.0


def _synaptic_response(module: Any, t_max: int, like: Tensor) -> tuple[Tensor, float]:
    """As `_leaky_response`, of a `Synaptic`, whose current fades by itself."""
    alpha, beta = (within(x, 0, 1).to(like.device, like.dtype) for x in (module.alpha, module.beta))
    syn = torch.ones_like(alpha + beta)
    mem, response = syn, [syn]
    for _ in range(t_max - 1):
        syn = alpha * syn
        mem = beta * mem + syn
        response.append(mem)
    return torch.stack(response), 0.0


_RESPONSES: dict[type, Response] = {
    snn.Leaky: _leaky_response,
    snn.Lapicque: _lapicque_response,
    snn.Synaptic: _synaptic_response,
}


def _integration(module: Any) -> tuple[Tensor, Tensor | None, list[str]]:
    """The leak of a neuron of snnTorch, how often it counts an input if not once, and what of it is lost."""
    if type(module) is snn.Leaky:
        return module.beta, None, []
    if type(module) is snn.Lapicque:
        beta, gain = _lapicque(module.R, module.C, module.time_step)
        return beta, gain, [f"R, C: an input counts {_short(gain)} times, which the threshold makes up for"]
    if type(module) is snn.Synaptic:
        charge = "an input acts at once, with the whole charge of its synaptic current"
        lost = [f"alpha {_short(module.alpha)}: {charge}", "state: syn stays 0"]
        return module.beta, _charge(module.alpha), lost
    raise ValueError(
        "only Leaky, Lapicque and Synaptic have a single-spike counterpart. Put a SingleSpike in its place"
    )


def _lapicque(R: Tensor, C: Tensor, time_step: Tensor) -> tuple[Tensor, Tensor]:
    """As `_step_of_lapicque`, of a neuron whose potential does not change its sign by itself."""
    beta, gain = _step_of_lapicque(R, C, time_step)
    if bool((beta < 0).any()):
        raise ValueError(f"its time step exceeds R C: what it keeps of the potential is {_short(beta)}")
    return beta, gain


def _step_of_lapicque(R: Tensor, C: Tensor, time_step: Tensor) -> tuple[Tensor, Tensor]:
    """What a step of a Lapicque neuron keeps of the potential, and how often it counts an input."""
    return 1 - time_step / (R * C), time_step / C


def _charge(alpha: Tensor) -> Tensor:
    """What a synaptic current adds up to."""
    kept = alpha.detach().clamp(0, 1)
    if bool((kept == 1).any()):
        raise ValueError("alpha = 1 is a synaptic current that never ends")
    return 1 / (1 - kept)


def _short(value: Tensor) -> str:
    return f"{value.item():.4g}" if value.numel() == 1 and not value.is_meta else f"{list(value.shape)}"
