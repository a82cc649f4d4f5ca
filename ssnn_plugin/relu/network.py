"""A network of windowed ramps that computes what a ReLU network does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import _checks
from ..functional import highest_in_windows2d
from ..kernels.precision import full_precision
from ..kernels.status import NAN_POTENTIAL, refuse_bad_samples
from ..nn import Decision
from ..nn.decision import decision_of, silent_by_potential
from .follow import INPUT, OUTPUT
from .neurons import ClippedSpikesWarning, RampNeurons, spike_times, warn_of_clipped


@dataclass(frozen=True)
class Activity:
    """What every neuron of a `RampNetwork` does on a batch; differentiable.

    Args:
        potential: of the outputs [batch, *]: the logits.
        leads: by layer [batch, *], how long before the end of its window each neuron fires, 0 for silence;
            "input" first, "output" last.
        windows: by layer, how long its window is, and when it ends.
        clipped: by layer, how many neurons had a potential above their window, and fired at its start.
    """

    potential: Tensor
    leads: dict[str, Tensor]
    windows: dict[str, tuple[float, float]]
    clipped: dict[str, int]

    @cached_property
    def times(self) -> dict[str, Tensor]:
        """Spike times by layer [batch, *], `inf` = silent, in the order of `metrics.SpikeCounts.update`."""
        return {name: spike_times(leads, self.windows[name][1]) for name, leads in self.leads.items()}

    def spike_cost(self) -> Tensor:
        """How early the hidden spikes come, summed over a sample, its mean over the batch.

        Each counts as the part of its window that it comes before the end, 1 at the start and 0 for
        silence. A price on it, added to a loss, makes neurons fire later and silent.
        """
        costs = [
            leads.sum() / self.windows[name][0]
            for name, leads in self.leads.items()
            if name not in (INPUT, OUTPUT)
        ]
        return sum(costs, self.potential.new_zeros(())) / len(self.potential)


class _Watch(fx.Interpreter):
    """Runs a graph and has every layer of neurons done by `see(name, neurons, V)`, which returns leads."""

    def __init__(self, body: fx.GraphModule, see: Callable[[str, RampNeurons, Tensor], Tensor]) -> None:
        super().__init__(body)
        self.see = see

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, RampNeurons):
            return self.see(target, module, *args)
        return super().call_module(target, args, kwargs)


def _leads(neurons: RampNeurons, v: Tensor) -> Tensor:
    """What neurons and their hooks make of V, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippedSpikesWarning)
        return neurons(v)  # type: ignore[no-any-return]


