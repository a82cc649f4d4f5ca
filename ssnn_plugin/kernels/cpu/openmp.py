"""Kernels on the OpenMP threads that torch has, entered without the interpreter.

Those threads wait for work by turning in place for about a millisecond, so that handing some over takes
microseconds; a thread that sleeps is woken up in 20 to 90, and a second pool would turn against torch's for
the cores. A kernel is called by the address of its machine code, with the arguments as they lie in memory.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import _dispatcher
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compile import jit

_forked = False


def _forget_threads() -> None:
    """A child process has none of the threads that OpenMP thinks it has.

    In one that first imports this module, OpenMP waits for them, as it does in torch's own operators.
    """
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run(
    addresses: tuple[int, ...], kernel: Callable[..., None], length: int, parts: int, args: tuple[Any, ...]
) -> None:
    """Run `kernel(first, last, *args)` over as many ranges of 0 ... length as there are `parts`.

    `addresses` are those found below. All threads are asked for, as torch does, though some may have nothing
    to do: OpenMP ends those that are not asked for, and would have to start them again.

    Raises:
        RuntimeError: the kernel raised an error.
    """
    entry = _entry(kernel, length, args)
    if code := _run_on_threads(addresses, entry, length, parts, torch.get_num_threads(), args):
        raise RuntimeError(f"{kernel.__name__} failed in one of {parts} parts, with numba's code {code}")


def addresses() -> tuple[int, ...] | None:
    """Of what starts OpenMP's threads and tells them apart, in torch's own library; None if it has none."""
    return None if _forked else _find()


@cache
def _find() -> tuple[int, ...] | None:
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        names = "GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num"
        found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names]
    except (OSError, AttributeError):
        return None
    return tuple(address or 0 for address in found)


_entries: dict[tuple[Any, bytes], int] = {}


def _entry(kernel: Any, length: int, args: tuple[Any, ...]) -> int:
    """Address of the machine code for arguments of these types."""
    key = kernel, _dispatcher.compute_fingerprint(args)
    if key not in _entries:
        signature = tuple(map(kernel.typeof_pyval, (0, length, *args)))
        kernel.compile(signature)
        compiled = kernel.overloads[signature]
        _entries[key] = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return _entries[key]


@jit
def _run_on_threads(addresses, entry, length, parts, threads, args):
    """Numba's code of a kernel that failed, or 0."""
    return _start_threads(addresses, entry, length, parts, threads, args)


@intrinsic
def _start_threads(typingctx, addresses, entry, length, parts, threads, args):
    kernel_types = (types.intp, types.intp, *args.types)

    def generate(context, builder, signature, values):
        starts, count, number = cgutils.unpack_tuple(builder, values[0])
        # What the threads read, and where one writes that its kernel failed.
        shared = cgutils.pack_struct(builder, [count, number, *values[1:4], values[5], CODE(0)])
        place = cgutils.alloca_once_value(builder, shared)
        body = _body(context, builder.module, kernel_types, place.type)
        start = builder.inttoptr(starts, START.as_pointer())
        data = builder.bitcast(place, BYTES)
        builder.call(start, [builder.bitcast(body, BYTES), data, builder.trunc(values[4], CODE), CODE(0)])
        return builder.load(cgutils.gep_inbounds(builder, place, 0, FAILED))

    return types.int32(addresses, entry, length, parts, threads, args), generate


CODE, BYTES = ir.IntType(32), ir.IntType(8).as_pointer()
# Where a thread writes that its kernel failed, behind what all of them read.
FAILED = 6
# void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags)
START = ir.FunctionType(ir.VoidType(), [BYTES, BYTES, CODE, CODE])


def _body(context: Any, module: Any, kernel_types: tuple[Any, ...], place: Any) -> Any:
    """What each thread does: the kernel on a range of its own, if there is one for it."""
    kind = ir.FunctionType(ir.VoidType(), [BYTES])
    function = ir.Function(module, kind, module.get_unique_name("on_each_thread"))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    place = builder.bitcast(function.args[0], place)
    count, number, entry, length, parts, args = (
        builder.load(cgutils.gep_inbounds(builder, place, 0, k)) for k in range(FAILED)
    )
    ask = ir.FunctionType(CODE, []).as_pointer()
    threads, thread = (
        builder.zext(builder.call(builder.inttoptr(address, ask), []), length.type)
        for address in (count, number)
    )
    ranges = builder.select(builder.icmp_signed("<", threads, parts), threads, parts)
    with builder.if_then(builder.icmp_signed("<", thread, ranges)):
        first, last = (
            builder.sdiv(builder.mul(length, k), ranges)
            for k in (thread, builder.add(thread, thread.type(1)))
        )
        callee = context.call_conv.get_function_type(types.none, kernel_types).as_pointer()
        values = [first, last, *cgutils.unpack_tuple(builder, args)]
        status, _ = context.call_conv.call_function(
            builder, builder.inttoptr(entry, callee), types.none, kernel_types, values
        )
        with builder.if_then(status.is_error):
            builder.store(status.code, cgutils.gep_inbounds(builder, place, 0, FAILED))
    builder.ret_void()
    return function
