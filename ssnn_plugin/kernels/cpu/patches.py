"""Compiled primitives of convolutions: what each location sees, earliest first.

The spikes of a tile of the input are sorted, of one sample and one group of channels. Each position holds
the ranks of its spikes as the bits of a set; a location sees the union of the sets of its positions, and
reading that from the lowest bit on gives its spikes in order.

Channels come last: times are [batch, groups, height * width * in / groups]. The weights are
[groups, taps * in / groups, width], a row for each tap of the kernel and input channel, with `width`
outputs per group.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..geometry import Geometry, output_size
from .bits import count_ones, mask_of, trailing_zeros
from .compile import jit
from .events import sort_events
from .lanes import REGISTER, pack_part, splat

#: most inputs of a tile, so that sets of ranks are short, if one location does not see more
MOST_INPUTS = 4096
#: spikes that are read from a set without a look at how many there are
AT_A_TIME = 4
#: numbers that a set may have, which AVX-512 packs at once
ALL, PACKS = 64, REGISTER == 64
#: room beyond the spikes of a location, for what is read and written in vectors
BEYOND = 32


class Tiles(NamedTuple):
    """How the locations of a convolution without padding are gone through.

    Each tile has the same number of locations and of inputs; where they do not divide the image, tiles
    overlap, and what is in both is computed twice.
    """

    #: per tile: its first input row and column, its first location
    top: np.ndarray
    left: np.ndarray
    location: np.ndarray
    #: per input of a tile: its position in the tile, and its row of weights as the first location sees it
    position: np.ndarray
    row: np.ndarray
    #: per location of a tile: the position of its first tap in `Room.seen`, how many rows of weights an
    #: input has moved back for it, and how many locations it comes after the first
    first: np.ndarray
    back: np.ndarray
    after: np.ndarray
    #: per row of locations: its first input row; per row and per column of taps: how far it is from the first
    first_y: np.ndarray
    tap_y: np.ndarray
    tap_x: np.ndarray
    #: of a tile's input, of the whole input, and inputs per position
    height: int
    width: int
    image_width: int
    channels: int


def tiles_of(times: Tensor, weight: Tensor, geometry: Geometry) -> Tiles:
    """Of a convolution of these inputs."""
    return _tiles(*times.shape[2:], *weight.shape[1:], *geometry.stride, *geometry.dilation)


@lru_cache(maxsize=64)
def _tiles(height: int, width: int, channels: int, *kernel: int) -> Tiles:
    """Of `channels` inputs per position; `kernel` is size, stride and dilation, two numbers each."""
    size, stride, dilation = kernel[:2], kernel[2:4], kernel[4:]
    n_y, n_x = n = output_size([height, width], size, stride, dilation)
    rows, columns = n
    while max(rows, columns) > 1 and _inputs(rows, columns, *kernel)[2] * channels > MOST_INPUTS:
        rows, columns = ((rows + 1) // 2, columns) if rows > columns else (rows, (columns + 1) // 2)
    tile_height, tile_width, _ = _inputs(rows, columns, *kernel)
    top, left = (np.minimum(np.arange(0, m, k), m - k) for m, k in ((n_y, rows), (n_x, columns)))
    y, x, channel = np.ix_(np.arange(tile_height), np.arange(tile_width), np.arange(channels))
    first_y, first_x = np.arange(rows) * stride[0], np.arange(columns) * stride[1]
    back_y, back_x = first_y // dilation[0] * size[1] * channels, first_x // dilation[1] * channels
    tables = (
        np.repeat(top * stride[0], len(left)),
        np.tile(left * stride[1], len(top)),
        np.add.outer(top * n_x, left),
        y * tile_width + x + 0 * channel,
        (y // dilation[0] * size[1] + x // dilation[1]) * channels + channel,
        np.add.outer(np.arange(rows) * tile_width, first_x),
        np.add.outer(back_y, back_x),
        np.add.outer(np.arange(rows) * n_x, np.arange(columns)),
        first_y,
        np.arange(size[0]) * dilation[0],
        np.arange(size[1]) * dilation[1],
    )
    whole = (table.astype(np.uint32).reshape(-1) for table in tables)
    return Tiles(*whole, tile_height, tile_width, width, channels)  # type: ignore[call-arg, arg-type]


def _inputs(rows: int, columns: int, *kernel: int) -> tuple[int, int, int]:
    """Height, width and number of the positions that so many locations see."""
    size, stride, dilation = kernel[:2], kernel[2:4], kernel[4:]
    height, width = (
        (n - 1) * s + d * (k - 1) + 1
        for n, k, s, d in zip((rows, columns), size, stride, dilation, strict=True)
    )
    return height, width, height * width


def by_position(images: Tensor, groups: int) -> Tensor:
    """[batch, channels, height, width] -> [batch, groups, height * width * channels / groups]."""
    batch, channels, height, width = images.shape
    parts = images.reshape(batch, groups, channels // groups, height, width)
    return parts.permute(0, 1, 3, 4, 2).flatten(2)


class Room(NamedTuple):
    """Scratch space for the spikes of a tile, and for those that a location sees."""

    times: np.ndarray
    order: np.ndarray
    spiking: np.ndarray
    counts: np.ndarray
    #: of each rank
    row_of_rank: np.ndarray
    when_of_rank: np.ndarray
    #: sets of ranks: per position; per column, of the rows that a location sees; per first tap of a location
    sets: np.ndarray
    column: np.ndarray
    seen: np.ndarray
    #: row and time of each spike that a location sees
    rows: np.ndarray
    when: np.ndarray


@jit
def room_for(times, tiles, n_rows, table):
    """For a kernel of so many rows of weights; `table` is the size of the counting sort's table."""
    n, positions = tiles.position.size, tiles.height * tiles.width
    words = (n + 63) >> 6
    return Room(
        np.empty(n, times.dtype),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(table, np.int32),
        np.empty(n + 64, np.int32),
        np.empty(n + 64, times.dtype),
        np.empty(positions * words, np.uint64),
        np.empty(tiles.width * words, np.uint64),
        np.empty(tiles.first_y.size * tiles.width * words, np.uint64),
        np.empty(n_rows + BEYOND, np.int32),
        np.empty(n_rows + BEYOND, times.dtype),
    )


