"""The encoder of values and the decoder of spikes."""

import math

import norse.torch as host
import pytest
import torch
from norse_runs import DT, random, random_train
from torch import nn

from ssnn_plugin import decode, encode, verify
from ssnn_plugin.norse import LatencyEncoder, SingleSpikeIF, SpikesToTimesDecoder

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (SpikesToTimesDecoder(t_silent=5, convert_indices_to_times=False), (5, 2, 3), (1, 2, 3)),
        (LatencyEncoder(5), (2, 3), (5, 2, 3)),
    ],
)
def test_encoder_and_decoder_on_the_meta_device(module, shape, expected):
    found = module(torch.empty(shape, device="meta"))
    assert found.shape == expected
    assert found.device.type == "meta"


def test_the_brighter_the_earlier():
    values = torch.tensor([[1.0, 0.75, 0.5, 0.01, 0.0]])
    spikes = LatencyEncoder(4)(values)
    assert spikes.shape == (4, 1, 5)
    assert spikes.nonzero().tolist() == [[0, 0, 0], [1, 0, 1], [2, 0, 2], [3, 0, 3]]
    assert torch.equal(LatencyEncoder(4, x_max=2.0)(2 * values), spikes)
    pixels = torch.randint(0, 256, (2, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    spikes = LatencyEncoder(8, x_max=255)(pixels.to(torch.uint8))
    assert torch.equal(decode.spikes_to_times(spikes), encode.latency(pixels, 8, x_max=255))
    assert LatencyEncoder(4)(values.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0,), "seq_length"), ((2.5,), "seq_length"), ((4, 0.0), "x_max"), ((4, NAN), "x_max")],
)
def test_bad_encoders_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        LatencyEncoder(*arguments)


@pytest.mark.parametrize("bad", [NAN, -0.1, 1.1])
def test_bad_intensities_are_refused(bad):
    with pytest.raises(ValueError, match="x must"):
        LatencyEncoder(4)(torch.tensor([0.5, bad]))


@pytest.mark.parametrize("seconds", [False, True])
@pytest.mark.parametrize("dt", [0.001, 0.25])
def test_without_silence_the_decoder_is_norses(seconds, dt):
    error, outcome = random(1, 4, 6, dtype=torch.float32, seed=1), []
    for decoder in (
        SpikesToTimesDecoder(t_silent=99.0, convert_indices_to_times=seconds, dt=dt),
        host.SpikesToTimesDecoder(convert_indices_to_times=seconds, dt=dt),
    ):
        spikes = random_train(12, 4, 6).requires_grad_()
        times = decoder(spikes)
        times.backward(error)
        outcome.append((times, spikes.grad))
    for a, b in zip(*outcome, strict=True):
        assert a.dtype == b.dtype
        assert b.unique().numel() > 2
        assert torch.equal(a, b)


@pytest.mark.parametrize("seconds", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (6,), (), (2, 3, 5, 5), (0, 3)])
def test_silence_is_decoded_as_t_silent(seconds, shape):
    spikes = (random(12, *shape, low=0, high=1) < 0.1).double().requires_grad_()
    potential = random(*shape, seed=1).requires_grad_()
    unit = DT if seconds else 1.0
    decoder = SpikesToTimesDecoder(t_silent=15 * unit, convert_indices_to_times=seconds)
    steps = torch.arange(12.0).double().reshape(-1, *[1] * len(shape))
    expected = torch.where(spikes > 0, steps, INF).amin(0)
    silent = expected.isinf()
    error = random(1, *shape, seed=2)
    for given_potential in (None, potential):
        times = decoder(spikes, given_potential)
        assert times.shape == (1, *shape)
        torch.testing.assert_close(times[0], expected.clamp(max=15) * unit)
        of_spikes, of_potential = torch.autograd.grad(times, (spikes, potential), error, allow_unused=True)
        read = (steps == expected) | (silent & (steps == 11) if given_potential is None else False)
        torch.testing.assert_close(of_spikes, read * -error * unit)
        if given_potential is None:
            assert of_potential is None
        else:
            torch.testing.assert_close(of_potential, -error[0] * unit * silent)


def test_the_decoder_in_a_sequential_state_gets_the_spikes():
    model = host.SequentialState(SingleSpikeIF(), SpikesToTimesDecoder(t_silent=0.004))
    times, state = model(torch.full((4, 2, 3), 0.6))
    torch.testing.assert_close(times, torch.full((1, 2, 3), 0.001))
    assert state[1] is None


@pytest.mark.parametrize("t_silent", [0, -1.0, NAN, INF])
def test_a_bad_t_silent_is_named(t_silent):
    with pytest.raises(ValueError, match="t_silent"):
        SpikesToTimesDecoder(t_silent=t_silent)


def test_a_t_silent_within_the_window_is_refused():
    spikes = torch.zeros(8, 2, 3)
    for seconds, unit in ((False, 1.0), (True, DT)):
        with pytest.raises(ValueError, match="t_silent must not be before the last step"):
            SpikesToTimesDecoder(t_silent=6.9 * unit, convert_indices_to_times=seconds)(spikes)
    with pytest.raises(ValueError, match="dt"):
        SpikesToTimesDecoder(t_silent=1.0, dt=0.0)


@pytest.mark.parametrize("dt", [0.001, 0.0001, 0.003, 1 / 3])
def test_t_silent_may_be_the_last_step_in_seconds(dt):
    for last in range(1, 300, 37):
        for t_silent in (last * dt, sum([dt] * last), float(f"{last * dt:.12g}")):
            times = SpikesToTimesDecoder(t_silent=t_silent, dt=dt)(torch.zeros(last + 1, 1))
            assert times.item() == pytest.approx(last * dt, rel=1e-6)


@pytest.mark.host_defect
def test_norses_decoder_raises_in_the_backward_pass_with_a_silent_neuron():
    """No thread upstream that we know of."""
    spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]], requires_grad=True)
    times = host.SpikesToTimesDecoder(convert_indices_to_times=False)(spikes)
    assert times.tolist() == [[[0, INF]]]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        times[times.isfinite()].sum().backward()


@pytest.mark.host_defect
def test_norses_decoder_takes_one_shape_on_the_cpu_only():
    """No thread upstream that we know of."""
    decoder = host.SpikesToTimesDecoder()
    with pytest.raises((RuntimeError, ValueError)):
        decoder(torch.ones(4, 6, 2, 3, 3, requires_grad=True)).sum().backward()
    with pytest.raises(RuntimeError, match="meta"):
        decoder(torch.ones(4, 2, 3, device="meta"))


def test_images_are_flattened_in_front_of_an_encoder():
    model = host.SequentialState(nn.Flatten(), LatencyEncoder(8), host.Lift(nn.Linear(8, 6)), SingleSpikeIF())
    nn.init.uniform_(model[2].lifted_module.weight, 0, 0.6, generator=torch.Generator().manual_seed(0))
    report = verify(model, torch.rand(5, 2, 4, generator=torch.Generator().manual_seed(1)), t_max=8)
    assert report.ok
    assert report.silent < report.outputs
