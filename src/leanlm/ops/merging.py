"""Telescoping attention for many tokens at once and for one, which `eager.telescope` is made of.

An entry is the mean of its tokens, weighted by a softmax, and so are two entries merged: a text can be read in any pieces.
Where many tokens are read, all entries of a level are merged at once, and every block of queries looks at the rows that any
of them sees: memory is linear in the length.

B batch  L tokens  H heads  G key/value heads  e = H / G  P and Q widths of a key and of a value  C slots  N rows of the bank
"""

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlm import slots
from leanlm.slots import BLOCK, Plan, Table


class Cache(NamedTuple):
    """Keys k [B, C, G, P] and values v [B, C, G, Q] of the entries, the newest first, before any norm; the logarithms of their
    weights [B, C, G], -inf where a slot is empty. weight_v is None where values are weighted as keys are."""

    k: Tensor
    v: Tensor
    weight_k: Tensor
    weight_v: Tensor | None


class Reading(NamedTuple):
    """How entries are merged and looked at.

    `factor`: two are added and multiplied by it (None: the mean weighted by their softmax). `norm_k`, `norm_v`: weights of the
    RMS norms of what is looked at. Empty slots are keys and values of zeros, or are `masked`. `cap`: scores s become
    cap tanh(s / cap). Head h reads key head floor(h / e), and value head floor(h / e) or, `mixed`, h mod G.
    """

    table: Table
    scale: float
    factor: float | None = None
    norm_k: Tensor | None = None
    norm_v: Tensor | None = None
    eps: float = 1e-6
    masked: bool = False
    cap: float | None = None
    mixed: bool = False


def telescope(q, k, v, weight_k, weight_v, cache, read, segments, reading, build=None):
    """As `ops.telescope`; `build` makes the bank in the place of `made`."""
    if not len(q):  # no texts
        return q.new_empty(*q.shape[:3], v.shape[-1]), cache
    if q.shape[1] == 1 and (segments is None or not segments.any()):
        cache = appended(cache, Cache(k, v, weight_k, weight_v), read, reading)
        return look(q, cache, reading), cache
    texts = documents(read, q.shape[1], segments)
    plan = plan_on(q.device, reading.table, texts)
    bank = (build or made)(cache, Cache(k, v, weight_k, weight_v), plan, reading.factor)
    y = look_in_blocks(q, bank, plan, reading)
    return y, Cache(*(None if t is None else picked(t, plan.slots) for t in bank))


def documents(read: Sequence[int], length: int, segments: Tensor | None) -> tuple[slots.Documents, ...]:
    """Of every text, or of one that stands for all: see `slots.Documents`."""
    if segments is None:
        found = [((number, length),) for number in read]
    else:
        found = [_documents(number, row) for number, row in zip(read, segments.tolist())]
    return tuple(found) if len(set(found)) > 1 else (found[0],)


def _documents(read: int, ordinals: list[int]) -> slots.Documents:
    cuts = [0, *(i for i in range(1, len(ordinals)) if ordinals[i] != ordinals[i - 1]), len(ordinals)]
    counts = [end - start for start, end in pairwise(cuts)]
    return tuple((read if i == 0 and ordinals[0] == 0 else 0, count) for i, count in enumerate(counts))


@functools.lru_cache(maxsize=4)  # for the layers of a model; packed documents hardly ever come again
@torch.inference_mode(False)  # what is remembered may be asked for under autograd
def plan_on(device: torch.device, table: Table, texts: tuple[slots.Documents, ...]) -> Plan:
    """The plan as tensors of a device."""
    plan = slots.plan(table, texts)
    levels = [[torch.from_numpy(level).to(device) for level in side] for side in plan[:2]]
    return Plan(*levels, *(torch.from_numpy(field).to(device) for field in plan[2:]))


