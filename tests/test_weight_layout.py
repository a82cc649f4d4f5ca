"""`SpikeLinear` keeps its weights as the kernels read them, row by row of inputs: nothing else may notice."""

import copy
import io
import pickle

import pytest
import torch

from ssnn_plugin import IF
from ssnn_plugin.nn import SpikeLinear

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam of all at once": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "fused adam": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
}


def _layer(out=7, seed=0):
    torch.manual_seed(seed)
    return SpikeLinear(5, out, IF(1.0), t_max=8, init_range=(-0.2, 0.8), silent_gradient=True)


def _usual(layer):
    """A copy of the layer whose weights lie as those of `torch.nn.Linear`."""
    copied = copy.deepcopy(layer)
    copied.weight.data = copied.weight.data.contiguous()
    return copied


def _times():
    generator = torch.Generator().manual_seed(1)
    times = torch.randint(0, 9, (6, 5), generator=generator).float()
    return times.masked_fill(times == 8, torch.inf)


def _learn(layer, optimizer):
    layer.zero_grad()
    times = layer(_times())
    torch.where(times.isfinite(), times, 8).sum().backward()
    optimizer.step()


def test_weight_and_gradient_lie_row_by_row_of_inputs():
    layer = _layer()
    assert layer.weight.shape == (7, 5)
    assert layer.weight.stride() == (1, 7)
    _learn(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    assert layer.weight.grad.stride() == (1, 7)
    usual = _usual(_layer())
    _learn(usual, torch.optim.SGD(usual.parameters(), lr=0.1))
    assert usual.weight.grad.stride() == (5, 1)
    assert torch.equal(usual.weight.grad, layer.weight.grad)


def test_what_is_drawn_does_not_depend_on_the_layout():
    torch.manual_seed(0)
    expected = torch.empty(7, 5).uniform_(-0.2, 0.8)
    assert torch.equal(_layer().weight, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_take_the_same_steps(name):
    layer = _layer()
    usual = _usual(layer)
    for each in (layer, usual):
        optimizer = OPTIMIZERS[name](each.parameters())
        for _ in range(3):
            _learn(each, optimizer)
    assert usual.weight.stride() == (5, 1)
    assert not torch.equal(layer.weight, _layer().weight)
    torch.testing.assert_close(layer.weight, usual.weight)


def test_lbfgs_takes_the_usual_layout():
    layer = _usual(_layer())
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.01, max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = layer(_times()).clamp(max=8).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert layer.weight.stride() == (5, 1)


def _saved_and_loaded(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = _layer(seed=1)
    other.load_state_dict(torch.load(file))
    return other


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), _saved_and_loaded],
    ids=["deepcopy", "pickle", "state dict"],
)
def test_copies_keep_the_layout(copied):
    layer = _layer()
    other = copied(layer)
    assert other.weight.stride() == (1, 7)
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other(_times()), layer(_times()))


def test_weights_of_the_usual_layout_are_loaded_as_they_are():
    layer, other = _layer(), _layer(seed=1)
    other.load_state_dict({"weight": layer.weight.detach().contiguous()})
    assert other.weight.stride() == (1, 7)
    assert torch.equal(other.weight, layer.weight)


def test_another_precision_keeps_the_layout():
    layer = _layer().double()
    assert layer.weight.stride() == (1, 7)
    assert layer(_times().double()).dtype == torch.float64
    assert torch.equal(layer.float().weight, _layer().weight)


def test_gradients_of_torch_func_lie_as_the_weights():
    """Fused optimizers take for granted that they do."""
    layers = _layer(), _layer()
    for layer, fused in zip(layers, (True, False), strict=True):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, fused=fused)

        def late(parameters, layer=layer):
            times = torch.func.functional_call(layer, parameters, (_times(),))
            return torch.where(times.isfinite(), times, 8).sum()

        for _ in range(3):
            gradients = torch.func.grad(late)({"weight": layer.weight.detach()})
            layer.weight.grad = gradients["weight"]
            assert layer.weight.grad.stride() == (1, 7)
            optimizer.step()
    assert not torch.equal(layers[0].weight, _layer().weight)
    torch.testing.assert_close(layers[0].weight, layers[1].weight)
