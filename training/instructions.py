"""What Numba does not say by itself: asking for memory ahead, and a block of a matrix product held in registers.

`block_wide` and `block_narrow` compute `ROWS` rows by `WIDE` or `NARROW` columns of

    out[i, j] = max(floor, start[j] + sum over k of left[i, k] right[k, j])

with one fused multiply-add per term, k in its order. The sums never leave the vector registers, which is what makes
it two to three times as fast as a BLAS on matrices of a few dozen rows and columns. `left` is read with any strides,
so that its transpose is the same call; the columns of `right`, `out` and `start` are contiguous.

All arrays are one-dimensional float32, with an offset: `block(out, at, step, left, at, row_step, k_step, right, at,
step, terms, start, at, floor)`. Nothing is checked: the caller's layout must hold whole blocks.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE_BYTES = 64
"""A cache line."""

_HAS_512_BITS = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if _HAS_512_BITS else 8
"""Floats of one vector; a processor without such vectors is served by LLVM with narrower ones."""
ROWS = 8 if _HAS_512_BITS else 4
"""Rows of a block: with two vectors each, as many sums as the registers hold."""
NARROW = LANES
WIDE = 2 * LANES

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)


def _prefetch_signature(_typing: Any, array: Any, row: Any, byte: Any) -> Any:
    """Return signature and machine code of `prefetch`, for Numba."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = ir.IntType(8).as_pointer()
        described = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])  # type: ignore[no-untyped-call]  # numba types a part of itself
        row_i64, byte_i64 = (
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(arguments[1:], signature.args[1:], strict=True)
        )
        stride = cgutils.unpack_tuple(builder, described.strides)[0]  # type: ignore[no-untyped-call]  # as above
        offset = builder.add(builder.mul(row_i64, stride), byte_i64)
        line = builder.inttoptr(builder.add(builder.ptrtoint(described.data, _I64), offset), address)
        kind = ir.FunctionType(ir.VoidType(), [address, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", (address,), kind)
        builder.call(function, [line, _I32(0), _I32(3), _I32(1)])  # to read, into every cache, data
        return context.get_dummy_value()

    return types.void(array, row, byte), generate


prefetch: Any = intrinsic(_prefetch_signature)
"""`prefetch(array, row, byte)` asks for the cache line at a byte of a row. The processor goes on without waiting, and
a row that does not exist is no fault."""


def _block(vectors: int) -> Any:
    """Return the block of `ROWS` rows by `vectors` vectors as a function for Numba."""

    def signed(
        _typing: Any, out: Any, out_at: Any, out_step: Any, left: Any, left_at: Any, left_row: Any, left_term: Any,
        right: Any, right_at: Any, right_step: Any, terms: Any, start: Any, start_at: Any, floor: Any,
    ) -> Any:  # fmt: skip
        del out_at, out_step, left_at, left_row, left_term, right_at, right_step, terms, start_at, floor
        i64 = types.int64
        signature = types.void(
            out, i64, i64, left, i64, i64, i64, right, i64, i64, i64, start, i64, types.float32
        )  # fmt: skip
        return signature, lambda *call: _generate_block(vectors, *call)

    return intrinsic(signed)


def _generate_block(vectors: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Write the machine code of one block."""

    def data(place: int) -> Any:
        return cgutils.create_struct_proxy(signature.args[place])(context, builder, arguments[place]).data  # type: ignore[no-untyped-call]  # numba types a part of itself

    def vector_at(pointer: Any, index: Any) -> Any:
        return builder.bitcast(builder.gep(pointer, [index]), _VECTOR.as_pointer())

    def everywhere(number: Any) -> Any:
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, _I32(0))
        places = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), places)

    out, left, right, start = (data(place) for place in (0, 3, 7, 11))
    out_at, out_step, left_at, left_row, left_term, right_at, right_step, terms, start_at, floor = (
        arguments[place] for place in (1, 2, 4, 5, 6, 8, 9, 10, 12, 13)
    )
    fused = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]  # as above
        builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32"
    )
    columns = [_I64(vector * LANES) for vector in range(vectors)]
    begin = [builder.load(vector_at(start, builder.add(start_at, column)), align=4) for column in columns]
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("terms", "term", "done"))
    builder.branch(head)

    builder.position_at_end(head)
    k = builder.phi(_I64)
    k.add_incoming(_I64(0), before)
    sums = [[builder.phi(_VECTOR) for _ in columns] for _ in range(ROWS)]
    for row in sums:
        for sum_, first in zip(row, begin, strict=True):
            sum_.add_incoming(first, before)
    builder.cbranch(builder.icmp_signed("<", k, terms), body, done)

    builder.position_at_end(body)
    right_row = builder.add(right_at, builder.mul(k, right_step))
    factors = [builder.load(vector_at(right, builder.add(right_row, column)), align=4) for column in columns]
    left_k = builder.add(left_at, builder.mul(k, left_term))
    for number, row in enumerate(sums):
        place = builder.add(left_k, builder.mul(left_row, _I64(number)))
        factor = everywhere(builder.load(builder.gep(left, [place])))
        for sum_, other in zip(row, factors, strict=True):
            sum_.add_incoming(builder.call(fused, [factor, other, sum_]), body)
    k.add_incoming(builder.add(k, _I64(1)), body)
    builder.branch(head)

    builder.position_at_end(done)
    lowest = everywhere(floor)
    for number, row in enumerate(sums):
        out_row = builder.add(out_at, builder.mul(out_step, _I64(number)))
        for sum_, column in zip(row, columns, strict=True):
            # a sum that is not a number stays one
            kept = builder.select(builder.fcmp_ordered("<", sum_, lowest), lowest, sum_)
            builder.store(kept, vector_at(out, builder.add(out_row, column)), align=4)
    return context.get_dummy_value()


block_wide: Any = _block(2)
block_narrow: Any = _block(1)
