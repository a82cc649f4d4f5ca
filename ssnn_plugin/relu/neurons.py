"""Windowed ramps behind a potential, and affine maps that no connection in front of them takes up."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from .. import _checks
from ..kernels.status import NAN_POTENTIAL, refuse_bad_samples
from ..neurons import WindowedRamp


class ClippedSpikesWarning(UserWarning):
    """Neurons whose potential exceeds their window: they fire at its start, not in proportion to it."""


def warn_of_clipped(found: str) -> None:
    """Warn of potentials above their window."""
    warnings.warn(
        f"{found}: these spikes are clipped to its start. Widen the windows by network.calibrate on more "
        "samples or with a greater margin; network.activity(x).clipped counts by layer",
        ClippedSpikesWarning,
        stacklevel=3,
    )


def spike_times(leads: Tensor, t_max: float) -> Tensor:
    """When spikes come that are this much before `t_max`; `inf` for 0, and for a time that rounds to `t_max`.

    >>> spike_times(torch.tensor([0.0, 0.5, 3.0]), 3.0)
    tensor([   inf, 2.5000, 0.0000])
    """
    # In place of `where`, which takes five times as long.
    return 0.0 - nn.functional.threshold(leads - t_max, -t_max, -math.inf)


class RampNeurons(nn.Module):
    """`WindowedRamp` neurons: V at the start of their window -> their leads.

    The lead of a spike is how long before the end of its window it comes, 0 for a silent neuron. With V what
    the ramps of the inputs add up to until `start`, it is ``min(max(V, 0), window)``: a V above the window
    is a spike at its start. Leads and times say the same, ``t = t_max - lead``.

    Args:
        cap: length of the window where it is part of the function, as 6 for ReLU6; None for a ReLU, whose
            window is set on samples.
        inplace: whether V may be overwritten.

    Attributes:
        start, window: of the layer; `window` is infinite until it is set.
        delays: how much later the spikes of each source arrive, so that their windows end at `start`.

    >>> neurons = RampNeurons(cap=6.0)
    >>> leads = neurons(torch.tensor([[-1.0, 2.0, 7.0]]))
    >>> leads, neurons.times(leads)
    (tensor([[0., 2., 6.]]), tensor([[inf, 4., 0.]]))
    """

    def __init__(self, cap: float | None = None, *, inplace: bool = False) -> None:
        super().__init__()
        self.cap, self.inplace = cap, inplace
        self.start, self.window = 0.0, math.inf if cap is None else cap
        self.delays: dict[str, float] = {}

    @property
    def neuron(self) -> WindowedRamp:
        """What the neurons are on spike times."""
        return WindowedRamp(self.window, start=self.start)

    @property
    def t_max(self) -> float:
        """End of the window."""
        return self.start + self.window

    def forward(self, v: Tensor) -> Tensor:
        """V [batch, *] -> leads [batch, *].

        Raises:
            ValueError: NaN in a layer without a cap; others hand it on.

        Warns:
            ClippedSpikesWarning: a V above a window that was set on samples.
        """
        if self.cap is None and v.numel() and _checks.has_values(v):
            peak = v.detach().amax()
            if not bool(peak <= self.window):
                self._beyond(v, peak)
        # Unlike `clamp` it has no gradient at V = 0, as ReLU has none.
        return nn.functional.hardtanh(v, 0.0, self.window, inplace=self.inplace)

    def times(self, leads: Tensor) -> Tensor:
        """Spike times of leads, `inf` for a lead of 0."""
        return spike_times(leads, self.t_max)

    def clipped(self, v: Tensor) -> int:
        """How many of the spikes are clipped to the start of a window that was set on samples."""
        if self.cap is not None or not v.numel() or bool(v.detach().amax() <= self.window):
            return 0
        return int((v > self.window).sum())

    def _beyond(self, v: Tensor, peak: Tensor) -> None:
        if bool(peak.isnan()):
            refuse_bad_samples(NAN_POTENTIAL)
        warn_of_clipped(
            f"{self.clipped(v)} of {v.numel()} potentials exceed their window of {self.window:.4g}, the "
            f"highest is {float(peak):.4g}"
        )

    def extra_repr(self) -> str:
        return f"start={self.start:.6g}, window={self.window:.6g}" + ("" if self.cap is None else ", capped")


class ChannelAffine(nn.Module):
    """A factor and a shift of each channel: [batch, channels, *] -> the same shape.

    >>> ChannelAffine(torch.tensor([2.0]), torch.tensor([1.0]))(torch.tensor([[3.0]]))
    tensor([[7.]], grad_fn=<AddcmulBackward0>)
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, factor: Tensor, shift: Tensor, *, learned: bool = True) -> None:
        super().__init__()
        for name, value in (("factor", factor), ("shift", shift)):
            if learned:
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x times the factor, plus the shift."""
        shape = -1, *[1] * (x.ndim - 2)
        return torch.addcmul(self.shift.view(shape), x, self.factor.view(shape))

    def extra_repr(self) -> str:
        return f"{self.factor.numel()}"
