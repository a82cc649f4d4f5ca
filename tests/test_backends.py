"""Which backend carries out the kernels."""

import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from marks import DTYPES

from ssnn_plugin import IF, LIF, AlphaPSP, ExpPSP, ReLPSP, WindowedRamp
from ssnn_plugin.functional import first_spike_linear
from ssnn_plugin.kernels import backends, reference
from ssnn_plugin.kernels.backends import BACKENDS, Backend, select

CPU, GPU = torch.device("cpu"), torch.device("cuda")
needs_triton = pytest.mark.skipif(not BACKENDS["triton"].installed, reason="needs triton")


class WithoutDecay(ExpPSP):
    """Of a third party, that knows the CPU's kernels only."""

    def compiled(self):
        class Response(type(super().compiled())):
            decay = property()

        return Response(self.tau)


class WithoutResponse(ExpPSP):
    def compiled(self):
        return None


@pytest.mark.parametrize(
    "neuron", [None, IF(), IF(beta=0.5), ReLPSP(), ExpPSP(), AlphaPSP(), LIF(tau_mem=3.0)]
)
@needs_triton
def test_the_fastest_on_the_device(neuron):
    assert select(None, CPU, torch.float32, neuron) == "cpu"
    assert select(None, GPU, torch.float32, neuron) == "triton"
    assert select(None, torch.device("mps"), torch.float32, neuron) == "reference"
    for name, device in (("cpu", CPU), ("triton", GPU), ("reference", CPU), ("reference", GPU)):
        assert select(name, device, torch.float32, neuron) == name


@needs_triton
def test_a_neuron_whose_response_does_not_say_the_decay_runs_on_the_reference():
    assert select(None, CPU, torch.float32, WithoutDecay()) == "cpu"
    assert select(None, GPU, torch.float32, WithoutDecay()) == "reference"
    with pytest.raises(ValueError, match=r"backend 'triton' needs a compiled response with 'decay'"):
        select("triton", GPU, torch.float32, WithoutDecay())


def test_a_neuron_without_a_compiled_response_runs_on_the_reference():
    for device in (CPU, GPU):
        assert select(None, device, torch.float32, WithoutResponse()) == "reference"


def test_a_backend_whose_package_is_missing_is_passed_over_and_named_when_asked_for(monkeypatch):
    missing = Backend("triton", device_types=("cuda",), response="decay", requires="no_such_package")
    monkeypatch.setitem(backends.BACKENDS, "triton", missing)
    assert select(None, GPU, torch.float32, IF()) == "reference"
    assert select(None, torch.device("meta"), torch.float32, IF()) == "cpu"
    with pytest.raises(ValueError, match=r"backend 'triton' needs the package 'no_such_package'.* use None"):
        select("triton", GPU, torch.float32, IF())


@pytest.fixture
def called(monkeypatch):
    """What is called of a backend `single` of one type of numbers, which comes before the reference."""
    names = []

    def noting(name):
        def kernel(*arguments):
            names.append(name)
            return getattr(reference, name)(*arguments)

        return kernel

    kernels = {name: noting(name) for name in ("first_spike", "weight_grad", "input_grad")}
    monkeypatch.setitem(sys.modules, "ssnn_plugin.kernels.single", SimpleNamespace(**kernels))
    single = Backend("single", device_types=("cpu",), dtypes=(torch.float32,))
    known = {"single": single, "reference": BACKENDS["reference"]}
    with mock.patch.dict(BACKENDS, known, clear=True):
        yield names


@pytest.mark.parametrize("neuron", [IF(0.5), ReLPSP(0.5)], ids=repr)
def test_a_type_that_no_fast_backend_computes_in_runs_on_the_reference(called, neuron):
    def gradients(dtype):
        times, weight = torch.arange(3.0, dtype=dtype)[None], torch.ones(2, 3, dtype=dtype)
        inputs = times.requires_grad_(), weight.requires_grad_()
        return torch.autograd.grad(first_spike_linear(*inputs, neuron, t_max=8).sum(), inputs)

    in_double = gradients(torch.float64)
    assert called == []
    in_single = gradients(torch.float32)
    assert sorted(called) == ["first_spike", "input_grad", "weight_grad"]
    for one, other in zip(in_single, in_double, strict=True):
        assert (one.dtype, other.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(one.double(), other)


@pytest.mark.parametrize("neuron", [IF(0.5), WindowedRamp(start=1.0)], ids=repr)
def test_a_type_that_the_named_backend_does_not_compute_in_is_refused(called, neuron):
    times, weight = torch.zeros(1, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    refused = "backend 'single' computes in torch.float32, times are torch.float64: use None"
    with pytest.raises(ValueError, match=refused):
        first_spike_linear(times, weight, neuron, t_max=8, backend="single")
    first_spike_linear(times.float(), weight.float(), neuron, t_max=8, backend="single")


def test_a_layer_compiles_in_one_graph_before_any_other_has_run():
    """When nothing that is looked up once has been."""
    fresh = {name: replace(backend) for name, backend in BACKENDS.items()}
    times, weight = torch.zeros(1, 3), torch.ones(2, 3)
    with mock.patch.dict(BACKENDS, fresh, clear=True):
        compiled = torch.compile(first_spike_linear, backend="eager", fullgraph=True)
        assert compiled(times, weight, IF(0.5), t_max=8).tolist() == [[0, 0]]


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_computes_in_single_and_double_precision(name):
    assert all(BACKENDS[name].computes_in(dtype) for dtype in DTYPES)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs in the interpreter")
def test_triton_takes_no_tensors_on_the_cpu():
    with pytest.raises(ValueError, match="backend 'triton' takes tensors on cuda, times are on cpu"):
        first_spike_linear(torch.zeros(1, 1), torch.ones(1, 1), IF(0.5), t_max=8, backend="triton")
