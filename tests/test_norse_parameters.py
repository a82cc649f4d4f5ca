"""What users of Norse hand over: its own parameters, and sparse spikes."""

from typing import NamedTuple

import norse.torch as norse
import pytest
import torch

from ssnn_plugin import decode, to_event_driven
from ssnn_plugin.norse import (
    SingleSpikeIF,
    SingleSpikeIFCell,
    SingleSpikeIFParameters,
    SpikesToTimesDecoder,
    single_spike_if_step,
)

NEURONS = [SingleSpikeIFCell, SingleSpikeIF]


def _first_spikes(neuron, currents):
    spikes, state = [], None
    for current in currents:
        z, state = neuron(current, state)
        spikes.append(z)
    return decode.spikes_to_times(torch.stack(spikes))


def _currents(steps=30):
    return torch.rand(steps, 4, 5, generator=torch.Generator().manual_seed(0)) * 0.1


def test_parameters_of_an_iaf_mean_what_they_mean_in_norse():
    currents = _currents()
    for p in (norse.IAFParameters(), norse.IAFParameters(v_th=torch.tensor(0.5))):
        expected = _first_spikes(norse.IAFCell(p), currents)
        assert expected.isfinite().any()
        assert torch.equal(_first_spikes(SingleSpikeIFCell(p), currents), expected)
        assert torch.equal(decode.spikes_to_times(SingleSpikeIF(p)(currents)[0]), expected)
        z, state = single_spike_if_step(currents[0], None, p)
        assert torch.equal(z, (currents[0] > p.v_th).float())
        assert torch.equal(state.v, currents[0])


def test_the_default_surrogate_of_norse_gives_way_to_the_latency_rule():
    """It cannot be told from a choice, and would rule out the network on times."""
    assert SingleSpikeIF(norse.IAFParameters()).p.method == "latency"
    kept = SingleSpikeIFCell(norse.IAFParameters(method="triangle", alpha=torch.tensor(0.3))).p
    assert (kept.method, kept.alpha) == ("triangle", torch.tensor(0.3))
    model = norse.SequentialState(
        norse.Lift(torch.nn.Linear(5, 3, bias=False)), SingleSpikeIF(norse.IAFParameters(torch.tensor(0.5)))
    )
    assert to_event_driven(model, t_max=8)[0].neuron.threshold == 0.5


def test_parameters_of_a_box_neuron_that_adds_its_input_as_it_is():
    p = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(1000.0))
    currents = _currents() * 15
    expected = _first_spikes(norse.LIFBoxCell(p), currents)
    assert expected.isfinite().any()
    assert torch.equal(_first_spikes(SingleSpikeIFCell(p), currents), expected)


@pytest.mark.parametrize(
    "tau", [torch.tensor(1000.0002), torch.tensor([999.9999, 1000.0002]), 1000.0000000002]
)
def test_a_time_constant_of_one_step_may_be_rounded(tau):
    """1 / 0.001 in single precision, as an imported graph has it."""
    neuron = SingleSpikeIFCell(SingleSpikeIFParameters(tau_mem_inv=tau))
    _, state = neuron(torch.full((1, 2), 0.5))
    _, state = neuron(torch.full((1, 2), 0.75), state)
    torch.testing.assert_close(state.v, torch.full((1, 2), 0.75))
    with pytest.raises(ValueError, match="tau_mem_inv must lie in 0"):
        SingleSpikeIFCell(SingleSpikeIFParameters(tau_mem_inv=tau * 1.01))


class Learned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.v_th = torch.nn.Parameter(torch.tensor(0.5))
        self.tau_mem_inv, self.method, self.alpha = 0.0, "latency", 1.0


def test_a_module_of_parameters_stays_part_of_the_network():
    neuron = SingleSpikeIF(Learned())
    assert [name for name, _ in neuron.named_parameters()] == ["p.v_th"]
    neuron(_currents())[0].sum().backward()
    assert neuron.p.v_th.grad < 0


class OfAUser(NamedTuple):
    v_th: float = 1.0
    tau_adapt: float = 3.0
    method: str = "latency"
    alpha: float = 100.0


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize(
    ("p", "message"),
    [
        (norse.IAFParameters(v_reset=torch.tensor(-0.5)), r"v_reset of IAFParameters must be 0.*got -0.5"),
        (norse.LIFParameters(), r"tau_syn_inv of LIFParameters has no counterpart.*replace_neurons"),
        (
            norse.LIFParameters(v_leak=torch.tensor(0.5)),
            r"v_leak of LIFParameters must be 0.*got 0.5.*replace_neurons",
        ),
        (norse.LIFBoxParameters(), r"tau_mem_inv of LIFBoxParameters must be 1 / dt = 1000.*got 100"),
        (norse.LIFBoxParameters(v_leak=torch.tensor(0.5)), r"v_leak of LIFBoxParameters must be 0"),
        (norse.LIFAdExParameters(), r"\w+ of LIFAdExParameters"),
        (OfAUser(), r"tau_adapt of OfAUser has no counterpart"),
    ],
)
def test_a_field_that_means_something_else_is_refused_by_name(neuron, p, message):
    with pytest.raises(ValueError, match=message):
        neuron(p)
    with pytest.raises(ValueError, match=message):
        single_spike_if_step(torch.ones(2), None, p)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("p", [0.5, None, {"v_th": 1.0}, norse.LIParameters])
def test_what_is_no_set_of_parameters_is_named(neuron, p):
    with pytest.raises(TypeError, match=r"p must be SingleSpikeIFParameters .*got"):
        neuron(p)


def test_a_threshold_below_the_start_is_refused_in_either_kind():
    with pytest.raises(ValueError, match="v_th must be at least 0"):
        SingleSpikeIFCell(norse.IAFParameters(v_th=torch.tensor([-1.0])))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
def test_sparse_input_gives_sparse_spikes_as_in_norse(dtype):
    dense = (torch.rand(9, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.3).to(dtype)
    z, state = SingleSpikeIF()(dense)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    sparse_z, sparse_state = SingleSpikeIF()(dense.to_sparse())
    assert sparse_z.is_sparse
    assert sparse_z.dtype == wanted
    assert torch.equal(sparse_z.to_dense(), z)
    assert torch.equal(sparse_state.v, state.v)
    step, step_state = SingleSpikeIFCell()(dense[0].to_sparse())
    assert step.is_sparse
    assert (step_state.v.is_sparse, step_state.v.dtype) == (False, wanted)
    assert torch.equal(step.to_dense(), SingleSpikeIFCell()(dense[0])[0])
    again, _ = SingleSpikeIFCell()(dense[0].to_sparse(), step_state)
    assert torch.equal(again.to_dense(), SingleSpikeIFCell()(dense[0], step_state)[0])


def test_gradients_pass_through_sparse_spikes():
    dense = torch.tensor([[[2.0, 0.0]], [[0.0, 1.5]], [[3.0, 0.0]]])
    leaf, reference = dense.clone().requires_grad_(), dense.clone().requires_grad_()
    factors = torch.arange(6.0).reshape(3, 1, 2)
    (SingleSpikeIF()(leaf.to_sparse())[0].to_dense() * factors).sum().backward()
    (SingleSpikeIF()(reference)[0] * factors).sum().backward()
    assert torch.equal(leaf.grad, reference.grad * (dense != 0))
    assert leaf.grad.any()


def test_the_decoder_takes_sparse_spikes():
    spikes = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]])
    decoder = SpikesToTimesDecoder(t_silent=3, convert_indices_to_times=False)
    assert torch.equal(decoder(spikes.to_sparse()), decoder(spikes))
