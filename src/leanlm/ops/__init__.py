"""The operations models are made of: their contracts. The implementation is chosen per device in `dispatch`.

Every operation takes and returns tensors and mutates none. B batch, L tokens, C channels, K taps, H heads, P head width,
G groups, N state width, S key slots, D width. `segments` is [B, L] int64, the ordinal of the document each token belongs to,
never falling along a row; document 0 continues the given tail or state, every later one starts from nothing.
States come in and go out in at least float32; outputs have the dtype of the first argument unless said otherwise. Scans are
computed in at least float32 under autocast too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanlm.ops.dispatch import implementation
from leanlm.ops.merging import Cache, Reading


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]: [..., out], in x's dtype."""
    return implementation("linear", x.device.type)(x, weight, bias)


def grouped_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    g_idx: Tensor | None,
    bits: int,
    bias: Tensor | None = None,
) -> Tensor:
    """`linear` with the weight scale * (code - zero): `packing.pack`ed codes [R, bytes] of x's width, scales [R, G].

    zeros uint8 [R, G] (None: 2^(bits - 1)); g_idx [in] says of which group a column is (None: consecutive ones).
    """
    return implementation("grouped_linear", x.device.type)(x, codes, scales, zeros, g_idx, bits, bias)


def ternary_linear(
    x: Tensor, codes: Tensor, scales: Tensor, starts: Tensor, along_rows: bool, bias: Tensor | None = None
) -> Tensor:
    """`linear` with the weight scale * (code - 1): two-bit `packing.pack`ed codes [R, bytes], scales [S] of the regions of
    rows or columns that begin at starts [S]."""
    return implementation("ternary_linear", x.device.type)(x, codes, scales, starts, along_rows, bias)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tail: Tensor | None = None,
    segments: Tensor | None = None,
    activation: str = "identity",
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution of x [B, L, C] by weight [C, K] (last tap: the current token), then `activation`.

    tail [B, C, K-1] holds the inputs before x, newest last (None: zeros). Returns the output [B, L, C] and the new tail.
    """
    return implementation("conv", x.device.type)(x, weight, bias, tail, segments, activation)


def ssd(
    x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None, segments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """State-space duality (Dao & Gu 2024, section 6): S[t] = exp(log_decay[t]) S[t-1] + x[t] B[t]^T, y[t] = S[t] C[t].

    x [B, L, H, P], log_decay [B, L, H] (<= 0), B and C [B, L, G, N] (head h reads group floor(h G / H)),
    state [B, H, P, N] (None: zeros). Returns y [B, L, H, P] and the state after the last token.
    """
    with torch.autocast(x.device.type, enabled=False):
        return implementation("ssd", x.device.type)(x, log_decay, B, C, state, segments)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba-1's scan (Gu & Dao 2023, section 3.2): h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t], y[t] = h[t] . C[t].

    x and dt [B, L, D] (dt > 0), A [D, N] (< 0), B and C [B, L, N], state [B, D, N] (None: zeros).
    Returns y [B, L, D] and the state after the last token.
    """
    with torch.autocast(x.device.type, enabled=False):
        return implementation("selective_scan", x.device.type)(x, dt, A, B, C, state, segments)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor,
    last: Tensor,
    key_positions: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Softmax attention of q [B, L, H, P] over k, v [B, S, Hkv, P] (head h reads key/value head floor(h Hkv / H)).

    key_positions [B, S] is where in its row's text each key stands, -1 for an empty slot; query i sees the keys whose
    position lies in first[b, i] .. last[b, i] (both [B, L]), and of these only the newest `window`. Every query must see at
    least one key. Returns [B, L, H, P].
    """
    return implementation("attend", q.device.type)(q, k, v, first, last, key_positions, scale, window)


def causal_attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`attend` for the plain case: S = L, query i sees keys 0 .. i."""
    return implementation("causal_attend", q.device.type)(q, k, v, scale)


def packed_attend(q: Tensor, k: Tensor, v: Tensor, first: Tensor, scale: float, window: int | None = None) -> Tensor:
    """`attend` for documents side by side: S = L, query i sees keys first[b, i] .. i, where the document of token i began."""
    return implementation("packed_attend", q.device.type)(q, k, v, first, scale, window)


def telescope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight_k: Tensor,
    weight_v: Tensor | None,
    cache: Cache,
    read: Sequence[int],
    segments: Tensor | None,
    reading: Reading,
) -> tuple[Tensor, Cache]:
    """Attention of q [B, L, H, P] over a cache of constant size, whose entries are k [B, L, G, P] and v [B, L, G, Q] of single
    tokens and, of older ones, their means, weighted by the softmax of weight_k and weight_v [B, L, G] (None: weight_k).

    `cache` is what was made of the tokens of each text's document before, `read` [B] of them. Where slot `merge_slot(t)`
    takes two entries of token t's cache, `reading` says how, and how the slots are looked at. Returns y [B, L, H, Q] and the
    cache after the last token, in at least float32.
    """
    return implementation("telescope", q.device.type)(q, k, v, weight_k, weight_v, cache, read, segments, reading)


def rms_norm(x: Tensor, weight: Tensor, eps: float, round_first: bool = False) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in weight's dtype; round_first rounds before the weight."""
    return implementation("rms_norm", x.device.type)(x, weight, eps, round_first)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in weight's dtype."""
    return implementation("layer_norm", x.device.type)(x, weight, bias, eps)


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int = 1, norm_before_gate: bool = False) -> Tensor:
    """Mamba-2's gated RMS norm of y [..., D] with gate z: rms(y silu(z)) w, or rms(y) w silu(z); rms per group of channels."""
    return implementation("gated_norm", y.device.type)(y, z, weight, eps, groups, norm_before_gate)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of x [B, L, H, P], half-split layout; cos and sin [B, L, R/2] turn the first R channels."""
    return implementation("rotate", x.device.type)(x, cos, sin)
