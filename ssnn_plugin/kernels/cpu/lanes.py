"""Short vectors of numbers that compiled kernels hold in registers.

LLVM unrolls a loop over the few outputs of one location of a convolution before it could vectorise
it, so that each number is added by itself. These vectors say outright what is meant. A vector is as many
registers as it takes, which are kept apart: LLVM makes slow code of one vector that is no power of two.

`load`, `load_at`, `store`, `pack`, `splat`, `where`, `least`, `any_of` and `total` work on them, as do `+`,
`-`, `*`, `>` and `<=`, and `&`, `|` and `~` on masks. A width is a constant of the code that uses it, or, as
a tuple, a number of registers, which hold 16 numbers or fewer by their type and the machine.
Arrays are read and written without a check of bounds, as everywhere in compiled code.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

from .compile import jit

_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2]
#: bytes of the machine's vector registers; NEON and SSE have 16
REGISTER = 64 if "+avx512f" in _FEATURES else 32 if "+avx" in _FEATURES else 16
#: numbers of registers that a tile of outputs may take, as tuples: numba tells those apart by their length
TILES = (0,), (0,) * 2, (0,) * (5 if REGISTER == 64 else 4)


class Mask(types.Type):
    """`width` truth values, as many a register as there are numbers."""

    def __init__(self, width: int, in_register: int) -> None:
        self.width, self.in_register = width, in_register
        super().__init__(f"Mask({width}, {in_register})")


class Lanes(types.Type):
    """`width` numbers of one type."""

    def __init__(self, dtype: Any, width: int) -> None:
        self.dtype, self.width = dtype, width
        self.in_register = min(width, in_register(dtype))
        super().__init__(f"Lanes({dtype}, {width})")

    @property
    def mask(self) -> Mask:
        return Mask(self.width, self.in_register)


def tile_of(rows: Any, tiles: Sequence[tuple[int, ...]] = TILES) -> tuple[int, ...]:
    """The smallest tile that holds all outputs of these rows, or the widest one."""
    width = rows.shape[-1] * rows.itemsize
    return next((tile for tile in tiles if width <= len(tile) * REGISTER), tiles[-1])


def width_of(tile: tuple[int, ...], itemsize: int) -> int:
    """Outputs in a tile."""
    return len(tile) * REGISTER // itemsize


def in_whole_tiles(outputs: int, tile: tuple[int, ...], itemsize: int) -> int:
    """So many outputs, and as many more as fill the last tile."""
    return outputs + -outputs % width_of(tile, itemsize)


def in_register(dtype: Any) -> int:
    """How many numbers a register holds."""
    return int(REGISTER * 8 // dtype.bitwidth)


def _lanes(dtype: Any, width: Any) -> Lanes | None:
    """Of a width that is a literal, or a tuple of registers."""
    if isinstance(width, types.BaseTuple):
        return Lanes(dtype, len(width) * in_register(dtype))
    lanes = Lanes(dtype, width.literal_value)
    return None if lanes.width % lanes.in_register else lanes


def _vector_model(element: Callable[[Any, Any], ir.Type]) -> type:
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager: Any, fe_type: Any) -> None:
            vector = ir.VectorType(element(manager, fe_type), fe_type.in_register)
            registers = [vector] * (fe_type.width // fe_type.in_register)
            super().__init__(manager, fe_type, ir.LiteralStructType(registers))

    return VectorModel


register_model(Lanes)(_vector_model(lambda manager, lanes: manager[lanes.dtype].get_value_type()))
register_model(Mask)(_vector_model(lambda manager, mask: ir.IntType(1)))


def _registers(builder: Any, value: Any) -> list[Any]:
    return [builder.extract_value(value, k) for k in range(len(value.type.elements))]


def together(builder: Any, registers: Iterable[Any]) -> Any:
    """A value of `Lanes` or `Mask`, of its registers."""
    vectors = list(registers)
    value = ir.Constant(ir.LiteralStructType([vector.type for vector in vectors]), ir.Undefined)
    for k, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, k)
    return value


def _each(builder: Any, emit: Callable[..., Any], *values: Any) -> Any:
    """Do the same to all registers of vectors."""
    registers = (_registers(builder, value) for value in values)
    return together(builder, (emit(*vectors) for vectors in zip(*registers, strict=True)))


def _places(context: Any, builder: Any, array_type: Any, lanes: Lanes, array: Any, index: Any) -> list[Any]:
    """Pointers to the registers of the vector that begins at an element of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return _places_behind(context, builder, array_type, lanes, data, index)


