import copy
import itertools
import math

import pytest
import torch
from torch.nn.utils import parametrize, prune

from ssnn_plugin import IF, ExpPSP, ReLPSP, functional, nn
from ssnn_plugin.testing import first_spikes_in_a_loop

INF = math.inf


def bins(*shape, seed=0, silent=0.3, t_max=8):
    generator = torch.Generator().manual_seed(seed)
    times = torch.randint(t_max, shape, generator=generator).double()
    return times.masked_fill(torch.rand(shape, generator=generator) < silent, INF)


def draw(layer, seed=0, low=-1.0, high=2.0):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(low, high, generator=torch.Generator().manual_seed(seed))
    return layer


def test_earliest_spike_is_the_minimum_of_a_loop():
    several = [bins(3, 4, seed=seed, silent=0.5) for seed in range(3)]
    expected = [min(values) for values in zip(*(times.flatten().tolist() for times in several), strict=True)]
    assert functional.earliest_spike(*several).flatten().tolist() == expected
    assert INF in expected


def test_earliest_spike_sends_the_gradient_to_the_earliest_and_of_ties_to_the_first():
    first = torch.tensor([1.0, 5.0, 3.0, INF, INF], requires_grad=True)
    second = torch.tensor([2.0, 4.0, 3.0, INF, 6.0], requires_grad=True)
    functional.earliest_spike(first, second).backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert first.grad.tolist() == [1.0, 0.0, 3.0, 4.0, 0.0]
    assert second.grad.tolist() == [0.0, 2.0, 0.0, 0.0, 5.0]


def test_earliest_spike_gradcheck():
    several = [(torch.rand(6, dtype=torch.float64) + 0.1).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(functional.earliest_spike, several)


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        ([], ValueError, "times must hold at least one tensor, got none"),
        ([torch.zeros(2), torch.zeros(3)], ValueError, r"times\[1\] must be .* shape \[2\], got .* \[3\]"),
        ([torch.zeros(2), torch.zeros(2).double()], ValueError, r"times\[1\] must be torch.float32"),
        ([torch.tensor([-1.0])], ValueError, r"times\[0\] must hold spike times .* \(-1\.0\)"),
        ([torch.zeros(2).half()], TypeError, r"times\[0\] must be float32 or float64"),
    ],
)
def test_earliest_spike_names_what_is_wrong(times, error, message):
    with pytest.raises(error, match=message):
        functional.earliest_spike(*times)


def test_earliest_spike_residual_by_hand():
    block = nn.SpikeLinear(2, 2, IF(1.0, delay=1), t_max=8)
    block.load_state_dict({"weight": torch.tensor([[2.0, 0.0], [2.0, 0.0]])})
    layer = nn.EarliestSpikeResidual(block)
    times = torch.tensor([[2.0, 5.0], [2.0, 3.0], [INF, 4.0], [INF, INF]], requires_grad=True)
    out = layer(times)  # the block fires a bin after the first input
    assert out.tolist() == [[2.0, 3.0], [2.0, 3.0], [INF, 4.0], [INF, INF]]
    out.backward(torch.ones(4, 2))
    assert block.weight.grad.tolist() == [[0.0, 0.0], [-2.0, 0.0]]  # the tie, in sample 1, is the block's
    assert times.grad[2].tolist() == [0.0, 1.0]


def test_earliest_spike_residual_refuses_a_block_that_changes_the_shape():
    layer = nn.EarliestSpikeResidual(nn.SpikeFlatten())
    with pytest.raises(ValueError, match=r"block must keep the shape .* \[2, 3, 1\], got \[2, 3\]"):
        layer(torch.zeros(2, 3, 1))


