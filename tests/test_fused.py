"""A fused training step against the lines that it stands for."""

import copy
import itertools
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ssnn_plugin import (
    IF,
    LIF,
    AlphaPSP,
    CurrentNeuron,
    ExpPSP,
    FusedStep,
    ReLPSP,
    SilentNetworkWarning,
    WindowedRamp,
)
from ssnn_plugin.functional import normalize_error
from ssnn_plugin.kernels.cpu import parallel
from ssnn_plugin.losses import (
    RelativeTargetLoss,
    SingleTargetLoss,
    TargetTimeLoss,
    TemporalCrossEntropyLoss,
)
from ssnn_plugin.nn import AveragePool, SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential
from ssnn_plugin.rules import RULES, Rule

T_MAX = 16
OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.3, weight_decay=1e-2),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.02, weight_decay=1e-2),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.02, betas=(0.8, 0.95), eps=1e-6),
}


def network(*sizes, dtype=torch.float64, delay=1, hidden_listen=False, seed=0):
    """Layers some of whose neurons stay silent; the outputs listen to a gradient when they are."""
    generator, layers = torch.Generator().manual_seed(seed), []
    for number, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        listens = hidden_listen or number == len(sizes) - 2
        neuron = IF(1.0, delay=delay)
        layer = SpikeLinear(n_in, n_out, neuron, t_max=T_MAX, silent_gradient=listens, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(0.15 + 0.5 * torch.randn(n_out, n_in, generator=generator))
        layers.append(layer)
    return SpikeSequential(*layers)


def batches(count, n_in=12, classes=4, size=9, dtype=torch.float64, bins=True):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        times = (T_MAX + 4) * torch.rand(size, n_in, generator=generator, dtype=dtype)
        times = times.floor() if bins else times
        times[0, :3] = torch.tensor([-0.0, 0.0, torch.inf])
        yield (
            times.masked_fill(times >= T_MAX, torch.inf),
            torch.randint(classes, (size,), generator=generator),
        )


def plainly(layers, loss, optimizer, times, labels, normalize):
    optimizer.zero_grad()
    for layer in layers:
        times = normalize_error(layer(times)) if normalize else layer(times)
    value = loss(times, labels)
    value.backward()
    optimizer.step()
    return value.item()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("sizes", "delay", "hidden_listen", "bins"),
    [((12, 4), 1, False, True), ((12, 90, 4), 0, True, False), ((12, 20, 17, 4), 1, False, True)],
)
def test_a_step_is_what_it_stands_for(sizes, delay, hidden_listen, bins, optimizer, normalize):
    loss = RelativeTargetLoss(3, T_MAX)
    plain = network(*sizes, delay=delay, hidden_listen=hidden_listen)
    fused = copy.deepcopy(plain)
    start = copy.deepcopy(plain)
    optimizers = [OPTIMIZERS[optimizer](net.parameters()) for net in (plain, fused)]
    step = FusedStep(fused, loss, optimizers[1], normalize=normalize)
    for times, labels in batches(6, bins=bins):
        expected = plainly(plain, loss, optimizers[0], times, labels, normalize)
        assert step(times, labels) == pytest.approx(expected, rel=1e-12)
        for found, wanted in zip(fused, plain, strict=True):
            torch.testing.assert_close(found.weight, wanted.weight, atol=1e-10, rtol=1e-9)
    for layer, first in zip(fused, start, strict=True):
        assert not torch.equal(layer.weight, first.weight)
    assert not any(layer.weight.grad is not None for layer in fused)
    found, wanted = (o.state_dict()["state"] for o in optimizers[::-1])
    torch.testing.assert_close(found, wanted)


GEOMETRIES = {
    "plain": {},
    "stride": {"stride": 2, "padding": 1},
    "same": {"padding": "same"},
    "dilation": {"dilation": (2, 1), "padding": (1, 2)},
}


def convolutional(geometry, dtype=torch.float64, in_channels=2):
    """Two convolutions of an image of 9 x 8 and two fully connected layers, of which parts stay silent."""
    generator = torch.Generator().manual_seed(0)
    options = {"t_max": T_MAX, "dtype": dtype}
    layers = [
        SpikeConv2d(in_channels, 5, 3, IF(1.0, delay=1), silent_gradient=True, **geometry, **options),
        SpikeConv2d(5, 4, (2, 3), IF(1.0), **options),
        SpikeFlatten(),
    ]
    for layer in layers[:2]:
        drawn = torch.randn(layer.weight.shape, generator=generator, dtype=dtype)
        layer.assign_weight(0.1 + 0.3 * drawn)
    size = SpikeSequential(*layers)(torch.zeros(1, in_channels, 9, 8, dtype=dtype)).shape[1]
    behind = network(size, 6, 4, dtype=dtype)
    with torch.no_grad():
        behind[0].weight.mul_(0.3)
    return SpikeSequential(*layers, *behind)


def images(count, dtype=torch.float64, channels=2, size=7):
    for times, labels in batches(count, channels * 72, size=size, dtype=dtype):
        yield times.reshape(size, channels, 9, 8), labels


