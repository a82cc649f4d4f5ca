"""The recurrent STDP network that sleeps, against loops written out by hand."""

import math

import numpy as np
import pytest
import torch

from reproductions import catalog, evaluation, methods
from reproductions.catalog import validated
from reproductions.compiled import sleep as compiled
from reproductions.config import Rates
from reproductions.datasets import Images, draw
from reproductions.errors import SuiteError
from reproductions.methods.sleep import (
    OLDEST,
    Readout,
    Training,
    at_rest,
    merged,
    synapses_of,
)

INPUTS, E, INHIBITORY = 9, 6, 3
STEPS = 40


def content(training=None, network=None):
    dense = {
        "input_to_excitatory": {"density": 0.9, "weight": 3.0},
        "excitatory_to_excitatory": {"density": 0.5, "weight": 0.6},
        "excitatory_to_inhibitory": {"density": 0.6, "weight": 9.0},
        "inhibitory_to_excitatory": {"density": 0.8, "weight": 1.0},
    }
    return {
        "method": "tiny",
        "implementation": "sleep",
        "dataset": "digits",
        "description": "",
        "validation": 0,
        "encoding": {"kind": "rates", "size": 3, "mean": 0.3},
        "network": {"t_max": STEPS, "excitatory": E, "inhibitory": INHIBITORY} | dense | (network or {}),
        "training": {"epochs": 1, "rate": 0.05, "last_batch": 20} | (training or {}),
    }


def build(training=None, network=None, seed=0):
    return methods.build(validated(content(training, network), "test"), (1, 3, 3), 3, seed, "cpu")


def samples(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    rates = 0.1 * torch.rand(n, INPUTS, generator=generator).double()
    rates[torch.arange(n), labels] += 0.6
    return rates, labels


def matrix(method):
    """Weights [units, neurons] of a method; 0 where there is no synapse."""
    graph = method.synapses
    full = np.zeros((len(graph.outgoing) - 1, len(graph.incoming) - 1))
    for unit in range(len(full)):
        for s in range(graph.outgoing[unit], graph.outgoing[unit + 1]):
            full[unit, graph.post[s]] = method.weight[s]
    return full


class Naive:
    """The published network, neuron by neuron, on a matrix of weights."""

    def __init__(self, weight, settings, random):
        self.w, self.there, self.s, self.random = weight, weight > 0, settings, random
        self.sign = np.where(np.arange(len(weight)) < INPUTS + E, 1.0, -1.0)
        self.v, self.i, self.a = (
            np.full(E + INHIBITORY, -70.0),
            np.zeros(E + INHIBITORY),
            np.zeros(E + INHIBITORY),
        )
        self.age = np.full(len(weight), math.inf)
        self.before = np.zeros(E + INHIBITORY)
        self.awake = self.slept = 0
        self.at_first = self.sums()

    def sums(self):
        return self.w[: INPUTS + E].sum(), self.w[INPUTS + E :].sum()

    def step(self, rates, noise=0.0, learning=True):
        x = np.array([float(rate > 0 and self.random.random() < rate) for rate in rates])
        self.i += (-self.i + (np.concatenate([x, self.before]) * self.sign) @ self.w) / 30
        self.v += (-(self.v + 70) + 30 * self.i) / 30
        if noise:
            self.v += noise * np.array([self.random.standard_normal() for _ in self.v])
        self.v = self.v.clip(-100, 40)
        fires = self.v >= np.minimum(-55 + self.a, 0)
        self.a += -self.a / 100 + 3.0 * fires
        self.v[fires] = -80
        self.before = fires.astype(float)
        spikes = np.concatenate([x, self.before]) > 0
        self.age += 1
        self.age[spikes] = 0
        if learning:
            self.learn(spikes)
        return spikes

    def learn(self, spikes):
        rule = self.s.training
        for i, j in zip(*np.nonzero(self.there), strict=True):
            pre, post = self.age[i], self.age[INPUTS + j]
            if not (spikes[i] or spikes[INPUTS + j]) or math.isinf(pre) or math.isinf(post):
                continue
            d = post - pre if rule.rule == "as-coded" else pre - post
            up, down = math.exp(-d / rule.tau_plus), -math.exp(d / rule.tau_minus)
            self.w[i, j] = min(max(self.w[i, j] + rule.rate * (up if d >= 0 else down), 0.01), 25.0)

    def sleep(self):
        sleep = self.s.training.sleep
        for n in range(1, sleep.steps + 1):
            self.step(np.zeros(INPUTS), sleep.noise)
            self.slept += 1
            if n % sleep.every == 0:
                power = sleep.pull**sleep.every
                self.w[self.there] = sleep.towards * (self.w[self.there] / sleep.towards) ** power
                near = zip(self.sums(), self.at_first, strict=True)
                if all(abs(now - first) <= sleep.tolerance * first for now, first in near):
                    break
        if sleep.rescale:
            now = self.sums()
            self.w[: INPUTS + E] *= self.at_first[0] / now[0]
            self.w[INPUTS + E :] *= self.at_first[1] / now[1]

    def show(self, images):
        spikes = np.zeros((len(images), len(self.w)), int)
        for n, rates in enumerate(images):
            for _ in range(STEPS):
                if self.awake == self.s.training.sleep.interval:
                    self.awake = 0
                    self.sleep()
                spikes[n] += self.step(rates)
                self.awake += 1
        return spikes


@pytest.mark.slow
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"rule": "textbook"},
        {"sleep": {"interval": 70, "ratio": 0.5, "pull": 0.999, "every": 1}},
        {"sleep": {"interval": 70, "ratio": 0.5, "pull": 0.999, "every": 5}, "rule": "textbook"},
        {"sleep": {"interval": 100, "rescale": True}},
    ],
)
def test_the_compiled_network_is_the_naive_one(training):
    method = build(training)
    images, _ = samples()
    naive = Naive(matrix(method), method.settings, np.random.default_rng(5))
    spikes, _ = method._show(images, method.state, method.weight, np.random.default_rng(5), True)
    expected = naive.show(images.numpy())
    np.testing.assert_array_equal(spikes.numpy(), expected)
    np.testing.assert_allclose(matrix(method), naive.w, rtol=1e-10)
    assert expected[:, INPUTS : INPUTS + E].sum() > 20
    assert expected[:, INPUTS + E :].sum() > 3
    assert (naive.slept > 0) == ("ratio" in training.get("sleep", {}))


