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
from marks import needs_compiler
from norse.torch.functional.threshold import threshold
from torch import nn

from ssnn_plugin import IF, decode, encode
from ssnn_plugin.nn import EarliestSpikePool2d, SpikeLinear
from ssnn_plugin.norse import (
    FirstSpikePool2d,
    FirstSpikePool2dCell,
    LatencyEncoder,
    SingleSpikeIF,
    SingleSpikeIFCell,
    SingleSpikeIFState,
    SpikesToTimesDecoder,
    single_spike_if_step,
)
from ssnn_plugin.norse import SingleSpikeIFParameters as Parameters

INF, NAN = math.inf, math.nan
DT = 0.001
METHODS = ["heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc"]
LEAKY = Parameters(tau_mem_inv=100.0)
with_and_without_leak = pytest.mark.parametrize("p", [Parameters(), LEAKY], ids=["if", "leaky"])


pytestmark = pytest.mark.usefixtures("one_thread")


def _random(*shape, low=-0.3, high=0.6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)


def _loop(cell, currents, state=None):
    """The documented loop: (spikes [T, *], the potential of every step, the last state)."""
    spikes, potentials = [], []
    for current in currents:
        z, state = cell(current, state)
        spikes.append(z)
        potentials.append(state.v)
    return torch.stack(spikes), torch.stack(potentials), state


def _in_steps(currents, start=None, p=Parameters(), dt=DT):  # noqa: B008
    """(spikes, potentials, state) of the cell."""
    return _loop(SingleSpikeIFCell(p, dt), currents, None if start is None else SingleSpikeIFState(start))


def _at_once(currents, start=None, p=Parameters(), dt=DT):  # noqa: B008
    """(spikes, potentials, state) of the layer."""
    state = None if start is None else SingleSpikeIFState(start)
    spikes, states = SingleSpikeIF(p, dt, record_states=True)(currents, state)
    return spikes, states.v, SingleSpikeIFState(states.v[-1])


in_steps_and_at_once = pytest.mark.parametrize("run", [_in_steps, _at_once], ids=["cell", "layer"])


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
    for run in (_in_steps, _at_once):
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
    currents = _random(12, 4, 6).requires_grad_()
    error = _random(1, 4, 6, seed=1)
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
    currents = _random(20, 50, 5)
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
    currents = _random(20, 8, 5)
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
        hidden.weight.copy_(_random(7, 8, high=0.9))
        out.weight.copy_(_random(5, 7, high=0.9))
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
    error, inputs = _random(9, 5, seed=3), (times, hidden.weight, out.weight)
    for a, b in zip(
        torch.autograd.grad(found, inputs, error), torch.autograd.grad(expected, inputs, error), strict=True
    ):
        assert b.any()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(30, 4, 6), (30, 6), (30,), (30, 2, 3, 4, 4), (1, 3), (5, 0, 3)])
def test_cell_and_layer_are_equal_bit_by_bit_without_a_leak(shape):
    currents = _random(*shape)
    for a, b in zip(_in_steps(currents), _at_once(currents), strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cell_and_layer_are_equal_to_rounding_with_a_leak(dtype):
    currents, start, errors = _random(50, 4, 6, high=0.4), _random(4, 6, seed=1), _random(2, 50, 4, 6, seed=2)
    outcome = []
    for run in (_in_steps, _at_once):
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
    currents = _random(20, 4, 6)
    spikes, potentials, _ = run(currents, p=p)
    first, _, state = run(currents[:7], p=p)
    second, later, _ = run(currents[7:], state.v, p)
    assert torch.equal(torch.cat([first, second]), spikes)
    torch.testing.assert_close(later, potentials[7:], rtol=1e-12, atol=1e-12)


@in_steps_and_at_once
def test_a_state_may_be_a_number_as_in_norse(run):
    tau_mem_inv = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    currents = _random(5, 2, 3)
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
    currents = _random(20, 4, 3)
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
    currents, start, errors = _random(12, 4, 5), _random(4, 5, high=1.5), _random(2, 12, 4, 5, seed=1)

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
    currents, state = _random(9, 2, 3), SingleSpikeIFState(_random(2, 3, seed=1))
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
def test_whole_numbers_are_refused_or_counted_as_they_are(run, dtype):
    currents, p = torch.ones(4, 2, dtype=dtype), Parameters(torch.tensor(1.5), torch.tensor(500.0))
    expected = run(currents.float(), p=p)
    try:
        found = run(currents, p=p)
    except TypeError:
        return
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (SpikesToTimesDecoder(t_silent=5, convert_indices_to_times=False), (5, 2, 3), (1, 2, 3)),
        (LatencyEncoder(5), (2, 3), (5, 2, 3)),
    ],
)
def test_encoder_and_decoder_on_the_meta_device(module, shape, expected):
    found = module(torch.empty(shape, device="meta"))
    assert found.shape == expected
    assert found.device.type == "meta"


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