def weights_of(net):
    return [parameter.detach() for parameter in net.parameters()]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_step_of_convolutions_is_what_it_stands_for(geometry, optimizer, normalize):
    plain = convolutional(GEOMETRIES[geometry])
    fused, start, loss = copy.deepcopy(plain), copy.deepcopy(plain), RelativeTargetLoss(3, T_MAX)
    optimizers = [OPTIMIZERS[optimizer](net.parameters()) for net in (plain, fused)]
    for group in [*optimizers[0].param_groups, *optimizers[1].param_groups]:
        group["lr"] /= 30  # otherwise they fall silent
    step = FusedStep(fused, loss, optimizers[1], normalize=normalize)
    for times, labels in images(5):
        expected = plainly(plain, loss, optimizers[0], times, labels, normalize)
        assert step(times, labels) == pytest.approx(expected, rel=1e-12)
        for found, wanted in zip(weights_of(fused), weights_of(plain), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-9)
    assert not any(map(torch.equal, weights_of(fused), weights_of(start)))


def test_convolutions_of_one_channel_in_single_precision_and_images_that_lie_otherwise_in_memory():
    plain = convolutional({}, torch.float32, in_channels=1)
    fused, loss = copy.deepcopy(plain), RelativeTargetLoss(3, T_MAX)
    optimizers = [OPTIMIZERS["adam"](net.parameters()) for net in (plain, fused)]
    step = FusedStep(fused, loss, optimizers[1])
    for size in (7, 2, 7):
        for times, labels in images(2, torch.float32, 1, size):
            expected = plainly(plain, loss, optimizers[0], times, labels, True)
            strided = torch.stack([times, times], dim=-1)[..., 0]
            assert step(strided, labels) == pytest.approx(expected, rel=1e-5)
    for found, wanted in zip(weights_of(fused), weights_of(plain), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_moments_of_convolutions_that_lie_otherwise_in_memory_are_taken_up():
    nets = [convolutional({}) for _ in range(2)]
    steps = []
    for net in nets:
        optimizer = OPTIMIZERS["adam"](net.parameters())
        steps.append(FusedStep(net, RelativeTargetLoss(3, T_MAX), optimizer))
    (first, second, third) = images(3)
    for step in steps:
        step(*first)
    state = steps[1].optimizer.state[nets[1][0].weight]
    state["exp_avg"] = state["exp_avg"].to(memory_format=torch.channels_last)
    for step in steps:
        step(*second)
        step(*third)
    for found, wanted in zip(*map(weights_of, nets), strict=True):
        assert torch.equal(found, wanted)


def test_a_layer_that_is_laid_out_anew_between_two_steps_is_seen():
    plain = convolutional({"padding": 1})
    fused, loss = copy.deepcopy(plain), RelativeTargetLoss(3, T_MAX)
    optimizers = [OPTIMIZERS["sgd"](net.parameters()) for net in (plain, fused)]
    step = FusedStep(fused, loss, optimizers[1])
    for padding, (times, labels) in zip(((1, 1), "same"), images(2), strict=True):
        plain[0].padding = fused[0].padding = padding
        assert step(times, labels) == pytest.approx(plainly(plain, loss, optimizers[0], times, labels, True))
    fused[1].stride = (2, 2)
    with pytest.raises(ValueError, match="network must have layers that fit each other, got"):
        step(times, labels)


def other_layout(net):
    net[0].weight.data = net[0].weight.data.contiguous(memory_format=torch.channels_last)


def hooked_flatten(net):
    net[2].register_forward_hook(lambda *args: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.insert(3, SpikeFlatten()), "or convolutions, one SpikeFlatten and fully connected"),
        (lambda net: net.pop(2), "or convolutions, one SpikeFlatten and fully connected"),
        (
            lambda net: setattr(net[2], "start_dim", 2),
            "a SpikeConv2d or a SpikeFlatten of all features",
        ),
        (hooked_flatten, r"network\[2\] must have no hooks"),
        (other_layout, r"network\[0\] must have a weight of float32 or float64 on the CPU"),
        (lambda net: net[1].set_neuron(IF(1.0, beta=0.9)), r"network\[1\] must have IF neurons without leak"),
        (lambda net: net[1].set_neuron(ReLPSP()), r"network\[1\] must have IF neurons without leak"),
        (
            lambda net: setattr(net[1], "output_pool", AveragePool(2)),
            r"network\[1\] must have no output pool",
        ),
        (
            lambda net: setattr(net[1], "groups", 2),
            r"network\[1\] must have no output pool, and a single group",
        ),
    ],
)
def test_convolutions_of_another_kind_are_refused(change, message):
    net = convolutional({})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    change(net)
    with pytest.raises((TypeError, ValueError), match=message):
        FusedStep(net, RelativeTargetLoss(3, T_MAX), optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda times: times.flatten(1),
            r"times must have shape \[batch, 2, height, width\], got \[7, 144\]",
        ),
        (
            lambda times: times[:, :1],
            r"times must have shape \[batch, 2, height, width\], got \[7, 1, 9, 8\]",
        ),
        (lambda times: times[:, :, :, :2], r"kernel_size must fit the padded input \[9, 2\]"),
        (lambda times: times[:, :, :, :7], "network must have layers that fit each other"),
        (lambda times: -times, "negative"),
    ],
)
def test_images_that_do_not_fit_are_refused_and_change_nothing(change, message):
    net = convolutional({})
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=0.1))
    ((times, labels),) = images(1)
    before = copy.deepcopy(weights_of(net))
    with pytest.raises(ValueError, match=message):
        step(change(times), labels)
    assert all(map(torch.equal, weights_of(net), before))


