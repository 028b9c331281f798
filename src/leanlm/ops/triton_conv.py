"""The causal depthwise convolution on a GPU, activation included: many tokens, or one with the tail moved on.

B batch  L tokens  C channels  K taps
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from leanlm.ops import eager
from leanlm.ops.triton_launch import differentiable, rows_contiguous, tile, tuned

TOKENS = 32  # of a program
CHANNELS = 64


def conv(x, weight, bias=None, tail=None, segments=None, activation="identity"):
    K = weight.shape[1]
    if x.shape[1] == 1 and segments is None and K > 1 and not _learns(x, weight, bias, tail):
        return _one_token(x, weight, bias, tail, activation)
    y = _convolved(x, weight, bias, tail, segments, activation)
    return y, new_tail(x, tail, segments, K)


def _learns(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def new_tail(x: Tensor, tail: Tensor | None, segments: Tensor | None, K: int) -> Tensor:
    """The inputs [B, C, K - 1] of the last document among the last K - 1 tokens of tail and x."""
    B, L, C = x.shape
    seen = x[:, max(0, L - (K - 1)) :]
    if seen.shape[1] < K - 1:
        before = x.new_zeros(B, C, K - 1) if tail is None else tail
        seen = torch.cat([before.transpose(1, 2)[:, seen.shape[1] :].to(x.dtype), seen], 1)
    if segments is not None:
        documents = F.pad(segments[:, max(0, L - (K - 1)) :], (max(0, K - 1 - L), 0))
        seen = seen * (documents == segments[:, -1:])[..., None]
    return seen.transpose(1, 2)


def _forward(x, weight, bias, tail, segments, activation):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(_forward_kernel, x, weight, bias, tail, segments, activation, y)
    return y


def _launch(kernel, x, weight, bias, tail, segments, activation, *more) -> None:
    """One program for so many tokens and channels; all but x is contiguous."""
    (B, L, C), K = x.shape, weight.shape[1]
    x = rows_contiguous(x)
    rest = (None if t is None else t.contiguous() for t in (weight, bias, tail, segments))
    blocks = {"BT": tile(L, TOKENS, 1), "BC": tile(C, CHANNELS, 1)}
    grid = (B * triton.cdiv(L, blocks["BT"]), triton.cdiv(C, blocks["BC"]))
    kernel[grid](x, *rest, *more, L, C, x.stride(0), x.stride(1), SILU=activation == "silu", K=K, **blocks)


@triton.jit
def _tap(x, tail, segments, row, t, c, back, L, C, xb, xl, K: tl.constexpr):
    """The inputs `back` places before the tokens t [BT, 1], 0 where another document is there."""
    source = t - back
    value = tl.load(x + row * xb + source * xl + c, (source >= 0) & (t < L) & (c < C), 0.0).to(tl.float32)
    if tail is not None:
        at = (row * C + c) * (K - 1) + K - 1 + source
        value += tl.load(tail + at, (source < 0) & (t < L) & (c < C), 0.0).to(tl.float32)
    if segments is not None:
        document = tl.load(segments + row * L + source, (source >= 0) & (t < L), 0)
        value = tl.where(document == tl.load(segments + row * L + t, t < L, 0), value, 0.0)
    return value


@triton.jit
def _sums(x, weight, bias, tail, segments, row, t, c, L, C, xb, xl, K: tl.constexpr):
    """The convolution at tokens t [BT, 1] and channels c [BC], before the activation."""
    total = tl.zeros([t.shape[0], c.shape[0]], tl.float32)
    if bias is not None:
        total += tl.load(bias + c, c < C, 0.0).to(tl.float32)
    for back in tl.static_range(K):
        w = tl.load(weight + c * K + K - 1 - back, c < C, 0.0).to(tl.float32)
        total += _tap(x, tail, segments, row, t, c, back, L, C, xb, xl, K) * w
    return total


@tuned(key=("C", "K"))
@triton.jit
def _forward_kernel(
    x, weight, bias, tail, segments, y, L, C, xb, xl,
    SILU: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(L, BT)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks * BT + tl.arange(0, BT)).to(tl.int64)[:, None]
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = _sums(x, weight, bias, tail, segments, row, t, c, L, C, xb, xl, K)
    if SILU:
        total *= tl.sigmoid(total)
    tl.store(y + (row * L + t) * C + c, total.to(y.dtype.element_ty), (t < L) & (c < C))


def _backward(gradients, x, weight, bias, tail, segments, activation):
    (B, L, C), K = x.shape, weight.shape[1]
    new = {"device": x.device, "dtype": torch.float32}
    blocks = B * triton.cdiv(L, tile(L, TOKENS, 1))
    dsum, dweight, dbias = torch.empty(B, L, C, **new), torch.empty(blocks, C, K, **new), torch.empty(blocks, C, **new)
    _launch(_sums_kernel, x, weight, bias, tail, segments, activation, gradients[0].contiguous(), dsum, dweight, dbias)
    given = torch.empty(B, L + K - 1, C, **new)  # the gradients of the tail and of x
    grid = (B * triton.cdiv(L + K - 1, TOKENS), triton.cdiv(C, CHANNELS))
    documents = None if segments is None else segments.contiguous()
    _inputs_kernel[grid](dsum, weight.contiguous(), documents, given, L, C, K=K, BT=TOKENS, BC=CHANNELS)
    dtail = None if tail is None else given[:, : K - 1].transpose(1, 2)
    return given[:, K - 1 :], dweight.sum(0), None if bias is None else dbias.sum(0), dtail, None, None


@tuned(key=("C", "K"))
@triton.jit
def _sums_kernel(
    x, weight, bias, tail, segments, dy, dsum, dweight, dbias, L, C, xb, xl,
    SILU: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradients of the sums before the activation, and of weight and bias what these tokens add."""
    blocks = tl.cdiv(L, BT)
    at = tl.program_id(0).to(tl.int64)
    row = at // blocks
    t = (at % blocks * BT + tl.arange(0, BT))[:, None]
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    place = (row * L + t) * C + c
    d = tl.load(dy + place, (t < L) & (c < C), 0.0).to(tl.float32)
    if SILU:
        total = _sums(x, weight, bias, tail, segments, row, t, c, L, C, xb, xl, K)
        gate = tl.sigmoid(total)
        d *= gate * (1 + total * (1 - gate))
    tl.store(dsum + place, d, (t < L) & (c < C))
    tl.store(dbias + at * C + c, tl.sum(d, 0), c < C)
    for back in tl.static_range(K):
        tap = _tap(x, tail, segments, row, t, c, back, L, C, xb, xl, K)
        tl.store(dweight + (at * C + c) * K + K - 1 - back, tl.sum(d * tap, 0), c < C)


