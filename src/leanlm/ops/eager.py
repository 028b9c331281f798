"""Fast plain-torch forms of every operation, with autograd, for any device. Contracts: `leanlm.ops`; oracle: `reference`.

B batch  L tokens  C channels  K taps  H heads  P head width  G groups  N state width  S key slots  D width  Q chunk
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from leanlm.ops import packing

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
    tail = x.new_zeros(B, C, K - 1) if tail is None else tail
    seen = torch.cat([tail.transpose(1, 2).to(x.dtype), x], 1)  # [B, K-1+L, C]
    dtype = work_dtype(x)
    w, wide = weight.to(dtype), seen.to(dtype)
    documents = None
    if segments is not None:
        documents = torch.cat([torch.zeros_like(segments[:, :1]).expand(B, K - 1), segments], 1)
    y = wide[:, K - 1 :] * w[:, K - 1] if bias is None else torch.addcmul(bias.to(dtype), wide[:, K - 1 :], w[:, K - 1])
    for k in range(K - 1):
        tap = wide[:, k : k + L]
        if documents is not None:
            tap = tap * (documents[:, k : k + L] == segments)[..., None]
        y.addcmul_(tap, w[:, k])
    if activation == "silu":
        y = F.silu(y, inplace=not y.requires_grad)
    new_tail = seen[:, L:]
    if documents is not None:
        new_tail = new_tail * (documents[:, L:] == segments[:, -1:])[..., None]
    return y.to(x.dtype), new_tail.transpose(1, 2)


def ssd(x, log_decay, B, C, state=None, segments=None):
    batch, L, H, P = x.shape
    G, N = B.shape[2:]
    dtype = work_dtype(x)
    state = torch.zeros(batch, H, P, N, dtype=dtype, device=x.device) if state is None else state.to(dtype)
    if L == 1:
        return _ssd_step(x, log_decay, B, C, state, segments)
    Q = min(SSD_CHUNK, L)
    pad = -L % Q
    x_, la, B_, C_ = (_chunks(t.to(dtype), pad, Q) for t in (x, log_decay, B, C))  # [B, chunks, Q, ...]
    B_, C_ = B_.movedim(3, 2), C_.movedim(3, 2)  # [B, c, G, Q, N]
    # Decay since the chunk began [B, c, Q, H]. Differences of these sums are wanted: after one strong decay float32 would
    # have lost the digits of the weak ones that follow.
    la = la.cumsum(2, dtype=dtype if x.device.type == "mps" else torch.float64)  # Apple's GPUs have no float64
    documents = None if segments is None else _chunks(segments, pad, Q, last=True)  # [B, c, Q]
    y = _within_chunks(x_, la, B_, C_, documents)  # [B, c, Q, H, P]

    # What each chunk adds to the state by its end, and how much of the state it was given survives it. The heads of a group
    # stand side by side in the columns of one product: states are [N, heads x P] in here.
    end = la[:, :, -1:]
    keep = (end - la).to(dtype).exp()  # [B, c, Q, H]
    if documents is not None:
        keep = keep * (documents == documents[..., -1:])[..., None]
    added = B_.transpose(-1, -2) @ _grouped(x_ * keep[..., None], G)  # [B, c, G, N, H/G P]
    survival = end.squeeze(2).to(dtype).exp()  # [B, c, H]
    reach = la.to(dtype).exp()  # [B, c, Q, H]: of the given state, what each token still sees
    if documents is not None:
        given = torch.cat([torch.zeros_like(segments[:, :1]), documents[:, :-1, -1]], 1)  # document of the given state
        survival = survival * (documents[..., -1] == given)[..., None]
        reach = reach * (documents == given[..., None])[..., None]
    survival = survival[..., None].expand(-1, -1, -1, P).reshape(batch, -1, G, 1, H // G * P)
    carry = state.reshape(batch, G, H // G * P, N).transpose(-1, -2)  # [B, G, N, H/G P]
    starts = []
    for c in range(x_.shape[1]):
        starts.append(carry)
        carry = torch.addcmul(added[:, c], survival[:, c], carry)
    carried = C_ @ torch.stack(starts, 1)  # [B, c, G, Q, H/G P]
    carried = carried.movedim(2, 3).unflatten(-1, (-1, P)).flatten(3, 4)  # [B, c, Q, H, P]
    y = torch.addcmul(y, carried, reach[..., None])
    return y.flatten(1, 2)[:, :L].to(x.dtype), carry.transpose(-1, -2).reshape(batch, H, P, N)


def _within_chunks(x, la, B, C, documents):
    """y[t] = sum over s <= t of exp(la[t] - la[s]) (C[t] . B[s]) x[s], masked before the exponential so nothing overflows."""
    Q, G = x.shape[2], B.shape[2]
    hidden = torch.ones(Q, Q, dtype=torch.bool, device=x.device).triu(1)
    if documents is not None:
        hidden = hidden | (documents[..., :, None] != documents[..., None, :])[:, :, None]
    la = la.transpose(2, 3)  # [B, c, H, Q]
    between = (la[..., :, None] - la[..., None, :]).to(x.dtype)  # [B, c, H, Q, Q]
    decay = between.masked_fill_(hidden, float("-inf")).exp_()
    scores = (C @ B.transpose(-1, -2))[:, :, :, None]  # [B, c, G, 1, Q, Q]
    weights = (decay.unflatten(2, (G, -1)) * scores).flatten(2, 3)  # [B, c, H, Q, Q]
    return (weights @ x.transpose(2, 3)).transpose(2, 3)


def _grouped(x: Tensor, G: int) -> Tensor:
    """[B, c, Q, H, P] with the heads of each group side by side: [B, c, G, Q, H/G P]."""
    return x.unflatten(3, (G, -1)).movedim(3, 2).flatten(4, 5)


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


def _sdpa(q, k, v, scale, mask=None, causal=False):
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
