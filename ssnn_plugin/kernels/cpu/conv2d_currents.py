"""Locations of convolutions of neurons with a synaptic current; see `conv2d`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..geometry import whole_lanes
from .currents import BUCKETS, LANES, PAIR, fire_tile, numbers_of, propagate
from .lanes import splat
from .parallel import as_arrays


class Currents(NamedTuple):
    """Weights [groups, rows, whole vectors], currents at time 0, and what belongs to the neurons."""

    rows: np.ndarray
    bias: np.ndarray
    response: Any
    threshold: float
    table: int = BUCKETS + 1
    width: int = 1

    def scratch(self):
        dtype = self.rows.dtype
        return np.empty(3 * (self.rows.shape[1] + 1), dtype), np.empty((5, LANES), dtype)

    def fire(self, room, seen, scratch, t_max, b, location, group, spikes, potential, slope):
        moves, state = scratch
        rows, when, n_out = room.rows[:seen], room.when[:seen], spikes.shape[3]
        width = len(splat(self.rows.dtype.type(0), PAIR))
        propagate(when, self.response, t_max, moves)
        for lane in range(0, n_out, width):
            fire_tile(
                rows, when, self.rows[group], self.bias[group], self.response, self.threshold, t_max, moves,
                lane, min(width, n_out - lane), state, spikes[b, location, group],
                potential[b, location, group], slope[b, location, group], PAIR,
            )  # fmt: skip


def layer_of(rows: Tensor, bias: Tensor, rising: bool, neuron: Any, t_max: float) -> Currents:
    """Of these weights and currents."""
    response, threshold, _ = numbers_of(neuron, t_max)
    weights, currents = as_arrays(whole_lanes(rows, LANES), whole_lanes(bias, LANES))
    return Currents(weights, currents, response, threshold)
