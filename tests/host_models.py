"""Models as the tutorials and tasks of snnTorch and Norse write them, and what becomes of them by events.

Layers are smaller than there, and where weights are drawn so that neurons fire; otherwise they are what
a reader of these projects has. `rows` converts all of them, which makes the table of docs/host-models.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
import torch.nn.functional as F
from norse.torch.models.conv import ConvNet, ConvNet4
from norse.torch.module.encode import ConstantCurrentLIFEncoder
from snntorch import surrogate, utils
from torch import Tensor, nn

from ssnn_plugin import NoTimeMode, encode, fold_batchnorm, replace_neurons, to_event_driven, verify
from ssnn_plugin.decode import times_to_spikes
from ssnn_plugin.nn import BinwiseLayer, EventDrivenNetwork, SpikeReadout

T = 12
SPIKE_GRAD = surrogate.fast_sigmoid(slope=25)


class Tutorial3(nn.Module):
    """snnTorch, tutorial 3: a feed-forward network on spike trains."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 40), snn.Leaky(beta=0.99)
        self.fc2, self.lif2 = nn.Linear(40, 10), snn.Leaky(beta=0.99)

    def forward(self, spk_in):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        mem2_rec, spk1_rec, spk2_rec = [], [], []
        for step in range(T):
            cur1 = self.fc1(spk_in[step])
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            mem2_rec.append(mem2)
            spk1_rec.append(spk1)
            spk2_rec.append(spk2)
        mem2_rec = torch.stack(mem2_rec)
        spk1_rec = torch.stack(spk1_rec)
        spk2_rec = torch.stack(spk2_rec)
        return spk2_rec, mem2_rec, spk1_rec


class Tutorial5(nn.Module):
    """snnTorch, tutorial 5: the same image in every step."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 40), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(40, 10), snn.Leaky(beta=0.95)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for step in range(T):  # noqa: B007
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class Tutorial6(nn.Module):
    """snnTorch, tutorial 6: convolutions, a step per call, max-pooling of currents."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 5), snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD)
        self.conv2, self.lif2 = nn.Conv2d(4, 6, 5), snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD)
        self.fc1, self.lif3 = nn.Linear(6 * 4 * 4, 10), snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        spk3_rec = []
        for _ in range(T):
            cur1 = F.max_pool2d(self.conv1(x), 2)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = F.max_pool2d(self.conv2(spk1), 2)
            spk2, mem2 = self.lif2(cur2, mem2)
            cur3 = self.fc1(spk2.view(spk2.size(0), -1))
            spk3, mem3 = self.lif3(cur3, mem3)
            spk3_rec.append(spk3)
        return torch.stack(spk3_rec)


def _hidden(**options):
    return snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD, init_hidden=True, **options)


def tutorial_6_sequential():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5),
        nn.MaxPool2d(2),
        _hidden(),
        nn.Conv2d(4, 6, 5),
        nn.MaxPool2d(2),
        _hidden(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 10),
        _hidden(output=True),
    )


def tutorial_7():
    return nn.Sequential(
        nn.Conv2d(2, 4, 5),
        _hidden(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 5),
        _hidden(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 10),
        _hidden(output=True),
    )


def population():
    return nn.Sequential(
        nn.Linear(64, 30),
        snn.Leaky(beta=0.9, spike_grad=SPIKE_GRAD, init_hidden=True),
        nn.Linear(30, 50),
        snn.Leaky(beta=0.9, spike_grad=SPIKE_GRAD, init_hidden=True, output=True),
    )


class Regression(nn.Module):
    """snnTorch, regression part I: leaks and thresholds are learned, the potential is read."""

    def __init__(self, hidden=24):
        super().__init__()
        torch.manual_seed(3)
        self.fc_in = nn.Linear(64, hidden)
        self.lif_in = self._leaky(hidden)
        self.fc_hidden = nn.Linear(hidden, hidden)
        self.lif_hidden = self._leaky(hidden)
        self.fc_out = nn.Linear(hidden, 1)
        self.li_out = snn.Leaky(beta=torch.rand(1), threshold=1.0, learn_beta=True, reset_mechanism="none")

    @staticmethod
    def _leaky(hidden):
        return snn.Leaky(
            beta=torch.rand(hidden), threshold=torch.rand(hidden), learn_beta=True, spike_grad=SPIKE_GRAD
        )

    def forward(self, x):
        mem_1 = self.lif_in.init_leaky()
        mem_2 = self.lif_hidden.init_leaky()
        mem_3 = self.li_out.init_leaky()
        mem_3_rec = []
        for step in range(x.size(0)):
            x_timestep = x[step, :, :]
            cur_in = self.fc_in(x_timestep)
            spk_in, mem_1 = self.lif_in(cur_in, mem_1)
            cur_hidden = self.fc_hidden(spk_in)
            spk_hidden, mem_2 = self.lif_hidden(cur_hidden, mem_2)
            cur_out = self.fc_out(spk_hidden)
            _, mem_3 = self.li_out(cur_out, mem_3)
            mem_3_rec.append(mem_3)
        return torch.stack(mem_3_rec)