@jit
def rank_spikes(image, tile, tiles, t_max, width, room):
    """Sort the spikes of a tile of an image, and find out which of them each location may see.

    Returns how many there are; -1 if times are bad. A row of weights is told by its first of `width` weights.
    """
    copy_tile(image, tile, tiles, room.times)
    n = sort_events(room.times, t_max, room.order, room.when_of_rank, room.spiking, room.counts)
    words = (n + 63) >> 6
    room.sets[: tiles.height * tiles.width * words] = 0
    for k in range(n):
        i = np.uint32(room.order[k])
        room.sets[np.uintp(tiles.position[i] * words + (k >> 6))] |= np.uint64(1) << np.uint64(k & 63)
        room.row_of_rank[k] = tiles.row[i] * width
    unite_neighbours(tiles, words, room.sets, room.column, room.seen)
    return n


@jit
def copy_tile(image, tile, tiles, to):
    length = tiles.width * tiles.channels
    for y in range(tiles.height):
        first = ((tiles.top[tile] + y) * tiles.image_width + tiles.left[tile]) * tiles.channels
        row = image[first : first + length]
        for i in range(length):
            to[y * length + i] = row[i]


@jit
def unite_neighbours(tiles, words, sets, column, seen):
    """Unite the sets of all rows that a row of locations sees, then of all columns that one of them sees."""
    length = tiles.width * words
    for y in range(tiles.first_y.size):
        column[:length] = 0
        for tap in tiles.tap_y:
            first = np.int64(tiles.first_y[y] + tap) * length
            unite(column, sets[first : first + length])
        union = seen[y * length : (y + 1) * length]
        union[:] = 0
        for tap in tiles.tap_x:
            unite(union, column[np.int64(tap) * words : length])


@jit
def unite(union, part):
    for w in range(part.size):
        union[w] |= part[w]


@jit
def read_patch(at, n, tiles, width, room):
    """Write `rows` and `when` of the spikes that a location of a tile of `n` spikes sees; return how many."""
    words, back = (n + 63) >> 6, np.int64(tiles.back[at]) * width
    first = np.int64(tiles.first[at]) * words
    found = 0
    for w in range(words):
        ranks = room.seen[np.uintp(first + w)]
        last = found + np.int64(count_ones(ranks))
        if PACKS:
            members = mask_of(ranks, splat(room.when.dtype.type(0), ALL))
            pack_part(members, room.row_of_rank, w << 6, np.int32(back), room.rows, found)
            pack_part(members, room.when_of_rank, w << 6, room.when.dtype.type(0), room.when, found)
        else:
            write_members(ranks, w << 6, back, found, last, room)
        found = last
    return found


@jit
def write_members(ranks, first, back, begin, end, room):
    """Row and time of each rank of a set, which is counted from `first`, to the places `begin` ... `end`."""
    for at in range(begin, end, AT_A_TIME):
        for k in range(AT_A_TIME):
            rank, to = np.uintp(first + np.int64(trailing_zeros(ranks))), np.uintp(at + k)
            ranks &= ranks - np.uint64(1)
            room.rows[to], room.when[to] = room.row_of_rank[rank] - back, room.when_of_rank[rank]
