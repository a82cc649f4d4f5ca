"""Batch normalisation as part of the weights in front of it."""

from __future__ import annotations

import copy
from typing import TypeAlias

from torch import Tensor, fx, nn

from . import _checks
from ._builder import check_plain_weights

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CONNECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d)
SIZES = ("size", "dim", getattr)
Connection: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d


def fold_batchnorm(model: nn.Module) -> list[str]:
    """Fold every batch normalisation into the weights in front of it, in place.

    What it does in evaluation mode, with its running statistics, is a factor and a shift of each channel.
    They become part of the weight and the bias of the Linear or convolution that comes before it in the
    same container; an `Identity` stays in its place. A bias is a current in every bin. What a Linear returns
    must be [batch, features]: of [batch, channels, features] a BatchNorm1d normalises the channels.

    Args:
        model: any model; train it first, as the running statistics are fixed from here on.

    Returns:
        The paths of the normalisations that are gone.

    Raises:
        ValueError: a normalisation without running statistics, or whose connection is not the module
            before it, also in what a container computes, or is shared; by path and class, before anything is
            changed.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    >>> x, before = torch.ones(4, 3), model(torch.ones(4, 3))
    >>> fold_batchnorm(model)
    ['1']
    >>> torch.allclose(model(x), before), model[1]
    (True, Identity())
    """
    pairs = []
    for path, parent in model.named_modules():
        before: nn.Module | None = None
        for name, child in parent.named_children():
            if isinstance(child, NORMS):
                where = f"{path}.{name}" if path else name
                try:
                    connection = _check(child, before, model)
                    _check_order(parent, child, connection)
                except ValueError as error:
                    raise ValueError(f"{where} ({type(child).__name__}) cannot be folded: {error}") from error
                pairs.append((where, parent, name, connection, child))
            if not isinstance(child, nn.Identity):
                before = child
    for _, parent, name, connection, norm in pairs:
        fold_into(connection, norm)
        setattr(parent, name, nn.Identity().train(norm.training))
    return [where for where, *_ in pairs]


def _check(norm: nn.BatchNorm1d | nn.BatchNorm2d, before: nn.Module | None, model: nn.Module) -> Connection:
    """The connection in front of a normalisation, into which it can be folded."""
    if norm.running_mean is None:
        raise ValueError("it has no running statistics. Use track_running_stats=True")
    if not isinstance(before, CONNECTIONS):
        found = "nothing" if before is None else type(before).__name__
        raise ValueError(f"the module before it must be a Linear or convolution, got {found}")
    check_plain_weights(before)
    if before.weight.shape[0] != norm.num_features:
        raise ValueError(
            f"the module before it has {before.weight.shape[0]} outputs, not {norm.num_features}"
        )
    if _checks.in_two_places(model, before):
        raise ValueError("the module before it stands in two places")
    return before


class _Children(fx.Tracer):
    """Follows what a module does with its children, and does not look into these."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _check_order(parent: nn.Module, norm: nn.Module, connection: nn.Module) -> None:
    """Refuse a container whose `forward` puts something else in front of a normalisation.

    One that cannot be followed is taken to call its modules in their order.
    """
    if type(parent).forward is nn.Sequential.forward:
        return
    try:
        graph = _Children().trace(copy.deepcopy(parent))  # a copy, as `forward` may keep what it computes
    except Exception:  # as many as there are models
        return
    of = {node: parent.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
    for node, module in of.items():
        if module is norm and of.get(_given(node, of)) is not connection:
            raise ValueError(f"{type(parent).__name__} does something else with the module before it")


def _given(node: fx.Node, of: dict[fx.Node, nn.Module]) -> fx.Node | None:
    """What a call takes, in front of an `Identity` too; None if something else computes with it."""
    given = next(iter(node.all_input_nodes), None)
    if given is None or sum(user.target not in SIZES for user in given.users) > 1:
        return None
    return _given(given, of) if isinstance(of.get(given), nn.Identity) else given


def fold_into(connection: nn.Linear | nn.Conv1d | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Make a normalisation, as it is in evaluation mode, part of the weights in front of it."""
    factor, shift = factor_and_shift(norm)
    weight = connection.weight * factor.view(-1, *[1] * (connection.weight.ndim - 1))
    bias = shift if connection.bias is None else connection.bias * factor + shift
    learns = connection.weight.requires_grad
    bias_learns = learns if connection.bias is None else connection.bias.requires_grad
    connection.weight = nn.Parameter(weight.detach(), learns)
    connection.bias = nn.Parameter(bias.detach(), bias_learns)


def factor_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a normalisation with running statistics does to each channel in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    shift = -norm.running_mean * factor
    return factor.detach(), (shift if norm.bias is None else shift + norm.bias).detach()
