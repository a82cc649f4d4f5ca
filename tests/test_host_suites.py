"""What the hosts' own test suites ask of a neuron, written anew.

Each case runs with the host's neuron and with ours in its place. What ours cannot do, because it fires once,
stands at the end of each part; docs/host-suites.md has the table.
"""

import copy
import warnings

import norse.torch as norse
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from norse.torch.module.regularization import RegularizationCell
from snntorch import utils
from torch import nn

from ssnn_plugin import snntorch as ours_in_snntorch
from ssnn_plugin.norse import (
    SingleSpikeIF,
    SingleSpikeIFCell,
    SingleSpikeIFParameters,
    SingleSpikeIFState,
    SpikesToTimesDecoder,
)
from ssnn_plugin.snntorch import SingleSpike

# --- snnTorch ---------------------------------------------------------------------------------------------

leaky = pytest.mark.parametrize("neuron", [snn.Leaky, SingleSpike])
losses = pytest.mark.parametrize("functional", [SF, ours_in_snntorch], ids=["host", "ours"])


@leaky
def test_the_potential_leaks_and_adds_up(neuron):
    lif = neuron(beta=0.5)
    mem = lif.init_leaky()
    spk, first = lif(torch.tensor([0.25]), mem)
    assert spk == 0
    spk, second = lif(torch.tensor([0.0]), first)
    assert second == 0.5 * first
    assert spk == 0


@leaky
def test_a_hidden_state_makes_spikes_the_only_output(neuron):
    lif = neuron(beta=0.5, init_hidden=True)
    assert torch.equal(lif(torch.tensor([0.25])), lif(torch.tensor([0.0])))


@leaky
def test_a_hidden_state_is_not_to_be_passed(neuron):
    with pytest.raises(TypeError, match="mem"):
        neuron(beta=0.5, init_hidden=True)(torch.zeros(2), torch.zeros(2))


@leaky
def test_the_reset_may_be_none(neuron):
    lif = neuron(beta=0.5, init_hidden=True, reset_mechanism="none")
    assert lif.reset_mechanism_val == 2
    assert torch.equal(lif(torch.tensor([0.25])), lif(torch.tensor([0.0])))


@leaky
def test_options_can_be_learned(neuron):
    lif = neuron(beta=0.5, learn_beta=True, learn_threshold=True, learn_graded_spikes_factor=True)
    assert {name for name, _ in lif.named_parameters()} == {"beta", "threshold", "graded_spikes_factor"}
    spk, mem = lif(torch.tensor([2.0]), torch.tensor([0.5]))
    (spk + mem).sum().backward()
    assert all(parameter.grad is not None for parameter in lif.parameters())


@leaky
def test_gradients_reach_input_and_threshold(neuron):
    lif, x = neuron(beta=0.9, learn_threshold=True), torch.tensor([2.0], requires_grad=True)
    spk, _ = lif(x, torch.zeros(1))
    spk.sum().backward()
    assert x.grad.isfinite().all()
    assert lif.threshold.grad is not None


@leaky
def test_fire_spikes_far_above_the_threshold(neuron):
    lif = neuron(beta=0.5)
    assert lif.fire(lif.threshold * 10) == 1


@leaky
def test_spikes_may_pass_no_gradient(neuron):
    lif = neuron(beta=0.9, surrogate_disable=True)
    spk, mem = lif(torch.randn(2, 4))
    assert (spk.dtype, mem.dtype) == (torch.float32, torch.float32)
    assert not spk.requires_grad


@leaky
def test_every_neuron_is_in_the_registry(neuron):
    before = len(snn.SpikingNeuron.instances)
    neuron(beta=0.5), neuron(beta=0.9)
    assert len(snn.SpikingNeuron.instances) == before + 2


