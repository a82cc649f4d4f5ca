"""`SingleSpike` under torch's own tools: compile, function transforms, copies, state dicts, precision."""

import copy
import io
import math
import pickle

import pytest
import snntorch as snn
import torch
from marks import needs_compiler
from snntorch import surrogate
from snntorch.functional import quant
from snntorch_runs import STEPS, TIMES, Net, inputs, pulses, record, trains
from torch import nn

from ssnn_plugin import decode
from ssnn_plugin.snntorch import FirstSpikePool2d, SingleSpike, ce_temporal_loss, mse_temporal_loss, reset

INF = math.inf


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


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_a_training_step_compiles_with_its_loss(backend):
    net, x, labels = Net().sequential(sequence=True), inputs(), torch.tensor([0, 1, 2, 0])

    def loss(x):
        spk, mem = net(x)
        return ce_temporal_loss()(spk, labels, mem) + mse_temporal_loss()(spk, labels)

    def outcome(function):
        reset(net)
        value = function(x)
        return value, *torch.autograd.grad(value, list(net.parameters()), allow_unused=True)

    torch._dynamo.reset()
    compiled = outcome(torch.compile(loss, fullgraph=True, backend=backend))
    for found, expected in zip(compiled, outcome(loss), strict=True):
        torch.testing.assert_close(found, expected)


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