def two_neurons(rule, pre, post):
    """The weight between an input that fires in steps `pre` and a neuron that does so in steps `post`."""
    weight = np.zeros((2, 1))
    weight[0, 0] = 1.0
    synapses, w = synapses_of(weight, 1, 1)
    state = at_rest(synapses, w)
    tables = Training(epochs=1, rule=rule).tables()
    for t in range(max(pre + post) + 1):
        fired = [unit for unit, times in enumerate((pre, post)) if t in times]
        state.clock[:] = t, 0, t in pre, t in post
        state.fired[: len(fired)] = fired
        compiled.change_weights(state, synapses, w, tables)
    return w[0] - 1


@pytest.mark.parametrize(
    ("pre", "post", "as_coded", "textbook"),
    [
        ([3], [], 0, 0),
        ([], [3], 0, 0),
        ([5], [5], 1, 1),
        ([5], [8], -math.exp(-3 / 7.5), math.exp(-3 / 10)),
        ([8], [5], math.exp(-3 / 10), -math.exp(-3 / 7.5)),
        # The nearest spike counts: 2 to 6, then 6 to 7.
        ([2, 7], [6], -math.exp(-4 / 7.5) + math.exp(-1 / 10), math.exp(-4 / 10) - math.exp(-1 / 7.5)),
        ([0], [OLDEST + 5], 0, 0),
    ],
)
def test_stdp_by_hand(pre, post, as_coded, textbook):
    for rule, change in ("as-coded", as_coded), ("textbook", textbook):
        assert two_neurons(rule, pre, post) == pytest.approx(8e-4 * change, abs=1e-12)


def test_weights_stay_in_their_range():
    method = build({"rate": 5.0})
    method._show(samples()[0], method.state, method.weight, np.random.default_rng(0), True)
    assert method.weight.min() == pytest.approx(compiled.SMALLEST)
    assert method.weight.max() == pytest.approx(compiled.LARGEST)


