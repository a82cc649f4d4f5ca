"""Cell and layer: what the neuron does, its parameters, states, dtypes and copies."""

import copy
import math
import pickle

import norse.torch as host
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from norse.torch.functional.threshold import threshold
from norse_runs import DT, LEAKY, in_steps, random, with_and_without_leak
from torch import nn

from ssnn_plugin import IF, decode
from ssnn_plugin.nn import SpikeLinear
from ssnn_plugin.norse import (
    FirstSpikePool2d,
    SingleSpikeIF,
    SingleSpikeIFCell,
    SingleSpikeIFState,
    SpikesToTimesDecoder,
)
from ssnn_plugin.norse import SingleSpikeIFParameters as Parameters

INF, NAN = math.inf, math.nan
METHODS = ["heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc"]


def _at_once(currents, start=None, p=Parameters(), dt=DT):  # noqa: B008
    """(spikes, potentials, state) of the layer."""
    state = None if start is None else SingleSpikeIFState(start)
    spikes, states = SingleSpikeIF(p, dt, record_states=True)(currents, state)
    return spikes, states.v, SingleSpikeIFState(states.v[-1])


in_steps_and_at_once = pytest.mark.parametrize("run", [in_steps, _at_once], ids=["cell", "layer"])


# --- What the neuron does, against loops over steps and neurons -------------------------------------------


def _simulate(currents, start, v_th, beta):
    spikes, potentials = np.zeros_like(currents), np.empty_like(currents)
    for j in range(currents.shape[1]):
        v = start[j]
        for t in range(len(currents)):
            if not v > v_th:
                v = beta * v + currents[t, j]
                spikes[t, j] = v > v_th
            potentials[t, j] = v
    return spikes, potentials


def _latency_gradients(spikes, potentials, start, v_th, of_spikes, of_potentials):
    """Of sum(of_spikes S + of_potentials V): a current counts +1 in V from its step on, dS/dV = 1 at a spike.

    Returns those of the currents, the start, beta and v_th.
    """
    of_currents, of_start, of_beta, of_v_th = np.zeros_like(spikes), np.zeros_like(start), 0.0, 0.0
    for j in range(spikes.shape[1]):
        worth = of_potentials[:, j] + of_spikes[:, j] * spikes[:, j]
        of_start[j] = worth.sum()
        of_v_th -= (of_spikes[:, j] * spikes[:, j]).sum()
        v = start[j]
        for t in range(len(spikes)):
            if not v > v_th:
                of_currents[t, j] = worth[t:].sum()
                of_beta += worth[t:].sum() * v
            v = potentials[t, j]
    return of_currents, of_start, of_beta, of_v_th