class Two(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.first, self.second = (neuron(beta=0.5, init_hidden=True) for _ in range(2))

    def forward(self, x):
        return self.first(x) + self.second(x)


@leaky
def test_reset_and_detach_reach_every_neuron(neuron):
    net = Two(neuron)
    net(torch.full((1, 10), 0.5, requires_grad=True))
    assert all(lif.mem.any() and lif.mem.requires_grad for lif in net.children())
    neuron.detach_hidden()
    assert not any(lif.mem.requires_grad for lif in net.children())
    utils.reset(net)
    assert not any(lif.mem.any() for lif in net.children())


@pytest.mark.parametrize(
    "net",
    [
        lambda: nn.Sequential(SingleSpike(init_hidden=True)),
        lambda: nn.Sequential(nn.Sequential(nn.Sequential(SingleSpike(init_hidden=True)))),
        lambda: nn.Sequential(nn.Sequential(Two(SingleSpike)), nn.Identity()),
    ],
)
def test_nested_networks_are_reset(net):
    """snnTorch 1.0 does so on its main branch only; until then `ssnn_plugin.snntorch.reset` does."""
    net = net()
    net(torch.full((1, 10), 0.5))
    neurons = [module for module in net.modules() if isinstance(module, snn.Leaky)]
    assert all(lif.mem.any() for lif in neurons)
    ours_in_snntorch.reset(net)
    assert not any(lif.mem.any() for lif in neurons)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    """Asked of snnTorch's main branch; in 1.0 spikes are float32."""
    spk, mem = SingleSpike(beta=0.9).to(dtype)(torch.randn(2, 4, dtype=dtype))
    assert (spk.dtype, mem.dtype) == (dtype, dtype)


def test_a_neuron_can_be_saved_whole(tmp_path):
    """Asked of snnTorch's main branch; 1.0 cannot pickle its surrogate."""
    torch.save(SingleSpike(beta=0.9), tmp_path / "neuron.pt")
    assert isinstance(torch.load(tmp_path / "neuron.pt", weights_only=False), snn.Leaky)


@leaky
def test_a_copy_has_the_same_state_dict(neuron):
    lif = neuron(beta=0.9, threshold=torch.tensor([1.0, 2.0]), learn_threshold=True)
    twin = neuron(beta=0.1, threshold=torch.zeros(2), learn_threshold=True)
    twin.load_state_dict(lif.state_dict())
    assert list(copy.deepcopy(lif).state_dict()) == list(twin.state_dict())
    assert twin.beta == lif.beta


def _outputs():
    draw = torch.Generator().manual_seed(42)
    spikes = torch.randint(2, (3, 3, 3), generator=draw).float()
    return spikes, torch.tensor([1, 2, 0]), torch.tensor([0.35, 0.50, 0.15])


LOSSES = [("ce_temporal_loss", {}), ("mse_temporal_loss", {"on_target": 1, "off_target": 0})]


@losses
@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_losses_start_without_weight_and_with_the_mean(functional, name, options):
    loss = getattr(functional, name)(**options)
    assert loss.weight is None
    assert loss.reduction == "mean"
    assert loss.__name__ == name


@losses
@pytest.mark.parametrize("name", ["ce_temporal_loss", "mse_temporal_loss"])
def test_the_mean_is_that_of_the_single_errors(functional, name):
    spikes, labels, _ = _outputs()
    each = getattr(functional, name)(reduction="none")(spikes, labels)
    torch.testing.assert_close(each.mean(), getattr(functional, name)()(spikes, labels))


@losses
def test_the_weighted_cross_entropy_is_a_weighted_mean(functional):
    spikes, labels, weight = _outputs()
    each = functional.ce_temporal_loss(reduction="none")(spikes, labels)
    expected = (each * weight[labels]).sum() / weight[labels].sum()
    torch.testing.assert_close(functional.ce_temporal_loss(weight=weight)(spikes, labels), expected)


def test_the_weighted_squared_error_counts_samples_by_their_label():
    """The host's case multiplies the factor of sample b with output b: see docs/host-suites.md."""
    spikes, labels, weight = _outputs()
    each = ours_in_snntorch.mse_temporal_loss(reduction="none")(spikes, labels)
    expected = (each * weight[labels].unsqueeze(1)).mean()
    loss = ours_in_snntorch.mse_temporal_loss(weight=weight)(spikes, labels)
    torch.testing.assert_close(loss, expected)


def test_by_nature_a_constant_current_makes_one_spike():
    current = torch.full((1, 8), 2.0)
    counts = {}
    for neuron in (snn.Leaky, SingleSpike):
        lif, mem, spikes = neuron(beta=0.9), None, []
        for _ in range(200):
            spk, mem = lif(current, mem)
            spikes.append(spk)
        counts[neuron] = torch.stack(spikes).sum(0)
    assert (counts[snn.Leaky] > 100).all()
    assert (counts[SingleSpike] == 1).all()


@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
def test_by_nature_there_is_no_reset(mechanism):
    assert snn.Leaky(beta=0.5, reset_mechanism=mechanism).reset_mechanism == mechanism
    with pytest.raises(ValueError, match="reset_mechanism must be 'none'"):
        SingleSpike(beta=0.5, reset_mechanism=mechanism)


def test_by_nature_a_neuron_that_has_fired_keeps_its_potential():
    """A case of the main branch feeds a potential above threshold in and asks for a spike."""
    spk, mem = SingleSpike(beta=0.9)(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    assert (spk.item(), mem.item()) == (0, 3)
    assert snn.Leaky(beta=0.9)(torch.tensor([[2.0]]), torch.tensor([[3.0]]))[0] == 1


# --- Norse ------------------------------------------------------------------------------------------------

cells = pytest.mark.parametrize("cell", [norse.IAFCell, norse.LIFCell, norse.LIFBoxCell, SingleSpikeIFCell])
layers = pytest.mark.parametrize("layer", [norse.LIF, SingleSpikeIF])


@pytest.fixture(autouse=True)
def _the_shared_state_of_norse_is_left_as_it_was():
    """IAF asks for the gradient of a tensor that all its layers share."""
    yield
    norse.IAFParameters().v_reset.requires_grad_(False)
    norse.IAFParameters().v_reset.grad = None


@pytest.mark.parametrize(
    ("cell", "state"), [(norse.IAFCell, norse.IAFFeedForwardState), (SingleSpikeIFCell, SingleSpikeIFState)]
)
def test_a_cell_adds_its_input_and_fires_strictly_above_the_threshold(cell, state):
    x = torch.ones(2, 1)
    z, after = cell()(x, state(v=torch.zeros(2, 1)))
    assert torch.equal(after.v, x)
    assert torch.equal(z, torch.zeros(2, 1))


@pytest.mark.parametrize("cell", [norse.IAFCell, SingleSpikeIFCell])
def test_the_state_of_norses_iaf_is_taken(cell):
    z, state = cell()(torch.ones(2, 1), norse.IAFFeedForwardState(v=torch.full((2, 1), 0.5)))
    assert torch.equal(z, torch.ones(2, 1))
    assert state.v.shape == (2, 1)


@cells
def test_a_cell_keeps_the_shape(cell):
    out, state = cell()(torch.randn(5, 2))
    assert out.shape == (5, 2)
    assert all(part.shape == (5, 2) for part in state)


@layers
def test_a_layer_takes_a_window(layer):
    out, state = layer()(torch.randn(10, 5, 4))
    assert out.shape == (10, 5, 4)
    assert all(part.shape == (5, 4) for part in state)


@cells
def test_a_state_can_be_used_again_and_differentiated(cell):
    x = torch.randn(5, 4, requires_grad=True)
    out, state = cell()(x)
    again, state = cell()(out, state)
    assert state.v.grad_fn is not None
    again.sum().backward()
    assert x.grad.isfinite().all()


@layers
def test_a_layer_can_be_used_again_and_differentiated(layer):
    model, x = layer(), torch.ones(10, 6, requires_grad=True)
    out, state = model(x)
    out, _ = model(out, state)
    out.sum().backward()
    assert x.grad.isfinite().all()


class KeepsItsStates(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.second = layer(), layer()
        self.state_1 = self.state_2 = None

    def forward(self, x):
        z, self.state_1 = self.first(x, self.state_1)
        _, self.state_2 = self.second(z, self.state_2)
        return self.state_2.v.squeeze()


@layers
def test_a_network_may_keep_its_states(layer):
    x = torch.ones(10, 12, requires_grad=True)
    KeepsItsStates(layer)(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("neuron", [norse.LIFCell, norse.LIF, SingleSpikeIFCell, SingleSpikeIF])
@pytest.mark.parametrize("sparse", [False, True])
def test_input_may_be_bool_and_sparse(neuron, sparse):
    x = torch.zeros(1, 2, dtype=torch.bool)
    z, state = neuron()(x.to_sparse() if sparse else x)
    assert state.v.dtype == torch.float32
    assert z.is_sparse == sparse


@pytest.mark.parametrize(
    ("neuron", "p"),
    [
        (norse.LIFCell, norse.LIFParameters(2, 1, 0.3, 0.5, 0, alpha=20)),
        (norse.LIF, norse.LIFParameters(2, 1, 0.3, 0.5, 0, alpha=20)),
        (SingleSpikeIFCell, SingleSpikeIFParameters(v_th=0.5, tau_mem_inv=2, alpha=20)),
        (SingleSpikeIF, SingleSpikeIFParameters(v_th=0.5, tau_mem_inv=2, alpha=20)),
        (SingleSpikeIFCell, norse.IAFParameters(v_th=0.5, v_reset=0, alpha=20)),
    ],
)
def test_parameters_need_not_be_tensors(neuron, p):
    assert neuron(p=p)(torch.ones(2, 3))[0].shape == (2, 3)


@pytest.mark.parametrize("cell", [norse.LIFBoxCell, SingleSpikeIFCell])
def test_a_membrane_of_one_step_holds_its_input(cell):
    """The parameters of the host's compiled case, in which dt / tau is 1."""
    values = {"v_th": torch.ones(1), "v_leak": torch.zeros(1), "v_reset": torch.zeros(1)}
    p = norse.LIFBoxParameters(tau_mem_inv=torch.ones(1) * 1000, alpha=torch.zeros(1), **values)
    x = torch.ones(2, 1, requires_grad=True)
    z, state = cell(p)(x)
    _, state = cell(p)(x, state)
    z.sum().backward()
    assert state.v.grad_fn is not None
    assert torch.equal(state.v, torch.ones(2, 1))


@pytest.mark.parametrize(
    ("neuron", "p"), [(norse.LIFCell, norse.LIFParameters()), (SingleSpikeIFCell, SingleSpikeIFParameters())]
)
def test_its_text_shows_the_parameters(neuron, p):
    assert str(neuron(p=p)) == f"{neuron.__name__}(p={p}, dt=0.001)"


@cells
def test_a_sequential_network_with_and_without_state(cell):
    x, model = torch.ones(10, 1, 1), norse.SequentialState(nn.Linear(1, 1), cell())
    expected, states = model(x)
    assert states[0] is None
    assert torch.equal(model(x, None)[0], expected)
    again, _ = model(x, [None, states[1]])
    assert again.shape == (10, 1, 1)


def test_a_state_of_another_shape_spreads_over_the_input():
    state = SingleSpikeIFState(torch.tensor(0))
    out, _ = norse.SequentialState(nn.Linear(1, 1), SingleSpikeIFCell())(torch.ones(10, 1, 1), [None, state])
    assert out.shape == (10, 1, 1)


@layers
def test_hooks_see_inputs_and_states(layer):
    model = norse.SequentialState(nn.Linear(1, 10, bias=False), layer(), layer(), layer())
    seen = []
    model.register_forward_state_hooks(lambda module, inputs, outputs: seen.append(inputs))
    with pytest.raises(ValueError, match="hook"):
        model.register_forward_state_hooks(lambda module, inputs, outputs: None)
    x = torch.ones(10, 2, 8, 1)
    _, states = model(x)
    assert torch.stack([inputs[0] for inputs in seen]).shape == (3, 10, 2, 8, 10)
    assert all(inputs[1] is None for inputs in seen)
    seen.clear()
    model(x, states)
    assert all(hasattr(inputs[1], "v") for inputs in seen)
    model.remove_forward_state_hooks()
    model(x, states)
    assert len(seen) == 3


@layers
def test_a_convolution_can_be_lifted_in_front(layer):
    module = nn.Sequential(norse.Lift(nn.Conv2d(3, 4, 5)), layer())
    assert module(torch.randn(6, 2, 3, 10, 12))[0].shape == (6, 2, 4, 6, 8)


@cells
def test_a_cell_and_a_network_of_cells_can_be_lifted(cell):
    for module in (cell(), norse.SequentialState(cell())):
        out, state = norse.Lift(module)(torch.randn(5, 2, 3))
        assert out.shape == (5, 2, 3)
        state = state[0] if isinstance(state, list) else state
        assert state.v.shape == (2, 3)


@pytest.mark.parametrize("cell", [norse.LIFCell, SingleSpikeIFCell])
def test_a_network_can_run_into_itself(cell):
    model = norse.RecurrentSequential(nn.Linear(1, 1, bias=False), cell())
    out, state = model(torch.ones(10, 1, 1))
    assert model(out, state)[0].shape == (10, 1, 1)


DECODERS = [
    lambda **options: norse.SpikesToTimesDecoder(spike_count=1, **options),
    lambda **options: SpikesToTimesDecoder(
        t_silent=1.0 if options["convert_indices_to_times"] else 10, **options
    ),
]


@pytest.mark.parametrize("decoder", DECODERS, ids=["host", "ours"])
@pytest.mark.parametrize("seconds", [False, True])
def test_the_decoder_and_its_gradient(decoder, seconds):
    spikes = torch.zeros(10, 2, 3)
    spikes[2] = 1
    spikes.requires_grad_()
    times = decoder(convert_indices_to_times=seconds, dt=1e-3)(spikes)
    unit = 1e-3 if seconds else 1.0
    torch.testing.assert_close(times, torch.full((1, 2, 3), 2.0 * unit))
    times.sum().backward()
    expected = torch.zeros(10, 2, 3)
    expected[2] = -unit
    torch.testing.assert_close(spikes.grad, expected)


def test_the_decoder_can_be_traced():
    decoder = SpikesToTimesDecoder(t_silent=1.0)
    spikes = torch.tensor([[[0.0]], [[1.0]]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(decoder, spikes)
    assert torch.equal(traced(spikes), torch.tensor([[[1e-3]]]))


def test_by_nature_the_second_spike_is_not_counted():
    counts = []
    for cell in (norse.LIFCell(), SingleSpikeIFCell()):
        count, x = RegularizationCell(), torch.ones(5, 2) + 10
        z, state = cell(x)
        count(z, state)
        z, state = cell(x, state)
        counts.append(int(count(z, state)[1]))
    assert counts == [20, 10]


def test_by_nature_there_is_no_synaptic_current():
    assert SingleSpikeIFCell()(torch.ones(1, 2))[1]._fields == ("v",)
    with pytest.raises(ValueError, match="tau_syn_inv of LIFParameters"):
        SingleSpikeIFCell(norse.LIFParameters())


def test_by_nature_an_input_is_added_as_it_is():
    x = torch.ones(2, 1)
    torch.testing.assert_close(norse.LIFBoxCell()(x)[1].v, 0.1 * x)
    assert torch.equal(SingleSpikeIFCell()(x)[1].v, x)


def test_by_nature_a_threshold_is_not_below_the_start():
    with pytest.raises(ValueError, match="v_th must be at least 0"):
        SingleSpikeIFCell(norse.IAFParameters(v_th=torch.tensor([-0.5, 0.5])))


def test_on_purpose_a_new_state_asks_for_no_gradient():
    """In Norse it does, so that every run builds a graph; of IAF it is one tensor for the whole process."""
    assert norse.LIFCell()(torch.ones(2, 1))[0].requires_grad
    assert not SingleSpikeIFCell()(torch.ones(2, 1))[0].requires_grad