def picked(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [1 or B, n] of x [B, N, ...], the same of every text or each its own: [B, n, ...]."""
    if len(rows) == 1:
        return x.index_select(1, rows[0])
    return x[torch.arange(len(x), device=x.device)[:, None], rows]


def made(cache: Cache, new: Cache, plan: Plan, factor: float | None) -> Cache:
    """The bank: every entry that is held or made, [B, N, ...], as `slots.Plan` orders them."""
    weights = [_levels_of_weights(*pair, plan) for pair in ((cache.weight_k, new.weight_k), (cache.weight_v, new.weight_v))]
    shares = [None if factor is not None or w is None else w[1] for w in weights]
    k = _levels(cache.k, new.k, shares[0], plan, factor)
    v = _levels(cache.v, new.v, shares[1] or shares[0], plan, factor)
    return Cache(k, v, weights[0][0], None if weights[1] is None else weights[1][0])


def _levels_of_weights(held: Tensor | None, new: Tensor | None, plan: Plan) -> tuple[Tensor, list[Tensor]] | None:
    """The logarithms of all weights [B, N, G], and of each level merged the older one's share of both weights [B, n, G]."""
    if held is None:
        return None
    first = torch.cat([held, torch.full_like(held[:, :1], -math.inf)], 1)
    below, bank, shares = new.to(held.dtype), [first], []
    for older, newer in zip(plan.older, plan.newer):
        bank.append(below)
        known = torch.cat([first, below], 1)
        older, newer = picked(known, older), picked(known, newer)
        newer = newer.where(newer > -math.inf, 0)  # of rows that only fill up
        shares.append(torch.sigmoid(older - newer))
        below = torch.logaddexp(older, newer)
    return torch.cat([*bank, below], 1), shares


def _levels(held: Tensor, new: Tensor, shares: Sequence[Tensor] | None, plan: Plan, factor: float | None) -> Tensor:
    """All keys or values [B, N, G, P]."""
    first = torch.cat([held, torch.zeros_like(held[:, :1])], 1)
    below, bank = new.to(held.dtype), [first]
    for level, rows in enumerate(zip(plan.older, plan.newer)):
        bank.append(below)
        known = torch.cat([first, below], 1)
        older, newer = (picked(known, side) for side in rows)
        below = torch.lerp(newer, older, shares[level][..., None]) if factor is None else (older + newer) * factor
    return torch.cat([*bank, below], 1)


def look_in_blocks(q: Tensor, bank: Cache, plan: Plan, reading: Reading) -> Tensor:
    """What the queries [B, L, H, P] see: [B, L, H, Q]."""
    B, L, H, _ = q.shape
    blocks = plan.rows.shape[1]
    k, v = (t.to(q.dtype) for t in read_as(bank.k, bank.v, H, reading))
    k, v = (picked(t, plan.rows.flatten(1)).unflatten(1, (blocks, -1)) for t in (k, v))  # [B, blocks, R, G, P]
    at = torch.arange(blocks * BLOCK, device=q.device).view(blocks, BLOCK, 1)
    seen = (plan.born[:, :, None] <= at) & (at < plan.died[:, :, None])  # [1 or B, blocks, BLOCK, R]
    bias = score_bias(seen, reading, q.dtype, (at < L)[None])
    G = k.shape[3]
    q = F.pad(q, (0, 0, 0, 0, 0, -L % BLOCK)).view(B, blocks, BLOCK, G, H // G, -1)
    if len(bias) == 1:  # blocks are torch's batch, and all heads of all texts its heads
        order, bias = (1, 0, 3, 4, 2, 5), bias[0]
        heads = B * G
    else:
        order, bias, heads = (0, 1, 3, 4, 2, 5), bias.flatten(0, 1), G
    q = q.permute(order).reshape(-1, heads, H // G * BLOCK, q.shape[-1])
    k, v = (t.permute(*order[:2], 3, 2, 4).reshape(-1, heads, *t.shape[2:3], t.shape[-1]) for t in (k, v))
    y = weighed(q, k, v, bias.repeat(1, H // G, 1)[:, None], reading)
    y = y.view(*((blocks, B) if len(seen) == 1 else (B, blocks)), G, H // G, BLOCK, -1).permute(order[0], order[1], 4, 2, 3, 5)
    return y.reshape(B, blocks * BLOCK, H, -1)[:, :L]


def look(q: Tensor, cache: Cache, reading: Reading) -> Tensor:
    """What one query a text [B, 1, H, P] sees of the slots: [B, 1, H, Q]."""
    B, _, H, P = q.shape
    k, v = (t.to(q.dtype).transpose(1, 2) for t in read_as(cache.k, cache.v, H, reading))
    bias = score_bias((cache.weight_k[:, :, 0] > -math.inf)[:, None], reading, q.dtype)
    return weighed(q.view(B, k.shape[1], -1, P), k, v, bias[:, None], reading).reshape(B, 1, H, -1)


def read_as(k: Tensor, v: Tensor, H: int, reading: Reading) -> tuple[Tensor, Tensor]:
    """Keys and values [B, N, G, P] as they are looked at; with a head for each query head where these are mixed."""
    k, v = (x if w is None else normed(x, w, reading.eps) for x, w in ((k, reading.norm_k), (v, reading.norm_v)))
    if reading.mixed:
        G = k.shape[2]
        k, v = k.repeat_interleave(H // G, 2), v.repeat(1, 1, H // G, 1)
    return k, v


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.to(x.dtype)


def score_bias(seen: Tensor, reading: Reading, dtype: torch.dtype, asked: Tensor | None = None) -> Tensor:
    """What is added to the scores of rows [..., R] and, behind them, of one that stands for all empty slots: of n, log n.
    Queries that nobody `asked` see that one."""
    empty = (reading.table.size - seen.sum(-1, keepdim=True)).to(torch.promote_types(dtype, torch.float32))
    sink = torch.full_like(empty, -math.inf) if reading.masked else empty.log()
    if asked is not None:
        sink = sink.where(asked, 0.0)
    return torch.cat([torch.zeros_like(seen, dtype=sink.dtype).masked_fill(~seen, -math.inf), sink], -1).to(dtype)


def weighed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, reading: Reading) -> Tensor:
    """Softmax attention of q [b, h, l, P] over k [b, h, R, P], v [b, h, R, Q] and a key and value of zeros; `bias`
    [b, 1, l, R + 1] is added to the scores."""
    k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    if reading.cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=reading.scale)
    scores = reading.cap * torch.tanh((q @ k.transpose(-1, -2)) * (reading.scale / reading.cap))
    return torch.softmax(scores + bias, -1) @ v


def appended(cache: Cache, new: Cache, read: Sequence[int], reading: Reading) -> Cache:
    """The cache after one token [B, 1, ...] more of texts of which `read` [B] tokens were read."""
    size = reading.table.size
    into = torch.tensor([slots.merge_slot(reading.table, t) if t else size for t in read], device=cache.k.device)
    slot = torch.arange(size, device=cache.k.device)
    source = slot - ((slot > 0) & (slot < into[:, None])).long()  # [B, C]
    at, rows = into.clamp(max=size - 1), torch.arange(len(read), device=cache.k.device)
    merges = into < size

    def share(weight: Tensor) -> Tensor:
        older, newer = weight[rows, at], weight[rows, at - 1]
        return torch.sigmoid(older - newer.where(newer > -math.inf, 0))[..., None]

    def step(x: Tensor, x_new: Tensor, merged: Tensor) -> Tensor:
        moved = picked(x, source)
        here = (slot == into[:, None]).view(*moved.shape[:2], *[1] * (x.ndim - 2))
        moved = torch.where(here & merges.view(-1, *[1] * (x.ndim - 1)), merged[:, None], moved)
        return torch.cat([x_new.to(x.dtype), moved[:, 1:]], 1)

    def joined(x: Tensor, weight: Tensor) -> Tensor:
        older, newer = x[rows, at], x[rows, at - 1]
        return torch.lerp(newer, older, share(weight)) if reading.factor is None else (older + newer) * reading.factor

    weight_v = cache.weight_k if cache.weight_v is None else cache.weight_v
    k = step(cache.k, new.k, joined(cache.k, cache.weight_k))
    v = step(cache.v, new.v, joined(cache.v, weight_v))
    weights = []
    for held, leaf in ((cache.weight_k, new.weight_k), (cache.weight_v, new.weight_v)):
        weights.append(None if held is None else step(held, leaf, torch.logaddexp(held[rows, at], held[rows, at - 1])))
    return Cache(k, v, *weights)
