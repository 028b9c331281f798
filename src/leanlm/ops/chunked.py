"""State-space duality in chunks with a backward pass of its own, which `eager.ssd` is made of.

Autograd would keep a dozen matrices [Q, Q] per head and chunk and go through each of them twice. Here the decays alone are
kept, and what they are multiplied with is computed again.

b batch  c chunks  Q tokens of a chunk  H heads  P head width  G groups  N state width  M = H / G x P
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Decays(NamedTuple):
    """What is left of an input: at a later token of its chunk `within` [b, c, H, Q, Q], by the chunk's end `keep`
    [b, c, Q, H]; of the state a chunk was given, at each token `reach` [b, c, Q, H], by its end `survival` [b, c, H]."""

    within: Tensor
    keep: Tensor
    reach: Tensor
    survival: Tensor


def edges(log_decay: Tensor, documents: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of log_decay [b, c, Q, H], `documents` [b, c, Q] as ordinals that never fall (0 continues the state): its sums since a
    chunk began, and the decays `keep`, `reach` and `survival`."""
    # Differences of these sums are wanted: after one strong decay float32 would have lost the digits of the weak ones that
    # follow.
    since = log_decay.cumsum(2, dtype=exact(log_decay))
    end = since[:, :, -1:]
    keep, reach, survival = ((t.to(dtype)).exp() for t in (end - since, since, end.squeeze(2)))
    if documents is not None:
        last = documents[..., -1]
        given = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], 1)  # document of the state a chunk is given
        keep = keep * (documents == last[..., None])[..., None]
        reach = reach * (documents == given[..., None])[..., None]
        survival = survival * (last == given)[..., None]
    return since, keep, reach, survival


def decays(log_decay: Tensor, documents: Tensor | None, dtype: torch.dtype) -> Decays:
    """Of log_decay [b, c, Q, H]; `documents` as in `edges`."""
    Q = log_decay.shape[2]
    since, keep, reach, survival = edges(log_decay, documents, dtype)
    hidden = torch.ones(Q, Q, dtype=torch.bool, device=log_decay.device).triu(1)
    if documents is not None:
        hidden = hidden | (documents[..., :, None] != documents[..., None, :])[:, :, None]
    since = since.transpose(2, 3)  # [b, c, H, Q]
    between = (since[..., :, None] - since[..., None, :]).to(dtype)
    return Decays(between.masked_fill_(hidden, float("-inf")).exp_(), keep, reach, survival)  # masked first: no overflow


def exact(x: Tensor) -> torch.dtype:
    """What sums of decays are kept in; Apple's GPUs have no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


class Chunked(torch.autograd.Function):
    """x [b, c, Q, H, P], log_decay [b, c, Q, H], B and C [b, c, G, Q, N], state [b, G, N, M], documents [b, c, Q] or None to
    y [b, c, Q, H, P] and the state after the last chunk. All of one dtype, float32 or float64."""

    @staticmethod
    def forward(ctx, x, log_decay, B, C, state, documents):
        c, P, G = x.shape[1], x.shape[-1], B.shape[2]
        left = decays(log_decay, documents, x.dtype)
        scores = C @ B.transpose(-1, -2)  # [b, c, G, Q, Q]
        heads = x.transpose(2, 3).contiguous()  # [b, c, H, Q, P]
        y = weights(left.within, scores) @ heads
        added = B.transpose(-1, -2) @ grouped(x * left.keep[..., None], G)  # [b, c, G, N, M]
        survival = by_column(left.survival, G, P)  # [b, c, G, 1, M]
        starts = torch.empty_like(added)
        for number in range(c):
            starts[:, number] = state
            state = torch.addcmul(added[:, number], survival[:, number], state)
        seen = C @ starts  # [b, c, G, Q, M]
        y = torch.addcmul(y.transpose(2, 3), ungrouped(seen, P), left.reach[..., None])
        ctx.save_for_backward(heads, B, C, scores, starts, seen, *left)
        return y, state

    @staticmethod
    def backward(ctx, dy, carry):
        heads, B, C, scores, starts, seen, *left = ctx.saved_tensors
        left, G, P, x = Decays(*left), B.shape[2], heads.shape[-1], heads.transpose(2, 3)
        # Inside the chunks: y = (within o C B^T) x.
        dy_heads = dy.transpose(2, 3).contiguous()  # [b, c, H, Q, P]
        dx = (weights(left.within, scores).transpose(-1, -2) @ dy_heads).transpose(2, 3)
        dscores = (dy_heads @ heads.transpose(-1, -2)).mul_(left.within).unflatten(2, (G, -1))
        each = dscores.sum(3)  # [b, c, G, Q, Q]
        dC, dB = each @ B, each.transpose(-1, -2) @ C
        pairs = dscores.mul_(scores[:, :, :, None]).flatten(2, 3)  # d within o within
        pairs.diagonal(dim1=-2, dim2=-1).zero_()  # no decay between a token and itself
        dsince = (pairs.sum(-1).to(exact(x)) - pairs.sum(-2)).transpose(2, 3)  # [b, c, Q, H]
        # What the tokens see of the states, y += reach o (C starts).
        dseen = grouped(dy * left.reach[..., None], G)  # [b, c, G, Q, M]
        dsince += ungrouped(dseen * seen, P).sum(-1)
        dC += dseen @ starts.transpose(-1, -2)
        dstarts = C.transpose(-1, -2) @ dseen  # [b, c, G, N, M]
        # The states: start[c + 1] = survival[c] start[c] + B^T (keep o x).
        survival, dadded = by_column(left.survival, G, P), torch.empty_like(dstarts)
        for number in reversed(range(dstarts.shape[1])):
            dadded[:, number] = carry
            carry = torch.addcmul(dstarts[:, number], survival[:, number], carry)
        kept, dkept = grouped(x * left.keep[..., None], G), B @ dadded  # [b, c, G, Q, M]
        dB += kept @ dadded.transpose(-1, -2)
        lost = ungrouped(kept * dkept, P).sum(-1)  # [b, c, Q, H]
        dend = (starts * dadded).sum(-2).unflatten(-1, (-1, P)).sum(-1).flatten(2, 3) * left.survival  # [b, c, H]
        dsince -= lost
        dsince[:, :, -1] += lost.sum(2) + dend
        dx = torch.addcmul(dx, ungrouped(dkept, P), left.keep[..., None])
        dlog_decay = dsince.flip(2).cumsum(2).flip(2).to(x.dtype)
        return dx, dlog_decay, dB, dC, carry, None


def weights(within: Tensor, scores: Tensor) -> Tensor:
    """within [b, c, H, Q, Q] o scores [b, c, G, Q, Q] of each head's group."""
    return (within.unflatten(2, (scores.shape[2], -1)) * scores[:, :, :, None]).flatten(2, 3)


def grouped(x: Tensor, G: int) -> Tensor:
    """[b, c, Q, H, P] with the heads of each group side by side: [b, c, G, Q, M]."""
    return x.unflatten(3, (G, -1)).movedim(3, 2).flatten(4, 5)


def ungrouped(x: Tensor, P: int) -> Tensor:
    """The inverse of `grouped`."""
    return x.movedim(2, 3).unflatten(-1, (-1, P)).flatten(3, 4)


def by_column(values: Tensor, G: int, P: int) -> Tensor:
    """A value per head [b, c, H] for each of its columns: [b, c, G, 1, M]."""
    return values[..., None].expand(-1, -1, -1, P).reshape(*values.shape[:2], G, 1, -1)
