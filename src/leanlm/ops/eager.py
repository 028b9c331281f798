"""Fast plain-torch forms of every operation, with autograd, for any device. Contracts: `leanlm.ops`; oracle: `reference`.

B batch  L tokens  C channels  K taps  H heads  P head width  G groups  N state width  S key slots  D width  Q chunk
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from leanlm.ops import packing
from leanlm.ops.chunked import Chunked
from leanlm.ops.merging import telescope as telescope

SSD_CHUNK = 64  # tokens per chunk; the products inside a chunk grow with it, the carried states shrink
SCAN_CHUNK = 32
SCAN_BLOCK = 1 << 17  # state elements worked on at once, a compromise between the caches and the cost of a call
WIDE = 16  # rows from which it pays to widen a half-precision weight first
LARGE = 1 << 19  # elements of a weight from which it pays to deal its rows out to the threads
HALF = (torch.bfloat16, torch.float16)


def work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 dot products; without them torch's own bfloat16 product is several times slower
    than widening the weight to float32."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(x, weight, bias=None):
    if x.device.type == "cpu":
        rows = x.shape[:-1].numel()
        if x.dtype in HALF and rows >= WIDE and not (x.dtype == torch.bfloat16 and cpu_multiplies_bfloat16()):
            return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
        if rows == 1 and x.dtype == torch.float32 and weight.numel() >= LARGE and not torch.is_grad_enabled():
            return _one_row(x, weight, bias)
    return F.linear(x, weight, bias)


def _one_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One row times a large matrix, on all threads: torch's own product of a single row uses one, and reading the weight is
    what it takes. The rows of the weight are dealt out as a batch."""
    parts = torch.get_num_threads()
    if parts == 1 or weight.shape[0] % parts or not weight.is_contiguous():
        return F.linear(x, weight, bias)
    shares = weight.view(parts, -1, weight.shape[1]).transpose(1, 2)  # [parts, in, out / parts]
    y = torch.bmm(x.reshape(1, 1, -1).expand(parts, -1, -1), shares).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def grouped_linear(x, codes, scales, zeros, g_idx, bits, bias=None):
    zero = 1 << (bits - 1) if zeros is None else zeros
    weight = packing.grouped_values(packing.unpack(codes, bits, x.shape[-1]), scales, zero, g_idx)
    return linear(x, weight.to(x.dtype), bias)


def ternary_linear(x, codes, scales, starts, along_rows, bias=None):
    trits = packing.unpack(codes, 2, x.shape[-1]).to(torch.int8) - 1
    return linear(x, packing.ternary_values(trits, scales, starts, along_rows).to(x.dtype), bias)


def conv(x, weight, bias=None, tail=None, segments=None, activation="identity"):
    B, L, C = x.shape
    K = weight.shape[1]
    seen = x
    if tail is not None or L < K - 1:
        tail = x.new_zeros(B, C, K - 1) if tail is None else tail
        seen = torch.cat([tail.transpose(1, 2).to(x.dtype), x], 1)  # [B, K-1+L, C]
    before = seen.shape[1] - L
    documents = None
    if segments is not None:
        documents = torch.cat([torch.zeros_like(segments[:, :1]).expand(B, before), segments], 1)
    dtype = work_dtype(x)
    y = _Taps.apply(seen.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), documents, L)
    if activation == "silu":
        y = F.silu(y, inplace=not y.requires_grad)
    new_tail = seen[:, seen.shape[1] - (K - 1) :]
    if documents is not None:
        new_tail = new_tail * (documents[:, seen.shape[1] - (K - 1) :] == segments[:, -1:])[..., None]
    return y.to(x.dtype), new_tail.transpose(1, 2)


