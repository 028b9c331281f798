"""State-space duality on a GPU: one token, or chunks of tokens whose products are tiles for the tensor cores.

The passes are those of `chunked`: what every chunk adds to the state, the states carried from chunk to chunk, and what each
token sees of its chunk and of the state before. Nothing but the arguments is kept for the backward pass.

b batch  L tokens  c chunks  Q tokens of a chunk  H heads  P head width  G groups  N state width
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from leanlm.ops import chunked, eager
from leanlm.ops.triton_carry import carry
from leanlm.ops.triton_launch import differentiable, precision, rows_contiguous, tile, tuned

CHUNK = 64
HEADS = 8  # of a group, that one program of the backward pass goes through at most


class Decays(NamedTuple):
    """In float32, [b, c, H, Q]: the sums of decays since the chunk began as `high` + `low`, of which differences are exact
    enough; `keep` and `reach` [b, c, H, Q] and `survival` [b, c, H] as in `chunked.Decays`; `documents` int32 [b, c, Q]."""

    high: Tensor
    low: Tensor
    keep: Tensor
    reach: Tensor
    survival: Tensor
    documents: Tensor | None


def _decays(log_decay: Tensor, segments: Tensor | None, Q: int) -> Decays:
    pad = -log_decay.shape[1] % Q
    cut = F.pad(log_decay.float(), (0, 0, 0, pad)).unflatten(1, (-1, Q))
    documents = None
    if segments is not None:
        documents = torch.cat([segments, segments[:, -1:].expand(-1, pad)], 1).unflatten(1, (-1, Q)).int()
    since, keep, reach, survival = chunked.edges(cut, documents, torch.float32)
    high = since.float()
    low = (since - high).float()
    by_head = (t.transpose(2, 3).contiguous() for t in (high, low, keep, reach))
    return Decays(*by_head, survival.contiguous(), documents)


class Shape(NamedTuple):
    """Of a call, and the tiles its kernels work in."""

    L: int
    chunks: int
    H: int
    per_group: int
    P: int
    N: int
    Q: int
    BP: int
    BN: int

    @classmethod
    def of(cls, x: Tensor, B: Tensor) -> "Shape":
        L, H, P = x.shape[1:]
        G, N = B.shape[2:]
        Q = tile(L, CHUNK)
        return cls(L, triton.cdiv(L, Q), H, H // G, P, N, Q, tile(P, 64), tile(N, 64))

    @property
    def sizes(self) -> tuple[int, ...]:
        return self[:6]

    @property
    def tiles(self) -> dict[str, int]:
        return {"Q": self.Q, "BP": self.BP, "BN": self.BN}


def _forward(x, log_decay, B, C, state, segments):
    x, B, C = map(rows_contiguous, (x, B, C))
    if x.shape[1] == 1:
        return _one_token(x, log_decay, B, C, state, segments)
    shape, dots = Shape.of(x, B), precision(B, C)
    left = _decays(log_decay, segments, shape.Q)
    starts, final = _given_states(shape, x, left, B, state, dots)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _seen(shape, C, B, x, starts, left, left.reach, y, False, dots)
    return y, final


def _given_states(shape: Shape, x, left: Decays, B, state, dots) -> tuple[Tensor, Tensor]:
    """The states [b, c, H, P, N] that chunks are given, and the last one."""
    starts = _added(shape, x, left.keep, B, dots)
    given = None if state is None else state.float().flatten(1).contiguous()
    final = carry(starts.flatten(2), left.survival, given)
    return starts, final.view(len(x), *starts.shape[2:])


def _added(shape: Shape, values, weight, keys, dots) -> Tensor:
    """Sums over each chunk's tokens of weight [b, c, H, Q] values [b, L, H, P] keys [b, L, G, N]: [b, c, H, P, N]."""
    b, (_, c, H, _, P, N) = len(values), shape.sizes
    out = torch.empty(b, c, H, P, N, device=values.device)
    grid = (b * c * H, triton.cdiv(P, shape.BP) * triton.cdiv(N, shape.BN))
    strides = (*values.stride()[:3], *keys.stride()[:3])
    _added_kernel[grid](values, weight, keys, out, *shape.sizes, *strides, DOTS=dots, **shape.tiles)
    return out


@triton.jit
def _tokens(x, row, t, part, at, L, width, xb, xl, xp):
    """x [b, L, parts, width] at tokens t [Q, 1] of a row and at places `at` of one part, in float32; 0 beyond."""
    return tl.load(x + row * xb + t * xl + part * xp + at, (t < L) & (at < width), 0.0).to(tl.float32)


