"""Norse: neurons that fire at most once, a silent-safe decoder and a latency encoder, as Norse has them.

Needs the extra `norse`. The neuron is the one of `functional.single_spike_step`; with this module's
decoder it has the spike times and gradients of the layers on spike times, apart from sums
that tie with the threshold by rounding (docs/three-modes.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import _checks, decode, encode, step_calibration
from .functional import (
    fill_silent,
    first_spike_pool2d_sequence,
    first_spike_pool2d_step,
    single_spike_sequence,
    single_spike_step,
)
from .functional.connection import Size2d, pool_window
from .functional.silent import warn_if_none
from .functional.step import floating, within
from .neurons import IF
from .nn import EarliestSpikePool2d
from .nn.binwise import Response
from .step_calibration import Run, StepNeuron
from .surrogate import LatchGradient

try:
    from norse.torch.functional.iaf import IAFParameters
    from norse.torch.functional.threshold import threshold as norse_threshold
    from norse.torch.module.iaf import IAF, IAFCell
    from norse.torch.module.leaky_integrator import LI, LICell, LILinearCell
    from norse.torch.module.leaky_integrator_box import LIBoxCell
    from norse.torch.module.lif import LIF, LIFCell
    from norse.torch.module.lif_box import LIFBoxCell
    from norse.torch.module.lift import Lift
    from norse.torch.module.sequential import SequentialState
    from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
except ImportError as error:
    raise ImportError("ssnn_plugin.norse needs Norse: pip install 'ssnn-plugin[norse]'") from error

__all__ = [
    "FirstSpikePool2d",
    "FirstSpikePool2dCell",
    "LatencyEncoder",
    "SingleSpikeIF",
    "SingleSpikeIFCell",
    "SingleSpikeIFParameters",
    "SingleSpikeIFState",
    "SpikesToTimesDecoder",
    "calibrate",
    "single_spike_if_step",
]

LATENCY = "latency"


class SingleSpikeIFParameters(NamedTuple):
    """Parameters of an integrate-and-fire neuron that fires at most once.

    Args:
        v_th: threshold, at least 0; the neuron fires above it, strictly.
        tau_mem_inv: inverse membrane time constant in 1/s; 0 is no leak. A step keeps
            1 - dt tau_mem_inv of the potential, Norse's Euler step. An input is added as it is.
        method: "latency" is the rule dt/dV = -1 (Kheradpisheh & Masquelier 2020); any method of
            Norse's `threshold` ("super", "triangle", ...) replaces it by that surrogate. In
            `SingleSpikeIF`, which takes a window at once, also a rule of `ssnn_plugin.surrogate`.
        alpha: of the surrogate.
        silent_gradient: whether a loss on the spikes reaches neurons that have not fired, as the outputs of a
            network need it that falls silent: dS/dV = 1 before the spike too. Hidden neurons do without.
    """

    v_th: float | Tensor = 1.0
    tau_mem_inv: float | Tensor = 0.0
    method: str | LatchGradient = LATENCY
    alpha: float | Tensor = 100.0
    silent_gradient: bool = False


# Fields of Norse's parameters that this neuron has as 0, and that mean nothing to a neuron without reset.
AT_REST = ("v_leak", "v_reset")
OF_THE_RESET = ("reset_method",)
ROUNDING = 1e-6


def own_parameters(p: Any, dt: float) -> Any:
    """Parameters with the fields of `SingleSpikeIFParameters`; Norse's own if they mean the same here.

    Norse's default surrogate "super" cannot be told from a choice and gives way to the latency rule.

    Raises:
        ValueError: a field that means something else.
        TypeError: no parameters.

    >>> own_parameters(IAFParameters(v_th=torch.tensor(0.5)), dt=0.001)[:3]
    (tensor(0.5000), 0.0, 'latency')
    """
    ours = SingleSpikeIFParameters._fields
    names = p._fields if isinstance(p, tuple) and hasattr(p, "_fields") else ours
    needed = ("v_th", "method", "alpha", *(name for name in names if name != "silent_gradient"))
    if isinstance(p, type) or not all(hasattr(p, name) for name in needed):
        raise TypeError(f"p must be SingleSpikeIFParameters or Norse's IAFParameters, got {p!r}")
    if names == ours:
        return p
    for name in sorted(names, key=lambda name: name not in AT_REST):
        _check_field(p, name, dt)
    given = {name: getattr(p, name) for name in names if name in ours}
    return SingleSpikeIFParameters(**{**given, "method": LATENCY if p.method == "super" else p.method})


def _check_field(p: Any, name: str, dt: float) -> None:
    """Refuse a field of another neuron's parameters that this one would ignore or read differently."""
    value, field = getattr(p, name), f"{name} of {type(p).__name__}"
    remedy = "Use SingleSpikeIFParameters, or replace_neurons(model), which converts what can be"
    if name in AT_REST:
        if _differs(value, 0):
            raise ValueError(
                f"{field} must be 0, where this neuron starts and leaks to, got {_short(value)}. {remedy}"
            )
    elif name == "tau_mem_inv":
        # Norse adds dt tau_mem_inv times the input.
        if not hasattr(p, "tau_syn_inv") and _differs(value, 1 / dt):
            raise ValueError(
                f"{field} must be 1 / dt = {1 / dt:.4g}, so that an input is added as it is, "
                f"got {_short(value)}. {remedy}"
            )
    elif name not in (*SingleSpikeIFParameters._fields, *OF_THE_RESET):
        raise ValueError(f"{field} has no counterpart in a neuron whose inputs act at once. {remedy}")


