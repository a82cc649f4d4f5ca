"""ReLU networks of the suite that decide by single spikes."""

import math

import pytest
import torch
from torch import nn

from reproductions import evaluation, methods
from reproductions.catalog import validated
from reproductions.datasets import Images
from reproductions.errors import Diverged, SuiteError
from reproductions.methods import converted_relu, minibatch
from reproductions.methods.converted_relu import whiten
from ssnn_plugin.functional import highest_in_windows2d

CLASSES = 3


def content(network=None, training=None, encoding=None):
    """A config of a small network, as a TOML file would hold it."""
    return {
        "method": "tiny",
        "implementation": "converted_relu",
        "dataset": "digits",
        "description": "",
        "validation": 0,
        "encoding": {"kind": "linear", "scale": 1.0} | (encoding or {}),
        "network": {"layers": ["6C3p1", "P2", "8C3", "A2", "5"], "t_max": 500.0} | (network or {}),
        "training": {"batch_size": 8, "optimizer": "sgd", "momentum": 0.9, "nesterov": True, "epochs": 4}
        | {"learning_rates": [0.05], "schedule": {"kind": "linear", "warm_up": 1.0}}
        | (training or {}),
    }


def build(network=None, training=None, shape=(2, 8, 8), encoding=None):
    return methods.build(validated(content(network, training, encoding), "test"), shape, CLASSES, 0, "cpu")


def samples(n=24, features=128):
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(n, features, generator=generator)
    return times.masked_fill(times > 0.8, math.inf), torch.arange(n) % CLASSES


def learn(method, times, labels, epochs=4):
    return [method.train_epoch(epoch, times, labels, lambda n: None) for epoch in range(epochs)]