@pytest.mark.parametrize("neuron", [IF(1.0), IF(1.5, delay=1, beta=0.75)])
def test_added_current_is_one_more_weight_per_neuron(neuron):
    block = nn.AddedCurrentResidual(
        nn.SpikeLinear(5, 3, neuron, t_max=8, bias=True, dtype=torch.float64), 0.7
    )
    draw(block)
    times, shortcut = bins(20, 5), bins(20, 3, seed=1)
    spikes, potential = block(times, shortcut, return_potential=True)
    weight = torch.cat([block.connection.weight, 0.7 * torch.eye(3, dtype=torch.float64)], dim=1)
    together = torch.cat([times, shortcut], dim=1)
    expected = first_spikes_in_a_loop(together, weight, block.connection.bias, neuron, 8)
    assert torch.equal(spikes, expected[0])
    torch.testing.assert_close(potential, expected[1])
    assert torch.equal(block(times, shortcut), spikes)
    assert not torch.equal(block.connection(times), spikes)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("kernel_size", "padding", "dilation"),
    [(3, 1, 1), (3, "same", 1), (3, 2, 2), (2, "same", 1), (1, 0, 1), (1, "valid", 2), ((3, 1), (1, 0), 1)],
)
def test_added_current_of_a_convolution_stands_where_its_neuron_does(kernel_size, padding, dilation):
    connection = nn.SpikeConv2d(
        2, 3, kernel_size, IF(1.0), t_max=8, padding=padding, dilation=dilation, dtype=torch.float64
    )
    block = nn.AddedCurrentResidual(draw(connection), gain=1.25)
    times, shortcut = bins(4, 2, 5, 6), bins(4, 3, 5, 6, seed=1)
    alone = torch.full_like(times, INF)
    assert torch.equal(block(alone, shortcut), shortcut)  # 1.25 is above the threshold
    block.gain = 0.5
    assert block(alone, shortcut).isinf().all()

    options = {"padding": padding, "dilation": dilation}
    _, potential = block(times, shortcut, return_potential=True)
    currents = [
        torch.nn.functional.conv2d((times <= t).double(), connection.weight, **options)
        + 0.5 * (shortcut <= t).double()
        for t in range(8)
    ]
    v = torch.stack(currents)
    crossed = v > 1
    first = torch.where(crossed.any(0), crossed.int().argmax(0).double(), INF)
    assert torch.equal(block(times, shortcut), first)
    at = first.masked_fill(first.isinf(), 7).long().unsqueeze(0)
    torch.testing.assert_close(potential, v.gather(0, at).squeeze(0))


def test_added_current_gradients():
    torch.manual_seed(0)
    block = nn.AddedCurrentResidual(nn.SpikeLinear(4, 3, ReLPSP(1.0), t_max=50.0, dtype=torch.float64), 0.5)
    times, shortcut = (torch.rand(2, n, dtype=torch.float64).requires_grad_() for n in (4, 3))
    weight = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)

    def spikes(times, shortcut, weight):
        return torch.func.functional_call(block, {"connection.weight": weight}, (times, shortcut))

    assert spikes(times, shortcut, weight).isfinite().all()
    assert torch.autograd.gradcheck(spikes, (times, shortcut, weight))
    spikes(times, shortcut, weight).sum().backward()
    assert shortcut.grad.any()


def test_the_latency_rule_reaches_the_shortcut_with_its_gain():
    layer = nn.SpikeLinear(1, 2, IF(1.0), t_max=8, init_range=(0.75, 0.75))
    shortcut = torch.tensor([[4.0, 7.0]], requires_grad=True)
    out = nn.AddedCurrentResidual(layer, gain=0.5)(torch.tensor([[2.0]]), shortcut)
    out.backward(torch.tensor([[1.0, 2.0]]))
    assert out.tolist() == [[4.0, 7.0]]
    assert shortcut.grad.tolist() == [[0.5, 1.0]]
    assert layer.weight.grad.tolist() == [[-1.0], [-2.0]]


def test_dropout_leaves_the_shortcut_alone():
    layer = nn.SpikeLinear(50, 3, IF(1.0), t_max=8, dropout=0.9, init_range=(0.0, 0.0))
    block, shortcut = nn.AddedCurrentResidual(layer, gain=2.0), torch.full((20, 3), 3.0)
    assert torch.equal(block.train()(torch.zeros(20, 50), shortcut), shortcut)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 2}, "connection must have 1 group and a stride of 1, got SpikeConv2d"),
        ({"groups": 2}, "connection must have 1 group and a stride of 1, got SpikeConv2d"),
        ({"input_pool": nn.AveragePool(2)}, "connection must be without pools, got SpikeConv2d"),
        ({"output_pool": nn.AveragePool(2)}, "connection must be without pools, got SpikeConv2d"),
    ],
)
def test_connections_without_room_for_a_shortcut(options, message):
    with pytest.raises(ValueError, match=message):
        nn.AddedCurrentResidual(nn.SpikeConv2d(2, 2, 3, IF(), t_max=8, **options))


