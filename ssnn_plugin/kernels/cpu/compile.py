"""How the kernels are compiled, and where their machine code is kept."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numba as nb
from numba.core import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import overload

NAMED_TUPLES = types.NamedTuple, types.NamedUniTuple


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function; re-association lets sums vectorise, and leaves `inf` alone, which is silence."""
    return compiled(function, fastmath={"reassoc", "contract"})


def lean_jit(function: Callable[..., Any]) -> Any:
    """As `jit`, without counting references to arrays, which can take longer than what is done with them.

    Nothing can be allocated.
    """
    return compiled(function, fastmath={"reassoc", "contract"}, _nrt=False)


def exact_jit(function: Callable[..., Any]) -> Any:
    """As `jit`, but as it is written, bit by bit: as a loop of torch operations computes it."""
    return compiled(function, fastmath=False)


def part_of_callers(function: Callable[..., Any]) -> Any:
    """Compile a function into the loops that call it; sums keep their order, as their rounding counts."""
    return compiled(function, fastmath={"contract"}, forceinline=True)


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function with options of numba's; what is compiled is kept on disk, where it can be."""
    dispatcher = nb.njit(nogil=True, error_model="numpy", **options)(function)
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError:
        _say_once_that_nothing_is_kept()
    return dispatcher


def told_apart(response: Any) -> Any:
    """A response whose type has a name that no other type has: numba's symbols hold names alone.

    The types of this package have such names, and must, as what is cached finds them by these.
    """
    is_own = _root(type(response)) == _root(compiled)
    return response if is_own else _of_its_own(response.__class__)(*response)


@cache
def _of_its_own(cls: Any) -> Any:
    name = f"{cls.__module__}_{cls.__qualname__}_{id(cls):x}"
    return type(name, (cls,), {"__module__": cls.__module__, "__slots__": ()})


def _root(defined: Callable[..., Any]) -> str:
    """The top-level package that a class or a function is defined in."""
    return defined.__module__.partition(".")[0]


def chosen(by: Callable[[Any], Any], **options: Any) -> Callable[..., Any]:
    """A function that is the one of this type of its first argument, when a caller is compiled.

    A test in compiled code would leave the types of both open.
    """

    def function(first: Any, *others: Any) -> Any:
        raise NotImplementedError

    overload(function, strict=False, **options)(lambda first, *others: by(first))
    return function


def where_given(absent: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function of an optional first argument, which is `absent` where that is None."""
    return lambda present: chosen(lambda first: absent if isinstance(first, types.NoneType) else present)


# A function of an optional first argument; None stays.
optional = where_given(lambda first, *others: None)


def method(name: str, otherwise: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that is a method of its first argument, a named tuple, or another one if that has none."""
    options = {"forceinline": True}
    return chosen(lambda owner: getattr(owner.instance_class, name, otherwise), jit_options=options)


class _Cache(FunctionCache):
    """Numba's cache on disk, without what is compiled for neurons of other packages.

    Its index names the types of all arguments, and could not be read where such a package is missing.
    What was compiled is used as long as no file has changed that it may have taken a function from.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._packages = {_root(compiled), _root(function)}
        folder = Path(function.__code__.co_filename).parent
        stamp = self._impl.locator.get_source_stamp(), _digest_of_sources(folder)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)
        # A stale index may name types that are gone: only one of the same version is read at all.
        self._cache_file._version = nb.__version__, stamp

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if self._is_foreign(sig):
            return None
        found = super().load_overload(sig, target_context)
        # Processes that write at once can leave the index of one beside the code of another.
        return found if found is not None and found.signature.args == tuple(sig) else None

    def save_overload(self, sig: Any, data: Any) -> None:
        if not self._is_foreign(data.signature.args):
            super().save_overload(sig, data)

    def _is_foreign(self, argument_types: Any) -> bool:
        return not self._packages.issuperset(map(_root, _named_tuples(argument_types)))


def _named_tuples(argument_types: Iterable[Any]) -> Iterator[Any]:
    """The classes of named tuples, and of those in tuples of any kind."""
    for each in argument_types:
        if isinstance(each, NAMED_TUPLES):
            yield each.instance_class
        if isinstance(each, types.BaseTuple):
            yield from _named_tuples(each)  # type: ignore[arg-type]


@cache
def _digest_of_sources(folder: Path) -> str:
    """Of the files in a folder, and of those of this package that have compiled functions."""
    package = Path(__file__).parents[2]
    files = {path for part in ("kernels", "neurons") for path in (package / part).rglob("*.py")}
    files.update(folder.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


_said = False


def _say_once_that_nothing_is_kept() -> None:
    global _said
    if not _said:
        warnings.warn(
            "ssnn_plugin finds no folder in which it can keep its compiled kernels, and will compile them "
            "anew in every process: set NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )
    _said = True