@with_and_without_leak
def test_step_cell_and_layer_over_time_however_they_are_lifted(p):
    currents = _random(20, 4, 6)
    expected, _, last = _in_steps(currents, p=p)
    assert expected.any()

    def step(current, state):
        return single_spike_if_step(current, state, p, DT)

    found = [
        _loop(step, currents)[::2],
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
    currents = _random(9, 4, 6)
    _, potentials, last = _in_steps(currents, p=p)
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
    assert torch.equal(output, _in_steps(lift(x))[0])
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
    currents, state = _random(9, 4, 6), None
    for current in currents:
        z, state = cell(current, state)
        _, count = spikes(z, state)
        _, total = voltage(z, state)
    expected, potentials, _ = _in_steps(currents)
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


# --- torch.compile ----------------------------------------------------------------------------------------


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
    inputs = _random(3, 4, 5), _random(4, 5, high=1.4, seed=1)
    _same_compiled(_step_and_layer(Parameters()), *inputs, backend="inductor")


@pytest.mark.parametrize("method", ["latency", "super"])
def test_step_and_layer_trace_into_one_graph(method):
    def network(currents, start, v_th, tau_mem_inv):
        return _step_and_layer(Parameters(v_th, tau_mem_inv, method))(currents, start)

    parameters = torch.tensor([0.1, 0.2, 0.3]).double(), torch.tensor(100.0).double()
    _same_compiled(network, _random(5, 4, 3), _random(4, 3, seed=1), *parameters, backend="aot_eager")


def test_a_network_and_its_decoder_trace_into_one_graph():
    steps, layers = _steps_and_layers()
    decoder = SpikesToTimesDecoder(t_silent=3, convert_indices_to_times=False)

    def network(x):
        _, states = steps(x[0])
        spikes, states = layers(x, states)
        return decoder(spikes, states[3].v), states[1].v

    _same_compiled(network, _random(2, 4, 6, high=2.0).float(), backend="aot_eager")


def test_the_encoder_traces_into_one_graph():
    values, encoder = torch.rand(3, 4), LatencyEncoder(5)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values), encoder(values))


# --- Encoder and decoder ----------------------------------------------------------------------------------


def test_the_brighter_the_earlier():
    values = torch.tensor([[1.0, 0.75, 0.5, 0.01, 0.0]])
    spikes = LatencyEncoder(4)(values)
    assert spikes.shape == (4, 1, 5)
    assert spikes.nonzero().tolist() == [[0, 0, 0], [1, 0, 1], [2, 0, 2], [3, 0, 3]]
    assert torch.equal(LatencyEncoder(4, x_max=2.0)(2 * values), spikes)
    pixels = torch.randint(0, 256, (2, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    spikes = LatencyEncoder(8, x_max=255)(pixels.to(torch.uint8))
    assert torch.equal(decode.spikes_to_times(spikes), encode.latency(pixels, 8, x_max=255))
    assert LatencyEncoder(4)(values.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0,), "seq_length"), ((2.5,), "seq_length"), ((4, 0.0), "x_max"), ((4, NAN), "x_max")],
)
def test_bad_encoders_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        LatencyEncoder(*arguments)


