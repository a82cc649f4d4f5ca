"""S2-STDP, its relatives and the features of an STDP convolution, against loops written out by hand."""

import math

import numpy as np
import pytest
import torch

from reproductions import methods
from reproductions.catalog import validated
from reproductions.compiled import competition, stdp_convolution
from reproductions.datasets import Images
from reproductions.errors import SuiteError
from reproductions.features import Features, Pipeline
from reproductions.features.stdp import STDP, STDPConvolution
from reproductions.methods.s2stdp import of_classes

CLASSES, INPUTS = 3, 20


def build(rule="s2stdp", **options):
    training = {
        "epochs": 2,
        "rule": rule,
        "a_plus": 0.05,
        "a_minus": -0.02,
    }
    training |= {"anti_plus": -0.03, "anti_minus": 0.01} if rule == "r-stdp" else {"gap": 0.1}
    network = {"threshold": 1.0, "init": [0.3, 0.1], "per_class": 3, "non_target": 1}
    network |= {key: options.pop(key) for key in list(options) if key in ("normalize_weights", "non_target")}
    content = {
        "method": "tiny",
        "implementation": "s2stdp",
        "dataset": "digits",
        "description": "",
        "validation": 0,
        "encoding": {"kind": "linear", "scale": 1.0},
        "network": network,
        "training": training | options,
    }
    return methods.build(validated(content, "test"), (1, 4, 5), CLASSES, 0, "cpu")


def samples(n=40):
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(n, INPUTS, generator=generator).double().mul(16).floor().div(16)
    silent = torch.rand(n, INPUTS, generator=generator) < 0.3
    return times.masked_fill(silent, math.inf), torch.arange(n) % CLASSES


def fire(times, weight, thresholds):
    """Spike by spike, as the authors' code: a group of equal times counts when the next one begins."""
    out, v = [1.0] * len(thresholds), [0.0] * len(thresholds)
    order = sorted((i for i in range(len(times)) if times[i] < 1), key=lambda i: times[i])
    current = times[order[0]]
    for place, i in enumerate(order):
        if times[i] != current or place == len(order) - 1:
            for j, potential in enumerate(v):
                if out[j] == 1 and potential > thresholds[j]:
                    out[j] = current
            current = times[i]
        for j in range(len(v)):
            if out[j] == 1:
                v[j] += weight[i][j]
    return out, v


def first(candidates, out, v):
    return min(candidates, key=lambda j: (out[j], -v[j], j))


def naive_epoch(method, times, labels):
    """One epoch of the published rules, in plain Python."""
    s, network = method.training, method.settings.network
    per, skip, weight = network.per_class, network.non_target, method.weight.T.copy()
    thresholds, raised = method.thresholds.copy(), method.thresholds.copy()
    accuracy, rate = method.accuracy, s.threshold_rate
    for x, label in zip(np.minimum(times.numpy(), 1.0), labels.tolist(), strict=True):
        targets = range(label * per + skip, (label + 1) * per)
        current = raised.copy() if s.thresholds == "one" else thresholds.copy()
        current[list(targets)] = raised[list(targets)]
        out, v = fire(x.tolist(), weight.tolist(), current)
        best = first(range(len(out)), out, v)
        if rate and len(targets) > 1:
            winner = first(targets, out, v)
            for j in targets:
                raised[j] += rate * (len(targets) - 1) / len(targets) if j == winner else -rate / len(targets)
                if s.thresholds == "two":
                    raised[j] = max(raised[j], network.threshold)
        updated = set(range(len(out)))
        if s.rule == "r-stdp":
            updated = {best}
        elif s.first_of_class:
            updated = {first(range(c * per, (c + 1) * per), out, v) for c in range(CLASSES)}
            out = [t if j in updated else 1.0 for j, t in enumerate(out)]
        count, n_targets = len(updated), 1 if s.first_of_class else per
        fired = [out[j] for j in updated if out[j] < 1]
        errors = {}
        for j in sorted(updated):
            is_target = j in targets
            if s.rule == "r-stdp":
                errors[j] = 1 - accuracy if is_target else accuracy
                continue
            if s.rule == "s4nn":
                base, late, early = min([*fired, 1 - s.gap]), s.gap, 0.0
            else:
                late = s.gap * n_targets / count
                early = s.gap * (count - n_targets) / count
                base = min(np.mean(fired), 1 - late) if fired else 1 - late
            wanted = base - early if is_target else base + late
            if s.rule in ("sstdp", "s4nn"):
                wanted = min(out[j], wanted) if is_target else max(out[j], wanted)
            errors[j] = out[j] - wanted
        norm = math.sqrt(sum(e * e for e in errors.values()))
        plus, minus = s.a_plus, s.a_minus
        if s.rule == "r-stdp" and best not in targets:
            plus, minus = s.anti_plus, s.anti_minus
        for j, error in errors.items():
            scaled = error / norm if s.rule == "s4nn" and norm else error
            change = np.where(x <= out[j], plus, minus) * scaled
            weight[:, j] = np.clip(weight[:, j] + change, 0, 1)
            if network.normalize_weights:
                weight[:, j] *= method.mass / np.abs(weight[:, j]).sum()
    return weight, raised


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_of_class": True},
        {"first_of_class": True, "thresholds": "two", "threshold_rate": 0.3},
        {"first_of_class": True, "thresholds": "one", "threshold_rate": 0.3, "non_target": 0},
        {"first_of_class": True, "thresholds": "one", "threshold_rate": 30.0, "non_target": 0},
        {"normalize_weights": True, "first_of_class": True},
        {"rule": "sstdp"},
        {"rule": "s4nn", "first_of_class": True, "non_target": 0},
        {"rule": "r-stdp", "non_target": 0},
        {"rule": "r-stdp"},
    ],
    ids=str,
)
def test_an_epoch_is_that_of_the_published_rules(options):
    method, (times, labels) = build(**options), samples()
    expected, raised = naive_epoch(method, times, labels)
    before = method.weight.copy()
    method.train_epoch(0, times, labels, lambda n: None)
    assert not np.array_equal(before, method.weight)
    np.testing.assert_allclose(method.weight.T, expected, atol=1e-12)
    if method.training.thresholds == "one":
        np.testing.assert_allclose(method.thresholds, raised, atol=1e-12)
    else:
        assert (method.thresholds == 1).all()


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.5, 1.2])
def test_a_threshold_may_be_negative(threshold):
    times = np.array([0.5, 0.2, 0.1, 0.2])
    out, v = np.empty(2), np.empty(2)
    order = np.argsort(times, kind="stable")
    competition.fire(order, times, np.full((2, 4), 0.3), np.full(2, threshold), out, v)
    expected, _ = fire(times, np.full((4, 2), 0.3), [threshold] * 2)
    assert out.tolist() == expected


