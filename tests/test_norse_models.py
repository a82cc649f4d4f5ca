"""Norse's documented usage with single-spike neurons: sequentials, lifts, training, compiled models."""

import norse.torch as host
import pytest
import torch
from marks import needs_compiler
from norse_runs import DT, LEAKY, in_a_loop, in_steps, random, with_and_without_leak
from torch import nn

from ssnn_plugin.norse import (
    FirstSpikePool2dCell,
    LatencyEncoder,
    SingleSpikeIF,
    SingleSpikeIFCell,
    SingleSpikeIFState,
    SpikesToTimesDecoder,
    single_spike_if_step,
)
from ssnn_plugin.norse import SingleSpikeIFParameters as Parameters


@with_and_without_leak
def test_step_cell_and_layer_over_time_however_they_are_lifted(p):
    currents = random(20, 4, 6)
    expected, _, last = in_steps(currents, p=p)
    assert expected.any()

    def step(current, state):
        return single_spike_if_step(current, state, p, DT)

    found = [
        in_a_loop(step, currents)[::2],
        SingleSpikeIF(p)(currents),
        host.Lift(SingleSpikeIFCell(p))(currents),
        host.lift(single_spike_if_step, p=p)(currents),
        host.lift(single_spike_if_step)(currents, p=p, state=SingleSpikeIFState(torch.zeros(4, 6).double())),
        host.Lift(host.SequentialState(SingleSpikeIFCell(p)))(currents),
        host.SequentialState(SingleSpikeIF(p))(currents),
    ]
    for spikes, state in found:
        assert torch.equal(spikes, expected)
        state = state[0] if isinstance(state, list) else state
        torch.testing.assert_close(state.v, last.v, rtol=1e-12, atol=1e-12)


def _steps_and_layers():
    """The same network for one step per call and for a window per call."""
    torch.manual_seed(0)
    hidden, out = nn.Linear(6, 9), nn.Linear(9, 5, bias=False)
    nn.init.uniform_(hidden.weight, -0.1, 0.4)
    nn.init.uniform_(out.weight, -0.2, 0.8)
    return (
        host.SequentialState(hidden, SingleSpikeIFCell(), out, SingleSpikeIFCell(LEAKY)),
        host.SequentialState(host.Lift(hidden), SingleSpikeIF(), host.Lift(out), SingleSpikeIF(LEAKY)),
    )


def test_sequential_state_in_steps_is_the_one_over_time_is_a_lifted_one():
    steps, layers = _steps_and_layers()
    x = torch.rand(12, 4, 6, generator=torch.Generator().manual_seed(1))
    state, out = None, []
    for t in range(12):
        z, state = steps(x[t], state)
        out.append(z)
    assert [s is None for s in state] == [True, False, True, False]
    spikes, states = layers(x)
    assert 0 < spikes.sum() < 20
    assert torch.equal(torch.stack(out), spikes)
    lifted, of_lift = host.Lift(steps)(x)
    assert torch.equal(lifted, spikes)
    for k in (1, 3):
        assert torch.equal(of_lift[k].v, state[k].v)
        torch.testing.assert_close(states[k].v, state[k].v)
    start = [None] * 4
    assert torch.equal(layers(x, start)[0], spikes)
    first, middle = layers(x[:5])
    assert torch.equal(torch.cat([first, layers(x[5:], middle)[0]]), spikes)
    first, middle = host.Lift(steps)(x[:5])
    assert torch.equal(torch.cat([first, host.Lift(steps)((x[5:], middle))[0]]), spikes)


def test_return_hidden_and_nesting():
    _, layers = _steps_and_layers()
    x = torch.rand(12, 4, 6, generator=torch.Generator().manual_seed(1))
    spikes, states = layers(x)
    hidden, _ = host.SequentialState(*layers, return_hidden=True)(x)
    assert [h.shape[-1] for h in hidden] == [9, 9, 5, 5]
    assert torch.equal(hidden[3], spikes)
    assert torch.equal(hidden[1], SingleSpikeIF()(hidden[0])[0])
    front, back = (host.SequentialState(*list(layers)[k : k + 2]) for k in (0, 2))
    nested = host.SequentialState(front, host.SequentialState(back))
    found, of_nested = nested(x)
    assert torch.equal(found, spikes)
    assert torch.equal(of_nested[0][1].v, states[1].v)
    assert torch.equal(of_nested[1][0][1].v, states[3].v)
    first, middle = nested(x[:5])
    assert torch.equal(torch.cat([first, nested(x[5:], middle)[0]]), spikes)


