"""Short vectors of numbers that compiled kernels hold in registers.

LLVM unrolls a loop over the few outputs of one location of a convolution before it could vectorise
it, so that each number is added by itself. These vectors say outright what is meant; on any machine
LLVM splits them into as many registers as it takes.

`load`, `load_at`, `store`, `splat`, `where`, `least`, `any_of`, `set_lanes` and `total` work on them, as do
`+`, `-`, `*`, `>` and `<=`, and `&` and `|` on masks. How many numbers a vector has is a constant of the code
that uses it.
Arrays are read and written without a check of bounds, as everywhere in compiled code.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model


class Lanes(types.Type):
    """`width` numbers of one type."""

    def __init__(self, dtype: types.Type, width: int) -> None:
        self.dtype, self.width = dtype, width
        super().__init__(f"Lanes({dtype}, {width})")


class Mask(types.Type):
    """`width` truth values."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(f"Mask({width})")


def _vector_model(element: Callable[[Any, Any], ir.Type]) -> type:
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager: Any, fe_type: Any) -> None:
            super().__init__(manager, fe_type, ir.VectorType(element(manager, fe_type), fe_type.width))

    return VectorModel


register_model(Lanes)(_vector_model(lambda manager, lanes: manager[lanes.dtype].get_value_type()))
register_model(Mask)(_vector_model(lambda manager, mask: ir.IntType(1)))


def _place(context: Any, builder: Any, array_type: Any, width: int, array: Any, index: Any) -> Any:
    """Pointer to the vector that begins at an element of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), width)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _holds_lanes(array_type: Any) -> bool:
    return bool(array_type.layout == "C" and isinstance(array_type.dtype, types.Float))


def _align(context: Any, array_type: Any) -> int:
    return int(context.get_abi_sizeof(context.get_data_type(array_type.dtype)))


@intrinsic(prefer_literal=True)
def load(typingctx, array, index, width):
    """The lanes that begin at element `index` of a contiguous array, counted through all axes."""
    if not _holds_lanes(array):
        return None

    def generate(context, builder, signature, args):
        place = _place(context, builder, array, width.literal_value, *args[:2])
        return builder.load(place, align=_align(context, array))

    return Lanes(array.dtype, width.literal_value)(array, types.intp, width), generate


@intrinsic(prefer_literal=True)
def load_at(typingctx, like, address, index, width):
    """As `load`, from an array of the type of `like` that begins at an address; nothing keeps it alive."""
    if not _holds_lanes(like):
        return None

    def generate(context, builder, signature, args):
        number = context.get_data_type(like.dtype)
        data = builder.inttoptr(args[1], number.as_pointer())
        vector = ir.VectorType(number, width.literal_value)
        place = builder.bitcast(builder.gep(data, [args[2]]), vector.as_pointer())
        return builder.load(place, align=_align(context, like))

    return Lanes(like.dtype, width.literal_value)(like, types.intp, types.intp, width), generate


@intrinsic
def store(typingctx, array, index, lanes):
    """Write lanes to a contiguous array, from element `index` on."""
    if not _holds_lanes(array):
        return None

    def generate(context, builder, signature, args):
        place = _place(context, builder, array, lanes.width, *args[:2])
        builder.store(args[2], place, align=_align(context, array))
        return context.get_dummy_value()

    return types.void(array, types.intp, Lanes(array.dtype, lanes.width)), generate


@intrinsic(prefer_literal=True)
def splat(typingctx, number, width):
    """The same number in every lane."""

    def generate(context, builder, signature, args):
        empty = ir.Constant(ir.VectorType(args[0].type, width.literal_value), ir.Undefined)
        first = builder.insert_element(empty, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, empty, _indices([0] * width.literal_value))

    return Lanes(number, width.literal_value)(number, width), generate


@intrinsic
def where(typingctx, mask, chosen, other):
    """`chosen` where the mask is true, `other` elsewhere."""

    def generate(context, builder, signature, args):
        return builder.select(*args)

    return chosen(mask, chosen, chosen), generate


@intrinsic
def least(typingctx, lanes, other):
    """The lesser number in every lane."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return lanes(lanes, lanes), generate


@intrinsic
def any_of(typingctx, mask):
    """Whether the mask is true in any lane."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.width))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), generate


@intrinsic
def set_lanes(typingctx, mask):
    """The mask as a whole number, whose bits are the lanes; 64 of them at most."""
    if mask.width > 64:
        return None

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.width))
        return builder.zext(bits, ir.IntType(64)) if mask.width < 64 else bits

    return types.uint64(mask), generate


@intrinsic
def lowest_set_bit(typingctx, bits):
    """Which bit of a whole number other than 0 is the lowest that is set."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def total(typingctx, lanes):
    """Sum over the lanes, a power of two of them: halves added to each other until one is left."""
    if lanes.width & (lanes.width - 1):
        return None

    def generate(context, builder, signature, args):
        (vector,) = args
        width = lanes.width
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


def _operator(of: Callable[..., Any], operand: type, result: type | None, emit: Callable[..., Any]) -> None:
    """Give lanes, or masks, a binary operator; its result is of the operands' type, or a mask."""

    @intrinsic
    def apply(typingctx, left, right):
        def generate(context, builder, signature, args):
            return emit(builder, *args)

        return (result(left.width) if result else left)(left, right), generate

    @overload(of, inline="always")
    def _(left, right):
        if isinstance(left, operand) and left == right:
            return lambda left, right: apply(left, right)
        return None


_operator(operator.add, Lanes, None, lambda builder, a, b: builder.fadd(a, b, flags=("contract",)))
_operator(operator.sub, Lanes, None, lambda builder, a, b: builder.fsub(a, b, flags=("contract",)))
_operator(operator.mul, Lanes, None, lambda builder, a, b: builder.fmul(a, b, flags=("contract",)))
_operator(operator.gt, Lanes, Mask, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_operator(operator.le, Lanes, Mask, lambda builder, a, b: builder.fcmp_ordered("<=", a, b))
_operator(operator.and_, Mask, None, lambda builder, a, b: builder.and_(a, b))
_operator(operator.or_, Mask, None, lambda builder, a, b: builder.or_(a, b))
