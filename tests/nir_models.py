"""What the tests of NIR share: networks in which rounding decides nothing, and runs of imported models."""

import contextlib
import io
import math

import nir
import numpy as np
import torch

from ssnn_plugin.snntorch import reset

T = 12
INF = math.inf


def spike_times(shape, seed=0):
    times = torch.randint(0, T * 4 // 3, shape, generator=torch.Generator().manual_seed(seed)).float()
    return times.masked_fill_(times >= T, INF)


def eighths(module):
    """Weights that are multiples of 1/8 and thresholds that are not: what a reader rounds decides nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            mean, spread = (0.05, 0.05) if name.endswith("bias") else (0.15, 0.4)
            values = torch.empty(parameter.shape).normal_(mean, spread, generator=generator)
            parameter.copy_((values * 8).round() / 8)
    return module


def quietly(function, *arguments):
    """snnTorch prints what it does; Norse warns of parameters that it leaves out."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def steps(model, trains):
    """Spikes [T, *] of an imported model, which is given its state from step to step."""
    spikes, state = [], None
    reset(model)
    for step in trains:
        out, state = model(step) if state is None else model(step, state)
        spikes.append(out)
    return torch.stack(spikes)


def filed(graph, tmp_path):
    nir.write(tmp_path / "model.nir", graph)
    return nir.read(tmp_path / "model.nir")


def chain(*nodes, shape=(2,), out=(2,)):
    inputs = nir.Input(input_type={"input": np.array(shape)})
    return nir.NIRGraph.from_list(inputs, *nodes, nir.Output(output_type={"output": np.array(out)}))