def resized(net, kernel):
    """The first convolution with another kernel, which the plain lines take from its weights."""
    weight = net[0].weight.detach()
    net[0].weight = nn.Parameter(kernel(weight).contiguous())
    return net


@pytest.mark.parametrize(
    "kernel",
    [
        lambda w: w[:, :, :2],
        lambda w: nn.functional.pad(w, (0, 1, 0, 1), value=0.1),
        lambda w: torch.cat([w, w.flip(3)]),
    ],
    ids=["smaller", "larger", "more outputs"],
)
def test_weights_say_how_large_a_kernel_is(kernel):
    nets = []
    for _ in range(2):
        net = resized(SpikeSequential(convolutional({})[0], SpikeFlatten()), kernel)
        nets.append(net)
    loss = SingleTargetLoss(4, T_MAX)
    plain, fused = (torch.optim.SGD(net.parameters(), lr=0.1) for net in nets)
    step = FusedStep(nets[1], loss, fused)
    for times, labels in images(2):
        assert step(times, labels) == pytest.approx(plainly(nets[0], loss, plain, times, labels, True))
    torch.testing.assert_close(nets[1][0].weight, nets[0][0].weight)


def test_a_stride_that_is_changed_in_place_is_seen():
    net = SpikeSequential(convolutional({"padding": 1})[0], SpikeFlatten())
    net[0].padding = [1, 1]
    step = FusedStep(net, SingleTargetLoss(4, T_MAX), torch.optim.SGD(net.parameters(), lr=1e-9))
    ((times, labels),) = images(1)
    step(times, labels)
    net[0].padding[:] = [0, 0]
    assert step(times, labels) == pytest.approx(step.loss(net(times), labels).item())


def test_the_name_of_a_rule_is_as_good():
    (batch,), found = images(1), []
    nets = [convolutional({}), convolutional({})]
    nets[1][0].gradient = "latency"
    for net in nets:
        step = FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=0.1))
        found.append(step(*batch))
    assert found[0] == found[1] > 0
    assert all(map(torch.equal, weights_of(nets[0]), weights_of(nets[1])))


def test_times_that_learn_are_refused():
    net = network(12, 4)
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=0.1))
    ((times, labels),) = batches(1)
    with pytest.raises(ValueError, match="times must need no gradient"):
        step(times.requires_grad_(), labels)


def test_hooks_of_all_modules_are_refused():
    net = network(12, 4)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *args: None)
    try:
        with pytest.raises(ValueError, match="which a fused step would not call"):
            FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=0.1))
    finally:
        handle.remove()


def test_an_error_that_is_no_number_spoils_the_weights_as_torchs_adam_does():
    plain = network(12, 4)
    fused = copy.deepcopy(plain)

    def loss(times, labels):
        return (times.clamp(max=16) * 0).sqrt().mean()

    optimizers = [OPTIMIZERS["adam"](net.parameters()) for net in (plain, fused)]
    step = FusedStep(fused, loss, optimizers[1], normalize=False)
    ((times, labels),) = batches(1)
    plainly(plain, loss, optimizers[0], times, labels, False)
    step(times, labels)
    torch.testing.assert_close(fused[0].weight, plain[0].weight, equal_nan=True)
    assert plain[0].weight.isnan().any()


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_a_state_that_lacks_something_is_refused_before_a_weight_is_changed(name):
    net = network(12, 20, 4)
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.Adam(net.parameters(), lr=0.1))
    first, second = batches(2)
    step(*first)
    del step.optimizer.state[net[1].weight][name]
    before = copy.deepcopy(weights_of(net))
    with pytest.raises(ValueError, match="optimizer must"):
        step(*second)
    assert all(map(torch.equal, weights_of(net), before))


@dataclass(frozen=True)
class Bare(CurrentNeuron):
    """A ramp without a compiled response."""

    threshold: float = 1.0

    def input_factors(self, times):
        return torch.ones_like(times), times

    def output_factors(self, times):
        return times, torch.ones_like(times)

    def output_slopes(self, times):
        return torch.ones_like(times), torch.zeros_like(times)


NEURONS = {
    "ramp": (ReLPSP(0.8), {}, TemporalCrossEntropyLoss(4.0, 0.1)),
    "exponential": (ExpPSP(0.3), {}, TemporalCrossEntropyLoss(4.0, 0.1)),
    "alpha": (AlphaPSP(0.3), {}, TargetTimeLoss(4.0, on_target=0.5, off_target=3.0)),
    "lif": (LIF(0.2, tau_mem=2.0, tau_syn=0.7), {}, TemporalCrossEntropyLoss(4.0, 0.1)),
    "if, surrogate": (IF(1.0, delay=1), {"gradient": "surrogate", "silent_gradient": True}, None),
    "if, local slope": (IF(1.0), {"gradient": "local_slope", "silent_gradient": True}, None),
    "if, deaf": (IF(1.0), {"gradient": "surrogate"}, None),
    "if, leaky": (IF(1.0, delay=1, beta=0.9), {"silent_gradient": True}, None),
}


def twice(neuron, options, t_max, dtype):
    """The same network two times."""
    nets = []
    for _ in range(2):
        layers = [
            SpikeLinear(n_in, n_out, neuron, t_max=t_max, dtype=dtype, **options)
            for n_in, n_out in ((12, 90), (90, 4))
        ]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for one in layers:
                one.weight.copy_(0.1 + 0.3 * torch.randn(*one.weight.shape, generator=generator))
        nets.append(SpikeSequential(*layers))
    return nets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("case", NEURONS)
