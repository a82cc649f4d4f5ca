"""Which backend carries out the kernels."""

import os

import pytest
import torch

from ssnn_plugin import IF, LIF, AlphaPSP, ExpPSP, ReLPSP
from ssnn_plugin.functional import first_spike_linear
from ssnn_plugin.kernels import backends
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
    assert select(None, CPU, neuron) == "cpu"
    assert select(None, GPU, neuron) == "triton"
    assert select(None, torch.device("mps"), neuron) == "reference"
    for name, device in (("cpu", CPU), ("triton", GPU), ("reference", CPU), ("reference", GPU)):
        assert select(name, device, neuron) == name


@needs_triton
def test_a_neuron_whose_response_does_not_say_the_decay_runs_on_the_reference():
    assert select(None, CPU, WithoutDecay()) == "cpu"
    assert select(None, GPU, WithoutDecay()) == "reference"
    with pytest.raises(ValueError, match=r"backend 'triton' needs a compiled response with 'decay'"):
        select("triton", GPU, WithoutDecay())


def test_a_neuron_without_a_compiled_response_runs_on_the_reference():
    for device in (CPU, GPU):
        assert select(None, device, WithoutResponse()) == "reference"


def test_a_backend_whose_package_is_missing_is_passed_over_and_named_when_asked_for(monkeypatch):
    missing = Backend("triton", device_types=("cuda",), response="decay", requires="no_such_package")
    monkeypatch.setitem(backends.BACKENDS, "triton", missing)
    assert select(None, GPU, IF()) == "reference"
    assert select(None, torch.device("meta"), IF()) == "cpu"
    with pytest.raises(ValueError, match=r"backend 'triton' needs the package 'no_such_package'.* use None"):
        select("triton", GPU, IF())


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs in the interpreter")
def test_triton_takes_no_tensors_on_the_cpu():
    with pytest.raises(ValueError, match="backend 'triton' takes tensors on cuda, times are on cpu"):
        first_spike_linear(torch.zeros(1, 1), torch.ones(1, 1), IF(0.5), t_max=8, backend="triton")