@pytest.mark.parametrize("bad", [NAN, -0.1, 1.1])
def test_bad_intensities_are_refused(bad):
    with pytest.raises(ValueError, match="x must"):
        LatencyEncoder(4)(torch.tensor([0.5, bad]))


def _train(*shape, rate=0.3):
    """Spike trains with several spikes per neuron, none of them silent."""
    spikes = (_random(*shape, low=0, high=1, dtype=torch.float32) < rate).float()
    spikes[-1] = 1
    return spikes


@pytest.mark.parametrize("seconds", [False, True])
@pytest.mark.parametrize("dt", [0.001, 0.25])
def test_without_silence_the_decoder_is_norses(seconds, dt):
    error, outcome = _random(1, 4, 6, dtype=torch.float32, seed=1), []
    for decoder in (
        SpikesToTimesDecoder(t_silent=99.0, convert_indices_to_times=seconds, dt=dt),
        host.SpikesToTimesDecoder(convert_indices_to_times=seconds, dt=dt),
    ):
        spikes = _train(12, 4, 6).requires_grad_()
        times = decoder(spikes)
        times.backward(error)
        outcome.append((times, spikes.grad))
    for a, b in zip(*outcome, strict=True):
        assert a.dtype == b.dtype
        assert b.unique().numel() > 2
        assert torch.equal(a, b)


@pytest.mark.parametrize("seconds", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (6,), (), (2, 3, 5, 5), (0, 3)])
def test_silence_is_decoded_as_t_silent(seconds, shape):
    spikes = (_random(12, *shape, low=0, high=1) < 0.1).double().requires_grad_()
    potential = _random(*shape, seed=1).requires_grad_()
    unit = DT if seconds else 1.0
    decoder = SpikesToTimesDecoder(t_silent=15 * unit, convert_indices_to_times=seconds)
    steps = torch.arange(12.0).double().reshape(-1, *[1] * len(shape))
    expected = torch.where(spikes > 0, steps, INF).amin(0)
    silent = expected.isinf()
    error = _random(1, *shape, seed=2)
    for given_potential in (None, potential):
        times = decoder(spikes, given_potential)
        assert times.shape == (1, *shape)
        torch.testing.assert_close(times[0], expected.clamp(max=15) * unit)
        of_spikes, of_potential = torch.autograd.grad(times, (spikes, potential), error, allow_unused=True)
        read = (steps == expected) | (silent & (steps == 11) if given_potential is None else False)
        torch.testing.assert_close(of_spikes, read * -error * unit)
        if given_potential is None:
            assert of_potential is None
        else:
            torch.testing.assert_close(of_potential, -error[0] * unit * silent)


def test_the_decoder_in_a_sequential_state_gets_the_spikes():
    model = host.SequentialState(SingleSpikeIF(), SpikesToTimesDecoder(t_silent=0.004))
    times, state = model(torch.full((4, 2, 3), 0.6))
    torch.testing.assert_close(times, torch.full((1, 2, 3), 0.001))
    assert state[1] is None


@pytest.mark.parametrize("t_silent", [0, -1.0, NAN, INF])
def test_a_bad_t_silent_is_named(t_silent):
    with pytest.raises(ValueError, match="t_silent"):
        SpikesToTimesDecoder(t_silent=t_silent)


def test_a_t_silent_within_the_window_is_refused():
    spikes = torch.zeros(8, 2, 3)
    for seconds, unit in ((False, 1.0), (True, DT)):
        with pytest.raises(ValueError, match="t_silent must not be before the last step"):
            SpikesToTimesDecoder(t_silent=6.9 * unit, convert_indices_to_times=seconds)(spikes)
    with pytest.raises(ValueError, match="dt"):
        SpikesToTimesDecoder(t_silent=1.0, dt=0.0)