def _differs(value: Any, wanted: float) -> bool:
    values = torch.as_tensor(value, dtype=torch.float64)
    return _checks.has_values(values) and not torch.allclose(values, values.new_tensor(wanted))


class SingleSpikeIFState(NamedTuple):
    """State: the potential, which stays above threshold once the neuron has fired."""

    v: Tensor


def _neuron(p: SingleSpikeIFParameters, dt: float, like: Tensor) -> dict[str, Any]:
    surrogate: Callable[[Tensor], Tensor] | LatchGradient | None = None
    if isinstance(p.method, LatchGradient):
        surrogate = p.method
    elif p.method != LATENCY:
        alpha = torch.as_tensor(p.alpha, device=like.device, dtype=like.dtype)
        surrogate = partial(norse_threshold, method=p.method, alpha=alpha)
    v_th = within(p.v_th, 0, None) if isinstance(p.v_th, Tensor) else p.v_th
    return {
        "threshold": v_th,
        "beta": decay_per_step(p, dt),
        "spike_grad": surrogate,
        "silent_gradient": getattr(p, "silent_gradient", False),
    }


def decay_per_step(p: SingleSpikeIFParameters, dt: float) -> float | Tensor:
    """What a step keeps of the potential; nothing, not less, where 1 / dt is rounded."""
    kept = 1.0 - dt * p.tau_mem_inv
    return within(kept, 0, None) if isinstance(kept, Tensor) else max(kept, 0.0)


def _checked(p: Any, dt: float) -> Any:
    """Parameters in our terms, in range."""
    _checks.positive("dt", dt)
    p = own_parameters(p, dt)
    methods = (LATENCY, "heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")
    if not isinstance(p.method, LatchGradient):
        _checks.one_of("method", p.method, methods)
    if getattr(p, "silent_gradient", False) and p.method != LATENCY:
        raise ValueError(
            f"silent_gradient must be False with method {p.method!r}: it belongs to {LATENCY!r}, got True"
        )
    v_th, lost = torch.as_tensor(p.v_th), torch.as_tensor(dt * p.tau_mem_inv)
    if _checks.has_values(v_th) and not bool((v_th >= 0).all()):
        raise ValueError(f"v_th must be at least 0, got {p.v_th!r}")
    if _checks.has_values(lost) and not bool(((lost >= 0) & (lost <= 1 + ROUNDING)).all()):
        raise ValueError(f"tau_mem_inv must lie in 0 ... 1 / dt = {1 / dt}, got {p.tau_mem_inv!r}")
    return p


