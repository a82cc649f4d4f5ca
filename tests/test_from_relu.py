"""`from_relu`: the network of windowed ramps has the outputs and gradients of the ReLU network."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from relu_models import MODELS, build, images, with_random_statistics
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from ssnn_plugin import ClippedSpikesWarning, NoTimeMode, from_relu
from ssnn_plugin.relu import RampNeurons


@pytest.fixture(autouse=True)
def _no_spike_is_clipped():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClippedSpikesWarning)
        yield


def difference(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def check(model, network, inputs, tolerance=1e-9):
    """Outputs, gradients of the inputs, decisions by the first spike, and one spike in its window at most."""
    ours, theirs = (inputs.clone().requires_grad_() for _ in range(2))
    found, expected = network(ours), model(theirs)
    assert difference(found, expected) <= tolerance
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=inputs.dtype)
    grads = torch.autograd.grad(found, ours, weights)[0], torch.autograd.grad(expected, theirs, weights)[0]
    assert grads[1].any()
    assert difference(*grads) <= tolerance

    with torch.no_grad():
        activity = network.activity(inputs)
        times, potential = network.first_spikes(inputs)
    assert torch.equal(potential, found)
    assert torch.equal(activity.potential, found)
    assert torch.equal(activity.times["output"], times)
    assert torch.equal(times.argmin(1), expected.argmax(1))
    assert not any(activity.clipped.values())
    for name, layer in network.layers.items():
        spikes = activity.times[name][activity.times[name].isfinite()]
        assert ((spikes >= layer.start - 1e-9) & (spikes <= layer.t_max)).all()
        assert all(delay >= 0 for delay in layer.delays.values())


@pytest.mark.parametrize("name", MODELS)
def test_small_networks_keep_their_outputs_and_gradients(name):
    model = build(name)
    check(model, from_relu(model, calibrate_on=images(seed=0, samples=40)), images())


def _vgg():
    from torchvision.models.vgg import make_layers

    plan = [16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"]  # VGG-11's, narrower
    head = nn.Linear(128, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10)
    return nn.Sequential(make_layers(plan, batch_norm=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


def _resnet():
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


def _mobilenet():
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(num_classes=10, width_mult=0.35)


@pytest.mark.parametrize("build_model", [_vgg, _resnet, _mobilenet])
def test_networks_of_torchvision(build_model):
    torch.manual_seed(0)
    model = with_random_statistics(build_model()).double().eval()
    network = from_relu(model, calibrate_on=images(3, 32, seed=0), margin=1.0)
    check(model, network, images(2, 32))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def _digits(size):
    """Scans of digits [1797, 3, size, size] from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    scans = torch.from_numpy(data.images / 16).float().unsqueeze(1)
    return nn.functional.interpolate(scans, size).repeat(1, 3, 1, 1), torch.from_numpy(data.target)


def _train(model, x, labels, steps):
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build_model", "size", "steps"), [(_vgg, 32, 90), (_resnet, 16, 40), (_mobilenet, 32, 90)]
)
def test_trained_networks_of_torchvision_decide_as_before(build_model, size, steps):
    """In double precision with the same outputs, in single precision with the same accuracy."""
    x, labels = _digits(size)
    torch.manual_seed(0)
    model = _train(build_model(), x[:1000], labels[:1000], steps)
    test, target = x[1000:], labels[1000:]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        network = from_relu(model.to(dtype), calibrate_on=x[:200].to(dtype), margin=1.0)
        with torch.no_grad():
            expected = torch.cat([model(part) for part in test.to(dtype).split(200)])
            found = torch.cat([network(part) for part in test.to(dtype).split(200)])
        assert (expected.argmax(1) == target).float().mean() > 0.6
        assert difference(found, expected) <= tolerance
        assert torch.equal(found.argmax(1), expected.argmax(1))


def test_shortcuts_of_a_resnet_are_delays_by_the_window_that_they_skip():
    torch.manual_seed(0)
    network = from_relu(_resnet().double().eval(), calibrate_on=images(2, 32))
    delays = network.layers["layer1.0.relu_1"].delays
    skipped = network.layers["layer1.0.relu"].window
    assert delays == {"layer1.0.relu": 0.0, "relu": pytest.approx(skipped)}
    assert len(network.layers) == 17


