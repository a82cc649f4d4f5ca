"""What is particular to sparse ramps, to Mostafa's method and to DS4NN."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu

from reproductions import methods
from reproductions.catalog import validated
from reproductions.errors import SuiteError
from ssnn_plugin.functional import weight_sum_cost

SHAPE = (1, 6, 6)
TRAINING = {"epochs": 2, "batch_size": 16, "optimizer": "adam", "learning_rates": [1e-2]}
SETTINGS = {
    "sparse_ramp": {
        "encoding": {"kind": "linear", "scale": 1.0},
        "network": {"layers": ["3C3", "P2", "7"], "hidden_window": 20.0, "t_max": 91.0, "dtype": "float64"},
        "training": {"spike_price": 0.01, "temperature": 0.5},
    },
    "mostafa": {
        "encoding": {"kind": "two-times"},
        "network": {
            "layers": ["7"],
            "t_max": 12.0,
            "init": [{"normal": [0.1, 0.2]}, {"uniform": [0.0, 0.6]}],
            "dtype": "float64",
        },
        "training": {"weight_sum_cost": 2.0, "l2": 0.1, "max_norm": 0.05},
    },
    "ds4nn": {
        "network": {"layers": ["3C3", "P2", "7"], "t_max": 64},
        "training": {"gamma": 5.0, "center_along": "mean input"},
    },
}


def _settings(name, network=None, **training):
    part = SETTINGS[name]
    content = {
        "method": name,
        "implementation": name,
        "dataset": "digits",
        "description": "",
        "validation": 0,
        **part,
        "network": {**part["network"], **(network or {})},
        "training": {**TRAINING, **part["training"], **training},
    }
    return validated(content, "tiny")


def _method(name, network=None, **training):
    return methods.build(_settings(name, network, **training), SHAPE, 4, 0, "cpu")


def _images(n=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    x = torch.rand(n, 36, generator=generator, dtype=torch.float64) * 0.3
    for label in range(4):
        x[labels == label, 9 * label : 9 * label + 9] += 0.7
    return x, labels


def _relu_network(method, x):
    """Activations of the network that sparse ramps are, as PyTorch computes them."""
    weights = dict(method.network.named_parameters())
    kernel, bias = (weights[f"0.neurons.1.{name}"] for name in ("weight", "bias"))
    first = relu(torch.nn.functional.conv2d(x.reshape(-1, *SHAPE), kernel, bias))
    pooled = torch.nn.functional.max_pool2d(first, 2).flatten(1)
    second = relu(pooled @ weights["1.neurons.weight"].t() + weights["1.neurons.bias"])
    return first, second, second @ weights["2.neurons.weight"].t() + weights["2.neurons.bias"]


def _biased(method):
    with torch.no_grad():
        for name, parameter in method.network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
    return method


def test_sparse_ramps_are_a_relu_network():
    method = _biased(_method("sparse_ramp"))
    x, labels = _images()
    layers, potential = method.forward(1 - x)
    first, second, logits = _relu_network(method, x)
    for spikes, activation, end in zip(layers, (first, second), (21.0, 41.0), strict=False):
        assert 0.1 < (activation > 0).double().mean() < 0.9
        assert torch.equal(spikes.isfinite(), activation > 0)
        torch.testing.assert_close(end - spikes.clamp(max=end), activation)
    fired = logits > 0
    assert torch.equal(layers[-1].isfinite(), fired)
    torch.testing.assert_close(91 - layers[-1][fired], logits[fired])
    loss = method.loss(layers[-1], potential, labels)
    torch.testing.assert_close(loss, cross_entropy(logits / 0.5, labels))
    price = 0.01 * (first.sum() + second.sum()) / len(x)
    torch.testing.assert_close(method.costs(layers), price)
    of_spikes = torch.autograd.grad(loss + method.costs(layers), list(method.network.parameters()))
    expected = cross_entropy(logits / 0.5, labels) + price
    of_relu = torch.autograd.grad(expected, list(method.network.parameters()))
    for ours, theirs in zip(of_spikes, of_relu, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_outputs_need_a_window_behind_the_hidden_ones():
    with pytest.raises(SuiteError, match=r"t_max must lie after 41\.0, the end of the hidden windows"):
        _settings("sparse_ramp", {"t_max": 41.0})


def test_a_higher_price_makes_fewer_spikes():
    x, labels = _images()
    counts = []
    for price in (0.0, 0.3):
        method = _method("sparse_ramp", spike_price=price, epochs=8)
        for epoch in range(8):
            statistics = method.train_epoch(epoch, 1 - x, labels, lambda n: None)
        counts.append(sum(statistics.spikes[:-1]))
    assert counts[1] < 0.8 * counts[0]


def test_mostafas_costs_are_those_of_the_weights():
    method = _method("mostafa")
    lacking = sum(weight_sum_cost(layer.weight, 1.0) for layer in method.connections)
    squares = sum(layer.weight.square().sum() for layer in method.connections)
    assert method.costs([]).item() == pytest.approx((2.0 * lacking + 0.1 * squares).item())


def test_mostafas_loss_is_the_cross_entropy_on_z():
    outputs = torch.tensor([[0.5, 1.0, math.inf], [2.0, 1.5, 1.0]], dtype=torch.float64)
    z = torch.tensor([[0.5, 1.0, 12.0], [2.0, 1.5, 1.0]], dtype=torch.float64).exp()
    labels = torch.tensor([1, 2])
    loss = _method("mostafa").loss(outputs, torch.zeros_like(outputs), labels)
    torch.testing.assert_close(loss, cross_entropy(-z, labels))


def test_mostafas_gradients_are_rescaled_neuron_by_neuron():
    method = _method("mostafa")
    before = []
    for layer in method.connections:
        layer.weight.grad = (
            torch.rand_like(layer.weight) * torch.linspace(0, 0.05, len(layer.weight))[:, None]
        )
        before.append(layer.weight.grad.clone())
    method.after_backward()
    scaled = 0
    for layer, old in zip(method.connections, before, strict=True):
        for new_row, row in zip(layer.weight.grad, old, strict=True):
            too_long = row.norm() > 0.05
            scaled += bool(too_long)
            torch.testing.assert_close(new_row, row * 0.05 / row.norm() if too_long else row)
    assert 0 < scaled < 11


def test_mostafas_network_may_be_convolutional():
    init = [{"normal": normal} for normal in ([0.3, 0.2], [0.15, 0.15], [0.3, 0.2])]
    network = {"layers": ["4C3", "P2", "12"], "init": init}
    options = {"weight_sum_cost": 1.0, "l2": 0.0, "max_norm": 10.0, "learning_rates": [3e-3]}
    method = _method("mostafa", network, spike_price=0.01, epochs=12, **options)
    x, labels = _images()
    times = torch.where(x > 0.5, 0.0, math.log(6.0)).to(torch.float64)
    losses = [method.train_epoch(epoch, times, labels, lambda n: None).loss for epoch in range(12)]
    assert losses[-1] < 0.3 * losses[0]
    (*_, outputs), _ = method.predict(times)
    assert (outputs.argmin(1) == labels).double().mean() > 0.9, "chance is a quarter"


def test_ds4nn_begins_with_the_wanted_part_of_its_neurons_firing():
    method = _method("ds4nn", {"firing": 0.4})
    x, _ = _images(200)
    times = (64 * (1 - x)).floor().clamp(0, 63).float()
    method.before_epoch(0, times)
    layers, _ = method.predict(times)
    for layer in layers:
        assert layer.isfinite().double().mean() == pytest.approx(0.4, abs=0.1)
    weights = [layer.weight.clone() for layer in method.connections]
    method.before_epoch(1, times)
    assert all(torch.equal(a, b.weight) for a, b in zip(weights, method.connections, strict=True))


@pytest.mark.parametrize("gradient", ["latency", "surrogate", "local_slope"])
def test_ds4nn_learns_with_every_gradient_rule_of_its_layers(gradient):
    method = _method("ds4nn", gradient=gradient)
    assert {layer.gradient.name for layer in method.connections} == {gradient}
    assert [layer.silent_gradient for layer in method.connections] == [False, False, True]
    x, labels = _images()
    times = (64 * (1 - x)).floor().clamp(0, 63).float()
    before = [layer.weight.detach().clone() for layer in method.connections]
    statistics = method.train_epoch(0, times, labels, lambda n: None)
    assert math.isfinite(statistics.loss)
    assert not any(torch.equal(a, b.weight) for a, b in zip(before, method.connections, strict=True))


@pytest.mark.parametrize("pool", ["P2", "A2"])
@pytest.mark.parametrize("along", ["ones", "mean input"])
def test_ds4nn_takes_the_common_shift_out_of_the_hidden_gradients(along, pool):
    method = _method("ds4nn", {"layers": ["3C3", pool, "7"]}, center_along=along)
    times = (64 * (1 - _images()[0])).floor().clamp(0, 63).float()
    method.before_epoch(0, times)
    for layer in method.connections:
        layer.weight.grad = torch.rand_like(layer.weight)
    method.after_backward()
    convolution, hidden, output = method.connections
    fired, _ = method.forward(times)
    spikes = method.stages[0].after(fired[0]).isfinite().float()
    spikes = nn.functional.avg_pool2d(spikes, 2).flatten(1) if pool == "A2" else spikes
    shift = spikes.mean(0) if along == "mean input" else torch.ones(len(hidden.weight[0]))
    assert shift.any()
    assert convolution.weight.grad.flatten(1).mean(1).abs().max() < 1e-6
    assert (hidden.weight.grad @ shift).abs().max() < 1e-4
    assert output.weight.grad.min() >= 0


def test_what_does_not_fit_is_refused_before_training():
    with pytest.raises(SuiteError, match=r"training\.gamma must be at most network\.t_max = 64, got 65\.0"):
        _settings("ds4nn", gamma=65.0)
    with pytest.raises(SuiteError, match=r"network\.firing: .*greater than 0, got 0"):
        _settings("ds4nn", {"firing": 0.0})
    with pytest.raises(SuiteError, match=r"network\.t_max must be at most 80 time constants, got 81\.0"):
        _settings("mostafa", {"t_max": 81.0})
    with pytest.raises(SuiteError, match=r"spike_price must be 0 with normalize_errors = true, .* got 0\.1"):
        _settings("ds4nn", spike_price=0.1)
    _settings("ds4nn", spike_price=0.1, normalize_errors=False)


def test_inputs_of_sparse_ramps_come_before_the_first_window():
    content = _settings("sparse_ramp").model_dump(mode="json", exclude_unset=True)
    for encoding, message in (
        ({"kind": "linear", "scale": 4.0}, r"encoding\.scale must be at most 1, .* got 4\.0"),
        ({"kind": "latency"}, "encoding"),
    ):
        with pytest.raises(SuiteError, match=message):
            validated(content | {"encoding": encoding}, "tiny")


def test_center_along_needs_centred_gradients():
    with pytest.raises(SuiteError, match="center_along"):
        _settings("ds4nn", center_along="mean input", center_gradients=False)


@pytest.mark.parametrize("name", SETTINGS)
def test_going_on_from_a_checkpoint_gives_the_same_weights(name):
    x, labels = _images()
    settings = _settings(name)
    times = 1 - x if name != "ds4nn" else (64 * (1 - x)).floor().clamp(0, 63).float()
    times = times.to(settings.network.torch_dtype)
    whole, part, rest = (_method(name) for _ in range(3))
    for epoch in range(2):
        whole.train_epoch(epoch, times, labels, lambda n: None)
    part.train_epoch(0, times, labels, lambda n: None)
    rest.load_state_dict(part.state_dict())
    rest.train_epoch(1, times, labels, lambda n: None)
    for a, b in zip(whole.network.parameters(), rest.network.parameters(), strict=True):
        assert torch.equal(a, b)
