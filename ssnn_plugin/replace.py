"""Host neurons -> single-spike neurons, in place in a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from . import _checks
from .convert import Host, loaded_hosts

Filter: TypeAlias = "str | type | Callable[[str, nn.Module], bool]"
Filters: TypeAlias = "Filter | Iterable[Filter]"
Found: TypeAlias = "list[tuple[str, nn.Module, Host]]"

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
TRANSPARENT = (nn.Identity, nn.Dropout)


class Replacement(NamedTuple):
    """What `replace_neurons` put in the place of a module, or left there, and what could not be kept."""

    path: str
    old: str
    new: str
    lost: tuple[str, ...]
    firing: float | None = None

    def __str__(self) -> str:
        what = f"{self.path}: {self.old} -> {self.new}" if self.new else f"{self.path}: {self.old} stays"
        firing = "" if self.firing is None else f"\n  {self.firing:.0%} of its neurons fire"
        return what + "".join(f"\n  {line}" for line in self.lost) + firing


def replace_neurons(
    model: nn.Module,
    *,
    only: Filters | None = None,
    keep: Filters | None = None,
    max_pools: Filters | None = None,
    calibrate_on: Tensor | None = None,
    fraction: float = 0.5,
) -> list[Replacement]:
    """Swap the neurons of snnTorch and Norse in a model for single-spike ones, in place, keeping weights.

    Handled are snnTorch's Leaky, Lapicque and Synaptic, and Norse's IAF, LIF and LIFBox, cells and
    layers. Their surrogate gradients give way to the latency rule, without which there is no time mode.
    Forward and backward hooks go along, and so does what the model's own code and its checkpoints know of
    a neuron. Membrane read-outs, neurons with `reset_mechanism="none"`, stay.

    A filter is a path such as "block.lif", in which * stands for anything, a class, a function
    (path, module) -> bool, or several of these.

    Args:
        only, keep: filters; which neurons to replace, and which not.
        max_pools: filter for `MaxPool2d` behind neurons that shall become `FirstSpikePool2d`, as a max-pool
            of spikes fires once for each of its inputs.
        calibrate_on: a batch of spike trains [T, batch, *], as the model reads them, on which the weights
            are raised so that neurons fire, by `calibrate` of the adapter: for a model yet to be trained.
        fraction: of the neurons of each layer that shall fire on it.

    Returns:
        What was changed and what stays, one entry per module, with what could not be kept.

    Raises:
        ValueError: a neuron that cannot be replaced, such as a recurrent one, by its path and class; a filter
            that fits no module; a pool of currents; a model that is a neuron itself; as `calibrate` of the
            adapter. Then nothing has been changed.

    >>> import snntorch, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), snntorch.Leaky(beta=0.5, init_hidden=True))
    >>> print(*replace_neurons(model))
    1: Leaky -> SingleSpike
      reset_mechanism 'subtract': a neuron that fires once is not reset
      spike_grad: the latency rule replaces the surrogate
    """
    hosts = loaded_hosts()
    neurons = _chosen(_neurons(model, hosts), only, keep)
    pools = [] if max_pools is None else _filtered("max_pools", max_pools, _pools(model, hosts))
    new: dict[nn.Module, nn.Module] = {}
    changes = []
    for path, module, host in neurons:
        why = host.stays(module)
        if why is not None:
            changes.append(Replacement(path, type(module).__name__, "", (why,)))
            continue
        try:
            replaced, lost = (new[module], ()) if module in new else host.single_spike(module)
        except ValueError as error:
            raise ValueError(f"{path} ({type(module).__name__}) cannot be replaced: {error}") from error
        if module not in new:
            lost += _carry_over(module, replaced)
        new[module] = replaced
        changes.append(Replacement(path, type(module).__name__, type(replaced).__name__, lost))
    for path, module, host in pools:
        new[module] = _pool(model, path, module, host)
        changes.append(Replacement(path, type(module).__name__, type(new[module]).__name__, ()))
    places = [(path, module) for path, module, _ in (*neurons, *pools) if module in new]
    for path, module in places:
        _put(model, path, new[module])
    if calibrate_on is None:
        return changes
    if not neurons:
        raise ValueError(
            f"calibrate_on needs neurons of a host in the model, got {type(model).__name__} without any"
        )
    try:
        return _calibrated(model, changes, {host: None for _, _, host in neurons}, calibrate_on, fraction)
    except Exception:
        for path, module in places:
            _put(model, path, module)
        raise


def _neurons(model: nn.Module, hosts: list[Host]) -> Found:
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        host = next((h for h in hosts if h.refires(module) or h.stays(module) is not None), None)
        if host is not None and not path:
            raise ValueError(
                f"model is a neuron itself ({type(module).__name__}): pass the model it is part of"
            )
        if host is not None:
            found.append((path, module, host))
    return found


def _pools(model: nn.Module, hosts: list[Host]) -> Found:
    """Max-pools, with the host whose neurons the model has."""
    host = next((h for h in hosts if any(map(h.refires, model.modules()))), None)
    pools = ((path, module) for path, module in model.named_modules() if isinstance(module, nn.MaxPool2d))
    return [(path, module, host) for path, module in pools if host is not None and path]


def _chosen(found: Found, only: Filters | None, keep: Filters | None) -> Found:
    chosen = found if only is None else _filtered("only", only, found)
    kept = [] if keep is None else _filtered("keep", keep, found)
    return [entry for entry in chosen if entry not in kept]


def _filtered(name: str, filters: Filters, found: Found) -> Found:
    several = [filters] if isinstance(filters, str | type) or callable(filters) else list(filters)
    chosen: Found = []
    for one in several:
        fitting = [entry for entry in found if _fits(one, entry[0], entry[1])]
        if not fitting:
            known = ", ".join(f"{path} ({type(module).__name__})" for path, module, _ in found) or "none"
            raise ValueError(f"{name} must fit modules of the model, which has {known}; got {one!r}")
        chosen += fitting
    return [entry for entry in found if entry in chosen]


def _fits(one: Filter, path: str, module: nn.Module) -> bool:
    if isinstance(one, str):
        return fnmatchcase(path, one)
    if isinstance(one, type):
        return isinstance(module, one)
    return bool(one(path, module))


def _carry_over(old: nn.Module, new: nn.Module) -> tuple[str, ...]:
    """Mode and hooks; the dictionaries themselves, so that handles still remove theirs."""
    new.train(old.training)
    for name in HOOKS:
        new.__dict__[name] = old.__dict__[name]
    if any(old.__dict__[name] for name in STATE_HOOKS):
        return ("state dict hooks: register them on the new module",)
    return ()


def _pool(model: nn.Module, path: str, pool: nn.Module, host: Host) -> nn.Module:
    try:
        if _checks.in_two_places(model, pool):
            raise ValueError("it stands in two places, which would share a state. Use a MaxPool2d for each")
        _check_position(model.get_submodule(path.rpartition(".")[0]), pool)
        return host.first_spike_pool(pool, model).train(pool.training)
    except ValueError as error:
        raise ValueError(f"{path} (MaxPool2d) cannot become a FirstSpikePool2d: {error}") from error


def _check_position(parent: nn.Module, pool: nn.Module) -> None:
    """In a container it is plain what stands in front of a pool."""
    if not isinstance(parent, nn.Sequential):
        return
    before: nn.Module | None = None
    for module in parent:
        if module is pool:
            break
        before = before if isinstance(module, TRANSPARENT) else module
    if isinstance(before, nn.Linear | nn.Conv1d | nn.Conv2d | nn.BatchNorm2d | nn.AvgPool2d):
        raise ValueError(
            f"it pools currents, behind {type(before).__name__}. Move it behind the neuron, or use AvgPool2d"
        )


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _calibrated(
    model: nn.Module, changes: list[Replacement], hosts: Iterable[Host], trains: Tensor, fraction: float
) -> list[Replacement]:
    reached: dict[str, float] = {}
    for host in hosts:
        reached |= host.calibrate(model, trains, fraction)
    return [change._replace(firing=reached.get(change.path)) for change in changes]
