"""The entries of a telescoping cache merged on a GPU, level by level and in place; all else is as in `merging`.

B batch  N rows of the bank  n rows of a level  G key/value heads  P width of a key or value
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from leanlm.ops import merging
from leanlm.ops.merging import Cache
from leanlm.ops.triton_launch import by_autograd, differentiable, tile
from leanlm.slots import Plan

ELEMENTS = 4096  # of keys or values, that a program merges


def made(cache: Cache, new: Cache, plan: Plan, factor: float | None) -> Cache:
    """As `merging.made`; by that for other dtypes than float32."""
    if any(t is not None and t.dtype != torch.float32 for t in cache):
        return merging.made(cache, new, plan, factor)
    return Cache(*_made(*cache, *new, plan, factor))


def _forward(held_k, held_v, held_wk, held_wv, k, v, wk, wv, plan, factor):
    merged = sum(rows.shape[1] for rows in plan.older)
    pairs = ((held_k, k, 0.0), (held_v, v, 0.0), (held_wk, wk, -torch.inf), (held_wv, wv, -torch.inf))
    bank = Cache(*(None if held is None else _begun(held, new, empty, merged) for held, new, empty in pairs))
    first, below, at = held_k.shape[1] + 1, held_k.shape[1] + 1, held_k.shape[1] + 1 + k.shape[1]
    for older, newer in zip(plan.older, plan.newer):
        for x, weight in ((bank.k, bank.weight_k), (bank.v, bank.weight_k if bank.weight_v is None else bank.weight_v)):
            _merge(x, weight, older, newer, first, below, at, factor)
        below, at = at, at + older.shape[1]
    return tuple(bank)


def _begun(held: Tensor, new: Tensor, empty: float, merged: int) -> Tensor:
    """The bank [B, N, ...] with what is held, an empty row, the tokens, and room for what is merged."""
    filler = torch.full_like(held[:, :1], empty)
    room = held.new_empty(len(held), merged, *held.shape[2:])
    return torch.cat([held, filler, new.to(held.dtype), room], 1)


def _merge(x, weight, older, newer, first: int, below: int, at: int, factor: float | None) -> None:
    B, N, G, P = x.shape
    if not older.shape[1]:
        return
    shared = 0 if len(older) == 1 else older.shape[1]  # the same rows of every text, or each its own
    given = (x, weight, older.contiguous(), newer.contiguous(), older.shape[1], shared, first, below, at, N, G, P)
    mean, BP = factor is None, tile(P, 1 << 16, 1)
    rows = max(1, ELEMENTS // BP)
    grid = (B * G, triton.cdiv(older.shape[1], rows))
    _merge_kernel[grid](*given, 0.0 if mean else factor, MEAN=mean, BR=rows, BP=BP)


@triton.jit
def _merge_kernel(
    x, weight, older, newer, count, shared, first, below, at, N, G, P, factor,
    MEAN: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Rows `at` + i of the bank from the rows older[i] and newer[i], which count [slots, empty row, rows of the level before];
    those of the level before begin at row `below`."""
    text, head = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G
    i = tl.program_id(1) * BR + tl.arange(0, BR)
    there = i < count
    old, new = tl.load(older + text * shared + i, there, 0), tl.load(newer + text * shared + i, there, 0)
    old = (text * N + tl.where(old < first, old, old - first + below)) * G + head
    new = (text * N + tl.where(new < first, new, new - first + below)) * G + head
    into = (text * N + at + i) * G + head
    a, b = tl.load(weight + old, there, 0.0), tl.load(weight + new, there, 0.0)
    b = tl.where(b > float("-inf"), b, 0.0)  # of rows that only fill up
    most = tl.maximum(a, b)
    tl.store(weight + into, most + tl.log(tl.exp(a - most) + tl.exp(b - most)), there)
    p = tl.arange(0, BP)
    inside = there[:, None] & (p < P)
    u, v = tl.load(x + old[:, None] * P + p, inside, 0.0), tl.load(x + new[:, None] * P + p, inside, 0.0)
    merged = v + tl.sigmoid(a - b)[:, None] * (u - v) if MEAN else (u + v) * factor
    tl.store(x + into[:, None] * P + p, merged, inside)


def _plain(held_k, held_v, held_wk, held_wv, k, v, wk, wv, plan, factor):
    return merging.made(Cache(held_k, held_v, held_wk, held_wv), Cache(k, v, wk, wv), plan, factor)


def _backward(gradients, *arguments):
    return by_autograd(_plain, gradients, arguments)


_made = differentiable("telescope", _forward, _backward, _plain)
telescope = functools.partial(merging.telescope, build=made)