class _Taps(torch.autograd.Function):
    """The last L tokens of seen [B, T, C] convolved by weight [C, K], plus bias; what lies before `seen`, or in another of the
    documents [B, T] than the token, counts for nothing. Autograd by itself would give every tap a gradient of its own."""

    @staticmethod
    def forward(ctx, seen, weight, bias, documents, L):
        ctx.save_for_backward(seen, weight, documents)
        ctx.L, K = L, weight.shape[1]
        now = seen[:, seen.shape[1] - L :]
        y = now * weight[:, K - 1] if bias is None else torch.addcmul(bias, now, weight[:, K - 1])
        for back in range(1, K):
            token, tap = _places(seen.shape[1], L, back)
            y[:, token].addcmul_(_of_own_document(seen[:, tap], documents, tap, back), weight[:, K - 1 - back])
        return y

    @staticmethod
    def backward(ctx, dy):
        seen, weight, documents = ctx.saved_tensors
        T, L, K = seen.shape[1], ctx.L, weight.shape[1]
        dseen, dweight = torch.zeros_like(seen), torch.empty_like(weight)
        for back in range(K):
            token, tap = _places(T, L, back)
            own = _of_own_document(dy[:, token], documents, tap, back)
            dseen[:, tap].addcmul_(own, weight[:, K - 1 - back])
            dweight[:, K - 1 - back] = (own * seen[:, tap]).sum((0, 1))
        return dseen, dweight, dy.sum((0, 1)) if ctx.needs_input_grad[2] else None, None, None


def _places(T: int, L: int, back: int) -> tuple[slice, slice]:
    """Which of the last L of T tokens have one `back` places before them, counted among those L, and where that one is."""
    first = max(0, back - (T - L))
    return slice(first, L), slice(T - L + first - back, T - back)


def _of_own_document(x: Tensor, documents: Tensor | None, tap: slice, back: int) -> Tensor:
    """x, 0 where a token lies in another document than the one `back` places before it, which `tap` says."""
    if documents is None or not back:
        return x
    token = slice(tap.start + back, tap.stop + back)
    return x * (documents[:, tap] == documents[:, token])[..., None]