@pytest.mark.parametrize("rule", ["s2stdp", "r-stdp"])
def test_dropped_neurons_neither_win_nor_learn(rule):
    method, (times, labels) = build(rule, non_target=0, output_dropout=0.9), samples()
    silent = torch.full_like(times, math.inf)
    method.train_epoch(0, silent, labels, lambda n: None)  # with all neurons dropped, of some samples
    assert np.isfinite(method.weight).all()
    out, v, error = np.ones(9), np.zeros(9), np.zeros(9)
    dropped, updated = np.arange(9) != 4, np.zeros(9, dtype=bool)
    v[dropped] = -np.inf
    competition.choose(out, v, dropped, method.rule(0), updated)
    assert updated.tolist() == (~dropped).tolist()
    updated[:] = False
    competition.find_errors(out, 0, updated, 0.5, method.rule(0), error)
    assert not error.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "r-stdp", "gap": 0.1}, "gap and first_of_class are no options"),
        ({"rule": "r-stdp", "first_of_class": True}, "gap and first_of_class are no options"),
        ({"threshold_annealing": 0.5}, "threshold_annealing goes with"),
        (
            {"thresholds": "two", "threshold_rate": 1.0, "non_target": 2},
            "'two' needs two target neurons per class, .* got 1",
        ),
        ({"average_last": 2}, "schedule and average_last are no options"),
        ({"schedule": {"kind": "cosine"}}, "schedule and average_last are no options"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(SuiteError, match=message):
        build(**options)


def test_predictions_are_spike_by_spike_and_a_class_fires_with_its_first_neuron():
    method, (times, _) = build(), samples(6)
    found = method.predict(times)
    for n in range(6):
        out, v = fire(np.minimum(times[n].numpy(), 1).tolist(), method.weight.T.tolist(), [1.0] * 9)
        expected = [math.inf if t == 1 else t for t in out]
        assert found.layers[0][n].tolist() == expected
        for c in range(CLASSES):
            winner = first(range(3 * c, 3 * c + 3), out, v)
            assert found.classes[n, c] == expected[winner]
            assert found.potential[n, c] == pytest.approx(v[winner])


def test_of_equal_times_the_highest_potential_is_that_of_the_class():
    times = torch.tensor([[0.2, 0.2, 0.5, math.inf, math.inf, math.inf]])
    v = torch.tensor([[1.1, 1.3, 9.0, 0.2, 0.4, 0.3]])
    _, potential, classes = of_classes(times, v, 3)
    assert classes.tolist() == [[pytest.approx(0.2), math.inf]]
    torch.testing.assert_close(potential, torch.tensor([[1.3, 0.4]]))


def test_its_state_is_one_that_checkpoints_are_read_with(tmp_path):
    times, labels = samples()
    method = build(normalize_weights=True)
    method.train_epoch(0, times, labels, lambda n: None)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    assert read.keys() == method.state_dict().keys()
    assert torch.equal(read["weight"], method.state_dict()["weight"])


def test_it_goes_on_from_its_state():
    times, labels = samples()
    whole, rest = build(first_of_class=True), build(first_of_class=True)
    whole.train_epoch(0, times, labels, lambda n: None)
    rest.load_state_dict(whole.state_dict())
    for method in (whole, rest):
        method.train_epoch(1, times, labels, lambda n: None)
    assert np.array_equal(whole.weight, rest.weight)


# Features


class Contrast(torch.nn.Module):
    def forward(self, images):
        return torch.cat([images, 1 - images], dim=1)


def naive_learning(times, rows, columns, weight, thresholds, rate, amount, target):
    filters = len(thresholds)
    for maps, row, column in zip(times, rows, columns, strict=True):
        patch = maps[:, row : row + 5, column : column + 5].reshape(-1)
        v, winner, at = np.zeros(filters), None, None
        for i in np.argsort(patch, kind="stable"):
            if patch[i] >= 1:
                break
            v += weight[i]
            if (v > thresholds).any():
                winner, at = int(np.argmax(v > thresholds)), patch[i]
                break
        if winner is None:
            continue
        thresholds -= rate * (at - target)
        thresholds += np.where(np.arange(filters) == winner, rate, -rate / (filters - 1))
        np.maximum(thresholds, 2.0, out=thresholds)
        w = weight[:, winner]
        grown = w + amount * np.exp(-w)
        weight[:, winner] = np.clip(np.where(patch <= at, grown, w - amount * np.exp(w - 1)), 0, 1)


def test_filters_learn_as_published():
    rng = np.random.default_rng(0)
    times = np.minimum(rng.random((30, 2, 10, 10)) * 1.5, 1.0)
    rows, columns = rng.integers(0, 5, (2, 30))
    weight, thresholds = rng.normal(0.5, 0.1, (50, 6)), np.full(6, 4.0)
    expected = weight.copy(), thresholds.copy()
    naive_learning(times, rows, columns, *expected, 0.5, 0.1, 0.6)
    stdp_convolution.learn_patches(times, rows, columns, weight, thresholds, 0.5, 0.1, 1.0, 0.6, 2.0)
    assert not np.array_equal(thresholds, np.full(6, 4.0))
    np.testing.assert_allclose(weight, expected[0], atol=1e-12)
    np.testing.assert_allclose(thresholds, expected[1], atol=1e-12)


def test_features_are_the_earliest_spikes_of_pools():
    torch.manual_seed(0)
    extractor = STDPConvolution(Contrast(), STDP(target_time=0.7, filters=3, epochs=1))
    images = torch.rand(4, 1, 13, 13)
    extractor.learn(images, seed=0)
    features = extractor(images).reshape(4, 2, 2, 3)
    times = torch.from_numpy(extractor.times(Contrast()(images)))
    weight = extractor.weight.float()
    for n in range(4):
        first_spike = torch.ones(9, 9, 3)
        for t in times[n].unique().tolist():
            if t >= 1:
                continue
            arrived = torch.nn.functional.unfold((times[n] <= t).float()[None], 5)[0].t() @ weight
            fires = (arrived.reshape(9, 9, 3) >= extractor.thresholds.float()) & (first_spike == 1)
            first_spike[fires] = t
        pooled = first_spike[:8, :8].reshape(2, 4, 2, 4, 3).amin((1, 3))
        torch.testing.assert_close(features[n], 1 - pooled, atol=1e-5, rtol=0)


def test_the_pipeline_learns_from_the_training_part_alone(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (12, 144), generator=generator, dtype=torch.uint8)
    images = Images(x, torch.arange(12) % 3, 255, 3, (1, 12, 12))
    features = Features(extractor="stdp", stdp={"target_time": 0.7, "filters": 4, "epochs": 2})
    one, again, other = (Pipeline(features, tmp_path, seed) for seed in (0, 0, 1))
    found = [pipeline.fit(images.select(torch.arange(8))) for pipeline in (one, again, other)]
    assert torch.equal(found[0].x, found[1].x)
    assert not torch.equal(found[0].x, found[2].x)
    assert found[0].shape == (4 * 2 * 2,)
    assert found[0].x.amin() >= 0
    assert torch.equal(one(images).x[:8], found[0].x)


def test_stdp_needs_its_settings():
    with pytest.raises(ValueError, match="stdp goes with extractor 'stdp'"):
        Features(extractor="stdp")
