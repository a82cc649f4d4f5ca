"""Inputs, the network of snnTorch's tutorials, and the ways to run a neuron in steps."""

import math

import torch
from torch import nn

from ssnn_plugin import decode
from ssnn_plugin.snntorch import SingleSpike

STEPS = 6
BINS = torch.arange(STEPS).reshape(-1, 1, 1)


def record(neuron, currents, mem=None):
    """The hand-written loop, or a call in sequence mode: spikes and potentials [T, batch, *]."""
    mem = neuron.reset_mem() if mem is None else mem
    if getattr(neuron, "sequence", False):
        return neuron(currents, mem)
    spk_rec, mem_rec = [], []
    for current in currents:
        spk, mem = neuron(current, mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def run(net, inputs):
    """The loop over a net whose last neuron has `init_hidden=True, output=True`."""
    return tuple(map(torch.stack, zip(*(net(x) for x in inputs), strict=True)))


def pulses(times, steps=STEPS, dtype=torch.float32):
    """Currents that make neurons fire at `times`, and a trickle that leaves the others silent."""
    bins = torch.arange(steps).reshape(-1, *[1] * torch.tensor(times).ndim)
    currents = torch.where(bins == torch.tensor(times), 2.0, 0.125)
    return currents.to(dtype).requires_grad_()


def trains(times, steps=STEPS, dtype=torch.float32):
    return decode.times_to_spikes(torch.tensor(times), steps).to(dtype).requires_grad_()


def inputs(steps=STEPS, batch=4, features=5, seed=1):
    return (torch.rand(steps, batch, features, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


class Net(nn.Module):
    """The network of the tutorials."""

    def __init__(self, start="init_leaky", **options):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 7), SingleSpike(beta=0.9, **options)
        self.fc2, self.lif2 = nn.Linear(7, 3), SingleSpike(beta=0.9, **options)
        self.start = start
        draw = torch.Generator().manual_seed(0)
        for layer in (self.fc1, self.fc2):
            nn.init.uniform_(layer.weight, -0.2, 1, generator=draw)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        mem1, mem2 = getattr(self.lif1, self.start)(), getattr(self.lif2, self.start)()
        spk_rec, mem_rec = [], []
        for step in range(len(x)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)

    def sequential(self, nested=False, **options):
        """The same weights in `nn.Sequential`, with hidden states."""
        first = [self.fc1, SingleSpike(beta=0.9, init_hidden=True, **options)]
        last = [self.fc2, SingleSpike(beta=0.9, init_hidden=True, output=True, **options)]
        if nested:
            return nn.Sequential(nn.Sequential(*first), nn.Sequential(*last))
        return nn.Sequential(*first, *last)


TIMES, LABELS = [[1.0, 3.0, math.inf], [2.0, 2.0, 0.0]], torch.tensor([0, 1])
SPIKES = trains(TIMES).detach()


def by_chunks(neuron, currents, start):
    """A window in two calls, by the state that the neuron keeps itself."""
    neuron.mem = start
    parts = [neuron(part) for part in currents.tensor_split(2) if len(part)]
    return map(torch.cat, zip(*parts, strict=True))


MODES = {
    "steps": (record, {}),
    "at once": (record, {"sequence": True}),
    "chunks": (by_chunks, {"init_hidden": True, "output": True, "sequence": True}),
}