@pytest.mark.parametrize(
    ("kernel_size", "options", "shortcut", "message"),
    [
        (3, {}, (1, 2, 4, 4), r"padding must keep the size of the input .* got \(0, 0\) with a kernel of 3"),
        (3, {"padding": "valid"}, (1, 2, 4, 4), "padding must keep the size .* got 'valid'"),
        (3, {"padding": 2}, (1, 2, 4, 4), r"padding must keep the size .* got \(2, 2\)"),
        (2, {"padding": "same", "dilation": 2}, (1, 2, 4, 4), "must have a tap at its centre"),
        (3, {"padding": 1}, (1, 3, 4, 4), r"shortcut must have shape \[1, 2, 4, 4\], .*, got \[1, 3, 4, 4\]"),
        (3, {"padding": 1}, (1, 2, 4, 5), r"shortcut must have shape \[1, 2, 4, 4\], .*, got \[1, 2, 4, 5\]"),
    ],
)
def test_shapes_that_do_not_fit_a_shortcut(kernel_size, options, shortcut, message):
    block = nn.AddedCurrentResidual(nn.SpikeConv2d(2, 2, kernel_size, IF(), t_max=8, **options))
    with pytest.raises(ValueError, match=message):
        block(torch.zeros(1, 2, 4, 4), torch.zeros(shortcut))


def test_what_else_an_added_current_refuses():
    linear = nn.SpikeLinear(2, 3, IF(), t_max=8)
    with pytest.raises(TypeError, match="connection must be a SpikeLinear or SpikeConv2d, got Linear"):
        nn.AddedCurrentResidual(torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"gain must be finite and greater than 0, got 0\.0"):
        nn.AddedCurrentResidual(linear, gain=0.0)
    block = nn.AddedCurrentResidual(linear)
    with pytest.raises(ValueError, match=r"shortcut must have shape \[5, 3\], one per neuron, got \[5, 2\]"):
        block(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"times must have shape \[\*, in\] .* got \[5, 4\] and \[3, 2\]"):
        block(torch.zeros(5, 4), torch.zeros(5, 3))


def linear(**options):
    return draw(nn.SpikeLinear(4, 3, IF(1.0), t_max=8, dtype=torch.float64, **options))


def convolution():
    return draw(nn.SpikeConv2d(2, 3, 3, IF(1.0), t_max=8, dtype=torch.float64))


@pytest.mark.parametrize("build", [linear, convolution])
def test_standardized_weights_have_the_norm_and_mean_of_the_formula(build):
    layer = build()
    direction = [row.flatten().tolist() for row in layer.weight]
    parametrize.register_parametrization(layer, "weight", nn.WeightStandardization(2.0, shift=0.25))
    for row, v in zip(layer.weight, direction, strict=True):
        mean = sum(v) / len(v)
        norm = math.sqrt(sum((x - mean) ** 2 for x in v))
        expected = [2.0 * (x - mean) / norm + 0.25 for x in v]
        assert row.flatten().tolist() == pytest.approx(expected)
        assert row.mean().item() == pytest.approx(0.25)
        assert (row - 0.25).norm().item() == pytest.approx(2.0)


@pytest.mark.parametrize("build", [linear, convolution])
def test_standardization_can_start_from_the_weights_as_they_are(build):
    layer = build()
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", nn.WeightStandardization())
    torch.testing.assert_close(layer.weight.detach(), before)
    layer.weight = 3 * before
    torch.testing.assert_close(layer.weight.detach(), 3 * before)


def test_gain_and_shift_are_learned_per_output():
    layer = linear()
    parametrize.register_parametrization(layer, "weight", nn.WeightStandardization(1.0))
    shapes = {name: list(p.shape) for name, p in layer.named_parameters()}
    originals = [f"parametrizations.weight.original{n}" for n in range(3)]
    assert shapes == dict(zip(originals, [[3, 4], [3, 1], [3, 1]], strict=True))
    layer(bins(30, 4)).nan_to_num(posinf=0).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_standardization_gradcheck():
    part = nn.WeightStandardization()
    inputs = part.right_inverse(torch.randn(3, 2, 2, 2, dtype=torch.float64))
    assert torch.autograd.gradcheck(part, [tensor.clone().requires_grad_() for tensor in inputs])


