"""Short vectors of numbers that compiled kernels hold in registers.

LLVM unrolls a loop over the few outputs of one location of a convolution before it could vectorise
it, so that each number is added by itself. These vectors say outright what is meant; on any machine
LLVM splits them into as many registers as it takes.

`load`, `store`, `splat`, `where`, `any_of` and `total` work on them, as do `+`, `-`, `*`, `>` and `<=`.
Arrays are read and written without a check of bounds, as everywhere in compiled code.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

LANES = 16


class Lanes(types.Type):
    """`LANES` numbers of one type."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(f"Lanes({dtype})")


class Mask(types.Type):
    """`LANES` truth values."""

    def __init__(self) -> None:
        super().__init__("Mask")


def _vector_model(element: Callable[[Any, Any], ir.Type]) -> type:
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager: Any, fe_type: Any) -> None:
            super().__init__(manager, fe_type, ir.VectorType(element(manager, fe_type), LANES))

    return VectorModel


register_model(Lanes)(_vector_model(lambda manager, lanes: manager[lanes.dtype].get_value_type()))
register_model(Mask)(_vector_model(lambda manager, mask: ir.IntType(1)))


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to the vector that begins at an element of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _align(context: Any, array_type: Any) -> int:
    return int(context.get_abi_sizeof(context.get_data_type(array_type.dtype)))


@intrinsic
def load(typingctx, array, index):
    """The lanes that begin at element `index` of a contiguous array, counted through all axes."""

    def generate(context, builder, signature, args):
        place = _place(context, builder, array, *args)
        return builder.load(place, align=_align(context, array))

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
def store(typingctx, array, index, lanes):
    """Write lanes to a contiguous array, from element `index` on."""

    def generate(context, builder, signature, args):
        place = _place(context, builder, array, *args[:2])
        builder.store(args[2], place, align=_align(context, array))
        return context.get_dummy_value()

    return types.void(array, types.intp, Lanes(array.dtype)), generate


@intrinsic
def splat(typingctx, number):
    """The same number in every lane."""

    def generate(context, builder, signature, args):
        empty = ir.Constant(ir.VectorType(args[0].type, LANES), ir.Undefined)
        first = builder.insert_element(empty, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, empty, _indices([0] * LANES))

    return Lanes(number)(number), generate


@intrinsic
def where(typingctx, mask, chosen, other):
    """`chosen` where the mask is true, `other` elsewhere."""

    def generate(context, builder, signature, args):
        return builder.select(*args)

    return chosen(mask, chosen, chosen), generate


@intrinsic
def any_of(typingctx, mask):
    """Whether the mask is true in any lane."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), generate


@intrinsic
def total(typingctx, lanes):
    """Sum over the lanes, halves added to each other until one number is left."""

    def generate(context, builder, signature, args):
        (vector,) = args
        width = LANES
        while width > 1:
            width //= 2
            low, high = _indices(range(width)), _indices(range(width, 2 * width))
            vector = builder.fadd(
                builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high)
            )
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return lanes.dtype(lanes), generate


def _indices(lanes: Iterable[int]) -> ir.Constant:
    numbers = list(lanes)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _operator(
    of: Callable[..., Any], emit: Callable[..., Any], result: Callable[[Lanes], types.Type]
) -> None:
    """Give lanes a binary operator."""

    @intrinsic
    def apply(typingctx, left, right):
        def generate(context, builder, signature, args):
            return emit(builder, *args)

        return result(left)(left, right), generate

    @overload(of, inline="always")
    def _(left, right):
        if isinstance(left, Lanes) and left == right:
            return lambda left, right: apply(left, right)
        return None


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b), lambda lanes: lanes)
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b), lambda lanes: lanes)
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b), lambda lanes: lanes)
_operator(operator.gt, lambda builder, a, b: builder.fcmp_ordered(">", a, b), lambda lanes: Mask())
_operator(operator.le, lambda builder, a, b: builder.fcmp_ordered("<=", a, b), lambda lanes: Mask())
