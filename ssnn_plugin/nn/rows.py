"""Sequences that run one module after the other, and do nothing else."""

from __future__ import annotations

import torch
from torch import nn


def runs_in_a_row(network: nn.Sequential) -> bool:
    """Whether calling a sequence is calling one of its modules after the other: a subclass may do more."""
    says = getattr(network, "in_a_row", None)
    return says() if says is not None else type(network).forward is nn.Sequential.forward


def keep_up(network: nn.Module) -> None:
    """Have a network read what it has from the model that it was made from, if it was."""
    if torch.compiler.is_compiling():
        return
    for update in getattr(network, "follow", ()):
        update()
