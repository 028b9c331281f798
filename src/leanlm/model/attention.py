"""Causal attention: full or sliding window, shared key/value heads, rotary or no positions, optional convolution.

B batch  L tokens  H heads  P head width  S slots of the memory
"""

import torch
from torch import Tensor, nn

from leanlm import ops
from leanlm.errors import CapacityError
from leanlm.model import config, rotary
from leanlm.model.conv import CausalConv
from leanlm.model.linear import Linear
from leanlm.model.state import Memory, blank, quantised, scale_of, sent
from leanlm.ops import matrices


class Attention(nn.Module):
    """Memory: `k`, `v` [B, S, H_kv, P] (k after rotary), `position` [B] tokens read, `start` [B] where the current
    document began, and `conv` where q|k|v are convolved. With a window of w, S = w and token t lives in slot t mod w.
    In 8 bits k and v are codes to be multiplied with `k_scale`, `v_scale` [B, S, H_kv]."""

    def __init__(self, width: int, cfg: config.Attention):
        super().__init__()
        self.config = cfg
        self.scale = cfg.head_dim**-0.5 if cfg.scale is None else cfg.scale
        inner, shared = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
        self.q_proj = Linear(width, inner, cfg.qkv_bias)
        self.k_proj = Linear(width, shared, cfg.qkv_bias)
        self.v_proj = Linear(width, shared, cfg.qkv_bias)
        self.out_proj = Linear(inner, width, cfg.out_bias)
        self.conv = CausalConv(inner + 2 * shared, cfg.d_conv) if cfg.d_conv else None

    def forward(self, x: Tensor, state: Memory | None = None, segments: Tensor | None = None) -> Tensor:
        B, L, _ = x.shape
        read = state["position"] if state else torch.zeros(B, dtype=torch.int64)
        last = sent(read[:, None] + torch.arange(L), x.device)  # [B, L]: the positions of these tokens
        q, k, v = self.project(x, last, state, segments)
        if segments is None and not (state and read.any()) and (self.config.window is None or self.config.window >= L):
            y = ops.causal_attend(q, _seen(k, state), _seen(v, state), self.scale)
            if state:
                self._write(k, v, last, state)
        else:
            first = self._first(last, state, segments)
            if state is None:
                y = ops.packed_attend(q, k, v, first, self.scale, self.config.window)
            else:
                keys, values, at = self._remember(k, v, last, state)
                y = ops.attend(q, keys, values, first, last, at, self.scale, self.config.window)
        if state:
            state["position"] += L
            if segments is not None:
                state["start"].copy_(first[:, -1])
        return self.out_proj(y.flatten(2))

    def step(self, x: Tensor, memory: Memory, position: Tensor, start: Tensor, slots: int) -> Tensor:
        """`forward` of one token a text, [B, 1, D], where no shape depends on a number that is on the device: `position` and
        `start` [B] of the memory are given there, and of its slots the first `slots` are looked at, which the caller sees to
        is enough. Leaves the memory's own position as it is."""
        last = position[:, None]
        q, k, v = self.project(x, last, memory)
        self._write(k, v, last, memory)
        held = memory["k"].shape[1]
        keys, values = (_recalled(memory, name, min(held, slots), k.dtype) for name in ("k", "v"))
        at = self._slot_positions(last, held)[:, :slots]
        y = ops.attend(q, keys, values, start[:, None], last, at, self.scale, self.config.window)
        return self.out_proj(y.flatten(2))

    def matrix(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        """[B, H, L, L] float32: the probabilities that multiply the values of a text read from an empty state."""
        last = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        q, k, _ = self.project(x, last, None, segments)
        return matrices.attention(q, k, self._first(last, None, segments), last, self.scale, self.config.window)

    def project(
        self, x: Tensor, last: Tensor, state: Memory | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, L, H, P], keys and values [B, L, H_kv, P] of tokens at the positions `last` [B, L]."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.conv is not None:
            qkv = self.conv(torch.cat([q, k, v], -1), state, segments)
            q, k, v = qkv.split([q.shape[-1], k.shape[-1], v.shape[-1]], -1)
        q, k, v = (t.unflatten(-1, (-1, self.config.head_dim)) for t in (q, k, v))
        if self.config.rope:
            cos, sin = rotary.angles(self.config.rope, last)
            q, k = ops.rotate(q, cos, sin), ops.rotate(k, cos, sin)
        return q, k, v

    def _first(self, last: Tensor, state: Memory | None, segments: Tensor | None) -> Tensor:
        """Where the document of each token began [B, L]."""
        start = sent(state["start"], last.device)[:, None] if state else torch.zeros_like(last[:, :1])
        if segments is None:
            return start.expand_as(last)
        before = torch.cat([torch.zeros_like(segments[:, :1]), segments[:, :-1]], 1)
        return torch.where(segments != before, last, start).cummax(1).values

    def _remember(self, k: Tensor, v: Tensor, last: Tensor, state: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Write k, v [B, L, H_kv, P] into the memory; returns what the queries may look at and where each key stands."""
        L, slots = k.shape[1], state["k"].shape[1]
        used = min(slots, int(state["position"].max()))
        if L == 1 and not k.requires_grad:
            self._write(k, v, last, state)
            used = min(slots, used + 1)
            keys, values = (_recalled(state, name, used, k.dtype) for name in ("k", "v"))
            return keys, values, self._slot_positions(last, slots)[:, :used]
        # Several tokens may overwrite keys that the first of them still sees, and gradients flow to new keys alone: look at
        # the memory and the new keys side by side.
        both = (("k", k), ("v", v))
        keys, values = (torch.cat([_recalled(state, name, used, t.dtype), _seen(t, state)], 1) for name, t in both)
        at = torch.cat([self._slot_positions(last[:, :1] - 1, slots)[:, :used], last], 1)
        self._write(k, v, last, state)
        return keys, values, at

    @staticmethod
    def _write(k: Tensor, v: Tensor, last: Tensor, state: Memory) -> None:
        """Store the newest of k, v [B, L, H_kv, P], at positions `last` [B, L], in their slots."""
        slots = state["k"].shape[1]
        rows, place = torch.arange(len(k), device=k.device)[:, None], last[:, -slots:] % slots
        for name, new in (("k", k), ("v", v)):
            new = new[:, -slots:].detach()
            if scale_of(name) in state:
                new, state[scale_of(name)][rows, place] = quantised(new)
            state[name][rows, place] = new.to(state[name].dtype)

    @staticmethod
    def _slot_positions(newest: Tensor, slots: int) -> Tensor:
        """Position of the key in every slot [B, slots] when `newest` [B, 1] was written last; negative where empty."""
        return newest - (newest - torch.arange(slots, device=newest.device)) % slots

    def new_state(self, batch: int, capacity: int | None = None, device=None, dtype=None) -> Memory:
        """Empty memory for `capacity` tokens (full attention) or the window; keys and values in `dtype`, a float's or int8.

        The caller sees to it that full attention never reads more than `capacity` tokens (`LanguageModel` does).
        """
        own = self.k_proj.weight.dtype
        device, dtype = device or self.k_proj.weight.device, dtype or own
        slots = capacity if self.config.window is None else self.config.window
        if slots is None:
            raise CapacityError("full attention needs to know how many tokens to make room for: give capacity=...")
        shape = (batch, slots, self.config.n_kv_heads, self.config.head_dim)
        memory = blank("k", shape, device, dtype) | blank("v", shape, device, dtype)
        memory |= {name: torch.zeros(batch, dtype=torch.int64) for name in ("position", "start")}
        if self.conv is not None:
            memory["conv"] = self.conv.new_tail(batch, device, own)
        return memory

    def reset(self, std: float, out_std: float) -> None:
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.reset(std)
        self.out_proj.reset(out_std)
        if self.conv is not None:
            self.conv.reset()


def _seen(x: Tensor, state: Memory | None) -> Tensor:
    """New keys or values as they will be remembered in 8 bits, so that no cut of a text matters; gradients pass them by."""
    if state is None or "k_scale" not in state:
        return x
    codes, scales = quantised(x.detach())
    values = (codes * scales[..., None]).to(x.dtype)
    return x + (values - x).detach() if x.requires_grad else values


def _recalled(state: Memory, name: str, used: int, dtype: torch.dtype) -> Tensor:
    """The first `used` slots of keys or values, in `dtype`."""
    held = state[name][:, :used]
    if scale_of(name) in state:
        held = held * state[scale_of(name)][:, :used, :, None]
    return held.to(dtype)