def test_all_neurons_and_rules_and_losses_take_the_same_step(case, normalize, dtype):
    neuron, options, loss = NEURONS[case]
    t_max = T_MAX if neuron.jumps else 4.0
    loss = loss or SingleTargetLoss(4, T_MAX)
    plain, fused = twice(neuron, options, t_max, dtype)
    start = copy.deepcopy(fused)
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.003) for net in (plain, fused)]
    step = FusedStep(fused, loss, optimizers[1], normalize=normalize)
    precise = dtype == torch.float64
    for times, labels in batches(5, dtype=dtype):
        times = times if neuron.jumps else times * (t_max / T_MAX)
        expected = plainly(plain, loss, optimizers[0], times, labels, normalize)
        assert step(times, labels) == pytest.approx(expected, rel=1e-12 if precise else 1e-4)
        for found, wanted, first in zip(fused, plain, start, strict=True):
            tolerance = {"atol": 1e-10, "rtol": 1e-9} if precise else {"atol": 1e-3, "rtol": 1e-3}
            torch.testing.assert_close(found.weight, wanted.weight, **tolerance)
            assert not torch.equal(found.weight, first.weight)
    assert not any(layer.weight.grad is not None for layer in fused)


@dataclass(frozen=True)
class Half(Rule):
    """A rule of one's own: a spike moves half as far."""

    def rate(self, crossing):
        return 0.5 * torch.ones_like(crossing.at)


@dataclass(frozen=True)
class Leaning(Half):
    """Another, whose inputs feel the gradient of the spikes itself."""

    def input_grad(self, crossing, error, grad_spikes):
        return crossing.input_grad(error) + 0.1 * grad_spikes.sum(1, keepdim=True)


@dataclass(frozen=True)
class Deaf(Half):
    def input_grad(self, crossing, error, grad_spikes):
        return None


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("rule", [Half(), Leaning(), Deaf()], ids=str)
def test_rules_of_ones_own_take_the_same_step(rule, silent):
    options = {"gradient": rule, "silent_gradient": silent}
    plain, fused = twice(IF(1.0), options, T_MAX, torch.float64)
    with torch.no_grad():
        for net in (plain, fused):
            net[1].weight[0] = -1.0  # always silent
    in_turn(plain, fused, [lambda net: torch.optim.SGD(net.parameters(), lr=0.1)] * 2, [nothing] * 3)


def test_an_input_gradient_of_another_shape_is_refused():
    class Narrow(Half):
        def input_grad(self, crossing, error, grad_spikes):
            return error.sum(1, keepdim=True)

    net, _ = twice(IF(1.0), {"gradient": Narrow()}, T_MAX, torch.float64)
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=0.1))
    ((times, labels),) = batches(1)
    with pytest.raises(ValueError, match=r"input_grad of .*Narrow.* must have shape \[9, 90\], got \[9, 1\]"):
        step(times, labels)


def test_layers_of_different_kinds_stand_in_one_network():
    nets = []
    for _ in range(2):
        (net, _), generator = twice(IF(1.0), {}, T_MAX, torch.float64), torch.Generator().manual_seed(3)
        leaky = SpikeLinear(90, 4, IF(1.0, beta=0.9), t_max=T_MAX, silent_gradient=True, dtype=torch.float64)
        with torch.no_grad():
            leaky.weight.copy_(0.1 + 0.3 * torch.randn(4, 90, generator=generator))
        nets.append(SpikeSequential(net[0], leaky))
    in_turn(*nets, [lambda net: torch.optim.SGD(net.parameters(), lr=0.1)] * 2, [nothing] * 3)