def single_spike_if_step(
    input_tensor: Tensor,
    state: SingleSpikeIFState | None = None,
    p: SingleSpikeIFParameters | IAFParameters = SingleSpikeIFParameters(),  # noqa: B008
    dt: float = 0.001,
) -> tuple[Tensor, SingleSpikeIFState]:
    """One step of integrate-and-fire neurons that fire at most once.

    Args:
        input_tensor: currents [*], any floating dtype and device, sparse or not.
        state: None at the start of a window.
        p: parameters; Norse's own too, if all of their fields mean the same.
        dt: time step in seconds; matters only with a leak.

    Returns:
        (spikes, state) of the shape, dtype and device of the input, the spikes sparse if it is.

    Raises:
        ValueError: a field of Norse's parameters that means something else.

    >>> import torch
    >>> z, state = single_spike_if_step(torch.tensor([0.6, 1.2]))
    >>> single_spike_if_step(torch.tensor([0.6, 1.2]), state)
    (tensor([1., 0.]), SingleSpikeIFState(v=tensor([1.2000, 1.2000])))
    """
    v = None if state is None else state.v
    currents = _dense(input_tensor)
    spikes, v = single_spike_step(currents, v, **_neuron(own_parameters(p, dt), dt, currents))
    return _laid_out(spikes, input_tensor), SingleSpikeIFState(v)


def _initial_state(input_tensor: Tensor) -> SingleSpikeIFState:
    return SingleSpikeIFState(torch.zeros_like(floating(_dense(input_tensor))))


def _dense(spikes: Tensor) -> Tensor:
    return spikes.to_dense() if spikes.is_sparse else spikes


def _laid_out(spikes: Tensor, like: Tensor) -> Tensor:
    """Sparse if the input is, as the spikes of Norse's neurons."""
    return spikes.to_sparse() if like.is_sparse else spikes


class SingleSpikeIFCell(SNNCell):  # type: ignore[misc]
    """Integrate-and-fire neurons that fire at most once, one step per call, as `norse.torch.IAFCell`.

    Args:
        p: `SingleSpikeIFParameters`; also Norse's `IAFParameters`, whose default surrogate gives way to
            the latency rule.
        dt: time step in seconds.

    Shape: input [batch, *], sparse or not, state or None -> (spikes, state); spikes are sparse if the
    input is.

    Raises:
        ValueError: a negative threshold, a time step longer than the membrane time constant, an unknown
            method, a field of Norse's parameters that means something else here. A learned threshold
            below 0 counts as 0.
        TypeError: `p` is no set of parameters.

    >>> import torch
    >>> z, state = SingleSpikeIFCell()(torch.tensor([[1.5, 0.5]]))
    >>> z
    tensor([[1., 0.]])
    """

    def __init__(
        self,
        p: SingleSpikeIFParameters | IAFParameters = SingleSpikeIFParameters(),  # noqa: B008
        dt: float = 0.001,
    ) -> None:
        p = _checked(p, dt)
        if isinstance(p.method, LatchGradient):
            raise ValueError(
                f"method must be that of one step, got {p.method!r}: it learns from all steps of a window at "
                "once. Use SingleSpikeIF"
            )
        super().__init__(single_spike_if_step, _initial_state, p, dt)

    def forward(
        self, input_tensor: Tensor, state: SingleSpikeIFState | None = None
    ) -> tuple[Tensor, SingleSpikeIFState]:
        """Currents [batch, *] and state -> spikes and state."""
        _checks.not_exported_by_a_host(self)
        outputs: tuple[Tensor, SingleSpikeIFState] = super().forward(input_tensor, state)
        return outputs