@st.composite
def windows(draw):
    """Currents [T, n], start, v_th, tau_mem_inv and errors, such that every sum is exact."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    whole = st.integers(-2, 4).map(float)
    currents, *errors = (draw(arrays(np.float64, shape, elements=whole)) for _ in range(3))
    start = draw(st.just(np.zeros(shape[1])) | arrays(np.float64, shape[1], elements=whole))
    return (
        currents,
        start,
        draw(st.sampled_from([0.0, 1.0, 2.5])),
        draw(st.sampled_from([0.0, 500.0])),
        errors,
    )


@settings(deadline=None, max_examples=60)
@given(window=windows())
def test_cell_and_layer_are_the_loop_over_steps_with_the_gradients_of_the_rule(window):
    currents, start, v_th, tau_mem_inv, errors = window
    beta = 1 - DT * tau_mem_inv
    spikes, potentials = _simulate(currents, start, v_th, beta)
    expected = list(_latency_gradients(spikes, potentials, start, v_th, *errors))
    expected[2] *= -DT
    for run in (in_steps, _at_once):
        inputs = [torch.tensor(a, requires_grad=True) for a in (currents, start)]
        inputs += [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (tau_mem_inv, v_th)]
        of_numbers = run(*inputs[:2], Parameters(v_th, tau_mem_inv))
        of_tensors = run(*inputs[:2], Parameters(inputs[3], inputs[2]))
        for found in (of_numbers, of_tensors):
            for tensor, naive in zip(found[:2], (spikes, potentials), strict=True):
                np.testing.assert_array_equal(tensor.detach().numpy(), naive, err_msg=run.__name__)
        loss = sum((torch.tensor(e) * out).sum() for e, out in zip(errors, of_tensors, strict=False))
        for found, naive in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
            np.testing.assert_allclose(found.numpy(), naive, rtol=1e-12, atol=1e-12, err_msg=run.__name__)


def test_the_gradient_of_a_time_goes_to_every_current_up_to_the_firing_step():
    currents = random(12, 4, 6).requires_grad_()
    error = random(1, 4, 6, seed=1)
    spikes, _ = SingleSpikeIF()(currents)
    times = SpikesToTimesDecoder(t_silent=12, convert_indices_to_times=False)(spikes)
    times.backward(error)
    assert 0 < (times == 12).sum() < 24
    steps = torch.arange(12.0).reshape(-1, 1, 1)
    torch.testing.assert_close(currents.grad, torch.where((steps <= times) & (times < 12), -error, 0.0))


def test_with_the_potential_a_silent_neuron_learns_from_every_current():
    currents = torch.tensor([[0.9, 0.1], [0.3, 0.2], [0.2, 0.3]], requires_grad=True)
    spikes, state = SingleSpikeIF()(currents)
    decoder = SpikesToTimesDecoder(t_silent=3, convert_indices_to_times=False)
    decoder(spikes, state.v).backward(torch.tensor([[2.0, 5.0]]))
    assert currents.grad.tolist() == [[-2, -5], [-2, -5], [0, -5]]


@in_steps_and_at_once
@with_and_without_leak
def test_at_most_one_spike_strictly_above_the_threshold_and_the_crossing_potential_stays(run, p):
    currents = random(20, 50, 5)
    spikes, potentials, state = run(currents, p=p)
    assert set(spikes.unique().tolist()) == {0, 1}
    count = spikes.sum(0)
    assert set(count.unique().tolist()) == {0, 1}
    fired = count > 0
    at_crossing = (potentials * spikes).sum(0)
    assert (at_crossing[fired] > 1).all()
    assert torch.equal(state.v[fired], at_crossing[fired])
    assert (state.v[~fired] <= 1).all()
    assert not run(torch.full_like(currents, 9.0), state.v, p)[0][:, fired].any()
    exactly, above = torch.tensor([[1.0]]), torch.nextafter(torch.tensor([[1.0]]), torch.tensor(2.0))
    assert not run(exactly, p=p)[0].any()
    assert run(above, p=p)[0].all()


@with_and_without_leak
def test_first_spikes_are_those_of_norses_own_neurons(p):
    currents = random(20, 8, 5)
    if p.tau_mem_inv:
        box = host.LIFBoxParameters(tau_mem_inv=torch.tensor(p.tau_mem_inv, dtype=torch.float64))
        free, _ = host.Lift(host.LIFBoxCell(box, dt=DT))(currents / (DT * p.tau_mem_inv))
    else:
        free, _ = host.IAF()(currents, host.IAFFeedForwardState(torch.zeros(8, 5, dtype=torch.float64)))
    assert (free.sum(0) > 1).any()
    spikes, _ = SingleSpikeIF(p)(currents)
    assert torch.equal(spikes, host.SpikeLatencyEncoder()(free.detach()))
    assert torch.equal(spikes, host.SpikeLatencyEncoder()(spikes))


@pytest.mark.parametrize("tau_mem_inv", [0.0, 100.0])
@pytest.mark.parametrize("silent_gradient", [False, True])
def test_a_network_has_the_times_and_gradients_of_the_layers_on_spike_times(tau_mem_inv, silent_gradient):
    t_max, p, neuron = 16, Parameters(1.0, tau_mem_inv), IF(1.0, beta=1 - DT * tau_mem_inv)
    options = {"t_max": t_max, "silent_gradient": silent_gradient, "dtype": torch.float64}
    hidden, out = SpikeLinear(8, 7, neuron, **options), SpikeLinear(7, 5, neuron, **options)
    with torch.no_grad():
        hidden.weight.copy_(random(7, 8, high=0.9))
        out.weight.copy_(random(5, 7, high=0.9))
    times = torch.randint(0, 20, (9, 8), generator=torch.Generator().manual_seed(0)).double()
    times = times.masked_fill(times >= t_max, INF).requires_grad_()

    x = decode.times_to_spikes(times, t_max)
    for weight in (hidden.weight, out.weight):
        x, state = SingleSpikeIF(p)(nn.functional.linear(x, weight))
        if silent_gradient and weight is hidden.weight:
            x = decode.times_to_spikes(decode.spikes_to_times(x, state.v), t_max)
    decoder = SpikesToTimesDecoder(t_silent=t_max, convert_indices_to_times=False)
    found = decoder(x, state.v if silent_gradient else None)[0]
    expected = out(hidden(times))
    assert 0.1 < expected.isinf().double().mean() < 0.9
    assert torch.equal(found, expected.clamp(max=t_max))
    error, inputs = random(9, 5, seed=3), (times, hidden.weight, out.weight)
    for a, b in zip(
        torch.autograd.grad(found, inputs, error), torch.autograd.grad(expected, inputs, error), strict=True
    ):
        assert b.any()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(30, 4, 6), (30, 6), (30,), (30, 2, 3, 4, 4), (1, 3), (5, 0, 3)])
def test_cell_and_layer_are_equal_bit_by_bit_without_a_leak(shape):
    currents = random(*shape)
    for a, b in zip(in_steps(currents), _at_once(currents), strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cell_and_layer_are_equal_to_rounding_with_a_leak(dtype):
    currents, start, errors = (
        random(50, 4, 6, high=0.4),
        random(4, 6, seed=1),
        random(2, 50, 4, 6, seed=2),
    )
    outcome = []
    for run in (in_steps, _at_once):
        tau_mem_inv = torch.full((6,), 37.0, dtype=dtype, requires_grad=True)
        inputs = [x.to(dtype).requires_grad_() for x in (currents, start)]
        spikes, potentials, _ = run(*inputs, Parameters(tau_mem_inv=tau_mem_inv))
        assert 0 < spikes.sum() < 24
        loss = (errors.to(dtype) * torch.stack([spikes, potentials])).sum()
        outcome.append([spikes, potentials, *torch.autograd.grad(loss, [*inputs, tau_mem_inv])])
    assert torch.equal(outcome[0][0], outcome[1][0])
    for a, b in zip(*outcome, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-5)


@in_steps_and_at_once
@with_and_without_leak
def test_a_window_can_be_taken_in_parts(run, p):
    currents = random(20, 4, 6)
    spikes, potentials, _ = run(currents, p=p)
    first, _, state = run(currents[:7], p=p)
    second, later, _ = run(currents[7:], state.v, p)
    assert torch.equal(torch.cat([first, second]), spikes)
    torch.testing.assert_close(later, potentials[7:], rtol=1e-12, atol=1e-12)


@in_steps_and_at_once
def test_a_state_may_be_a_number_as_in_norse(run):
    tau_mem_inv = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    currents = random(5, 2, 3)
    p, start = Parameters(tau_mem_inv=tau_mem_inv), torch.tensor(0.25, dtype=torch.float64)
    outcome = []
    for state in (start, torch.full((2, 3), 0.25, dtype=torch.float64)):
        spikes, potentials, _ = run(currents, state, p)
        outcome.append([spikes, potentials, *torch.autograd.grad(potentials.sum(), tau_mem_inv)])
    for a, b in zip(*outcome, strict=True):
        assert torch.equal(a, b)


# --- Parameters -------------------------------------------------------------------------------------------


@in_steps_and_at_once
def test_parameters_per_neuron(run):
    v_th, tau_mem_inv = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.0, 50.0, 200.0])
    currents = random(20, 4, 3)
    together = run(currents, p=Parameters(v_th, tau_mem_inv))
    assert together[0].any(0).sum(0).unique().numel() > 1
    for j in range(3):
        alone = run(currents[..., j], p=Parameters(v_th[j].item(), tau_mem_inv[j].item()))
        assert torch.equal(together[0][..., j], alone[0])
        torch.testing.assert_close(together[1][..., j], alone[1], rtol=1e-6, atol=1e-6)


class _Learnable(nn.Module):
    """Learnable parameters as in Norse's documentation: a module around the cell registers them."""

    def __init__(self, neuron=SingleSpikeIF):
        super().__init__()
        self.v_th = nn.Parameter(torch.tensor([0.6, 1.0, 1.4]))
        self.tau_mem_inv = nn.Parameter(torch.tensor([10.0, 20.0, 30.0]))
        self.neuron = neuron(Parameters(self.v_th, self.tau_mem_inv))

    def forward(self, x, state=None):
        return self.neuron(x, state)