def ssd(x, log_decay, B, C, state=None, segments=None):
    batch, L, H, P = x.shape
    G, N = B.shape[2:]
    dtype = work_dtype(x)
    state = torch.zeros(batch, H, P, N, dtype=dtype, device=x.device) if state is None else state.to(dtype)
    if L == 1:
        return _ssd_step(x, log_decay, B, C, state, segments)
    Q = min(SSD_CHUNK, L)
    pad = -L % Q
    x_, decay, B_, C_ = (_chunks(t.to(dtype), pad, Q) for t in (x, log_decay, B, C))  # [B, chunks, Q, ...]
    documents = None if segments is None else _chunks(segments, pad, Q, last=True)  # [B, chunks, Q]
    # The heads of a group stand side by side in the columns of one product: states are [N, heads x P] in there.
    given = state.reshape(batch, G, H // G * P, N).transpose(-1, -2)
    y, final = Chunked.apply(x_, decay, B_.movedim(3, 2), C_.movedim(3, 2), given, documents)
    return y.flatten(1, 2)[:, :L].to(x.dtype), final.transpose(-1, -2).reshape(batch, H, P, N)


def _chunks(x: Tensor, pad: int, Q: int, last: bool = False) -> Tensor:
    """x [B, L, ...] padded by `pad` zeros (or its last row) and cut: [B, chunks, Q, ...]."""
    if pad:
        filler = x[:, -1:].expand(-1, pad, *x.shape[2:]) if last else x.new_zeros(x.shape[0], pad, *x.shape[2:])
        x = torch.cat([x, filler], 1)
    return x.unflatten(1, (-1, Q))


def _ssd_step(x, log_decay, B, C, state, segments):
    H, G, dtype = x.shape[2], B.shape[2], state.dtype
    decay = log_decay[:, 0].to(dtype).exp()  # [B, H]
    if segments is not None:
        decay = decay * (segments == 0)
    B_t, C_t = (t[:, 0].to(dtype).repeat_interleave(H // G, 1) for t in (B, C))  # [B, H, N]
    added = x[:, 0].to(dtype)[..., None] * B_t[:, :, None]
    state = torch.addcmul(added, decay[..., None, None], state)
    y = (state @ C_t[..., None]).squeeze(-1)  # [B, H, P]
    return y[:, None].to(x.dtype), state


def selective_scan(x, dt, A, B, C, state=None, segments=None):
    batch, L, D = x.shape
    N = A.shape[1]
    dtype = work_dtype(x)
    state = torch.zeros(batch, D, N, dtype=dtype, device=x.device) if state is None else state.to(dtype)
    if L == 1:
        return _scan_step(x, dt, A, B, C, state, segments)
    Q = min(SCAN_CHUNK, L)
    pad = -L % Q
    dt_ = dt.to(dtype)
    inputs = x.to(dtype) * dt_
    # Channels do not mix: blocks of them bound the memory and stay in the cache. The loop inside runs over the Q places of
    # a chunk with all chunks side by side, so its length does not depend on L. Under autograd only a block's inputs are kept.
    width = max(16, SCAN_BLOCK // (N * batch * ((L + pad) // Q)))
    rows = [_chunks(t.to(dtype), pad, Q) for t in (B, C)]
    documents = None if segments is None else _chunks(segments, pad, Q, last=True)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (x, dt, A, B, C, state))
    outputs, finals = [], []
    for d in range(0, D, width):
        block = slice(d, d + width)
        arguments = (
            _chunks(inputs[..., block], pad, Q),
            _chunks(dt_[..., block], pad, Q),
            A[block].to(dtype).T,
            *rows,
            state[:, block].transpose(1, 2),
            documents,
        )
        if needs_grad:
            y, final = checkpoint(_scan_block, *arguments, use_reentrant=False)
        else:
            y, final = _scan_block(*arguments)
        outputs.append(y.flatten(1, 2)[:, :L])
        finals.append(final.transpose(1, 2))
    return torch.cat(outputs, -1).to(x.dtype), torch.cat(finals, 1)


def _scan_block(inputs, dt, A, B, C, state, documents):
    """One block of channels: inputs (dt x) and dt [B, c, Q, d], A [N, d], B and C [B, c, Q, N], state [B, N, d].

    First every chunk from an empty state, then the states carried from chunk to chunk, then what these add to the outputs.
    """
    Q, grad = dt.shape[2], torch.is_grad_enabled()
    decay = (dt.movedim(2, 0)[:, :, :, None] * A).exp_()  # [Q, B, c, N, d]
    survival = torch.exp(dt.sum(2)[:, :, None] * A)  # [B, c, N, d]: of the state a chunk was given, what it hands on
    if documents is not None:  # where a new document begins; a chunk's first place looks at the chunk before
        flat = documents.flatten(1)
        begins = torch.cat([flat[:, :1] != 0, flat[:, 1:] != flat[:, :-1]], 1).view_as(documents)
        decay = decay * ~begins.movedim(2, 0)[..., None, None]
        survival = survival * ~begins.any(2)[..., None, None]

    h = inputs[:, :, 0, None] * B[:, :, 0, :, None]  # [B, c, N, d]
    y = [C[:, :, 0, None] @ h]
    for q in range(1, Q):
        h = h * decay[q] if grad else h.mul_(decay[q])
        terms = inputs[:, :, q, None], B[:, :, q, :, None]
        h = torch.addcmul(h, *terms) if grad else h.addcmul_(*terms)
        y.append(C[:, :, q, None] @ h)  # [B, c, 1, d]
    starts = []
    for c in range(dt.shape[1]):
        starts.append(state)
        state = torch.addcmul(h[:, c], survival[:, c], state)
    carried = torch.stack(starts, 1)  # [B, c, N, d]
    extra = []
    for q in range(Q):
        carried = carried * decay[q] if grad else carried.mul_(decay[q])
        extra.append(C[:, :, q, None] @ carried)
    return torch.cat(y, 2) + torch.cat(extra, 2), state


def _scan_step(x, dt, A, B, C, state, segments):
    dtype = state.dtype
    step = dt[:, 0].to(dtype)[..., None]  # [B, D, 1]
    decay = torch.exp(step * A.to(dtype))
    if segments is not None:
        decay = decay * (segments == 0)[..., None]
    added = step * x[:, 0].to(dtype)[..., None] * B[:, 0].to(dtype)[:, None]
    state = torch.addcmul(added, decay, state)
    y = (state @ C[:, 0].to(dtype)[..., None]).squeeze(-1)
    return y[:, None].to(x.dtype), state


def attend(q, k, v, first, last, key_positions, scale, window=None):
    L = q.shape[1]
    if window is not None:
        first = torch.maximum(first, last - window + 1)
    if L == 1:
        return _attend_step(q, k, v, first, last, key_positions, scale)
    at = key_positions[:, None, :]
    seen = (at >= first[..., None]) & (at <= last[..., None])  # [B, L, S]
    return _sdpa(q, k, v, scale, mask=seen[:, None])


def _attend_step(q, k, v, first, last, key_positions, scale):
    """One query a row: the heads that share a key/value head become the rows of one product."""
    B, _, H, P = q.shape
    groups = k.shape[2]
    seen = (key_positions >= first) & (key_positions <= last)  # [B, S]
    grouped = q.view(B, groups, H // groups, P)
    y = F.scaled_dot_product_attention(
        grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen[:, None, None], scale=scale
    )
    return y.reshape(B, 1, H, P)


def causal_attend(q, k, v, scale):
    return _sdpa(q, k, v, scale, causal=True)


def packed_attend(q, k, v, first, scale, window=None):
    last = torch.arange(q.shape[1], device=q.device).expand_as(first)
    return attend(q, k, v, first, last, last, scale, window)


def _sdpa(q, k, v, scale, mask=None, causal=False):
    if _scores_would_be_held(q, k, mask):
        k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], 2) for t in (k, v))
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)


