"""`RampNetwork`: its spike times are those of ramp neurons; windows, read-outs, further training."""

import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
from relu_models import build, images
from torch import nn

from ssnn_plugin import ClippedSpikesWarning, WindowedRamp, decode, from_relu
from ssnn_plugin.functional import lateral_inhibition2d
from ssnn_plugin.metrics import SpikeCounts
from ssnn_plugin.nn import EarliestSpikePool2d, SpikeConv2d, SpikeLinear
from ssnn_plugin.relu import RampNeurons
from ssnn_plugin.relu.neurons import spike_times

INF = math.inf
STEPS = 10_000


class Small(nn.Module):
    """A convolution, a residual block, a max-pool and a linear layer for images [*, 1, 4, 4]."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(torch.relu(self.conv2(x))) + x)
        return self.fc(nn.functional.max_pool2d(x, 2).flatten(1))


def small():
    torch.manual_seed(3)
    return Small().double().eval()


def ramps_in_small_steps(synapses, bias, layer):
    """Spike times of neurons whose V is integrated by Euler's method; synapses: (time, weight) of each."""
    dt, most = layer.t_max / STEPS, max(map(len, synapses))
    padded = np.array([[*neuron, *[(INF, 0.0)] * (most - len(neuron))] for neuron in synapses])
    arrivals, weights = padded[..., 0], padded[..., 1]
    v, fired = np.array(bias, dtype=float), np.full(len(synapses), INF)
    for t in np.arange(STEPS) * dt:
        if t < layer.start:
            v += dt * ((arrivals <= t) * weights).sum(1)
        else:
            fired = np.where((v >= layer.window) & np.isinf(fired), t, fired)
            v += dt
    return fired


def convolution_synapses(times, weight, delay):
    """(time, weight) of each neuron [out, row, column] of a 3 x 3 convolution with padding 1, by loops."""
    out, channels, size = len(weight), len(times), times.shape[1]
    neurons = [[] for _ in range(out * size * size)]
    for o in range(out):
        for row in range(size):
            for column in range(size):
                for c in range(channels):
                    for i in range(3):
                        for j in range(3):
                            y, x = row + i - 1, column + j - 1
                            if 0 <= y < size and 0 <= x < size and np.isfinite(times[c, y, x]):
                                spike = times[c, y, x] + delay, weight[o, c, i, j]
                                neurons[(o * size + row) * size + column].append(spike)
    return neurons


def test_spike_times_are_those_of_ramps_integrated_in_small_steps():
    model = small()
    network = from_relu(model, calibrate_on=images(8, 4, channels=1))
    image = images(1, 4, seed=5, channels=1)
    with torch.no_grad():
        found = {name: times[0].numpy() for name, times in network.activity(image).times.items()}
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    first, second, last = (network.layers[name] for name in ("relu", "relu_1", "relu_2"))
    bias = {name: np.repeat(weights[f"{name}.bias"], 16) for name in ("conv1", "conv2")}

    def euler(synapses, bias, layer):
        return ramps_in_small_steps(synapses, bias, layer).reshape(2, 4, 4)

    x = 1 - image[0].numpy()
    a = euler(convolution_synapses(x, weights["conv1.weight"], first.delays["input"]), bias["conv1"], first)
    of_a = convolution_synapses(a, weights["conv2.weight"], second.delays["relu"])
    b = euler(of_a, bias["conv2"], second)
    of_b = convolution_synapses(b, weights["conv2.weight"], last.delays["relu_1"])
    for synapses, time in zip(of_b, a.flatten(), strict=True):
        synapses.append((time + last.delays["relu"], 1.0))
    c = euler(of_b, bias["conv2"], last)
    assert last.delays["relu"] == pytest.approx(second.window)
    pooled = c.reshape(2, 2, 2, 2, 2).min(axis=(2, 4)).flatten()
    linear = [list(zip(pooled, row, strict=True)) for row in weights["fc.weight"]]
    d = ramps_in_small_steps(linear, weights["fc.bias"] + network.shift, network.readout)
    for name, expected in (("relu", a), ("relu_1", b), ("relu_2", c), ("output", d)):
        assert np.isfinite(expected).mean() > 0.2
        assert (np.isfinite(found[name]) == np.isfinite(expected)).mean() > 0.96, name
        both = np.isfinite(found[name]) & np.isfinite(expected)
        np.testing.assert_allclose(found[name][both], expected[both], atol=20 * network.t_max / STEPS)


