import copy
import math
import pickle

import pytest
import torch

from ssnn_plugin import IF, functional, metrics, nn

INF = math.inf
LINEAR_TIMES = [[4.0, INF, INF], [1.0, 2.0, INF]]
LINEAR = torch.tensor(LINEAR_TIMES), (3, 4)
CONV = torch.tensor([[[[1.0, INF]], [[INF, INF]]], [[[2.0, 3.0]], [[INF, 0.0]]]]), (2, 3, 2, 2)


def rows_of(weight):
    return [row.flatten().tolist() for row in weight]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3, 3)])
def test_weight_sum_cost_is_that_of_the_naive_loop(shape, reduction):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight.requires_grad_()
    lacking = [max(0.0, 0.5 - sum(row)) for row in rows_of(weight)]
    assert 0 < sum(value > 0 for value in lacking) < len(lacking)
    expected = sum(lacking) / (len(lacking) if reduction == "mean" else 1)
    cost = functional.weight_sum_cost(weight, 0.5, reduction=reduction)
    assert cost.item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda w: functional.weight_sum_cost(w, 0.5, reduction=reduction), weight)


def test_a_neuron_that_can_fire_costs_nothing():
    weight = torch.tensor([[0.75, 0.25], [3.0, -1.0]], requires_grad=True)
    cost = functional.weight_sum_cost(weight, 1.0)
    cost.backward()
    assert cost == 0
    assert not weight.grad[1].any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(3), 1.0), ValueError, r"weight must have shape \[out, in\] or .*, got \[3\]"),
        ((torch.zeros(3, 2), -1.0), ValueError, "threshold must be finite and at least 0, got -1.0"),
        ((torch.zeros(1, 3), torch.ones(2)), ValueError, r"threshold must be .* shape \[1\], got \[2\]"),
        ((torch.zeros(3, 2).half(), 1.0), TypeError, "weight must be float32 or float64, got torch.float16"),
        ((torch.zeros(3, 2).long(), 1.0), TypeError, "weight must be float32 or float64, got torch.int64"),
    ],
)
def test_weight_sum_cost_names_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        functional.weight_sum_cost(*arguments)


def test_weight_sum_cost_names_a_bad_reduction():
    with pytest.raises(ValueError, match="reduction must be one of 'sum', 'mean', got 'none'"):
        functional.weight_sum_cost(torch.zeros(1, 1), 1.0, reduction="none")


@pytest.mark.parametrize(
    ("times", "shape", "silent"),
    [(*LINEAR, [0.0, 0.5, 1.0]), (*CONV, [0.25, 0.75]), (torch.zeros(0, 2), (2, 1), [0.0, 0.0])],
)
def test_no_spike_penalty_pulls_every_weight_of_silent_neurons_alike(times, shape, silent):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight.requires_grad_()
    functional.no_spike_penalty(times, weight).backward()
    for row, fraction in zip(rows_of(weight.grad), silent, strict=True):
        assert row == [-fraction] * len(row)


def test_no_spike_penalty_takes_leading_dimensions():
    weight = torch.zeros(3, 4, requires_grad=True)
    functional.no_spike_penalty(torch.tensor(LINEAR_TIMES).reshape(2, 1, 3), weight).backward()
    assert weight.grad[:, 0].tolist() == [0.0, -0.5, -1.0]


def test_no_spike_penalty_wakes_a_neuron():
    layer = nn.SpikeLinear(2, 1, IF(1.0), t_max=8, init_range=(0.0, 0.0))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    times = torch.tensor([[1.0, 2.0]])
    found = []
    for _ in range(4):
        found.append(layer(times).item())
        optimizer.zero_grad()
        functional.no_spike_penalty(layer(times), layer.weight).backward()
        optimizer.step()
    assert found == [INF, INF, 2.0, 2.0]
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.6, 0.6]]))


@pytest.mark.parametrize("call", [functional.no_spike_penalty, functional.Bump()])
@pytest.mark.parametrize(
    ("times", "weight", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), ValueError, r"times .* \[\*, out\] with out = 4 .* \[2, 3\]"),
        (
            torch.zeros(2, 4),
            torch.zeros(4, 1, 3, 3),
            ValueError,
            r"\[batch, out, height, width\] .* \[2, 4\]",
        ),
        (torch.zeros(4), torch.zeros(4, 5), ValueError, r"times must have shape .*, got \[4\]"),
        (torch.full((1, 4), math.nan), torch.zeros(4, 5), ValueError, "times must hold spike .* NaN"),
        (torch.zeros(2, 4).long(), torch.zeros(4, 5), TypeError, "times must be float32 or float64"),
    ],
)
def test_bad_times_and_weights_are_named(call, times, weight, error, message):
    with pytest.raises(error, match=message):
        call(times, weight)


def test_bump_raises_the_inputs_of_neurons_silent_in_any_sample_and_doubles():
    times, shape = LINEAR
    weight, bump = torch.nn.Parameter(torch.zeros(shape)), functional.Bump(missing=0.4, size=0.25)
    assert [bump(times, weight) for _ in range(3)] == [True] * 3
    assert [row[0] for row in rows_of(weight)] == [0.0, 0.25 + 0.5 + 1.0, 0.25 + 0.5 + 1.0]
    assert all(len(set(row)) == 1 for row in rows_of(weight))
    assert weight.grad is None


def test_bump_starts_over_once_enough_spikes_are_there():
    times, shape = LINEAR
    weight, bump = torch.zeros(shape), functional.Bump(missing=0.4, size=0.25)
    bump(times, weight)
    before = weight.clone()
    assert not bump(torch.zeros(2, 3), weight)
    assert torch.equal(weight, before)
    bump(times, weight)
    assert (weight - before)[1].tolist() == [0.25] * 4


