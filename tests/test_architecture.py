"""Networks as papers write them."""

import pytest
import torch
from torch import nn

from reproductions.errors import SuiteError
from reproductions.methods.architecture import Convolution, Pool, build_stages, neuron_layers, parse
from ssnn_plugin import IF
from ssnn_plugin.nn import AveragePool, EarliestSpikePool2d, SpikeConv2d, SpikeLinear


def _build(layers, shape=(2, 8, 6), classes=3):
    built = []

    def linear(number, in_features, out_features, pool):
        built.append((number, in_features, out_features))
        return SpikeLinear(in_features, out_features, IF(), t_max=8, input_pool=pool)

    def convolution(number, channels, layer, pool):
        built.append((number, channels, layer))
        options = {"stride": layer.stride, "padding": layer.padding, "input_pool": pool}
        return SpikeConv2d(channels, layer.channels, layer.kernel, IF(), t_max=8, **options)

    return build_stages(layers, shape, classes, linear, convolution), built


@pytest.mark.parametrize(
    ("written", "layer"),
    [
        ("16C5", Convolution(16, 5, 1, 0)),
        ("8C3s2p1", Convolution(8, 3, 2, 1)),
        ("8C3p1", Convolution(8, 3, 1, 1)),
        ("P2", Pool(2, 2)),
        ("500", 500),
    ],
)
def test_layers_are_read(written, layer):
    assert parse(written) == layer


@pytest.mark.parametrize(
    "written",
    ["", "0", "C5", "16c5", "16C5p1s2", "P", "M2", "5.0", "-3", "16C5 ", "P0", "A0", "16C0", "0C3", "16C3s0"],
)
def test_other_writings_are_refused(written):
    with pytest.raises(ValueError, match="a layer must be written as '16C5'"):
        parse(written)


def test_a_network_is_built_layer_by_layer():
    layers = ["4C3p1", "P2", "5C3s2p1", "7"]
    stages, built = _build(layers)
    assert neuron_layers(layers) == 3
    assert built == [
        (0, 2, Convolution(4, 3, 1, 1)),
        (1, 4, Convolution(5, 3, 2, 1)),
        (2, 5 * 2 * 2, 7),
        (3, 7, 3),
    ]
    assert [type(module) for module in stages[0].after] == [EarliestSpikePool2d]
    times = torch.randint(0, 8, (4, 2 * 8 * 6)).float()
    shapes = []
    for stage in stages:
        spikes = stage.neurons(times)
        shapes.append(tuple(spikes.shape[1:]))
        times = stage.after(spikes)
    assert shapes == [(4, 8, 6), (5, 2, 2), (7,), (3,)]


def test_a_fully_connected_network_takes_the_flat_image():
    stages, built = _build(["5"])
    assert built == [(0, 96, 5), (1, 5, 3)]
    assert stages[1].neurons(stages[0].neurons(torch.zeros(2, 96))).shape == (2, 3)
    assert not any(isinstance(module, nn.Flatten) for stage in stages for module in stage.modules())


def test_outputs_right_behind_a_convolution_see_it_flat():
    stages, built = _build(["4C3s2"])
    assert built[-1] == (1, 4 * 3 * 2, 3)
    assert stages[0].after(stages[0].neurons(torch.zeros(2, 96))).shape == (2, 24)


@pytest.mark.parametrize("layers", [["4C7"], ["4C3", "P5"], ["4C3", "P2", "4C4"]])
def test_a_layer_that_does_not_fit_is_named(layers):
    with pytest.raises(SuiteError, match=f"network.layers: '{layers[-1]}' does not fit what is left"):
        _build(layers)


def test_an_average_pool_is_part_of_the_layer_behind():
    stages, built = _build(["4C3p1", "A2", "5C3", "A2", "7"], shape=(2, 12, 12))
    modules = [module for stage in stages for module in stage.neurons.modules()]
    pools = [module.input_pool for module in modules if hasattr(module, "input_pool")]
    assert pools == [None, AveragePool(2), AveragePool(2), None]
    assert [entry[:2] for entry in built] == [(0, 2), (1, 4), (2, 5 * 2 * 2), (3, 7)]
    times = torch.rand(3, 2 * 12 * 12).mul(8).floor()
    for stage in stages:
        times = stage.after(stage.neurons(times))
    assert times.shape == (3, 3)
