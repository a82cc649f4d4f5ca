"""Networks that learn in every bin: what they learn with is what they decide with."""

import copy
import math
from unittest import mock

import pytest
import torch

from reproductions import methods
from reproductions.catalog import validated
from reproductions.errors import SuiteError
from reproductions.methods import every_bin
from reproductions.methods.every_bin import BinaryWeights, StandardizedWeights

SHAPE = (1, 6, 6)
CROSS_ENTROPY = {"kind": "cross-entropy", "temperature": 1.0}
LOSSES = [
    CROSS_ENTROPY,
    {"kind": "single-target", "t_target": 4.0},
    {"kind": "relative-target", "gamma": 2.0},
]


TEACHER = {"layers": ["8C3p1", "P2", "16"], "learning_rate": 0.1, "weight_decay": 1e-4}


def settings_of(network=None, bins=6, **training):
    content = {
        "method": "every-bin",
        "implementation": "every_bin",
        "dataset": "digits",
        "description": "",
        "validation": 0,
        "encoding": {"kind": "latency", "bins": bins},
        "network": {"layers": ["4C3p1", "A2", "12"], "t_max": 12, "output_current": 0.05, **(network or {})},
        "training": {
            "epochs": 4,
            "batch_size": 16,
            "optimizer": "adam",
            "learning_rates": [1e-2],
            "loss": CROSS_ENTROPY,
            **training,
        },
    }
    return validated(content, "tiny")


def method_of(network=None, **training):
    return methods.build(settings_of(network, **training), SHAPE, 4, 0, "cpu")