def test_single_precision_and_batches_of_another_size():
    plain = network(12, 20, 4, dtype=torch.float32)
    fused, loss = copy.deepcopy(plain), RelativeTargetLoss(3, T_MAX)
    optimizers = [OPTIMIZERS["adam"](net.parameters()) for net in (plain, fused)]
    step = FusedStep(fused, loss, optimizers[1])
    for size in (9, 2, 9, 1):
        for times, labels in batches(2, size=size, dtype=torch.float32):
            expected = plainly(plain, loss, optimizers[0], times, labels, True)
            assert step(times, labels) == pytest.approx(expected, rel=1e-5)
    for found, wanted in zip(fused, plain, strict=True):
        torch.testing.assert_close(found.weight, wanted.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_plain_and_fused_steps_go_on_with_each_other(optimizer):
    loss, (plain, mixed) = RelativeTargetLoss(3, T_MAX), (network(12, 20, 4) for _ in range(2))
    optimizers = [OPTIMIZERS[optimizer](net.parameters()) for net in (plain, mixed)]
    step = FusedStep(mixed, loss, optimizers[1])
    for number, (times, labels) in enumerate(batches(8)):
        plainly(plain, loss, optimizers[0], times, labels, True)
        if number % 3:
            step(times, labels)
        else:
            plainly(mixed, loss, optimizers[1], times, labels, True)
        saved = optimizers[1].state_dict(), mixed.state_dict()
        optimizers[1].load_state_dict(copy.deepcopy(saved[0]))
        mixed.load_state_dict(copy.deepcopy(saved[1]))
    for found, wanted in zip(mixed, plain, strict=True):
        torch.testing.assert_close(found.weight, wanted.weight)


@pytest.mark.parametrize("rule", ["latency", "surrogate"])
def test_a_copy_learns_on_its_own(rule):
    net, loss = network(12, 20, 4), RelativeTargetLoss(3, T_MAX)
    for each in net:
        each.gradient = RULES[rule]
    step = FusedStep(net, loss, OPTIMIZERS["adam"](net.parameters()))
    (first, second, third) = batches(3)
    step(*first)
    copied = copy.deepcopy(step)
    step(*second)
    step(*third)
    assert not torch.equal(copied.network[0].weight, net[0].weight)
    assert copied(*second) > 0
    copied(*third)
    for found, wanted in zip(copied.network, net, strict=True):
        assert torch.equal(found.weight, wanted.weight)


def test_a_scheduler_sets_the_step_size():
    net = network(12, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch == 0 else 0.0)
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), optimizer)
    ((times, labels),) = batches(1)
    before = net[0].weight.clone()
    step(times, labels)
    assert not torch.equal(net[0].weight, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
    before = net[0].weight.clone()
    step(times, labels)
    assert torch.equal(net[0].weight, before)


def in_turn(plain, fused, optimizers, changes, *, atol=1e-10):
    """Steps of both, before each of which both networks are changed."""
    loss = RelativeTargetLoss(3, T_MAX)
    made = [make(net) for make, net in zip(optimizers, (plain, fused), strict=True)]
    step = FusedStep(fused, loss, made[1])
    for change, (times, labels) in zip(changes, batches(len(changes)), strict=True):
        for net, optimizer in zip((plain, fused), made, strict=True):
            change(net, optimizer)
        times = times.to(fused[0].weight.dtype)
        expected = plainly(plain, loss, made[0], times, labels, True)
        assert step(times, labels) == pytest.approx(expected, rel=1e-5)
        for found, wanted in zip(fused, plain, strict=True):
            torch.testing.assert_close(found.weight, wanted.weight, atol=atol, rtol=1e-5)


def nothing(net, optimizer):
    pass


def as_double(net, optimizer):
    net.double()


def replaced(net, optimizer):
    (group,) = optimizer.param_groups
    net[0].weight = nn.Parameter((1.5 * net[0].weight.detach()).t().contiguous().t())
    group["params"][0] = net[0].weight


def shorter(net, optimizer):
    net[0].t_max, net[1].t_max = 9, 12.5


def no_window(net, step):
    net[1].t_max = -1.0


def other_neurons(net, optimizer):
    net[0].set_neuron(IF(1.5, delay=0))


def leaky(net, optimizer):
    net[0].set_neuron(IF(1.5, beta=0.9))


def listening(net, optimizer):
    net[0].silent_gradient = True


def frozen(net, optimizer):
    net[0].weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "optimizer"),
    [
        (as_double, "sgd"),
        *itertools.product([replaced, shorter, other_neurons, leaky, listening, frozen], ["sgd", "adam"]),
    ],
)
def test_what_is_changed_between_two_steps_counts(change, optimizer):
    dtype = torch.float32 if change is as_double else torch.float64
    plain, fused = (network(12, 20, 4, dtype=dtype) for _ in range(2))
    makes = [lambda net: OPTIMIZERS[optimizer](list(net.parameters()))] * 2
    before = fused[0].weight.clone()
    in_turn(plain, fused, makes, [nothing, nothing, change, nothing], atol=1e-5)
    assert not torch.equal(fused[0].weight, before.to(fused[0].weight))


def test_groups_have_options_of_their_own_and_weights_that_need_no_gradient_stay():
    def make(net):
        groups = [{"params": [net[1].weight], "lr": torch.tensor(0.3)}, {"params": [net[0].weight]}]
        return torch.optim.Adam(groups, lr=0.01, betas=(0.0, 0.0))

    plain, fused = (network(12, 20, 4) for _ in range(2))
    in_turn(plain, fused, [make] * 2, [nothing] * 3)
    plain, fused = (network(12, 20, 4) for _ in range(2))
    before = fused[0].weight.clone()
    in_turn(plain, fused, [lambda net: torch.optim.SGD(net.parameters(), lr=1.0)] * 2, [frozen] * 3)
    assert torch.equal(fused[0].weight, before)


def test_layers_that_the_optimizer_does_not_hold_stay():
    plain, fused = (network(12, 20, 4) for _ in range(2))
    before = copy.deepcopy(fused)
    in_turn(plain, fused, [lambda net: torch.optim.SGD(net[1].parameters(), lr=1.0)] * 2, [nothing] * 3)
    assert torch.equal(fused[0].weight, before[0].weight)
    assert not torch.equal(fused[1].weight, before[1].weight)


def test_no_gradients_are_left():
    net, loss = network(12, 20, 4), RelativeTargetLoss(3, T_MAX)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    (first, second) = batches(2)
    plainly(net, loss, optimizer, *first, True)
    assert net[0].weight.grad is not None
    FusedStep(net, loss, optimizer)(*second)
    assert all(layer.weight.grad is None for layer in net)


