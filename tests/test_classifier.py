"""SpikeClassifier and its scaling, against plain torch on the same features."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ssnn_plugin import decode, metrics
from ssnn_plugin.nn import MinMaxScaling, SpikeClassifier


def _data(n=60, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.rand(n, 1, 3, 4, generator=generator) * 0.5
    for c in range(classes):
        images[labels == c, 0, c] += 0.6
    return images, labels


def _classifier(hidden=(16,), **options):
    return SpikeClassifier(nn.Flatten(), 12, classes=3, hidden=hidden, **options)


def test_it_learns_batches_and_predicts():
    images, labels = _data()
    batches = list(zip(images.split(25), labels.split(25), strict=True))
    classifier = _classifier().fit(batches, steps=200, learning_rate=1e-2)
    test, expected = _data(seed=1)
    assert (classifier.predict(test) == expected).float().mean() > 0.95
    times, potential = classifier(test, return_potential=True)
    assert times.shape == potential.shape == (60, 3)
    assert metrics.accuracy(times, expected, potential=potential, tie="potential") > 0.95


@pytest.mark.parametrize("hidden", [(), (16,), (16, 8), (12,)])
def test_the_first_spikes_are_those_of_a_relu_network(hidden):
    images, labels = _data()
    classifier = _classifier(hidden).fit([(images, labels)], steps=60, learning_rate=1e-2)
    x = classifier.scaling(images.flatten(1))
    for layer in list(classifier.layers)[:-1]:
        x = nn.functional.linear(x, layer.weight, layer.bias).clamp(0, 5)
    logits = nn.functional.linear(x, classifier.layers[-1].weight, classifier.layers[-1].bias)
    times = classifier(images)
    end = classifier.layers[-1].t_max
    expected = torch.where(logits > 0, end - logits, torch.inf)
    torch.testing.assert_close(times, expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(classifier.predict(images), logits.argmax(1))


def test_fitting_tells_of_every_step_and_starts_anew():
    images, labels = _data()
    seen = []
    first = _classifier().fit(
        [(images, labels)], steps=20, seed=3, progress=lambda step, loss: seen.append((step, loss))
    )
    assert [step for step, _ in seen] == list(range(1, 21))
    assert np.isfinite([loss for _, loss in seen]).all()
    other = _classifier().fit([(images, labels)], steps=20, seed=4)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)
    before = copy.deepcopy(first.state_dict())
    first.fit([(images, labels)], steps=20, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


def test_the_same_seed_gives_the_same_network_and_leaves_torchs_alone():
    images, labels = _data()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (_classifier(dropout=0.3) for _ in range(2))
    torch.manual_seed(5)
    for classifier in (first, second):
        classifier.fit([(images, labels)], steps=20, seed=3)
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_extractor_is_frozen_and_stays_in_evaluation_mode():
    extractor = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    classifier = SpikeClassifier(extractor, 12, classes=3).fit([_data()], steps=5)
    classifier.train()
    assert not extractor.training
    for name, value in extractor.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_price_on_spikes_makes_them_few():
    images, labels = _data()
    spikes = []
    for price in (0.0, 0.05):
        classifier = _classifier(spike_price=price).fit([(images, labels)], steps=300, learning_rate=1e-2)
        inputs, hidden, outputs = classifier.spike_times(images)
        assert inputs.shape == (60, 12)
        assert outputs.shape == (60, 3)
        spikes.append(hidden.isfinite().float().mean().item())
    assert spikes[1] < 0.7 * spikes[0]


def test_a_state_dict_holds_the_ranges_too():
    images, labels = _data()
    classifier = _classifier().fit([(images, labels)], steps=20)
    other = _classifier()
    other.load_state_dict(classifier.state_dict())
    assert torch.equal(other(images), classifier(images))


def test_use_before_fit_is_refused():
    with pytest.raises(RuntimeError, match="call fit first"):
        _classifier().predict(_data()[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "at least one batch"),
        ([(torch.rand(4, 12), torch.tensor([1, 1, 1, 1]))], r"at least two classes, got \[1\] alone"),
        ([(torch.rand(2, 12), torch.tensor([0, 3]))], "0 ... 2, got 3"),
        ([(torch.rand(2, 11), torch.tensor([0, 1]))], "in_features must be .* 11 per image, got 12"),
        ([(torch.full((2, 12), torch.nan), torch.tensor([0, 1]))], "x must be finite"),
    ],
)
def test_data_that_teaches_nothing_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        _classifier().fit(data, steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"spike_price": -1.0}, "spike_price"), ({"window": 0.0}, "window"), ({"dropout": 1.0}, "dropout")],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _classifier(**options)
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        SpikeClassifier(nn.Flatten(), 12, classes=1)


def test_it_exports_as_a_graph_for_any_batch():
    images, labels = _data()
    classifier = _classifier().fit([(images, labels)], steps=20)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(classifier, (images,), dynamic_shapes=({0: batch},))
    other, _ = _data(n=17, seed=1)
    times = classifier(other)
    assert times.isfinite().any()
    assert torch.equal(program.module()(other), times)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_count_as_tensors(dtype):
    images, labels = _data()
    expected = _classifier().fit([(images, labels)], steps=20)
    arrays = images.numpy().astype(dtype)
    classifier = _classifier().fit([(arrays, labels.numpy())], steps=20)
    assert torch.equal(classifier.predict(arrays), expected.predict(images))
    assert torch.equal(classifier(arrays[:, :, ::-1]), expected(images.flip(2)))
    times, potential = classifier(arrays, return_potential=True)
    assert times.dtype == potential.dtype == torch.float32


@pytest.mark.parametrize("images", [[[0.5] * 12], "image.png", None])
def test_what_is_no_image_is_named(images):
    classifier = _classifier().fit([_data()], steps=2)
    with pytest.raises(
        TypeError, match=f"images must be a tensor or a NumPy array, got {type(images).__name__}"
    ):
        classifier.predict(images)
    with pytest.raises(TypeError, match="labels must be a tensor or a NumPy array, got list"):
        classifier.fit([(_data()[0], _data()[1].tolist())], steps=2)


def test_scaling_clips_and_ignores_what_does_not_vary():
    scaling = MinMaxScaling(3).fit(torch.tensor([[-1.0, 2.0, 0.0], [3.0, 2.0, 8.0]]))
    scaled = scaling(torch.tensor([[1.0, 9.0, -4.0], [5.0, 2.0, 2.0]]))
    assert scaled.tolist() == [[0.5, 0.0, 0.0], [1.0, 0.0, 0.25]]
    with pytest.raises(ValueError, match=r"\[batch, 3\], got \[2, 2\]"):
        scaling(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="at least one sample"):
        scaling.fit(torch.zeros(0, 3))


def test_scaling_takes_the_whole_range_of_the_dtype():
    scaling = MinMaxScaling(2).fit(torch.tensor([[-3e38, 1.0], [3e38, 3.0]]))
    scaled = scaling(torch.tensor([[3e38, 2.0], [0.0, 3e38], [-3e38, -3e38]]))
    assert scaled.tolist() == [[1.0, 0.5], [0.5, 1.0], [0.0, 0.0]]


def test_it_runs_under_autocast_as_without():
    images, labels = _data()
    classifier = _classifier().fit([(images, labels)], steps=5)
    times, potential = classifier(images, return_potential=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = classifier(images, return_potential=True)
    assert torch.equal(half[0], times)
    assert torch.equal(half[1], potential)


def test_decisions_tell_when_and_after_how_many_spikes():
    images, labels = _data()
    classifier = _classifier().fit([(images, labels)], steps=60, learning_rate=1e-2)
    decision = classifier.train().decide(images)
    assert classifier.training
    times, potential = classifier.eval()(images, return_potential=True)
    assert torch.equal(decision.time, times.amin(1))
    assert torch.equal(decision.winner, decode.first_to_fire(times, potential))
    assert torch.equal(decision.winner, classifier.predict(images))
    inputs, hidden, outputs = classifier.spike_times(images)
    until = decision.time.unsqueeze(1)
    expected = [((part <= until) & part.isfinite()).sum(1) for part in (inputs, hidden, outputs)]
    assert torch.equal(decision.spikes, torch.stack(expected, 1))


def test_modes_are_as_they_were_after_a_decision_that_failed_or_not():
    images, labels = _data()
    classifier = _classifier().fit([(images, labels)], steps=5)
    frozen = classifier.train().layers[0].eval()
    classifier.predict(images)
    with pytest.raises(TypeError, match="images must be a tensor"):
        classifier.predict("image.png")
    assert classifier.training
    assert not frozen.training


def test_a_range_keeps_no_graph():
    scaling = MinMaxScaling(2).fit(2 * torch.rand(5, 2, requires_grad=True))
    assert not scaling.low.requires_grad
    copy.deepcopy(scaling)