@pytest.mark.parametrize("normalize", ["all", "pooled"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_decides_as_the_relu_network_does_and_resumes(normalize, precision):
    times, labels = samples()
    method = build(network={"normalize": normalize}, training={"precision": precision})
    history = learn(method, times, labels)
    assert history[-1].loss < history[0].loss
    layers, potential, _ = method.predict(times)
    values = method.images(times)
    *hidden, (outputs, _) = method.relu().eval()
    for (neurons, after), spikes in zip(hidden, layers[:-1], strict=True):
        activations = neurons(values)
        assert torch.equal(spikes.isfinite(), activations > 0)
        values = after(activations)
    torch.testing.assert_close(potential, outputs(values), atol=1e-4, rtol=1e-4)
    assert torch.equal(layers[-1].argmin(1), potential.argmax(1))

    images = Images(1 - times.clamp(max=1), labels, 1, CLASSES, (2, 8, 8))
    found = evaluation.evaluate(method, method.settings, images)
    first = layers[-1].amin(1).double() / method.spiking().t_max
    parts = (first * evaluation.PARTS).long().bincount(minlength=evaluation.PARTS + 1)
    assert found.response_histogram == parts.tolist()
    assert found.window == method.spiking().t_max
    assert found.response_time < method.spiking().t_max < method.settings.network.t_max

    other = build(network={"normalize": normalize}, training={"precision": precision})
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.predict(times)[1], potential)
    for each in (method, other):
        each.train_epoch(4, times, labels, lambda n: None)
    assert torch.equal(other.predict(times)[1], method.predict(times)[1])


def test_spikes_of_an_epoch_are_counted_neuron_by_neuron():
    times, labels = samples()
    method = build(training={"learning_rates": [1e-9]})
    (epoch,) = learn(method, times, labels, epochs=1)
    assert len(epoch.spikes) == 3
    assert epoch.spikes[0] == pytest.approx((1 - epoch.silent[0]) * 6 * 64)
    assert 0 < epoch.silent[0] < 1


def test_a_price_silences_neurons():
    times, labels = samples()
    spikes = [
        learn(build(training={"spike_price": price}), times, labels, 4)[-1].spikes for price in (0, 0.1)
    ]
    assert sum(spikes[1]) < 0.9 * sum(spikes[0])


def test_each_hidden_layer_may_have_a_price_of_its_own():
    times, labels = samples()
    found = {}
    for prices in ((0.1, 0.1, 0.1), 0.1, (0.5, 0, 0), 0):
        method = build(training={"spike_price": prices, "learning_rates": [1e-9]})
        learn(method, times, labels, epochs=1)
        found[prices] = [stage.norm.bias.grad.clone() for stage in method.stages[:-1]]
    alike, one, dear, free = found.values()
    torch.testing.assert_close(alike, one)
    assert (dear[0] > free[0] + 1).all()
    torch.testing.assert_close(dear[1:], free[1:])
    with pytest.raises(SuiteError, match="must hold one number, or 3, one per hidden layer, got 2"):
        build(training={"spike_price": [0.1, 0.1]})


@pytest.mark.parametrize(
    "network",
    [
        {"normalize": "all"},
        {"normalize": "pooled"},
        {"layers": ["16C2", "6C3p1", "P2", "12"], "whiten": True},
    ],
    ids=["all", "pooled", "whiten"],
)
def test_half_precision_does_not_round_a_price_away(network):
    times, labels = samples(n=8)
    price, found = 1e-6, {}
    for prices in ((price, 0, 0), 0):
        training = {"precision": "bfloat16", "spike_price": prices, "learning_rates": [1e-9]}
        method = build(network=network, training=training)
        learn(method, times, labels, epochs=1)
        first = method.stages[0]
        bias = first.norm.bias if first.normalizes else first.neurons[0].bias
        found[prices] = bias.grad.double()
    activations = first.learn(method.images(times)).activations
    fired = (activations > 0).sum((0, 2, 3)).double()
    paid, free = found.values()
    torch.testing.assert_close(paid - free, price / len(labels) * fired, rtol=0.02, atol=0)


@pytest.mark.parametrize("network", [{}, {"normalize": "pooled"}, {"inhibition": True}], ids=str)
def test_a_price_with_a_margin_is_paid_below_the_threshold_too(network):
    times, labels = samples(n=8)
    price, found = 0.01, {}
    for prices in ((price, 0, 0), (0, 0, 0)):
        training = {"spike_price": prices, "price_margin": 0.5, "learning_rates": [1e-9]}
        method = build(network={"layers": ["6C3p1", "P2", "8C3", "5"], **network}, training=training)
        learn(method, times, labels, epochs=1)
        found[prices] = method.stages[0].norm.bias.grad
    stage = method.stages[0]
    connection, norm, _ = stage.neurons
    normalized = norm(connection(method.images(times)))
    if network.get("normalize") == "pooled":
        normalized = norm(stage.after(connection(method.images(times))))
    elif network:
        normalized = stage.after(normalized)
    paid, free = found.values()
    charged = (normalized > -0.5).sum((0, 2, 3))
    assert (charged > (normalized > 0).sum((0, 2, 3))).all()
    torch.testing.assert_close(paid - free, price / len(labels) * charged)


@pytest.mark.parametrize("normalize", ["all", "pooled"])
def test_neurons_that_fire_together_may_pay_each(normalize):
    times, labels = samples(n=8)
    times.view(8, 2, 8, 8)[:, :, 3:] = math.inf  # black, where all neurons of a channel have the same V
    price, found = 0.01, {}
    network = {"layers": ["6C3p1", "P2", "8C3", "5"], "inhibition": True, "normalize": normalize}
    for ties in (False, True):
        training = {"spike_price": (price, 0, 0), "price_ties": ties, "learning_rates": [1e-9]}
        method = build(network=network, training=training | {"price_margin": 100.0})
        learn(method, times, labels, epochs=1)
        found[ties] = method.stages[0].norm.bias.grad
    stage = method.stages[0]
    potentials = stage.neurons[0](method.images(times))
    windows = potentials.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    together = (windows == windows.amax(-1, keepdim=True)).sum(-1)
    assert together[:, :, 2:].amax() == 4
    assert together[:, :, 0].float().mean() < 1.5
    more = (together - 1).sum((0, 2, 3))
    torch.testing.assert_close(found[True] - found[False], price / len(labels) * more)


@pytest.mark.parametrize(
    ("network", "training", "message"),
    [
        ({}, {"price_margin": 0.1}, "price_margin and price_ties go with a spike_price"),
        ({}, {"spike_price": 0.1, "price_ties": True}, "price_ties goes with network.inhibition"),
    ],
)
def test_what_a_price_is_of_goes_with_one(network, training, message):
    with pytest.raises(SuiteError, match=message):
        build(network=network, training=training)


def test_the_exponential_mean_is_updated_once_a_step():
    times, labels = samples()
    method = build(training={"mean_decay": 0.9})
    learn(method, times, labels)
    assert method.average.n_averaged == 4 * 3


def test_hidden_biases_may_learn_faster_and_decay_as_fast():
    times, labels = samples(n=8)
    training = {"momentum": 0.0, "nesterov": False, "schedule": {}, "weight_decay": 0.01}
    steps = []
    for rate in (1.0, 16.0):
        method = build(training=training | {"bias_rate": rate})
        bias, outputs = method.stages[0].neurons[1].bias, method.stages[-1].neurons[1]
        nn.init.constant_(bias, 0.5)
        before = [outputs.weight.detach().clone(), outputs.bias.detach().clone()]
        learn(method, times, labels, epochs=1)
        decay = 0.05 * 0.01 * 0.5
        steps.append((bias.detach() - 0.5 + decay, outputs.weight - before[0], outputs.bias - before[1]))
    torch.testing.assert_close(steps[1][0], 16 * steps[0][0], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(steps[1][1:], steps[0][1:])


def test_convolutions_pass_their_channels_through_at_first():
    method = build(network={"layers": ["6C3p1", "4C3p1", "5"]})
    images = torch.rand(2, 2, 8, 8)
    first, second = (method.stages[i].neurons[0] for i in (0, 1))
    torch.testing.assert_close(first(images)[:, :2], images)
    six = torch.rand(2, 6, 8, 8)
    torch.testing.assert_close(second(six), six[:, :4])


@pytest.mark.parametrize("training", [{}, {"mean_decay": 0.9}, {"average_last": 2}], ids=str)
def test_statistics_are_of_the_weights_that_decide_and_of_images_as_they_are_learned(training):
    times, labels = samples()
    method = build(training={"augment": {"shift": 2}} | training)
    learn(method, times, labels)
    (convolution, norm, _), _ = method.relu()[0]
    shifted = method.varied(times, method.generator(3, minibatch.NORMALIZING))
    assert not torch.equal(shifted, times)
    potentials = convolution(method.images(shifted)).detach()
    torch.testing.assert_close(norm.running_mean, potentials.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, potentials.movedim(1, 0).flatten(1).var(1))


def test_a_max_pool_may_come_before_the_normalisation_while_it_learns():
    times, labels = samples()
    method = build(network={"normalize": "pooled"}, training={"augment": {"shift": 2}})
    assert [stage.pooled_first for stage in method.stages[:-1]] == [True, False, False]
    history = learn(method, times, labels)
    assert history[-1].loss < history[0].loss

    (convolution, norm, _), pool = method.relu()[0]
    shifted = method.varied(times, method.generator(3, minibatch.NORMALIZING))
    potentials = convolution(method.images(shifted)).detach()
    torch.testing.assert_close(norm.running_mean, pool(potentials).mean((0, 2, 3)))
    layers, *_ = method.predict(times)
    decisive = method.relu()[0].eval()
    assert torch.equal(layers[0].isfinite(), decisive[0](method.images(times)) > 0)


def test_neurons_that_a_pool_holds_back_are_counted_too():
    method = build(network={"layers": ["6C3p1", "P2", "5"], "normalize": "pooled"})
    stage = method.stages[0]
    connection, norm, relu = stage.neurons
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(0))
    images = torch.rand(9, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    activity = stage.learn(images)
    spikes, (potentials, activations, costly, passed_on, _) = stage.spikes(activity), activity
    torch.testing.assert_close(potentials, connection(images))
    pooled = stage.after(potentials)
    mean, variance = pooled.mean((0, 2, 3)), pooled.var((0, 2, 3), correction=0)
    deviation = (variance + norm.eps).sqrt()[:, None, None]
    normalized = (potentials - mean[:, None, None]) / deviation + norm.bias[:, None, None]
    assert torch.equal(spikes, (normalized > 0).sum(0).movedim(0, -1).flatten())
    torch.testing.assert_close(passed_on, stage.after(relu(normalized)))
    torch.testing.assert_close(costly, stage.after(normalized))
    assert passed_on is activations


@pytest.mark.parametrize("normalize", ["all", "pooled"])
def test_with_inhibition_a_neuron_fires_where_its_pool_lets_it_through(normalize):
    times, labels = samples()
    layers = ["6C3p1", "P2", "8C3", "5"]
    plain, method = (
        build(network={"layers": layers, "normalize": normalize, "inhibition": inhibits})
        for inhibits in (False, True)
    )
    assert [each.settings.network.name for each in (plain, method)] == ["6C3p1-P2-8C3-5", "6C3p1-P2i-8C3-5"]
    epochs = [learn(each, times, labels, epochs=2)[-1] for each in (plain, method)]
    for name, value in plain.network.state_dict().items():
        assert torch.equal(method.network.state_dict()[name], value)
    assert epochs[0].loss == epochs[1].loss
    assert epochs[1].spikes[0] < 0.8 * epochs[0].spikes[0]
    assert epochs[1].spikes[1:] == epochs[0].spikes[1:]

    (spikes, *_), potential, _ = method.predict(times)
    assert torch.equal(potential, plain.predict(times)[1])
    activations, pool = method.relu().eval()[0][0](method.images(times)), method.relu()[0][1]
    let_through = pool(activations)
    spread = let_through.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(spikes.isfinite(), (activations == spread) & (activations > 0))
    stage = method.stages[0]
    activity = stage.learn(method.images(times))
    assert torch.equal(activity.costly.relu(), activity.passed_on)
    let_through = highest_in_windows2d(activity.potentials, 2)
    high = activity.passed_on.repeat_interleave(2, 2).repeat_interleave(2, 3) > 0
    assert torch.equal(stage.spikes(activity), (let_through & high).sum(0).movedim(0, -1).flatten())


@pytest.mark.parametrize("training", [{"mean_decay": 0.9}, {"average_last": 2}], ids=str)
def test_the_mean_of_the_weights_decides(training):
    times, labels = samples()
    method = build(training=training)
    learn(method, times, labels)
    before = method.predict(times)[1]
    own, mean = method.network.state_dict(), method.average.module.state_dict()
    assert any(not torch.equal(mean[name], value) for name, value in own.items())
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.zero_()
    method.converted = None
    assert torch.equal(method.predict(times)[1], before)


def test_what_is_measured_is_of_all_classes_where_they_come_one_after_the_other(monkeypatch):
    for name in ("SAMPLE", "WHITENED", "NORMALIZED"):
        monkeypatch.setattr(converted_relu, name, 6)
    dark, bright = torch.full((20, 128), 0.9), torch.full((20, 128), 0.1)
    times = torch.cat([dark, bright]) + 0.05 * torch.rand(40, 128, generator=torch.Generator().manual_seed(0))
    method = build(network={"layers": ["16C2", "8C3", "A2", "5"], "whiten": True})
    learn(method, times, torch.arange(40) // 20, epochs=1)
    assert method.sample.mean() == pytest.approx(0.475, abs=0.03)
    expected = nn.Conv2d(2, 16, 2)
    whiten(expected, method.images(times[[0, 6, 13, 20, 26, 33]]))
    torch.testing.assert_close(method.stages[0].neurons[0].weight, expected.weight)
    norm = method.stages[1].neurons[1]
    assert norm.running_var.mean() > 10 * norm.eps


def test_whitened_patches_have_no_covariance():
    images = torch.rand(200, 2, 6, 6, generator=torch.Generator().manual_seed(0)).cumsum(3)
    convolution = nn.Conv2d(2, 16, 2)
    whiten(convolution, images)
    responses = convolution(images).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(responses[:, :8].T.cov(), torch.eye(8), atol=0.02, rtol=0)
    torch.testing.assert_close(responses[:, 8:], -responses[:, :8], atol=1e-4, rtol=0)
    torch.testing.assert_close(responses.mean(0), torch.zeros(16), atol=1e-3, rtol=0)


def test_whitening_filters_do_not_learn_and_their_biases_do_as_weights():
    times, labels = samples(n=8)
    steps = []
    for rate in (1.0, 1000.0):
        method = build(
            network={"layers": ["16C2", "8C3", "A2", "5"], "whiten": True},
            training={"momentum": 0.0, "nesterov": False, "schedule": {}, "bias_rate": rate},
        )
        learn(method, times, labels, epochs=1)
        expected = nn.Conv2d(2, 16, 2)
        whiten(expected, method.images(times))
        learned = method.stages[0].neurons[0]
        torch.testing.assert_close(learned.weight, expected.weight)
        steps.append(learned.bias - expected.bias)
    assert steps[0].abs().max() > 0
    torch.testing.assert_close(steps[0], steps[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": {"scale": 2.0}}, "encoding must have scale 1"),
        ({"network": {"layers": ["5"], "whiten": True}}, "whiten needs a convolution as first layer"),
        ({"shape": (20,)}, "network.layers: a ReLU network needs images, got 20 features per sample"),
        ({"network": {"layers": ["4C9"]}}, "'4C9' does not fit what is left"),
        ({"network": {"layers": ["8C3", "A2", "5"], "normalize": "pooled"}}, "needs a pool behind normal"),
        (
            {"network": {"layers": ["16C2", "P2", "5"], "normalize": "pooled", "whiten": True}},
            r"normalize 'pooled' needs a pool behind normalised neurons, got \['16C2', 'P2', '5'\]",
        ),
        (
            {"network": {"layers": ["8C3", "A2", "5"], "inhibition": True}},
            "inhibition needs a max-pool behind",
        ),
        ({"training": {"momentum": 0.0}}, "nesterov goes with a momentum above 0"),
        ({"training": {"mean_decay": 0.9, "average_last": 2}}, "average_last goes without mean_decay"),
        ({"network": {"dtype": "float64"}}, "network.dtype"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(SuiteError, match=message):
        build(**change)


def test_what_can_only_be_known_later_is_refused_then():
    times, labels = samples(n=17)
    with pytest.raises(SuiteError, match=r"batch_size must not leave a single one of 17 samples, .* got 8"):
        learn(build(), times, labels, epochs=1)
    times, labels = samples()
    method = build(network={"layers": ["7C2", "5"], "whiten": True})
    with pytest.raises(SuiteError, match=r"network\.whiten needs 16 filters"):
        learn(method, times, labels, epochs=1)
    method = build(network={"t_max": 2.0})
    with pytest.raises(SuiteError, match=r"network.t_max must be at least .* got 2.0"):
        learn(method, times, labels, epochs=1)


def test_weights_that_cannot_be_converted_have_diverged():
    times, labels = samples()
    method = build()
    learn(method, times, labels, epochs=1)
    nn.init.constant_(method.stages[-1].neurons[1].weight, math.nan)
    method.after_step()
    with pytest.raises(Diverged, match="training diverged: the network cannot be converted"):
        method.predict(times)


def test_a_silent_image_responds_at_the_end_of_the_window():
    class Fixed:
        def predict(self, times):
            first = torch.tensor([100.0, 120.0, math.inf, math.inf])
            spikes = torch.stack([first, torch.full((4,), math.inf)], 1)
            return evaluation.SpikesInWindow((spikes,), torch.zeros(4, 2), 170.0)

    images = Images(torch.rand(4, 9), torch.zeros(4).long(), 1, 2, (1, 3, 3))
    found = evaluation.evaluate(Fixed(), build(network={"t_max": 1000.0}).settings, images)
    assert found.response_time == pytest.approx((100 + 120 + 170 + 170) / 4)
    assert found.silent == 0.5