def test_spikes_are_those_of_the_layers_on_times():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ).double()
    network, inputs = from_relu(model, calibrate_on=images()), images(seed=4)
    layer = network.layers["1"]
    conv = SpikeConv2d(3, 4, 3, layer.neuron, t_max=layer.t_max, stride=2, padding=1, bias=True).double()
    out = network.readout
    linear = SpikeLinear(
        16, 5, WindowedRamp(out.window, start=out.start), t_max=out.t_max, bias=True
    ).double()
    with torch.no_grad():
        for ours, theirs in ((conv, model[0]), (linear, model[4])):
            ours.weight.copy_(theirs.weight)
            ours.bias.copy_(theirs.bias)
        linear.bias += network.shift
        spikes = conv(network.encode(inputs))
        outputs = linear(EarliestSpikePool2d(2)(spikes).flatten(1))
        found = network.activity(inputs).times
    torch.testing.assert_close(found["1"], spikes, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["output"], outputs, rtol=1e-12, atol=1e-12)


def line(window_at=1.0):
    """x -> 2 x in one neuron, with a window set at x = `window_at`."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (2.0, 0.0, 1.0, 0.5), strict=True):
            parameter.fill_(value)
    return from_relu(model, calibrate_on=torch.tensor([[window_at], [0.0]]).double(), margin=0.25)


def test_windows_by_hand():
    network = line()
    layer, out = network.layers["1"], network.readout
    assert (layer.start, layer.window, layer.t_max) == (1.0, 2.5, 3.5)
    assert layer.neuron == WindowedRamp(2.5, start=1.0)
    assert (out.start, out.window, network.shift) == (3.5, 3.0, 0.0)  # 0.5 ... 2.5, and 0.5 on either side
    times = network.activity(torch.tensor([[0.75], [0.0]]).double()).times
    assert times["input"].tolist() == [[0.25], [INF]]
    assert times["1"].tolist() == [[2.0], [INF]]
    assert times["output"].tolist() == [[4.5], [6.0]]


def test_a_potential_above_its_window_is_clipped_counted_and_warned_of():
    network, inputs = line(window_at=0.5), torch.tensor([[0.5], [0.625], [1.0]]).double()
    with pytest.warns(ClippedSpikesWarning, match=r"1 of 3 potentials exceed their window of 1\.25"):
        outputs = network(inputs)
    assert outputs.flatten().tolist() == [1.5, 1.75, 1.75]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(inputs[:2])
        activity = network.activity(inputs)
    assert activity.clipped == {"1": 1, "output": 0}
    assert activity.times["1"][1:].tolist() == [[1.0], [1.0]]  # the start of the window
    with pytest.warns(ClippedSpikesWarning, match="1 potentials exceed their window: "):
        network.decide(inputs)
    network.calibrate(inputs)
    assert network(inputs).flatten().tolist() == [1.5, 1.75, 2.5]


def test_a_time_that_rounds_to_the_end_of_its_window_is_silence():
    leads = torch.tensor([0.0, 1e-6, 1e-4, 3.0])
    assert spike_times(leads, 151.0).tolist() == [INF, INF, pytest.approx(150.9999, abs=2e-5), 148.0]
    leads = torch.tensor([1e-4], requires_grad=True)
    spike_times(leads, 151.0).sum().backward()
    assert leads.grad.tolist() == [-1.0]


def test_half_precision_has_logits_and_no_spike_times():
    x = torch.rand(8, 4)
    network = from_relu(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), calibrate_on=x)
    half = copy.deepcopy(network).bfloat16()
    torch.testing.assert_close(half(x.bfloat16()).float(), network(x), atol=0.05, rtol=0.05)
    for use in (half.encode, half.first_spikes, half.activity, half.decide, half.calibrate):
        with pytest.raises(TypeError, match=r"inputs must be float32 or float64, got torch\.bfloat16"):
            use(x.bfloat16())
    with pytest.raises(TypeError, match=r"inputs are torch.float64, the network torch.float32"):
        network.first_spikes(x.double())


def test_a_state_is_of_networks_with_the_same_inputs_and_inhibition():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    x = torch.rand(4, 1, 6, 6)
    state = from_relu(model, calibrate_on=x).state_dict()
    from_relu(model, calibrate_on=x, margin=2.0).load_state_dict(state)
    for options, message in (
        ({"x_max": 2.0}, "with x_max=2.0, got 1.0"),
        ({"signed": True}, "with signed=True, got False"),
        ({"inhibition": True}, r"with inhibition={'1': \(2, 2\)}, got {}"),
    ):
        with pytest.raises(ValueError, match=message):
            from_relu(model, calibrate_on=x, **options).load_state_dict(state)
    old = {name: value for name, value in state["_extra_state"].items() if name in ("windows", "shift")}
    from_relu(model, calibrate_on=x, inhibition=True).load_state_dict(state | {"_extra_state": old})


def test_a_state_of_a_network_with_other_layers_names_them():
    deep = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.rand(8, 4)
    network, flat = from_relu(deep, calibrate_on=x), from_relu(deep[2:], calibrate_on=x[:, :3])
    with pytest.raises(
        ValueError, match="the state must be of a network with the layers 1, 3, output, got 3, output"
    ):
        network.load_state_dict(flat.state_dict(), strict=False)


def test_the_window_of_a_relu6_clips_without_a_warning():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU6(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (9.0, 0.0, 1.0, 0.0), strict=True):
            parameter.fill_(value)
    inputs = torch.tensor([[0.5], [1.0]]).double()
    network = from_relu(model, calibrate_on=inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert network(inputs).flatten().tolist() == [4.5, 6.0]
    assert network.activity(inputs).clipped == {"1": 0, "output": 0}


def test_nan_weights_are_refused():
    for network, inputs, path in (
        (line(), torch.ones(1, 1).double(), "0"),
        (from_relu(build("bottlenecks"), calibrate_on=images()), images(), "stem.0"),
    ):
        with torch.no_grad():
            network.body.get_submodule(path).weight.fill_(math.nan)
        for call in (network, network.activity, network.first_spikes):
            with pytest.raises(ValueError, match="NaN"):
                call(inputs)


def test_the_first_spike_decides_as_the_highest_logit():
    model, inputs = build("bottlenecks"), images(20)
    network = from_relu(model, calibrate_on=images(20, seed=0))
    decision, activity = network.decide(inputs), network.activity(inputs)
    assert torch.equal(decision.winner, model(inputs).argmax(1))
    assert torch.equal(decision.winner, decode.first_to_fire(*network.first_spikes(inputs)))
    counts = SpikeCounts(network.t_max)
    counts.update(*activity.times.values())
    found = counts.compute()
    assert decision.spikes.double().mean(0).tolist() == pytest.approx(found.until_decision)
    assert decision.time.mean().item() == pytest.approx(found.response_time)
    assert found.silent == 0
    assert len(found.total) == len(network.layers) + 2


def test_logits_decide_where_all_outputs_are_clipped_or_silent():
    network, inputs = from_relu(build("perceptron"), calibrate_on=images(20, seed=0)), images(20)
    expected = network(inputs).argmax(1)
    for shift, silent in ((1e3, False), (-1e3, True)):
        network.shift = shift
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClippedSpikesWarning)
            times, potential = network.first_spikes(inputs)
            assert bool(times.isinf().all()) == silent
            assert torch.equal(decode.first_to_fire(times, potential), expected)
            assert torch.equal(network.decide(inputs).winner, expected)
            assert (network.decide(inputs, tie="unique").winner == -1).all()


def test_windows_are_saved_with_the_parameters():
    network, inputs = from_relu(build("functional"), calibrate_on=images()), images(seed=3)
    other = from_relu(build("functional", seed=5), calibrate_on=images(), margin=3.0)
    other.load_state_dict(network.state_dict())
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for restored in (other, copy.deepcopy(network), torch.load(file, weights_only=False)):
        for ours, theirs in zip(restored.first_spikes(inputs), network.first_spikes(inputs), strict=True):
            assert torch.equal(ours, theirs)
        assert repr(restored.layers) == repr(network.layers)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.images / 16).float().unsqueeze(1), torch.tensor(data.target)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def train(step, x, y, epochs, parameters, lr):
    optimizer, generator = torch.optim.Adam(parameters, lr=lr), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(100):
            optimizer.zero_grad()
            step(x[index], y[index]).backward()
            optimizer.step()


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, 10),
    )
    cross_entropy = nn.functional.cross_entropy
    train(lambda x, y: cross_entropy(model(x), y), *digits[:2], 6, model.parameters(), 3e-3)
    return model.eval()


def test_a_trained_network_keeps_its_accuracy(digits, trained):
    x, _, held_out, labels = digits
    network = from_relu(trained, calibrate_on=x, margin=1.0)
    with torch.no_grad():
        expected = trained(held_out)
        times, potential = network.first_spikes(held_out)
    assert (expected.argmax(1) == labels).float().mean() > 0.9
    torch.testing.assert_close(potential, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(decode.first_to_fire(times, potential), expected.argmax(1))
    double = from_relu(copy.deepcopy(trained).double(), calibrate_on=x.double(), margin=1.0)
    with torch.no_grad():
        expected = copy.deepcopy(trained).double()(held_out.double())
        assert (double(held_out.double()) - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_a_price_on_spikes_makes_them_fewer_and_later(digits, trained):
    x, y, held_out, labels = digits
    network = from_relu(trained, calibrate_on=x, margin=1.0)

    def measured():
        with torch.no_grad():
            activity = network.activity(held_out)
        accuracy = (activity.potential.argmax(1) == labels).double().mean().item()
        spikes = sum(times.isfinite().sum().item() for times in list(activity.times.values())[1:-1])
        return accuracy, spikes, activity.spike_cost().item()

    def step(x, y):
        activity = network.activity(x)
        return nn.functional.cross_entropy(activity.potential, y) + 0.03 * activity.spike_cost()

    accuracy, spikes, cost = measured()
    train(step, x, y, 4, network.train().parameters(), 3e-3)
    network.eval()
    later = measured()
    assert later[1] < 0.8 * spikes
    assert later[2] < 0.6 * cost
    assert later[0] > accuracy - 0.03


def test_the_gradient_of_spike_times_is_minus_that_of_the_relus():
    model, inputs = small(), images(3, 4, seed=5, channels=1)
    network = from_relu(model, calibrate_on=images(8, 4, channels=1))
    times = network.activity(inputs).times["relu"]
    fired = times.isfinite()
    assert 0.2 < fired.double().mean() < 0.9
    ours = torch.autograd.grad(times[fired].sum(), network.body.get_submodule("conv1").weight)[0]
    theirs = torch.autograd.grad(torch.relu(model.conv1(inputs)).sum(), model.conv1.weight)[0]
    torch.testing.assert_close(ours, -theirs)


def test_dropout_drops_spikes_in_training_alone():
    network, inputs = from_relu(build("functional"), calibrate_on=images()), images()
    expected = network(inputs)
    network.train()
    torch.manual_seed(0)
    assert not torch.allclose(network(inputs), expected)
    before = repr(network.layers)
    network.calibrate(images())
    assert repr(network.layers) == before
    assert network.training
    assert torch.equal(network.eval()(inputs), expected)


def pooled():
    """Max-pools of every kind; only the first and the last have neurons that they alone may silence."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1)),
        *(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(1)),
        *(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU6(), nn.MaxPool2d((2, 3))),
        *(nn.Flatten(), nn.Linear(12, 5)),
    )


