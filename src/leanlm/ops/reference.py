"""The specification of every operation: formulas and loops, in float32 at least (float64 stays float64).

Slow on purpose. Every faster implementation is tested against this file, gradients too.

B batch  L tokens  C channels  K taps  H heads  P head width  G groups  N state width  S key slots  D width
"""

import torch
from torch import Tensor

from leanlm import slots


def exact(x: Tensor) -> Tensor:
    """x in the dtype the reference computes in: float32, or float64 if x is."""
    return x if x.dtype == torch.float64 else x.float()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = exact(x) @ exact(weight).T
    return (y if bias is None else y + exact(bias)).to(x.dtype)


def grouped_linear(x, codes, scales, zeros, g_idx, bits, bias=None):
    R, n, G = len(codes), x.shape[-1], scales.shape[1]
    weight = torch.empty(R, n, dtype=exact(x).dtype)
    for j in range(n):
        byte, shift = divmod(j * bits, 8)  # a code may begin in one byte and end in the next
        code = (codes[:, byte].long() >> shift) & ((1 << bits) - 1)
        if shift + bits > 8:
            code = code | ((codes[:, byte + 1].long() << (8 - shift)) & ((1 << bits) - 1))
        group = j * G // n if g_idx is None else int(g_idx[j])
        zero = 1 << (bits - 1) if zeros is None else zeros[:, group].long()
        weight[:, j] = exact(scales[:, group]) * (code - zero)
    return linear(x, weight.to(x.device), bias)


