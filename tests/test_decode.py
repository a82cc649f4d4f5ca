import math

import pytest
import torch

from ssnn_plugin import decode

INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore::ssnn_plugin.decode.LaterSpikesWarning")
SHAPES = [(), (4,), (0, 3), (3, 5), (2, 3, 4, 4)]


def _times(shape, t_max, dtype=torch.float32):
    times = torch.randint(0, t_max + 1, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return times.masked_fill(times == t_max, INF)


def _train(shape, bins, rate, dtype):
    return (torch.rand((bins, *shape), generator=torch.Generator().manual_seed(0)) < rate).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_times_survive_the_round_trip(shape, dtype):
    times = _times(shape, 7, dtype)
    spikes = decode.times_to_spikes(times, 7)
    assert spikes.shape == (7, *shape)
    assert spikes.dtype == dtype
    back = decode.spikes_to_times(spikes)
    assert back.dtype == dtype
    assert torch.equal(back, times)


def test_a_train_has_one_spike_in_its_bin():
    spikes = decode.times_to_spikes(torch.tensor([0.0, 2.0, 1.75, 3.0, 9.0, INF]), 3)
    assert spikes.tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float32, torch.float64],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_first_spike_of_any_train(shape, dtype):
    train = _train(shape, 5, 0.25, dtype)
    times = decode.spikes_to_times(train)
    assert times.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert times.shape == shape
    columns = train.reshape(5, -1).t().tolist()
    first = [next((t for t, spike in enumerate(column) if spike), INF) for column in columns]
    assert times.flatten().tolist() == first


def test_a_train_may_be_laid_out_batch_first():
    train = _train((3, 4), 6, 0.3, torch.float32)
    batch_first = train.transpose(0, 1).contiguous()
    assert torch.equal(decode.spikes_to_times(batch_first.transpose(0, 1)), decode.spikes_to_times(train))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_of_many_bins_give_exact_times(dtype):
    bins = torch.tensor([255, 257, 511, 4095])
    train = torch.zeros(4096, 4, dtype=dtype).index_put_((bins, torch.arange(4)), torch.ones(4, dtype=dtype))
    train.requires_grad_()
    times = decode.spikes_to_times(train)
    assert times.tolist() == bins.tolist()
    times.sum().backward()
    assert train.grad.dtype == dtype
    assert train.grad.nonzero().tolist() == [[t, i] for i, t in enumerate(bins.tolist())]


def test_the_first_spike_or_the_last_bin_of_a_silent_train_gets_the_gradient():
    train = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], requires_grad=True)
    decode.spikes_to_times(train).backward(torch.tensor([2.0, 3.0, 5.0]))
    assert train.grad.tolist() == [[0, 0, 0], [-2, 0, 0], [0, -3, -5]]


@pytest.mark.parametrize("error", [INF, -INF, math.nan])
def test_what_a_loss_makes_of_an_infinite_time_is_no_gradient(error):
    train = torch.zeros(4, 2, requires_grad=True)
    decode.spikes_to_times(train).backward(torch.full((2,), error))
    assert train.grad.tolist() == [[0.0, 0.0]] * 4


@pytest.mark.parametrize(("silent_gradient", "expected"), [(False, [0, 0, -5]), (True, [-9, -10, -5])])
def test_the_last_bin_may_stand_for_the_time_of_a_silent_neuron(silent_gradient, expected):
    times = torch.tensor([INF, 9.0, 1.0], requires_grad=True)
    spikes = decode.times_to_spikes(times, 4, silent_gradient=silent_gradient)
    spikes.backward(torch.arange(12.0).reshape(4, 3))
    assert times.grad.tolist() == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_the_round_trip_is_the_identity(shape):
    times = _times(shape, 9, torch.float64).requires_grad_()
    error = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    decode.spikes_to_times(decode.times_to_spikes(times, 9)).backward(error)
    assert torch.equal(times.grad, error.masked_fill(times.isinf(), 0))
    times.grad = None
    decode.spikes_to_times(decode.times_to_spikes(times, 9, silent_gradient=True)).backward(error)
    assert torch.equal(times.grad, error)


@pytest.mark.parametrize(
    ("times", "t_max", "error", "message"),
    [
        (torch.tensor([1.0, math.nan]), 4, ValueError, "spike times >= 0.* got NaN"),
        (torch.tensor([-2.0]), 4, ValueError, r"times must hold spike.* a negative time \(-2\.0\)"),
        (torch.tensor([1]), 4, TypeError, "times must be float32 or float64, got torch.int64"),
        (torch.tensor([1.0]).half(), 4, TypeError, "times must be float32 or float64, got torch.float16"),
        (torch.tensor([1.0]), 0, ValueError, "t_max must be a whole number of at least 1, got 0"),
        (torch.tensor([1.0]), 2.5, ValueError, "t_max must be a whole number of at least 1, got 2.5"),
    ],
)
def test_times_to_spikes_names_what_is_wrong(times, t_max, error, message):
    with pytest.raises(error, match=message):
        decode.times_to_spikes(times, t_max)


