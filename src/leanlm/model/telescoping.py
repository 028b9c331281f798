"""Attention over a telescoping cache: recent tokens one by one, older ones merged into ever longer means, in a constant number
of slots (IBM's Avengers).

B batch  L tokens  H heads  G key/value heads  P and Q widths of a key and of a value  C slots
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanlm import ops
from leanlm.model import config, rotary
from leanlm.model.linear import Linear
from leanlm.model.state import Memory, blank, recall, remember
from leanlm.ops.merging import Cache, Reading

FACTORS = {"mean": 0.5, "sqrt2": 0.5**0.5}
PARTS = ("entry_k", "entry_v", "weight_k", "weight_v")


class Telescoping(nn.Module):
    """Memory: `entry_k` [B, C, G, P] and `entry_v` [B, C, G, Q], slot 0 the newest entry, before any norm; the logarithms of
    their weights `weight_k` (and `weight_v`, where values have their own) [B, C, G] float32, -inf where a slot is empty;
    `position` [B] tokens read, and `start` [B] where the current document began, from which positions are counted."""

    def __init__(self, width: int, cfg: config.Telescoping):
        super().__init__()
        self.config = cfg
        self.q_proj = Linear(width, cfg.n_heads * cfg.head_dim, cfg.qkv_bias)
        self.k_proj = Linear(width, cfg.n_kv_heads * cfg.head_dim, cfg.qkv_bias)
        self.v_proj = None if cfg.value_is_key else Linear(width, cfg.n_kv_heads * cfg.v_head_dim, cfg.qkv_bias)
        self.weight_proj = Linear(width, cfg.n_kv_heads) if cfg.merge == "learned" else None
        self.out_proj = Linear(cfg.n_heads * cfg.v_head_dim, width, cfg.out_bias)
        self.norm_k = nn.Parameter(torch.ones(cfg.head_dim)) if cfg.entry_norm else None
        self.norm_v = nn.Parameter(torch.ones(cfg.v_head_dim)) if cfg.entry_norm else None
        self.scale = cfg.head_dim**-0.5 if cfg.scale is None else cfg.scale

    @property
    def reading(self) -> Reading:
        """How the operation merges and looks at entries."""
        cfg = self.config
        norms = self.norm_k, self.norm_v, cfg.entry_norm_eps
        return Reading(cfg.table, self.scale, FACTORS.get(cfg.merge), *norms, cfg.mask_empty, cfg.softcap, cfg.head_mix)

    def forward(self, x: Tensor, state: Memory | None = None, segments: Tensor | None = None) -> Tensor:
        B, L, _ = x.shape
        read = (state["position"] - state["start"]).tolist() if state else [0] * B  # of the current document
        at, begun = positions(read, L, segments)
        q, k = (p(x).unflatten(-1, (-1, self.config.head_dim)) for p in (self.q_proj, self.k_proj))
        v = k if self.v_proj is None else self.v_proj(x).unflatten(-1, (-1, self.config.v_head_dim))
        if self.config.rope:
            cos, sin = rotary.angles(self.config.rope, at.to(x.device))
            q, k = ops.rotate(q, cos, sin), ops.rotate(k, cos, sin)
        cache = self._recalled(state, q, v)
        y, cache = ops.telescope(q, k, v, *self._weights(x, q, k, v), cache, read, segments, self.reading)
        if state:
            for name, part in zip(PARTS, cache):
                if part is not None:
                    remember(state, name, part)
            state["position"] += L
            state["start"].copy_(state["position"] - begun)
        return self.out_proj(y.flatten(2))

    def _weights(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logarithms of the weights of every token's key and value [B, L, G], at least float32; None: as the key's."""
        q, k, v = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k, v))
        match self.config.merge:
            case "learned":
                return self.weight_proj(x).to(k.dtype), None
            case "self_score":
                scores = (q.unflatten(2, (k.shape[2], -1)) * k[:, :, :, None]).sum(-1) * self.scale
                return scores.logsumexp(-1), None
            case "l2":
                return tuple(t.square().sum(-1) * t.shape[-1] ** -0.5 for t in (k, v))
            case _:
                return k.new_zeros(k.shape[:3]), None

    def _recalled(self, state: Memory | None, q: Tensor, v: Tensor) -> Cache:
        """What is held, in the dtype to merge in; empty without a memory."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        if state is None:
            state = self.new_state(len(q), device=q.device, dtype=dtype)
        held = (recall(state, name) if name in state else None for name in PARTS)
        return Cache(*(None if part is None else part.to(torch.promote_types(part.dtype, dtype)) for part in held))

    def new_state(self, batch: int, capacity: int | None = None, device=None, dtype=None) -> Memory:
        """Empty memory; entries in `dtype`, a float's or int8 (default float32). It never grows: `capacity` means nothing."""
        cfg, device = self.config, device or self.k_proj.weight.device
        dtype = dtype or torch.float32
        shape = (batch, cfg.slots, cfg.n_kv_heads)
        memory = blank("entry_k", (*shape, cfg.head_dim), device, dtype)
        memory |= blank("entry_v", (*shape, cfg.v_head_dim), device, dtype)
        empty = {"device": "cpu" if torch.device(device).type == "meta" else device, "dtype": torch.float32}
        for name in ("weight_k", "weight_v") if cfg.merge == "l2" else ("weight_k",):
            memory[name] = torch.full(shape, -math.inf, **empty)
        return memory | {name: torch.zeros(batch, dtype=torch.int64) for name in ("position", "start")}

    def reset(self, std: float, out_std: float) -> None:
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.weight_proj):
            if projection is not None:
                projection.reset(std)
        self.out_proj.reset(out_std)
        for norm in (self.norm_k, self.norm_v):
            if norm is not None:
                nn.init.ones_(norm)


def positions(read: Sequence[int], length: int, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """The position of every token in its document [B, L], and how many tokens of the last document were read [B]; the first
    `read` [B] of document 0 before."""
    before = torch.tensor(read)[:, None]
    at = before + torch.arange(length)
    if segments is None:
        return at, at[:, -1] + 1
    segments = segments.cpu()
    earlier = torch.cat([torch.zeros_like(segments[:, :1]), segments[:, :-1]], 1)
    began = torch.where(segments != earlier, torch.arange(length), -before).cummax(1).values
    at = torch.arange(length) - began
    return at, at[:, -1] + 1