class RegressionRecurrent(nn.Module):
    """snnTorch, regression part II: recurrent neurons."""

    def __init__(self):
        super().__init__()
        self.fc1, self.rlif1 = nn.Linear(64, 24), snn.RLeaky(beta=0.9, linear_features=24)
        self.fc2, self.lif2 = nn.Linear(24, 10), snn.Leaky(beta=0.9)

    def forward(self, x):
        spk1, mem1 = self.rlif1.init_rleaky()
        mem2 = self.lif2.init_leaky()
        out = []
        for step in range(x.size(0)):
            spk1, mem1 = self.rlif1(self.fc1(x[step]), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out)


def lapicque():
    return nn.Sequential(
        nn.Linear(64, 30),
        snn.Lapicque(beta=0.9, init_hidden=True),
        nn.Linear(30, 10),
        snn.Lapicque(beta=0.9, init_hidden=True, output=True),
    )


def synaptic():
    return nn.Sequential(
        nn.Linear(64, 30),
        snn.Synaptic(alpha=0.6, beta=0.9, init_hidden=True),
        nn.Linear(30, 10),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )


def alpha():
    return nn.Sequential(nn.Linear(64, 10), snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True, output=True))


def slstm():
    return nn.Sequential(nn.Flatten(), snn.SLSTM(64, 10, init_hidden=True, output=True))


def batch_norm():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        _hidden(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        _hidden(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 10),
        _hidden(output=True),
    )


class Audio(nn.Module):
    """Convolutions along one axis and a shortcut, a step per call."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv1d(4, 8, 3, padding=1), _hidden()
        self.conv2, self.lif2 = nn.Conv1d(8, 8, 3, padding=1), _hidden()
        self.fc, self.lif3 = nn.Linear(8 * 16, 10), _hidden(output=True)

    def forward(self, x):
        utils.reset(self)
        out = []
        for x_t in x:
            spk1 = self.lif1(self.conv1(x_t))
            spk2 = self.lif2(self.conv2(spk1) + spk1)
            spk3, _ = self.lif3(self.fc(spk2.flatten(1)))
            out.append(spk3)
        return torch.stack(out)


class RateDecoded(nn.Module):
    """A linear read-out of the spikes of every step."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.readout = nn.Linear(64, 30), snn.Leaky(beta=0.9), nn.Linear(30, 10)

    def forward(self, x):
        mem, out = self.lif1.init_leaky(), []
        for step in range(x.size(0)):
            spk, mem = self.lif1(self.fc1(x[step]), mem)
            out.append(self.readout(spk))
        return torch.stack(out)


class MnistTask(nn.Module):
    """Norse's MNIST task."""

    def __init__(self):
        super().__init__()
        self.constant_current_encoder = ConstantCurrentLIFEncoder(seq_length=T)
        self.rsnn = ConvNet4()

    def forward(self, x):
        batch_size = x.shape[0]
        x = self.constant_current_encoder(x.view(-1, 784) * 1.0)
        x = x.reshape(T, batch_size, 1, 28, 28)
        voltages = self.rsnn(x)
        m, _ = torch.max(voltages, 0)
        return torch.nn.functional.log_softmax(m, dim=1)


class Cifar10(nn.Module):
    """Norse's CIFAR-10 task: noise on the read-out."""

    def __init__(self):
        super().__init__()
        self.features = norse.SequentialState(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), norse.LIFCell(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.classification = norse.SequentialState(nn.Linear(64, 10, bias=False), norse.LICell())

    def forward(self, x):
        voltages = torch.empty(T, x.shape[0], 10, device=x.device, dtype=x.dtype)
        sf = None
        sc = None
        for ts in range(T):
            out_f, sf = self.features(x, sf)
            out_c, sc = self.classification(out_f, sc)
            voltages[ts, :, :] = out_c + 0.001 * torch.randn(x.shape[0], 10, device=x.device)
        y_hat, _ = torch.max(voltages, 0)
        return y_hat


def getting_started():
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 4, 5)),
        norse.LIF(),
        norse.Lift(nn.AvgPool2d(2)),
        norse.Lift(nn.Flatten()),
        norse.Lift(nn.Linear(4 * 12 * 12, 10)),
        norse.LI(),
    )


def iaf_cells():
    return norse.SequentialState(
        nn.Linear(64, 30), norse.IAFCell(), nn.Dropout(0.1), nn.Linear(30, 10), norse.IAFCell()
    )


class Vgg(nn.Module):
    """Norse's VGG: max-pools, an adaptive pool, a linear read-out."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            norse.Lift(nn.Conv2d(3, 4, 3, padding=1)), norse.LIF(), norse.Lift(nn.MaxPool2d(2, 2))
        )
        self.avgpool = norse.Lift(nn.AdaptiveAvgPool2d((2, 2)))
        self.classifier = nn.Sequential(norse.Lift(nn.Linear(16, 10)))

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 2)
        return self.classifier(x)


def memory():
    return norse.SequentialState(norse.LSNNRecurrent(64, 30), norse.Lift(nn.Linear(30, 10)), norse.LI())


@dataclass(frozen=True)
class HostModel:
    """A model of a host: how it is made, what a sample looks like, how its input reaches it."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    constant_input: bool = False
    drive: float = 0.3


