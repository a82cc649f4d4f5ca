"""Sets of small numbers as the bits of words."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .lanes import Lanes, Mask, together


@intrinsic
def trailing_zeros(typingctx, word):
    """The lowest number in a set; of an empty one, how many numbers it could hold."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return _of_words(word, generate)


@intrinsic
def count_ones(typingctx, word):
    """How many numbers are in a set."""

    def generate(context, builder, signature, args):
        return builder.ctpop(args[0])

    return _of_words(word, generate)


@intrinsic
def bits_of(typingctx, mask):
    """The lanes where a mask is true, of 64 at most."""
    if not isinstance(mask, Mask) or mask.width > 64:
        return None

    def generate(context, builder, signature, args):
        word = ir.IntType(64)
        union = ir.Constant(word, 0)
        for k in range(mask.width // mask.in_register):
            part = builder.bitcast(builder.extract_value(args[0], k), ir.IntType(mask.in_register))
            moved = builder.shl(builder.zext(part, word), ir.Constant(word, k * mask.in_register))
            union = builder.or_(union, moved)
        return union

    return types.uint64(mask), generate


@intrinsic
def mask_of(typingctx, word, lanes):
    """The mask that is true in the lanes that a set has, of 64 at most: what `bits_of` undoes."""
    if not isinstance(lanes, Lanes) or lanes.width > 64:
        return None

    def generate(context, builder, signature, args):
        parts, kind = [], ir.IntType(lanes.in_register)
        for k in range(0, lanes.width, lanes.in_register):
            part = builder.trunc(builder.lshr(args[0], ir.Constant(args[0].type, k)), kind)
            parts.append(builder.bitcast(part, ir.VectorType(ir.IntType(1), lanes.in_register)))
        return together(builder, parts)

    return lanes.mask(types.uint64, lanes), generate


def _of_words(word, generate):
    return (word(word), generate) if isinstance(word, types.Integer) else None
