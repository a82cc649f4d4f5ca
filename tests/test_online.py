import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from naive import s4nn_step

from ssnn_plugin import online


@pytest.mark.parametrize("sizes", [(12, 5), (12, 8, 4), (12, 7, 6, 3), (20, 90, 41, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
def test_follows_the_published_rule_sample_by_sample(sizes, dtype):
    random = np.random.RandomState(0)
    t_max, gamma, decay = 24, 3.0, 1e-3
    n, depth = 40, len(sizes) - 1
    images = random.randint(0, t_max + 4, (n, sizes[0])).astype(float)
    images[images >= t_max] = np.inf
    images[5] = np.inf
    labels = random.randint(0, sizes[-1], n)
    naive = [random.uniform(0, 5.0, (b, a)) for a, b in pairwise(sizes)]
    ours = [torch.from_numpy(w.copy()).to(dtype) for w in naive]
    thresholds, rates = [6.0, 9.0, 5.0][:depth], [0.2, 0.3, 0.1][:depth]

    fired = [np.zeros(size) for size in sizes[1:]]
    for image, label in zip(images, labels, strict=True):
        layers = s4nn_step(naive, image, label, thresholds, rates, decay, gamma, t_max)
        for count, layer in zip(fired, layers[1:], strict=True):
            count += layer < t_max
    done = online.s4nn_train(
        ours, torch.from_numpy(images), torch.from_numpy(labels), thresholds=thresholds,
        learning_rates=rates, weight_decay=decay, gamma=gamma, t_max=t_max,
    )  # fmt: skip
    for a, b in zip(ours, naive, strict=True):
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(a.numpy(), b, rtol=tolerance, atol=tolerance)
    for a, b in zip(done.spikes, fired, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


def _arguments(**changes):
    arguments = {
        "weights": [torch.rand(3, 4)],
        "times": torch.rand(5, 4),
        "labels": torch.tensor([0, 1, 2, 0, 1]),
        "thresholds": [1.0],
        "learning_rates": [0.1],
        "weight_decay": 0.0,
        "gamma": 1.0,
        "t_max": 8.0,
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0, 1, 3, 0, 1])}, "labels must lie in 0 ... 2, got 3"),
        ({"times": torch.full((5, 4), float("nan"))}, "times must hold spike times"),
        ({"times": torch.rand(5, 6)}, r"weights\[0\] must have shape \[out, 6\]"),
        ({"thresholds": [1.0, 1.0]}, "thresholds must hold 1 numbers, got 2"),
        ({"gamma": 0.0}, "gamma must be finite and greater than 0"),
        ({"t_max": 0}, "t_max must be finite and greater than 0"),
        ({"t_max": 2.0**25}, r"t_max must be at most 2\*\*24 for float32"),
        ({"dropout": [0.5]}, "dropout must be below 1, and 0 in the last layer"),
        ({"weights": []}, "weights must hold at least one layer"),
        ({"weights": [torch.full((3, 4), float("nan"))]}, r"weights\[0\] must be finite"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite and at least 0"),
        ({"weight_decay": 10.0}, "weight_decay times the learning rate must be below 1"),
        ({"gamma": 9.0}, "gamma must be at most t_max = 8.0, got 9.0"),
        ({"order": torch.tensor([0, 5])}, "order must hold numbers in 0 ... 4, got 0 ... 5"),
        ({"order": torch.tensor([-1])}, "order must hold numbers in 0 ... 4, got -1 ... -1"),
        ({"order": torch.tensor([0.5])}, "order must be a vector of sample numbers"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = _arguments(**changes)
    weights, times, labels = (arguments.pop(key) for key in ("weights", "times", "labels"))
    with pytest.raises(ValueError, match=message):
        online.s4nn_train(weights, times, labels, **arguments)


def test_a_tensor_that_stands_for_two_layers_is_refused():
    weight = torch.rand(4, 4)
    arguments = _arguments(weights=[weight, weight], thresholds=[1.0] * 2, learning_rates=[0.1] * 2)
    weights, times, labels = (arguments.pop(key) for key in ("weights", "times", "labels"))
    with pytest.raises(ValueError, match="a tensor of its own for each layer"):
        online.s4nn_train(weights, times, labels, **arguments)


@pytest.mark.parametrize(
    ("dtype", "exponents"), [(torch.float32, (-76, 0, 50)), (torch.float64, (-600, 0, 600))]
)
def test_hidden_layers_learn_on_any_scale(dtype, exponents):
    def changes(exponent):
        scale, generator = 2.0**exponent, torch.Generator().manual_seed(0)
        weights = [scale * torch.rand(*size, generator=generator).to(dtype) for size in ((6, 8), (3, 6))]
        before = [weight.clone() for weight in weights]
        times = torch.randint(0, 16, (30, 8), generator=generator).to(dtype)
        arguments = {"thresholds": [scale] * 2, "learning_rates": [0.1 * scale] * 2, "weight_decay": 0.0}
        online.s4nn_train(weights, times, torch.arange(30) % 3, gamma=3.0, t_max=16, **arguments)
        return [(after - first) / scale for after, first in zip(weights, before, strict=True)]

    (low, middle, high) = map(changes, exponents)
    for found in (low, high):
        for ours, expected in zip(found, middle, strict=True):
            assert expected.any()
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_what_diverges_says_so():
    arguments = _arguments(learning_rates=[3e38], order=torch.arange(5).repeat(20))
    weights, times, labels = (arguments.pop(key) for key in ("weights", "times", "labels"))
    assert math.isnan(online.s4nn_train(weights, times, labels, **arguments).loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silence_ends_where_the_dtype_has_the_window_end(dtype):
    weight = torch.zeros(2, 2, dtype=dtype)
    arguments = {"thresholds": [100.0], "learning_rates": [1.0], "weight_decay": 0.0, "gamma": 0.1}
    done = online.s4nn_train(
        [weight], torch.tensor([[0.0, 0.1]]), torch.tensor([0]), t_max=100.1, **arguments
    )
    assert weight.tolist() == [[1, 1], [0, 0]], "a silent label learns to fire"
    assert done.accuracy == 0


def test_weights_that_decay_for_long_stay_numbers():
    def train(dtype):
        generator = torch.Generator().manual_seed(0)
        weight = torch.rand(2, 4, generator=generator).to(dtype)
        times = torch.randint(0, 16, (4000, 4), generator=generator).to(dtype)
        labels = torch.randint(0, 2, (4000,), generator=generator)
        arguments = {"thresholds": [1.0], "learning_rates": [0.2], "weight_decay": 0.15, "gamma": 3.0}
        return weight, online.s4nn_train([weight], times, labels, t_max=16, **arguments).accuracy

    (single, of_single), (double, of_double) = train(torch.float32), train(torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)
    assert of_single == pytest.approx(of_double, abs=0.01)


def _a_pass(images, labels, **options):
    """The weights before, those after a pass over the samples, and what it says."""
    random = np.random.RandomState(0)
    before = [random.uniform(0, 5.0, shape) for shape in ((8, 12), (4, 8))]
    after = [torch.from_numpy(weight.copy()) for weight in before]
    done = online.s4nn_train(
        after, torch.from_numpy(images), torch.from_numpy(labels), thresholds=[6.0, 9.0],
        learning_rates=[0.2, 0.3], weight_decay=1e-3, gamma=3.0, t_max=24, **options,
    )  # fmt: skip
    return before, after, done


def _samples(count=40):
    random = np.random.RandomState(1)
    images = random.randint(0, 28, (count, 12)).astype(float)
    images[images >= 24] = np.inf
    return images, random.randint(0, 4, count)


def test_accuracy_and_loss_are_those_of_the_outputs_before_each_step():
    images, labels = _samples()
    weights, _, done = _a_pass(images, labels)
    right, loss = 0, 0.0
    for image, label in zip(images, labels, strict=True):
        outputs = s4nn_step(weights, image, label, [6.0, 9.0], [0.2, 0.3], 1e-3, 3.0, 24)[-1]
        first = outputs.min()
        right += outputs[label] == first < 24
        wanted = np.where(outputs - first < 3, np.minimum(first + 3, 24), outputs)
        wanted[label] = first if first < 24 else 21
        loss += (((wanted - outputs) / 24) ** 2).sum() / 2
    assert 0 < right < 40
    assert done.accuracy == right / 40
    assert done.loss == pytest.approx(loss / 40, rel=1e-9)


def test_samples_are_taken_in_the_order_that_is_given():
    images, labels = _samples()
    order = np.random.RandomState(2).permutation(40)[:30]
    _, ordered, first = _a_pass(images, labels, order=torch.from_numpy(order))
    _, sorted_before, second = _a_pass(images[order], labels[order])
    assert all(map(torch.equal, ordered, sorted_before))
    assert (first.accuracy, first.loss) == (second.accuracy, second.loss)
    _, as_they_come, _ = _a_pass(images, labels)
    assert not torch.equal(ordered[0], as_they_come[0])


def test_dropped_spikes_drive_nothing():
    """Without any hidden spike hidden weights only decay."""
    images, labels = _samples()
    before, _, all_of_them = _a_pass(images, labels)
    _, _, some = _a_pass(images, labels, dropout=[0.5, 0.0])
    _, after, none = _a_pass(images, labels, dropout=[1 - 1e-9, 0.0])
    assert none.spikes[1].sum() == 0 < some.spikes[1].sum() < all_of_them.spikes[1].sum()
    np.testing.assert_allclose(after[0].numpy(), before[0] * (1 - 0.2e-3) ** 40)


def test_counts_that_do_not_fit_weights_are_named():
    with pytest.raises(ValueError, match=r"spikes must have shape \[2\], got \[3\]"):
        online.redraw_dead(torch.zeros(2, 3), torch.zeros(3), 1, 0.0, 1.0, torch.Generator())


def test_dropout_and_order_are_seeded():
    def train(seed):
        torch.manual_seed(0)
        weights = [3 * torch.rand(6, 4, dtype=torch.float64), 3 * torch.rand(3, 6, dtype=torch.float64)]
        times, labels = torch.randint(0, 8, (50, 4)).float(), torch.randint(0, 3, (50,))
        online.s4nn_train(
            weights, times, labels, thresholds=[2.0, 2.0], learning_rates=[0.1, 0.1], weight_decay=0.0,
            gamma=2, t_max=10, order=torch.arange(49, -1, -1), dropout=[0.5, 0.0], seed=seed,
        )  # fmt: skip
        return weights

    first, again, other = train(1), train(1), train(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_redraw_dead_leaves_the_living_alone():
    weight = torch.arange(6.0).reshape(2, 3)
    alive = weight[0].clone()
    count = online.redraw_dead(
        weight, torch.tensor([10, 9]), 10, 100.0, 101.0, torch.Generator().manual_seed(0)
    )
    assert count == 1
    assert torch.equal(weight[0], alive)
    assert (weight[1] >= 100).all()


@pytest.mark.parametrize("seed", [1.5, -1, 2**32, True, "0", None])
def test_a_seed_that_is_none_is_named(seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number in 0 \.\.\. 2\*\*32 - 1, got "):
        online.s4nn_train(
            [torch.ones(1, 1)], torch.zeros(1, 1), torch.tensor([0]), thresholds=[1.0],
            learning_rates=[0.1], weight_decay=0, gamma=1, t_max=8, seed=seed,
        )  # fmt: skip
