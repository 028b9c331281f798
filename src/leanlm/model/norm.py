"""Normalisation of the residual stream before each mixer and before the head."""

import torch
from torch import Tensor, nn

from leanlm import ops
from leanlm.model import config


class Norm(nn.Module):
    """RMS or layer norm over the last axis; computed in float32, returned in the weight's dtype."""

    def __init__(self, width: int, cfg: config.Norm):
        super().__init__()
        self.config = cfg
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if cfg.kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return ops.layer_norm(x, self.weight, self.bias, self.config.eps)
        return ops.rms_norm(x, self.weight, self.config.eps, self.config.round_first)

    def reset(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