@tuned(key=("P", "N", "Q", "DOTS"))
@triton.jit
def _added_kernel(
    values, weight, keys, out, L, chunks, H, per_group, P, N, vb, vl, vh, kb, kl, kg,
    DOTS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    head, chunk, row = at % H, at // H % chunks, at // H // chunks
    p = tl.program_id(1) // tl.cdiv(N, BN) * BP + tl.arange(0, BP)
    n = tl.program_id(1) % tl.cdiv(N, BN) * BN + tl.arange(0, BN)
    q = tl.arange(0, Q)
    t = (chunk * Q + q)[:, None]
    v = _tokens(values, row, t, head, p, L, P, vb, vl, vh)
    v *= tl.load(weight + at * Q + q)[:, None]
    k = _tokens(keys, row, t, head // per_group, n, L, N, kb, kl, kg)
    place = p[:, None] * N + n
    tl.store(out + at * P * N + place, tl.dot(tl.trans(v), k, input_precision=DOTS), (p[:, None] < P) & (n < N))


def _seen(shape: Shape, own, other, values, states, left: Decays, share, y, later: bool, dots) -> None:
    """Into y [b, L, H, P], for every token i: the sum over the tokens j of its chunk up to i (from i on: `later`) of
    (own[i] . other[j]) values[j] and the decay between both, and share[i] states own[i]."""
    grid = (len(values) * shape.chunks * shape.H, triton.cdiv(shape.P, shape.BP))
    strides = (*own.stride()[:3], *other.stride()[:3], *values.stride()[:3])
    given = (own, other, values, states, left.high, left.low, left.documents, share, y)
    _seen_kernel[grid](*given, *shape.sizes, *strides, LATER=later, DOTS=dots, **shape.tiles)


@triton.jit
def _decay_between(high, low, documents, heads_at, chunk_at, LATER: tl.constexpr, Q: tl.constexpr):
    """[Q, Q]: what is left at the later of tokens i and j of the earlier one, 0 on the side that is not looked at."""
    q = tl.arange(0, Q)
    above, below = tl.load(high + heads_at * Q + q), tl.load(low + heads_at * Q + q)
    between = (above[:, None] - above[None, :]) + (below[:, None] - below[None, :])
    if LATER:
        between = -between
        shown = q[:, None] <= q[None, :]
    else:
        shown = q[:, None] >= q[None, :]
    if documents is not None:
        document = tl.load(documents + chunk_at * Q + q)
        shown = shown & (document[:, None] == document[None, :])
    return tl.exp(tl.where(shown, between, float("-inf")))  # masked first: no overflow


@tuned(key=("P", "N", "Q", "LATER", "DOTS"))
@triton.jit
def _seen_kernel(
    own, other, values, states, high, low, documents, share, y, L, chunks, H, per_group, P, N,
    ab, al, ag, ob, ol, og, vb, vl, vh,
    LATER: tl.constexpr, DOTS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    head, chunk, row = at % H, at // H % chunks, at // H // chunks
    group = head // per_group
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    q = tl.arange(0, Q)
    t = (chunk * Q + q)[:, None]
    scores = tl.zeros([Q, Q], tl.float32)
    carried = tl.zeros([Q, BP], tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        mine = _tokens(own, row, t, group, n, L, N, ab, al, ag)
        theirs = _tokens(other, row, t, group, n, L, N, ob, ol, og)
        held = tl.load(states + at * P * N + p[:, None] * N + n, (p[:, None] < P) & (n < N), 0.0)
        scores = tl.dot(mine, tl.trans(theirs), scores, input_precision=DOTS)
        carried = tl.dot(mine, tl.trans(held), carried, input_precision=DOTS)
    scores *= _decay_between(high, low, documents, at, row * chunks + chunk, LATER, Q)
    v = _tokens(values, row, t, head, p, L, P, vb, vl, vh)
    carried *= tl.load(share + at * Q + q)[:, None]
    found = tl.dot(scores, v, carried, input_precision=DOTS)
    place = ((row * L + t) * H + head) * P + p
    tl.store(y + place, found.to(y.dtype.element_ty), (t < L) & (p < P))


def _backward(gradients, x, log_decay, B, C, state, segments):
    dy, dfinal = gradients
    x, B, C, dy = map(rows_contiguous, (x, B, C, dy))
    shape, dots = Shape.of(x, B), precision(B, C)
    left = _decays(log_decay, segments, shape.Q)
    starts, _ = _given_states(shape, x, left, B, state, dots)
    dadded = _added(shape, dy, left.reach, C, dots)  # of the states that chunks are given
    dstate = carry(dadded.flatten(2), left.survival, dfinal.float().flatten(1).contiguous(), backward=True)
    dx = torch.empty(x.shape, device=x.device)
    _seen(shape, B, C, dy, dadded, left, left.keep, dx, True, dots)
    each, dlog = _pairs(shape, B, C, x, dy, left, dots)
    dC, reached = _shared(shape, C, B, dy, starts, left.reach, each, False, dots)
    dB, kept = _shared(shape, B, C, x, dadded, left.keep, each, True, dots)
    # A decay has a part in all that passes over it: what later tokens see of the state, what earlier ones add to it.
    dlog += reached.flip(-1).cumsum(-1).flip(-1)
    dlog[..., 1:] += kept.cumsum(-1)[..., :-1]
    dlog += (left.survival * torch.linalg.vecdot(starts.flatten(3), dadded.flatten(3)))[..., None]
    dlog_decay = dlog.transpose(2, 3).flatten(1, 2)[:, : shape.L]
    return dx, dlog_decay, dB, dC, None if state is None else dstate.view_as(state), None


def _split(shape: Shape) -> tuple[int, int]:
    """How many parts the heads of a group are dealt out to, and the heads of each."""
    heads = max(n for n in range(1, HEADS + 1) if shape.per_group % n == 0)
    return shape.per_group // heads, heads


def _pairs(shape: Shape, B, C, x, dy, left: Decays, dots) -> tuple[Tensor, Tensor]:
    """The gradients of C B^T inside chunks, [parts, b, c, G, Q, Q], parts to be added; and of the decays inside them,
    [b, c, H, Q]."""
    b, (parts, heads), G = len(x), _split(shape), B.shape[2]
    each = torch.empty(parts, b, shape.chunks, G, shape.Q, shape.Q, device=x.device)
    dlog = torch.empty(b, shape.chunks, shape.H, shape.Q, device=x.device)
    strides = (*B.stride()[:3], *C.stride()[:3], *x.stride()[:3], *dy.stride()[:3])
    given = (B, C, x, dy, left.high, left.low, left.documents, each, dlog)
    grid = (b * shape.chunks * G, parts)
    _pairs_kernel[grid](*given, *shape.sizes, *strides, HEADS=heads, DOTS=dots, **shape.tiles)
    return each, dlog


@tuned(key=("P", "N", "Q", "HEADS", "DOTS"))
@triton.jit
def _pairs_kernel(
    B, C, x, dy, high, low, documents, each, dlog, L, chunks, H, per_group, P, N,
    bb, bl, bg, cb, cl, cg, xb, xl, xh, yb, yl, yh,
    HEADS: tl.constexpr, DOTS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)  # of b, c, G
    groups = H // per_group
    group, chunk_at = at % groups, at // groups
    chunk, row = chunk_at % chunks, chunk_at // chunks
    q = tl.arange(0, Q)
    t = (chunk * Q + q)[:, None]
    scores = tl.zeros([Q, Q], tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        c = _tokens(C, row, t, group, n, L, N, cb, cl, cg)
        b = _tokens(B, row, t, group, n, L, N, bb, bl, bg)
        scores = tl.dot(c, tl.trans(b), scores, input_precision=DOTS)
    later = (q[:, None] < q[None, :]).to(tl.float32)
    total = tl.zeros([Q, Q], tl.float32)
    for number in range(HEADS):
        head = group * per_group + tl.program_id(1) * HEADS + number
        heads_at = chunk_at * H + head
        products = tl.zeros([Q, Q], tl.float32)
        for start in range(0, P, BP):
            p = start + tl.arange(0, BP)
            v = _tokens(x, row, t, head, p, L, P, xb, xl, xh)
            d = _tokens(dy, row, t, head, p, L, P, yb, yl, yh)
            products = tl.dot(d, tl.trans(v), products, input_precision=DOTS)
        products *= _decay_between(high, low, documents, heads_at, chunk_at, False, Q)
        total += products
        # The decay of token k lies between all pairs j < k <= i: sums of these, never differences of sums.
        pairs = tl.where(q[:, None] == q[None, :], 0.0, products * scores)
        before = tl.dot(pairs, later, input_precision=DOTS)  # [i, k]: of all j < k
        tl.store(dlog + heads_at * Q + q, tl.sum(tl.where(q[:, None] >= q[None, :], before, 0.0), 0))
    place = (tl.program_id(1) * tl.num_programs(0) + at) * Q * Q + q[:, None] * Q + q
    tl.store(each + place, total)


def _shared(shape: Shape, own, other, values, states, share, each, later: bool, dots) -> tuple[Tensor, Tensor]:
    """The gradient of own [b, L, G, N], C or (`later`) B, and its product with own from the states alone, [b, c, H, Q]."""
    b, (parts, heads), G, tiles = len(values), _split(shape), own.shape[2], triton.cdiv(shape.N, shape.BN)
    out = torch.empty(parts, b, shape.L, G, shape.N, device=own.device)
    weight = torch.empty(tiles, b, shape.chunks, shape.H, shape.Q, device=own.device)
    strides = (*own.stride()[:3], *other.stride()[:3], *values.stride()[:3])
    given = (own, other, values, states, share, each, out, weight)
    grid = (b * shape.chunks * G, parts, tiles)
    _shared_kernel[grid](*given, *shape.sizes, *strides, HEADS=heads, LATER=later, DOTS=dots, **shape.tiles)
    return out.sum(0), weight.sum(0)


@tuned(key=("P", "N", "Q", "HEADS", "LATER", "DOTS"))
@triton.jit
def _shared_kernel(
    own, other, values, states, share, each, out, weight, L, chunks, H, per_group, P, N,
    ab, al, ag, ob, ol, og, vb, vl, vh,
    HEADS: tl.constexpr, LATER: tl.constexpr, DOTS: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)  # of b, c, G
    part = tl.program_id(1) * tl.num_programs(0) + at
    groups = H // per_group
    group, chunk_at = at % groups, at // groups
    chunk, row = chunk_at % chunks, chunk_at // chunks
    q = tl.arange(0, Q)
    t = (chunk * Q + q)[:, None]
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    mine = _tokens(own, row, t, group, n, L, N, ab, al, ag)
    theirs = _tokens(other, row, t, group, n, L, N, ob, ol, og)
    pairs = tl.load(each + part * Q * Q + q[:, None] * Q + q)
    if LATER:
        pairs = tl.trans(pairs)
    total = tl.dot(pairs, theirs, input_precision=DOTS)
    for number in range(HEADS):
        head = group * per_group + tl.program_id(1) * HEADS + number
        heads_at = chunk_at * H + head
        left = tl.load(share + heads_at * Q + q)[:, None]
        carried = tl.zeros([Q, BN], tl.float32)
        for start in range(0, P, BP):
            p = start + tl.arange(0, BP)
            v = _tokens(values, row, t, head, p, L, P, vb, vl, vh)
            held = tl.load(states + heads_at * P * N + p[:, None] * N + n, (p[:, None] < P) & (n < N), 0.0)
            carried = tl.dot(v * left, held, carried, input_precision=DOTS)
        total += carried
        place = (tl.program_id(2) * (tl.num_programs(0) // groups).to(tl.int64) + chunk_at) * H + head
        tl.store(weight + place * Q + q, tl.sum(carried * mine, 1))
    begun = tl.program_id(1) * (tl.num_programs(0) // groups // chunks).to(tl.int64) + row
    tl.store(out + ((begun * L + t) * groups + group) * N + n, total, (t < L) & (n < N))


def _one_token(x, log_decay, B, C, state, segments) -> tuple[Tensor, Tensor]:
    b, _, H, P = x.shape
    G, N = B.shape[2:]
    y, new = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty(b, H, P, N, device=x.device)
    held = None if state is None else state.contiguous()
    first = None if segments is None else segments.contiguous()
    strides = (x.stride(0), x.stride(2), *log_decay.stride()[::2], B.stride(0), B.stride(2), C.stride(0), C.stride(2))
    BN = tile(N, 1 << 16)
    BP = max(1, min(triton.next_power_of_2(P), 4096 // BN))
    grid = (b * H, triton.cdiv(P, BP))
    _one_token_kernel[grid](x, log_decay, B, C, held, first, y, new, H, H // G, P, N, *strides, BP, BN)
    return y, new


@triton.jit
def _one_token_kernel(
    x, log_decay, B, C, state, segments, y, new, H, per_group, P, N, xb, xh, db, dh, bb, bg, cb, cg,
    BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    head, row = at % H, at // H
    p, n = tl.program_id(1) * BP + tl.arange(0, BP), tl.arange(0, BN)
    v = tl.load(x + row * xb + head * xh + p, p < P, 0.0).to(tl.float32)
    b = tl.load(B + row * bb + head // per_group * bg + n, n < N, 0.0).to(tl.float32)
    c = tl.load(C + row * cb + head // per_group * cg + n, n < N, 0.0).to(tl.float32)
    place, there = at * P * N + p[:, None] * N + n, (p[:, None] < P) & (n < N)
    held = v[:, None] * b
    if state is not None:
        left = tl.exp(tl.load(log_decay + row * db + head * dh).to(tl.float32))
        if segments is not None:
            left = tl.where(tl.load(segments + row) == 0, left, 0.0)
        held += left * tl.load(state + place, there, 0.0).to(tl.float32)
    tl.store(new + place, held, there)
    tl.store(y + at * P + p, tl.sum(held * c, 1).to(y.dtype.element_ty), p < P)


ssd = differentiable("ssd", _forward, _backward, eager.ssd)