def test_threshold_and_time_constant_are_learnt():
    model, currents = _Learnable(), torch.full((9, 2, 3), 0.35)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    spikes, _ = model(currents)
    times = SpikesToTimesDecoder(t_silent=9, convert_indices_to_times=False)(spikes)
    assert times[0, 0].tolist() == [1, 2, 4]
    (times - 3).square().sum().backward()
    optimizer.step()
    v_th, tau_mem_inv = (a - b for a, b in zip(model.parameters(), before, strict=True))
    torch.testing.assert_close(v_th, torch.tensor([0.8, 0.4, -0.4]))
    assert (tau_mem_inv.sign() == v_th.sign()).all()
    assert not torch.equal(model(currents)[0], spikes)


def _by_hand(currents, start, p, dt=DT):
    beta, v, fired, spikes, potentials = 1 - dt * p.tau_mem_inv, start, start > p.v_th, [], []
    for current in currents:
        v = torch.where(fired, v, beta * v + current)
        z = threshold(v - p.v_th, p.method, p.alpha)
        spikes.append(torch.where(fired, torch.zeros_like(z), z))
        potentials.append(v)
        fired = fired | (v > p.v_th)
    return torch.stack(spikes), torch.stack(potentials)


@pytest.mark.parametrize("tau_mem_inv", [0.0, 100.0])
@pytest.mark.parametrize("method", METHODS)
@in_steps_and_at_once
def test_a_surrogate_of_norse_replaces_the_latency_rule(run, method, tau_mem_inv):
    currents, start, errors = (
        random(12, 4, 5),
        random(4, 5, high=1.5),
        random(2, 12, 4, 5, seed=1),
    )

    def outcome(run, method):
        numbers = (1.0, tau_mem_inv)
        inputs = [x.clone().requires_grad_() for x in (currents, start)]
        inputs += [torch.tensor(n, dtype=torch.float64, requires_grad=True) for n in numbers]
        found = torch.stack(run(*inputs[:2], p=Parameters(*inputs[2:], method=method, alpha=0.7))[:2])
        return [found, *torch.autograd.grad((found * errors).sum(), inputs, allow_unused=True)]

    found, latency = outcome(run, method), outcome(run, "latency")
    assert start.gt(1).any()
    torch.testing.assert_close(found[0], latency[0])
    assert not torch.allclose(found[1], latency[1])
    for ours_, hand in zip(found, outcome(_by_hand, method), strict=True):
        if method == "heaviside" and hand is None:
            assert ours_ is None or not ours_.any()
        else:
            torch.testing.assert_close(ours_, hand, rtol=1e-9, atol=1e-12)