@pytest.mark.parametrize(("missing", "bumped"), [(0.5, False), (0.49, True), (1.0, False)])
def test_bump_waits_for_more_than_a_fraction(missing, bumped):
    times, shape = LINEAR  # 3 of 6 spikes are missing
    assert functional.Bump(missing=missing)(times, torch.zeros(shape)) is bumped


def test_bump_of_a_convolution_reaches_channels_with_a_silent_neuron():
    times, shape = torch.tensor([[[[1.0, 2.0]], [[INF, 3.0]]]]), (2, 3, 2, 2)
    weight = torch.zeros(shape)
    assert functional.Bump(missing=0.2, size=1.0)(times, weight)
    assert not weight[0].any()
    assert (weight[1] == 1).all()


@pytest.mark.parametrize("copied", ["state_dict", "pickle", "deepcopy"])
def test_bump_goes_on_from_its_state(copied):
    times, shape = LINEAR
    bump, weight = functional.Bump(missing=0.1, size=1.0), torch.zeros(shape)
    bump(times, weight)
    bump(times, weight)
    if copied == "state_dict":
        other = functional.Bump(missing=0.1, size=1.0)
        other.load_state_dict(pickle.loads(pickle.dumps(bump.state_dict())))
    else:
        other = pickle.loads(pickle.dumps(bump)) if copied == "pickle" else copy.deepcopy(bump)
    weight.zero_()
    other(times, weight)
    assert weight[2].tolist() == [4.0] * 4
    assert bump.repeats == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"missing": 1.5}, r"missing must be a fraction in 0 \.\.\. 1, got 1\.5"),
        ({"missing": math.nan}, "missing must be a fraction"),
        ({"size": 0.0}, "size must be finite and greater than 0, got 0.0"),
    ],
)
def test_bad_arguments_of_a_bump(arguments, message):
    with pytest.raises(ValueError, match=message):
        functional.Bump(**arguments)


def test_bump_refuses_a_weight_it_could_not_change():
    weight = torch.nn.Parameter(torch.zeros(3, 4)) * 2
    with pytest.raises(ValueError, match="weight must be a parameter"):
        functional.Bump()(LINEAR[0], weight)


def test_silence_counts_are_those_of_a_loop_over_batches():
    generator = torch.Generator().manual_seed(3)
    batches = []
    for size in (3, 1, 4):
        layers = [torch.rand(size, 6, generator=generator), torch.rand(size, 2, 2, 3, generator=generator)]
        layers = [times.masked_fill(times < 0.6, INF) for times in layers]
        layers[0][:, 2] = INF
        layers[1][:, 1, :, 0] = INF
        batches.append(layers)
    counts = metrics.SilenceCounts()
    for layers in batches:
        counts.update(*layers)
    found = counts.compute()
    assert found.samples == 8
    for number in range(2):
        rows = [row.flatten().tolist() for layers in batches for row in layers[number]]
        pairs = [t == INF for row in rows for t in row]
        dead = sum(all(t == INF for t in neuron) for neuron in zip(*rows, strict=True))
        assert found.silent[number] == pytest.approx(sum(pairs) / len(pairs))
        assert found.dead[number] == dead > 0


def test_a_neuron_dead_in_every_batch_but_one_is_not_dead():
    counts = metrics.SilenceCounts()
    for times in (INF, INF, 3.0):
        counts.update(torch.tensor([[times, INF]]))
    assert counts.compute() == metrics.SilenceStatistics(3, (5 / 6,), (1,))
    counts.reset()
    with pytest.raises(RuntimeError, match="call update first"):
        counts.compute()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "layers must hold the times of at least one layer, got none"),
        (
            [torch.zeros(2, 3), torch.zeros(3, 3)],
            r"layers\[1\] must have shape \[2, \*features\], got \[3, 3\]",
        ),
        ([torch.zeros(2)], r"layers\[0\] must have shape \[2, \*features\], got \[2\]"),
        ([torch.full((1, 3), math.nan)], r"layers\[0\] must hold spike times .* NaN"),
        ([torch.zeros(2, 4)], r"layers of \[3\] neurons before, now of \[4\]"),
        ([torch.zeros(2, 3), torch.zeros(2, 3)], r"layers of \[3\] neurons before, now of \[3, 3\]"),
    ],
)
def test_silence_counts_name_what_is_wrong_and_stay_as_they_are(layers, message):
    counts = metrics.SilenceCounts()
    counts.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=message):
        counts.update(*layers)
    assert counts.compute() == metrics.SilenceStatistics(1, (0.0,), (0,))


def test_bumps_without_end_stay_finite():
    bump, weight = functional.Bump(0.0, size=0.5), torch.zeros(1, 1)
    for _ in range(1100):
        assert bump(torch.full((1, 1), INF), weight)
    assert bump.repeats == 1100
    assert weight.item() == pytest.approx(0.5 * (2**30 - 1 + 1070 * 2**30), rel=1e-4)


def test_the_penalty_has_all_digits_under_autocast():
    times = torch.tensor([[math.inf, 1.0], [math.inf, 1.0], [1.0, 1.0]])
    weight = torch.ones(2, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        functional.no_spike_penalty(times, weight).backward()
    torch.testing.assert_close(weight.grad[0], torch.full((3,), -2 / 3))


def test_what_comes_after_the_window_is_silence():
    times = torch.tensor([7.0, 9.0, 300.0, math.inf])
    assert functional.fill_silent(times, 8).tolist() == [7.0, 8.0, 8.0, 8.0]
