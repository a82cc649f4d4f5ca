"""The network on spike times that equals a model in steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .. import _checks
from .decision import Decision
from .rows import keep_up
from .sequential import SpikeSequential


class EventDrivenNetwork(SpikeSequential):
    """A `SpikeSequential` that keeps to the model that it was made from, see `to_event_driven`.

    Before every call it reads thresholds, leaks, weights and how much is dropped anew from the model, whose
    checkpoints it thus follows. It refuses a model that has got other modules or hooks since, and inputs
    that the model would not have got.

    Args:
        layers: the layers.
        t_max: number of bins.
        takes: how the model takes its input: "step" for one step per call, "window" for
            [T, batch, *], "values" for the same values [batch, *] in every step.
        sources: for each layer the layers whose times it takes, -1 for the input; None for a chain.
        follow: what to do before every call.

    Shape: times [batch, *], or values if the model takes those -> times [batch, *]; (times, potential) with
    `return_potential=True`; values for a model that ends with a read-out.

    Raises:
        ValueError: times between bins; a spike train instead of times; values that are not finite.
    """

    def __init__(
        self,
        *layers: nn.Module,
        t_max: int,
        takes: str = "step",
        sources: Sequence[tuple[int, ...]] | None = None,
        follow: Sequence[Callable[[], None]] = (),
    ) -> None:
        super().__init__(*layers)
        self.t_max, self.takes, self.follow = t_max, takes, list(follow)
        given = [tuple(one) for one in sources or ()]
        chain = all(one == (number - 1,) for number, one in enumerate(given))
        self.sources = None if chain else given

    def forward(self, times: Tensor, return_potential: bool = False) -> Any:
        """Times, or values [batch, *] -> times, or (times, potential)."""
        keep_up(self)
        self._check_input(times)
        if self.sources is None:
            return super().forward(times, return_potential)
        last = self._last_neurons() if return_potential else None
        outputs, potential = [times], None
        for position, (layer, sources) in enumerate(zip(self, self.sources, strict=True)):
            given = [outputs[source + 1] for source in sources]
            if position == last:
                spikes, potential = layer(*given, return_potential=True)
                outputs.append(spikes)
            else:
                outputs.append(layer(*given))
                potential = None if potential is None else layer(potential)
        return (outputs[-1], potential) if return_potential else outputs[-1]

    def __getitem__(self, index: Any) -> Any:
        """A layer; the first layers as a network that keeps to its model, others as a `SpikeSequential`.

        Raises:
            IndexError: a slice of a network that branches, which does not begin with the first layer.
        """
        if not isinstance(index, slice):
            return super().__getitem__(index)
        start, _, step = index.indices(len(self))
        layers = list(self)[index]
        if (start, step) == (0, 1):
            sources = self.sources and self.sources[: len(layers)]
            return type(self)(
                *layers, t_max=self.t_max, takes=self.takes, sources=sources, follow=self.follow
            )
        if self.sources is not None:
            raise IndexError(f"layers of a network that branches must begin with the first, got {index}")
        return SpikeSequential(*layers)

    def in_a_row(self) -> bool:
        """As of a `SpikeSequential`; also not of a network that branches."""
        return type(self).forward is EventDrivenNetwork.forward and self.sources is None

    def decide(self, inputs: Tensor, *, tie: str = "potential", all_silent: str | None = None) -> Decision:
        """As of a `SpikeSequential`, layer by layer.

        Raises:
            TypeError: also a network that takes values.
        """
        if self.takes == "values":
            raise TypeError(
                "decide takes spike times, this network takes values: decode what calling it returns"
            )
        return super().decide(inputs, tie=tie, all_silent=all_silent)

    def _check_input(self, times: Tensor) -> None:
        if not isinstance(times, Tensor) or not _checks.has_values(times):
            return
        if self.takes == "values":
            if not bool(times.isfinite().all()):
                raise ValueError(
                    "values must be finite: the model gets the same values in every step, so pass these, "
                    "not times"
                )
            return
        if bool((times.isfinite() & (times != times.floor())).any()):
            raise ValueError(
                "times must be whole bins, with inf for silence; got values between bins, as images have. "
                f"Encode values with ssnn_plugin.encode.latency(values, {self.t_max})"
            )
        train = times.ndim > 2 and len(times) == self.t_max > 2
        if train and bool(((times == 0) | (times == 1)).all()) and bool((times == 0).any()):
            raise ValueError(
                f"times must be spike times [batch, *], got a spike train {list(times.shape)}. "
                "Pass ssnn_plugin.decode.spikes_to_times(train)"
            )