def test_the_first_spike_of_a_pool_inhibits_the_others_and_nothing_else_changes():
    torch.manual_seed(0)
    model, inputs = pooled().double().eval(), images(8, 8)
    plain, network = (from_relu(model, calibrate_on=inputs, inhibition=i) for i in (False, True))
    assert list(network.inhibition.values()) == [(2, 2), (2, 3)]
    assert torch.equal(network(inputs), plain(inputs))
    with torch.no_grad():
        every, left = plain.activity(inputs), network.activity(inputs)
    assert torch.equal(left.potential, every.potential)
    assert left.clipped == every.clipped
    for name, times in every.times.items():
        expected = times
        if name in network.inhibition:
            expected = lateral_inhibition2d(times, network.inhibition[name])
            assert 0 < expected.isfinite().sum() < 0.8 * times.isfinite().sum()
        assert torch.equal(left.times[name], expected)
    assert left.spike_cost() < every.spike_cost()
    assert network.decide(inputs).spikes.sum() < plain.decide(inputs).spikes.sum()
    assert "inhibition in" in repr(network)


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(2), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(3, ceil_mode=True)],
    ids=str,
)
def test_inhibition_without_windows_side_by_side_is_refused(pool):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(5))
    inputs = images(4, 8).float()
    model(inputs)
    with pytest.raises(
        ValueError, match=r"inhibition needs a MaxPool2d right behind .* got none in Sequential"
    ):
        from_relu(model, calibrate_on=inputs, inhibition=True)