MODELS = [
    HostModel("snnTorch, tutorial 3: feed-forward network", Tutorial3, (64,)),
    HostModel("snnTorch, tutorial 4: second-order neurons", synaptic, (64,)),
    HostModel("snnTorch, tutorial 4: alpha neurons", alpha, (64,)),
    HostModel("snnTorch, tutorial 2: Lapicque neurons", lapicque, (64,), drive=3.0),
    HostModel("snnTorch, tutorial 5: the image in every step", Tutorial5, (64,), True),
    HostModel("snnTorch, tutorial 6: convolutions, a class", Tutorial6, (1, 28, 28), True),
    HostModel("snnTorch, tutorial 6: convolutions, nn.Sequential", tutorial_6_sequential, (1, 28, 28), True),
    HostModel("snnTorch, tutorial 7: event camera, max-pools of spikes", tutorial_7, (2, 28, 28)),
    HostModel("snnTorch, population coding", population, (64,), True),
    HostModel("snnTorch, regression I: learned leaks, potential read", Regression, (64,)),
    HostModel("snnTorch, regression II: recurrent neurons", RegressionRecurrent, (64,)),
    HostModel("snnTorch, spiking LSTM", slstm, (64,)),
    HostModel("snnTorch, batch normalisation, adaptive pool", batch_norm, (1, 8, 8), drive=1.0),
    HostModel("snnTorch, Conv1d with a shortcut", Audio, (4, 16)),
    HostModel("snnTorch, linear read-out of every step", RateDecoded, (64,)),
    HostModel("Norse, ConvNet", ConvNet, (1, 28, 28), drive=0.1),
    HostModel("Norse, ConvNet4", ConvNet4, (1, 28, 28), drive=0.1),
    HostModel("Norse, MNIST task with its encoder", MnistTask, (784,), True),
    HostModel("Norse, CIFAR-10 task with noise", Cifar10, (3, 8, 8), True),
    HostModel("Norse, SequentialState with LIF and LI", getting_started, (1, 28, 28)),
    HostModel("Norse, IAF cells, a step per call", iaf_cells, (64,)),
    HostModel("Norse, VGG", Vgg, (3, 8, 8)),
    HostModel("Norse, memory task: LSNN", memory, (64,)),
]


def single_spike(model: nn.Module) -> None:
    """Swap the neurons, keeping the potentials that are read and folding normalisations."""
    fold_batchnorm(model)
    kept = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, snn.Leaky) and module.reset_mechanism == "none"
    }
    for path in kept:
        _put(model, path, nn.Identity())
    replace_neurons(model)
    for path, module in kept.items():
        _put(model, path, module)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def build(host: HostModel) -> nn.Module:
    """The model with single-spike neurons of which a good share fires, in double precision."""
    model = host.make().eval()
    single_spike(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                spread = 1.5 / module.weight[0].numel() ** 0.5
                module.weight.normal_(host.drive * spread, spread, generator=generator)
    return model.double()


def batch(host: HostModel, size: int = 6) -> Tensor:
    """Images where the model takes them in every step, else their latency code."""
    values = torch.rand(size, *host.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return values if host.constant_input else times_to_spikes(encode.latency(values, T), T)


@dataclass(frozen=True)
class Row:
    """What became of a model: its network and the comparison, or the refusal."""

    host: HostModel
    network: EventDrivenNetwork | None
    report: Any
    refusal: str

    def cells(self) -> tuple[str, ...]:
        if self.network is None:
            return self.host.name, "refused", "", self.refusal
        layers = [module for module in self.network if hasattr(module, "t_max")]
        binwise = sum(isinstance(module, BinwiseLayer) for module in layers)
        read_out = sum(isinstance(module, SpikeReadout) for module in layers)
        events = len(layers) - binwise - read_out
        parts = [f"{events} by events"] * bool(events) + [f"{binwise} in bins"] * bool(binwise)
        parts += ["a read-out"] * read_out
        what = "spike times" if self.report.of_times else "values"
        return (
            self.host.name,
            "converted",
            ", ".join(parts),
            f"{self.report.equal} of {self.report.outputs} {what}",
        )


def rows() -> Iterator[Row]:
    """Convert and compare all models."""
    for host in MODELS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = build(host)
            options = {"t_max": T, "constant_input": host.constant_input}
            report = verify(model, batch(host), **options)
            yield Row(host, to_event_driven(model, **options), report, "")
        except (NoTimeMode, ValueError) as error:
            yield Row(host, None, None, str(error))


def table(found: Iterable[Row]) -> str:
    """The models as a table in Markdown."""
    head = ("model", "", "layers", "the same as in steps, or why not")
    lines = [head, ("---",) * 4, *(row.cells() for row in found)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table(rows()))