@triton.jit
def _inputs_kernel(dsum, weight, segments, given, L, C, K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    """The gradient of every input, those of the tail first: what the tokens up to K - 1 places later have of it."""
    blocks = tl.cdiv(L + K - 1, BT)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks * BT + tl.arange(0, BT))[:, None]
    source = place - (K - 1)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros([BT, BC], tl.float32)
    for ahead in tl.static_range(K):
        t = source + ahead
        here = (t >= 0) & (t < L)
        d = tl.load(dsum + (row * L + t) * C + c, here & (c < C), 0.0)
        if segments is not None:
            document = tl.load(segments + row * L + source, (source >= 0) & (source < L), 0)
            d = tl.where(document == tl.load(segments + row * L + t, here, -1), d, 0.0)
        total += d * tl.load(weight + c * K + K - 1 - ahead, c < C, 0.0).to(tl.float32)
    tl.store(given + (row * (L + K - 1) + place) * C + c, total, (place < L + K - 1) & (c < C))


def _one_token(x, weight, bias, tail, activation) -> tuple[Tensor, Tensor]:
    (B, _, C), K = x.shape, weight.shape[1]
    x = rows_contiguous(x)
    y = torch.empty(B, 1, C, dtype=x.dtype, device=x.device)
    moved = torch.empty(B, C, K - 1, dtype=x.dtype, device=x.device)
    rest = (None if t is None else t.contiguous() for t in (weight, bias, tail))
    BC = tile(C, CHANNELS, 1)
    silu = activation == "silu"
    _one_token_kernel[B, triton.cdiv(C, BC)](x, *rest, y, moved, C, x.stride(0), SILU=silu, K=K, BC=BC)
    return y, moved


@triton.jit
def _one_token_kernel(
    x, weight, bias, tail, y, moved, C, xb, SILU: tl.constexpr, K: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    now = tl.load(x + row * xb + c, c < C, 0.0)
    total = now.to(tl.float32) * tl.load(weight + c * K + K - 1, c < C, 0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + c, c < C, 0.0).to(tl.float32)
    place = (row * C + c) * (K - 1)
    for k in tl.static_range(K - 1):
        held = tl.zeros([BC], tl.float32)
        if tail is not None:
            held = tl.load(tail + place + k, c < C, 0.0).to(tl.float32)
        total += held * tl.load(weight + c * K + k, c < C, 0.0).to(tl.float32)
        if k > 0:
            tl.store(moved + place + k - 1, held.to(moved.dtype.element_ty), c < C)
    tl.store(moved + place + K - 2, now.to(moved.dtype.element_ty), c < C)
    if SILU:
        total *= tl.sigmoid(total)
    tl.store(y + row * C + c, total.to(y.dtype.element_ty), c < C)


def _plain(x, weight, bias, tail, segments, activation):
    return eager.conv(x, weight, bias, tail, segments, activation)[0]


_convolved = differentiable("conv", _forward, _backward, _plain)
