"""Honest numbers: accuracy under named tie rules, spike counts, response time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _checks
from .decode import TIES, first_to_fire

RULES = ("lenient", *TIES)


def accuracy(
    times: Tensor,
    labels: Tensor,
    *,
    potential: Tensor | None = None,
    tie: str = "potential",
    all_silent: str | None = None,
) -> float:
    """Fraction of samples whose label fires first, under a named rule for ties and silence.

    Args:
        times: output spike times [batch, classes], `inf` = silent.
        labels: class numbers [batch].
        potential: [batch, classes], as layers return it with `return_potential=True`.
        tie: "lenient" counts a sample as right if its label is among the earliest (what several
            papers print), "first_index" takes the lowest class, "potential" the highest potential
            at the crossing, "unique" counts every tie as an error.
        all_silent: "potential" decides a sample without output spikes by the highest potential at
            the end of the window (S4NN does so at bin t_max - 3); "undecided" counts it as an error. None is
            "potential" if one is given and `tie` is not "unique". Silence is never class 0.

    Returns:
        A number between 0 and 1; NaN for an empty batch.

    Raises:
        ValueError: as `decode.first_to_fire`; labels out of range.

    >>> import torch
    >>> times = torch.tensor([[4.0, 4.0], [7.0, 3.0]])
    >>> labels = torch.tensor([1, 1])
    >>> [accuracy(times, labels, tie=tie) for tie in ("lenient", "first_index", "unique")]
    [1.0, 0.5, 0.5]
    """
    _checks.one_of("tie", tie, RULES)
    _checks.class_labels(labels, times)
    strict = "first_index" if tie == "lenient" else tie
    right = first_to_fire(times, potential, tie=strict, all_silent=all_silent) == labels
    if tie == "lenient":
        of_label = times.gather(1, labels.long().unsqueeze(1)).squeeze(1)
        right |= of_label.isfinite() & (of_label == times.min(dim=1).values)
    return right.double().mean().item()


@dataclass(frozen=True)
class SpikeStatistics:
    """Means per sample, as `SpikeCounts.compute` returns them.

    `total` and `until_decision` hold one number per layer, inputs first. `response_time` counts a
    silent sample with the whole window, as S4NN does.
    """

    samples: int
    total: tuple[float, ...]
    until_decision: tuple[float, ...]
    response_time: float
    tied: float
    silent: float


@dataclass
class SpikeCounts:
    """Spikes per layer over the whole window and up to the decision, summed over batches.

    The decision falls with the earliest output spike; spikes of that very bin are counted. Without
    any output spike the whole window is. An input without intensity (`inf`) does not spike.

    Args:
        t_max: length of the window.

    >>> import torch
    >>> counts = SpikeCounts(t_max=256)
    >>> inputs, hidden = torch.tensor([[0.0, 9.0]]), torch.tensor([[1.0, torch.inf]])
    >>> counts.update(inputs, hidden, torch.tensor([[5.0, 8.0]]))
    >>> counts.compute()  # doctest: +NORMALIZE_WHITESPACE
    SpikeStatistics(samples=1, total=(2.0, 1.0, 2.0), until_decision=(1.0, 1.0, 1.0),
                    response_time=5.0, tied=0.0, silent=0.0)
    """

    t_max: float
    samples: int = field(default=0, init=False)
    _sums: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        _checks.positive("t_max", self.t_max)

    @torch.no_grad()
    def update(self, *layers: Tensor) -> None:
        """Add a batch: the spike times of every layer [batch, *features], inputs first, outputs last.

        Raises:
            ValueError: fewer than two layers, no outputs, shapes that do not fit, another number of
                layers than before, NaN or negative times.
        """
        if len(layers) < 2:
            raise ValueError(f"layers must hold the times of inputs and outputs, got {len(layers)} tensors")
        batch = len(layers[0])
        for number, times in enumerate(layers):
            if times.ndim < 2 or len(times) != batch:
                raise ValueError(
                    f"layers[{number}] must have shape [{batch}, *features], got {list(times.shape)}"
                )
            _checks.spike_times(f"layers[{number}]", times)
        output = layers[-1].flatten(1)
        if output.shape[1] == 0:
            raise ValueError(f"layers[-1] must hold at least one output, got {list(layers[-1].shape)}")
        decision = output.min(dim=1).values if batch else output.new_zeros(0)
        tied = (output == decision.unsqueeze(1)).sum(1) > 1
        silent = decision >= self.t_max
        decision = decision.clamp(max=self.t_max)
        total, until = [], []
        for times in layers:
            flat = times.flatten(1)
            inside = flat < self.t_max
            total.append(inside.sum())
            until.append((inside & (flat <= decision.unsqueeze(1))).sum())
        others = [decision.double().sum(), (tied & ~silent).sum(), silent.sum()]
        sums = torch.stack([value.double() for value in (*total, *until, *others)])
        if self._sums is not None and self._sums.shape != sums.shape:
            raise ValueError(
                f"update was called with {(len(self._sums) - 3) // 2} layers before, now {len(layers)}"
            )
        self._sums = sums if self._sums is None else self._sums + sums
        self.samples += batch

    def compute(self) -> SpikeStatistics:
        """Means over all samples so far.

        Raises:
            RuntimeError: nothing was counted yet.
        """
        if self._sums is None or self.samples == 0:
            raise RuntimeError("no samples were counted: call update first")
        means: Sequence[float] = (self._sums / self.samples).tolist()
        depth = (len(means) - 3) // 2
        return SpikeStatistics(
            self.samples, tuple(means[:depth]), tuple(means[depth : 2 * depth]), *means[2 * depth :]
        )

    def reset(self) -> None:
        """Forget everything."""
        self._sums, self.samples = None, 0


@dataclass(frozen=True)
class SilenceStatistics:
    """One number per layer, as `SilenceCounts.compute` returns them.

    `silent` is the fraction of (sample, neuron) pairs without a spike, `dead` the number of neurons
    that never fired.
    """

    samples: int
    silent: tuple[float, ...]
    dead: tuple[int, ...]


@dataclass
class SilenceCounts:
    """How silent each layer is, and how many of its neurons are dead, over batches.

    A convolution has a neuron in every position; to count dead channels give `times.amin((2, 3))`.

    >>> import torch
    >>> counts = SilenceCounts()
    >>> counts.update(torch.tensor([[1.0, torch.inf], [torch.inf, torch.inf]]))
    >>> counts.compute()
    SilenceStatistics(samples=2, silent=(0.75,), dead=(1,))
    """

    samples: int = field(default=0, init=False)
    _spikes: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def update(self, *layers: Tensor) -> None:
        """Add a batch: the spike times [batch, *features] of each layer, `inf` = silent.

        Raises:
            ValueError: no layers, shapes that do not fit each other or those before, NaN or negative
                times.
        """
        if not layers:
            raise ValueError("layers must hold the times of at least one layer, got none")
        for number, times in enumerate(layers):
            if times.ndim < 2 or len(times) != len(layers[0]):
                raise ValueError(
                    f"layers[{number}] must have shape [{len(layers[0])}, *features], got {list(times.shape)}"
                )
            _checks.spike_times(f"layers[{number}]", times)
        spikes = [times.isfinite().flatten(1).sum(dim=0) for times in layers]
        sizes, before = ([len(layer) for layer in counted] for counted in (spikes, self._spikes))
        if self._spikes and sizes != before:
            raise ValueError(f"update was called with layers of {before} neurons before, now of {sizes}")
        if self._spikes:
            spikes = [old + new for old, new in zip(self._spikes, spikes, strict=True)]
        self._spikes = spikes
        self.samples += len(layers[0])

    def compute(self) -> SilenceStatistics:
        """Fractions and numbers over all samples so far.

        Raises:
            RuntimeError: nothing was counted yet.
        """
        if self.samples == 0:
            raise RuntimeError("no samples were counted: call update first")
        return SilenceStatistics(
            self.samples,
            tuple(1 - (spikes.double().mean() / self.samples).item() for spikes in self._spikes),
            tuple(int((spikes == 0).sum()) for spikes in self._spikes),
        )

    def reset(self) -> None:
        """Forget everything."""
        self._spikes, self.samples = [], 0
