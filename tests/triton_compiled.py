"""Compile what the Triton backend launches for a GPU that need not be there.

Its argument is the architecture, as 90. A line per kernel: name, registers of a thread, atomic operations.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from ssnn_plugin import IF, LIF
from ssnn_plugin.kernels import triton as kernels
from ssnn_plugin.kernels.backends import Factors
from ssnn_plugin.kernels.geometry import Geometry

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class NoGpu:
    """A driver that says what to compile for."""

    def __init__(self, architecture):
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch

    def get_current_stream(self, device):
        return 0


def compile_launches(architecture):
    """Compile and describe instead of launching."""
    launch, seen = jit.JITFunction.run, set()

    def compile_only(self, *args, grid, warmup, **options):
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            atomics = len(re.findall(r"\b(?:atom|red)\.", kernel.asm["ptx"]))
            print(kernel.metadata.name, registers(kernel), atomics, flush=True)
        return kernel

    jit.JITFunction.run = compile_only
    kernels.refuse_bad_samples = lambda worst: None  # nothing has been written
    driver.set_active(NoGpu(architecture))


def run_layers(dtype):
    """A fully connected layer forwards, a convolution backwards."""
    times, weight, bias = (torch.rand(shape, dtype=dtype) for shape in ((16, 784), (400, 784), (400,)))
    for neuron, current in ((IF(), None), (IF(beta=0.5), bias), (LIF(tau_mem=2.0), bias)):
        kernels.first_spike(times, weight, current, Geometry(), neuron, 8.0)
    geometry = Geometry((2, 1), (1, 1), 2)
    times, weight = (torch.rand(shape, dtype=dtype) for shape in ((2, 64, 34, 34), (128, 32, 3, 3)))
    p = torch.rand(geometry.output_shape(times, weight), dtype=dtype)
    for factors in (Factors(p, None, p), Factors(p, p, p, times, times)):
        kernels.weight_grad(factors, times, [3, 3], geometry)
        kernels.input_grad(factors, times, weight, geometry)


def registers(kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], check=True, capture_output=True, text=True
        )
    return re.search(r"REG:(\d+)", usage.stdout)[1]


if __name__ == "__main__":
    compile_launches(int(sys.argv[1]))
    for dtype in (torch.float32, torch.float64):
        run_layers(dtype)
