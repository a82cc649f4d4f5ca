"""Weights of fixed mean and norm, as a parametrization of PyTorch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks


class WeightStandardization(nn.Module):
    """Weight standardisation with an affine map per output neuron, for `torch.nn.utils.parametrize`.

    The weights of output neuron j become

        w_j = gain_j (v_j - mean v_j) / |v_j - mean v_j| + shift_j

    with the L2 norm, so that `gain_j` is the norm of the centred weights and `shift_j` their mean. All
    of v, gain and shift are learned: `layer.parametrizations.weight.original0`, `original1` and
    `original2`. Weights without spread have `shift_j` only.

    Args:
        gain: where the gains start, also whenever weights are assigned; None takes them from the weights.
        shift: the same of the shifts. With None for both the layer's weights stay as they are.

    Raises:
        ValueError: a gain that is not positive.

    Source: weight standardisation, Qiao et al. 2019, scaled as Brock et al. 2021 do; for single spikes,
    with an affine map, Che et al. 2024 (ETTFS).

    >>> import torch
    >>> from torch.nn.utils import parametrize
    >>> from ssnn_plugin import IF
    >>> from ssnn_plugin.nn import SpikeLinear
    >>> layer = SpikeLinear(2, 1, IF(), t_max=8)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[7.0, 1.0]])})  # 4 + 3 and 4 - 3
    >>> _ = parametrize.register_parametrization(layer, "weight", WeightStandardization(gain=2**0.5))
    >>> layer.weight.tolist()
    [[5.0, 3.0]]
    """

    def __init__(self, gain: float | None = None, shift: float | None = None) -> None:
        super().__init__()
        if gain is not None:
            _checks.positive("gain", gain)
        self.gain, self.shift = gain, shift

    def extra_repr(self) -> str:
        return f"gain={self.gain}, shift={self.shift}"

    def forward(self, direction: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """v [out, *], gain [out, 1, ...] and shift [out, 1, ...] -> weight [out, *]."""
        centred, norm, _ = _standard(direction)
        return gain * centred / norm.masked_fill(norm == 0, 1) + shift

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v, gain and shift for a weight [out, *]."""
        _, norm, mean = _standard(weight)
        gain = norm if self.gain is None else norm.new_full(norm.shape, self.gain)
        shift = mean if self.shift is None else mean.new_full(mean.shape, self.shift)
        return weight, gain, shift


def _standard(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights without their mean, the norm of these, and the mean, per output neuron."""
    inputs = tuple(range(1, weight.ndim))
    mean = weight.mean(dim=inputs, keepdim=True)
    centred = weight - mean
    norm = torch.linalg.vector_norm(centred, dim=inputs, keepdim=True)
    # What rounding leaves of equal weights is no spread.
    least = 4 * torch.finfo(weight.dtype).eps * weight[0].numel() ** 0.5 * mean.abs()
    return centred.masked_fill(norm <= least, 0), norm.masked_fill(norm <= least, 0), mean
