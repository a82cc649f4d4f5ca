"""Compiled forward pass of convolutions: a location is a fully connected layer of its own.

Arrays are as in `patches`; outputs are [batch, locations, groups, out / groups].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..geometry import Geometry, by_group, weight_rows
from ..status import BAD_TIMES
from . import conv2d_currents, conv2d_steps
from .compile import jit, lean_jit, method
from .events import has_bad_times, judge
from .parallel import as_arrays, share_out
from .patches import by_position, rank_spikes, read_patch, room_for, tiles_of

# Of a layer, as `conv2d_steps` and `conv2d_currents` have them.
scratch, fire = method("scratch"), method("fire")


def first_spike(
    times: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    neuron: Any,
    t_max: float,
    outputs: tuple[Tensor, Tensor, Tensor],
    status: np.ndarray,
) -> None:
    """Write crossings, potentials and slopes; `status` [batch] tells what is wrong.

    Potentials may be those of no sample where V jumps, without leak and bias: they are not written then.
    """
    groups, tiles = geometry.groups, tiles_of(times, weight, geometry)
    rows = weight_rows(weight, groups).flatten(1, 2)
    current = by_group(weight.new_zeros(len(weight)) if bias is None else bias, groups)
    kind: Any = conv2d_steps if neuron.jumps else conv2d_currents
    layer = kind.layer_of(rows, current, bias is not None, neuron, t_max)
    work = outputs[0].numel() * rows.shape[1] // (4 if neuron.jumps else 2)
    arrays = as_arrays(by_position(times, groups), *(by_group(output, groups) for output in outputs))
    share_out(len(times), work, fire_patches, *arrays, status, tiles, layer, t_max)


@jit
def fire_patches(begin, end, times, spikes, potential, slope, status, tiles, layer, t_max):
    """The samples `begin` ... `end`, location by location."""
    room, own = room_for(times, tiles, layer.rows.shape[1], layer.table), scratch(layer)
    fire_each(begin, end, times, spikes, potential, slope, status, tiles, layer, t_max, room, own)


@lean_jit
def fire_each(begin, end, times, spikes, potential, slope, status, tiles, layer, t_max, room, own):
    """In scratch space that is there."""
    for b in range(begin, end):
        for group in range(times.shape[1]):
            image = times[b, group]
            if has_bad_times(image):
                status[b] = BAD_TIMES
                continue
            for tile in range(tiles.top.size):
                n = rank_spikes(image, tile, tiles, t_max, layer.width, room)
                for at in range(tiles.after.size):
                    seen = read_patch(at, n, tiles, layer.width, room)
                    location = np.int64(tiles.location[tile] + tiles.after[at])
                    fire(layer, room, seen, own, t_max, b, location, group, spikes, potential, slope)
        judge(b, potential if potential.size > 0 else spikes, status)