def test_moments_do_not_linger_below_the_smallest_normal_number():
    plain, fused = (network(12, 20, 4, dtype=torch.float32) for _ in range(2))
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.01) for net in (plain, fused)]
    step = FusedStep(fused, RelativeTargetLoss(3, T_MAX), optimizers[1])
    ((times, labels),) = batches(1, dtype=torch.float32)
    for net, optimizer in zip((plain, fused), optimizers, strict=True):
        plainly(net, step.loss, optimizer, times, labels, True)
        for state in optimizer.state.values():
            state["exp_avg"].fill_(2e-38)
    for _ in range(10):
        plainly(plain, step.loss, optimizers[0], times, labels, True)
        step(times, labels)
    (_, state), *_ = optimizers[1].state.items()
    (_, kept), *_ = optimizers[0].state.items()
    assert (kept["exp_avg"].abs() < 1e-38).any()
    assert (state["exp_avg"][kept["exp_avg"].abs() < 1e-38] == 0).all()
    torch.testing.assert_close(fused[0].weight, plain[0].weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_step_is_taken_where_nothing_learns(mode):
    net = network(12, 4)
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), OPTIMIZERS["adam"](net.parameters()))
    ((times, labels),) = batches(1)
    with mode(), pytest.raises(RuntimeError, match=r"a step cannot be taken under torch\.no_grad"):
        step(times, labels)


def too_wide(net, step):
    net[1].weight.data = torch.zeros(21, 4, dtype=torch.float64).t()


def unmade(net, step):
    net[1].weight.data = net[1].weight.data.contiguous()


def negative_gap(net, step):
    step.loss.gamma = -5


def two_rates(net, step):
    step.optimizer.param_groups[1]["lr"] = torch.tensor([0.1, 0.2])


def another_weight(net, step):
    net[1].weight = nn.Parameter(net[1].weight.detach().t().contiguous().t())


def other_moments(net, step):
    step.optimizer.state[net[1].weight]["exp_avg"] = torch.zeros(1, dtype=torch.float64)


def per_neuron(net, step):
    net[1].set_neuron(IF(torch.ones(4, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (too_wide, "network must have layers that fit each other"),
        (unmade, r"network\[1\] must have a weight of float32 or float64 on the CPU"),
        (negative_gap, "gamma of the loss must be"),
        (no_window, "t_max must be finite and greater than 0, got -1.0"),
        (two_rates, "only one element tensors can be converted"),
        (another_weight, "optimizer must hold weights of the network alone, got 1 others"),
        (other_moments, r"optimizer must keep exp_avg as its weights, torch.float64 \[4, 20\], got .* \[1\]"),
        (per_neuron, r"network\[1\] must have numbers as thresholds, leaks and time constants"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_before_a_weight_is_changed(change, message):
    net = network(12, 20, 4)
    groups = [{"params": [layer.weight]} for layer in net]
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.Adam(groups, lr=0.1))
    (first, second) = batches(2)
    step(*first)
    before = net[0].weight.clone()
    change(net, step)
    with pytest.raises((ValueError, RuntimeError), match=message):
        step(*second)
    assert torch.equal(net[0].weight, before)


def hook(*args):
    return None


@pytest.mark.parametrize(
    "attach",
    [
        lambda net, loss, optimizer: net[0].register_forward_hook(hook),
        lambda net, loss, optimizer: net[0].register_forward_pre_hook(hook),
        lambda net, loss, optimizer: net[0].register_full_backward_hook(hook),
        lambda net, loss, optimizer: net[0].register_full_backward_pre_hook(hook),
        lambda net, loss, optimizer: net[0].weight.register_hook(hook),
        lambda net, loss, optimizer: net[0].weight.register_post_accumulate_grad_hook(hook),
        lambda net, loss, optimizer: net.register_forward_hook(hook),
        lambda net, loss, optimizer: loss.register_forward_hook(hook),
        lambda net, loss, optimizer: optimizer.register_step_pre_hook(hook),
        lambda net, loss, optimizer: optimizer.register_step_post_hook(hook),
        lambda net, loss, optimizer: setattr(net[0], "forward", hook),
    ],
)
def test_hooks_that_would_not_be_called_are_refused(attach):
    net, loss = network(12, 4), RelativeTargetLoss(3, T_MAX)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    step = FusedStep(net, loss, optimizer)
    attach(net, loss, optimizer)
    with pytest.raises(ValueError, match="which a fused step would not call"):
        FusedStep(net, loss, optimizer)
    ((times, labels),) = batches(1)
    with pytest.raises(ValueError, match="which a fused step would not call"):
        step(times, labels)


@pytest.mark.parametrize("n_out", [100, 200])
@pytest.mark.parametrize("rule", ["latency", "surrogate"])
def test_threads_do_not_change_a_bit(monkeypatch, set_threads, rule, n_out):
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 1)
    results = []
    for threads in (1, 3):
        set_threads(threads)
        net = network(12, n_out, 20, 4)
        for each in net:
            each.gradient = RULES[rule]
        step = FusedStep(net, RelativeTargetLoss(3, T_MAX), OPTIMIZERS["adam"](net.parameters()))
        losses = [step(times, labels) for times, labels in batches(4, size=33)]
        results.append((losses, [layer.weight.clone() for layer in net]))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


class Steep(Rule):
    """Without a slope, as a silent neuron has none, a rate without an end."""

    def rate(self, crossing):
        return 1 / crossing.slope


def test_a_rate_may_be_infinite_where_a_neuron_is_silent():
    torch.manual_seed(0)
    net = SpikeSequential(
        SpikeLinear(12, 20, ReLPSP(), t_max=8.0, init_range=(-0.2, 0.5), gradient=Steep()),
        SpikeLinear(20, 4, ReLPSP(), t_max=8.0, init_range=(-0.1, 0.02), gradient=Steep()),
    )
    times, labels = 6 * torch.rand(16, 12), torch.arange(16) % 4
    assert net(times).isinf().any()
    other, loss = copy.deepcopy(net), TemporalCrossEntropyLoss(8.0)
    loss(other(times), labels).backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    FusedStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), normalize=False)(times, labels)
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "register",
    [register_optimizer_step_pre_hook, register_optimizer_step_post_hook],
    ids=["before", "after"],
)
def test_hooks_of_all_optimisers_are_refused(register):
    net = network(12, 4)
    handle = register(lambda *_: None)
    try:
        with pytest.raises(ValueError, match="which a fused step would not call"):
            FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=1.0))
    finally:
        handle.remove()