def test_inhibition_does_without_pools_whose_windows_are_not_known():
    class OverAll(nn.Module):
        def __init__(self, pool):
            super().__init__()
            self.conv, self.other, self.fc, self.pool = (
                nn.Conv2d(3, 4, 3),
                nn.Conv2d(4, 4, 1),
                nn.Linear(4, 3),
                pool,
            )

        def forward(self, x):
            x = torch.relu(self.other(self.pool(torch.relu(self.conv(x)))))
            return self.fc(nn.functional.max_pool2d(x, x.size()[2:]).flatten(1))

    torch.manual_seed(0)
    inputs = images(4, 8)
    for pool in (nn.MaxPool2d((2,)), nn.MaxPool2d(np.int64(2)), nn.MaxPool2d(2, padding=(0,))):
        network = from_relu(OverAll(pool).double(), calibrate_on=inputs, inhibition=True)
        assert network.inhibition == {"relu": (2, 2)}
        network.activity(inputs)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    with pytest.raises(ValueError, match="inhibition needs a MaxPool2d"):
        from_relu(model, calibrate_on=inputs[:, 0], inhibition=True)


def test_neurons_that_others_read_too_are_not_inhibited():
    class Shortcut(Small):
        def forward(self, x):
            x = torch.relu(self.conv1(x))
            x = torch.cat([nn.functional.max_pool2d(x, 2), nn.functional.avg_pool2d(x, 2)], 1)
            x = nn.functional.max_pool2d(torch.relu(self.conv3(x)), kernel_size=(1, 2), stride=[1, 2])
            return self.fc(x.flatten(1))

    torch.manual_seed(0)
    model = Shortcut()
    model.conv3, model.fc = nn.Conv2d(4, 4, 1), nn.Linear(8, 3)
    network = from_relu(model.double(), calibrate_on=images(8, 4, channels=1), inhibition=True)
    assert list(network.inhibition.values()) == [(1, 2)]
    assert list(network.inhibition) == [list(network.layers)[1]]


