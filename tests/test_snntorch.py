"""snnTorch's own usage patterns with `SingleSpike`, and the defects of snnTorch 1.0.0 that our docs name."""

import copy
import inspect
import io
import math
import pickle
import warnings

import matplotlib
import numpy as np
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from marks import needs_compiler
from snntorch import functional as SF
from snntorch import surrogate, utils
from snntorch.functional import probe, quant
from torch import nn
from torch.nn.functional import cross_entropy

from ssnn_plugin import IF, decode
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import EarliestSpikePool2d, SpikeConv2d, SpikeFlatten, SpikeLinear
from ssnn_plugin.snntorch import (
    FirstSpikePool2d,
    SingleSpike,
    accuracy_temporal,
    ce_temporal_loss,
    latency,
    mse_temporal_loss,
    relative_temporal_loss,
    reset,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from snntorch import backprop

INF = math.inf
STEPS = 6
BINS = torch.arange(STEPS).reshape(-1, 1, 1)


pytestmark = pytest.mark.usefixtures("one_thread")


def record(neuron, currents, mem=None):
    """The hand-written loop, or a call in sequence mode: spikes and potentials [T, batch, *]."""
    mem = neuron.reset_mem() if mem is None else mem
    if getattr(neuron, "sequence", False):
        return neuron(currents, mem)
    spk_rec, mem_rec = [], []
    for current in currents:
        spk, mem = neuron(current, mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def run(net, inputs):
    """The loop over a net whose last neuron has `init_hidden=True, output=True`."""
    return tuple(map(torch.stack, zip(*(net(x) for x in inputs), strict=True)))


def pulses(times, steps=STEPS, dtype=torch.float32):
    """Currents that make neurons fire at `times`, and a trickle that leaves the others silent."""
    bins = torch.arange(steps).reshape(-1, *[1] * torch.tensor(times).ndim)
    currents = torch.where(bins == torch.tensor(times), 2.0, 0.125)
    return currents.to(dtype).requires_grad_()


def trains(times, steps=STEPS, dtype=torch.float32):
    return decode.times_to_spikes(torch.tensor(times), steps).to(dtype).requires_grad_()


def inputs(steps=STEPS, batch=4, features=5, seed=1):
    return (torch.rand(steps, batch, features, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


class Net(nn.Module):
    """The network of the tutorials."""

    def __init__(self, start="init_leaky", **options):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 7), SingleSpike(beta=0.9, **options)
        self.fc2, self.lif2 = nn.Linear(7, 3), SingleSpike(beta=0.9, **options)
        self.start = start
        draw = torch.Generator().manual_seed(0)
        for layer in (self.fc1, self.fc2):
            nn.init.uniform_(layer.weight, -0.2, 1, generator=draw)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        mem1, mem2 = getattr(self.lif1, self.start)(), getattr(self.lif2, self.start)()
        spk_rec, mem_rec = [], []
        for step in range(len(x)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)

    def sequential(self, nested=False, **options):
        """The same weights in `nn.Sequential`, with hidden states."""
        first = [self.fc1, SingleSpike(beta=0.9, init_hidden=True, **options)]
        last = [self.fc2, SingleSpike(beta=0.9, init_hidden=True, output=True, **options)]
        if nested:
            return nn.Sequential(nn.Sequential(*first), nn.Sequential(*last))
        return nn.Sequential(*first, *last)


# --- (a), (b): loops and containers


@pytest.mark.parametrize("way", ["init_leaky", "reset_mem", "sequential", "sequence"])
def test_every_way_to_write_a_network_is_the_same_network(way):
    """Spikes, potentials and gradients; the second call shows that nothing is left of the first."""
    x, labels = inputs(), torch.tensor([0, 1, 2, 0])
    net = Net("reset_mem" if way == "reset_mem" else "init_leaky")

    def call():
        if way == "sequential":
            hidden = net.sequential()
            utils.reset(hidden)
            return run(hidden, x)
        return net.sequential(sequence=True)(x) if way == "sequence" else net(x)

    reference = Net()
    spk, mem = reference(x)
    (ce_temporal_loss()(spk, labels) + mem.mean()).backward()
    assert spk.sum(0).max() == 1
    for _ in range(2):
        net.zero_grad()
        found = call()
        torch.testing.assert_close(found, (spk, mem))
        (ce_temporal_loss()(found[0], labels) + found[1].mean()).backward()
        for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
            assert ours.grad.any()


def test_the_tutorial_loop_learns():
    """Which of three groups of inputs comes first; silent outputs learn through their potential."""
    first = torch.arange(5) % 3 == torch.arange(3).unsqueeze(1)
    x, labels = latency(torch.where(first, 1.0, 0.4), STEPS), torch.tensor([1, 2, 0])
    net, criterion, losses = Net(), ce_temporal_loss(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        spk, mem = net(x)
        losses.append(criterion(spk, labels, mem))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert accuracy_temporal(spk, labels) == 1


def test_the_neuron_takes_what_leaky_takes():
    """Same arguments in the same order, so that positional ones keep their meaning."""
    ours, theirs = (inspect.signature(neuron).parameters for neuron in (SingleSpike, snn.Leaky))
    assert list(ours)[: len(theirs)] == list(theirs)
    spk, mem = SingleSpike()(torch.full((1,), 1.5), torch.zeros(1))
    assert (spk.tolist(), mem.tolist()) == ([1.0], [1.5])


@pytest.mark.parametrize("init_hidden", [False, True])
@pytest.mark.parametrize("output", [False, True])
def test_what_is_returned_is_what_leaky_returns(init_hidden, output):
    options = {"init_hidden": init_hidden, "output": output}
    ours, theirs = (neuron(beta=0.5, **options)(torch.ones(2, 3)) for neuron in (SingleSpike, snn.Leaky))
    assert type(ours) is type(theirs)
    torch.testing.assert_close(ours, theirs)


def test_hidden_state_goes_on_and_starts_anew_with_another_batch_size():
    neuron = SingleSpike(init_hidden=True, output=True)
    assert [neuron(torch.full((2, 1), 0.7))[0].sum().item() for _ in range(3)] == [0, 2, 0]
    spk, mem = neuron(torch.full((3, 1), 0.7))
    assert (spk.any().item(), mem.shape) == (False, (3, 1))
    torch.testing.assert_close(mem, torch.full((3, 1), 0.7))
    with pytest.raises(TypeError, match="mem must not be passed with init_hidden=True"):
        neuron(torch.ones(3, 1), mem)


def test_a_mem_of_another_shape_starts_anew_as_in_leaky():
    spk, mem = SingleSpike()(torch.full((2, 1), 0.7), torch.full((3, 1), 5.0))
    assert (spk.any().item(), mem.tolist()) == (False, torch.full((2, 1), 0.7).tolist())


# --- (c): reset


def _each(net):
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()


@pytest.mark.parametrize("restart", [utils.reset, reset, _each])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), lambda net: net]
)
def test_a_net_replays_after_a_reset(restart, copied):
    """Originals and copies, which `utils.reset` would not reach if they were not registered."""
    net = copied(Net().sequential())
    first = run(net, inputs())
    assert first[0].any()
    assert not torch.equal(run(net, inputs())[0], first[0])
    restart(net)
    torch.testing.assert_close(run(net, inputs()), first, rtol=0, atol=0)
    restart(net)
    assert not any(module.mem.requires_grad or module.mem.any() for module in (net[1], net[3]))


@pytest.mark.parametrize("sequence", [False, True])
def test_hidden_states_are_detached_in_place(sequence):
    """For truncated backpropagation, as `backprop` does it: the window goes on, its gradient does not."""
    net = Net().sequential(sequence=sequence)
    x = inputs()
    call = net if sequence else lambda part: run(net, part)
    whole = call(x)[0]
    reset(net)
    first = call(x[:3])[0]
    snn.Leaky.detach_hidden()
    assert not any(neuron.mem.requires_grad for neuron in (net[1], net[3]))
    assert torch.equal(torch.cat([first, call(x[3:])[0]]), whole)


def test_reset_reaches_nested_neurons_of_any_kind_and_no_other_net():
    others = [snn.Synaptic(0.9, 0.8, init_hidden=True), FirstSpikePool2d(1, init_hidden=True)]
    net, other = nn.Sequential(Net().sequential(nested=True), nn.ModuleList(others)), Net().sequential()
    for _ in range(2):
        first = run(net[0], inputs())
        others[0](torch.ones(1, 2))
        others[1](torch.ones(1, 1, 2, 2))
        run(other, inputs())
        kept = other[1].mem
        reset(net)
        assert not any(
            buffer.any() for name, buffer in net.named_buffers() if name.split(".")[-1] in ("mem", "syn")
        )
        assert other[1].mem is kept
    assert kept.any()
    torch.testing.assert_close(run(net[0], inputs()), first, rtol=0, atol=0)


# --- (d): snnTorch's losses, accuracies, plots, monitors, backprop

TIMES, LABELS = [[1.0, 3.0, INF], [2.0, 2.0, 0.0]], torch.tensor([0, 1])
SPIKES = trains(TIMES).detach()
SHADOW = torch.tensor(TIMES).clamp(max=STEPS - 1)
WANTED = torch.where(nn.functional.one_hot(LABELS, 3) == 1, 1.0, 4.0)


def _mse(found, wanted):
    return (found - wanted).square().mean()


THEIRS = {
    "ce_temporal_loss": (SF.ce_temporal_loss(), lambda: cross_entropy(-SHADOW, LABELS)),
    "reciprocal": (SF.ce_temporal_loss("reciprocal"), lambda: cross_entropy(1 / (SHADOW + 1), LABELS)),
    "mse_temporal_loss": (SF.mse_temporal_loss(False, 1, 4), lambda: _mse(SHADOW, WANTED) / STEPS**2),
    "tolerance": (
        SF.mse_temporal_loss(on_target=1, off_target=4, tolerance=2),
        lambda: (SHADOW - WANTED).square()[(SHADOW - WANTED).abs() >= 2].sum() / 6 / STEPS**2,
    ),
    "ce_rate_loss": (SF.ce_rate_loss(), lambda: sum(cross_entropy(spk, LABELS) for spk in SPIKES) / STEPS),
    "ce_count_loss": (SF.ce_count_loss(), lambda: cross_entropy(SPIKES.sum(0), LABELS)),
    "mse_count_loss": (
        SF.mse_count_loss(0.5, 0.2),
        lambda: _mse(SPIKES.sum(0), torch.where(WANTED == 1, 3.0, 1.0)) / STEPS,
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_their_losses_on_spikes(name):
    """The value by hand; an error reaches each current up to the spike, equally, and no silent neuron."""
    criterion, expected = THEIRS[name]
    currents = pulses(TIMES)
    spk, _ = record(SingleSpike(), currents)
    loss = criterion(spk, LABELS)
    torch.testing.assert_close(loss.squeeze(), expected())
    loss.sum().backward()
    first = currents.grad[0]
    causal = torch.tensor(TIMES) >= BINS
    fired = torch.tensor(TIMES).isfinite()
    torch.testing.assert_close(currents.grad, torch.where(causal & fired, first, 0.0))
    assert (first != 0).logical_and(fired).any()


@pytest.mark.parametrize("criterion", [SF.ce_max_membrane_loss(), SF.mse_membrane_loss()])
def test_their_losses_on_potentials(criterion):
    """Also silent neurons learn from them."""
    currents = pulses(TIMES)
    _, mem = record(SingleSpike(), currents)
    loss = criterion(mem, LABELS)
    hot = nn.functional.one_hot(LABELS, 3).float()
    crossing = torch.tensor(TIMES) * 0.125 + 2
    by_hand = torch.where(torch.tensor(TIMES) > BINS, (BINS + 1) * 0.125, crossing)
    torch.testing.assert_close(mem.detach(), by_hand)
    expected = {
        "ce_max_membrane_loss": cross_entropy(by_hand[-1], LABELS),
        "mse_membrane_loss": sum(_mse(step, hot) for step in by_hand) / STEPS,
    }
    torch.testing.assert_close(loss.squeeze(), expected[criterion.__name__])
    loss.sum().backward()
    assert currents.grad[0].ne(0).all()


def test_their_accuracies():
    spk, _ = record(SingleSpike(), pulses([[1.0, 3.0, INF], [2.0, 1.0, 4.0], [INF, INF, 4.0]]))
    labels = torch.tensor([0, 2, 2])
    assert SF.accuracy_temporal(spk, labels) == pytest.approx(2 / 3)
    # Everything that fires counts once, so that the rate decides only where a single class fired.
    assert SF.accuracy_rate(spk, torch.tensor([0, 0, 2])) == 1
    assert SF.accuracy_rate(spk, torch.tensor([1, 1, 1])) == 0


def test_their_l1_regularisation():
    currents = pulses(TIMES)
    spk, _ = record(SingleSpike(), currents)
    penalty = SF.l1_rate_sparsity(0.25)(spk)
    assert penalty.item() == 0.25 * 5
    penalty.backward()
    causal = torch.tensor(TIMES) >= BINS
    assert torch.equal(currents.grad, 0.25 * (causal & torch.tensor(TIMES).isfinite()))


def test_their_plots():
    matplotlib.use("Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    splt = pytest.importorskip("snntorch.spikeplot")
    spk, mem = (rec[:, 0].detach() for rec in record(SingleSpike(), pulses(TIMES)))
    figure, axis = plt.subplots()
    points = splt.raster(spk, axis, s=1.5, c="black")
    assert points.get_offsets().tolist() == [[1, 0], [3, 1]]
    figure = plt.figure()
    splt.traces(mem, spk=spk, dim=(1, 3), spk_height=5)
    drawn = np.stack([axis.lines[0].get_ydata() for axis in figure.axes], 1)
    np.testing.assert_array_equal(drawn, mem + 5 * spk)
    for animate in (False, True):
        figure, axis = plt.subplots()
        frames = splt.spike_count(spk, figure, axis, ["a", "b", "c"], animate=animate)
        if animate:
            frames._draw_was_started = True
        else:
            assert axis.lines[0].get_xdata().tolist() == [1, 1, 0]
    plt.close("all")


def test_their_monitors():
    net, x = Net().sequential(), inputs()
    monitors = [
        probe.InputMonitor(net, snn.Leaky),
        probe.OutputMonitor(net, SingleSpike),
        probe.AttributeMonitor("mem", False, net, SingleSpike),
        probe.GradOutputMonitor(net, SingleSpike),
        probe.GradInputMonitor(net, SingleSpike),
    ]
    spk, mem = run(net, x)
    ce_temporal_loss()(spk, torch.tensor([0, 1, 2, 0])).backward()
    assert all(monitor.monitored_layers == ["1", "3"] for monitor in monitors)
    currents, outputs, potentials, _, of_currents = (monitor["3"] for monitor in monitors)
    assert torch.equal(torch.stack([spk for spk, _ in outputs]), spk)
    assert torch.equal(torch.stack(potentials), mem)
    assert torch.equal(torch.stack(monitors[1]["1"])[0] @ net[2].weight.T, currents[0])
    # From the last step back to the first; an error reaches all currents up to the spike.
    assert of_currents[-1].any()
    assert [len(monitor.records) for monitor in monitors] == [2 * STEPS] * 5


CRITERIA = [
    ce_temporal_loss(),
    mse_temporal_loss(on_target=1),
    relative_temporal_loss(gamma=2),
    *(criterion for criterion, _ in THEIRS.values()),
    SF.ce_max_membrane_loss(),
    SF.mse_membrane_loss(),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
@pytest.mark.parametrize("data", ["time first", "batch first", "static"])
def test_bptt_is_the_hand_written_loop(criterion, data):
    """Two batches, so that the states must have been reset in between."""
    regularization = SF.l1_rate_sparsity(0.01)
    nets = [Net().sequential() for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    options, batches = {}, [(inputs(seed=seed), torch.tensor([0, 1, 2, 0])) for seed in (1, 2)]
    loader = batches
    if data == "batch first":
        options, loader = {"time_first": False}, [(x.transpose(0, 1), labels) for x, labels in batches]
    elif data == "static":
        batches = [(x[:1].expand(STEPS, -1, -1), labels) for x, labels in batches]
        options, loader = {"time_var": False, "num_steps": STEPS}, [(x[0], labels) for x, labels in batches]
    found = backprop.BPTT(nets[0], loader, optimizers[0], criterion, regularization=regularization, **options)
    losses = []
    for x, labels in batches:
        reset(nets[1])
        spk, mem = run(nets[1], x)
        loss = criterion(mem if "membrane" in criterion.__name__ else spk, labels) + 0.01 * spk.sum()
        optimizers[1].zero_grad()
        loss.sum().backward()
        optimizers[1].step()
        losses.append(loss)
    torch.testing.assert_close(found.squeeze(), sum(losses).squeeze() / 2)
    for ours, theirs, start in zip(*(net.parameters() for net in (*nets, Net().sequential())), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, start)


# --- (e): compile, copies, precision


@needs_compiler
@pytest.mark.parametrize("way", ["step", "loop", "sequence", "hidden"])
def test_compiled_equals_eager(way):
    neuron = SingleSpike(
        beta=0.5,
        learn_beta=True,
        learn_threshold=True,
        sequence=way == "sequence",
        init_hidden=way == "hidden",
        output=True,
    )
    currents = pulses(TIMES)
    call = {
        "step": lambda currents, mem: neuron(currents[1], mem),
        "loop": lambda currents, mem: record(neuron, currents, mem),
        "sequence": neuron,
        "hidden": lambda currents, _: neuron(currents[1]),
    }[way]

    def outcome(function):
        neuron.mem = torch.zeros(2, 3)
        start = torch.full((2, 3), 0.25, requires_grad=True)
        spk, mem = function(currents, start)
        leaves = [currents, neuron.beta, neuron.threshold, start]
        grads = torch.autograd.grad((spk * spk + mem.square()).sum(), leaves, allow_unused=True)
        return [spk, mem, *grads]

    torch._dynamo.reset()
    # What Inductor makes of a loop is as long as the loop; fullgraph is Dynamo's part.
    backend = "inductor" if way in ("step", "sequence") else "aot_eager"
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for found, expected in zip(outcome(compiled), outcome(call), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_training_step_compiles_with_its_loss():
    net, x, labels = Net().sequential(sequence=True), inputs(), torch.tensor([0, 1, 2, 0])

    def loss(x):
        spk, mem = net(x)
        return ce_temporal_loss()(spk, labels, mem) + mse_temporal_loss()(spk, labels)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    reset(net)
    torch.testing.assert_close(compiled, loss(x))


@pytest.mark.parametrize("sequence", [False, True])
def test_function_transforms(sequence):
    """vmap over samples, and the Jacobian."""
    neuron = SingleSpike(beta=0.5, sequence=sequence)
    currents = pulses(TIMES, dtype=torch.float64).detach()
    window = currents if sequence else currents[1]
    start = torch.zeros(3, dtype=torch.float64)

    def one(window):
        return neuron(window, start)

    found = torch.func.vmap(one, in_dims=-2, out_dims=-2)(window)
    torch.testing.assert_close(found, neuron(window, start.expand(2, 3)))
    jacobian = torch.func.jacrev(lambda window: one(window)[1].sum())(window.select(-2, 0))
    bins = torch.arange(STEPS).unsqueeze(1)
    # Each current counts in every potential from its own bin on.
    expected = torch.where(bins <= torch.tensor(TIMES[0]), STEPS - bins, 0.0) if sequence else torch.ones(3)
    torch.testing.assert_close(jacobian, expected, check_dtype=False)


def _saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _saved,
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(
    "module",
    [
        lambda: SingleSpike(0.5, learn_beta=True, learn_threshold=True, init_hidden=True, output=True),
        lambda: SingleSpike(0.5, surrogate_disable=True, init_hidden=True, output=True),
        lambda: SingleSpike(0.5, learn_beta=True, init_hidden=True, output=True, sequence=True),
        lambda: FirstSpikePool2d(1, init_hidden=True, output=True),
        lambda: nn.Sequential(nn.Linear(3, 3), SingleSpike(init_hidden=True, output=True)),
    ],
)
def test_a_copy_mid_sequence_goes_on_where_the_original_is(make, module):
    original = module()
    shape = (2, 1, 2, 3) if isinstance(original, FirstSpikePool2d) else (2, 3)
    if getattr(original, "sequence", False):
        shape = (1, *shape)
    draw = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, *shape, generator=draw) * 1.2
    original(first)
    found = make(original)
    assert not any(buffer.requires_grad for buffer in found.buffers())
    torch.testing.assert_close(found(second), original(second), rtol=0, atol=0)
    assert str(found) == str(original)
    # Copies share nothing.
    reset(found)
    neuron = original[1] if isinstance(original, nn.Sequential) else original
    assert neuron.mem.any()


def test_state_dicts_are_those_of_leaky():
    ours = SingleSpike(0.25, threshold=torch.tensor([1.0, 2.0]), learn_threshold=True)
    theirs = snn.Leaky(0.5, threshold=torch.tensor([3.0, 4.0]), graded_spikes_factor=2.0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    fresh = SingleSpike(0.75, threshold=torch.zeros(2), learn_threshold=True)
    ours(torch.ones(3, 2))
    fresh.load_state_dict(ours.state_dict())
    currents = torch.rand(STEPS, 3, 2) * 2
    torch.testing.assert_close(record(fresh, currents), record(ours, currents))
    fresh.load_state_dict(theirs.state_dict())
    spk, mem = record(fresh, torch.ones(9, 1, 2) * 2.25)
    # V of beta = 0.5: 2.25, 3.375, 3.9375, 4.21875
    assert decode.spikes_to_times(spk).tolist() == [[1.0, 3.0]]
    assert (spk.max().item(), mem[-1].tolist()) == (2.0, [[3.375, 4.21875]])
    theirs.load_state_dict(ours.state_dict())
    assert theirs.threshold.tolist() == [1.0, 2.0]


def test_autocast_keeps_the_state_in_float32_and_trains_float32_weights():
    net, x = Net(), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spk, mem = net(x)
        loss = ce_temporal_loss()(spk, torch.tensor([0, 1, 2, 0]), mem)
    assert {spk.dtype, mem.dtype, loss.dtype} == {torch.float32}
    assert spk.sum(0).max() == 1
    loss.backward()
    for parameter in net.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequence": True},
        {"spike_grad": surrogate.atan()},
        {"surrogate_disable": True},
        {"state_quant": quant.state_quant(4)},
        {"graded_spikes_factor": torch.full((3,), 2.0)},
        {"inhibition": True},
        {"threshold": torch.ones(3)},
        {"beta": torch.full((3,), 0.5)},
    ],
    ids=lambda options: "".join(options) or "plain",
)
def test_dtypes_are_kept(dtype, cast, options):
    """Whether or not the module was cast; the numbers are those of float32, which are exact here."""
    neuron = SingleSpike(**{"beta": 0.5, **options})
    expected = record(neuron, pulses(TIMES))
    currents = pulses(TIMES, dtype=dtype)
    spk, mem = record(neuron.to(dtype) if cast else neuron, currents)
    assert (spk.dtype, mem.dtype) == (dtype, dtype)
    for found, wanted in zip((spk, mem), expected, strict=True):
        torch.testing.assert_close(found, wanted, check_dtype=False, rtol=2**-7, atol=0)
    (spk + mem).sum().backward()
    assert currents.grad.dtype == dtype
    assert currents.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sequence", [False, True])
def test_the_pool_keeps_the_dtype(dtype, sequence):
    spk = trains([[[[1.0, 0.0], [INF, 4.0]]]], dtype=dtype)
    pool = FirstSpikePool2d(2, sequence=sequence)
    pooled, mem = record(pool, spk)
    assert (pooled.dtype, mem.dtype) == (dtype, dtype)
    assert (pooled.flatten().tolist(), mem.flatten().tolist()) == ([1, 0, 0, 0, 0, 0], [1] * STEPS)


def test_whole_numbers_count_as_in_leaky():
    """A leak of 0.5 and a threshold of 1.5 must not become 0 and 1."""
    ours, theirs = (
        neuron(beta=0.5, threshold=1.5)(torch.ones(1, 2, dtype=torch.int64), torch.full((1, 2), 1.0))
        for neuron in (SingleSpike, snn.Leaky)
    )
    assert (ours[0].tolist(), ours[1].tolist()) == (theirs[0].tolist(), theirs[1].tolist())


def test_a_module_without_data_has_a_name():
    assert "SingleSpike" in repr(SingleSpike(0.5).to("meta"))


# --- (f): options


def test_learnable_options_are_parameters_with_the_gradient_of_the_rule():
    neuron = SingleSpike(
        0.5,
        threshold=torch.tensor([1.0, 1.5, 1.0]),
        learn_beta=True,
        learn_threshold=True,
        graded_spikes_factor=2.0,
        learn_graded_spikes_factor=True,
    )
    assert dict(neuron.named_parameters()).keys() == {"beta", "threshold", "graded_spikes_factor"}
    spk, _ = record(neuron, pulses(TIMES))
    assert spk.unique().tolist() == [0.0, 2.0]
    (spk * (BINS + 1)).sum().backward()
    # Spikes in bins 1, 3; 2, 2, 0, weighed by bin + 1; the silent neuron has none.
    assert neuron.graded_spikes_factor.grad.item() == 2 + 4 + 3 + 3 + 1
    assert neuron.threshold.grad.tolist() == [-2.0 * (2 + 3), -2.0 * (4 + 3), -2.0]
    # V before a bin: 0, 0.125, 0.1875, 0.21875; summed up to the bin of the spike.
    before = np.cumsum([0, 0.125, 0.1875, 0.21875])
    expected = 2 * (2 * before[1] + 4 * before[3] + 2 * 3 * before[2])
    assert neuron.beta.grad.item() == pytest.approx(expected)


SURROGATES = {
    "atan": surrogate.atan(),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=2),
    "straight_through": surrogate.straight_through_estimator(),
    "sigmoid": surrogate.sigmoid(slope=2),
    "custom": surrogate.custom_surrogate(lambda v, grad, spk: grad * (1 + spk) / (1 + v * v)),
}


@pytest.mark.parametrize("spike_grad", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize("sequence", [False, True])
def test_a_surrogate_is_that_of_a_hand_written_loop(spike_grad, sequence):
    draw = torch.Generator().manual_seed(3)
    currents = torch.rand(STEPS, 4, 5, generator=draw, dtype=torch.float64) * 0.9 - 0.1
    weights = torch.rand(2, STEPS, 4, 5, generator=draw, dtype=torch.float64)
    leaves = [
        currents.requires_grad_(),
        torch.tensor(0.8, dtype=torch.float64, requires_grad=True),
        torch.linspace(0.5, 1.5, 5, dtype=torch.float64, requires_grad=True),
    ]

    def by_hand(currents, beta, threshold):
        v, fired, rec = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.bool), []
        for current in currents:
            v = torch.where(fired, v, beta * v + current)
            rec.append((spike_grad(v - threshold) * ~fired, v))
            fired = fired | (v > threshold)
        return map(torch.stack, zip(*rec, strict=True))

    def outcome(spk, mem, leaves):
        loss = (weights[0] * spk + weights[1] * mem).sum()
        return [spk, mem, *torch.autograd.grad(loss, leaves)]

    neuron = SingleSpike(
        leaves[1], leaves[2], spike_grad, learn_beta=True, learn_threshold=True, sequence=sequence
    )
    found = record(neuron, leaves[0])
    assert found[0].sum(0).max() == 1
    assert found[0].sum(0).min() == 0
    expected = outcome(*by_hand(*leaves), leaves)
    ours = outcome(*found, [leaves[0], neuron.beta, neuron.threshold])
    for left, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(left, right, check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sequence", [False, True])
def test_a_surrogate_never_sees_the_potential_of_a_spent_neuron(sequence):
    """exp() of what would have come after the spike overflows."""
    currents = torch.tensor([[[2.0]], [[-20.0]]], requires_grad=True)
    neuron = SingleSpike(spike_grad=surrogate.sigmoid(), sequence=sequence)
    spk, _ = record(neuron, currents)
    spk.sum().backward()
    assert currents.grad.isfinite().all()


@pytest.mark.parametrize("sequence", [False, True])
def test_surrogate_disable(sequence):
    currents = pulses(TIMES)
    neuron = SingleSpike(spike_grad=surrogate.atan(), surrogate_disable=True, sequence=sequence)
    spk, mem = record(neuron, currents)
    assert not spk.requires_grad
    assert torch.equal(spk, SPIKES)
    mem[-1].sum().backward()
    assert currents.grad[0].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("sequence", [False, True])
def test_inhibition_lets_one_fire_per_step(sequence):
    """Of 0 and 1, which cross together, 1 is higher; 0 is spent. Later, 1 inhibits nobody."""
    currents = torch.zeros(3, 2, 3)
    currents[0, 0], currents[1, 0], currents[2, 0] = torch.tensor([[1.5, 2, 0], [1, 1, 1.25], [1, 1, 1]])
    currents[1, 1] = torch.tensor([0.5, 1.5, 2.5])
    currents.requires_grad_()
    neuron = SingleSpike(inhibition=True, sequence=sequence)
    spk, mem = record(neuron, currents)
    assert decode.spikes_to_times(spk).tolist() == [[INF, 0, 1], [INF, INF, 1]]
    assert mem[-1].tolist() == [[1.5, 2, 1.25], [0.5, 1.5, 2.5]]
    spk.sum().backward()
    assert currents.grad[0].tolist() == [[0, 1, 1], [0, 0, 1]]


def test_inhibition_with_a_surrogate_teaches_the_highest_as_in_leaky():
    """Also in a step in which nobody fires."""
    grads = []
    for neuron in (SingleSpike, snn.Leaky):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            lif = neuron(beta=1.0, spike_grad=surrogate.atan(), inhibition=True)
        currents = torch.tensor([[0.2, 0.8, 0.1], [1.2, 0.1, 1.5]], requires_grad=True)
        spk, _ = lif(currents, torch.zeros(2, 3))
        spk.sum().backward()
        grads.append(currents.grad.tolist())
    assert grads[0] == grads[1]


def test_state_quant_is_that_of_leaky_until_the_spike():
    levels = quant.state_quant(num_bits=4, upper_limit=0.2)
    currents = torch.rand(STEPS, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, potential = record(SingleSpike(0.9, state_quant=levels), currents)
    theirs, mem = record(snn.Leaky(0.9, reset_mechanism="none", state_quant=levels), currents)
    first = decode.spikes_to_times(theirs)
    assert torch.equal(ours, decode.times_to_spikes(first, STEPS))
    alive = first >= BINS
    assert torch.equal(potential[alive], mem[alive])
    assert not torch.equal(potential, record(SingleSpike(0.9), currents)[1])
    # What has fired is left alone.
    _, mem = record(SingleSpike(state_quant=lambda v: v / 2), torch.full((3, 1, 1), 4.0))
    assert mem.flatten().tolist() == [2.0] * 3
    # Straight through the rounding.
    (grad,) = torch.autograd.grad(ours.sum(), currents)
    assert torch.equal(grad, (alive & first.isfinite()).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_mechanism": "subtract"}, "reset_mechanism must be 'none', got 'subtract'"),
        ({"reset_delay": True}, "reset_delay must be left out, got True"),
        ({"threshold": -0.5}, "threshold must be at least 0, got -0.5"),
        (
            {"threshold": torch.tensor([1.0, -1.0])},
            r"threshold must be at least 0, got tensor\(\[ 1., -1.\]\)",
        ),
        (
            {"state_quant": quant.state_quant(4), "sequence": True},
            "state_quant must be False with sequence=True",
        ),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        SingleSpike(**options)


# --- (g), (h): the neuron against a naive formulation


def naive(currents, start, threshold, beta, of_spikes, of_mem):
    """Neuron by neuron and bin by bin: what it does, and the gradients of sum(of_spikes S + of_mem V).

    dS/dV = 1 in the bin of the spike (dt/dV = -1); each current up to then counts as +1 in V, whatever its
    age. V of a spent neuron is that at the crossing.
    """
    spikes, mem, of_currents = (np.zeros_like(currents) for _ in range(3))
    of_start, of_threshold, of_beta = (np.zeros_like(start) for _ in range(3))
    for n in np.ndindex(start.shape):
        v, fired, alive = start[n], start[n] > threshold[n], []
        for t in range(len(currents)):
            if not fired:
                alive.append((t, v))
                v = beta[n] * v + currents[t][n]
                fired = spikes[t][n] = v > threshold[n]
            mem[t][n] = v
        of_fired = [spikes[t][n] * of_spikes[t][n] for t in range(len(currents))]
        worth = [of_fired[t] + of_mem[t][n] for t in range(len(currents))]
        for t, before in alive:
            of_currents[t][n] = sum(worth[t:])
            of_beta[n] += before * sum(worth[t:])
        of_start[n], of_threshold[n] = sum(worth), -sum(of_fired)
    return spikes, mem, of_currents, of_start, of_threshold, of_beta


@st.composite
def windows(draw):
    """Currents [T, batch, features], start, threshold, beta, what comes back; all sums are exact."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 2), st.integers(1, 3)))
    eighths = st.integers(-12, 20).map(lambda number: number / 8)
    several = st.sampled_from([(), shape[2:]])

    def parameter(*values):
        return draw(arrays(np.float64, draw(several), elements=st.sampled_from(values)))

    few = st.sampled_from([0.0, 0.0, 1.0, -2.0])
    return (
        draw(arrays(np.float64, shape, elements=eighths, fill=st.nothing())),
        draw(arrays(np.float64, shape[1:], elements=st.sampled_from([0.0, 0.0, 0.75, 2.5]))),
        parameter(0.0, 0.5, 1.0, 2.0),
        parameter(0.0, 0.5, 1.0),
        *(draw(arrays(np.float64, shape, elements=few)) for _ in range(2)),
    )


def by_chunks(neuron, currents, start):
    """A window in two calls, by the state that the neuron keeps itself."""
    neuron.mem = start
    parts = [neuron(part) for part in currents.tensor_split(2) if len(part)]
    return map(torch.cat, zip(*parts, strict=True))


MODES = {
    "steps": (record, {}),
    "at once": (record, {"sequence": True}),
    "chunks": (by_chunks, {"init_hidden": True, "output": True, "sequence": True}),
}


@settings(deadline=None, max_examples=100)
@given(window=windows())
def test_every_mode_is_the_naive_loop(window):
    everywhere = [np.broadcast_to(value, window[1].shape) for value in window[2:4]]
    expected = naive(*window[:2], *everywhere, *window[4:])
    names = ["spk", "mem", "currents", "start", "threshold", "beta"]
    for mode, (call, options) in MODES.items():
        currents, start, threshold, beta, *grads = map(torch.from_numpy, window)
        learned = {"learn_beta": True, "learn_threshold": True, "silent_gradient": False}
        neuron = SingleSpike(beta, threshold, **learned, **options)
        leaves = [currents.requires_grad_(), start.requires_grad_(), neuron.threshold, neuron.beta]
        spk, mem = call(neuron, currents, start)
        assert (spk.sum(0) <= 1).all()
        found = [spk, mem, *torch.autograd.grad([spk, mem], leaves, grads)]
        # At the ends of 0 ... 1 it is the clamp's gradient that decides.
        found[-1] = found[-1].where(
            (beta > 0) & (beta < 1), torch.from_numpy(expected[-1]).sum_to_size(beta.shape)
        )
        for name, ours, theirs in zip(names, found, expected, strict=True):
            wanted = torch.from_numpy(theirs).sum_to_size(ours.shape)
            assert torch.equal(ours, wanted), f"{mode}, {name}: {ours} instead of {wanted}"


def test_a_beta_of_1_learns():
    """It is the default, and the end of what `clamp(0, 1)` lets through."""
    neuron = SingleSpike(learn_beta=True)
    _, mem = record(neuron, torch.full((3, 1, 1), 0.25))
    mem[-1].sum().backward()
    assert neuron.beta.grad.item() == 0.25 + 0.5


@pytest.mark.parametrize("sequence", [False, True])
def test_cases_checked_by_hand(sequence):
    """At threshold is not above it; after the spike V stays, whatever comes."""
    currents = torch.tensor([[0.5, 2.0, 0.5], [0.5, -9.0, -0.25], [0.25, 9.0, 0.5]]).unsqueeze(1)
    neuron = SingleSpike(sequence=sequence)
    spk, mem = record(neuron, currents)
    assert spk.squeeze(1).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert mem.squeeze(1).tolist() == [[0.5, 2, 0.5], [1, 2, 0.25], [1.25, 2, 0.75]]


@pytest.mark.parametrize(("beta", "effective"), [(1.5, 1.0), (-0.5, 0.0)])
def test_beta_is_clamped_as_in_leaky(beta, effective):
    currents = torch.full((3, 1, 1), 0.25)
    for neuron in (SingleSpike, snn.Leaky):
        found, expected = (record(neuron(beta=value), currents) for value in (beta, effective))
        torch.testing.assert_close(found, expected)


def test_sequence_mode_takes_the_mem_that_it_returned():
    """Else a neuron that has fired would fire again in the next chunk, in silence about it."""
    neuron = SingleSpike(sequence=True)
    spk, mem = neuron(torch.full((2, 1, 1), 2.0))
    assert spk.sum() == 1
    spk, _ = neuron(torch.full((2, 1, 1), 2.0), mem)
    assert spk.sum() == 0


@pytest.mark.parametrize("recorded", [None, "last", "all"])
@pytest.mark.parametrize(
    "criterion",
    [ce_temporal_loss(temperature=0.3), mse_temporal_loss(on_target=1), relative_temporal_loss(gamma=2)],
    ids=lambda criterion: type(criterion).__name__,
)
def test_the_latency_rule_in_trains(criterion, recorded):
    """dL/dI = -dL/dt up to the spike; a silent neuron has none, or one through its potential."""
    currents, labels = pulses(TIMES, dtype=torch.float64), torch.tensor([2, 1])
    spk, mem = record(SingleSpike(), currents)
    criterion(spk, labels, {None: None, "last": mem[-1], "all": mem}[recorded]).backward()
    times = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    criterion._loss(STEPS)(times, labels).backward()
    assert times.grad[0, 2] > 0
    learns = times.isfinite() if recorded is None else torch.ones_like(times, dtype=torch.bool)
    torch.testing.assert_close(currents.grad, torch.where((times >= BINS) & learns, -times.grad, 0.0))


@pytest.mark.parametrize("silent_gradient", [False, True])
@pytest.mark.parametrize("sequence", [False, True])
def test_a_network_on_trains_is_the_one_on_times(silent_gradient, sequence):
    """Convolution, pool and linear layer with a leak: times, loss, and all gradients."""
    steps, labels, draw = 12, torch.tensor([1, 0, 2]), torch.Generator().manual_seed(5)
    times = torch.randint(0, steps + 4, (3, 2, 6, 6), generator=draw).double()
    times = times.masked_fill(times >= steps, INF).requires_grad_()
    neuron = IF(1.0, beta=0.875)
    options = {"t_max": steps, "silent_gradient": silent_gradient, "dtype": torch.float64}
    on_times = nn.Sequential(
        SpikeConv2d(2, 4, 3, neuron, bias=True, **options),
        EarliestSpikePool2d(2),
        SpikeFlatten(),
        SpikeLinear(16, 3, neuron, **options),
    )
    with torch.no_grad():
        on_times[0].weight.copy_(torch.rand(4, 2, 3, 3, generator=draw) * 0.5 - 0.15)
        on_times[0].bias.copy_(torch.rand(4, generator=draw) * 0.1)
        on_times[3].weight.copy_(torch.rand(3, 16, generator=draw) * 0.4 - 0.15)
    out = on_times(times)
    loss = TemporalCrossEntropyLoss(steps, 0.2)(out, labels)
    leaves = [times, *on_times.parameters()]
    expected = [out, loss, *torch.autograd.grad(loss, leaves)]
    assert out.isinf().any()
    assert out.isfinite().any()

    spikes = decode.times_to_spikes(times, steps)
    mode = {"init_hidden": not sequence, "output": True, "sequence": sequence}
    hidden, last = (SingleSpike(0.875, silent_gradient=False, **mode) for _ in range(2))
    pool = FirstSpikePool2d(2, **mode)
    conv, linear = on_times[0], on_times[3]

    def currents(x):
        return nn.functional.conv2d(x, conv.weight, conv.bias)

    if sequence:
        spk, _ = hidden(currents(spikes.flatten(0, 1)).unflatten(0, (steps, 3)))
        spk, _ = last(pool(spk)[0].flatten(2) @ linear.weight.T)
        mem_last = last.mem
    else:
        rec = [last(pool(hidden(currents(x))[0])[0].flatten(1) @ linear.weight.T) for x in spikes]
        spk, mem_last = torch.stack([spk for spk, _ in rec]), rec[-1][1]
    found = ce_temporal_loss(0.2)(spk, labels, mem_last if silent_gradient else None)
    found = [decode.spikes_to_times(spk), found, *torch.autograd.grad(found, leaves)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(grad.any() for grad in found[2:])


# --- (i): pooling


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(2, None, 0), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (1, 1, 0)]
)
@pytest.mark.parametrize("mode", MODES)
def test_the_pool_on_trains_is_the_one_on_times(kernel_size, stride, padding, mode):
    window, draw = (kernel_size, stride, padding), torch.Generator().manual_seed(2)
    times = torch.randint(0, STEPS + 6, (2, 3, 6, 7), generator=draw).double()
    times = times.masked_fill(times >= STEPS, INF).requires_grad_()
    expected = EarliestSpikePool2d(*window)(times)
    weight = torch.rand(expected.shape, generator=draw, dtype=torch.float64)
    (of_times,) = torch.autograd.grad((expected.masked_fill(expected.isinf(), 0) * weight).sum(), times)

    spikes = decode.times_to_spikes(times, STEPS)
    call, options = MODES[mode]
    start = torch.zeros_like(expected)
    spk, mem = call(FirstSpikePool2d(*window, **options), spikes, start)
    found = decode.spikes_to_times(spk)
    assert torch.equal(found, expected)
    assert torch.equal(spk, decode.times_to_spikes(expected, STEPS))
    assert torch.equal(mem, (BINS.reshape(-1, 1, 1, 1, 1) >= expected).double())
    (grad,) = torch.autograd.grad((found.masked_fill(found.isinf(), 0) * weight).sum(), times)
    torch.testing.assert_close(grad, of_times)
    assert grad.any()


@pytest.mark.parametrize("restart", [utils.reset, reset, lambda net: net[0].reset_mem()])
def test_the_pool_is_reset_like_a_neuron(restart):
    net = nn.Sequential(FirstSpikePool2d(2, init_hidden=True))
    for _ in range(2):
        assert [net(torch.ones(1, 1, 2, 2)).item() for _ in range(2)] == [1, 0]
        assert net(torch.ones(2, 1, 2, 2)).flatten().tolist() == [1, 1]
        restart(net)


def test_bptt_takes_a_net_with_a_pool():
    torch.manual_seed(0)
    hidden, last = (SingleSpike(init_hidden=True, output=output) for output in (False, True))
    pool = FirstSpikePool2d(2, init_hidden=True)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), hidden, pool, nn.Flatten(), nn.Linear(8, 3), last)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0, 0.3)
    before = net[0].weight.clone()
    batch = torch.rand(STEPS, 4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    loss = backprop.BPTT(net, [batch] * 2, torch.optim.SGD(net.parameters(), 0.1), ce_temporal_loss())
    assert loss.isfinite()
    assert not torch.equal(net[0].weight, before)


# --- (j): losses, accuracy, encoding


@pytest.mark.parametrize("factor", [2, 10])
def test_losses_mean_the_same_in_windows_of_any_length(factor):
    short, long = trains([[1.0, 3.0, INF]]), trains([[1.0 * factor, 3.0 * factor, INF]], STEPS * factor)
    label = torch.tensor([1])
    pairs = [
        (ce_temporal_loss(0.2), ce_temporal_loss(0.2)),
        (
            mse_temporal_loss(on_target=1, off_target=None),
            mse_temporal_loss(on_target=factor, off_target=None),
        ),
        (relative_temporal_loss(2), relative_temporal_loss(2 * factor)),
    ]
    for of_short, of_long in pairs:
        loss = of_short(short, label)
        assert loss > 0
        torch.testing.assert_close(of_long(long, label), loss)


def test_cross_entropy_by_hand():
    """Logits are -t in windows over the temperature, and a silent class counts as one step after the last."""
    spk, labels = trains([[1.0, 3.0, INF]]), torch.tensor([1])
    logits = [-t / STEPS / 0.5 for t in (1, 3, STEPS)]
    terms = [math.exp(logit) for logit in logits]
    expected = -math.log(terms[1] / sum(terms))
    assert ce_temporal_loss(temperature=0.5)(spk, labels).item() == pytest.approx(expected, rel=1e-6)
    ignored = ce_temporal_loss(temperature=0.5, silent="ignore")
    expected = -math.log(terms[1] / sum(terms[:2]))
    assert ignored(spk, labels).item() == pytest.approx(expected, rel=1e-6)
    # The label is never left out.
    assert ignored(spk, torch.tensor([2])).item() == pytest.approx(-math.log(terms[2] / sum(terms)), rel=1e-6)
    several = trains([[1.0, 3.0, INF], [2.0, 0.0, 1.0]])
    labels = torch.tensor([1, 0])
    weight = torch.tensor([1.0, 3.0, 1.0])
    each = ce_temporal_loss(reduction="none")(several, labels)
    assert ce_temporal_loss(reduction="sum")(several, labels).item() == pytest.approx(each.sum().item())
    weighed = ce_temporal_loss(weight=weight)(several, labels)
    torch.testing.assert_close(weighed, (3 * each[0] + each[1]) / 4)


def test_ties_share_the_error():
    spk = trains([[2.0, 2.0]])
    loss = ce_temporal_loss()(spk, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert spk.grad[2, 0, 0] == -spk.grad[2, 0, 1] != 0
    assert spk.grad.count_nonzero() == 2


def test_mse_targets_by_default_are_the_first_step_and_the_last():
    """What snnTorch's signature says, and its release does not do."""
    perfect = [[0.0, 5.0, 5.0], [5.0, 5.0, 0.0]]
    labels = torch.tensor([0, 2])
    assert mse_temporal_loss()(trains(perfect), labels) == 0
    assert SF.mse_temporal_loss(on_target=0, off_target=STEPS - 1)(trains(perfect), labels) == 0
    wrong = mse_temporal_loss(reduction="none")(trains([[1.0, 5.0, INF], [2.0, 5.0, 0.0]]), labels)
    torch.testing.assert_close(wrong * STEPS**2, torch.tensor([[1.0, 0, 1], [9, 0, 0]]))
    assert mse_temporal_loss(off_target=None)(trains([[0.0, INF]]), torch.tensor([0])) == 0
    assert mse_temporal_loss(on_target=-2, off_target=-1)(trains([[4.0, 5.0]]), torch.tensor([0])) == 0
    ours, theirs = (mse(on_target=1, off_target=4) for mse in (mse_temporal_loss, SF.mse_temporal_loss))
    torch.testing.assert_close(
        ours(trains([[2.0, 3.0]]), LABELS[:1]), theirs(trains([[2.0, 3.0]]), LABELS[:1])
    )
    with pytest.raises(ValueError, match=r"off_target must lie in 0 \.\.\. t_max = 6, got 7"):
        mse_temporal_loss(off_target=7)(trains(perfect), labels)


def test_mse_options():
    spk, labels = trains([[1.0, 3.0, INF]]), torch.tensor([0])
    tolerant = mse_temporal_loss(on_target=3, off_target=5, tolerance=2, reduction="sum")
    assert tolerant(spk, labels) == 0
    assert mse_temporal_loss(on_target=3, off_target=5, tolerance=1, reduction="sum")(
        spk, labels
    ).item() == pytest.approx((4 + 4) / STEPS**2)
    ignored = mse_temporal_loss(off_target=2, silent="ignore", reduction="none")(spk, labels) * STEPS**2
    torch.testing.assert_close(ignored, torch.tensor([[1.0, 1, 0]]))
    times = torch.tensor([[1, 3, 5]])
    assert mse_temporal_loss(target_is_time=True)(spk, times).item() == pytest.approx(1 / 3 / STEPS**2)
    assert mse_temporal_loss(target_is_time=True)(spk, torch.tensor([[1, 3, INF]])) == 0
    assert times.tolist() == [[1, 3, 5]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_long_windows_in_half_precision(dtype):
    """bfloat16 has no 301, and float16 no 2051: times are float32 or better, also those that are targets."""
    spk = trains([[301.0, 2051.0]], 2100, dtype)
    criterion = mse_temporal_loss(target_is_time=True, reduction="none")
    assert criterion(spk, torch.tensor([[301.0, 2051.0]])).tolist() == [[0, 0]]
    expected = torch.tensor([[1.0, 4.0]], dtype=torch.float64) / 2100**2
    found = criterion(spk, torch.tensor([[300.0, 2053.0]]))
    torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.parametrize("criterion", [ce_temporal_loss(), mse_temporal_loss()], ids=["ce", "mse"])
def test_losses_of_outputs_with_trailing_shapes(criterion):
    """[T, B, C, H, W]: every place is a sample of its own."""
    draw = torch.Generator().manual_seed(0)
    times = torch.randint(0, STEPS + 2, (2, 3, 2, 4), generator=draw).float()
    spk = decode.times_to_spikes(times, STEPS).requires_grad_()
    labels = torch.randint(0, 3, (2, 2, 4), generator=draw)
    flat = spk.detach().permute(0, 1, 3, 4, 2).reshape(STEPS, 16, 3).requires_grad_()
    loss, expected = criterion(spk, labels), criterion(flat, labels.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(spk.grad, flat.grad.reshape(STEPS, 2, 2, 4, 3).permute(0, 1, 4, 2, 3))
    assert spk.grad.count_nonzero() <= times.numel()


def test_our_losses_have_names_that_backprop_knows():
    known = {"ce_temporal_loss", "mse_temporal_loss"}
    for criterion in (ce_temporal_loss(), mse_temporal_loss(), relative_temporal_loss(1)):
        assert criterion.__name__ in known
    assert {loss.__name__ for loss in (SF.ce_temporal_loss(), SF.mse_temporal_loss())} == known


@pytest.mark.parametrize(
    "make",
    [
        lambda: ce_temporal_loss(reduction="men"),
        lambda: ce_temporal_loss(temperature=0),
        lambda: ce_temporal_loss(silent="t-max"),
        lambda: mse_temporal_loss(reduction="men")(SPIKES, LABELS),
        lambda: mse_temporal_loss(silent="t-max")(SPIKES, LABELS),
        lambda: relative_temporal_loss(gamma=7)(SPIKES, LABELS),
    ],
)
def test_arguments_of_losses_are_checked(make):
    with pytest.raises(ValueError, match=r"(reduction|temperature|silent|gamma) must be .*, got"):
        make()


def test_accuracy_by_rule():
    times = [[1.0, 3.0, INF], [2.0, 2.0, 4.0], [INF, INF, INF], [INF, INF, INF]]
    labels = torch.tensor([0, 0, 0, 1])
    mem = torch.tensor([[1.1, 1.2, 0.9], [1.5, 1.2, 1.9], [0.2, 0.9, 0.1], [0.2, 0.9, 0.1]])
    spk = trains(times)
    found = {tie: accuracy_temporal(spk, labels, tie=tie) for tie in ("unique", "first_index", "lenient")}
    assert found == {"unique": 0.25, "first_index": 0.5, "lenient": 0.5}
    assert accuracy_temporal(spk, labels) == 0.25
    assert accuracy_temporal(spk, labels, mem) == 0.75
    assert accuracy_temporal(spk, labels, mem.expand(STEPS, -1, -1)) == 0.75
    assert accuracy_temporal(spk, labels, mem, tie="unique") == 0.25


def test_latency_of_a_value_is_its_own():
    data = torch.tensor([[1.0, 0.51, 0.0], [0.25, 0.999, 0.01]])
    spk = latency(data, 100)
    assert spk.shape == (100, 2, 3)
    assert decode.spikes_to_times(spk).tolist() == [[0, 49, INF], [75, 0, 99]]
    assert torch.equal(latency(data[1:], 100), spk[:, 1:])
    assert torch.equal(latency((data * 255).byte(), 100, x_max=255).sum(0), (data > 0).float())


# --- what snnTorch 1.0.0 does, so that a release that mends it is noticed


@pytest.mark.host_defect
def test_host_utils_reset_ignores_nested_modules():
    """https://github.com/jeshraghian/snntorch/pull/414, merged after 1.0.0; also with our neurons."""
    for neuron in (snn.Leaky, SingleSpike):
        net = nn.Sequential(nn.Sequential(neuron(beta=0.9, init_hidden=True)))
        net(torch.full((1, 2), 0.5))
        utils.reset(net)
        assert net[0][0].mem.all()


@pytest.mark.host_defect
def test_host_utils_reset_reaches_unrelated_nets():
    """https://github.com/jeshraghian/snntorch/issues/438"""
    net, other = (nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True)) for _ in range(2))
    other(torch.full((1, 2), 0.5))
    utils.reset(net)
    assert not other[0].mem.any()


@pytest.mark.host_defect
def test_host_deepcopies_are_not_registered():
    """So that `utils.reset` does nothing to them; copies of ours are. No thread upstream that we know of."""
    net = copy.deepcopy(nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True)))
    net(torch.full((1, 2), 0.5))
    utils.reset(net)
    assert net[0].mem.all()
    assert all(neuron is not net[0] for neuron in snn.SpikingNeuron.instances)


@pytest.mark.host_defect
def test_host_mse_temporal_loss_wants_every_class_to_fire_at_once():
    """https://github.com/jeshraghian/snntorch/pull/361"""
    _, targets = SF.mse_temporal_loss().spk_time_fn(SPIKES, LABELS)
    assert not targets.any()
    assert SF.mse_temporal_loss()(trains([[0.0, 0.0, 0.0]]), LABELS[:1]) == 0


@pytest.mark.host_defect
def test_host_accuracy_counts_silence_as_class_0():
    """No thread upstream that we know of."""
    silence = torch.zeros(STEPS, 1, 3)
    assert SF.accuracy_temporal(silence, torch.tensor([0])) == 1
    assert accuracy_temporal(silence, torch.tensor([0])) == 0
    # A spike in the last step loses to a silent class of a lower number.
    assert SF.accuracy_temporal(trains([[INF, 5.0]]).detach(), torch.tensor([1])) == 0
    assert accuracy_temporal(trains([[INF, 5.0]]), torch.tensor([1])) == 1


@pytest.mark.host_defect
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_host_spikes_are_float32(dtype):
    """No thread upstream that we know of."""
    spk, _ = snn.Leaky(beta=0.9)(torch.ones(1, 2, dtype=dtype))
    assert spk.dtype == torch.float32


@pytest.mark.host_defect
def test_host_neurons_cannot_be_pickled():
    """https://github.com/jeshraghian/snntorch/issues/420"""
    with pytest.raises((AttributeError, pickle.PicklingError), match="atan"):
        pickle.dumps(snn.Leaky(beta=0.9))


@pytest.mark.host_defect
def test_host_tbptt_fails_on_data_with_a_time_axis():
    """https://github.com/jeshraghian/snntorch/issues/191, for any whole K; BPTT takes another way."""
    net = nn.Sequential(nn.Linear(5, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(UnboundLocalError, match="K_flag"):
        backprop.TBPTT(net, [(inputs(), torch.tensor([0, 1, 2, 0]))], optimizer, SF.ce_count_loss(), K=2)


def test_mse_targets_outside_the_window_and_floating_labels_are_named():
    spikes, loss = torch.zeros(100, 1, 2), mse_temporal_loss(target_is_time=True)
    for wrong in (100.0, -101.0, math.nan):
        with pytest.raises(ValueError, match=r"targets must lie in -100 \.\.\. 99 or be inf"):
            loss(spikes, torch.tensor([[wrong, 3.0]]))
    assert loss(spikes, torch.tensor([[math.inf, math.inf]])) == 0
    with pytest.raises(TypeError, match="targets must be labels, or times with target_is_time=True"):
        mse_temporal_loss()(spikes, torch.tensor([[0.0, 1.0]]))


def test_relative_loss_and_accuracy_of_any_trailing_shape():
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(12, 4, 3, 2, 5, generator=generator) < 0.1).float()
    labels = torch.randint(0, 3, (4, 2, 5), generator=generator)
    flat = spikes.movedim(2, -1).flatten(1, 3), labels.flatten()
    loss = relative_temporal_loss(gamma=3)
    torch.testing.assert_close(loss(spikes, labels), loss(*flat))
    assert accuracy_temporal(spikes, labels, tie="lenient") == accuracy_temporal(*flat, tie="lenient")


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="threshold must be at least 0, got nan"):
        SingleSpike(threshold=math.nan)