def _places_behind(
    context: Any, builder: Any, array_type: Any, lanes: Lanes, data: Any, index: Any
) -> list[Any]:
    vector = ir.VectorType(context.get_data_type(array_type.dtype), lanes.in_register)
    firsts = range(0, lanes.width, lanes.in_register)
    at = (builder.add(index, ir.Constant(index.type, first)) for first in firsts)
    return [builder.bitcast(builder.gep(data, [i]), vector.as_pointer()) for i in at]


def _holds_lanes(array_type: Any) -> bool:
    return bool(array_type.layout == "C" and isinstance(array_type.dtype, types.Float))


def _align(context: Any, array_type: Any) -> int:
    return int(context.get_abi_sizeof(context.get_data_type(array_type.dtype)))


@intrinsic(prefer_literal=True)
def load(typingctx, array, index, width):
    """The lanes that begin at element `index` of a contiguous array, counted through all axes."""
    if not _holds_lanes(array) or (lanes := _lanes(array.dtype, width)) is None:
        return None

    def generate(context, builder, signature, args):
        places = _places(context, builder, array, lanes, *args[:2])
        return together(builder, (builder.load(place, align=_align(context, array)) for place in places))

    return lanes(array, types.intp, width), generate


@intrinsic(prefer_literal=True)
def load_at(typingctx, like, address, index, width):
    """As `load`, from an array of the type of `like` that begins at an address; nothing keeps it alive."""
    if not _holds_lanes(like) or (lanes := _lanes(like.dtype, width)) is None:
        return None

    def generate(context, builder, signature, args):
        data = builder.inttoptr(args[1], context.get_data_type(like.dtype).as_pointer())
        places = _places_behind(context, builder, like, lanes, data, args[2])
        return together(builder, (builder.load(place, align=_align(context, like)) for place in places))

    return lanes(like, types.intp, types.intp, width), generate


@intrinsic
def load_where(typingctx, mask, array, index, other):
    """As `load`, where the mask is true; elsewhere nothing is read, and `other` is there."""
    if not _holds_lanes(array):
        return None

    def generate(context, builder, signature, args):
        places = _places(context, builder, array, other, *args[1:3])
        align = ir.Constant(ir.IntType(32), _align(context, array))
        masks, others = (_registers(builder, args[k]) for k in (0, 3))
        parts = []
        for place, part, vector in zip(places, masks, others, strict=True):
            suffix = f"v{vector.type.count}f{array.dtype.bitwidth}.p0"
            kind = ir.FunctionType(vector.type, (place.type, align.type, part.type, vector.type))
            read = builder.module.declare_intrinsic(f"llvm.masked.load.{suffix}", (), kind)
            parts.append(builder.call(read, [place, align, part, vector]))
        return together(builder, parts)

    return other(mask, array, types.intp, other), generate


@intrinsic
def store(typingctx, array, index, lanes):
    """Write lanes to a contiguous array, from element `index` on."""
    if not _holds_lanes(array):
        return None

    def generate(context, builder, signature, args):
        places = _places(context, builder, array, lanes, *args[:2])
        for place, vector in zip(places, _registers(builder, args[2]), strict=True):
            builder.store(vector, place, align=_align(context, array))
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
def store_where(typingctx, mask, array, index, lanes):
    """As `store`, where the mask is true; elsewhere nothing is written."""
    if not _holds_lanes(array):
        return None

    def generate(context, builder, signature, args):
        places = _places(context, builder, array, lanes, *args[1:3])
        align = ir.Constant(ir.IntType(32), _align(context, array))
        for place, vector, part in zip(
            places, _registers(builder, args[3]), _registers(builder, args[0]), strict=True
        ):
            kinds = vector.type, place.type, align.type, part.type
            suffix = f"v{vector.type.count}f{array.dtype.bitwidth}.p0"
            kind = ir.FunctionType(ir.VoidType(), kinds)
            write = builder.module.declare_intrinsic(f"llvm.masked.store.{suffix}", (), kind)
            builder.call(write, [vector, place, align, part])
        return context.get_dummy_value()

    return types.void(mask, array, types.intp, lanes), generate


@intrinsic
def pack(typingctx, mask, lanes, array, index):
    """Write the lanes where the mask is true side by side, from element `index` on; return how many.

    There has to be room for all lanes: what is behind those that are written may be anything.
    """
    whole = lanes.in_register == in_register(lanes.dtype)
    if not whole or not _holds_lanes(array) or (array.dtype, mask) != (lanes.dtype, lanes.mask):
        return None

    def generate(context, builder, signature, args):
        parts, vectors = _registers(builder, args[0]), _registers(builder, args[1])
        data = context.make_array(array)(context, builder, args[2]).data
        return _pack(builder, parts, vectors, data, args[3])

    return types.intp(mask, lanes, array, types.intp), generate