def test_spike_times_keep_their_digits_under_autocast():
    torch.manual_seed(0)
    model, inputs = small().float(), images(8, 4, channels=1).float()
    network = from_relu(model, calibrate_on=inputs)
    expected = network.first_spikes(inputs), network.activity(inputs).times, network.decide(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.first_spikes(inputs), network.activity(inputs).times, network.decide(inputs)
        narrow = network(inputs)
    assert narrow.dtype == torch.bfloat16
    for one, other in zip(found[0] + found[2], expected[0] + expected[2], strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(found[1][name], times) for name, times in expected[1].items())


def test_no_nir_graph_of_windows():
    pytest.importorskip("nir")
    from ssnn_plugin.nir import to_nir

    with pytest.raises(ValueError, match="NIR has no neuron whose slope changes"):
        to_nir(from_relu(build("functional"), calibrate_on=images()))


def test_neurons_by_hand():
    neurons = RampNeurons(2.0)
    v = torch.tensor([-1.0, 0.0, 0.5, 2.0, 3.0], requires_grad=True)
    assert neurons(v).tolist() == [0, 0, 0.5, 2, 2]
    assert torch.autograd.grad(neurons(v).sum(), v)[0].tolist() == [0, 0, 1, 0, 0]
    assert neurons.times(neurons(v)).tolist() == [INF, INF, 1.5, 0, 0]
    assert RampNeurons()(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.slow
def test_it_compiles_exports_and_maps():
    network, inputs = from_relu(build("in place"), calibrate_on=images()), images(seed=3)
    expected = network(inputs)
    assert torch.equal(torch.compile(network, backend="eager", fullgraph=True)(inputs), expected)
    assert torch.equal(torch.export.export(network, (inputs,)).module()(inputs), expected)
    torch.testing.assert_close(torch.func.vmap(lambda x: network(x[None])[0])(inputs), expected)


def test_hooks_of_neurons_run_in_whatever_is_asked():
    x = torch.rand(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = from_relu(small(), calibrate_on=x)
    whole = network.activity(x).potential
    seen = []

    def lesion(module, inputs, leads):
        seen.append(leads)
        return leads * (torch.arange(leads.shape[1]) % 2)[:, None, None]

    name = next(iter(network.layers))
    handle = network.layers[name].register_forward_hook(lesion)
    potential = network(x)
    assert not torch.equal(potential, whole)
    found = network.activity(x)
    assert torch.equal(found.potential, potential)
    assert not found.leads[name][:, 0].any()
    assert torch.equal(network.decide(x).winner, network.first_spikes(x)[0].argmin(1))
    network.calibrate(x)
    assert len(seen) == 5
    handle.remove()
    torch.testing.assert_close(network.activity(x).potential, whole)
