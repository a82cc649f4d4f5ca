"""Convolutions with more spikes, ties and inputs than one word or one tile of the compiled kernels holds."""

import math

import numba as nb
import numpy as np
import pytest
import torch
from marks import in_both_precisions
from naive import crossing_in_continuous_time, first_spikes, latency_gradients, patches

from ssnn_plugin import IF, ExpPSP
from ssnn_plugin.functional import first_spike_conv2d
from ssnn_plugin.kernels import cpu, reference
from ssnn_plugin.kernels.backends import Factors
from ssnn_plugin.kernels.cpu import conv2d_gradients
from ssnn_plugin.kernels.cpu import patches as compiled
from ssnn_plugin.kernels.cpu.bits import bits_of, count_ones, trailing_zeros
from ssnn_plugin.kernels.cpu.lanes import load, load_where, splat
from ssnn_plugin.kernels.geometry import Geometry

INF = math.inf


def _naive(times, weight, neuron, t_max, geometry, places, bias=None):
    """Spike times and potentials of these places alone: [places, out]."""
    stride, dilation, groups = (geometry[name] for name in ("stride", "dilation", "groups"))
    seen, padded = patches(times, weight.shape[2:], stride, dilation, (0, 0), groups)
    flat, found = padded.reshape(-1), []
    for g, (indices, rows) in enumerate(zip(seen, np.split(weight, groups), strict=True)):
        rows = rows.reshape(len(rows), -1)
        of_group = None if bias is None else np.split(bias, groups)[g]
        found.append(
            [
                first_spikes(
                    flat[indices[p]], rows, neuron.threshold, neuron.delay, t_max, of_group, neuron.beta
                )
                for p in places
            ]
        )
    return (np.concatenate([[of[k] for of in part] for part in found], axis=1) for k in (0, 1))


def _geometry(stride=(1, 1), dilation=(1, 1), groups=1):
    return {"stride": stride, "dilation": dilation, "groups": groups}


# Inputs, kernel and geometry: of one word of ranks, of many, of several tiles, with groups and dilation.
CASES = {
    "one word": ((2, 5, 6), (3, 3), _geometry()),
    "more than 64 spikes": ((3, 9, 11), (3, 2), _geometry(stride=(2, 1))),
    "more than 4096 spikes": ((24, 16, 17), (5, 3), _geometry(stride=(3, 2))),
    "tiles of one location": ((1100, 3, 4), (2, 2), _geometry()),
    "tiles that overlap": ((7, 41, 29), (3, 3), _geometry(stride=(2, 3))),
    "groups and dilation": ((12, 33, 27), (2, 3), _geometry(stride=(2, 1), dilation=(3, 2), groups=3)),
    "a stride beyond the kernel": ((40, 23, 31), (1, 2), _geometry(stride=(3, 5))),
    "one column": ((80, 70, 1), (4, 1), _geometry(dilation=(2, 1))),
}