@intrinsic
def pack_numbers(typingctx, mask, array, index, first):
    """As `pack`, of the number `first` + k for lane k, to an array of integers of 32 bits."""
    if not isinstance(array.dtype, types.Integer) or array.dtype.bitwidth != 32 or array.layout != "C":
        return None

    def generate(context, builder, signature, args):
        number, parts = context.get_data_type(array.dtype), _registers(builder, args[0])
        begin = _broadcast(builder, builder.trunc(args[3], number), mask.in_register)
        firsts = range(0, mask.width, mask.in_register)
        steps = (ir.Constant(begin.type, list(range(k, k + mask.in_register))) for k in firsts)
        data = context.make_array(array)(context, builder, args[1]).data
        return _pack(builder, parts, [builder.add(begin, step) for step in steps], data, args[2])

    return types.intp(mask, array, types.intp, types.intp), generate


@intrinsic
def pack_part(typingctx, mask, source, first, less, array, index):
    """As `pack`, of what lies in `source` from element `first` on, less a number.

    Of integers of 32 bits, or of floats that fill whole registers.
    """
    kind = source.dtype
    if isinstance(kind, types.Float):
        fits = mask.in_register == in_register(kind)
    else:
        fits = isinstance(kind, types.Integer) and kind.bitwidth == 32
    if not fits or {source.layout, array.layout} != {"C"} or not kind == array.dtype == less:
        return None

    def generate(context, builder, signature, args):
        sub = builder.fsub if isinstance(source.dtype, types.Float) else builder.sub
        number, by = context.get_data_type(source.dtype), _broadcast(builder, args[3], mask.in_register)
        align, pointer = _align(context, source), ir.VectorType(number, mask.in_register).as_pointer()
        data = context.make_array(source)(context, builder, args[1]).data
        vectors = []
        for k in range(0, mask.width, mask.in_register):
            place = builder.gep(data, [builder.add(args[2], ir.Constant(args[2].type, k))])
            vectors.append(sub(builder.load(builder.bitcast(place, pointer), align=align), by))
        to = context.make_array(array)(context, builder, args[4]).data
        return _pack(builder, _registers(builder, args[0]), vectors, to, args[5])

    return types.intp(mask, source, types.intp, less, array, types.intp), generate


def _pack(builder: Any, masks: list[Any], vectors: list[Any], data: Any, index: Any) -> Any:
    at = index
    for mask, vector in zip(masks, vectors, strict=True):
        pack_register = _pack_at_once if REGISTER == 64 else _pack_one_by_one
        at = pack_register(builder, mask, vector, data, at)
    return builder.sub(at, index)


def _pack_at_once(builder: Any, mask: Any, vector: Any, data: Any, at: Any) -> Any:
    """By AVX-512, and a store of the whole register: one of the packed lanes alone is slow on Zen 4."""
    count, bits = mask.type.count, REGISTER * 8 // mask.type.count
    whole, suffix = vector, f"f{bits}"
    if isinstance(vector.type.element, ir.IntType):  # beside double precision they fill half a register
        integer = ir.VectorType(ir.IntType(bits), count)
        whole, suffix = vector if vector.type == integer else builder.zext(vector, integer), f"i{bits}"
    kind = ir.FunctionType(whole.type, (whole.type, whole.type, mask.type))
    name = f"llvm.x86.avx512.mask.compress.v{count}{suffix}"
    compress = builder.module.declare_intrinsic(name, (), kind)
    # Zeros behind them, as LLVM makes of undefined lanes; at those of floats LLVM 14 ends the process.
    packed = builder.call(compress, [whole, ir.Constant(whole.type, None), mask])
    packed = packed if whole is vector else builder.trunc(packed, vector.type)
    place = builder.bitcast(builder.gep(data, [at]), packed.type.as_pointer())
    builder.store(packed, place, align=1)
    ones = builder.ctpop(builder.bitcast(mask, ir.IntType(count)))
    return builder.add(at, builder.zext(ones, at.type))


def _pack_one_by_one(builder: Any, mask: Any, vector: Any, data: Any, at: Any) -> Any:
    for k in range(mask.type.count):
        lane = ir.Constant(ir.IntType(32), k)
        builder.store(builder.extract_element(vector, lane), builder.gep(data, [at]))
        at = builder.add(at, builder.zext(builder.extract_element(mask, lane), at.type))
    return at


