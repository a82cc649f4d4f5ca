"""The description of `IF`."""

import math
import re
import warnings

import pytest
import torch

from ssnn_plugin import IF, UnencodedInputWarning, nn
from ssnn_plugin.functional import first_spike_linear

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -1.0}, "threshold must be finite and at least 0, got -1.0"),
        ({"threshold": NAN}, "threshold must be finite and at least 0, got nan"),
        ({"threshold": INF}, "threshold must be finite and at least 0, got inf"),
        ({"delay": -1}, "delay must be a whole number of bins >= 0, got -1"),
        ({"delay": 0.5}, "delay must be a whole number of bins >= 0, got 0.5"),
        ({"delay": NAN}, "delay must be a whole number of bins >= 0, got nan"),
        ({"delay": INF}, "delay must be a whole number of bins >= 0, got inf"),
        ({"beta": -0.1}, r"beta must lie in 0 \.\.\. 1, got -0\.1"),
        ({"beta": 1.5}, r"beta must lie in 0 \.\.\. 1, got 1\.5"),
        ({"beta": NAN}, r"beta must lie in 0 \.\.\. 1, got nan"),
    ],
)
def test_bad_neurons_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        IF(**arguments)


def test_neurons_are_values():
    assert IF(2.0, delay=1) == IF(threshold=2.0, delay=1) != IF(2.0)
    assert IF(2.0) != IF(2.0, beta=0.5)
    assert len({IF(), IF(1.0, delay=0, beta=1.0)}) == 1
    assert eval(repr(IF(2.5, delay=1, beta=0.9))) == IF(2.5, delay=1, beta=0.9)


@pytest.mark.parametrize("options", [{"delay": 1}, {"beta": 0.5}])
def test_float32_has_no_odd_bins_beyond_2_to_the_24(options):
    times, weight = torch.tensor([[2.0**24 - 2]]), torch.tensor([[2.0]])
    neuron = IF(1.0, **options)
    with pytest.raises(ValueError, match=r"t_max must be at most 2\*\*24 for float32, .* Use float64"):
        first_spike_linear(times, weight, neuron, t_max=2**24 + 1)
    if "delay" in options:
        assert first_spike_linear(times, weight, neuron, t_max=2**24).item() == 2**24 - 1
    late = torch.tensor([[2.0**24]], dtype=torch.float64)
    spikes = first_spike_linear(late, weight.double(), IF(1.0, delay=1), t_max=2**25)
    assert spikes.item() == 2**24 + 1


@pytest.mark.parametrize("name", ["threshold", "beta", "delay"])
@pytest.mark.parametrize("value", ["1", None])
def test_what_is_no_number_is_named(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a number, got {value!r}"):
        IF(**{name: value})


@pytest.mark.parametrize("name", ["threshold", "beta"])
def test_a_tensor_without_a_dimension_is_named(name):
    with pytest.raises(ValueError, match=f"{name} must be a number or hold one per neuron, got .* \\[\\]"):
        IF(**{name: torch.tensor(0.9)})


@pytest.mark.parametrize(("name", "bad"), [("threshold", -3.0), ("beta", 1.5), ("threshold", math.nan)])
def test_the_value_that_is_wrong_is_the_one_shown(name, bad):
    with pytest.raises(ValueError, match=f"{name} must .* for every neuron, got {bad}"):
        IF(**{name: torch.tensor([0.5, bad, 0.25])})


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_images_in_the_place_of_spike_times_are_told(shape):
    layer = nn.SpikeLinear(4, 2, IF(), t_max=16)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UnencodedInputWarning, match=re.escape("ssnn_plugin.encode.latency(images, t_max=16)")):
        layer(images)


@pytest.mark.parametrize(
    ("times", "t_max"),
    [
        ([0.0, 1.0, 1.0, 0.0], 16),  # whole bins
        ([0.5, 0.2, 1.0, math.inf], 16),  # no pixel is silent
        ([0.5, 0.2, 1.5, 0.0], 16),
        ([0.5, 0.2, 1.0, 0.0], 1),  # a window that they fill
    ],
)
def test_early_spike_times_are_not_taken_for_images(times, t_max):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnencodedInputWarning)
        nn.SpikeLinear(4, 2, IF(), t_max=t_max)(torch.tensor([times]))


def test_what_a_layer_has_computed_is_not_taken_for_an_image():
    times = torch.tensor([[0.5, 0.2, 1.0, 0.0]], requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnencodedInputWarning)
        nn.SpikeLinear(4, 2, IF(), t_max=16)(times)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_count_until_the_next_number_after_the_crossing(dtype):
    mantissas = torch.rand(10000, generator=torch.Generator().manual_seed(0), dtype=dtype) + 1
    crossing = torch.cat(
        [mantissas, torch.ones(40, dtype=dtype), 2 - torch.finfo(dtype).eps * torch.arange(1, 40)]
    )
    crossing = torch.ldexp(crossing, torch.arange(len(crossing)) % 60 - 30).to(dtype)
    infinity = torch.full((1,), math.inf, dtype=dtype)
    until = IF().until(torch.cat([crossing, infinity]), 2.0**31, silent=False)
    assert torch.equal(until[:-1], torch.nextafter(crossing, infinity))
    assert until[-1].isnan()
    assert IF().until(torch.zeros(1, dtype=dtype), 8.0, silent=False) > 0
    assert IF().until(infinity, 8.0, silent=True) == 8