class SingleSpikeIF(SNN):  # type: ignore[misc]
    """Integrate-and-fire neurons that fire at most once, a window per call, as `norse.torch.IAF`.

    The window is taken at once, without a loop over its steps.

    Args:
        p: `SingleSpikeIFParameters`; also Norse's `IAFParameters`, whose default surrogate gives way to
            the latency rule.
        dt: time step in seconds.
        record_states: whether to return the state of every step instead of the last.

    Raises:
        ValueError, TypeError: as `SingleSpikeIFCell`.

    Shape: input [T, batch, *], sparse or not, state or None -> (spikes [T, batch, *], state); spikes are
    sparse if the input is.

    >>> import torch
    >>> z, state = SingleSpikeIF()(torch.tensor([[[0.6]], [[0.6]], [[0.6]]]))
    >>> z.flatten(), state.v
    (tensor([0., 1., 0.]), tensor([[1.2000]]))
    """

    def __init__(
        self,
        p: SingleSpikeIFParameters | IAFParameters = SingleSpikeIFParameters(),  # noqa: B008
        dt: float = 0.001,
        record_states: bool = False,
    ) -> None:
        p = _checked(p, dt)
        super().__init__(single_spike_if_step, _initial_state, p, dt, record_states=record_states)

    def forward(
        self, input_tensor: Tensor, state: SingleSpikeIFState | None = None
    ) -> tuple[Tensor, SingleSpikeIFState]:
        """Currents [T, batch, *] and state -> spikes [T, batch, *] and state."""
        _checks.not_exported_by_a_host(self)
        currents = _dense(input_tensor)
        start = None if state is None else state.v
        if start is not None and start.ndim == currents.ndim:
            start = start[-1]  # recorded in every step
        neuron = _neuron(self.p, self.dt, currents)
        spikes, v = single_spike_sequence(currents, start, **neuron)
        if v.requires_grad and _checks.has_values(v):
            warn_if_none(v[-1] > torch.as_tensor(neuron["threshold"]).to(v))
        return _laid_out(spikes, input_tensor), SingleSpikeIFState(v if self.record_states else v[-1])


class FirstSpikePool2dState(NamedTuple):
    """State: 1 for a window that has fired, else 0."""

    fired: Tensor