@pytest.mark.parametrize(
    ("spikes", "message"),
    [
        (torch.tensor(1.0), r"spikes must have shape \[time >= 1, \*\], got \[\]"),
        (torch.zeros(0, 3), r"spikes must have shape \[time >= 1, \*\], got \[0, 3\]"),
        (torch.tensor([[0.0, math.nan]]), "spikes must not hold NaN"),
    ],
)
def test_spikes_to_times_names_what_is_wrong(spikes, message):
    with pytest.raises(ValueError, match=message):
        decode.spikes_to_times(spikes)


DECISIONS = {
    "winner": ([5.0, 3.0, INF], [1.1, 1.2, 0.9]),
    "tie": ([4.0, 4.0, 9.0], [1.2, 1.5, 7.0]),
    "silent": ([INF, INF, INF], [0.3, 0.1, 0.9]),
}


@pytest.mark.parametrize(
    ("tie", "all_silent", "with_potential", "expected"),
    [
        ("first_index", None, False, [1, 0, -1]),
        ("first_index", None, True, [1, 0, 2]),
        ("first_index", "undecided", True, [1, 0, -1]),
        ("potential", None, True, [1, 1, 2]),
        ("potential", "undecided", True, [1, 1, -1]),
        ("unique", None, False, [1, -1, -1]),
        ("unique", None, True, [1, -1, -1]),
        ("unique", "potential", True, [1, -1, 2]),
    ],
)
def test_decision_rules(tie, all_silent, with_potential, expected):
    times, potential = (torch.tensor(values) for values in zip(*DECISIONS.values(), strict=True))
    potential = potential if with_potential else None
    decision = decode.first_to_fire(times, potential, tie=tie, all_silent=all_silent)
    assert decision.tolist() == expected


@pytest.mark.parametrize("tie", decode.TIES)
def test_decision_of_an_empty_batch(tie):
    decision = decode.first_to_fire(torch.zeros(0, 3), torch.zeros(0, 3), tie=tie)
    assert decision.shape == (0,)
    assert decision.dtype == torch.int64


@pytest.mark.parametrize(
    ("times", "potential", "rules", "message"),
    [
        (torch.zeros(1, 2), None, {"tie": "lowest"}, "tie must be one of 'first_index'.* got 'lowest'"),
        (torch.zeros(1, 2), None, {"tie": "unique", "all_silent": "no"}, "all_silent must be .* got 'no'"),
        (torch.zeros(1, 2), None, {}, "potential must be given for tie or all_silent"),
        (torch.zeros(1, 2), None, {"tie": "unique", "all_silent": "potential"}, "potential must be given"),
        (torch.zeros(1, 2), torch.zeros(1, 3), {}, r"potential must have shape \[1, 2\], got \[1, 3\]"),
        (torch.zeros(2), None, {"tie": "unique"}, r"times must have shape .* got \[2\]"),
        (torch.zeros(2, 0), None, {"tie": "unique"}, r"classes >= 1\], got \[2, 0\]"),
        (torch.tensor([[math.nan, 1.0]]), None, {"tie": "unique"}, "times must hold spike times >= 0.* NaN"),
        (torch.tensor([[-1.0, 1.0]]), None, {"tie": "unique"}, r"a negative time \(-1\.0\)"),
    ],
)
def test_decision_names_what_is_wrong(times, potential, rules, message):
    with pytest.raises(ValueError, match=message):
        decode.first_to_fire(times, potential, **rules)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_potential_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="potential must be finite"):
        decode.first_to_fire(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, value]]))


def test_it_decides_under_vmap_and_in_one_graph():
    times, potential = torch.tensor([[[4.0, 4.0, 9.0]], [[math.inf] * 3]]), torch.rand(2, 1, 3)
    expected = torch.stack([decode.first_to_fire(t, v) for t, v in zip(times, potential, strict=True)])
    assert torch.equal(torch.func.vmap(decode.first_to_fire)(times, potential), expected)
    compiled = torch.compile(decode.first_to_fire, fullgraph=True, backend="eager")
    assert torch.equal(compiled(times[:, 0], potential[:, 0]), expected[:, 0])


def test_a_potential_of_whole_numbers_is_named():
    with pytest.raises(TypeError, match=r"potential must be floating, got torch\.int64"):
        decode.first_to_fire(torch.tensor([[1.0, 1.0]]), torch.tensor([[1, 2]]))


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        (torch.zeros(3), r"potential must have shape \[2\], got \[3\]"),
        (torch.tensor([0.0, math.nan]), "potential must not hold NaN"),
    ],
)
def test_a_potential_that_does_not_fit_spikes_is_named(potential, message):
    with pytest.raises(ValueError, match=message):
        decode.spikes_to_times(torch.zeros(3, 2), potential)


def test_sparse_trains_have_the_times_of_dense_ones():
    train = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert decode.spikes_to_times(train.to_sparse()).tolist() == [math.inf, 1.0]


def test_trains_may_be_mapped_over():
    trains = torch.zeros(3, 8, 4)
    trains[1, 5, 2] = 1.0
    assert torch.equal(torch.vmap(decode.spikes_to_times)(trains)[1], decode.spikes_to_times(trains[1]))