def test_weights_without_spread_stay_finite():
    layer = linear()
    torch.nn.init.constant_(layer.weight, 0.5)
    parametrize.register_parametrization(layer, "weight", nn.WeightStandardization(2.0))
    assert (layer.weight == 0.5).all()
    layer.weight.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_standardization_refuses_a_gain_of_nothing():
    with pytest.raises(ValueError, match=r"gain must be finite and greater than 0, got 0\.0"):
        nn.WeightStandardization(0.0)


def fired(times):
    return times.isfinite().double().mean().item()


def model(neuron=None, **options):
    neuron = IF(1.0) if neuron is None else neuron
    options = {"t_max": 8.0, "init_range": (0.1, 1.0), "dtype": torch.float64} | options
    torch.manual_seed(0)
    return nn.SpikeSequential(
        nn.SpikeConv2d(1, 4, 3, neuron, **options),
        nn.EarliestSpikePool2d(2),
        nn.SpikeFlatten(),
        nn.SpikeLinear(16, 40, neuron, **options),
        nn.SpikeLinear(40, 30, neuron, **options),
    )


IMAGES = bins(20, 1, 6, 6, seed=5, silent=0.5)


def test_calibration_needs_samples():
    layer = nn.SpikeLinear(4, 3, IF(), t_max=8)
    with pytest.raises(ValueError, match=r"times must hold samples to calibrate on, got shape \[0, 4\]"):
        nn.calibrate(layer, torch.empty(0, 4), 0.5)
    with pytest.raises(ValueError, match=r"tolerance must be .* at least 0, got -1"):
        nn.calibrate(layer, torch.zeros(1, 4), 0.5, tolerance=-1)


def test_weights_that_are_computed_are_drawn_anew_too():
    layer = nn.SpikeLinear(4, 3, IF(), t_max=8)
    parametrize.register_parametrization(layer, "weight", nn.WeightStandardization())
    before = layer.parametrizations.weight.original0.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.parametrizations.weight.original0, before)


@pytest.mark.parametrize("neuron", [IF(1.0), IF(50.0, delay=1, beta=0.8), ReLPSP(1.0), ExpPSP(1.0)])
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_calibrated_layers_fire_as_wanted(neuron, fraction):
    # Kernels of this width are compiled for ramps in single precision anyway.
    dtype = torch.float64 if isinstance(neuron, IF) else torch.float32
    network = model(neuron, dtype=dtype)
    before = copy.deepcopy(network)
    reached = nn.calibrate(network, IMAGES.to(dtype), fraction, tolerance=0.02)
    assert list(reached) == ["0", "3", "4"]
    times = IMAGES.to(dtype)
    for name, layer in network.named_children():
        times = layer(times)
        if name in reached:
            assert fired(times) == reached[name] == pytest.approx(fraction, abs=0.02)
            factor = layer.weight / before.get_submodule(name).weight
            torch.testing.assert_close(factor, factor.flatten()[0].expand_as(factor))
            assert factor.flatten()[0] > 0


@pytest.mark.parametrize(
    "wrap", [list, iter, torch.nn.ModuleList, lambda layers: torch.nn.Sequential(*layers)]
)
def test_layers_can_be_given_in_several_ways(wrap):
    network, same = model(), model()
    assert nn.calibrate(network, IMAGES, 0.5) == nn.calibrate(wrap(list(same)), IMAGES, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))


