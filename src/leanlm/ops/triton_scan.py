"""Mamba-1's selective scan on a GPU: chunks side by side, the tokens of each one after the other with states in registers.

What every chunk does to the state it is given is found first, then the states carried from chunk to chunk, then the outputs.
Nothing but the arguments is kept for the backward pass, which goes through every chunk forwards again, and then backwards.

b batch  L tokens  c chunks  Q tokens of a chunk  D channels  N state width
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from leanlm.ops import eager
from leanlm.ops.triton_carry import carry
from leanlm.ops.triton_launch import differentiable, rows_contiguous, tile, tuned

CHUNK = 64
CHANNELS = 64  # of a program, at most
SCRATCH = 64 << 20  # floats that the states inside chunks may take in the backward pass


class Operands(NamedTuple):
    """x, dt [b, L, D], A [D, N], B, C [b, L, N], and `begins` int8 [b, L]: where a document does (None: nowhere)."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    begins: Tensor | None

    @classmethod
    def of(cls, x, dt, A, B, C, segments) -> "Operands":
        begins = None
        if segments is not None:
            before = F.pad(segments[:, :-1], (1, 0))
            begins = (segments != before).to(torch.int8)
        return cls(*map(rows_contiguous, (x, dt)), A.float().contiguous(), *map(rows_contiguous, (B, C)), begins)

    @property
    def sizes(self) -> tuple[int, ...]:
        """L, chunks, D, N, and strides of rows and tokens."""
        L, D = self.x.shape[1:]
        strides = [stride for t in (self.x, self.dt, self.B, self.C) for stride in t.stride()[:2]]
        return L, triton.cdiv(L, CHUNK), D, self.A.shape[1], *strides

    @property
    def tiles(self) -> dict[str, int]:
        D, N = self.A.shape
        BN = tile(N, 1 << 16, 1)
        return {"Q": CHUNK, "BD": min(triton.next_power_of_2(D), max(1, CHANNELS * 16 // BN)), "BN": BN}

    def grid(self, chunks: int) -> tuple[int, int]:
        return len(self.x) * chunks, triton.cdiv(self.x.shape[2], self.tiles["BD"])


def _forward(x, dt, A, B, C, state, segments):
    operands = Operands.of(x, dt, A, B, C, segments)
    starts, final = _given_states(operands, state)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chunks = operands.sizes[1]
    _outputs_kernel[operands.grid(chunks)](*operands, starts, y, final, *operands.sizes, **operands.tiles)
    return y, final


def _given_states(operands: Operands, state: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """The states [b, c, D, N] that chunks are given (None: one chunk of zeros), and room for the last one [b, D, N]."""
    b, (_, chunks, D, N, *_) = len(operands.x), operands.sizes
    final = torch.empty(b, D, N, device=operands.x.device)
    given = None if state is None else state.float().contiguous()
    if chunks == 1:
        return given, final
    added, survival = _effects(operands, None)
    carry(added.flatten(2), survival.flatten(2), None if given is None else given.flatten(1))
    return added, final


def _effects(operands: Operands, dy: Tensor | None) -> tuple[Tensor, Tensor]:
    """What every chunk adds to the state [b, c, D, N] and the share of a given one that it hands on; with dy, what it adds to
    the gradient of the state that it was given."""
    b, (_, chunks, D, N, *_) = len(operands.x), operands.sizes
    added, survival = (torch.empty(b, chunks, D, N, device=operands.x.device) for _ in range(2))
    _effects_kernel[operands.grid(chunks)](*operands, dy, added, survival, *operands.sizes, **operands.tiles)
    return added, survival


@triton.jit
def _channels(A, D, N, BD: tl.constexpr, BN: tl.constexpr):
    """A program's channels [BD] and their states [BN]; where these lie among all [BD, BN], whether they do, and A there."""
    d, n = tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, BN)
    place, there = d[:, None] * N + n, (d[:, None] < D) & (n < N)
    return d, n, place, there, tl.load(A + place, there, 0.0)


@triton.jit
def _at_token(x, row, t, at, width, xb, xl):
    """x [b, L, width] at places `at` of a token, in float32; 0 beyond."""
    return tl.load(x + row * xb + t * xl + at, at < width, 0.0).to(tl.float32)


@triton.jit
def _token(x, dt, begins, row, t, L, d, D, xb, xl, sb, sl):
    """x and dt of a token [BD], and whether it continues the state."""
    value, step = _at_token(x, row, t, d, D, xb, xl), _at_token(dt, row, t, d, D, sb, sl)
    goes_on = 1.0
    if begins is not None:
        goes_on = 1.0 - tl.load(begins + row * L + t).to(tl.float32)
    return value, step, goes_on


@triton.jit
def _effects_kernel(
    x, dt, A, B, C, begins, dy, added, survival, L, chunks, D, N, xb, xl, sb, sl, bb, bl, cb, cl,
    Q: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    chunk, row = at % chunks, at // chunks
    d, n, place, there, rate = _channels(A, D, N, BD, BN)
    state, left = tl.zeros([BD, BN], tl.float32), tl.full([BD, BN], 1.0, tl.float32)
    count = tl.minimum(L - chunk * Q, Q)
    for number in range(count):
        if dy is None:
            t = chunk * Q + number
            value, step, goes_on = _token(x, dt, begins, row, t, L, d, D, xb, xl, sb, sl)
            decay = tl.exp(step[:, None] * rate) * goes_on
            b = _at_token(B, row, t, n, N, bb, bl)
            state = decay * state + (step * value)[:, None] * b
        else:
            t = chunk * Q + count - 1 - number
            _, step, goes_on = _token(x, dt, begins, row, t, L, d, D, xb, xl, sb, sl)
            decay = tl.exp(step[:, None] * rate) * goes_on
            c = _at_token(C, row, t, n, N, cb, cl)
            out = tl.load(dy + (row * L + t) * D + d, d < D, 0.0).to(tl.float32)
            state = decay * (state + out[:, None] * c)
        left *= decay
    tl.store(added + at * D * N + place, state, there)
    tl.store(survival + at * D * N + place, left, there)


@triton.jit
def _outputs_kernel(
    x, dt, A, B, C, begins, starts, y, final, L, chunks, D, N, xb, xl, sb, sl, bb, bl, cb, cl,
    Q: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    chunk, row = at % chunks, at // chunks
    d, n, place, there, rate = _channels(A, D, N, BD, BN)
    state = tl.zeros([BD, BN], tl.float32)
    if starts is not None:
        state = tl.load(starts + at * D * N + place, there, 0.0)
    for number in range(tl.minimum(L - chunk * Q, Q)):
        t = chunk * Q + number
        value, step, goes_on = _token(x, dt, begins, row, t, L, d, D, xb, xl, sb, sl)
        b = _at_token(B, row, t, n, N, bb, bl)
        c = _at_token(C, row, t, n, N, cb, cl)
        state = tl.exp(step[:, None] * rate) * goes_on * state + (step * value)[:, None] * b
        tl.store(y + (row * L + t) * D + d, tl.sum(state * c, 1).to(y.dtype.element_ty), d < D)
    if chunk == chunks - 1:
        tl.store(final + row * D * N + place, state, there)


def _backward(gradients, x, dt, A, B, C, state, segments):
    dy, dfinal = gradients
    dy, dfinal = dy.contiguous(), dfinal.float().contiguous()
    operands = Operands.of(x, dt, A, B, C, segments)
    b, (L, chunks, D, N, *_), tiles = len(x), operands.sizes, operands.tiles
    starts, _ = _given_states(operands, state)
    ends, survival = _effects(operands, dy)
    dstate = carry(ends.flatten(2), survival.flatten(2), dfinal.flatten(1), backward=True)
    groups = max(1, min(chunks, SCRATCH // (b * CHUNK * D * N)))  # chunks gone through at once
    blocks = triton.cdiv(D, tiles["BD"])
    new = {"device": x.device, "dtype": torch.float32}
    scratch, dx, ddt = torch.empty(b * groups, CHUNK, D, N, **new), torch.empty(b, L, D, **new), torch.empty(b, L, D, **new)
    dA, dB, dC = torch.empty(b * groups, D, N, **new), *(torch.empty(blocks, b, L, N, **new) for _ in range(2))
    given = (*operands, starts, ends, dy, scratch, dx, ddt, dA, dB, dC)
    _backward_kernel[operands.grid(groups)](*given, *operands.sizes, groups, **tiles)
    dstate = None if state is None else dstate.view_as(state)
    return dx, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dstate, None


@tuned(key=("D", "N"))
@triton.jit
def _backward_kernel(
    x, dt, A, B, C, begins, starts, ends, dy, scratch, dx, ddt, dA, dB, dC,
    L, chunks, D, N, xb, xl, sb, sl, bb, bl, cb, cl, groups,
    Q: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    row, batch = slot // groups, tl.num_programs(0) // groups
    d, n, place, there, rate = _channels(A, D, N, BD, BN)
    drate = tl.zeros([BD, BN], tl.float32)
    for chunk in range(slot % groups, chunks, groups):
        count = tl.minimum(L - chunk * Q, Q)
        at = (row * chunks + chunk) * D * N + place
        state = tl.zeros([BD, BN], tl.float32)
        if starts is not None:
            state = tl.load(starts + at, there, 0.0)
        for number in range(count):  # the state that each token is given
            t = chunk * Q + number
            value, step, goes_on = _token(x, dt, begins, row, t, L, d, D, xb, xl, sb, sl)
            state *= goes_on
            tl.store(scratch + (slot * Q + number) * D * N + place, state, there)
            b = _at_token(B, row, t, n, N, bb, bl)
            state = tl.exp(step[:, None] * rate) * state + (step * value)[:, None] * b
        tl.debug_barrier()  # what was stored is read again
        dstate = tl.load(ends + at, there, 0.0)
        for back in range(count):
            number = count - 1 - back
            t = chunk * Q + number
            value, step, goes_on = _token(x, dt, begins, row, t, L, d, D, xb, xl, sb, sl)
            b = _at_token(B, row, t, n, N, bb, bl)
            c = _at_token(C, row, t, n, N, cb, cl)
            out = tl.load(dy + (row * L + t) * D + d, d < D, 0.0).to(tl.float32)
            decay = tl.exp(step[:, None] * rate)
            kept = decay * tl.load(scratch + (slot * Q + number) * D * N + place, there, 0.0)
            new = kept + (step * value)[:, None] * b
            dstate += out[:, None] * c
            partial = ((tl.program_id(1) * batch + row) * L + t) * N + n
            tl.store(dC + partial, tl.sum(out[:, None] * new, 0), n < N)
            tl.store(dB + partial, tl.sum(dstate * (step * value)[:, None], 0), n < N)
            dinput = tl.sum(dstate * b, 1)
            tl.store(dx + (row * L + t) * D + d, dinput * step, d < D)
            tl.store(ddt + (row * L + t) * D + d, dinput * value + tl.sum(dstate * kept * rate, 1), d < D)
            drate += dstate * kept * step[:, None]
            dstate *= decay * goes_on
        tl.debug_barrier()  # before the next chunk writes there
    tl.store(dA + slot * D * N + place, drate, there)


selective_scan = differentiable("selective_scan", _forward, _backward, eager.selective_scan)
