"""Methods whose neurons fire more than once, against loops written out by hand."""

import math

import pytest
import torch
from marks import needs_compiler
from torch import nn

from reproductions import evaluation, methods
from reproductions.catalog import validated
from reproductions.datasets import Images
from reproductions.errors import SuiteError
from reproductions.methods import ltmd, minibatch, multi_spike, rate_backprop, tebn, time_based

NETWORK = {"layers": ["4C3p1", "A2", "6"], "t_max": 3}
TRAINING = {"batch_size": 8, "optimizer": "adam", "epochs": 1, "learning_rates": [1e-3]}
OWN = {
    "tebn": ({"normalization": "tebn"}, {}),
    "ltmd": ({}, {"moderate_dropout": 0.2}),
    "rate_backprop": ({"beta": 0.2}, {"gradient": "rate"}),
    "time_based": ({}, {"loss": "count-plus"}),
}

INF = math.inf
UNDISTURBED = {"ltmd": {"moderate_dropout": 0.0}}


def build(implementation, network=None, training=None, seed=0):
    """A tiny method for images of 8 x 8 and three classes."""
    own_network, own_training = OWN[implementation]
    content = {
        "method": "tiny",
        "implementation": implementation,
        "dataset": "digits",
        "description": "",
        "validation": 0,
        "encoding": {"kind": "direct"},
        "network": NETWORK | own_network | (network or {}),
        "training": TRAINING | own_training | (training or {}),
    }
    return methods.build(validated(content, "test"), (1, 8, 8), 3, seed, "cpu")


def samples(n=24):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 64, generator=generator), torch.arange(n) % 3


@pytest.mark.parametrize("implementation", OWN)
def test_a_method_learns_and_resumes(implementation):
    images, labels = samples()
    method = build(implementation)
    losses = [method.train_epoch(epoch, images, labels, lambda n: None).loss for epoch in range(6)]
    assert losses[-1] < losses[0]
    other = build(implementation, seed=1)
    other.load_state_dict(method.state_dict())
    for a, b in zip(method.predict(images)[:2], other.predict(images)[:2], strict=True):
        assert torch.equal(a, b)


def test_time_based_training_has_one_learning_rate():
    with pytest.raises(SuiteError, match=r"training\.learning_rates: .* at most 1 item"):
        build("time_based", training={"learning_rates": [1e-3, 1e-3, 1e-3]})


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("beta", {"network": {"beta": 0.5}}),
        ("threshold", {"network": {"threshold": 2.0}}),
        ("precision", {"training": {"precision": "bfloat16"}}),
        ("wanted and others", {"training": {"loss": "first-spike", "wanted": 3}}),
    ],
)
def test_time_based_training_refuses_what_it_does_not_use(key, changed):
    with pytest.raises(SuiteError, match=rf"{key}.*, got"):
        build("time_based", **changed)


@pytest.mark.parametrize("implementation", OWN)
def test_statistics_are_not_averaged_and_neither_are_weights(implementation):
    with pytest.raises(SuiteError, match="average_last is no option"):
        build(implementation, training={"epochs": 2, "average_last": 2})


@needs_compiler
@pytest.mark.parametrize("implementation", OWN)
def test_a_compiled_method_learns_the_same(implementation):
    images, labels = samples(8)
    method = build(implementation, training={"compiled": True} | UNDISTURBED.get(implementation, {}))
    method.network.train()
    of_labels = (labels,) if implementation == "time_based" else ()
    learners = [method.learn, method.learner(images)]
    assert method.learner(images[1:]) == method.learn  # another size is not compiled anew
    found = []
    for learn in learners:
        counts, outputs = learn(images, *of_labels)
        total = (outputs * torch.arange(3)).sum()
        grads = torch.autograd.grad(total, list(method.network.parameters()), allow_unused=True)
        found.append([*counts, *grads])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", OWN)
