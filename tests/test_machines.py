"""Machines with narrower registers than this one compile the same kernels, to the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import pytest
import torch
from machine_runs import outcomes

# As numba has them: features that are not named are those of the processor.
HASWELL = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}
needs_avx2 = pytest.mark.skipif(
    not llvmlite.binding.get_host_cpu_features().get("avx2"), reason="runs code for AVX2"
)


@needs_avx2
@pytest.mark.slow
def test_registers_of_avx2_give_the_same_numbers(tmp_path):
    script, file = Path(__file__).with_name("machine_runs.py"), tmp_path / "outcomes.pt"
    # What is compiled for another machine is not left among what is compiled for this one.
    folders = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, script, file], env=os.environ | HASWELL | folders, check=True)
    found = torch.load(file)
    assert found["register"] == 32
    expected = outcomes()
    assert found["outcomes"].keys() == expected.keys()
    for name in ("decide", "decide on bytes"):
        assert (expected[name][0] >= 0).any()
    for name, tensors in expected.items():
        learns_or_decides = name.startswith(("decide", "fused", "online"))
        assert learns_or_decides or 0.1 < tensors[0].isfinite().double().mean() < 0.95
        for one, other in zip(found["outcomes"][name], tensors, strict=True):
            # Sums of fractions are taken in another order.
            of_fractions = name in ("continuous", "fused step", "online")
            tolerance = {"rtol": 1e-5, "atol": 1e-5} if of_fractions else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(one, other, **tolerance)
