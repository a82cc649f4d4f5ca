"""Layers on spike times on a GPU, against torch's dense layers of the same shape."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.timing import tenth
from ssnn_plugin import IF, ReLPSP
from ssnn_plugin.nn import SpikeConv2d, SpikeFlatten, SpikeLinear, calibrate

T_MAX = 256
INPUTS_THAT_SPIKE = 0.1
NEURONS_THAT_FIRE = 0.3
WARM_UP = 5
COMPARED = 8

Call = Callable[[], object]


class Case(NamedTuple):
    """A network of each kind, and a batch for each: the intensities of the dense one are what spikes."""

    name: str
    spiking: nn.Sequential
    dense: nn.Sequential
    times: Tensor
    intensities: Tensor


class Row(NamedTuple):
    """Milliseconds of each repetition, and bytes."""

    name: str
    what: str
    spiking: list[float]
    dense: list[float]
    memory: float | None = None
    same: float | None = None

    def ratio(self, of: Callable[[list[float]], float] = statistics.median) -> float:
        return of(self.spiking) / of(self.dense)


def cases(device: torch.device, batch: int, images: int) -> Iterator[Case]:
    """Fully connected ones on `batch` samples, a convolution on `images`, with either kind of neuron."""
    for neuron, name in ((IF(), "IF"), (ReLPSP(), "ReLPSP")):
        for widths in ((784, 400, 10), (4096, 4096, 10)):
            spiking = [SpikeLinear(*pair, neuron, t_max=T_MAX) for pair in pairwise(widths)]
            first, last = (nn.Linear(*pair) for pair in pairwise(widths))
            dense = nn.Sequential(first, nn.ReLU(), last)
            title = f"{'-'.join(map(str, widths))}, {name}, B = {batch}"
            yield _case(title, nn.Sequential(*spiking), dense, (batch, widths[0]), device)
        spiking_map = SpikeConv2d(64, 128, 3, neuron, t_max=T_MAX, padding=1)
        dense = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.Flatten())
        title = f"64 x 32 x 32 -> 128, 3 x 3, {name}, B = {images}"
        yield _case(title, nn.Sequential(spiking_map, SpikeFlatten()), dense, (images, 64, 32, 32), device)


def _case(
    name: str, spiking: nn.Sequential, dense: nn.Sequential, shape: tuple[int, ...], device: torch.device
) -> Case:
    spiking, dense = spiking.to(device), dense.to(device)
    times = torch.randint(0, T_MAX, shape, device=device).float()
    times[torch.rand(shape, device=device) >= INPUTS_THAT_SPIKE] = torch.inf
    for module in spiking:
        if isinstance(module, SpikeLinear | SpikeConv2d):
            nn.init.normal_(module.weight, 0.2, 1.0)
    calibrate(spiking, times[:64], NEURONS_THAT_FIRE)
    return Case(name, spiking, dense, times, (1 - times / T_MAX).clamp(min=0))


def rows(case: Case, repeats: int) -> Iterator[Row]:
    """Forwards, and forwards and backwards, in turn."""
    memory, same = memory_of_first_layer(case), same_spikes(case)
    with torch.no_grad():
        both = (lambda: case.spiking(case.times)), (lambda: case.dense(case.intensities))
        yield Row(case.name, "forward", *milliseconds(*both, repeats), memory, same)
    steps = _step(case.spiking, case.times), _step(case.dense, case.intensities, NEURONS_THAT_FIRE)
    yield Row(case.name, "forward, backward", *milliseconds(*steps, repeats))


def _step(network: nn.Sequential, inputs: Tensor, share: float = 1.0) -> Call:
    """Gradients of the weights, with an error at this share of the outputs; silent ones have none."""
    with torch.no_grad():
        outputs = network(inputs)
    errors = (torch.rand_like(outputs) < share).to(outputs)

    def step() -> None:
        network.zero_grad()
        network(inputs).clamp(max=T_MAX).backward(errors)

    return step


def milliseconds(spiking: Call, dense: Call, repeats: int) -> tuple[list[float], list[float]]:
    """Of each side, by the events of the device; the sides take turns."""
    for _ in range(WARM_UP):
        spiking()
        dense()
    taken: tuple[list[float], list[float]] = [], []
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(repeats):
        for side, milliseconds_of_side in zip((spiking, dense), taken, strict=True):
            torch.cuda.synchronize()
            begin.record()
            side()
            end.record()
            torch.cuda.synchronize()
            milliseconds_of_side.append(begin.elapsed_time(end))
    return taken


def memory_of_first_layer(case: Case) -> float:
    """Most bytes of its forward pass over those of its inputs, weights, times and potentials."""
    layer = case.spiking[0]
    with torch.no_grad():
        outputs = layer(case.times, return_potential=True)
        held = case.times.nbytes + sum(p.nbytes for p in layer.parameters())
        needed = held + sum(output.nbytes for output in outputs)
        del outputs
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layer(case.times, return_potential=True)
    return float((held + torch.cuda.max_memory_allocated() - before) / needed)


def same_spikes(case: Case) -> float:
    """Part of the first layer's spike times that are those of the CPU's kernels, to rounding."""
    layer, times = case.spiking[0], case.times[:COMPARED]
    with torch.no_grad():
        found = layer(times).cpu()
        expected = layer.cpu()(times.cpu())
        layer.to(times.device)
    return float(torch.isclose(found, expected, rtol=1e-4, atol=1e-4).double().mean())


def table(batch: int, images: int, repeats: int) -> Table:
    """All cases on the GPU."""
    heads = "spiking (ms)", "dense (ms)", "ratio of medians", "of p10", "memory / needed", "same spikes"
    found = Table("network", "", *heads)
    for case in cases(torch.device("cuda"), batch, images):
        for row in rows(case, repeats):
            found.add_row(
                row.name,
                row.what,
                *(f"{statistics.median(part):.3f}" for part in (row.spiking, row.dense)),
                f"{row.ratio():.2f}",
                f"{row.ratio(tenth):.2f}",
                "" if row.memory is None else f"{row.memory:.2f}",
                "" if row.same is None else f"{row.same:.2%}",
            )
    return found


def settings() -> str:
    """The device, and the precision of its products."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return (
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; "
        f"products in {products!r} precision, TF32 in convolutions: {convolutions}"
    )