class RampNetwork(nn.Module):
    """Windowed ramps that compute what a ReLU network does, as `from_relu` makes them.

    Every layer of neurons has a window, which begins when those of all its sources have ended: until then a
    neuron adds up the ramps of its inputs, and in it fires once, the earlier the more they are, or not at
    all. Spikes of layers whose windows ended earlier, as those of shortcuts, arrive with a delay. Calling the
    network returns the potentials of its outputs, the logits of the ReLU network.

    Layers hand on leads, how long before the end of its window a spike comes, which is what the next
    connection multiplies by its weights; 0 is silence. They are spike times from the other end. Under
    autocast calling the network computes as the ReLU network would. Spike times need all their digits: what
    returns them leaves it out.

    Shape: inputs as the ReLU network takes them, from 0 to `x_max`, or from -x_max if `signed` -> the outputs
    of the ReLU network.

    With `inhibition` the first spike of a max-pool's window silences the others there, where windows lie side
    by side and only the pool reads them (`functional.lateral_inhibition2d`). What the network returns is the
    same, with fewer spikes.

    Attributes:
        body: the connections and `RampNeurons`, with their parameters.
        x_max, signed: the range of the inputs.
        sources: the layers that each layer of neurons, and the output, has connections from.
        inhibition: the layers whose spikes inhibit others, with the size of the windows of the pool behind.
        readout: the output neurons, which fire at ``t_max - (logit + shift)``.
        shift: a bias of all outputs, by which those in their window are positive.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        sources: dict[str, frozenset[str]],
        *,
        x_max: float,
        signed: bool,
        inhibition: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.body, self.sources, self.x_max, self.signed = body, sources, x_max, signed
        self.inhibition = inhibition or {}
        self.readout, self.shift = RampNeurons(), 0.0

    @property
    def layers(self) -> dict[str, RampNeurons]:
        """The layers of hidden neurons by their path, in order."""
        return {name: self._neurons(name) for name in self.sources if name != OUTPUT}

    def _neurons(self, name: str) -> RampNeurons:
        return self.readout if name == OUTPUT else self.body.get_submodule(name)  # type: ignore[return-value]

    @property
    def t_max(self) -> float:
        """When the last window ends."""
        return self.readout.t_max

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [batch, *] -> potentials of the outputs, the logits.

        Values are not looked at under `torch.compile`, `torch.vmap` and `torch.export`: nothing is refused
        there, nor warned of.

        Raises:
            ValueError: inputs out of range, NaN.

        Warns:
            ClippedSpikesWarning: potentials above their window.
        """
        self._check(inputs)
        return _without_nan(self.body(inputs))

    def first_spikes(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [batch, *] -> spike times of the outputs and their potentials, the logits.

        The higher a logit, the earlier its spike. Where some tie, as at the start of the window, or all
        are silent, the logits decide, as in `decode.first_to_fire(times, potential)`.

        Raises, warns: as calling the network; TypeError for half precision, which has too few digits.
        """
        self._check_digits(inputs)
        with full_precision(inputs.device):
            potential = self(inputs)
            return self.readout.times(self.readout(potential + self.shift)), potential

    def encode(self, inputs: Tensor) -> Tensor:
        """The spike times of inputs, t = x_max - x, `inf` for 0.

        Signed inputs have two neurons each, side by side as channels: the first half for positive values, the
        second one for the magnitude of negative ones.

        Raises: as `first_spikes`.
        """
        _checks.floating("inputs", inputs)
        self._check(inputs)
        return spike_times(self._input_leads(inputs), self.x_max)

    def _input_leads(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs.relu(), (-inputs).relu()], 1) if self.signed else inputs

    def activity(self, inputs: Tensor) -> Activity:
        """The spikes of all neurons [batch, *], to be measured or priced.

        Raises: as `first_spikes`. Clipped spikes are counted here, without a warning.
        """
        self._check_digits(inputs)
        self._check(inputs)
        leads, clipped = {INPUT: self._input_leads(inputs)}, {}
        windows = {INPUT: (self.x_max, self.x_max)}

        def see(name: str, neurons: RampNeurons, v: Tensor) -> Tensor:
            clipped[name], windows[name] = neurons.clipped(v), (neurons.window, neurons.t_max)
            fired = leads[name] = _leads(neurons, v)
            if name in self.inhibition:
                leads[name] = fired * highest_in_windows2d(fired, self.inhibition[name])
            return fired

        with full_precision(inputs.device):
            potential = _without_nan(_Watch(self.body, see).run(inputs))
            see(OUTPUT, self.readout, potential + self.shift)
        return Activity(potential, leads, windows, clipped)

    @torch.no_grad()
    def decide(self, inputs: Tensor, *, tie: str = "potential", all_silent: str | None = None) -> Decision:
        """The class of the first output spike, and the spikes until then, as `nn.SpikeSequential.decide`.

        Raises:
            TypeError, ValueError: as `first_spikes`; outputs that are not [batch, classes], an unknown rule.

        Warns:
            ClippedSpikesWarning: potentials above their window.
        """
        by_potential = silent_by_potential(tie, all_silent)
        found = self.activity(inputs)
        if clipped := sum(found.clipped.values()):
            warn_of_clipped(f"{clipped} potentials exceed their window")
        layers = list(found.times.values())
        return decision_of(layers, layers[-1], found.potential, tie, by_potential)

    @torch.no_grad()
    def calibrate(self, inputs: Tensor, margin: float = 0.5) -> None:
        """Set the windows anew, as they should be after further training.

        The window of a layer is (1 + margin) times the highest potential of its neurons on these inputs; that
        of ReLU6 stays. That of the outputs goes from the lowest to the highest logit, and beyond by `margin`
        times the difference on either side. Dropout is left out.

        Args:
            inputs: [batch, *], as the network takes them.
            margin: at least 0.

        Raises:
            TypeError: half precision, another dtype than that of the network.
            ValueError: a margin out of range, no inputs, inputs out of range, NaN or infinity.
        """
        _checks.not_negative("margin", margin)
        self._check_digits(inputs)
        if not len(inputs):
            raise ValueError("inputs must hold at least one sample to set windows on, got none")
        self._check(inputs)
        windows: dict[str, float] = {}

        def see(name: str, neurons: RampNeurons, v: Tensor) -> Tensor:
            peak = float(v.amax())
            if not math.isfinite(peak):
                raise ValueError(f"inputs must lead to finite potentials, got {peak} in {name}")
            # A layer without any spike has no scale of its own.
            widest = (1 + margin) * peak if peak > 0 else 1.0
            windows[name] = widest if neurons.cap is None else neurons.cap
            set_before, neurons.window = neurons.window, math.inf if neurons.cap is None else neurons.cap
            try:
                return neurons(v)  # type: ignore[no-any-return]
            finally:
                neurons.window = set_before

        modes = [(module, module.training) for module in self.modules()]
        try:
            with full_precision(inputs.device):
                outputs = _Watch(self.eval().body, see).run(inputs.clone())
        finally:
            for module, training in modes:
                module.training = training
        low, high = (float(extreme) for extreme in outputs.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"inputs must lead to finite outputs, got {low} ... {high}")
        spread = (high - low) or 1.0
        windows[OUTPUT] = (1 + 2 * margin) * spread
        self._set(windows, margin * spread - low)

    def _set(self, windows: dict[str, float], shift: float) -> None:
        """Windows follow each other, those of a layer all that it has connections from."""
        ends = {INPUT: self.x_max}
        for name, sources in self.sources.items():
            neurons = self._neurons(name)
            neurons.start, neurons.window = max(ends[source] for source in sources), windows[name]
            neurons.delays = {source: neurons.start - ends[source] for source in sorted(sources)}
            ends[name] = neurons.t_max
        self.shift = shift

    def get_extra_state(self) -> Any:
        """The windows, for a `state_dict`, and what they belong to."""
        windows = {name: self._neurons(name).window for name in self.sources}
        return {"windows": windows, "shift": self.shift} | self._fixed()

    def set_extra_state(self, state: Any) -> None:
        """Windows from a `state_dict`.

        Raises:
            ValueError: one of a network with another range of inputs, or other pools that inhibit.
        """
        for name, value in self._fixed().items():
            if name in state and state[name] != value:
                raise ValueError(f"the state must be of a network with {name}={value}, got {state[name]}")
        if state["windows"].keys() != self.sources.keys():
            own, others = (", ".join(names) for names in (self.sources, state["windows"]))
            raise ValueError(f"the state must be of a network with the layers {own}, got {others}")
        self._set(state["windows"], state["shift"])

    def _fixed(self) -> dict[str, Any]:
        return {"x_max": self.x_max, "signed": self.signed, "inhibition": self.inhibition}

    def _check_digits(self, inputs: Tensor) -> None:
        _checks.floating("inputs", inputs)
        own = next(self.body.parameters()).dtype
        if inputs.dtype != own:
            raise TypeError(f"inputs are {inputs.dtype}, the network {own}: they must be the same")

    def _check(self, inputs: Tensor) -> None:
        if not _checks.has_values(inputs) or not inputs.numel():
            return
        low, high = (float(extreme) for extreme in inputs.detach().aminmax())
        # 0.1 is more in single precision.
        greatest = max(self.x_max, torch.tensor(self.x_max, dtype=inputs.dtype).item())
        least = -greatest if self.signed else 0.0
        if not (least <= low and high <= greatest):
            raise ValueError(
                f"inputs must lie in {least:g} ... {self.x_max:g}, as a spike at t = x_max - x can say, got "
                f"values in {low:.4g} ... {high:.4g}. Pass x_max=, and signed=True or normalize=(mean, std), "
                "to from_relu"
            )

    def extra_repr(self) -> str:
        inhibited = f", inhibition in {', '.join(self.inhibition)}" if self.inhibition else ""
        return f"x_max={self.x_max:g}, signed={self.signed}, t_max={self.t_max:.6g}{inhibited}"


def _without_nan(potential: Tensor) -> Tensor:
    if _checks.has_nan(potential):
        refuse_bad_samples(NAN_POTENTIAL)
    return potential
