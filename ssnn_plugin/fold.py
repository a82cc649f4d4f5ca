"""Batch normalisation as part of the weights in front of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from . import _checks
from ._trace import Tracer, followed

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
            before it, also in what the model computes, is shared, called or read elsewhere too; hooks and
            other forwards than torch's; a forward that cannot be followed, unless it is that of an
            `nn.Sequential`; by path and class, before anything is changed.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    >>> x, before = torch.ones(4, 3), model(torch.ones(4, 3))
    >>> fold_batchnorm(model)
    ['1']
    >>> torch.allclose(model(x), before), model[1]
    (True, Identity())
    """
    pairs, calls = [], _calls_of(model)
    for path, parent in model.named_modules():
        before: nn.Module | None = None
        for name, child in parent.named_children():
            if isinstance(child, NORMS):
                where = f"{path}.{name}" if path else name
                try:
                    connection = _check(child, before, model)
                    owner = model if calls else parent
                    _check_calls(calls or _calls_of(parent), owner, child, connection)
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
    _refuse_other_forwards(norm, *NORMS)
    if norm.running_mean is None:
        raise ValueError("it has no running statistics. Use track_running_stats=True")
    if not isinstance(before, CONNECTIONS):
        found = "nothing" if before is None else type(before).__name__
        raise ValueError(f"the module before it must be a Linear or convolution, got {found}")
    _checks.plain_weights(before)
    _refuse_other_forwards(before, *CONNECTIONS)
    if before.weight.shape[0] != norm.num_features:
        raise ValueError(
            f"the module before it has {before.weight.shape[0]} outputs, not {norm.num_features}"
        )
    if _checks.in_two_places(model, before):
        raise ValueError("the module before it stands in two places")
    return before


def _refuse_other_forwards(module: nn.Module, *kinds: type) -> None:
    name = type(module).__name__
    try:
        _checks.own_forward(module, *kinds)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if _checks.has_forward_hooks(module):
        raise ValueError(f"{name} has forward hooks, which may change what it returns. Remove them")


class _Order(Tracer):
    """Follows a model down to its connections and normalisations, and to what has none of these."""

    def __init__(self) -> None:
        super().__init__(modules=None, steps=2)  # type: ignore[arg-type]  # not asked for

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*NORMS, *CONNECTIONS)) or not any(isinstance(one, NORMS) for one in m.modules())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return fx.Tracer.call_module(self, m, forward, args, kwargs)


class _Calls:
    """Which modules a graph calls, and which weights it reads by itself."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.of = {n: model.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"}
        owners = (str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr")
        self.read = {model.get_submodule(owner) for owner in owners}

    def given(self, node: fx.Node) -> fx.Node | None:
        """What a call takes, in front of an `Identity` too; None if something else computes with it."""
        taken = next(iter(node.all_input_nodes), None)
        if taken is None or sum(user.target not in SIZES for user in taken.users) > 1:
            return None
        return self.given(taken) if isinstance(self.of.get(taken), nn.Identity) else taken


def _calls_of(model: nn.Module) -> _Calls | None:
    """What a model calls; None if its forward cannot be followed."""
    try:
        return _Calls(model, followed(model, _Order())[0])
    except Exception:  # as many as there are models
        return None


def _check_calls(calls: _Calls | None, owner: nn.Module, norm: nn.Module, connection: nn.Module) -> None:
    """Refuse a normalisation that gets something else than its connection gives to it alone."""
    name = type(owner).__name__
    if calls is None:
        if not isinstance(owner, nn.Sequential) or type(owner).forward is not nn.Sequential.forward:
            raise ValueError(
                f"the forward of {name} cannot be followed. Put it and the module before it into an "
                f"nn.Sequential, which {name} calls"
            )
        return
    given = {calls.given(node) for node, module in calls.of.items() if module is norm}
    if (
        given != {node for node, module in calls.of.items() if module is connection}
        or connection in calls.read
    ):
        raise ValueError(f"{name} does something else with the module before it")


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