def test_a_layer_that_fires_as_wanted_is_left_as_it_is():
    network = model()
    nn.calibrate(network, IMAGES, 0.4)
    before = copy.deepcopy(network.state_dict())
    nn.calibrate(network, IMAGES, 0.4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_calibration_scales_no_further_than_needed():
    """Half of the neurons fire with any large factor: the others have a negative weight."""
    layer = nn.SpikeLinear(1, 4, IF(1.0), t_max=8)
    signs = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    layer.load_state_dict({"weight": signs * 3})
    assert nn.calibrate([layer], torch.tensor([[3.0]]), 0.5) == {"0": 0.5}
    assert torch.equal(layer.weight, signs * 3)
    layer.load_state_dict({"weight": signs / 100})
    nn.calibrate([layer], torch.tensor([[3.0]]), 0.5)
    assert 1 <= layer.weight.max() <= 100


def test_calibration_runs_without_dropout_and_gives_the_mode_back():
    network, plain = model(dropout=0.5), model()
    network[3].eval()
    reached = nn.calibrate(network, IMAGES, 0.5)
    assert reached == nn.calibrate(plain, IMAGES, 0.5)
    assert [layer.training for layer in network] == [True, True, True, False, True]
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_calibration_goes_into_residual_blocks():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            options = {"t_max": 8.0, "init_range": (0.1, 1.0), "dtype": torch.float64}
            self.inner = nn.SpikeLinear(9, 9, IF(1.0), **options)
            self.residual = nn.AddedCurrentResidual(nn.SpikeLinear(9, 9, IF(1.0), **options), gain=0.5)
            self.outer = nn.EarliestSpikeResidual(nn.SpikeLinear(9, 9, IF(1.0), **options))

        def forward(self, times):
            return self.outer(self.residual(self.inner(times), times))

    block, times = Block(), bins(60, 9)
    reached = nn.calibrate(block, times, 0.6, tolerance=0.02)
    assert list(reached) == ["inner", "residual", "outer.block"]
    assert list(reached.values()) == [pytest.approx(0.6, abs=0.02)] * 3
    inner = block.inner(times)
    assert fired(block.residual(inner, times)) == reached["residual"]


def test_standardized_weights_are_calibrated_through_their_gain():
    network = model()
    parametrize.register_parametrization(network[3], "weight", nn.WeightStandardization())
    reached = nn.calibrate(network, IMAGES, 0.5)
    plain = model()
    assert reached["3"] == pytest.approx(nn.calibrate(plain, IMAGES, 0.5)["3"], abs=0.01)
    torch.testing.assert_close(network[3].weight, plain[3].weight)


def test_of_few_neurons_the_closest_is_taken():
    layer = nn.SpikeLinear(1, 3, IF(1.0), t_max=8)
    layer.load_state_dict({"weight": torch.tensor([[1.0], [2.0], [-1.0]])})
    assert nn.calibrate(layer, torch.tensor([[0.0]]), 0.4) == {"0": pytest.approx(1 / 3)}
    assert nn.calibrate(layer, torch.tensor([[0.0]]), 0.6) == {"0": pytest.approx(2 / 3)}
    assert 0 < layer.weight[0].item() / 1.0 < 1.1


def test_what_is_out_of_reach_is_said_and_left_alone():
    network = model()
    torch.nn.init.constant_(network[3].weight, -1.0)
    message = r"reach of layer '3' \(SpikeLinear\), of whose neurons 0 \.\.\. 0 fire .*, got 0\.5"
    with pytest.raises(ValueError, match=message):
        nn.calibrate(network, IMAGES, 0.5)
    assert (network[3].weight == -1).all()
    assert network.training
    assert network(IMAGES).isinf().all()
    assert not any(layer._forward_pre_hooks for layer in network)


def test_a_bias_that_fires_by_itself_is_out_of_reach_too():
    layer = nn.SpikeLinear(2, 5, IF(1.0), t_max=8, bias=True)
    torch.nn.init.constant_(layer.bias, 1.0)
    with pytest.raises(ValueError, match=r"of whose neurons 1 \.\.\. 1 fire"):
        nn.calibrate([layer], torch.zeros(3, 2), 0.5)


@pytest.mark.parametrize(
    ("layers", "fraction", "message"),
    [
        ([nn.SpikeLinear(2, 2, IF(), t_max=8)], 0.0, "fraction must be above 0 and at most 1, got 0.0"),
        ([nn.SpikeLinear(2, 2, IF(), t_max=8)], 1.5, "fraction must be above 0 and at most 1, got 1.5"),
        ([nn.SpikeFlatten()], 0.5, "layers must hold a connection such as SpikeLinear, got Sequential"),
        ([], 0.5, "layers must hold a connection"),
    ],
)
def test_bad_arguments_of_calibrate(layers, fraction, message):
    with pytest.raises(ValueError, match=message):
        nn.calibrate(layers, torch.zeros(3, 2), fraction)


def test_a_connection_that_is_never_called_is_named():
    class Forgetful(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = (nn.SpikeLinear(2, 2, IF(), t_max=8) for _ in range(2))

        def forward(self, times):
            return self.used(times)

    with pytest.raises(ValueError, match="layers must call every connection, got no call of 'unused'"):
        nn.calibrate(Forgetful(), torch.zeros(3, 2), 0.5)


@pytest.mark.parametrize("n", [3, 7, 58, 784])
@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_equal_weights_have_no_direction_however_they_round(n, value):
    layer = nn.SpikeLinear(n, 1, IF(), t_max=8)
    layer.assign_weight(torch.full((1, n), value))
    parametrize.register_parametrization(layer, "weight", nn.WeightStandardization(gain=1.0))
    torch.testing.assert_close(layer.weight, torch.full((1, n), value))


def test_nested_sequences_have_the_potential_of_the_last_one():
    layers = [nn.SpikeLinear(4, 3, IF(), t_max=8), nn.SpikeLinear(3, 2, IF(), t_max=8)]
    flat, nested = nn.SpikeSequential(*layers), nn.SpikeSequential(*map(nn.SpikeSequential, layers))
    times = torch.rand(5, 4) * 8
    for ours, theirs in zip(
        nested(times, return_potential=True), flat(times, return_potential=True), strict=True
    ):
        assert torch.equal(ours, theirs)
    decided = flat.decide(times).winner
    layers[0].register_forward_hook(lambda module, inputs, outputs: None)
    assert torch.equal(nested.decide(times).winner, decided)


def test_weights_are_assigned_beside_a_parametrized_bias():
    layer = nn.SpikeLinear(3, 2, IF(), t_max=8, bias=True)
    parametrize.register_parametrization(layer, "bias", torch.nn.Identity())
    layer.assign_weight(torch.ones(2, 3))
    assert torch.equal(layer.weight, torch.ones(2, 3))


def test_an_added_current_wants_a_connection_that_it_need_not_call():
    block = nn.AddedCurrentResidual(nn.SpikeLinear(5, 3, IF(1.0), t_max=8))
    times, shortcut = bins(4, 5).float(), bins(4, 3, seed=1).float()
    hook = block.connection.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="no forward and no hooks of its own"):
        block(times, shortcut)
    hook.remove()
    block(times, shortcut)
    prune.ln_structured(block.connection, "weight", amount=0.3, n=1, dim=0)
    with pytest.raises(TypeError, match="as pruned weights have"):
        block(times, shortcut)


def test_layers_with_common_weights_are_not_calibrated():
    layers = [nn.SpikeLinear(5, 5, IF(1.0), t_max=8) for _ in range(2)]
    layers[1].weight = layers[0].weight
    with pytest.raises(ValueError, match="'1' must have weights of its own, but has those of '0'"):
        nn.calibrate(layers, bins(20, 5).float(), 0.3)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_does_not_decide_what_fires_after_calibration(seed):
    """All inputs spike: every sample ends at the same V, and a neuron fires for all of them or none."""
    torch.manual_seed(seed)
    layers = [nn.SpikeLinear(20, 6, IF(1.0), t_max=16), nn.SpikeLinear(6, 3, IF(1.0), t_max=16)]
    network, times = nn.SpikeSequential(*layers), torch.rand(4, 20).mul(16).floor().repeat(16, 1)
    nn.calibrate(network, times, 0.3)
    assert torch.equal(nn.InBins(network)(times), network(times))


def test_a_rule_by_its_short_name_can_be_set_and_shown():
    layer = nn.SpikeLinear(2, 1, IF(1.0), t_max=8)
    layer.gradient = "surrogate"
    assert "gradient='surrogate'" in repr(layer)


@pytest.mark.parametrize("fraction", [0.2, 0.3, 0.5, 0.7])
def test_layers_that_are_steep_in_their_weights_are_calibrated_to_tolerance(fraction):
    torch.manual_seed(0)
    layer = nn.SpikeLinear(784, 500, IF(100.0), t_max=16, init_range=(0.5, 1.0))
    assert nn.calibrate(layer, bins(2, 784).float(), fraction)["0"] == pytest.approx(fraction, abs=0.01)


@pytest.mark.parametrize("threshold", [1.0, 2.0, 4.0])
def test_a_fraction_that_rounding_alone_gives_is_not_taken(threshold):
    """Sums of the same numbers in another order: all 24 tie at factors 1, 2 and 4."""
    weight = torch.tensor(list(itertools.permutations([0.1, 0.2, 0.3, 0.4])))
    layer = nn.SpikeLinear(4, 24, IF(threshold), t_max=8)
    layer.assign_weight(weight)
    assert nn.calibrate(layer, torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 2 / 24)["0"] == 0
