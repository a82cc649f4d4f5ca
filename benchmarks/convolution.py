"""Training steps of a convolutional network as in DS4NN, against a ReLU network of the same shape."""

from __future__ import annotations

import torch
from rich.table import Table
from torch import nn

from benchmarks.mnist import T_MAX, Batch, Batches
from benchmarks.printing import add_row
from benchmarks.step import fused_with_adam, of_images, step_with_adam
from benchmarks.timing import alternate
from ssnn_plugin import IF
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import SpikeConv2d, SpikeFlatten, SpikeLinear, SpikeSequential, calibrate

# Of the neurons, at first; corners are blank: more of the first layer cannot fire.
FIRING = 0.4, 0.3, 0.15
# So low that about as many fire later on: at 1e-3 layers fall silent within ten steps, and then cost nothing.
RATE = 1e-5


def spiking_network() -> SpikeSequential:
    """16C5s2-32C5s2-200-10 of integrate-and-fire neurons, as in DS4NN."""
    return SpikeSequential(
        SpikeConv2d(1, 16, 5, IF(), t_max=T_MAX, stride=2),
        SpikeConv2d(16, 32, 5, IF(), t_max=T_MAX, stride=2),
        SpikeFlatten(),
        SpikeLinear(512, 200, IF(), t_max=T_MAX),
        SpikeLinear(200, 10, IF(), t_max=T_MAX, silent_gradient=True),
    )


def dense_network() -> nn.Sequential:
    """The ReLU network of the same shape."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


def table(batches: Batches, steps: int) -> Table:
    """Training steps of both, those of the spiking network in two ways, where a part of it fires at first."""
    sample = torch.cat([as_images(batch).times for batch in batches(0, 4)])
    found = Table("neurons that fire", "spiking (ms)", "ReLU CNN (ms)", "ratio")
    for firing in FIRING:
        for name, make in (("", step_with_adam), (", FusedStep", fused_with_adam)):
            spiking = spiking_network()
            for module in spiking:
                if isinstance(module, SpikeConv2d | SpikeLinear):
                    nn.init.normal_(module.weight, 0.2, 1.0)
            calibrate(spiking, sample, firing)
            step = make(spiking, RelativeTargetLoss(10.0, T_MAX), rate=RATE)
            dense = step_with_adam(dense_network(), nn.CrossEntropyLoss(), of_images, RATE)
            alternate(step, dense, list(map(as_images, batches(0, 10))))
            taken = alternate(step, dense, list(map(as_images, batches(10, steps))))
            add_row(found, (f"{firing:.0%} at first{name}",), taken)
    return found


def as_images(batch: Batch) -> Batch:
    """Of one channel."""
    times, images = (values.reshape(-1, 1, 28, 28) for values in (batch.times, batch.images))
    return batch._replace(times=times, images=images)