def test_an_eps_that_small_moments_would_need_is_refused():
    net = network(12, 4, dtype=torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), eps=1e-20)
    with pytest.raises(ValueError, match=r"an eps of at least 1e-15, got 1e-20"):
        FusedStep(net, RelativeTargetLoss(3, T_MAX), optimizer)


def test_time_constants_per_neuron_are_named():
    neuron = LIF(tau_mem=torch.tensor([1.0, 2.0, 3.0]))
    net = SpikeSequential(SpikeLinear(2, 3, neuron, t_max=4.0))
    with pytest.raises(ValueError, match="numbers as thresholds, leaks and time constants"):
        FusedStep(net, TemporalCrossEntropyLoss(4.0), torch.optim.SGD(net.parameters(), lr=1.0))


def test_autograd_notices_the_step():
    net = network(12, 20, 4)
    ((times, labels),) = batches(1)
    value = RelativeTargetLoss(3, T_MAX)(net(times), labels)
    FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=1.0))(times, labels)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("neuron", [IF(1.0, delay=1), ReLPSP(0.8)], ids=str)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, y: (t.masked_fill(t == t[1, 1], torch.nan), y), "times must hold spike times >= 0"),
        (lambda t, y: (t - 100, y), "times must hold spike times >= 0"),
        (lambda t, y: (t, y + 1), r"labels must lie in 0 \.\.\. 3, got 4"),
        (lambda t, y: (t[:, :5], y), r"times must have shape \[batch, 12\], got \[9, 5\]"),
        (lambda t, y: (t[:0], y[:0]), r"times must have shape \[batch, 12\], got \[0, 12\]"),
        (lambda t, y: (t.float(), y), "times must be torch.float64, as the weights, got torch.float32"),
        (lambda t, y: (t, y.float()), "labels must be torch.int64, got torch.float32"),
        (lambda t, y: (t, y[:4]), r"labels must have shape \[9\], got \[4\]"),
    ],
)
def test_bad_data_is_refused_and_changes_nothing(change, message, neuron):
    net = network(12, 20, 4)
    for each in net:
        each.silent_gradient &= neuron.jumps
        each.set_neuron(neuron)
        each.gradient = RULES[neuron.rules[0]]
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), OPTIMIZERS["adam"](net.parameters()))
    ((times, labels),) = batches(1)
    labels[0], before = 3, copy.deepcopy(net.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        step(*change(times, labels))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert not step.optimizer.state_dict()["state"]
    step(times, labels)
    assert not torch.equal(net[0].weight, before["0.weight"])


def test_weights_that_are_no_numbers_are_refused():
    net = network(12, 20, 4)
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=1.0))
    with torch.no_grad():
        net[0].weight[3, 3] = torch.nan
    ((times, labels),) = batches(1)
    before = net[1].weight.clone()
    with pytest.raises(ValueError, match="weight or bias holds NaN"):
        step(times.zero_(), labels)
    assert torch.equal(net[1].weight, before)


def test_a_silent_network_is_said():
    net = network(12, 4)
    with torch.no_grad():
        net[0].weight.fill_(-1.0)
    step = FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=1.0))
    ((times, labels),) = batches(1)
    with pytest.warns(SilentNetworkWarning):
        step(times, labels)


def shared():
    one, other = layer(n_out=12), layer(n_out=12)
    other.weight = one.weight
    return SpikeSequential(one, other)


def layer(neuron=None, n_out=4, **options):
    return SpikeLinear(12, n_out, neuron or IF(1.0), t_max=T_MAX, **options)


TWICE = layer(n_out=12)


def turned():
    made = layer()
    made.weight.data = made.weight.data.contiguous()
    return made