def test_a_prediction_does_not_depend_on_the_other_images(implementation):
    images, labels = samples()
    method = build(implementation)
    method.train_epoch(0, images, labels, lambda n: None)
    whole, part = method.predict(images), method.predict(images[3:5])
    assert torch.equal(whole.spikes[3:5], part.spikes)
    torch.testing.assert_close(whole.scores[3:5], part.scores)


@pytest.mark.parametrize(
    ("potential", "by_potential"), [(None, 1 / 3), ([0.4, 0.5, 0.9], 2 / 3), ([0.5, 0.4, 0.9], 1 / 3)]
)
def test_the_highest_score_decides_and_ties_are_told_apart(potential, by_potential):
    class Fixed:
        def predict(self, inputs):
            scores = torch.tensor([[1.0, 2.0, 0.0], [3.0, 3.0, 1.0], [0.0, 1.0, 5.0]])
            first = torch.tensor([[0.0, math.inf]]), torch.tensor([[2.0]])
            v = None if potential is None else torch.tensor([potential]).expand(3, 3)
            return evaluation.SpikeTotals(
                torch.tensor([[4, 1], [2, 1], [0, 1]]), scores, first, 7, potential=v
            )

    config = build("tebn").settings
    images = Images(torch.zeros(3, 64), torch.tensor([1, 1, 0]), 1, 3, (1, 8, 8))
    result = evaluation.evaluate(Fixed(), config, images)
    assert result.accuracy == pytest.approx(
        {"lenient": 2 / 3, "first_index": 1 / 3, "potential": by_potential, "unique": 1 / 3}
    )
    assert result.total == [0.0, 2.0, 1.0]
    assert (result.tied, result.response_time, result.multiplications) == (pytest.approx(1 / 3), 3.0, 7)
    assert result.response_histogram == [0, 0, 3, 0]
    assert result.example.times == [[None] * 64, [0.0, None], [2.0]]


@pytest.mark.parametrize("potential", [None, [0.1, 0.9, 0.2]])
def test_scores_that_are_all_equal_are_no_answer(potential):
    class Silent:
        def predict(self, inputs):
            scores = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, 2.0]])
            v = None if potential is None else torch.tensor([potential]).expand(3, 3)
            first = torch.full((1, 2), INF), torch.full((1, 1), INF)
            return evaluation.SpikeTotals(torch.zeros(3, 2).long(), scores, first, 7, potential=v)

    images = Images(torch.zeros(3, 64), torch.tensor([1, 0, 1]), 1, 3, (1, 8, 8))
    result = evaluation.evaluate(Silent(), build("tebn").settings, images)
    by_potential = 0 if potential is None else 1 / 3
    assert result.accuracy == pytest.approx(
        {
            "lenient": 1 / 3 + by_potential,
            "first_index": 1 / 3 + by_potential,
            "potential": 1 / 3 + by_potential,
            "unique": 0.0,
        }
    )
    assert (result.silent, result.tied) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert result.neurons_fire == "repeatedly"


def test_equal_numbers_of_spikes_of_all_classes_are_a_tie():
    class Tied:
        def predict(self, inputs):
            first = torch.zeros(1, 2), torch.zeros(1, 1)
            return evaluation.SpikeTotals(torch.full((1, 2), 4), torch.full((1, 2), 2.0), first, 7)

    images = Images(torch.zeros(1, 64), torch.tensor([1]), 1, 2, (1, 8, 8))
    result = evaluation.evaluate(Tied(), build("tebn").settings, images)
    assert (result.tied, result.silent, result.accuracy["lenient"]) == (1, 0, 1)


def test_scores_that_are_no_numbers_are_refused():
    class Diverged:
        def predict(self, inputs):
            return evaluation.SpikeTotals(torch.ones(1, 2).long(), torch.full((1, 3), math.nan), ())

    images = Images(torch.zeros(1, 64), torch.tensor([1]), 1, 3, (1, 8, 8))
    with pytest.raises(SuiteError, match="training diverged"):
        evaluation.evaluate(Diverged(), build("tebn").settings, images)


