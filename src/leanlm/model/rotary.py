"""Rotary positions: the angles by which queries and keys are turned."""

import functools
import math

import torch
from torch import Tensor

from leanlm.model.config import Rope


@functools.lru_cache(maxsize=64)
def frequencies(rope: Rope, device: torch.device) -> Tensor:
    """Radians per token [dim / 2], float32: theta^(-2i/dim), stretched as Llama-3 does where the config says so.

    Llama-3 (transformers' rope_type "llama3"): wavelengths shorter than context / high_freq_factor stay, those longer than
    context / low_freq_factor are divided by factor, and those between are blended linearly in context / wavelength.
    """
    inverse = 1.0 / rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32, device=device) / rope.dim)
    if rope.scaling is None:
        return inverse
    s = rope.scaling
    turns = s.original_context * inverse / (2 * math.pi)  # turns within the original context
    blend = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return (1 - blend) * inverse / s.factor + blend * inverse


def angles(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [B, L, dim / 2], float32, for token positions [B, L]."""
    turned = positions[..., None].float() * frequencies(rope, positions.device)
    return turned.cos(), turned.sin()
