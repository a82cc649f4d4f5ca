"""The Triton kernels against the reference: on a GPU if there is one, else in Triton's interpreter.

The interpreter has to be asked for before triton is imported, so that it runs in a process of its own.
"""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from continuous_examples import CAUSAL, GEOMETRIES, random_image, random_layer, tensors
from marks import DTYPES, in_both_precisions

from ssnn_plugin import IF, LIF, ReLPSP, WindowedRamp
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.kernels.backends import BACKENDS, select

pytestmark = pytest.mark.skipif(not BACKENDS["triton"].installed, reason="needs triton")

INF, NAN = math.inf, math.nan
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
NEURONS = [*CAUSAL, LIF(0.4, tau_mem=3.0)]

# The interpreter compiles nothing: either precision takes as long.
in_each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
of_kernels = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs in the interpreter")
without_gpu = pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="runs in this process")


@without_gpu
@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(marked):
    """The tests below that are marked as this one is."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-m", marked, "-k", "not interpreter", __file__]
    found = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout


@without_gpu
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_the_kernels_compile_for_gpus_without_atomic_operations(tmp_path, architecture):
    """What is launched is compiled in full, for a GPU that is not there."""
    script = Path(__file__).with_name("triton_compiled.py")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, script, architecture], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert {name for name, *_ in lines} == {
        "_find_events", "_rank_events", "_fire", "_fire_with_drift", "_weight_grad", "_input_grad",
    }  # fmt: skip
    assert all(int(registers) < 200 and atomics == "0" for _, registers, atomics in lines)


def outcome(backend, layer, inputs, neuron, t_max, silent_gradient=False, **geometry):
    """Times, potentials, and the gradients of a random cost."""
    device = DEVICE if backend == "triton" else "cpu"
    times, weight, bias = (x if x is None else x.to(device).detach().requires_grad_() for x in inputs)
    outputs = layer(
        times, weight, neuron, bias=bias, t_max=t_max, backend=backend, return_potential=True,
        silent_gradient=silent_gradient, **geometry,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randint(-2, 3, o.shape, generator=generator).to(device, o.dtype) for o in outputs]
    wanted = [x for x in (times, weight, bias) if x is not None]
    return [x.detach().cpu() for x in (*outputs, *torch.autograd.grad(outputs, wanted, grads))]


def both(*args, **kwargs):
    return zip(outcome("triton", *args, **kwargs), outcome("reference", *args, **kwargs), strict=True)


def whole_numbers(dtype, shape, kernel, seed=0):
    """Times of few bins, so that there are ties, some silent or after the window; weights and a bias."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.randint(0, 9, shape, generator=generator).to(dtype)
    times[times == 8] = INF
    weight = torch.randint(-2, 4, kernel, generator=generator).to(dtype)
    return times, weight, torch.randint(-1, 2, kernel[:1], generator=generator).to(dtype)


STEPS = [
    (IF(3.0), False), (IF(0.0, delay=2), False), (IF(3.0, delay=1, beta=0.5), False),
    (IF(3.0, delay=1), True), (IF(1.5, beta=0.5), True), (IF(1.0, beta=0.0), True),
]  # fmt: skip


@of_kernels
@pytest.mark.parametrize(("neuron", "with_bias"), STEPS, ids=str)
@in_both_precisions
def test_whole_weights_give_equal_spikes_and_gradients(neuron, with_bias, dtype):
    times, weight, bias = whole_numbers(dtype, (5, 11), (6, 11))
    times[0] = INF
    inputs = times, weight, bias if with_bias else None
    pairs = list(both(first_spike_linear, inputs, neuron, 7, silent_gradient=with_bias))
    assert 0.1 < pairs[0][1].isfinite().double().mean() < 0.95
    for ours, reference in pairs:
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, reference, rtol=0, atol=0)