@pytest.mark.parametrize(
    ("implementation", "network"),
    [
        ("rate_backprop", {}),
        ("tebn", {"normalization": "each-step"}),
        ("tebn", {"normalization": "batch", "layers": ["6"]}),
        ("ltmd", {"layers": ["6", "5"]}),
    ],
)
def test_a_last_batch_of_one_sample_is_refused_before_it_cannot_be_normalised(implementation, network):
    method = build(implementation, network, training={"batch_size": 8})
    images, labels = samples()
    with pytest.raises(SuiteError, match="must not leave a single one of 9 samples"):
        method.train_epoch(0, images[:9], labels[:9], lambda n: None)


def test_statistics_of_one_image_are_refused():
    images, labels = samples()
    method = build("rate_backprop", {}, training={"batch_size": 8, "statistics_of": 9})
    with pytest.raises(SuiteError, match="must not leave a single one of 9 samples"):
        method.train_epoch(0, images, labels, lambda n: None)


def test_a_class_without_a_chance_is_no_divergence():
    class Chosen:
        def predict(self, inputs):
            first, scores = (torch.zeros(1, 2), torch.zeros(1, 1)), torch.tensor([[-math.inf, 0.0, -1.0]])
            return evaluation.SpikeTotals(torch.ones(1, 2).long(), scores, first, 7)

    images = Images(torch.zeros(1, 64), torch.tensor([1]), 1, 3, (1, 8, 8))
    assert evaluation.evaluate(Chosen(), build("tebn").settings, images).accuracy["unique"] == 1


def test_output_neurons_of_ltmd_stand_in_a_row():
    with pytest.raises(SuiteError, match="last layer must be fully connected, such as '128', got '8C3p1'"):
        build("ltmd", {"layers": ["8C3p1"]})


def test_ties_are_those_of_classes_and_not_of_their_neurons():
    class Fixed:
        def predict(self, inputs):
            outputs = torch.tensor([[1.0, 1.0, 2.0, 2.0], [1.0, 3.0, 1.0, 4.0], [INF, INF, INF, INF]])
            classes = outputs.unflatten(1, (2, 2)).amin(2)
            return evaluation.PopulationSpikes((outputs,), torch.zeros(3, 2), classes)

    config, images = (
        build("tebn").settings,
        Images(torch.zeros(3, 64), torch.tensor([0, 1, 1]), 1, 3, (1, 8, 8)),
    )
    result = evaluation.evaluate(Fixed(), config, images)
    assert (result.tied, result.silent) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("first", "expected"), [(10, 10 * 3 * 8 * 8), (multi_spike.Convolution(5, 3, 2, 1), 5 * 3 * 9 * 4 * 4)]
)
def test_multiplications_of_real_valued_pixels(first, expected):
    assert multi_spike.multiplications(first, (3, 8, 8)) == expected


def test_a_pool_of_spike_trains_is_an_average():
    with pytest.raises(SuiteError, match="a pool of spike trains must be an average, such as 'A2', got"):
        build("tebn", {"layers": ["4C3p1", "P2", "6"]})


# Neurons and normalisation


def test_leaky_neurons_fire_as_a_loop_says():
    method = build("tebn", {"t_max": 5})
    currents = 2 * torch.rand(5, 7, 4, generator=torch.Generator().manual_seed(1))
    found = method.neurons(0)(currents.flatten(0, 1)).unflatten(0, (5, 7))
    v = torch.zeros(7, 4)
    for t in range(5):
        v = 0.25 * v + currents[t]
        assert torch.equal(found[t], (v > 1).float())
        v = v * (v <= 1)


def test_the_surrogate_of_tebn_is_a_triangle():
    neuron = multi_spike.leaky(build("tebn").settings.network, multi_spike.Triangle(1.0))
    v = torch.tensor([0.25, 0.75, 1.5, 2.5], requires_grad=True)
    neuron(v, torch.zeros(4))[0].sum().backward()
    assert v.grad.tolist() == [0.25, 0.75, 0.5, 0.0]


