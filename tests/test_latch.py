"""The latch of a spike over the bins of a window, against naive loops and autograd's own chain."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssnn_plugin import surrogate
from ssnn_plugin.functional import bins_to_times, latch, times_to_bins
from ssnn_plugin.functional.bins import delayed, integrate, potential_at_crossing
from ssnn_plugin.kernels import latch as operators

RULES = [surrogate.Arctan(2.0), surrogate.Triangle(1.5), surrogate.EscapeNoise(0.5)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def potentials(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).to(dtype)


def naive_latch(v, threshold):
    """Bin by bin, neuron by neuron."""
    out = torch.zeros_like(v)
    for n in range(v[0].numel()):
        fired = False
        for t in range(len(v)):
            fired = fired or v.reshape(len(v), -1)[t, n].item() > threshold
            out.reshape(len(v), -1)[t, n] = float(fired)
    return out


def naive_surrogate_grad(v, grad, threshold, rule):
    """What arrives in a bin goes to the bin of the highest V so far, times the surrogate there."""
    flat, incoming = v.reshape(len(v), -1), grad.reshape(len(v), -1)
    out = torch.zeros_like(flat)
    for n in range(flat.shape[1]):
        highest = 0
        for t in range(len(v)):
            if flat[t, n] > flat[highest, n]:
                highest = t
            out[highest, n] += incoming[t, n]
    return (out * rule.derivative(flat - threshold)).reshape(v.shape)


def in_plain_torch(rule, v, grad):
    """The gradient of `RULES` by the operators' own references."""
    operator, number = {
        surrogate.Arctan: (operators._latch_grad_arctan, 2.0),
        surrogate.Triangle: (operators._latch_grad_triangle, 1.5),
        surrogate.EscapeNoise: (operators._latch_grad_escape, 0.5),
    }[type(rule)]
    return operator(v, grad, 0.75, number)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_are_those_of_a_naive_loop(dtype):
    v = potentials(6, 3, 5, dtype=dtype)
    assert torch.equal(latch(v, 0.75), naive_latch(v, 0.75))


def test_exactly_at_the_threshold_nothing_fires():
    assert latch(torch.tensor([[1.0], [1.0]]), 1.0).sum() == 0


def test_nan_does_not_fire_and_does_not_spread():
    v = torch.tensor([[math.nan, 2.0], [2.0, 0.0]])
    assert latch(v).tolist() == [[0.0, 1.0], [1.0, 1.0]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 100), st.booleans())
def test_surrogate_gradient_of_any_shape_with_ties_is_that_of_a_naive_loop(bins, neurons, seed, ties):
    v = potentials(bins, neurons, seed=seed)
    v = (v.round() if ties else v).requires_grad_()
    grad, rule = potentials(bins, neurons, seed=seed + 1), RULES[0]
    latch(v, 0.75, rule).backward(grad)
    expected = naive_surrogate_grad(v.detach(), grad, 0.75, rule)
    torch.testing.assert_close(v.grad, expected, rtol=1e-12, atol=1e-12)


def test_more_neurons_than_a_block_holds():
    v, grad = potentials(3, 1500).requires_grad_(), potentials(3, 1500, seed=1)
    latch(v, 0.75).backward(grad)
    expected = naive_surrogate_grad(v.detach(), grad, 0.75, surrogate.Arctan())
    torch.testing.assert_close(v.grad, expected, rtol=1e-12, atol=1e-12)


def test_escape_noise_is_autograds_own_chain_through_the_survival():
    v, grad = potentials(5, 7).requires_grad_(), potentials(5, 7, seed=1)
    survival = torch.cumprod(1 - torch.sigmoid((v - 0.75) / 0.5), 0)
    (expected,) = torch.autograd.grad(1 - survival, v, grad)
    (actual,) = torch.autograd.grad(latch(v, 0.75, surrogate.EscapeNoise(0.5)), v, grad)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", [surrogate.Arctan(3.0), surrogate.Triangle(0.7)], ids=repr)
def test_a_surrogate_has_unit_area(rule):
    distance = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    assert torch.trapezoid(rule.derivative(distance), distance).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "channels last", "transposed"])
def test_compiled_passes_equal_plain_torch_in_every_layout(rule, dtype, layout):
    v, grad = potentials(4, 2, 3, 5, 6, dtype=dtype), potentials(4, 2, 3, 5, 6, dtype=dtype, seed=1)
    if layout == "channels last":
        v = v.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 2))
    if layout == "transposed":
        v = v.transpose(0, 1).contiguous().transpose(0, 1)
    leaf = v.requires_grad_()
    out = latch(leaf, 0.75, rule)
    assert torch.equal(out, operators._latch(v, 0.75))
    (actual,) = torch.autograd.grad(out, leaf, grad)
    expected = in_plain_torch(rule, v.double(), grad.double())
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_rule_of_ones_own_needs_its_derivative_alone():
    class FastSigmoid(surrogate.Surrogate):
        def derivative(self, distance):
            return 1 / (10 * distance.abs() + 1) ** 2

    v, grad = potentials(4, 9).requires_grad_(), potentials(4, 9, seed=1)
    latch(v, 0.75, FastSigmoid()).backward(grad)
    expected = naive_surrogate_grad(v.detach(), grad, 0.75, FastSigmoid())
    torch.testing.assert_close(v.grad, expected, rtol=1e-12, atol=1e-12)