@st.composite
def _networks(draw):
    """Layers for images [*, 4 * 9 * 9], with residual blocks, and what is left of the images flat."""
    layers, channels, size = [nn.Unflatten(1, (4, 9, 9))], 4, 9
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["convolution", "residual", "max", "average"]))
        kernel, stride, padding = draw(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 1)))
        if kind == "convolution":
            dilation, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2]))
            span = dilation * (kernel - 1) + 1
            if size + 2 * padding < span:
                continue
            bias = draw(st.booleans())
            layers.append(nn.Conv2d(channels, 6, kernel, stride, padding, dilation, groups, bias))
            channels, size = 6, (size + 2 * padding - span) // stride + 1
        elif kind == "residual":
            layers.append(Residual(channels))
        elif size + 2 * padding >= kernel >= 2 * padding:
            pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
            layers.append(pool(kernel, stride, padding))
            size = (size + 2 * padding - kernel) // stride + 1
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(channels))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True)])))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, 3))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.last = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return torch.relu(self.last(self.inner(x)) + x)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(_networks())
def test_any_network_of_these_layers(model):
    model = with_random_statistics(model).double().eval()
    network = from_relu(model, calibrate_on=images(8, 9, seed=0, channels=4).flatten(1), margin=3.0)
    inputs = images(3, 9, channels=4).flatten(1)
    assert difference(network(inputs), model(inputs)) <= 1e-9


def test_gradients_of_the_parameters_are_those_of_the_relu_network():
    model = build("functional")
    network, inputs = from_relu(model, calibrate_on=images()), images()
    labels = torch.arange(len(inputs)) % 5
    for one in (model, network):
        nn.functional.cross_entropy(one(inputs), labels).backward()
    ours = {name.removeprefix("body."): p.grad for name, p in network.named_parameters()}
    theirs = {name: p.grad for name, p in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_is():
    model = build("in place").train()
    before = copy.deepcopy(model.state_dict())
    network = from_relu(model, calibrate_on=images())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert model.training
    assert not network.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_relu6_is_a_window_of_6_and_a_clamp_its_own():
    network = from_relu(build("bottlenecks"), calibrate_on=images())
    assert {layer.window for layer in network.layers.values()} == {6.0}
    capped = from_relu(build("methods"), calibrate_on=images()).layers["clamp"]
    assert (capped.window, capped.cap) == (0.4, 0.4)


def test_a_relu_of_what_is_not_negative_has_no_neurons():
    model = nn.Sequential(
        nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)
    )
    network = from_relu(model.double(), calibrate_on=images())
    assert list(network.layers) == ["2"]
    check(model, network, images())