@in_steps_and_at_once
@pytest.mark.parametrize("alpha", [0.3, torch.tensor(0.3), 3])
def test_alpha_belongs_to_the_surrogate(run, alpha):
    currents = torch.tensor([[0.5], [0.25]], requires_grad=True)
    run(currents, p=Parameters(method="triangle", alpha=alpha))[0].sum().backward()
    torch.testing.assert_close(currents.grad / alpha, torch.tensor([[1.25], [0.75]]))


@in_steps_and_at_once
def test_currents_after_the_spike_do_not_spoil_a_surrogate(run):
    currents = torch.ones(300, 2, dtype=torch.float16, requires_grad=True)
    run(currents, p=Parameters(method="circ"))[0].sum().backward()
    assert currents.grad.isfinite().all()
    assert not currents.grad[2:].any()


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="nonsense"):
        SingleSpikeIFCell(Parameters(method="nonsense"))(torch.ones(1))


@in_steps_and_at_once
def test_a_step_keeps_one_minus_dt_over_tau(run):
    currents = torch.tensor([[0.5], [0.25], [0.125]], dtype=torch.float64)
    expected = torch.tensor([[0.5], [0.625], [0.59375]], dtype=torch.float64)
    for dt, tau_mem_inv in [(0.001, 250.0), (0.25, 1.0)]:
        assert torch.equal(run(currents, p=Parameters(tau_mem_inv=tau_mem_inv), dt=dt)[1], expected)
    everything = run(currents, p=Parameters(tau_mem_inv=1000.0), dt=0.001)[1]
    assert torch.equal(everything, currents)