def ternary_linear(x, codes, scales, starts, along_rows, bias=None):
    R, n = len(codes), x.shape[-1]
    weight = torch.empty(R, n, dtype=exact(x).dtype)
    for row in range(R):
        for j in range(n):
            trit = (int(codes[row, j // 4]) >> 2 * (j % 4) & 3) - 1
            region = int((starts <= (row if along_rows else j)).sum()) - 1
            weight[row, j] = trit * exact(scales[region])
    return linear(x, weight.to(x.device), bias)


def conv(x, weight, bias=None, tail=None, segments=None, activation="identity"):
    B, L, C = x.shape
    K = weight.shape[1]
    if tail is None:
        tail = x.new_zeros(B, C, K - 1)
    seen = torch.cat([tail.transpose(1, 2).to(x.dtype), x], 1)  # [B, K-1+L, C]
    outputs = []
    for t in range(L):
        y = torch.zeros_like(exact(x[:, 0]))
        for k in range(K):
            tap = exact(seen[:, t + k]) * exact(weight[:, k])
            source = t + k - (K - 1)  # token this tap reads; below 0: the tail, which belongs to document 0
            if segments is not None:
                document = segments[:, source] if source >= 0 else torch.zeros_like(segments[:, 0])
                tap = torch.where((document == segments[:, t])[:, None], tap, torch.zeros_like(tap))
            y = y + tap
        outputs.append(y if bias is None else y + exact(bias))
    y = torch.stack(outputs, 1)
    if activation == "silu":
        y = y * torch.sigmoid(y)
    new_tail = seen[:, L:]
    if segments is not None:
        documents = torch.cat([torch.zeros_like(segments[:, :1]).expand(B, K - 1), segments], 1)[:, L:]
        new_tail = new_tail * (documents == segments[:, -1:])[..., None]
    return y.to(x.dtype), new_tail.transpose(1, 2)


def ssd(x, log_decay, B, C, state=None, segments=None):
    batch, L, H, P = x.shape
    G, N = B.shape[2:]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    S = torch.zeros(batch, H, P, N, dtype=dtype, device=x.device) if state is None else state.to(dtype)
    group = torch.arange(H, device=x.device) * G // H  # head h reads group floor(h * G / H)
    outputs = []
    for t in range(L):
        if segments is not None:
            before = segments[:, t - 1] if t else torch.zeros_like(segments[:, 0])
            S = torch.where((segments[:, t] == before)[:, None, None, None], S, torch.zeros_like(S))
        B_t, C_t = exact(B[:, t])[:, group], exact(C[:, t])[:, group]  # [B, H, N]
        S = torch.exp(exact(log_decay[:, t]))[..., None, None] * S + exact(x[:, t])[..., None] * B_t[:, :, None, :]
        outputs.append((S * C_t[:, :, None, :]).sum(-1))
    return torch.stack(outputs, 1).to(x.dtype), S


def selective_scan(x, dt, A, B, C, state=None, segments=None):
    batch, L, D = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = torch.zeros(batch, D, A.shape[1], dtype=dtype, device=x.device) if state is None else state.to(dtype)
    outputs = []
    for t in range(L):
        if segments is not None:
            before = segments[:, t - 1] if t else torch.zeros_like(segments[:, 0])
            h = torch.where((segments[:, t] == before)[:, None, None], h, torch.zeros_like(h))
        step = exact(dt[:, t])[..., None]  # [B, D, 1]
        h = torch.exp(step * exact(A)) * h + step * exact(x[:, t])[..., None] * exact(B[:, t])[:, None, :]
        outputs.append((h * exact(C[:, t])[:, None, :]).sum(-1))
    return torch.stack(outputs, 1).to(x.dtype), h


def attend(q, k, v, first, last, key_positions, scale, window=None):
    repeats = q.shape[2] // k.shape[2]
    keys = exact(k).repeat_interleave(repeats, 2)
    values = exact(v).repeat_interleave(repeats, 2)
    scores = torch.einsum("blhd,bshd->bhls", exact(q), keys) * scale
    if window is not None:
        first = torch.maximum(first, last - window + 1)
    at = key_positions[:, None, :]  # [B, 1, S]
    seen = (at >= first[..., None]) & (at <= last[..., None])  # [B, L, S]
    weights = torch.softmax(scores.masked_fill(~seen[:, None], float("-inf")), -1)
    return torch.einsum("bhls,bshd->blhd", weights, values).to(q.dtype)


def causal_attend(q, k, v, scale):
    positions = torch.arange(q.shape[1], device=q.device).expand(q.shape[:2])
    return attend(q, k, v, torch.zeros_like(positions), positions, positions, scale)


def packed_attend(q, k, v, first, scale, window=None):
    positions = torch.arange(q.shape[1], device=q.device).expand(q.shape[:2])
    return attend(q, k, v, first, positions, positions, scale, window)


def rms_norm(x, weight, eps, round_first=False):
    v = exact(x)
    v = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + eps)
    if round_first:
        return v.to(weight.dtype) * weight
    return (v * exact(weight)).to(weight.dtype)


def layer_norm(x, weight, bias, eps):
    v = exact(x)
    v = v - v.mean(-1, keepdim=True)
    v = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + eps)
    return (v * exact(weight) + exact(bias)).to(weight.dtype)


def gated_norm(y, z, weight, eps, groups=1, norm_before_gate=False):
    v, gate = exact(y), exact(z) * torch.sigmoid(exact(z))
    if not norm_before_gate:
        v = v * gate
    parts = v.unflatten(-1, (groups, -1))
    v = (parts * torch.rsqrt(parts.pow(2).mean(-1, keepdim=True) + eps)).flatten(-2) * exact(weight)
    return (v * gate if norm_before_gate else v).to(y.dtype)


def rotate(x, cos, sin):
    half = cos.shape[-1]
    cos, sin = exact(cos)[:, :, None], exact(sin)[:, :, None]  # [B, L, 1, half]
    a, b = exact(x[..., :half]), exact(x[..., half : 2 * half])
    return torch.cat([(a * cos - b * sin), (b * cos + a * sin), exact(x[..., 2 * half :])], -1).to(x.dtype)


def telescope(q, k, v, weight_k, weight_v, cache, read, segments, reading):
    size, factor = reading.table.size, reading.factor
    outputs, ends = [], []
    for b in range(len(q)):
        held = [
            [None if part is None else part[b, j] for part in cache] if cache.weight_k[b, j, 0] > -torch.inf else None
            for j in range(size)
        ]
        t, seen = int(read[b]), []
        for i in range(q.shape[1]):
            if segments is not None and segments[b, i] != (segments[b, i - 1] if i else 0):
                t, held = 0, [None] * size
            new = [None if part is None else exact(part[b, i]) for part in (k, v, weight_k, weight_v)]
            if t:
                into = slots.merge_slot(reading.table, t)
                merged = [_merged(held[into], held[into - 1], factor)] if into < size else []
                held = [new, *held[: into - 1], *merged, *held[into + 1 :]]
            else:
                held = [new, *held[1:]]
            t += 1
            seen.append(_looked_at(q[b, i], held, reading))
        outputs.append(torch.stack(seen))
        empty = [torch.zeros_like(new[0]), torch.zeros_like(new[1]), *[torch.full_like(new[2], -torch.inf)] * 2]
        ends.append([entry or empty for entry in held])
    parts = [
        None if cache[i] is None else torch.stack([torch.stack([one[i] for one in end]) for end in ends]) for i in range(4)
    ]
    return torch.stack(outputs).to(q.dtype), type(cache)(*parts)


def _merged(older, newer, factor):
    """Two entries [k, v, weight_k, weight_v] as one; None is an empty slot."""
    if older is None and newer is None:
        return None
    if older is None:
        return newer if factor is None else [newer[0] * factor, newer[1] * factor, *newer[2:]]
    if factor is not None:
        return [(older[0] + newer[0]) * factor, (older[1] + newer[1]) * factor, torch.logaddexp(older[2], newer[2]), None]
    weights = [None if a is None else torch.logaddexp(a, b) for a, b in zip(older[2:], newer[2:])]
    merged = []
    for i in (0, 1):
        which = 2 + i if older[2 + i] is not None else 2
        share = torch.softmax(torch.stack([older[which], newer[which]]), 0)[..., None]
        merged.append(share[0] * older[i] + share[1] * newer[i])
    return [*merged, *weights]


def _looked_at(q, held, reading):
    """What the heads of one query [H, P] see."""
    outputs = []
    for head in range(len(q)):
        group = head * len(held[0][0]) // len(q)
        other = head % len(held[0][0]) if reading.mixed else group
        scores, values = [], []
        for entry in held:
            if entry is None and reading.masked:
                continue
            entry = entry or [torch.zeros_like(held[0][0]), torch.zeros_like(held[0][1])]
            key = _normed(entry[0][group], reading.norm_k, reading.eps)
            value = _normed(entry[1][other], reading.norm_v, reading.eps)
            score = (exact(q[head]) * key).sum() * reading.scale
            scores.append(score if reading.cap is None else reading.cap * torch.tanh(score / reading.cap))
            values.append(value)
        outputs.append(torch.softmax(torch.stack(scores), 0) @ torch.stack(values))
    return torch.stack(outputs)


def _normed(x, weight, eps):
    return x if weight is None else x / torch.sqrt(x.square().mean() + eps) * exact(weight)
