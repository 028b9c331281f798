"""Products with packed weights on a GPU, codes widened in registers: one row, of which reading the codes is all the work, and
tiles of rows for the tensor cores.

R rows of the weight (outputs)  n columns (inputs)  M rows of activations  G groups of columns  S scale regions
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from leanlm.ops import eager, packing
from leanlm.ops.triton_launch import differentiable, interpreted, precision, tile, tuned

WHOLE = (2, 4, 8)  # bits of codes of which none lies in two bytes
REGIONS = 64  # that a kernel goes through; more are a table of their own
# Of the one-row product and of tiles: rows and columns of the weight that a program takes at a time.
BANDS = ({"BR": 16, "BK": 256}, {"BR": 4, "BK": 1024}, {"BR": 32, "BK": 128})
TILES = ({"BR": 64, "BK": 64}, {"BR": 128, "BK": 64}, {"BR": 32, "BK": 128})
FEW = 16  # rows of activations in the smallest tile


@triton.jit
def _codes(codes, row_bytes, r, k, R, BITS: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    """Codes [BR, BK] of the rows r from column k on (a multiple of BK) as int32; 0 beyond the matrix."""
    PER: tl.constexpr = 8 // BITS
    MASK: tl.constexpr = (1 << BITS) - 1
    b = k // PER + tl.arange(0, BK // PER)
    there = (r[:, None] < R) & (b < row_bytes)
    found = tl.load(codes + r[:, None].to(tl.int64) * row_bytes + b, there, 0).to(tl.int32)
    if PER == 2:
        found = tl.interleave(found & MASK, found >> BITS)
    if PER == 4:
        even = tl.interleave(found & MASK, (found >> 2 * BITS) & MASK)
        odd = tl.interleave((found >> BITS) & MASK, found >> 3 * BITS)
        found = tl.interleave(even, odd)
    return found


@triton.jit
def _of_region(scales, starts, at, S):
    """The scale of the region that each of the rows or columns `at` lies in."""
    found = tl.load(scales).to(tl.float32) + tl.zeros(at.shape, tl.float32)
    for region in range(1, S):
        found = tl.where(at >= tl.load(starts + region), tl.load(scales + region).to(tl.float32), found)
    return found


@triton.jit
def _values(
    codes, scales, zeros, starts, g_idx, row_bytes, r, k, R, n, G, S,
    BITS: tl.constexpr, KIND: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Values [BR, BK] in float32 of the weight; along rows the scale is left out (`_finished`)."""
    code = _codes(codes, row_bytes, r, k, R, BITS, BR, BK)
    column = k + tl.arange(0, BK)
    if KIND == "rows":
        return (code - 1).to(tl.float32)
    if KIND == "columns":
        return (code - 1).to(tl.float32) * _of_region(scales, starts, column, S)
    group = (column.to(tl.int64) * G // n).to(tl.int32)
    if g_idx is not None:
        group = tl.load(g_idx + column, column < n, 0)
    at, there = r[:, None].to(tl.int64) * G + group, (r[:, None] < R) & (column < n)
    zero = 1 << (BITS - 1)
    if zeros is not None:
        zero = tl.load(zeros + at, there, 0).to(tl.int32)
    return (code - zero).to(tl.float32) * tl.load(scales + at, there, 0.0).to(tl.float32)


@triton.jit
def _finished(total, scales, starts, bias, r, R, S, KIND: tl.constexpr):
    """Sums [.., BR] with what belongs to whole rows of the weight."""
    if KIND == "rows":
        total *= _of_region(scales, starts, r, S)
    if bias is not None:
        total += tl.load(bias + r, r < R, 0.0).to(tl.float32)
    return total


@tuned(key=("R", "n", "BITS", "KIND"), blocks=BANDS)
@triton.jit
def _one_row_kernel(
    x, codes, scales, zeros, starts, g_idx, bias, y, M, R, n, row_bytes, G, S,
    BITS: tl.constexpr, KIND: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    total = tl.zeros([BR], tl.float32)
    for k in range(0, n, BK):
        column = k + tl.arange(0, BK)
        value = tl.load(x + column, column < n, 0.0).to(tl.float32)
        w = _values(codes, scales, zeros, starts, g_idx, row_bytes, r, k, R, n, G, S, BITS, KIND, BR, BK)
        total += tl.sum(w * value, 1)
    total = _finished(total, scales, starts, bias, r, R, S, KIND)
    tl.store(y + r, total.to(y.dtype.element_ty), r < R)


@tuned(key=("R", "n", "BM", "BITS", "KIND", "DOTS"), blocks=TILES)
@triton.jit
def _tiles_kernel(
    x, codes, scales, zeros, starts, g_idx, bias, y, M, R, n, row_bytes, G, S,
    BITS: tl.constexpr, KIND: tl.constexpr, DOTS: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(R, BR)
    m = (tl.program_id(0) // blocks * BM + tl.arange(0, BM)).to(tl.int64)[:, None]
    r = tl.program_id(0) % blocks * BR + tl.arange(0, BR)
    total = tl.zeros([BM, BR], tl.float32)
    for k in range(0, n, BK):
        column = k + tl.arange(0, BK)
        value = tl.load(x + m * n + column, (m < M) & (column < n), 0.0)
        w = _values(codes, scales, zeros, starts, g_idx, row_bytes, r, k, R, n, G, S, BITS, KIND, BR, BK)
        w = w.to(value.dtype)
        if WIDE:
            w, value = w.to(tl.float32), value.to(tl.float32)
        total = tl.dot(value, tl.trans(w), total, input_precision=DOTS)
    total = _finished(total, scales, starts, bias, r, R, S, KIND)
    tl.store(y + m * R + r, total.to(y.dtype.element_ty), (m < M) & (r < R))


def _product(x, codes, scales, zeros, starts, g_idx, bits, kind, bias) -> Tensor:
    R, n = len(codes), x.shape[-1]
    rows = x.reshape(-1, n).contiguous()
    M = len(rows)
    y = torch.empty(M, R, dtype=x.dtype, device=x.device)
    tables = (None if t is None else t.contiguous() for t in (codes, scales, zeros, starts, g_idx, bias))
    sizes = (M, R, n, codes.shape[1], scales.shape[-1], len(scales))
    flags = {"BITS": bits, "KIND": kind}
    if M == 1:
        _one_row_kernel[lambda chosen: (triton.cdiv(R, chosen["BR"]),)](rows, *tables, y, *sizes, **flags)
    else:
        BM = tile(M, 64, FEW)
        programs = lambda chosen: (triton.cdiv(M, BM) * triton.cdiv(R, chosen["BR"]),)  # noqa: E731
        wide = interpreted()  # which would multiply the bits of bfloat16 as integers
        _tiles_kernel[programs](rows, *tables, y, *sizes, **flags, DOTS=precision(x), WIDE=wide, BM=BM)
    return y.view(*x.shape[:-1], R)


def _grouped_forward(x, codes, scales, zeros, g_idx, bits, bias):
    return _product(x, codes, scales, zeros, None, g_idx, bits, "groups", bias)


def _grouped_backward(gradients, x, codes, scales, zeros, g_idx, bits, bias):
    zero = 1 << (bits - 1) if zeros is None else zeros
    weight = packing.grouped_values(packing.unpack(codes, bits, x.shape[-1]), scales, zero, g_idx)
    return _to_inputs(gradients[0], weight), None, None, None, None, None, _to_bias(gradients[0], bias)


def _ternary_forward(x, codes, scales, starts, along_rows, bias):
    return _product(x, codes, scales, None, starts, None, 2, "rows" if along_rows else "columns", bias)


def _ternary_backward(gradients, x, codes, scales, starts, along_rows, bias):
    trits = packing.unpack(codes, 2, x.shape[-1]).to(torch.int8) - 1
    weight = packing.ternary_values(trits, scales, starts, along_rows)
    return _to_inputs(gradients[0], weight), None, None, None, None, _to_bias(gradients[0], bias)


def _to_inputs(dy: Tensor, weight: Tensor) -> Tensor:
    """Weights in few bits are not learnt: a plain product, through floats, carries gradients on."""
    return dy @ weight.to(dy.dtype)


def _to_bias(dy: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else dy.flatten(0, -2).float().sum(0)


_grouped = differentiable("grouped_linear", _grouped_forward, _grouped_backward, eager.grouped_linear)
_ternary = differentiable("ternary_linear", _ternary_forward, _ternary_backward, eager.ternary_linear)


def grouped_linear(x, codes, scales, zeros, g_idx, bits, bias=None):
    """Codes of 3 and 6 bits, which lie in two bytes, are widened by plain torch."""
    product = _grouped if bits in WHOLE else eager.grouped_linear
    return product(x, codes, scales, zeros, g_idx, bits, bias)


def ternary_linear(x, codes, scales, starts, along_rows, bias=None):
    product = _ternary if len(scales) <= REGIONS else eager.ternary_linear
    return product(x, codes, scales, starts, along_rows, bias)