@pytest.mark.parametrize("dt", [0.001, 0.0001, 0.003, 1 / 3])
def test_t_silent_may_be_the_last_step_in_seconds(dt):
    for last in range(1, 300, 37):
        for t_silent in (last * dt, sum([dt] * last), float(f"{last * dt:.12g}")):
            times = SpikesToTimesDecoder(t_silent=t_silent, dt=dt)(torch.zeros(last + 1, 1))
            assert times.item() == pytest.approx(last * dt, rel=1e-6)


# --- Pooling ----------------------------------------------------------------------------------------------

WINDOWS = [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (2, 1)]


@pytest.mark.parametrize("window", WINDOWS)
def test_pooling_trains_is_pooling_their_times(window):
    t_max = 9
    times = torch.randint(0, 14, (3, 2, 6, 7), generator=torch.Generator().manual_seed(0)).double()
    times = times.masked_fill(times >= t_max, INF)
    times[0, 0] = INF
    trains, of_times = (times.clone().requires_grad_() for _ in range(2))
    spikes, state = FirstSpikePool2d(*window)(decode.times_to_spikes(trains, t_max))
    found, expected = decode.spikes_to_times(spikes), EarliestSpikePool2d(*window)(of_times)
    assert torch.equal(found, expected)
    assert torch.equal(spikes.sum(0), expected.isfinite().double())
    assert torch.equal(state.fired, spikes.sum(0))
    error = _random(*expected.shape, seed=1).masked_fill(expected.isinf(), 0)
    (a,), (b,) = torch.autograd.grad(found, trains, error), torch.autograd.grad(expected, of_times, error)
    assert b.any()
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("window", WINDOWS)
def test_pooling_in_steps_is_pooling_at_once(window):
    layer, cell = FirstSpikePool2d(*window), FirstSpikePool2dCell(*window)
    x = _train(7, 2, 3, 6, 7, rate=0.1).requires_grad_()
    outcome, parts = [], [layer(x[:3])]
    parts.append(layer(x[3:], parts[0][1]))
    states, steps = None, []
    for step in x:
        z, states = cell(step, states)
        steps.append(z)
    error = _random(*torch.stack(steps).shape, dtype=torch.float32)
    whole = layer(x)
    for spikes, state in (
        whole,
        (torch.stack(steps), states),
        (torch.cat([z for z, _ in parts]), parts[1][1]),
        host.Lift(cell)(x),
    ):
        assert not state.fired.requires_grad
        outcome.append((spikes, state.fired, *torch.autograd.grad(spikes, x, error, retain_graph=True)))
    assert outcome[0][0][0].mean() < 1
    for other in outcome[1:]:
        for a, b in zip(outcome[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("pool", [FirstSpikePool2dCell(2), FirstSpikePool2d(2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_pooling_keeps_the_dtype(pool, dtype):
    x = torch.ones(2, 3, 4, 4, dtype=dtype)
    lead = (5,) if isinstance(pool, FirstSpikePool2d) else ()
    for device in ("cpu", "meta"):
        spikes, state = pool(x.expand(*lead, *x.shape).to(device))
        assert spikes.dtype == state.fired.dtype == dtype
        assert spikes.shape == (*lead, 2, 3, 2, 2)
        assert state.fired.device.type == device


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
def test_norses_decoder_raises_in_the_backward_pass_with_a_silent_neuron():
    """No thread upstream that we know of."""
    spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]], requires_grad=True)
    times = host.SpikesToTimesDecoder(convert_indices_to_times=False)(spikes)
    assert times.tolist() == [[[0, INF]]]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        times[times.isfinite()].sum().backward()


@pytest.mark.host_defect
def test_norses_decoder_takes_one_shape_on_the_cpu_only():
    """No thread upstream that we know of."""
    decoder = host.SpikesToTimesDecoder()
    with pytest.raises((RuntimeError, ValueError)):
        decoder(torch.ones(4, 6, 2, 3, 3, requires_grad=True)).sum().backward()
    with pytest.raises(RuntimeError, match="meta"):
        decoder(torch.ones(4, 2, 3, device="meta"))


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
