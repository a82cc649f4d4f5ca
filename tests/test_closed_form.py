"""IF neurons with a bias or a leak: the closed form between two inputs settles on the right bin."""

import math
import signal

import numpy as np
import pytest
import torch
from if_examples import as_tensor, simulate
from marks import BACKEND_NAMES, in_both_precisions, on_every_backend
from naive import first_spikes

from ssnn_plugin import IF
from ssnn_plugin.functional import first_spike_linear

INF = math.inf


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("t_max", "beta"),
    [
        (1, 0.9),
        (20, 1.0),
        (20, 0.9),
        (256, 0.99),
        (256, 0.9),
        (256, 1 - 1e-9),
        (100_000, 1.0),
        (100_000, 0.9999),
    ],
)
def test_real_weights_give_the_same_times_in_double_precision(t_max, beta, bias):
    random = np.random.default_rng(0)
    times = random.integers(0, t_max + math.ceil(t_max / 10), (40, 60)).astype(float)
    times[0], times[:, ::7] = INF, times[:, :1]
    weight = random.normal(0.3, 1.0, (30, 60))
    current = random.normal(0.0, 5 / t_max, 30) if bias else None
    neuron = IF(5.0, delay=min(1, t_max - 1), beta=beta)
    found = [
        first_spike_linear(
            as_tensor(times),
            as_tensor(weight),
            neuron,
            t_max=t_max,
            bias=as_tensor(current),
            return_potential=True,
            backend=backend,
        )
        for backend in BACKEND_NAMES
    ]
    assert 0.1 < found[0][0].isfinite().double().mean() < 0.95
    for spikes, potential in found[1:]:
        assert torch.equal(spikes, found[0][0])
        torch.testing.assert_close(potential, found[0][1], rtol=1e-12, atol=1e-12)
    if t_max <= 256:
        spikes, potential = simulate(times[:4], weight, current, neuron, t_max)
        np.testing.assert_array_equal(found[0][0][:4].numpy(), spikes)
        np.testing.assert_allclose(found[0][1][:4].numpy(), potential, rtol=1e-11, atol=1e-11)


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize(
    ("beta", "bias", "threshold", "event", "spike", "level"),
    [
        (1.0, 1.0, 3.0, None, 3.0, 4.0),
        (1.0, 0.5, 127.5, None, 255.0, 128.0),
        (1.0, 0.5, 128.0, None, INF, 128.0),
        (0.5, 1.25, 2.0, (0.0, -8.0), 5.0, 2.2109375),
        (0.5, 1.0, 1.75, (4.0, -3.0), 3.0, 1.875),
        (0.5, None, 3.0, (4.0, 3.0), INF, 0.0),
        # The potential at rest is the threshold itself.
        (0.5, 1.0, 2.0, None, INF, 2.0),
        (0.75, 1.0, 4.0, (9.0, -1.0), INF, 4.0),
        (0.0, 2.0, 2.0, None, INF, 2.0),
        # Nothing is left of the bin before.
        (0.0, 2.5, 2.0, None, 0.0, 2.5),
        (0.0, -1.0, 1.5, (4.0, 3.0), 4.0, 2.0),
        (0.0, -1.0, 2.0, (4.0, 3.0), INF, -1.0),
        (0.0, None, 0.0, (255.0, 0.5), 255.0, 0.5),
        # The leak takes 5e-6 off the 100 that it would be in bin 99.
        (1 - 1e-9, 1.0, 100.0, None, 100.0, 100.99999495),
        (1 - 1e-9, 1.0, 99.5, None, 99.0, 99.99999505),
        (1 - 1e-15, 1.0, 199.5, (7.0, 100.0), 99.0, 200.0),
        # The closed form comes out a bin too late, or too early.
        (1 - 2**-53, 1.0, 99.5, None, 99.0, 100.0),
        (1 - 2**-53, 0.7, 50.5, None, 72.0, 51.1),
    ],
)
def test_the_closed_form_settles_on_the_right_bin(backend, dtype, beta, bias, threshold, event, spike, level):
    time, weight = event or (INF, 1.0)
    found, potential = first_spike_linear(
        torch.tensor([[time, INF]], dtype=dtype),
        torch.tensor([[weight, 50.0]], dtype=dtype),
        IF(threshold, beta=beta),
        t_max=256,
        bias=None if bias is None else torch.tensor([bias], dtype=dtype),
        return_potential=True,
        backend=backend,
    )
    assert found.item() == spike
    assert potential.item() == pytest.approx(level, rel=3e-7 if dtype == torch.float32 else 1e-12, abs=1e-9)


@on_every_backend
@in_both_precisions
@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("event", [0.0, -2.0])
def test_a_potential_that_only_reaches_the_threshold_fires_a_bin_later(backend, dtype, event, beta):
    """The potentials of the first ten bins are exact in either precision; each is the threshold once."""
    times, weight, bias = np.zeros(1), np.array([[event]]), np.ones(1)
    level = event
    for _ in range(10):
        level += 1
        if level >= 0:
            expected, _ = first_spikes(times, weight, level, 0, 16, bias, beta)
            found = first_spike_linear(
                as_tensor(times, dtype),
                as_tensor(weight, dtype),
                IF(level, beta=beta),
                t_max=16,
                bias=as_tensor(bias, dtype),
                backend=backend,
            )
            assert found.item() == expected.item(), level
        level *= beta


@pytest.fixture
def alarm():
    """An endless loop is a failure, not a hang."""

    def ring(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs an alarm")
@pytest.mark.usefixtures("alarm")
@on_every_backend
@pytest.mark.parametrize(
    ("dtype", "beta", "weight", "bias", "threshold", "spike"),
    [
        (torch.float32, 0.75, 0.7878137230873108, 0.7245817184448242, 2.8983266353607178, 55),
        (torch.float64, 0.75, 1.777266224221964, 0.7162829081467329, 2.8651316325869307, 118),
    ],
)
def test_rounding_near_rest_does_not_keep_the_closed_form_from_settling(
    backend, dtype, beta, weight, bias, threshold, spike
):
    """The input's part of V falls while that of the bias rises: the rounded sum goes up and down.

    `spike` is the crossing in exact arithmetic, and rounding may move it by a few bins.
    """
    found = first_spike_linear(
        torch.zeros(1, 1, dtype=dtype),
        torch.tensor([[weight]], dtype=dtype),
        IF(threshold, beta=beta),
        t_max=256,
        bias=torch.tensor([bias], dtype=dtype),
        backend=backend,
    )
    assert found.item() == pytest.approx(spike, abs=8)