@intrinsic(prefer_literal=True)
def splat(typingctx, number, width):
    """The same number in every lane."""
    if (lanes := _lanes(number, width)) is None:
        return None

    def generate(context, builder, signature, args):
        vector = _broadcast(builder, args[0], lanes.in_register)
        return together(builder, [vector] * (lanes.width // lanes.in_register))

    return lanes(number, width), generate


@intrinsic
def leading(typingctx, lanes, count):
    """Mask of as many lanes as are given, from the first one on."""

    def generate(context, builder, signature, args):
        limit = _broadcast(builder, args[1], lanes.in_register)
        firsts = range(0, lanes.width, lanes.in_register)
        numbers = (range(first, first + lanes.in_register) for first in firsts)
        parts = (ir.Constant(limit.type, list(part)) for part in numbers)
        return together(builder, (builder.icmp_signed("<", part, limit) for part in parts))

    return lanes.mask(lanes, types.intp), generate


def _broadcast(builder: Any, number: Any, width: int) -> Any:
    empty = ir.Constant(ir.VectorType(number.type, width), ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, _indices([0] * width))


@overload(len)
def _(lanes):
    if isinstance(lanes, Lanes):
        width = lanes.width
        return lambda lanes: width
    return None


@intrinsic
def where(typingctx, mask, chosen, other):
    """`chosen` where the mask is true, `other` elsewhere."""

    def generate(context, builder, signature, args):
        return _each(builder, builder.select, *args)

    return chosen(mask, chosen, chosen), generate


@intrinsic
def least(typingctx, lanes, other):
    """The lesser number in every lane."""

    def generate(context, builder, signature, args):
        return _each(builder, lambda a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b), *args)

    return lanes(lanes, lanes), generate


@intrinsic
def any_of(typingctx, mask):
    """Whether the mask is true in any lane."""

    def generate(context, builder, signature, args):
        some, *others = _registers(builder, args[0])
        for other in others:
            some = builder.or_(some, other)
        bits = builder.bitcast(some, ir.IntType(mask.in_register))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), generate


@intrinsic
def total(typingctx, lanes):
    """Sum over the lanes, a power of two of them: halves added to each other until one is left."""
    if lanes.width & (lanes.width - 1):
        return None

    def generate(context, builder, signature, args):
        registers = _registers(builder, args[0])
        while len(registers) > 1:
            half = len(registers) // 2
            registers = [builder.fadd(registers[k], registers[half + k]) for k in range(half)]
        (vector,) = registers
        width = lanes.in_register
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


def _operator(of: Callable[..., Any], operand: type, compares: bool, emit: Callable[..., Any]) -> None:
    """Give lanes, or masks, a binary operator; its result is of the operands' type, or a mask."""

    @intrinsic
    def apply(typingctx, left, right):
        def generate(context, builder, signature, args):
            return _each(builder, lambda a, b: emit(builder, a, b), *args)

        return (left.mask if compares else left)(left, right), generate

    @overload(of, inline="always")
    def _(left, right):
        if isinstance(left, operand) and left == right:
            return lambda left, right: apply(left, right)
        return None


_operator(operator.add, Lanes, False, lambda builder, a, b: builder.fadd(a, b, flags=("contract",)))
_operator(operator.sub, Lanes, False, lambda builder, a, b: builder.fsub(a, b, flags=("contract",)))
_operator(operator.mul, Lanes, False, lambda builder, a, b: builder.fmul(a, b, flags=("contract",)))
_operator(operator.gt, Lanes, True, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_operator(operator.le, Lanes, True, lambda builder, a, b: builder.fcmp_ordered("<=", a, b))
_operator(operator.and_, Mask, False, lambda builder, a, b: builder.and_(a, b))
_operator(operator.or_, Mask, False, lambda builder, a, b: builder.or_(a, b))


@intrinsic
def _not(typingctx, mask):
    def generate(context, builder, signature, args):
        return _each(builder, builder.not_, *args)

    return mask(mask), generate


@overload(operator.invert, inline="always")
def _(mask):
    return (lambda mask: _not(mask)) if isinstance(mask, Mask) else None


@jit
def at_least_a_tile(rows, tile):
    """Rows padded with zeros, if they are narrower than a tile."""
    width = len(splat(rows.dtype.type(0), tile))
    if rows.shape[1] >= width:
        return rows
    padded = np.zeros((len(rows), width), rows.dtype)
    for i in range(len(rows)):
        for j in range(rows.shape[1]):
            padded[i, j] = rows[i, j]
    return padded


@jit
def current_of(bias, rows):
    """The current at time 0, of as many outputs as the rows have; 0 where `bias` is empty."""
    current = np.zeros(rows.shape[1], rows.dtype)
    for j in range(bias.size):
        current[j] = bias[j]
    return current