@pytest.mark.parametrize(
    ("p", "dt", "name"),
    [
        ({}, 0.0, "dt"),
        ({}, -0.001, "dt"),
        ({}, NAN, "dt"),
        ({}, INF, "dt"),
        ({"tau_mem_inv": 1000.1}, DT, "tau_mem_inv"),
        ({"tau_mem_inv": -1.0}, DT, "tau_mem_inv"),
        ({"tau_mem_inv": NAN}, DT, "tau_mem_inv"),
        ({"tau_mem_inv": 100.0}, 0.02, "tau_mem_inv"),
        ({"tau_mem_inv": torch.tensor(2500.0)}, DT, "tau_mem_inv"),
        ({"tau_mem_inv": torch.tensor([100.0, -100.0])}, DT, "tau_mem_inv"),
        ({"v_th": -0.5}, DT, "v_th"),
        ({"v_th": NAN}, DT, "v_th"),
    ],
)
@pytest.mark.parametrize("neuron", [SingleSpikeIFCell, SingleSpikeIF])
def test_bad_parameters_are_named(neuron, p, dt, name):
    with pytest.raises(ValueError, match=name):
        neuron(Parameters(**p), dt)


# --- States, dtypes, devices, copies ----------------------------------------------------------------------


@pytest.mark.parametrize("neuron", [SingleSpikeIFCell(), SingleSpikeIF(), SingleSpikeIF(LEAKY)])
def test_states_are_fresh(neuron):
    currents = torch.full((2, 3, 4), 0.5)
    spikes, state = neuron(currents)
    assert isinstance(state, SingleSpikeIFState)
    assert not state.v.requires_grad
    assert not spikes.requires_grad
    expected = state.v.clone()
    state.v.fill_(9.0)
    assert torch.equal(neuron(currents)[1].v, expected)
    other = type(neuron)(neuron.p)
    assert torch.equal(other(currents)[1].v, expected)
    start = neuron.state_fallback(currents)
    assert start.v.shape == currents.shape
    assert start.v is not neuron.state_fallback(currents).v
    assert not any(isinstance(value, torch.Tensor) for value in Parameters())


def test_the_state_and_the_input_are_left_as_they_are():
    currents, state = random(9, 2, 3), SingleSpikeIFState(random(2, 3, seed=1))
    before = currents.clone(), state.v.clone()
    SingleSpikeIF()(currents, state)
    SingleSpikeIFCell()(currents[0], state)
    assert torch.equal(currents, before[0])
    assert torch.equal(state.v, before[1])


