"""Weights rounded to the nearest of a GGUF block format: what `--lossy` does where the blocks cannot hold them exactly.

N blocks  K weights of a block
"""

import numpy as np
import torch
from torch import Tensor

from leanlm.export import gguf_container
from leanlm.export.gguf_types import TYPES, Float, Quantised, encode_q6_k
from leanlm.model.packed import Packed

SUB = 16  # weights under one sub-scale of Q6_K


def rounded(weight: Tensor | Packed, type: Float | Quantised) -> np.ndarray:
    """The bytes of weight [R, n] in `type`, uint8 [R, bytes of a row]; n is a multiple of the block."""
    values = (weight.dequantize(torch.float32) if isinstance(weight, Packed) else weight.detach()).float()
    if isinstance(type, Float):
        return type.encode(values).numpy()
    own = {"Q6_K": _q6_k, "Q2_0": _q2_0}.get(type.name)
    if own:
        return own(values.reshape(-1, type.block)).view(len(values), -1).numpy()
    gguf = gguf_container.package()
    return gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType(type.code))


def _q6_k(values: Tensor) -> Tensor:
    """Every 16 weights their own step: their largest magnitude over 31, as an 8-bit multiple of the block's scale."""
    steps = values.view(len(values), -1, SUB).abs().amax(2) / 31  # [N, 16]
    scales = (steps.amax(1) / 127).half()
    each = scales.float()[:, None]
    sub_scales = torch.where(each > 0, steps / each, 0).round().clamp(0, 127)
    step = (each * sub_scales).repeat_interleave(SUB, 1)
    levels = torch.where(step > 0, values / step, 0).round().clamp(-32, 31)
    return encode_q6_k(levels.short(), scales, sub_scales.to(torch.int8))


def _q2_0(values: Tensor) -> Tensor:
    """Largest magnitude as the scale, and what is nearest of -1, 0 and 1 times it."""
    scales = values.abs().amax(1).half()
    each = scales.float()[:, None]
    levels = torch.where(each > 0, values / each, 0).round().clamp(-1, 1)
    return TYPES["Q2_0"].encode(levels.short(), scales)
