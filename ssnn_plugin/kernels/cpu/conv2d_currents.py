"""Compiled forward pass of convolutions of neurons with a synaptic current; arrays as in `patches`."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..geometry import Geometry, by_group, weight_rows, whole_lanes
from ..status import BAD_TIMES
from .compile import jit, told_apart
from .currents import BUCKETS, LANES, fire_currents
from .events import has_bad_times, judge
from .parallel import as_arrays, share_out
from .patches import by_position, rank_spikes, read_patch, room_for, tiles_of


def first_spike(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    neuron: Any,
    t_max: float,
    status: np.ndarray,
) -> tuple[Tensor, Tensor, Tensor]:
    """Crossings, potentials and slopes of a convolution; `status` [batch] tells what is wrong."""
    groups, shape = geometry.groups, geometry.output_shape(times, weight)
    spikes, potential, slope = (times.new_empty(shape) for _ in range(3))
    tiles = tiles_of(times, weight, geometry)
    current = whole_lanes(by_group(weight.new_zeros(len(weight)) if bias is None else bias, groups), LANES)
    rows = whole_lanes(weight_rows(weight, groups).flatten(1, 2), LANES)
    arrays = as_arrays(by_position(times, groups), rows, current, spikes, potential, slope)
    work = spikes.numel() * rows.shape[1] // 2
    numbers = told_apart(neuron.compiled()), float(neuron.threshold), t_max
    share_out(len(times), work, _fire, *arrays, status, tiles, *numbers)
    return spikes, potential, slope


@jit
def _fire(
    begin, end, times, rows, bias, spikes, potential, slope, status, tiles, response, threshold, t_max
):  # fmt: skip
    groups, n_rows, _ = rows.shape
    n_out = spikes.shape[2] // groups
    room = room_for(times, tiles, n_rows, BUCKETS + 1)
    moves, state = np.empty((3, n_rows + 1), rows.dtype), np.empty((5, LANES), rows.dtype)
    for b in range(begin, end):
        for group in range(groups):
            image, outputs = times[b, group], slice(group * n_out, (group + 1) * n_out)
            if has_bad_times(image):
                status[b] = BAD_TIMES
                continue
            for tile in range(tiles.top.size):
                n = rank_spikes(image, tile, tiles, t_max, 1, room)
                for at in range(tiles.after.size):
                    seen = read_patch(at, n, tiles, 1, room)
                    location = np.int64(tiles.location[tile] + tiles.after[at])
                    fire_currents(
                        room.rows[:seen], room.when[:seen], rows[group], bias[group], response, threshold,
                        t_max, moves, state, spikes[b, location, outputs],
                        potential[b, location, outputs], slope[b, location, outputs],
                    )  # fmt: skip
        judge(b, potential, status)