def fall_asleep(**options):
    """Steps asleep, of a network whose weights have doubled, without noise: no neuron fires."""
    method = build({"sleep": {"ratio": 0.9, "noise": 0.0, "every": 1} | options})
    method.weight *= 2
    sleep = method.settings.training.sleep
    settings = compiled.Sleep(
        sleep.interval, sleep.steps, 0.0, sleep.pull, sleep.towards, sleep.tolerance, sleep.every, False
    )
    drive = np.zeros(E + INHIBITORY)
    rule = method.settings.training.tables()
    random = np.random.default_rng(0)
    steps = compiled.asleep(method.state, method.synapses, method.weight, drive, rule, settings, random)
    return steps, method


def test_sleep_ends_when_the_weights_are_back():
    steps, method = fall_asleep(pull=0.999, tolerance=0.1)
    first, now = method.state.balance, np.array(compiled.sums(method.synapses, method.weight))
    assert 1 < steps < method.settings.training.sleep.steps
    assert (abs(now - first) <= 0.1 * first).all()
    # With nothing to go back to within the tolerance it lasts to the end.
    steps, method = fall_asleep(pull=0.99, tolerance=0.0)
    assert steps == method.settings.training.sleep.steps == 10_000
    np.testing.assert_allclose(method.weight, 0.01, rtol=1e-6)


def test_the_pull_in_larger_portions_is_nearly_the_same():
    def after(every):
        method = build({"sleep": {"interval": 70, "ratio": 0.9, "pull": 0.999, "every": every}, "rate": 8e-4})
        method._show(samples()[0], method.state, method.weight, np.random.default_rng(5), True)
        return compiled.sums(method.synapses, method.weight)

    assert after(9) == pytest.approx(after(1), rel=5e-3)


def test_a_network_without_silenced_synapses_has_the_density_asked_for():
    network = validated(content(network={"excitatory": 200, "inhibitory": 50}), "test").network
    method = build(network={"excitatory": 200, "inhibitory": 50})
    full = matrix(method)
    ee, ei, ie = full[9:209, :200], full[9:209, 200:], full[209:, :200]
    assert not full[209:, 200:].any()
    assert not full[:9, 200:].any()
    assert not np.diag(ee).any()
    assert not ((ei.T > 0) & (ie > 0)).any()
    assert (ee > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert (ie > 0).mean() == pytest.approx(0.8 * (1 - 0.6), abs=0.02)
    assert set(np.unique(ei)) == {0.0, network.excitatory_to_inhibitory.weight}


def test_neighbours_of_one_label_are_one_segment():
    spikes = torch.tensor([[2.0], [4.0], [1.0], [5.0], [5.0], [8.0]])
    segments, labels = merged(spikes, torch.tensor([1, 1, 0, 2, 2, 2]))
    assert segments.flatten().tolist() == [3.0, 1.0, 6.0]
    assert labels.tolist() == [1, 0, 2]


def test_the_readout_is_a_gaussian_per_class_on_whitened_components():
    from scipy.stats import multivariate_normal

    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = (torch.randn(300, 8, generator=generator) + y[:, None] * torch.linspace(0, 1, 8)).double()
    scaled = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    values, axes = np.linalg.eigh(np.cov(scaled.T))
    kept = (values[::-1].cumsum() / values.sum() < 0.95).sum() + 1
    z = scaled @ axes[:, ::-1][:, :kept] / np.sqrt(values[::-1][:kept])
    expected = []
    for k in range(3):
        covariance = 0.9 * np.cov(z[y == k].T) + 0.1 * np.eye(kept)
        expected.append(multivariate_normal(z[y == k].mean(0), covariance).logpdf(z))
    ours = Readout(x, y, 3).scores(x).log_softmax(1)
    torch.testing.assert_close(ours, torch.tensor(np.array(expected).T).log_softmax(1))


def test_a_class_that_was_never_seen_is_never_decided_for():
    x, y = torch.rand(20, 4), torch.arange(20) % 2
    assert torch.isneginf(Readout(x, y, 3).scores(x)[:, 2]).all()
    silent = Readout(torch.zeros(20, 4), y, 2).scores(torch.zeros(3, 4))
    torch.testing.assert_close(silent, torch.full((3, 2), math.log(0.5)).double())


@pytest.mark.parametrize("online", [False, True])
def test_a_method_learns_is_evaluated_and_resumes(online):
    training = {"sleep": {"interval": 500, "ratio": 0.1}, "online": online}
    method = build(training)
    rates, labels = samples(60)
    statistics = method.train_epoch(0, rates, labels, lambda n: None)
    assert statistics.accuracy > 0.6
    assert all(0 <= part < 1 for part in statistics.silent)
    other = build(training)
    other.load_state_dict(method.state_dict())
    test_rates, _ = samples(30, seed=1)
    one, two = method.predict(test_rates), other.predict(test_rates)
    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.spikes, two.spikes)
    assert set(one.readouts) == {"authors", "input"}
    assert torch.equal(method.predict(test_rates).scores, one.scores)


