"""Mixers as the matrices that they multiply a text's values with: what distillation compares.

B batch  L tokens  H heads  P head width  G groups (key/value heads)  N state width. Row t holds what token t takes of each.
Computed in at least float32; autograd runs through.
"""

import torch
from torch import Tensor

from leanlm.ops import chunked


def ssd(log_decay: Tensor, B: Tensor, C: Tensor, segments: Tensor | None = None) -> Tensor:
    """[B, H, L, L]: (C[t] . B[s]) exp(log_decay[s+1] + ... + log_decay[t]) for s <= t of one document, else 0, so that it times
    x is the y of `ops.ssd` from an empty state. Arguments as there."""
    with torch.autocast(log_decay.device.type, enabled=False):
        documents = None if segments is None else segments[:, None]
        within = chunked.decays(log_decay.float()[:, None], documents, torch.float32).within  # one chunk
        scores = C.float().transpose(1, 2) @ B.float().permute(0, 2, 3, 1)  # [B, G, L, L]
        return chunked.weights(within, scores[:, None])[:, 0]


def attention(q: Tensor, k: Tensor, first: Tensor, last: Tensor, scale: float, window: int | None = None) -> Tensor:
    """[B, H, L, L]: the softmax of `ops.attend` where the keys [B, L, G, P] are those of the queries' own tokens."""
    if window is not None:
        first = torch.maximum(first, last - window + 1)
    with torch.autocast(q.device.type, enabled=False):
        keys = k.float().repeat_interleave(q.shape[2] // k.shape[2], 2)
        scores = q.float().transpose(1, 2) @ keys.permute(0, 2, 3, 1) * scale
        at = last[:, None, :]
        seen = (at >= first[..., None]) & (at <= last[..., None])  # [B, L, L]
        return scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