@pytest.mark.parametrize("padding", [0, 1])
def test_a_normalisation_of_the_images_is_part_of_the_first_connection(padding):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=padding), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    model.double()
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    network = from_relu(model, calibrate_on=images(), normalize=(mean, std))
    normalised = (images(seed=2) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert (
        difference(network(images(seed=2)), model(normalised)) <= 1e-6
    )  # mean and std in single precision here
    check(nn.Sequential(Normalize(mean, std), model), network, images(seed=2))


class Normalize(nn.Module):
    """A normalisation as part of a model."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.double).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.double).view(3, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


@pytest.mark.parametrize("of_torchvision", [False, True])
def test_a_model_may_begin_with_its_normalisation(of_torchvision):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    first = Normalize(mean, std)
    if of_torchvision:
        from torchvision.transforms import Normalize as OfTorchvision

        first = OfTorchvision(mean, std)
    model = nn.Sequential(first, build("functional"))
    check(model, from_relu(model, calibrate_on=images(seed=0, samples=40)), images())


def test_signed_inputs_have_two_neurons_each():
    model, inputs = build("functional"), 2 * images() - 1
    network = from_relu(model, calibrate_on=2 * images(seed=0, samples=40) - 1, signed=True)
    check(model, network, inputs)
    times = network.activity(inputs).times["input"]
    assert times.shape == (6, 6, 8, 8)
    leads = (1 - times).clamp(min=0)
    torch.testing.assert_close(leads[:, :3] - leads[:, 3:], inputs)
    assert (times.isfinite().sum() == (inputs != 0).sum()).all()


def test_inputs_out_of_range_are_refused():
    network = from_relu(build("functional"), calibrate_on=images())
    for wrong in (images() + 0.5, -images(), torch.full_like(images(), torch.nan)):
        with pytest.raises(ValueError, match=r"inputs must lie in 0 ... 1, .* normalize=\(mean, std\)"):
            network(wrong)
    eight_bit = from_relu(build("functional"), calibrate_on=(255 * images()).round(), x_max=255)
    assert eight_bit.encode(torch.tensor([[[[255.0, 1.0, 0.0]]]])).tolist() == [[[[0.0, 254.0, torch.inf]]]]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_as_great_as_can_be_in_their_precision(signed, dtype):
    extreme = torch.full((4, 2), 0.1, dtype=dtype)
    inputs = torch.cat([extreme, -extreme]) if signed else extreme
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).to(dtype)
    network = from_relu(model, calibrate_on=inputs, x_max=0.1, signed=signed)
    times = network.encode(inputs)
    assert (times[times.isfinite()] == 0).all()
    torch.testing.assert_close(network(inputs), model(inputs))


def _sequential(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Calls(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(3, 4, 3)
        self.parts = nn.ModuleList(modules)

    def forward(self, x):
        return self.function(self.conv(x), *self.parts)


def _decides(x):
    return x if x.sum() > 0 else -x


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x, y):
        return self.one(x) + self.other(y)


REFUSED = {
    "a curved activation": (lambda: _sequential(nn.Sigmoid()), r"^1 \(Sigmoid\).*train the model with ReLU"),
    "a leaky one": (lambda: _sequential(nn.LeakyReLU()), r"^1 \(LeakyReLU\).*train the model with ReLU"),
    "a hard tanh": (lambda: _sequential(nn.Hardtanh()), r"^1 \(Hardtanh\).*must clip at 0.*got -1"),
    "a normalisation per sample": (lambda: _sequential(nn.GroupNorm(2, 4)), r"^1 \(GroupNorm\).*BatchNorm2d"),
    "no statistics": (
        lambda: _sequential(nn.BatchNorm2d(4, track_running_stats=False)),
        r"^1 \(BatchNorm2d\).*track_running_stats=True",
    ),
    "a softmax": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.Softmax(1)),
        r"^2 \(Softmax\).*leave it out",
    ),
    "an unknown module": (
        lambda: _sequential(nn.Upsample(scale_factor=2)),
        r"^1 \(Upsample\).*is made of Conv2d",
    ),
    "a pool of currents": (lambda: _sequential(nn.MaxPool2d(2)), r"^1 \(MaxPool2d\).*put it behind a ReLU"),
    "indices": (
        lambda: Calls(lambda x, pool: pool(x.relu())[0], nn.MaxPool2d(2, return_indices=True)),
        r"^parts.0 \(MaxPool2d\).*no indices",
    ),
    "a gate": (lambda: Calls(lambda x: x * x.mean((2, 3), keepdim=True)), r"^mul in the model.*multiplies"),
    "a square": (lambda: Calls(lambda x: x.relu() * x.relu()), r"^mul in the model.*multiplies"),
    "itself squared": (lambda: Calls(lambda x: torch.mul(x, x)), r"^mul in the model.*multiplies"),
    "itself divided": (lambda: Calls(lambda x: x / x), r"^div in the model.*multiplies or divides"),
    "itself as weights": (
        lambda: Calls(lambda x: nn.functional.linear(y := x.flatten(1), y)),
        r"^linear in the model.*weights must not depend on the input",
    ),
    "a pool before a hard tanh": (
        lambda: _sequential(nn.MaxPool2d(2), nn.Hardtanh()),
        r"^2 \(Hardtanh\).*must clip at 0.*got -1",
    ),
    "a function": (lambda: Calls(torch.tanh), r"^tanh in the model.*train the model with ReLU"),
    "a maximum": (lambda: Calls(lambda x: torch.maximum(x, x)), r"^maximum in the model.*is made of"),
    "a reshape": (
        lambda: Calls(lambda x: x.reshape(-1, 2)),
        r"^reshape in .*features of a sample can be flattened",
    ),
    "a mean of the batch": (lambda: Calls(lambda x: x.mean(0)), r"^mean in .*without that of the batch"),
    "a choice by value": (lambda: Calls(_decides), r"forward of Calls cannot be followed.*nn.Sequential"),
    "several outputs": (lambda: Calls(lambda x: (x, x)), r"must return one tensor"),
    "a rounded quotient": (
        lambda: Calls(lambda x: torch.div(x.relu(), 0.05, rounding_mode="floor")),
        r"^div in the model.*it rounds.*leave rounding_mode='floor' out",
    ),
    "two inputs": (Two, r"must take one tensor"),
    "pruned weights": (
        lambda: nn.Sequential(l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5), nn.ReLU()),
        r"^0 \(Conv2d\) cannot become ramps: its weights are pruned",
    ),
    "random numbers": (
        lambda: Calls(lambda x: nn.functional.dropout(x, 0.5)),
        r"^dropout in .*training=self.training",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(case):
    make, message = REFUSED[case]
    with pytest.raises(NoTimeMode, match=message):
        from_relu(make().double(), calibrate_on=images())


def test_what_the_graph_does_not_show_is_found_by_its_outputs():
    model = build("functional")
    model.fc.register_forward_hook(lambda module, given, result: 2 * result)
    network = from_relu(model, calibrate_on=images())  # the hook of a module that stays is kept
    assert difference(network(images()), model(images())) <= 1e-9
    model.register_forward_hook(lambda module, given, result: result + 1)
    with pytest.raises(NoTimeMode, match="outputs of the network differ from those of Functional"):
        from_relu(model, calibrate_on=images())


def test_a_normalisation_of_channels_behind_a_linear_is_none_of_its_features():
    for length in (5, 7):
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(length), nn.ReLU(), nn.Flatten())
        model = with_random_statistics(model.append(nn.Linear(5 * length, 3))).double().eval()
        x = images()[:, 0, :length, :6]
        network = from_relu(model, calibrate_on=x)
        assert difference(network(x), model(x)) <= 1e-9


def test_weights_that_are_read_elsewhere_are_not_folded_into():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            return torch.relu(
                self.norm(self.linear(x)) + nn.functional.linear(input=x, weight=self.linear.weight)
            )

    torch.manual_seed(0)
    model, x = with_random_statistics(Read()).double().eval(), images()[:, 0, 0]
    assert difference(from_relu(model, calibrate_on=x)(x), model(x)) <= 1e-9


def test_arguments_by_name_and_outputs_of_zero():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = nn.functional.avg_pool2d(input=torch.relu(input=self.conv(x)), kernel_size=2)
            return self.fc(torch.div(input=torch.mean(input=x, dim=(2, 3)), other=2))

    model = Named().double()
    assert difference(from_relu(model, calibrate_on=images())(images()), model(images())) <= 1e-9
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    assert not from_relu(model, calibrate_on=images())(images()).any()


def test_bad_arguments_are_refused():
    model = build("functional")
    for options, message in (
        ({"margin": -0.1}, "margin must be"),
        ({"x_max": 0.0}, "x_max must be"),
        ({"normalize": (0.5, 0.0)}, "std above 0"),
        ({"normalize": ([0.5, 0.5], 1.0)}, r"numbers or 3 each"),
        ({"calibrate_on": images(0)}, "at least one sample"),
    ):
        with pytest.raises(ValueError, match=message):
            from_relu(model, **({"calibrate_on": images()} | options))
    with pytest.raises(TypeError, match=r"calibrate_on is torch\.float32, the model torch.float64"):
        from_relu(model, calibrate_on=images().float())


def test_bad_kinds_of_arguments_are_refused():
    model = build("functional")
    for options, message in (
        ({"x_max": torch.ones(3)}, "x_max must be a number"),
        ({"calibrate_on": [images()]}, "calibrate_on must be a tensor, got list"),
    ):
        with pytest.raises(TypeError, match=message):
            from_relu(model, **({"calibrate_on": images()} | options))


class _Act(nn.Module):
    def forward(self, x):
        return torch.relu(x)


class _Junction(nn.Module):
    def forward(self, x, y):
        return nn.functional.relu(x + y)


def test_rectifiers_in_modules_of_their_own():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.join = _Act(), _Junction()
            self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            x = self.act(self.first(x))
            return self.last(self.join(self.act(self.second(x)), x - 0.1))

    model, x = Shared().double(), torch.rand(16, 4).double()
    network = from_relu(model, calibrate_on=x)
    assert list(network.layers) == ["act.relu", "act.relu_1", "join.relu_2"]
    assert difference(network(x), model(x)) <= 1e-9
    assert torch.equal(copy.deepcopy(network)(x), network(x))


def test_a_clamp_without_an_end_is_a_relu():
    x = torch.rand(16, 4)
    for rectifier in (nn.Hardtanh(0, math.inf), nn.ReLU()):
        torch.manual_seed(0)
        network = from_relu(nn.Sequential(nn.Linear(4, 5), rectifier, nn.Linear(5, 3)), calibrate_on=x)
        assert network.layers["1"].cap is None
        assert network.activity(x).times["1"].isfinite().any()
        assert network.t_max < math.inf


def test_it_converts_under_autocast_as_without():
    model, x = (
        with_random_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())),
        images(),
    )
    plain = from_relu(model.float(), calibrate_on=x.float())
    with torch.autocast("cpu", torch.bfloat16):
        network = from_relu(model, calibrate_on=x.float())
    assert network.t_max == plain.t_max


def test_neurons_stand_where_the_relus_were():
    network = from_relu(build("in place"), calibrate_on=images())
    assert list(network.layers) == ["relu", "relu_1"]
    assert all(isinstance(layer, RampNeurons) for layer in network.layers.values())


def test_a_network_without_hidden_neurons_has_no_cost():
    x = torch.rand(5, 2)
    activity = from_relu(nn.Linear(2, 3), calibrate_on=x).activity(x)
    assert activity.spike_cost().item() == 0


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("bias",), ()])
def test_what_is_frozen_in_a_normalisation_stays_frozen(frozen):
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), norm, nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    for name in frozen:
        getattr(norm, name).requires_grad_(False)
    network = from_relu(model, calibrate_on=torch.rand(4, 3, 8, 8))
    affine = network.body.get_submodule("2")
    assert affine.factor.requires_grad == ("weight" not in frozen)
    assert affine.shift.requires_grad == ("bias" not in frozen)