def _scores_would_be_held(q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    """On a GPU torch knows of shared key/value heads in its flash kernel alone, which takes 16 bits and no mask; elsewhere it
    holds every score."""
    return q.is_cuda and q.shape[2] != k.shape[2] and (mask is not None or q.dtype not in HALF)


def _normed(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps); for one token several times faster than torch's rms_norm, which is composed anew per call."""
    return x * x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def rms_norm(x, weight, eps, round_first=False):
    v = _normed(x.to(work_dtype(x)), eps)
    if round_first:
        return v.to(weight.dtype) * weight
    return (v * weight.to(v.dtype)).to(weight.dtype)


def layer_norm(x, weight, bias, eps):
    dtype = work_dtype(x)
    return F.layer_norm(x.to(dtype), x.shape[-1:], weight.to(dtype), bias.to(dtype), eps).to(weight.dtype)


def gated_norm(y, z, weight, eps, groups=1, norm_before_gate=False):
    dtype = work_dtype(y)
    v, gate = y.to(dtype), F.silu(z.to(dtype))
    if not norm_before_gate:
        v = v * gate
    parts = v.unflatten(-1, (groups, -1))
    v = _normed(parts, eps).flatten(-2) * weight.to(dtype)
    return (v * gate if norm_before_gate else v).to(y.dtype)


def rotate(x, cos, sin):
    half = cos.shape[-1]
    dtype = work_dtype(x)
    cos, sin = cos.to(dtype)[:, :, None], sin.to(dtype)[:, :, None]
    a, b = x[..., :half].to(dtype), x[..., half : 2 * half].to(dtype)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
    return turned if 2 * half == x.shape[-1] else torch.cat([turned, x[..., 2 * half :]], -1)