def test_a_learned_threshold_moves_against_the_potential():
    v, threshold = potentials(4, 3).requires_grad_(), torch.tensor([0.5, 0.75, 1.0], dtype=torch.float64)
    threshold.requires_grad_()
    latch(v, threshold).backward(potentials(4, 3, seed=1))
    torch.testing.assert_close(threshold.grad, -v.grad.sum(0))


@pytest.mark.parametrize(
    ("operator", "numbers"),
    [
        (operators.latch_grad, ()),
        (operators.latch_grad_arctan, (0.75, 2.0)),
        (operators.latch_grad_triangle, (0.75, 1.5)),
        (operators.latch_grad_escape, (0.75, 0.5)),
    ],
)
def test_operators_are_registered_as_torch_wants_them(operator, numbers):
    v = potentials(4, 3, 5)
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(operators.latch, (v, 0.75), test_utils=checks)
    torch.library.opcheck(operator, (v, potentials(4, 3, 5, seed=1), *numbers), test_utils=checks)


def test_a_compiled_graph_has_the_same_gradient():
    def learn(v):
        return bins_to_times(latch(v, 0.75)).clamp(max=4).sum()

    plain, compiled = potentials(4, 9).requires_grad_(), potentials(4, 9).requires_grad_()
    learn(plain).backward()
    torch.compile(learn, fullgraph=True, backend="aot_eager")(compiled).backward()
    assert torch.equal(plain.grad, compiled.grad)


def test_times_go_to_bins_and_back():
    times = torch.tensor([[0.0, 3.0, 4.0, math.inf]])
    bins = times_to_bins(times, t_max=4)
    assert bins.shape == (4, 1, 4)
    assert bins_to_times(bins).tolist() == [[0.0, 3.0, math.inf, math.inf]]


def test_every_bin_of_a_time_is_worth_one_bin_silent_or_not():
    bins = times_to_bins(torch.tensor([1.0, math.inf]), t_max=3).requires_grad_()
    bins_to_times(bins).backward(torch.tensor([2.0, 3.0]))
    assert bins.grad.tolist() == [[-2.0, -3.0]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([0.5]), 4), "whole bins"),
        ((torch.tensor([-1.0]), 4), "negative"),
        ((torch.tensor([math.nan]), 4), "NaN"),
        ((torch.tensor([0.0]), 0), "t_max must be a whole number"),
        ((torch.tensor([0.0]), 2.5), "t_max must be a whole number"),
    ],
)
def test_times_that_have_no_bin_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        times_to_bins(*arguments)


def test_what_cannot_latch_is_refused():
    with pytest.raises(ValueError, match=r"potentials must have shape \[T >= 1, \*\], got \[0, 3\]"):
        latch(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        latch(torch.zeros(1, 3), math.nan)
    with pytest.raises(TypeError, match=r"potentials must be floating, got torch.int64"):
        latch(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(TypeError, match=r"gradient must be a rule of ssnn_plugin\.surrogate"):
        latch(torch.zeros(2, 3), gradient="arctan")
    with pytest.raises(ValueError, match=r"activations must have shape \[T >= 1, \*\]"):
        bins_to_times(torch.zeros(0, 3))


@pytest.mark.parametrize("kind", [surrogate.Arctan, surrogate.Triangle, surrogate.EscapeNoise])
def test_rules_have_positive_scales(kind):
    with pytest.raises(ValueError, match="must be finite and greater than 0, got 0"):
        kind(0)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_potentials_with_bias_and_leak_are_those_of_a_loop(beta):
    currents, bias = potentials(4, 2, 3), potentials(3)
    v, expected, before = torch.zeros(2, 3, dtype=torch.float64), [], torch.zeros(2, 3, dtype=torch.float64)
    for t in range(6):
        now = currents[min(t, 3)]
        v, before = beta * v + (now - before) + bias, now
        expected.append(v)
    torch.testing.assert_close(integrate(currents, 6, bias, beta), torch.stack(expected))


def test_a_delay_longer_than_the_window_silences():
    bins = torch.ones(3, 2)
    assert delayed(bins, 1).tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    assert delayed(bins, 5).sum() == 0
    assert delayed(bins, 5).shape == bins.shape


def test_potential_at_the_crossing_or_at_the_end():
    v = torch.tensor([[2.0, 0.0], [5.0, 0.5]])
    assert potential_at_crossing(v, latch(v)).tolist() == [2.0, 0.5]


def with_nan(where):
    """Potentials of which one bin is NaN, and gradients."""
    v = potentials(4, 6)
    v[where] = math.nan
    return v.requires_grad_(), potentials(4, 6, seed=1)


@pytest.mark.parametrize("rule", RULES[:2], ids=repr)
@pytest.mark.parametrize("where", [0, 1, 3])
def test_nan_takes_no_gradient_from_other_bins(rule, where):
    v, grad = with_nan(where)
    (found,) = torch.autograd.grad(latch(v, 0.75, rule), v, grad)
    expected = naive_surrogate_grad(v.detach().nan_to_num(nan=-math.inf), grad, 0.75, rule)
    others = torch.arange(4) != where
    torch.testing.assert_close(found[others], expected[others])


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("where", [0, 1, 3])
def test_compiled_passes_take_nan_as_plain_torch_does(rule, where):
    v, grad = with_nan(where)
    (found,) = torch.autograd.grad(latch(v, 0.75, rule), v, grad)
    torch.testing.assert_close(found, in_plain_torch(rule, v.detach(), grad), equal_nan=True)
