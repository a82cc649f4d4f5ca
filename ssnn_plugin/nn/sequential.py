"""A network on spike times."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .binwise import BinwiseLayer
from .connection import SpikeConnection
from .decision import Decision, decide_event_by_event, decide_layer_by_layer, silent_by_potential


class SpikeSequential(nn.Sequential):
    """`torch.nn.Sequential` on spike times, which hands on the potential of its last layer if asked.

    Shape: times [batch, *] -> times, or (times, potential) with `return_potential=True`.

    Raises:
        TypeError: `return_potential=True` and a last layer without neurons.

    >>> import torch
    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear
    >>> model = SpikeSequential(SpikeLinear(4, 3, IF(), t_max=8), SpikeLinear(3, 2, IF(), t_max=8))
    >>> times, potential = model(torch.zeros(1, 4), return_potential=True)
    >>> times.shape, potential.shape
    (torch.Size([1, 2]), torch.Size([1, 2]))
    """

    def forward(self, times: Tensor, return_potential: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Times [batch, *] -> times, or (times, potential)."""
        last = self._last_neurons() if return_potential else None
        potential: Tensor | None = None
        for position, layer in enumerate(self):
            if position == last:
                times, potential = layer(times, return_potential=True)
            else:
                times = layer(times)
                potential = None if potential is None else layer(potential)
        return times if potential is None else (times, potential)

    def _last_neurons(self) -> int:
        """Which layer is the last one, but for what flattens its outputs; it has a potential."""
        layers = list(self)
        while layers and isinstance(layers[-1], nn.Flatten):
            layers.pop()
        if not layers or not isinstance(layers[-1], SpikeConnection | BinwiseLayer | SpikeSequential):
            last = type(layers[-1]).__name__ if layers else "Flatten"
            raise TypeError(f"return_potential=True needs a last layer with neurons, got {last}")
        return len(layers) - 1

    def in_a_row(self) -> bool:
        """Whether a call runs the layers one after the other; of a subclass, whether it still does."""
        return type(self).forward is SpikeSequential.forward

    @torch.no_grad()
    def decide(self, inputs: Tensor, *, tie: str = "potential", all_silent: str | None = None) -> Decision:
        """The class of the first output spike, found in one pass over the network that stops there.

        The same as `decode.first_to_fire` on the outputs, and the spikes that `metrics.SpikeCounts` counts
        until the decision; without a gradient. Fully connected `IF` neurons on the CPU are run event by event
        through all layers at once, by a compiled kernel: what comes after the decision costs nothing, and is
        not looked at. All else runs layer by layer over the whole window: convolutions and pools, other
        neurons, a leak per neuron, layers with hooks, or with dropout in training, subclasses, GPUs. With a
        bias, a V within rounding of the threshold may fall on its other side.

        Args:
            inputs: spike times [batch, *], or 8-bit images [batch, *], uint8, which stand for the times
                `encode.latency(images, t_max, x_max=255)`, with `t_max` of the first layer.
            tie, all_silent: as for `decode.first_to_fire`.

        Raises:
            TypeError, ValueError: as calling the network; outputs that are not [batch, classes], an unknown
                rule.

        >>> from ssnn_plugin import IF
        >>> from ssnn_plugin.nn import SpikeLinear
        >>> model = SpikeSequential(SpikeLinear(2, 2, IF(), t_max=8))
        >>> _ = model[0].load_state_dict({"weight": torch.tensor([[2.0, 0.0], [0.0, 2.0]])})
        >>> decision = model.decide(torch.tensor([[5.0, 3.0], [2.0, torch.inf]]))
        >>> decision.winner, decision.time, decision.spikes.tolist()  # inputs, outputs
        (tensor([1, 0]), tensor([3., 2.]), [[1, 1], [1, 1]])
        """
        by_potential = silent_by_potential(tie, all_silent)
        found = None
        if type(self) is SpikeSequential:
            found = decide_event_by_event(self, inputs, tie, by_potential)
        return decide_layer_by_layer(self, inputs, tie, by_potential) if found is None else found