def images(n=96, bins=6):
    """Each class is bright, and so early, in a quarter of its own."""
    labels = torch.arange(n) % 4
    times = torch.randint(bins // 2, bins + 2, (n, 36), generator=torch.Generator().manual_seed(0)).float()
    for label in range(4):
        times[labels == label, 9 * label : 9 * label + 9] = 0.0
    return times.masked_fill(times >= bins, math.inf), labels


def train(method, epochs=4):
    times, labels = images()
    return [method.train_epoch(epoch, times, labels, lambda samples: None) for epoch in range(epochs)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss["kind"])
@pytest.mark.parametrize("weights", ["standardized", "binary"])
def test_it_learns_with_each_loss(loss, weights):
    method = method_of({"weights": weights}, loss=loss, epochs=24)
    train(method, 24)
    (*_, outputs), _ = method.predict(images()[0])
    assert (outputs.argmin(1) == images()[1]).double().mean() > 0.8, "chance is a quarter"


def test_learning_and_deciding_have_the_same_outputs():
    method = method_of()
    train(method, 1)
    times, _ = images()
    with torch.no_grad():
        learning, potential = method.network.train() and method.forward(times)
    deciding, at_crossing = method.predict(times)
    agree = (learning[-1] == deciding[-1]).double().mean()
    assert agree > 0.99, "but for sums that tie with the threshold to rounding"
    same = learning[-1] == deciding[-1]
    torch.testing.assert_close(potential[same], at_crossing[same], rtol=1e-4, atol=1e-4)
    for fired, spikes in zip(method.counted(learning), deciding, strict=True):
        assert (fired - spikes.isfinite().sum(0)).abs().double().mean() < 0.01 * len(times)


def test_outputs_go_on_after_the_hidden_layers():
    method = method_of({"output_current": 0.2})
    train(method, 1)
    (*hidden, outputs), _ = method.predict(images()[0])
    assert max(layer[layer.isfinite()].max() for layer in hidden) < 6
    assert ((outputs >= 6) & outputs.isfinite()).any()


def test_a_price_makes_spikes_few():
    free, dear = method_of(epochs=8), method_of(spike_price=0.05, epochs=8)
    spikes = [sum(train(method, 8)[-1].spikes[:-1]) for method in (free, dear)]
    assert spikes[1] < 0.5 * spikes[0]


def test_the_single_target_leaves_the_others_silent():
    method = method_of(loss={"kind": "single-target", "t_target": 4.0}, epochs=25)
    train(method, 25)
    (*_, outputs), _ = method.predict(images()[0])
    assert outputs.isfinite().sum(1).double().mean() < 1.2


@pytest.mark.parametrize("training", [{}, {"teacher": TEACHER}], ids=["from labels", "taught"])
def test_a_run_that_was_interrupted_ends_alike(training):
    whole, first, second = (method_of(**training) for _ in range(3))
    train(whole, 2)
    times, labels = images()
    first.train_epoch(0, times, labels, lambda samples: None)
    second.load_state_dict(first.state_dict())
    second.train_epoch(1, times, labels, lambda samples: None)
    for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_layout_in_memory_ends_alike():
    first, second = method_of(), method_of()
    times, labels = images()
    first.train_epoch(0, times, labels, lambda samples: None)
    for parameter in second.network.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.T.contiguous().T
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for method in (first, second):
        method.train_epoch(1, times, labels, lambda samples: None)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_counted_spikes_have_the_gradient_of_a_sum_over_the_last_bin():
    activations = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.rand(3, 4, 2, dtype=torch.float64)
    activations.requires_grad_()
    same, fired = every_bin.Counted.apply(activations)
    assert torch.equal(same, activations)
    torch.testing.assert_close(fired.double(), activations[-1].sum(0), atol=1e-6, rtol=0)
    for unused in (False, True):
        (grad,) = torch.autograd.grad(
            5 * fired.sum() + (0 if unused else (weight * same).sum()), activations, retain_graph=True
        )
        expected = torch.zeros_like(weight) if unused else weight.clone()
        expected[-1] += 5
        torch.testing.assert_close(grad, expected)


def test_half_precision_learns_too():
    method = method_of(precision="bfloat16", epochs=12)
    train(method, 12)
    (*_, outputs), _ = method.predict(images()[0])
    assert (outputs.argmin(1) == images()[1]).double().mean() > 0.8, "chance is a quarter"


def test_binary_weights_have_two_values_before_and_after_learning():
    method = method_of({"weights": "binary"})
    train(method, 2)
    for layer in method.connections:
        values = layer.weight.detach().abs()
        torch.testing.assert_close(values, torch.full_like(values, values.mean()))
        assert (layer.weight > 0).any()
        assert (layer.weight < 0).any()


def test_the_gradient_goes_straight_through_a_sign_where_the_real_weight_is_small():
    real = torch.tensor([[0.5, -0.5, 1.5, -1.5]], requires_grad=True)
    alpha = torch.tensor(2.0, requires_grad=True)
    grad = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    weight = BinaryWeights()(real, alpha)
    assert weight.tolist() == [[2.0, -2.0, 2.0, -2.0]]
    weight.backward(grad)
    passed = 2 * torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    assert torch.equal(real.grad, passed - passed.mean())  # the mean is taken out in front
    assert alpha.grad.item() == 1 - 2 + 3 - 4


def test_standardized_weights_have_no_mean_and_keep_the_norm_they_were_assigned():
    weight = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    module = StandardizedWeights()
    standardized = module(*module.right_inverse(weight))
    torch.testing.assert_close(standardized.flatten(1).mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    norms = standardized.flatten(1).norm(dim=1)
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(norms, torch.full((3,), centred.flatten(1).norm(dim=1).mean()))


def test_standardized_weights_are_the_same_where_nothing_is_compiled():
    weight = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    module = StandardizedWeights()
    direction, gain = module.right_inverse(weight)
    with mock.patch.object(every_bin, "COMPILED_FOR", "another device"):
        plain = module(direction, gain)
    torch.testing.assert_close(module(direction, gain), plain)


def test_standardized_weights_have_the_gradient_of_what_they_are():
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(StandardizedWeights().double(), (direction, gain))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 13}, r"encoding.bins must be at most network.t_max = 12, got 13"),
        ({"loss": {"kind": "hinge"}}, "training.loss"),
        ({"loss": {"kind": "single-target", "t_target": 12.0}}, "t_target must be .*, got 12"),
        ({"loss": {"kind": "relative-target", "gamma": 13.0}}, "gamma must be at most .*, got 13"),
        ({"network": {"layers": ["A2", "12"]}}, "a pool must follow a convolution"),
        ({"network": {"weights": "ternary"}}, "network.weights"),
        ({"loss": LOSSES[1], "teacher": TEACHER}, "teacher goes with .*'cross-entropy', got 'single-target'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(SuiteError, match=message):
        settings_of(**change)


def test_times_that_have_no_bins_are_refused():
    content = settings_of().model_dump(mode="json") | {"encoding": {"kind": "linear", "scale": 1.0}}
    with pytest.raises(SuiteError, match=r"encoding\.kind: .*'latency'.*got 'linear'"):
        validated(content, "tiny")