@in_both_precisions
@pytest.mark.parametrize("neuron", [IF(8.0, delay=2), IF(3.0, beta=0.5)], ids=repr)
@pytest.mark.parametrize("case", CASES)
def test_spikes_come_in_order(case, neuron, dtype):
    """Whole weights: sums are exact; of few bins, so that many spikes are tied, and across positions."""
    shape, kernel, geometry = CASES[case]
    random, t_max, out = np.random.default_rng(len(case)), 9, 2 * geometry["groups"]
    times = random.integers(0, t_max + 2, shape).astype(float)
    times[random.random(shape) < 0.1] = INF
    weight = random.integers(-2, 3, (out, shape[0] // geometry["groups"], *kernel)).astype(float)
    found = first_spike_conv2d(
        torch.from_numpy(times).to(dtype).unsqueeze(0),
        torch.from_numpy(weight).to(dtype),
        neuron,
        t_max=t_max,
        return_potential=True,
        backend="cpu",
        **geometry,
    )
    spikes, potential = (output[0].flatten(1).t().double().numpy() for output in found)
    places = np.unique(np.linspace(0, len(spikes) - 1, 12).astype(int))
    for ours, theirs in zip(
        (spikes, potential), _naive(times, weight, neuron, t_max, geometry, places), strict=True
    ):
        np.testing.assert_array_equal(ours[places], theirs)


@pytest.mark.parametrize("case", ["more than 64 spikes", "groups and dilation", "one column"])
def test_gradients_of_many_spikes(case):
    shape, kernel, geometry = CASES[case]
    groups, random, t_max = geometry["groups"], np.random.default_rng(1), 9
    times = random.integers(0, t_max + 2, shape).astype(float)
    weight = random.integers(-2, 3, (2 * groups, shape[0] // groups, *kernel)).astype(float)
    t, w = (torch.from_numpy(x).requires_grad_() for x in (times[None], weight))
    spikes = first_spike_conv2d(t, w, IF(4.0, delay=1), t_max=t_max, backend="cpu", **geometry)
    grad = random.integers(-2, 3, spikes.shape).astype(float)
    found = torch.autograd.grad(spikes, (t, w), torch.from_numpy(grad))

    seen, padded = patches(times, kernel, geometry["stride"], geometry["dilation"], (0, 0), groups)
    of_times, of_weight = np.zeros(padded.size), np.zeros_like(weight)
    rows, out = np.split(of_weight, groups), spikes[0].detach().flatten(1).numpy()
    for g, indices in enumerate(seen):
        matrix, outputs = np.split(weight, groups)[g], slice(2 * g, 2 * g + 2)
        for place, index in enumerate(indices):
            errors = grad[0].reshape(len(out), -1)[outputs, place]
            a, b = latency_gradients(
                padded.reshape(-1)[index],
                matrix.reshape(2, -1),
                out[outputs, place],
                1,
                errors,
                t_max,
            )
            rows[g] += a.reshape(matrix.shape)
            np.add.at(of_times, index, b)
    np.testing.assert_array_equal(found[0][0].numpy(), of_times.reshape(times.shape))
    np.testing.assert_array_equal(found[1].numpy(), of_weight)


@pytest.mark.parametrize("along", [(0, 1), (1, 0)], ids=["along errors", "along spikes"])
@pytest.mark.parametrize("factors", [1, 2])
@pytest.mark.parametrize(("groups", "channels", "out", "dilation"), [(1, 3, 5, 1), (2, 40, 80, 2)])
def test_both_directions_are_the_reference(monkeypatch, along, factors, groups, channels, out, dilation):
    """Few and many errors, few and many spikes: whichever way is taken."""
    monkeypatch.setattr(conv2d_gradients, "compare_directions", lambda *_: along)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    times, weight = draw(3, channels, 11, 9).abs() * 9, draw(out, channels // groups, 3, 3)
    times[times > 8] = INF
    geometry = Geometry([1, 2], [dilation, dilation], groups)
    shape = geometry.output_shape(times, weight)
    p, until = draw(*shape), draw(*shape).abs() * 9
    p[draw(*shape) < 0.3], until[draw(*shape) > 1] = 0, math.nan
    others = (draw(*shape), until, draw(*times.shape), draw(*times.shape))
    given = Factors(p, *(others if factors == 2 else (None, until)))
    for found, expected in (
        (kernel(cpu), kernel(reference))
        for kernel in (
            lambda backend: backend.weight_grad(given, times, [3, 3], geometry),
            lambda backend: backend.input_grad(given, times, weight, geometry),
        )
    ):
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_cheaper_direction_is_taken():
    """Errors of one output in a hundred, or of all of them where one input in ten spikes."""
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(2, 16, 12, 12, generator=generator)
    until, error = torch.ones(2, 100, 32), torch.rand(2, 100, 32, generator=generator)
    for share_of_spikes, share_of_errors, along_errors in ((1.0, 0.01, True), (0.1, 1.0, False)):
        spikes = times.masked_fill(times > share_of_spikes, INF)
        factors = Factors(error * (error < share_of_errors), None, until)
        found = conv2d_gradients.prepared(factors, spikes, [3, 3], Geometry([1, 1], [1, 1]))
        assert found.along_errors == along_errors


def test_silence_makes_no_tile_spike():
    times = torch.full((2, 3, 40, 40), INF)
    times[1, 2, 39, 39] = 5
    spikes, potential = first_spike_conv2d(
        times, torch.ones(20, 3, 3, 3), IF(0.5), t_max=8, return_potential=True, backend="cpu"
    )
    expected = torch.full_like(spikes, INF)
    expected[1, :, 37, 37] = 5
    torch.testing.assert_close(spikes, expected, rtol=0, atol=0)
    torch.testing.assert_close(potential, expected.isfinite().float(), rtol=0, atol=0)


@pytest.mark.parametrize("case", ["one word", "more than 64 spikes"])
def test_times_of_currents_come_in_order(case):
    shape, kernel, geometry = CASES[case]
    random = np.random.default_rng(2)
    times = random.random(shape) * 3
    times[random.random(shape) < 0.5] = INF
    weight, neuron = random.normal(0.1, 0.4, (3, shape[0], *kernel)), ExpPSP()
    found = first_spike_conv2d(
        torch.from_numpy(times[None]), torch.from_numpy(weight), neuron, t_max=4.0, backend="cpu", **geometry
    )
    (indices,), padded = patches(times, kernel, geometry["stride"], geometry["dilation"], (0, 0), 1)
    for place in (0, len(indices) // 2, len(indices) - 1):
        seen = padded.reshape(-1)[indices[place]]
        expected, _ = crossing_in_continuous_time(seen, weight.reshape(3, -1), None, neuron, 4.0)
        np.testing.assert_allclose(found[0].flatten(1)[:, place].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_tiles_cover_all_locations(case):
    (channels, *size), kernel, geometry = CASES[case]
    times, weight = torch.zeros(1, channels, *size), torch.empty(1, channels // geometry["groups"], *kernel)
    tiles = compiled.tiles_of(times, weight, Geometry(*geometry.values()))
    covered = np.add.outer(tiles.location, tiles.after)
    (indices, *_), _ = patches(
        times[0].numpy(), kernel, geometry["stride"], geometry["dilation"], (0, 0), geometry["groups"]
    )
    assert set(covered.reshape(-1)) == set(range(len(indices)))
    assert tiles.position.size <= compiled.MOST_INPUTS or tiles.after.size == 1


@nb.njit
def _lowest_and_count(word):
    return trailing_zeros(word), count_ones(word)


def test_sets_of_bits():
    for word in (1, 0b1010, 1 << 63, 2**64 - 1, (1 << 63) + 8):
        bits = [k for k in range(64) if word >> k & 1]
        assert _lowest_and_count(np.uint64(word)) == (bits[0], len(bits))
    assert _lowest_and_count(np.uint64(0)) == (64, 0)


@nb.njit
def _above(a, limit):
    return bits_of(load(a, 0, 32) > splat(limit, 32))


@nb.njit
def _both_above(a, limit):
    none = splat(limit, 32)
    return bits_of(load_where(load(a, 0, 32) > none, a, 8, none) > none)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_lanes_of_a_mask(dtype):
    a, limit = np.random.default_rng(0).normal(size=40).astype(dtype), dtype(0.2)
    expected = a[:32] > limit
    for found in (_above, _both_above):
        np.testing.assert_array_equal([found(a, limit) >> k & 1 for k in range(32)], expected)
        expected = expected & (a[8:] > limit)