def test_weights_rest_while_images_are_tested_unless_they_learn_online():
    rates, labels = samples(60)
    changes = {}
    for online in (False, True):
        method = build({"online": online, "rate": 0.5})
        method.train_epoch(0, rates, labels, lambda n: None)
        seen, weight = [], method.weight.copy()
        show = method._show
        method._show = lambda *arguments, show=show, seen=seen: (show(*arguments), seen.append(arguments[2]))[
            0
        ]
        method.predict(rates)
        np.testing.assert_array_equal(method.weight, weight)
        changes[online] = abs(seen[0] - weight).max()
    assert changes[False] == 0
    assert changes[True] > 0.1


def test_spikes_of_inputs_and_other_readouts_are_recorded():
    method = build()
    method.train_epoch(0, *samples(60), lambda n: None)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 16, (30, 9), generator=generator, dtype=torch.uint8)
    images = Images(x, torch.arange(30) % 3, 16, 3, (1, 3, 3))
    found = evaluation.evaluate(method, method.settings, images)
    spikes = method.predict(method.settings.encode(images))
    assert found.total[0] == pytest.approx(0.3 * INPUTS * STEPS, rel=0.1)
    assert found.total[1:] == pytest.approx([*spikes.spikes[:, :2].double().mean(0).tolist(), 0.0])
    right = (spikes.readouts["authors"].argmax(1) == images.y).double().mean().item()
    assert found.readouts["authors"] == pytest.approx(right)
    assert [len(layer) for layer in found.example.times] == [INPUTS, E, INHIBITORY, 3]
    assert found.multiplications is None


def test_rates_have_the_mean_asked_for():
    x = torch.randint(0, 256, (5, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x[4] = 0
    images = Images(x, torch.zeros(5), 255, 10, (1, 8, 8))
    rates = Rates(kind="rates", size=5, mean=0.1).code(images, 10.0)
    assert rates.shape == (5, 25)
    torch.testing.assert_close(rates.mean(1)[:4], torch.full((4,), 0.1).double())
    assert not rates[4].any()


def test_images_are_drawn_by_the_seed():
    images = Images(torch.arange(50)[:, None], torch.arange(50), 255, 10, (1, 1, 1))
    one, again, other = (draw(images, 10, seed).y.tolist() for seed in (0, 0, 1))
    assert one == again == sorted(set(one))
    assert one != other
    with pytest.raises(SuiteError, match="at most the 50 there are, got 51"):
        draw(images, 51, 0)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"sleep": {"ratio": 0.1, "rescale": True}}, "rescale is a control without sleep"),
        ({"sleep": {"ratio": 1.5}}, "training.sleep.ratio"),
        ({"rule": "hebb"}, "training.rule"),
        ({"schedule": {"kind": "linear"}}, "schedule and average_last are no options"),
    ],
)
def test_settings_that_do_not_fit_are_refused(training, message):
    with pytest.raises(SuiteError, match=message):
        build(training)


def test_a_sleep_shorter_than_what_is_applied_at_once_is_refused():
    with pytest.raises(SuiteError, match="every must be at most the 8 steps of sleep, got 10"):
        build({"sleep": {"interval": 40, "ratio": 0.2, "every": 10}})


def test_features_are_refused():
    content = catalog.find("sleep-20", "digits").model_dump(mode="json", exclude_unset=True)
    with pytest.raises(SuiteError, match="features go with no sleeping network"):
        validated(content | {"features": {"extractor": "raw"}}, "tiny")
