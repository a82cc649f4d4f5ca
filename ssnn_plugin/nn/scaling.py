"""Features of any range as intensities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks


class MinMaxScaling(nn.Module):
    """Features to intensities in 0 ... 1, by their least and greatest value in a training set.

    Values beyond those are clipped. A feature that is the same in all of the training set tells nothing and
    becomes 0: no spike.

    Args:
        features: number of features.

    Raises:
        ValueError: features of another shape, not finite, or none to fit to.
        RuntimeError: called before `fit`.

    >>> import torch
    >>> scaling = MinMaxScaling(2).fit(torch.tensor([[0.0, 5.0], [4.0, 5.0]]))
    >>> scaling(torch.tensor([[1.0, 5.0], [8.0, 7.0]]))
    tensor([[0.2500, 0.0000],
            [1.0000, 0.0000]])
    """

    low: Tensor
    high: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        # The other way round, as long as nothing was seen.
        self.register_buffer("low", torch.full((features,), torch.inf))
        self.register_buffer("high", torch.full((features,), -torch.inf))

    def extra_repr(self) -> str:
        return f"{len(self.low)}"

    @torch.no_grad()
    def fit(self, x: Tensor) -> MinMaxScaling:
        """Take the range of each feature from a training set [samples, features]."""
        self._check(x)
        if not len(x):
            raise ValueError("x must have at least one sample to fit to, got none")
        low, high = x.aminmax(dim=0)
        self.low.copy_(low)
        self.high.copy_(high)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Features [batch, features] -> intensities in 0 ... 1."""
        self._check(x)
        if _checks.has_values(x) and bool((self.low > self.high).any()):
            raise RuntimeError("the ranges of the features are not known yet: call fit first")
        # Half of all, where the difference would be beyond the dtype.
        unit = torch.where((self.high - self.low).isinf(), 0.5, 1.0)
        spread = self.high * unit - self.low * unit
        scaled = (x * unit - self.low * unit) / spread.masked_fill(spread == 0, 1)
        return scaled.clamp(0, 1).masked_fill(spread == 0, 0)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != len(self.low):
            raise ValueError(f"x must have shape [batch, {len(self.low)}], got {list(x.shape)}")
        if _checks.has_values(x) and not bool(x.isfinite().all()):
            raise ValueError("x must be finite, got NaN or infinity")