@of_kernels
@pytest.mark.parametrize("neuron", [IF(0.5), IF(0.5, beta=0.9)], ids=repr)
@in_both_precisions
def test_any_weights_give_equal_spikes(neuron, dtype):
    generator = torch.Generator().manual_seed(1)
    times = torch.randint(0, 30, (2, 14), generator=generator).to(dtype)
    weight = (torch.randn(130, 14, generator=generator, dtype=torch.float64) / 5).to(dtype)
    ours, reference = zip(*both(first_spike_linear, (times, weight, None), neuron, 24), strict=True)
    assert 0.1 < reference[0].isfinite().double().mean() < 0.9
    assert torch.equal(ours[0], reference[0])
    for one, other in zip(ours[1:], reference[1:], strict=True):
        torch.testing.assert_close(one, other)


@of_kernels
@pytest.mark.parametrize(
    ("neuron", "dtype", "with_bias"),
    [
        pytest.param(neuron, dtype, with_bias, marks=[] if (dtype, with_bias) == plain else pytest.mark.slow)
        for neuron, plain in zip(NEURONS, itertools.cycle([(torch.float32, True), (torch.float64, False)]))
        for dtype in (torch.float32, torch.float64)
        for with_bias in (True, False)
    ],
    ids=repr,
)
def test_neurons_in_continuous_time(neuron, with_bias, dtype):
    times, weight, bias, t_max = random_layer(3, dtype=torch.zeros(0, dtype=dtype).numpy().dtype)
    inputs = tensors(times, weight, bias if with_bias else None, dtype=dtype)
    pairs = list(both(first_spike_linear, inputs, neuron, t_max))
    assert 0.1 < pairs[0][1].isfinite().double().mean() < 0.95
    assert_close(pairs, dtype)


def assert_some_fire(pairs, dtype):
    """Some neurons do, and some are silent; and nothing has changed its precision."""
    assert 0.1 < pairs[0][1].isfinite().double().mean() < 0.95
    assert all(ours.dtype == reference.dtype == dtype for ours, reference in pairs)


def assert_close(pairs, dtype):
    for ours, reference in pairs:
        scale = 1 + reference[reference.isfinite()].abs().max().item()
        tolerance = 1e-4 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance * scale)


SMALL = {"stride": (1, 1), "padding": 0, "dilation": (1, 1), "groups": 1}