def test_forward_state_hooks_see_every_neuron():
    model, seen = _steps_and_layers()[1], []
    model.register_forward_state_hooks(lambda module, inputs, output: seen.append((inputs, output)))
    with pytest.raises(ValueError, match="hooks"):
        model.register_forward_state_hooks(lambda *_: None)
    x = torch.rand(12, 4, 6, generator=torch.Generator().manual_seed(1))
    spikes, states = model(x)
    assert len(seen) == 2
    assert [inputs[1] for inputs, _ in seen] == [None, None]
    assert torch.equal(seen[1][1][0], spikes)
    assert seen[0][1][1].v is states[1].v
    model(x, list(states))
    assert seen[2][0][1].v is states[1].v
    model.remove_forward_state_hooks()
    model(x)
    assert len(seen) == 4


@with_and_without_leak
def test_record_states_returns_the_state_of_every_step(p):
    currents = random(9, 4, 6)
    _, potentials, last = in_steps(currents, p=p)
    for module in (
        SingleSpikeIF(p, record_states=True),
        host.SequentialState(SingleSpikeIF(p, record_states=True)),
    ):
        spikes, state = module(currents)
        state = state[0] if isinstance(state, list) else state
        assert isinstance(state, SingleSpikeIFState)
        torch.testing.assert_close(state.v, potentials, rtol=1e-12, atol=1e-12)
        assert torch.equal(state.v[-1], SingleSpikeIF(p)(currents)[1].v)
        assert torch.equal(spikes, SingleSpikeIF(p)(currents)[0])
    torch.testing.assert_close(state.v[-1], last.v, rtol=1e-12, atol=1e-12)


@with_and_without_leak
def test_a_recorded_state_goes_on_from_its_last_step(p):
    currents, module = random(9, 4, 6), SingleSpikeIF(p, record_states=True)
    whole, _ = module(currents)
    first, states = module(currents[:4])
    assert torch.equal(torch.cat([first, module(currents[4:], states)[0]]), whole)


def test_the_convolutional_model_of_norses_readme():
    torch.manual_seed(0)
    parts = [
        nn.Conv2d(1, 3, 3),
        SingleSpikeIFCell(Parameters(v_th=0.3)),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(3, 4, 3),
        SingleSpikeIFCell(Parameters(v_th=0.3)),
        FirstSpikePool2dCell(2),
        nn.Flatten(),
        nn.Linear(4 * 2 * 2, 5),
        host.LICell(),
    ]
    model, x = host.SequentialState(*parts), torch.rand(8, 2, 1, 14, 14)
    state, own = None, [None] * len(parts)
    for step in x:
        output, state = model(step, state)
        hidden = step
        for k in range(len(parts)):
            if k in (1, 4, 5, 8):
                hidden, own[k] = parts[k](hidden, own[k])
            else:
                hidden = parts[k](hidden)
        assert torch.equal(output, hidden)
    assert [k for k, s in enumerate(state) if s is not None] == [1, 4, 5, 8]
    assert state[1].v.shape == (2, 3, 12, 12)
    output.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_lifted_convolutions_in_a_plain_sequential():
    torch.manual_seed(0)
    lift = host.Lift(nn.Conv2d(1, 3, 3, bias=False))
    x = torch.rand(7, 2, 1, 6, 6)
    output, _ = nn.Sequential(lift, SingleSpikeIF())(x)
    assert output.shape == (7, 2, 3, 4, 4)
    assert torch.equal(output, in_steps(lift(x))[0])
    output, _ = nn.Sequential(host.LConv2d(1, 3, 3), SingleSpikeIF())(x)
    assert output.shape == (7, 2, 3, 4, 4)


def test_recurrent_sequential_feeds_the_spikes_back():
    torch.manual_seed(0)
    linear, cell = nn.Linear(5, 5), SingleSpikeIFCell()
    model, x = host.RecurrentSequential(linear, cell), torch.rand(9, 3, 5) * 2
    state, own, z, back = None, None, [], 0.0
    for step in x:
        out, state = model(step, state)
        back, own = cell(linear(step + back), own)
        assert torch.equal(out, back)
        z.append(out)
    assert set(torch.stack(z).sum(0).unique().tolist()) == {0, 1}
    assert torch.stack(z)[1:].any()