class Subclass(SpikeSequential):
    pass


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(layer()), "network must be a SpikeSequential, got Sequential"),
        (SpikeSequential(), "network must have layers with weights of their own"),
        (Subclass(layer()), "network must be a SpikeSequential, got Subclass"),
        (SpikeSequential(nn.Flatten(), layer()), "network must be fully connected layers, or"),
        (SpikeSequential(SpikeConv2d(1, 2, 3, IF(), t_max=T_MAX)), "network must be fully connected layers"),
        (SpikeSequential(nn.ReLU(), layer()), r"network\[0\] must be a SpikeLinear, a SpikeConv2d or"),
        (SpikeSequential(layer(WindowedRamp(start=4.0))), r"network\[0\] must have neurons that"),
        (SpikeSequential(layer(Bare())), r"network\[0\] must have neurons that the compiled kernels run"),
        (SpikeSequential(layer(IF(torch.ones(4)))), r"network\[0\] must have numbers as thresholds"),
        (SpikeSequential(layer(bias=True)), r"network\[0\] must have no bias, dropout and input pool"),
        (SpikeSequential(layer(dropout=0.1)), r"network\[0\] must have no bias, dropout and input pool"),
        (SpikeSequential(layer(input_pool=AveragePool(2))), r"network\[0\] must have no bias, dropout"),
        (SpikeSequential(turned()), r"network\[0\] must have a weight .* in memory as it was made"),
        (SpikeSequential(layer(), layer()), "network must have layers that fit each other"),
        (SpikeSequential(layer(n_out=12), layer().double()), "network must have layers that fit each other"),
        (SpikeSequential(TWICE, TWICE), "network must have layers with weights of their own"),
        (shared(), "network must have layers with weights of their own"),
        (SpikeSequential(layer().half()), r"network\[0\] must have a weight of float32 or float64"),
    ],
)  # fmt: skip
def test_networks_of_another_kind_are_refused(net, message):
    weights = [p for p in net.parameters() if p.ndim == 2] or [nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises((TypeError, ValueError), match=message):
        FusedStep(net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(weights, lr=1.0))


class Learning(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("loss", "loss must be callable with times and labels, got 'loss'"),
        (Learning(), "loss must have no parameters that learn, got Learning"),
    ],
)
def test_losses_of_another_kind_are_refused(loss, message):
    net = network(12, 4)
    with pytest.raises((TypeError, ValueError), match=message):
        FusedStep(net, loss, torch.optim.SGD(net.parameters(), lr=1.0))


@pytest.mark.parametrize("value", [lambda times, labels: times, lambda times, labels: 3.0])
def test_what_is_no_number_is_no_loss(value):
    net = network(12, 4)
    step = FusedStep(net, value, torch.optim.SGD(net.parameters(), lr=1.0))
    ((times, labels),) = batches(1)
    before = net[0].weight.clone()
    with pytest.raises(TypeError, match="loss must give a tensor of one number"):
        step(times, labels)
    assert torch.equal(net[0].weight, before)


def test_a_loss_may_keep_and_change_the_times():
    kept = []

    def loss(times, labels):
        kept.append(times.detach())
        times[times == torch.inf] = T_MAX
        return times.gather(1, labels[:, None]).mean()

    plain, fused = (network(12, 20, 4) for _ in range(2))
    step = FusedStep(fused, loss, torch.optim.SGD(fused.parameters(), lr=0.1), normalize=False)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for times, labels in batches(2):
        assert step(times, labels) == pytest.approx(
            plainly(plain, lambda t, y: loss(t.clone(), y), optimizer, times, labels, False)
        )
    for found, wanted in zip(kept[::2], kept[1::2], strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(kept[0], kept[2])


HEAD = nn.Linear(4, 4).double()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda net: lambda t, y: t.clamp(max=9).mean() + net[0].weight.sum(),
            r"loss must depend on the times of the outputs alone, got one of tensors \[\[20, 12\]\] that",
        ),
        (
            lambda net: lambda t, y: net[0].weight.sum(),
            r"alone, got one of tensors \[\[20, 12\]\] that learn",
        ),
        (lambda net: lambda t, y: HEAD(t.clamp(max=9)).mean(), r"tensors \[\[4, 4\], \[4\]\] that learn too"),
        (lambda net: lambda t, y: t.detach().clamp(max=9).mean(), "outputs, got one that does not"),
    ],
)
def test_a_loss_that_is_not_of_the_times_alone_is_refused(make, message):
    net = network(12, 20, 4)
    step = FusedStep(net, make(net), torch.optim.SGD(net.parameters(), lr=1.0))
    ((times, labels),) = batches(1)
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match=message):
        step(times, labels)
    assert torch.equal(net[0].weight, before)


def test_errors_are_normalised_or_not():
    net = network(12, 4)
    with pytest.raises(TypeError, match="normalize must be True or False, got 'sum'"):
        FusedStep(
            net, RelativeTargetLoss(3, T_MAX), torch.optim.SGD(net.parameters(), lr=1.0), normalize="sum"
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda w: torch.optim.SGD([x.requires_grad_(False) for x in w], lr=1.0),
            "optimizer must hold a weight of the network that needs a gradient, got none",
        ),
        (lambda w: torch.optim.RMSprop(w), "optimizer must be one of SGD, Adam, AdamW, got RMSprop"),
        (lambda w: torch.optim.SGD(w, lr=1.0, momentum=0.9), "optimizer must be without momentum, got 0.9"),
        (lambda w: torch.optim.Adam(w, amsgrad=True), "optimizer must be without amsgrad, got True"),
        (
            lambda w: torch.optim.SGD([*w, nn.Parameter(torch.zeros(1))], lr=1.0),
            "optimizer must hold weights of the network alone, got 1 others",
        ),
    ],
)
def test_optimizers_of_another_kind_are_refused(make, message):
    net = network(12, 4)
    with pytest.raises((TypeError, ValueError), match=message):
        FusedStep(net, RelativeTargetLoss(3, T_MAX), make(list(net.parameters())))