@of_kernels
@pytest.mark.parametrize("geometry", [SMALL, *(pytest.param(g, marks=pytest.mark.slow) for g in GEOMETRIES)])
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, pytest.param(torch.channels_last, marks=pytest.mark.slow)]
)
@in_each_dtype
def test_convolutions_of_steps(geometry, layout, dtype):
    groups = geometry["groups"]
    for neuron, with_bias in ((IF(4.0, delay=1), False), (IF(2.0, beta=0.5), True)):
        inputs = whole_numbers(dtype, (2, 4, 4, 4), (8, 4 // groups, 3, 2), seed=2)
        times, weight = (x.contiguous(memory_format=layout) for x in inputs[:2])
        given = times, weight, inputs[2] if with_bias else None
        pairs = list(both(first_spike_conv2d, given, neuron, 7, silent_gradient=with_bias, **geometry))
        assert_some_fire(pairs, dtype)
        for ours, reference in pairs:
            torch.testing.assert_close(ours, reference, rtol=0, atol=0)


@of_kernels
@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
@in_each_dtype
def test_convolutions_in_continuous_time(neuron, dtype):
    *inputs, t_max = random_image(7, dtype, batch=1, channels=2, out=4)
    pairs = list(both(first_spike_conv2d, inputs, neuron, t_max, **SMALL | {"stride": (3, 2)}))
    assert_some_fire(pairs, dtype)
    assert_close(pairs, dtype)


@of_kernels
@pytest.mark.slow
@pytest.mark.parametrize(("neuron", "geometry"), list(zip(NEURONS, GEOMETRIES * 2, strict=True)), ids=str)
@in_each_dtype
def test_convolutions_of_every_geometry_in_continuous_time(neuron, geometry, dtype):
    *inputs, t_max = random_image(7, dtype, batch=1, groups=geometry["groups"])
    assert_close(both(first_spike_conv2d, inputs, neuron, t_max, **geometry), dtype)


@of_kernels
@pytest.mark.slow
@pytest.mark.parametrize("neuron", [IF(3.0), IF(3.0, beta=0.5), ReLPSP(3.0)], ids=repr)
def test_parts_of_the_rows_and_of_the_sums_and_torchs_sort_change_nothing(monkeypatch, neuron):
    from ssnn_plugin.kernels import triton
    from ssnn_plugin.kernels.triton import events, gradients

    times, weight, _ = whole_numbers(torch.float64, (2, 4, 2, 3), (6, 2, 2, 2))
    how = first_spike_conv2d, (times, weight, None), neuron, 7
    whole = outcome("triton", *how, groups=2)
    monkeypatch.setattr(triton, "LEAST_BYTES", 5 * events.bytes_of_row(8))
    monkeypatch.setattr(gradients, "ROWS_OF_A_PART", 2)
    for ours, expected in zip(outcome("triton", *how, groups=2), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(events, "MOST_RANKED", 4)
    channels_last = times.contiguous(memory_format=torch.channels_last), weight, None
    for ours, expected in zip(
        outcome("triton", how[0], channels_last, *how[2:], groups=2), whole, strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@of_kernels
def test_tensors_on_the_cpu_take_it_only_where_it_is_asked_for():
    if DEVICE == "cpu":
        assert select(None, torch.device("cpu"), torch.float32, IF()) == "cpu"
    times, weight = torch.zeros(1, 1, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    assert first_spike_linear(times, weight, IF(0.5), t_max=8, backend="triton").item() == 0


@of_kernels
def test_a_window_too_long_for_tables_of_the_leak_is_left_to_the_reference(monkeypatch):
    from ssnn_plugin.kernels import triton

    times, weight, bias = whole_numbers(torch.float64, (2, 5), (3, 5))
    expected = outcome("triton", first_spike_linear, (times, weight, bias), IF(3.0, beta=0.5), 7)
    monkeypatch.setattr(triton, "MOST_BINS", 6)
    monkeypatch.setattr(triton, "_fire", None)
    found = outcome("triton", first_spike_linear, (times, weight, bias), IF(3.0, beta=0.5), 7)
    for ours, other in zip(found, expected, strict=True):
        assert torch.equal(ours, other)


@of_kernels
@pytest.mark.parametrize("neuron", [IF(1.0), IF(1.0, beta=0.5), ReLPSP()], ids=repr)
@pytest.mark.parametrize("odd", [NAN, pytest.param(INF, marks=pytest.mark.slow)])
def test_weights_that_no_spike_reads_do_not_matter(neuron, odd):
    """Of silent inputs, of inputs after the window, and after all outputs have fired."""
    times = torch.tensor([[0.0, INF, 8.0, *[7.0] * 6]], device=DEVICE)
    weight = torch.tensor([[5.0, odd, odd, 0.0, *[odd] * 5]], device=DEVICE)
    assert first_spike_linear(times, weight, neuron, t_max=8, backend="triton").isfinite().all()


@of_kernels
@pytest.mark.parametrize("neuron", [IF(1.0), IF(1.0, beta=0.5), ReLPSP()], ids=repr)
def test_bad_times_and_nan_potentials_are_refused(neuron):
    weight = torch.full((2, 3), 0.1, device=DEVICE)
    for odd in (NAN, -1.0):
        times = torch.tensor([[0.0, odd, 1.0]], device=DEVICE)
        with pytest.raises(ValueError, match="times must hold spike times >= 0"):
            first_spike_linear(times, weight, neuron, t_max=8, backend="triton")
    weight[1, 1] = NAN
    with pytest.raises(ValueError, match="weight or bias holds NaN"):
        first_spike_linear(torch.zeros(1, 3, device=DEVICE), weight, neuron, t_max=8, backend="triton")


@of_kernels
@pytest.mark.parametrize("neuron", [IF(), IF(beta=0.5), ReLPSP(), WindowedRamp(start=2.0)], ids=repr)
def test_an_empty_batch(neuron):
    outputs = outcome("triton", first_spike_linear, (torch.zeros(0, 3), torch.ones(4, 3), None), neuron, 8)
    assert [output.shape for output in outputs] == [(0, 4), (0, 4), (0, 3), (4, 3)]
    assert not outputs[3].any()