def test_regularization_cells_count_spikes_and_potentials():
    cell = SingleSpikeIFCell()
    spikes, voltage = host.RegularizationCell(), host.RegularizationCell(accumulator=host.voltage_accumulator)
    currents, state = random(9, 4, 6), None
    for current in currents:
        z, state = cell(current, state)
        _, count = spikes(z, state)
        _, total = voltage(z, state)
    expected, potentials, _ = in_steps(currents)
    assert count == expected.sum()
    torch.testing.assert_close(total, potentials.sum(0))


@pytest.mark.parametrize(
    "encoder",
    [
        LatencyEncoder(16),
        host.ConstantCurrentLIFEncoder(16),
        host.SpikeLatencyLIFEncoder(16),
        host.PoissonEncoder(16, f_max=500),
        nn.Sequential(host.ConstantCurrentLIFEncoder(16), host.SpikeLatencyEncoder()),
    ],
)
def test_encoders_in_front(encoder):
    torch.manual_seed(0)
    scale = 1 if isinstance(encoder, LatencyEncoder | host.PoissonEncoder) else 3
    linear = nn.Linear(8, 20, bias=False)
    model = nn.Sequential(encoder, host.Lift(linear), SingleSpikeIF(Parameters(v_th=0.2)))
    spikes, state = model(torch.rand(4, 8) * scale)
    assert spikes.shape == (16, 4, 20)
    assert set(spikes.sum(0).unique().tolist()) == {0, 1}
    assert state.v.shape == (4, 20)
    spikes.sum().backward()
    assert linear.weight.grad.any()


def test_a_network_learns_when_to_fire():
    torch.manual_seed(2)
    model = host.SequentialState(
        host.Lift(nn.Linear(2, 10, bias=False)),
        SingleSpikeIF(),
        host.Lift(nn.Linear(10, 2, bias=False)),
        SingleSpikeIF(Parameters(tau_mem_inv=20.0)),
        SpikesToTimesDecoder(t_silent=16 * DT),
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.0, 1.2)
    x, labels = LatencyEncoder(16)(torch.tensor([[1.0, 0.5], [0.5, 1.0]])), torch.tensor([0, 1])
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.05), []
    for _ in range(40):
        optimizer.zero_grad()
        times, _ = model(x)
        loss = nn.functional.cross_entropy(-times[0] / DT, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 4
    assert losses[-1] < 0.05
    assert torch.equal(times[0].argmin(1), labels)


def _same_compiled(function, *inputs, backend):
    """Values and gradients of all outputs."""

    def outcome(function):
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        outputs = function(*leaves)
        loss = sum((out * (1 + k)).sum() for k, out in enumerate(outputs))
        return [*outputs, *torch.autograd.grad(loss, leaves, allow_unused=True)]

    torch._dynamo.reset()
    expected = outcome(function)
    found = outcome(torch.compile(function, fullgraph=True, backend=backend))
    assert expected[0].any()
    assert expected[-1].any()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def _step_and_layer(p):
    def network(currents, start):
        first, state = SingleSpikeIFCell(p)(currents[0], SingleSpikeIFState(start))
        spikes, last = SingleSpikeIF(p)(currents, state)
        return first, spikes, last.v

    return network


@needs_compiler
def test_step_and_layer_compile():
    inputs = random(3, 4, 5), random(4, 5, high=1.4, seed=1)
    _same_compiled(_step_and_layer(Parameters()), *inputs, backend="inductor")


@pytest.mark.parametrize("method", ["latency", pytest.param("super", marks=pytest.mark.slow)])
def test_step_and_layer_trace_into_one_graph(method):
    def network(currents, start, v_th, tau_mem_inv):
        return _step_and_layer(Parameters(v_th, tau_mem_inv, method))(currents, start)

    parameters = torch.tensor([0.1, 0.2, 0.3]).double(), torch.tensor(100.0).double()
    _same_compiled(network, random(5, 4, 3), random(4, 3, seed=1), *parameters, backend="aot_eager")


def test_a_network_and_its_decoder_trace_into_one_graph():
    steps, layers = _steps_and_layers()
    decoder = SpikesToTimesDecoder(t_silent=3, convert_indices_to_times=False)

    def network(x):
        _, states = steps(x[0])
        spikes, states = layers(x, states)
        return decoder(spikes, states[3].v), states[1].v

    _same_compiled(network, random(2, 4, 6, high=2.0).float(), backend="aot_eager")


def test_the_encoder_traces_into_one_graph():
    values, encoder = torch.rand(3, 4), LatencyEncoder(5)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values), encoder(values))
