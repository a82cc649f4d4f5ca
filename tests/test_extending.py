"""The page on extending: a neuron, a rule, a target and an encoder, in a folder outside the package."""

import importlib
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import naive
import pytest
import torch
from continuous_examples import random_layer, tensors, with_every_neuron
from marks import on_every_backend
from torch import nn

from ssnn_plugin import IF, ExpPSP, encode
from ssnn_plugin.functional import first_spike_conv2d, first_spike_linear
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear
from ssnn_plugin.rules import Rule
from ssnn_plugin.testing import SingleSpikeContract

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FILES = {
    name: code
    for section in PAGE.split("\n## ")
    for name, code in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", section, re.DOTALL)
    if "new method" not in section.partition("\n")[0]
}

# The page's own test of its rule, which pytest collects here.
CONTRACT = {"__name__": __name__, "SpikeLinear": SpikeLinear, "SingleSpikeContract": SingleSpikeContract}
exec(next(code for code in CODE if "class TestPatient" in code), CONTRACT)
TestPatient = CONTRACT["TestPatient"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The files of the page, where Python finds them: once, as what is imported anew is compiled anew."""
    folder = tmp_path_factory.mktemp("page")
    for name, code in FILES.items():
        (folder / name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        CONTRACT["Patient"] = importlib.import_module("patient").Patient
        yield folder
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_files_are_as_short_as_they_should_be():
    assert set(FILES) == {"saturating.py", "patient.py", "ladder.py", "logarithmic.py"}
    for code in FILES.values():
        lines = [line for line in code.splitlines() if line.strip() and "import" not in line]
        assert len(lines) <= 26


def test_they_are_used_as_the_page_says():
    names = {cls.__name__: cls for cls in (IF, SpikeConv2d, SpikeLinear, SingleSpikeContract)}
    for name in ("saturating", "patient"):
        names |= vars(importlib.import_module(name))
    usage = [code for code in CODE if "import" not in code]
    assert len(usage) == 3
    for code in usage:
        exec(code, names)
    assert repr(names["layer"].gradient) == "Patient(tau=10.0)"


def _example(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    times = 3 * torch.rand(6, 30, generator=generator, dtype=dtype)
    times[0, :5] = math.inf
    return times, 0.3 * torch.rand(7, 30, generator=generator, dtype=dtype) - 0.05


@on_every_backend
def test_the_neuron_is_the_exponential_one_times_tau(backend):
    """K = tau (1 - e^(-s / tau)) is the response of ExpPSP, tau times as high."""
    neuron = importlib.import_module("saturating").SaturatingRamp(0.7, tau=1.5)
    times, weight = _example()
    options = {"t_max": 6.0, "backend": backend, "return_potential": True}
    spikes, potential = first_spike_linear(times, weight, neuron, **options)
    expected, level = first_spike_linear(times, weight, ExpPSP(0.7 / 1.5, tau=1.5), **options)
    assert spikes.isfinite().sum() > 0
    torch.testing.assert_close(spikes, expected)
    torch.testing.assert_close(potential, 1.5 * level)


@on_every_backend
def test_the_neuron_has_exact_gradients(backend):
    neuron = importlib.import_module("saturating").SaturatingRamp(0.7, tau=1.5)
    times, weight = _example()
    bias = torch.full((7,), 0.02, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (times[1:3].clone(), weight, bias)]

    def layer(t, w, b):
        spikes, potential = first_spike_linear(
            t, w, neuron, bias=b, t_max=6.0, backend=backend, return_potential=True
        )
        return spikes[spikes.isfinite()], potential[spikes.isinf()]

    assert torch.autograd.gradcheck(layer, inputs)


def test_the_neuron_runs_in_every_layer_and_has_values_per_neuron():
    cls = importlib.import_module("saturating").SaturatingRamp
    layer = SpikeConv2d(2, 4, 3, cls(tau=2.0), t_max=8.0, groups=2, dtype=torch.float64)
    assert layer(3 * torch.rand(2, 2, 6, 6, dtype=torch.float64)).isfinite().any()
    times, weight = _example()
    tau = torch.linspace(1, 2, 7, dtype=torch.float64).requires_grad_()
    together = first_spike_linear(times, weight, cls(0.7, tau=tau), t_max=6.0)
    for j in (0, 6):
        alike = first_spike_linear(times, weight, cls(0.7, tau=float(tau[j])), t_max=6.0)
        torch.testing.assert_close(together[:, j], alike[:, j])
    together[together.isfinite()].sum().backward()
    assert tau.grad.all()


@pytest.mark.slow
def test_without_a_compiled_response_the_reference_kernels_run_it():
    cls = importlib.import_module("saturating").SaturatingRamp

    class Plain(cls):
        def compiled(self):
            return None

    times, weight = _example()
    options = {"t_max": 6.0}
    plain = first_spike_linear(times, weight, Plain(0.7), **options)
    torch.testing.assert_close(plain, first_spike_linear(times, weight, cls(0.7), **options))
    with pytest.raises(ValueError, match="backend 'cpu' needs a compiled response with 'propagators'"):
        first_spike_linear(times, weight, Plain(0.7), backend="cpu", **options)


@pytest.mark.slow
def test_what_is_compiled_for_the_neuron_does_not_stay_behind(folder, tmp_path):
    """The index of numba's cache names all types, and has to be readable where the file is gone."""
    # One of the functions that a layer's kernel is made of: the whole of it would be compiled no differently.
    code = "from ssnn_plugin import ExpPSP; from ssnn_plugin.kernels.cpu.currents import slope_after; "
    run = "slope_after({}.compiled(), 1.0, 1.0, 0.5)"
    page = shutil.copytree(folder, tmp_path / "page")
    paths = [str(page), *(path for path in sys.path if path != str(folder))]
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    own = "from saturating import SaturatingRamp; " + run.format("SaturatingRamp()")
    for line in (own, run.format("ExpPSP()")):
        subprocess.run([sys.executable, "-c", code + line], check=True, env=environment)
        (page / "saturating.py").unlink(missing_ok=True)
    assert len(list((tmp_path / "cache").rglob("currents.slope_after-*.nbc"))) == 1


@on_every_backend
def test_the_rule(backend):
    rule = importlib.import_module("patient").Patient(5.0)
    times, weight = (
        torch.tensor([[1.0, 3.0, 3.0, 6.0]]),
        torch.tensor([[0.5, 0.4, 0.4, 1.0]], requires_grad=True),
    )
    spikes = first_spike_linear(times, weight, IF(), t_max=8, gradient=rule, backend=backend)
    assert spikes.item() == 3
    spikes.sum().backward()
    torch.testing.assert_close(weight.grad, -math.exp(-3 / 5) * torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    spikes = first_spike_linear(times, weight, IF(), t_max=8, gradient=rule, backend=backend)
    (again,) = torch.autograd.grad(spikes, weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        again.sum().backward()


@on_every_backend
@with_every_neuron
def test_the_rule_goes_with_neurons_in_continuous_time(neuron, backend):
    """Its gradient is -rate(t) times what a unit weight adds to V at the crossing."""
    rule = importlib.import_module("patient").Patient(5.0)
    times, weight, bias, t_max = random_layer(4)
    t, w, b = tensors(times, weight, bias)
    spikes = first_spike_linear(
        t, w.requires_grad_(), neuron, bias=b, t_max=t_max, gradient=rule, backend=backend
    )
    fired = spikes.isfinite()
    assert fired.any()
    spikes[fired].sum().backward()
    since = (spikes.detach().unsqueeze(2) - t.unsqueeze(1)).nan_to_num(-1.0)
    response = torch.as_tensor(naive.response(neuron)(since.clamp(min=0).numpy()))
    response = torch.where((since > 0) & fired.unsqueeze(2), response, 0.0)
    rate = torch.where(fired, (-spikes.detach() / 5).exp(), 0.0)
    torch.testing.assert_close(w.grad, -(rate.unsqueeze(2) * response).sum(0))


def test_the_rule_in_a_convolution_and_its_name():
    rule = importlib.import_module("patient").Patient()
    layer = SpikeConv2d(1, 3, 3, IF(0.5), t_max=8, gradient=rule)
    assert "gradient=Patient(tau=10.0)," in repr(layer)
    spikes = layer(torch.randint(0, 8, (2, 1, 6, 6)).float())
    spikes[spikes.isfinite()].sum().backward()
    assert layer.weight.grad.any()
    times, weight = torch.randint(0, 8, (2, 1, 6, 6)).double(), torch.rand(3, 1, 3, 3).double()
    assert first_spike_conv2d(times, weight, IF(0.5), t_max=8, gradient=rule).shape == (2, 3, 4, 4)


def test_the_target_teaches():
    ladder = importlib.import_module("ladder")
    times, labels = torch.tensor([[4.0, math.inf, 2.0], [1.0, 1.0, 5.0]]), torch.tensor([0, 1])
    expected = torch.tensor([[2.0, 4.0, 3.0], [2.0, 1.0, 3.0]])
    assert torch.equal(ladder.ladder_targets(times, labels, 8), expected)
    torch.manual_seed(0)
    x, y = torch.rand(60, 20), torch.randint(0, 3, (60,))
    x[torch.arange(60), y] = 1.0
    layer = SpikeLinear(20, 3, IF(), t_max=16, silent_gradient=True)
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    losses = []
    for _ in range(60):
        loss = ladder.ladder_loss(layer(encode.latency(x, 16)), y, 16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_encoder():
    logarithmic = importlib.import_module("logarithmic").logarithmic
    times = logarithmic(torch.tensor([1.0, 0.1, 0.01, 0.0, 0.5]), 16)
    assert times.tolist() == [0.0, 8.0, math.inf, math.inf, 2.0]
    assert nn.Sequential(SpikeLinear(5, 2, IF(), t_max=16))(times).shape == (2,)


@on_every_backend
def test_a_rate_without_bound_at_silence_leaves_gradients_finite(backend):
    @dataclass(frozen=True)
    class Late(Rule):
        def rate(self, crossing):
            return 1 + crossing.at

    times, found = torch.tensor([[1.0, 3.0]]), []
    for neuron in (IF(), IF(torch.ones(2)), IF(beta=torch.ones(2))):
        if backend == "cpu" and "beta" in neuron.parameters:
            continue
        t, weight = times.clone().requires_grad_(), torch.tensor([[2.0, 1.0], [0.1, 0.1]], requires_grad=True)
        spikes = first_spike_linear(t, weight, neuron, t_max=8, gradient=Late(), backend=backend)
        assert spikes.tolist() == [[1.0, math.inf]]
        spikes.clamp(max=8).sum().backward()
        found.append((weight.grad, t.grad))
    for of_weight, of_times in found:
        assert of_weight.tolist() == [[-2.0, 0.0], [0.0, 0.0]]
        assert of_times.tolist() == [[4.0, 0.0]]


def test_a_neuron_in_continuous_time_has_no_delay():
    cls = importlib.import_module("saturating").SaturatingRamp

    class Delayed(cls):
        delay = 1

    with pytest.raises(ValueError, match="delay must be 0"):
        SpikeLinear(3, 2, Delayed(), t_max=8)
    with pytest.raises(ValueError, match=r"at most 80 time constants of 0\.05"):
        SpikeLinear(3, 2, cls(tau=0.05), t_max=8)


def test_layers_do_not_share_what_their_neurons_hold():
    neuron = IF(torch.ones(2))
    one, other = (SpikeLinear(3, 2, neuron, t_max=8) for _ in range(2))
    one.load_state_dict({"weight": one.weight, "threshold": torch.full((2,), 9.0)})
    assert other.threshold.tolist() == neuron.threshold.tolist() == [1.0, 1.0]