@pytest.mark.parametrize("kind", ["none", "batch", "each-step", "tebn"])
def test_normalisations_over_steps(kind):
    norm = build("tebn", {"normalization": kind}).norm(1, 4, spatial=True)
    x = torch.randn(3, 5, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    for module in norm.modules():
        if isinstance(module, tebn.StepScale):
            module.weight.data.copy_(torch.tensor([1.0, 2.0, 0.5]))
    found = norm(x.flatten(0, 1)).unflatten(0, (3, 5))
    across = (1, 3, 4) if kind == "each-step" else (0, 1, 3, 4)
    mean, variance = x.mean(across, keepdim=True), x.var(across, unbiased=False, keepdim=True)
    expected = x if kind == "none" else (x - mean) / (variance + 1e-5).sqrt()
    if kind == "tebn":
        expected = expected * torch.tensor([1.0, 2.0, 0.5]).reshape(3, 1, 1, 1, 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["none", "batch", "each-step", "tebn"])
def test_the_currents_of_images_are_repeated(kind):
    method = build("tebn", {"normalization": kind})
    x = torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    found = method.norm(0, 4, spatial=True)(x)
    expected = method.norm(1, 4, spatial=True)(x.repeat(3, 1, 1, 1))
    torch.testing.assert_close(found, expected)


# LTMD


def test_output_neurons_pass_on_their_potential():
    network = build("ltmd").settings.network
    neurons = ltmd.OutputNeurons(network, steps=2)
    nn.init.zeros_(neurons.lateral.weight)
    found = neurons(torch.tensor([[0.3, 1.0], [0.6, 0.1]]))
    assert found.flatten().tolist() == pytest.approx([0.0, 1.0, 0.25 * 0.3 + 0.6, 0.0])


def test_a_neighbour_adds_a_lateral_current():
    network = build("ltmd").settings.network
    neurons = ltmd.OutputNeurons(network, steps=1)
    with torch.no_grad():
        neurons.lateral.weight.copy_(torch.tensor([[[0.0, 0.5, 0.0, 0.0, 0.0]]]))
        found = neurons(torch.tensor([[1.0, 0.0, 2.0]]))
    assert found.flatten().tolist() == pytest.approx([1.0, 0.5, 2.0])


def test_moderate_dropout_keeps_by_activity():
    keep = ltmd.ModerateDropout(0.2, 1).keep(torch.tensor([[0.0, 1.0], [2.0, 4.0]]))
    scaled = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    torch.testing.assert_close(keep, 1 - (1 - scaled) * 0.2 / (1 - scaled.mean()))


def test_moderate_dropout_of_a_network_that_diverged_gives_no_numbers():
    found = ltmd.ModerateDropout(0.2, 1)(torch.tensor([[0.0, torch.inf], [2.0, 4.0]]))
    assert not found.isfinite().any()


def test_a_learned_threshold_is_a_tanh():
    method = build("ltmd")
    (neuron,) = [m for m in method.network.modules() if isinstance(m, multi_spike.snntorch.Leaky)]
    assert neuron.threshold.item() == pytest.approx(math.tanh(0.5))
    before = neuron.threshold.item()
    images, labels = samples()
    for epoch in range(3):
        method.train_epoch(epoch, images, labels, lambda n: None)
    assert 0 < neuron.threshold.item() < 1
    assert neuron.threshold.item() != before
    fixed = build("ltmd", {"learn_threshold": False})
    assert not [name for name, _ in fixed.network.named_parameters() if "threshold" in name]


# Rate-based back-propagation


def gradients(gradient, steps, reset="attached"):
    method = build("rate_backprop", {"t_max": steps}, {"gradient": gradient, "reset_gradient": reset})
    method.network.train()
    images, labels = samples()
    method._step(images, labels)
    return torch.cat([p.grad.flatten() for p in method.network.parameters() if p.grad is not None])


def test_with_one_step_it_is_back_propagation():
    torch.testing.assert_close(gradients("rate", 1), gradients("through-time", 1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("reset", ["attached", "detached"])
def test_with_more_steps_it_points_the_same_way(reset):
    rate, through_time = (gradients(gradient, 6, reset) for gradient in ("rate", "through-time"))
    assert torch.cosine_similarity(rate, through_time, dim=0) > 0.8


def test_a_spike_takes_the_threshold_once_from_a_potential_far_above_it():
    method = build("rate_backprop", {"t_max": 4})
    neurons = next(m for m in method.network.modules() if isinstance(m, multi_spike.OverSteps))
    currents = torch.tensor([[2.5], [0.9], [0.0], [3.0]])
    # V before the resets, with beta = 0.2: 2.5, 0.3 + 0.9, 0.04, 0.008 + 3.0.
    assert neurons(currents).flatten().tolist() == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_networks_are_evaluated_with_the_spikes_that_they_learn_from(gain):
    method = build("rate_backprop", {"t_max": 4})
    with torch.no_grad():
        for norm in (m for m in method.network.modules() if isinstance(m, rate_backprop.InEachStep)):
            norm.weight.fill_(gain)
    images, _ = samples()
    method.network.train()
    learned, outputs = method.learn(images)
    ran = method.run(images)
    for counts, spikes in zip(learned, ran.hidden, strict=True):
        assert torch.equal(counts.detach().reshape(spikes.shape[1:]), spikes.sum(0))
        assert counts.any()
    torch.testing.assert_close(outputs.mean(0), ran.outputs.mean(0))


@pytest.mark.parametrize("reset", ["attached", "detached"])
def test_eligibility_is_what_a_lasting_current_adds(reset):
    method = build("rate_backprop", {"t_max": 4}, {"reset_gradient": reset})
    layer = next(m for m in method.network.modules() if isinstance(m, rate_backprop.RateLayer))
    layer.eval()
    rates, image = rate_backprop.Rates(), torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for t in range(4):
            layer.step(t, image, rates, method.surrogate)
    current = layer.norm.of_step(0, layer.connection(image)).detach().requires_grad_()
    layer.neurons(current.repeat(4, 1, 1, 1)).sum().backward()
    torch.testing.assert_close(rates.eligibility, current.grad)


def test_statistics_may_be_those_of_the_weights_that_decide():
    images, labels = samples()
    method = build("rate_backprop", {"t_max": 3}, {"statistics_of": 16, "augment": {"shift": 1}})
    for epoch in range(2):
        method.train_epoch(epoch, images, labels, lambda n: None)
    norm = next(m for m in method.network.modules() if isinstance(m, rate_backprop.InEachStep))
    layer = next(m for m in method.network.modules() if isinstance(m, rate_backprop.RateLayer))
    taken = method.varied(minibatch.spread(images, 16), method.generator(1, minibatch.NORMALIZING))
    parts = torch.split(method.shaped(taken), method.training.batch_size)
    means = torch.stack([layer.connection(part).mean((0, 2, 3)) for part in parts])
    torch.testing.assert_close(norm.mean, means.mean(0).expand(3, -1).detach())
    assert norm.momentum == rate_backprop.MOMENTUM


def test_each_step_is_evaluated_with_statistics_of_its_own():
    norm = rate_backprop.InEachStep(3, 2, torch.nn.Identity())
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(500, 3, generator=generator), 5 * torch.randn(500, 3, generator=generator) + 2
    currents = torch.cat([first, second])
    for _ in range(200):
        learned = norm(currents)
    torch.testing.assert_close(norm.eval()(currents), learned, rtol=5e-3, atol=1e-3)
    with torch.no_grad():
        norm.weight.fill_(2.0)
        norm.bias.fill_(1.0)
    torch.testing.assert_close(norm(currents), 2 * learned + 1, rtol=5e-3, atol=5e-3)


# Time-based training


def naive_event_gradients(inputs, spikes, rise, levels, errors, weight):
    """The published backward pass of one layer, neuron by neuron, spike by spike."""
    theta_m, theta_s, theta_g = 1 / 5, 1 / 3, 1 / 2.5
    steps, batch, outs = spikes.shape
    of_weight, of_inputs = torch.zeros_like(weight), torch.zeros_like(inputs)
    for b in range(batch):
        for j in range(outs):
            for t in range(steps):
                owner = next((u for u in range(t, steps) if spikes[u, b, j]), None)
                if owner is None:
                    continue
                k = owner - t
                kw = ((1 - theta_m) ** (k + 1) - (1 - theta_s) ** (k + 1)) * theta_s / (theta_s - theta_m)
                kt = -((1 - theta_g) ** (k + 1))
                error = errors[owner, b, j]
                of_v = error * (-1 / rise[owner, b, j]).clamp(-4, 0)
                of_q = error * (-1 / levels[owner, b, j]).clamp(-1e4, 0)
                of_weight[j] += of_v * kw * inputs[t, b]
                of_inputs[t, b] += of_q * kt * weight[j] * inputs[t, b]
    return of_weight, of_inputs


def test_event_driven_gradients_are_the_published_ones():
    generator = torch.Generator().manual_seed(4)
    inputs = (torch.rand(6, 3, 5, generator=generator) < 0.5).double().requires_grad_()
    weight = (2 * torch.rand(4, 5, generator=generator).double() - 0.4).requires_grad_()
    network = build("time_based", {"t_max": 6}).settings.network
    currents = (c.unflatten(0, (6, 3)) for c in time_based.Connect.apply(inputs.flatten(0, 1), weight, None))
    spikes, _, last = time_based.EventNeurons.apply(*currents, torch.ones(4).double(), None, network)
    errors = torch.randn(6, 3, 4, generator=generator).double()
    (spikes * errors).sum().backward()

    fired, rise, levels = (torch.zeros(6, 3, 4).double() for _ in range(3))
    m, s, q, before = (torch.zeros(3, 4).double() for _ in range(4))
    for t in range(6):
        current = inputs[t].detach() @ weight.detach().t()
        m, s, q = (m + current) * (1 - 1 / 5), (s + current) * (1 - 1 / 3), (q + current) * (1 - 1 / 2.5)
        v = (m - s) * (1 / 3) / (1 / 3 - 1 / 5)
        fired[t], rise[t], levels[t] = v >= 1, v - before, q
        m, s, q, before = (x * (v < 1) for x in (m, s, q, v))
    assert torch.equal(spikes, fired)
    torch.testing.assert_close(last, v)
    assert (last >= 1).any()
    assert 5 < fired.sum() < 60
    expected = naive_event_gradients(inputs.detach(), fired, rise, levels, errors, weight.detach())
    torch.testing.assert_close(weight.grad, expected[0])
    torch.testing.assert_close(inputs.grad, expected[1])


def test_convolutions_learn_as_the_same_connection_written_out():
    layer = multi_spike.Convolution(2, 3, 1, 1)
    generator = torch.Generator().manual_seed(5)
    spikes = (torch.rand(4, 1, 4, 4, generator=generator) < 0.5).double()
    kernel = torch.randn(2, 1, 3, 3, generator=generator).double()
    dense = torch.stack(
        [
            nn.functional.conv2d(e.reshape(1, 1, 4, 4), kernel, padding=1).flatten()
            for e in torch.eye(16, dtype=kernel.dtype)
        ]
    ).t()
    of_weights, of_times = torch.randn(2, 4, 2, 4, 4, generator=generator).double()
    found = []
    for inputs, weight, convolution in ((spikes, kernel, layer), (spikes.flatten(1), dense, None)):
        x = inputs.clone().requires_grad_()
        currents = time_based.Connect.apply(x, weight, convolution)
        grads = (of_weights.reshape(currents[0].shape), of_times.reshape(currents[1].shape))
        torch.autograd.backward(currents, grads)
        found.append(x.grad.flatten())
    torch.testing.assert_close(*found)


def test_spikes_that_count_alike_have_equal_scores():
    method = build("time_based", {"t_max": 5})
    trains = torch.zeros(5, 1, 3)
    trains[[0, 3], 0, 0] = trains[[1, 2], 0, 1] = trains[[0, 2], 0, 2] = 1
    scores = method.scores(trains)
    assert scores[0, 0] == scores[0, 1] < scores[0, 2]


def test_a_pool_shares_an_error_among_the_spikes():
    spikes = torch.tensor([[[[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]], requires_grad=True)
    (6 * time_based.SharingPool.apply(spikes, 2)).sum().backward()
    assert spikes.grad[0, 0, :2, :2].tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert spikes.grad[0, 0, 2].tolist() == [0.0, 0.0, 0.0]


def test_the_supervisor_asks_for_the_last_rising_step_of_the_label():
    rise = torch.tensor([[[0.5, 0.5]], [[0.1, 0.2]], [[0.01, -0.3]]])
    asked = time_based.supervised(rise, torch.tensor([1]))
    assert asked.nonzero().tolist() == [[1, 0, 1]]
    assert not time_based.supervised(-rise.abs(), torch.tensor([1])).any()


def test_count_plus_never_weighs_a_label_less():
    plain, plus = (build("time_based", training={"loss": loss}) for loss in ("count", "count-plus"))
    counts, labels = torch.tensor([[0.0, 60.0, 40.0], [2.0, 1.0, 0.0]]), torch.tensor([0, 0])
    expected = torch.tensor([[5.0, -59.0, -39.0], [3.0, 0.0, 0.0]]) / 3
    torch.testing.assert_close(plain.count_errors(counts, labels)[1], expected)
    ratio = 101 / 2 / 10
    weighed = expected * torch.tensor([ratio, 1.0, 1.0])
    torch.testing.assert_close(plus.count_errors(counts, labels)[1], weighed)
    few = torch.tensor([[1.0, 2.0, 0.0]])
    few_labels = torch.tensor([0])
    torch.testing.assert_close(plus.count_errors(few, few_labels)[1], plain.count_errors(few, few_labels)[1])


@pytest.mark.parametrize("loss", ["first-spike", "cross-entropy-plus"])
def test_errors_of_cross_entropies_ask_the_label_to_come_and_others_to_go(loss):
    method = build("time_based", training={"loss": loss})
    spikes = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    value, errors = method.errors(spikes, torch.tensor([0]))
    errors = errors * spikes
    assert value > 0
    assert errors[1, 0, 0] > 0
    assert errors[0, 0, 1] < 0
    assert errors[..., 2].abs().sum() == 0


def test_the_gain_moves_into_the_threshold():
    method = build("time_based")
    layer = method.layers[0]
    with torch.no_grad():
        layer.gain.mul_(torch.tensor([0.5, 2.0, 1.0, 1.5]).reshape(4, 1, 1, 1))
        layer.shift.fill_(0.1)
        layer.threshold.fill_(0.8)
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    before = layer(image)[0]
    layer.take_gain()
    assert torch.equal(layer.gain, torch.ones_like(layer.gain))
    assert torch.equal(layer(image)[0], before)


def test_thresholds_are_calibrated_to_the_firing_asked_for():
    method = build("time_based", {"t_max": 5, "layers": ["8C3p1", "20"]})
    images, _ = samples(8)
    method.before_epoch(0, images)
    trains, _, _ = method.run(images)
    assert trains[0][-2:].mean().item() == pytest.approx(0.6 / 5, rel=0.15)