class FirstSpikePool2dCell(nn.Module):
    """Pooling of spikes: a window fires with its first spike, and never again. One step per call.

    The step-mode twin of `nn.EarliestSpikePool2d`; max-pooling of spike trains would let a window
    fire once per input.

    Args:
        kernel_size, stride, padding: as `torch.nn.MaxPool2d`.

    Shape: spikes [batch, channels, H, W], state or None -> (spikes [batch, channels, H', W'], state).

    >>> import torch
    >>> pool = FirstSpikePool2dCell(2)
    >>> z, state = pool(torch.ones(1, 1, 2, 2))
    >>> z.item(), pool(torch.ones(1, 1, 2, 2), state)[0].item()
    (1.0, 0.0)
    """

    def __init__(self, kernel_size: Size2d, stride: Size2d | None = None, padding: Size2d = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = pool_window(kernel_size, stride, padding)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"

    def forward(
        self, input_tensor: Tensor, state: FirstSpikePool2dState | None = None
    ) -> tuple[Tensor, FirstSpikePool2dState]:
        """Spikes and state -> pooled spikes and state."""
        _checks.not_exported_by_a_host(self)
        window = self.kernel_size, self.stride, self.padding
        fired = None if state is None else state.fired
        spikes, fired = first_spike_pool2d_step(input_tensor, fired, *window)
        return spikes, FirstSpikePool2dState(fired)


class FirstSpikePool2d(FirstSpikePool2dCell):
    """As `FirstSpikePool2dCell`, a window of steps per call: spikes [T, batch, channels, H, W].

    >>> import torch
    >>> z, state = FirstSpikePool2d(2)(torch.ones(3, 1, 1, 2, 2))
    >>> z.flatten()
    tensor([1., 0., 0.])
    """

    def forward(
        self, input_tensor: Tensor, state: FirstSpikePool2dState | None = None
    ) -> tuple[Tensor, FirstSpikePool2dState]:
        """Spikes [T, *] and state -> pooled spikes [T, *] and state."""
        _checks.not_exported_by_a_host(self)
        fired = None if state is None else state.fired
        spikes, seen = first_spike_pool2d_sequence(
            input_tensor, fired, self.kernel_size, self.stride, self.padding
        )
        return spikes, FirstSpikePool2dState(seen[-1])


class LatencyEncoder(nn.Module):
    """Intensities -> spike trains, the brighter the earlier, each value by itself; 0 does not spike.

    Args:
        seq_length: number of steps.
        x_max: intensity that spikes in the first step.

    Shape: [batch, *] -> [seq_length, batch, *].

    >>> import torch
    >>> LatencyEncoder(4)(torch.tensor([[1.0, 0.5, 0.0]])).argmax(0)
    tensor([[0, 2, 0]])
    """

    def __init__(self, seq_length: int, x_max: float = 1.0) -> None:
        super().__init__()
        _checks.whole_and_positive("seq_length", seq_length)
        _checks.positive("x_max", x_max)
        self.seq_length, self.x_max = seq_length, x_max

    def extra_repr(self) -> str:
        return f"seq_length={self.seq_length}, x_max={self.x_max}"

    def forward(self, values: Tensor) -> Tensor:
        """Intensities [batch, *] -> spikes [seq_length, batch, *]."""
        return decode.times_to_spikes(
            encode.latency(values, self.seq_length, x_max=self.x_max), self.seq_length
        )


class SpikesToTimesDecoder(nn.Module):
    """First-spike times of spike trains, in place of Norse's decoder of that name, safe with silence.

    Norse's stops with an error in the backward pass as soon as one neuron is silent, and takes
    [T, batch, features] on the CPU only.

    Args:
        t_silent: the finite time that stands for silence, in steps, or in seconds with
            `convert_indices_to_times`; not before the last step.
        convert_indices_to_times: whether to return seconds instead of steps.
        dt: time step in seconds.

    Shape: spikes [T, batch, *], potential [batch, *] or None -> times [1, batch, *], the leading
    axis being Norse's `spike_count`, of which there is one.

    A gradient goes to the first spike; a silent neuron's goes to its potential at the end of the
    window if that is passed, else to its last step, where `silent_gradient=True` of the parameters reads it.

    >>> import torch
    >>> decoder = SpikesToTimesDecoder(t_silent=3, convert_indices_to_times=False)
    >>> decoder(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]]))
    tensor([[[1., 3.]]])
    """

    def __init__(self, *, t_silent: float, convert_indices_to_times: bool = True, dt: float = 1e-3) -> None:
        super().__init__()
        _checks.positive("dt", dt)
        _checks.positive("t_silent", t_silent)
        self.t_silent, self.convert_indices_to_times, self.dt = t_silent, convert_indices_to_times, dt

    def extra_repr(self) -> str:
        times = f"convert_indices_to_times={self.convert_indices_to_times}, dt={self.dt}"
        return f"t_silent={self.t_silent}, {times}"

    def forward(self, spike_input: Tensor, potential: Tensor | None = None) -> Tensor:
        """Spikes [T, batch, *] -> times [1, batch, *]."""
        unit = self.dt if self.convert_indices_to_times else 1.0
        last = (len(spike_input) - 1) * unit
        if self.t_silent < last and not math.isclose(self.t_silent, last):
            raise ValueError(f"t_silent must not be before the last step at {last}, got {self.t_silent!r}")
        return self.in_its_unit(decode.first_spikes(_dense(spike_input), potential))

    def in_its_unit(self, times: Tensor) -> Tensor:
        """Times in steps [batch, *] -> [1, batch, *], in seconds if wanted, finite."""
        unit = self.dt if self.convert_indices_to_times else 1.0
        return (fill_silent(times, self.t_silent / unit) * unit).unsqueeze(0)


class _LatencyTimes(nn.Module):
    """`LatencyEncoder` for a network on spike times: intensities -> times."""

    def __init__(self, encoder: LatencyEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, values: Tensor) -> Tensor:
        return encode.latency(values, self.encoder.seq_length, x_max=self.encoder.x_max)


class _DecodedTimes(nn.Module):
    """`SpikesToTimesDecoder` for a network on spike times: `inf` -> `t_silent`, in its unit."""

    def __init__(self, decoder: SpikesToTimesDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, times: Tensor) -> Tensor:
        return self.decoder.in_its_unit(times)


def calibrate(
    model: nn.Module,
    trains: Tensor,
    fraction: float = 0.5,
    *,
    tolerance: float = 0.01,
    run: Run | None = None,
) -> dict[str, float]:
    """Raise the weights of one layer after the other so that a wanted part of its neurons fires.

    A start for training: single-spike neurons that never fire learn nothing, and torch's default weights,
    of mean 0, leave most of them silent. The weights in front of each neuron are raised by one constant,
    found on a batch; a bias and all else stay as they are.

    Args:
        model: a model with `SingleSpikeIF` or `SingleSpikeIFCell` neurons.
        trains: a batch of spike trains [T, batch, *], as the model reads them.
        fraction: of the (sample, neuron) pairs that shall fire within the window, above 0 and at most 1.
        tolerance: how far off will do. A layer of few pairs, or of many that fire together, gets as close
            as it can.
        run: how the model reads a window, `run(model, trains)`. None is one call with all
            steps, or, for a `SequentialState` of cells, a call per step with the state of the last.

    Returns:
        The fraction that each layer reached, under the name of its neuron, in order.

    Raises:
        ValueError: a fraction out of reach or range; a neuron without weights of its own in front, or
            not called once a step; normalisation between the two. The model is left as it was.

    >>> import torch
    >>> model = SequentialState(nn.Linear(64, 50, bias=False), SingleSpikeIF())
    >>> reached = calibrate(model, LatencyEncoder(32)(torch.rand(20, 64)), fraction=0.4)
    >>> round(reached["1"], 1)
    0.4
    """
    return step_calibration.calibrate(model, trains, fraction, host=HOST, tolerance=tolerance, run=run)


class _Norse:
    """Norse's answers to `convert.Host`."""

    run_by_step = "run= takes a function of (model, trains) that passes the state of a step on to the next"

    def is_leaf(self, module: nn.Module) -> bool:
        stateful = SNN | SNNCell | SNNRecurrent | SNNRecurrentCell | FirstSpikePool2dCell | LILinearCell
        return isinstance(module, stateful | LatencyEncoder | SpikesToTimesDecoder) or _is_encoder(module)

    def lifted(self, module: nn.Module) -> nn.Module | None:
        inner: nn.Module | None = module.lifted_module if isinstance(module, Lift) else None
        return inner

    def keeps_its_state(self, module: Any) -> bool | None:
        stateless = isinstance(module, LatencyEncoder | SpikesToTimesDecoder) or _is_encoder(module)
        return False if self.is_leaf(module) and not stateless else None

    def takes_a_window(self, module: nn.Module) -> bool:
        return isinstance(
            module, SNN | SNNRecurrent | FirstSpikePool2d | LatencyEncoder | SpikesToTimesDecoder
        )

    def returns_its_state(self, module: Any) -> bool:
        return self.keeps_its_state(module) is not None

    def encodes(self, module: nn.Module) -> bool:
        return isinstance(module, LatencyEncoder)

    def output(self, module: Any) -> int:
        return 0

    def is_single_spike(self, module: Any) -> bool:
        return isinstance(module, SingleSpikeIF | SingleSpikeIFCell)

    def constants(self, module: Any) -> tuple[Tensor | float, Tensor | float]:
        _check_time_mode(module)
        v_th = module.p.v_th
        return within(v_th, 0, math.inf) if isinstance(v_th, Tensor) else v_th, decay_per_step(
            module.p, module.dt
        )

    def read_out(self, module: Any) -> tuple[nn.Module | None, Response] | None:
        if isinstance(module, LILinearCell):
            weights = nn.Linear(module.input_size, module.hidden_size, bias=False, device="meta")
            weights.weight = module.input_weights
            return weights, _li_response
        if isinstance(module, LI | LICell):
            return None, _li_response
        return (None, _li_box_response) if isinstance(module, LIBoxCell) else None

    def border_on_times(self, module: Any, t_max: int | None) -> nn.Module | None:
        if _is_encoder(module):
            raise ValueError(
                "its spikes are not one for each value. Encode with ssnn_plugin.norse.LatencyEncoder, or "
                "pass the model behind it, which takes spikes"
            )
        if isinstance(module, LatencyEncoder):
            if t_max is not None and module.seq_length != t_max:
                raise ValueError(f"seq_length must be t_max = {t_max}, got {module.seq_length}")
            return _LatencyTimes(module)
        return _DecodedTimes(module) if isinstance(module, SpikesToTimesDecoder) else None

    def neuron_on_times(self, module: Any) -> IF | None:
        if not isinstance(module, SingleSpikeIF | SingleSpikeIFCell):
            return None
        _check_time_mode(module)
        p = module.p
        beta = _one_value("tau_mem_inv", decay_per_step(p, module.dt))
        return IF(_one_value("v_th", p.v_th), beta=beta)

    def step_neuron(self, module: Any) -> StepNeuron | None:
        if not isinstance(module, SingleSpikeIF | SingleSpikeIFCell):
            return None
        beta = torch.as_tensor(decay_per_step(module.p, module.dt))
        return StepNeuron(torch.as_tensor(module.p.v_th), beta, isinstance(module, SingleSpikeIF))

    def reset(self, model: nn.Module) -> None:
        """Norse's modules keep no state."""

    def run_window(self, model: nn.Module, trains: Tensor) -> Any:
        cells = any(isinstance(child, SingleSpikeIFCell) for child in model.children())
        if not (isinstance(model, SequentialState) and cells):
            return model(trains)
        state = None
        for step in trains:
            outputs, state = model(step, state)
        return outputs, state

    def listens_when_silent(self, module: Any) -> bool:
        ours = isinstance(module, SingleSpikeIF | SingleSpikeIFCell)
        return ours and bool(getattr(module.p, "silent_gradient", False))

    def pool_on_times(self, module: Any) -> EarliestSpikePool2d | None:
        if not isinstance(module, FirstSpikePool2dCell):
            return None
        _checks.own_forward(module, FirstSpikePool2d, FirstSpikePool2dCell)
        return EarliestSpikePool2d(module.kernel_size, module.stride, module.padding)

    def refires(self, module: Any) -> bool:
        spiking = isinstance(module, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell)
        ours = isinstance(module, SingleSpikeIF | SingleSpikeIFCell)
        return spiking and not ours and not isinstance(module, LI | LICell | LIBoxCell)

    def forget(self, model: nn.Module) -> None:
        """Norse keeps no list of neurons."""

    def stays(self, module: Any) -> str | None:
        return None

    def first_spike_pool(self, pool: Any, model: nn.Module) -> nn.Module:
        raise ValueError(
            "Norse's containers note which layers have a state when they are built. Build the model with "
            "FirstSpikePool2d (FirstSpikePool2dCell for a step per call) in its place, or in that of its Lift"
        )

    def calibrate(self, model: nn.Module, trains: Tensor, fraction: float) -> dict[str, float]:
        return calibrate(model, trains, fraction)

    def single_spike(self, module: Any) -> tuple[nn.Module, tuple[str, ...]]:
        p = module.p
        rest, leak, gain, lost_current = _integration(module)
        v_th = _plain((torch.as_tensor(p.v_th) - torch.as_tensor(rest)) / gain)
        if float(torch.as_tensor(v_th).min()) < 0:
            raise ValueError(f"v_th {_short(p.v_th)} must not be below the potential at rest, {_short(rest)}")
        lost = [
            f"v_reset {_short(p.v_reset)}: a neuron that fires once is not reset",
            f"method {p.method!r}: the latency rule replaces the surrogate",
            *lost_current,
        ]
        if _short(v_th) != _short(p.v_th):
            lost.append(
                f"v_th {_short(p.v_th)} becomes {_short(v_th)}: from 0 up, in units of what an input adds"
            )
        new_p = SingleSpikeIFParameters(v_th=v_th, tau_mem_inv=leak)
        if isinstance(module, SNN):
            return SingleSpikeIF(new_p, module.dt, record_states=module.record_states), tuple(lost)
        return SingleSpikeIFCell(new_p, module.dt), tuple(lost)

    def neuron_in_steps(self, neuron: IF, last: bool, silent_gradient: bool) -> nn.Module:
        dt = 1.0  # a step is a bin, which keeps 1 - dt tau_mem_inv closest to beta
        p = SingleSpikeIFParameters(neuron.threshold, 1 - neuron.beta, silent_gradient=silent_gradient)
        return SingleSpikeIF(p, dt)

    def pool_in_steps(self, pool: EarliestSpikePool2d, last: bool) -> nn.Module:
        return FirstSpikePool2d(pool.kernel_size, pool.stride, pool.padding)

    def sequential(self, modules: Sequence[nn.Module]) -> nn.Module:
        over_time = (SingleSpikeIF, FirstSpikePool2d)
        model: nn.Module = SequentialState(*(m if isinstance(m, over_time) else Lift(m) for m in modules))
        return model


HOST = _Norse()


def _integration(module: Any) -> tuple[Any, Any, Any, list[str]]:
    """Potential at rest, inverse time constant, how often an input counts, and what is lost of it."""
    p = module.p
    if type(module) in (IAF, IAFCell):
        return p.v_reset, 0.0, 1.0, []
    if type(module) not in (LIF, LIFCell, LIFBoxCell):
        raise ValueError(
            "only IAF, LIF, LIFBox and their cells have a single-spike counterpart. "
            "Put a SingleSpikeIF in its place"
        )
    # Norse adds dt tau_mem_inv (v_leak - v + input): the input's factor goes into the threshold.
    leak = _plain(p.tau_mem_inv)
    if type(module) is LIFBoxCell:
        return p.v_leak, leak, module.dt * leak, []
    lost = ["tau_syn_inv: an input acts at once, with the whole charge of its synaptic current"]
    return p.v_leak, leak, leak / _plain(p.tau_syn_inv), lost


def _is_encoder(module: nn.Module) -> bool:
    """Whether this is an encoder of Norse's own."""
    return type(module).__module__ == "norse.torch.module.encode"


def _check_time_mode(module: Any) -> None:
    """Refuse the options of a neuron that have no meaning on spike times."""
    _checks.own_forward(module, SingleSpikeIF, SingleSpikeIFCell)
    if module.p.method != LATENCY:
        raise ValueError(f"method {module.p.method!r} has no meaning on spike times. Use {LATENCY!r}")


def _li_response(module: Any, t_max: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The potential of a leaky integrator at rest, 0, 1, ... steps after a current of 1, and its rest."""
    p = module.p
    # In the dtype of the parameters, as Norse multiplies them.
    mem, syn = (
        (module.dt * torch.as_tensor(tau)).to(like.device, like.dtype)
        for tau in (p.tau_mem_inv, p.tau_syn_inv)
    )
    current, v, response = torch.ones_like(mem + syn), torch.zeros_like(mem + syn), []
    for _ in range(t_max):
        v = v + mem * (current - v)
        current = current - syn * current
        response.append(v)
    return torch.stack(response), _rest(p, like)


def _li_box_response(module: Any, t_max: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """As `_li_response`, for an integrator without a synaptic current."""
    share = (module.dt * torch.as_tensor(module.p.tau_mem_inv)).to(like.device, like.dtype)
    ages = torch.arange(t_max, device=like.device, dtype=like.dtype)
    return share * (1 - share) ** ages.reshape(-1, *[1] * share.ndim), _rest(module.p, like)


def _rest(p: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(p.v_leak).detach().to(like.device, like.dtype)


def _plain(value: Any) -> Any:
    """A number where there is but one."""
    tensor = torch.as_tensor(value).detach()
    return tensor.item() if tensor.numel() == 1 else tensor


def _one_value(name: str, value: float | Tensor) -> float:
    shared = _checks.one_value(name, torch.as_tensor(value, dtype=torch.float64))
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name} must not be learnable on spike times")
    return shared


def _short(value: Any) -> str:
    plain = _plain(value)
    return f"{list(plain.shape)}" if isinstance(plain, Tensor) else f"{plain:.4g}"