@pytest.mark.parametrize("method", ["latency", "super"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta", *["cuda"] * torch.cuda.is_available()])
@in_steps_and_at_once
def test_dtype_and_device_are_the_inputs(run, device, dtype, method):
    v_th = torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    for p in (
        Parameters(method=method),
        Parameters(v_th, torch.tensor(100.0), method, torch.tensor(10.0)),
        Parameters(0.5, 100.0, method),
    ):
        currents = torch.ones(5, 2, 3, dtype=dtype, device=device, requires_grad=True)
        spikes, potentials, state = run(currents, p=p)
        for tensor in (spikes, potentials, state.v):
            assert tensor.dtype == dtype
            assert tensor.device.type == device
        assert spikes.shape == potentials.shape == currents.shape
        if device != "meta":
            assert spikes.sum() == 6
            (spikes.sum() + potentials.sum()).backward()
            assert currents.grad.dtype == dtype
            assert currents.grad.any()
    if device != "meta":
        assert v_th.grad.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@in_steps_and_at_once
def test_whole_numbers_are_counted_as_they_are(run, dtype):
    currents, p = torch.ones(4, 2, dtype=dtype), Parameters(torch.tensor(1.5), torch.tensor(500.0))
    expected = run(currents.float(), p=p)
    found = run(currents, p=p)
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_equal_and_independent(copied):
    torch.manual_seed(0)
    model = host.SequentialState(
        host.Lift(nn.Conv2d(1, 2, 3)),
        SingleSpikeIF(LEAKY),
        FirstSpikePool2d(2),
        nn.Flatten(2),
        host.Lift(nn.Linear(2, 3)),
        _Learnable(),
    )
    twin, x = copied(model), torch.rand(5, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 4
    found, expected = twin(x), model(x)
    assert expected[0].any()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1][5].v, expected[1][5].v)
    assert repr(twin) == repr(model)
    with torch.no_grad():
        twin[5].v_th.fill_(1e9)
    assert not twin(x)[0].any()
    assert torch.equal(model(x)[0], expected[0])


def test_state_dicts_hold_what_norses_do():
    assert not SingleSpikeIFCell().state_dict()
    assert not SingleSpikeIF(Parameters(v_th=torch.ones(3))).state_dict()
    model, other = _Learnable(), _Learnable()
    assert set(model.state_dict()) == {"v_th", "tau_mem_inv"}
    with torch.no_grad():
        model.v_th.fill_(0.1)
    other.load_state_dict(model.state_dict())
    currents = torch.full((3, 1, 3), 0.2)
    assert torch.equal(other(currents)[0], model(currents)[0])
    assert other(currents)[0][0].all()


# --- Norse's documented usage -----------------------------------------------------------------------------


def test_a_cell_is_stepped_with_its_state():
    data, cell = torch.tensor([0.6, 0.2]), SingleSpikeIFCell()
    first, state = cell(data)
    second, state = cell(data, state)
    third, state = cell(data, state)
    assert torch.stack([first, second, third]).tolist() == [[0, 0], [1, 0], [0, 0]]
    assert torch.equal(state.v, torch.tensor([1.2, 0.6]))
    again, _ = cell(data)
    assert torch.equal(again, first)


# --- Defects of Norse 1.1.0 that our documentation relies on: a failure here is good news -----------------


@pytest.mark.host_defect
@pytest.mark.parametrize("neuron", [host.IAFCell, host.IAF])
def test_norses_neurons_share_a_default_state_that_asks_for_a_gradient(neuron):
    """No thread upstream that we know of."""
    p = host.IAFParameters(v_reset=torch.tensor(0.0))
    module = neuron(p)
    _, state = module(torch.zeros(2, 3))
    assert module.initial_state(torch.zeros(2, 3)).v is p.v_reset
    assert state.v.requires_grad
    assert p.v_reset.requires_grad
    neuron()(torch.zeros(2, 3))
    shared = host.IAFParameters().v_reset
    assert shared.requires_grad
    shared.requires_grad_(False)


@pytest.mark.host_defect
def test_norses_neuron_with_a_reset_far_below_starts_there_and_never_fires():
    """No thread upstream that we know of."""
    p = host.IAFParameters(v_reset=torch.tensor(-1e9))
    spikes, state = host.IAF(p)(torch.full((100, 2, 3), 9.0))
    assert not spikes.any()
    assert (state.v < -9e8).all()
    currents = torch.full((4, 2, 3), 0.3, requires_grad=True)
    spikes, _ = host.IAF(p)(currents, host.IAFFeedForwardState(torch.zeros(2, 3)))
    assert spikes.sum() == 6
    spikes.sum().backward()
    assert currents.grad.abs().max() > 1e20
