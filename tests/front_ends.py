"""Networks of either host on trains of spikes, of which a good share of the neurons fire."""

import math
from functools import partial

import norse.torch as norse
import torch
from torch import nn

from ssnn_plugin.decode import spikes_to_times, times_to_spikes
from ssnn_plugin.snntorch import SingleSpike, reset

HIDDEN = partial(SingleSpike, init_hidden=True)


def some_times(shape, t_max, seed=0):
    """Whole bins; a quarter of the inputs is silent or spikes after the window."""
    times = torch.randint(0, t_max * 4 // 3, shape, generator=torch.Generator().manual_seed(seed)).double()
    return times.masked_fill_(times > t_max, math.inf)


def alive(parts, t_max, leak=False, drive=None, seed=0):
    """The modules with random weights in double precision, of which a good share of the neurons fire."""
    generator = torch.Generator().manual_seed(seed)
    for module in nn.Sequential(*(part for part in parts if isinstance(part, nn.Module))).double().modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            inputs = module.weight[0].numel()
            spread = (3 if leak else 1.5) / inputs**0.5
            mean = spread * (drive or (0.12 if leak else 0.25))
            with torch.no_grad():
                module.weight.normal_(mean, spread, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.5 / (8 if leak else t_max), generator=generator)
    return parts


def run_trains(model, trains):
    """Spikes [T, batch, *] and potential [batch, *] of a model of either host."""
    if isinstance(model, norse.SequentialState):
        spikes, states = model(trains)
        return spikes, next(state.v for state in reversed(states) if hasattr(state, "v"))
    reset(model)
    neurons = [module for module in model.modules() if isinstance(module, SingleSpike)]
    if neurons[-1].sequence:
        spikes, mem = model(trains)
        return spikes, mem[-1]
    spikes, mem = zip(*map(model, trains), strict=True)
    return torch.stack(spikes), mem[-1]


def first_spikes_of(model, times, t_max):
    return spikes_to_times(run_trains(model, times_to_spikes(times, t_max))[0])


class Block(nn.Module):
    def __init__(self, connection):
        super().__init__()
        self.connection, self.lif = connection, SingleSpike(init_hidden=True)

    def forward(self, x):
        return self.lif(self.connection(x))
