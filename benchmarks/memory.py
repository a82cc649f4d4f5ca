"""How much memory a call needs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], object]


def peak(build: Callable[[], Step], inputs: Tensor, labels: Tensor, warm_up: int = 2) -> float:
    """MiB that a step takes at its peak, beyond what the process had before; in a fresh process.

    Args:
        build: makes the step, a function that a fresh interpreter can import, or a partial one.
        inputs, labels: of a batch, the first axis of both.
        warm_up: samples of a step before, which compiles kernels and makes the optimiser's state.

    Raises:
        RuntimeError: the step fails, or the process is killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = sender, build, inputs.numpy(), labels.numpy(), warm_up, torch.get_num_threads()
    process = context.Process(target=_measure, args=arguments)
    process.start()
    sender.close()
    with receiver:
        try:
            mib: float = receiver.recv()
        except EOFError as error:
            process.join()
            raise RuntimeError(
                f"the process that measures memory ended with exit code {process.exitcode}"
            ) from error
    process.join()
    return mib


def _measure(
    sender: Connection,
    build: Callable[[], Step],
    inputs: np.ndarray,
    labels: np.ndarray,
    warm_up: int,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    batch = torch.from_numpy(inputs), torch.from_numpy(labels)
    step = build()
    step(*(part[:warm_up] for part in batch))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    step(*batch)
    sender.send((_status("VmHWM") - before) / 1024)
    sender.close()


def _status(field: str) -> int:
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")
    ]
    return int(line.split()[1])
