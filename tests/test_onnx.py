"""Neurons in ONNX: the exported graph computes the spikes and potentials of the module."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from ssnn_plugin import norse as ssnn_norse
from ssnn_plugin import snntorch as ssnn_snntorch

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow

STEPS, BATCH, FEATURES = 5, 4, 5
THRESHOLDS = torch.tensor([0.25, 0.5, 0.75, 1.0, 2.0])


class SnnTorchLoop(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.neuron = ssnn_snntorch.SingleSpike(**options)

    def forward(self, x):
        mem, recorded = self.neuron.reset_mem(), []
        for step in range(STEPS):
            spk, mem = self.neuron(x[step], mem)
            recorded.append(spk)
        return torch.stack(recorded), mem


class NorseLoop(nn.Module):
    def __init__(self, **parameters):
        super().__init__()
        self.cell = ssnn_norse.SingleSpikeIFCell(ssnn_norse.SingleSpikeIFParameters(**parameters))

    def forward(self, x):
        state, recorded = None, []
        for step in range(STEPS):
            z, state = self.cell(x[step], state)
            recorded.append(z)
        return torch.stack(recorded), state.v


class SnnTorchWindow(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.neuron = ssnn_snntorch.SingleSpike(sequence=True, **options)

    def forward(self, x):
        return self.neuron(x)


class NorseWindow(nn.Module):
    def __init__(self, **parameters):
        super().__init__()
        self.neuron = ssnn_norse.SingleSpikeIF(ssnn_norse.SingleSpikeIFParameters(**parameters))

    def forward(self, x):
        z, state = self.neuron(x)
        return z, state.v


MODELS = {
    "snntorch step": lambda: SnnTorchLoop(beta=0.5),
    "snntorch step, thresholds": lambda: SnnTorchLoop(threshold=THRESHOLDS, learn_threshold=True),
    "snntorch step, surrogate": lambda: SnnTorchLoop(beta=0.5, spike_grad=snn.surrogate.atan()),
    "snntorch window": lambda: SnnTorchWindow(beta=0.5, threshold=THRESHOLDS, init_hidden=True, output=True),
    "norse step": lambda: NorseLoop(v_th=THRESHOLDS, tau_mem_inv=500.0),
    "norse window": lambda: NorseWindow(v_th=THRESHOLDS, tau_mem_inv=500.0),
    "norse window, surrogate": lambda: NorseWindow(tau_mem_inv=500.0, method="triangle"),
}
CASES = [(name, True) for name in MODELS] + [("snntorch step", False), ("norse window", False)]


def _currents(seed):
    """In 64ths, so that every sum is exact, whatever the order."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-12, 60, (STEPS, BATCH, FEATURES), generator=draw) / 64


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "dynamo"), CASES)
def test_the_graph_fires_as_the_module_does(name, dynamo, tmp_path):
    model, path = MODELS[name]().eval(), str(tmp_path / "model.onnx")
    torch.onnx.export(model, (_currents(0),), path, dynamo=dynamo, verbose=False, input_names=["x"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = _currents(1)
    spikes, potential = session.run(None, {"x": x.numpy()})
    wanted = MODELS[name]().eval()(x)
    assert 0 < wanted[0].sum() < wanted[0][0].numel()
    assert torch.equal(torch.from_numpy(spikes), wanted[0])
    assert torch.equal(torch.from_numpy(potential), wanted[1])


def test_a_network_of_norse_exports(tmp_path):
    model = norse.SequentialState(nn.Linear(FEATURES, 3), ssnn_norse.SingleSpikeIFCell()).eval()
    path, x = str(tmp_path / "model.onnx"), _currents(0)[0]
    torch.onnx.export(model, (x,), path, verbose=False, input_names=["x"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    z, state = model(x)
    found = session.run(None, {"x": x.numpy()})
    assert torch.equal(torch.from_numpy(found[0]), z)
    torch.testing.assert_close(torch.from_numpy(found[1]), state[1].v)


@pytest.mark.parametrize(
    "pool",
    [ssnn_snntorch.FirstSpikePool2d(2, sequence=True), ssnn_norse.FirstSpikePool2d(2)],
    ids=["snntorch", "norse"],
)
def test_a_pool_of_a_window_exports(pool, tmp_path):
    path = str(tmp_path / "model.onnx")
    x = (torch.rand(STEPS, 2, 1, 4, 6, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    # In a network: a neuron of snnTorch's on its own keeps its state in a buffer of another shape.
    torch.onnx.export(nn.Sequential(pool), (x,), path, verbose=False, input_names=["x"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    spikes, _ = pool(x)
    assert spikes.any()
    assert torch.equal(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), spikes)
