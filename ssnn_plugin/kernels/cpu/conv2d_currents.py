"""Locations of convolutions of neurons with a synaptic current; see `conv2d`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..geometry import whole_lanes
from .currents import (
    BUCKETS,
    LANES,
    PAIR,
    leak_of,
    note_crossings,
    numbers_of,
    propagate,
    room_to_solve,
    solve_crossings,
)
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
        _, n_in, n_out = self.rows.shape
        return np.empty(3 * (n_in + 1), dtype), room_to_solve(n_in, n_out, dtype)

    def fire(self, room, seen, scratch, t_max, b, location, group, spikes, potential, slope):
        (moves, to_solve), width = scratch, len(splat(self.rows.dtype.type(0), PAIR))
        rows, when, n_out = room.rows[:seen], room.when[:seen], spikes.shape[3]
        found = spikes[b, location, group], potential[b, location, group], slope[b, location, group]
        propagate(when, self.response, t_max, moves)
        for lane in range(0, n_out, width):
            note_crossings(
                rows, when, self.rows[group], self.bias[group], self.response, leak_of(self.response),
                self.threshold, t_max, moves, lane, *found, PAIR,
            )  # fmt: skip
        solve_crossings(when, self.response, self.threshold, t_max, to_solve, *found)


def layer_of(rows: Tensor, bias: Tensor, rising: bool, neuron: Any, t_max: float) -> Currents:
    """Of these weights and currents."""
    response, threshold, _ = numbers_of(neuron, t_max)
    weights, currents = as_arrays(whole_lanes(rows, LANES), whole_lanes(bias, LANES))
    return Currents(weights, currents, response, threshold)
