"""The sublayers without memory: a plain and a gated multi-layer perceptron."""

import torch.nn.functional as F
from torch import Tensor, nn

from leanlm.model import config
from leanlm.model.linear import Linear


class MLP(nn.Module):
    """out_proj(activation(in_proj(x))); gelu is the exact (erf) form."""

    def __init__(self, width: int, cfg: config.MLP):
        super().__init__()
        self.config = cfg
        self.in_proj = Linear(width, cfg.d_ff, cfg.bias)
        self.out_proj = Linear(cfg.d_ff, width, cfg.bias)

    def forward(self, x: Tensor, state=None, segments=None) -> Tensor:
        activation = F.gelu if self.config.activation == "gelu" else F.silu
        return self.out_proj(activation(self.in_proj(x)))

    def new_state(self, batch: int, capacity: int | None = None, device=None, dtype=None) -> None:
        return None

    def reset(self, std: float, out_std: float) -> None:
        self.in_proj.reset(std)
        self.out_proj.reset(out_std)


class GatedMLP(nn.Module):
    """down_proj(silu(gate_proj(x)) * up_proj(x)) (Shazeer 2020, arXiv 2002.05202, SwiGLU)."""

    def __init__(self, width: int, cfg: config.GatedMLP):
        super().__init__()
        self.gate_proj = Linear(width, cfg.d_ff, cfg.bias)
        self.up_proj = Linear(width, cfg.d_ff, cfg.bias)
        self.down_proj = Linear(cfg.d_ff, width, cfg.bias)

    def forward(self, x: Tensor, state=None, segments=None) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    def new_state(self, batch: int, capacity: int | None = None, device=None, dtype=None) -> None:
        return None

    def reset(self, std: float, out_std: float) -> None:
        self.gate_proj.reset(std)
        self.up_proj.reset(std)
        self.down_proj.reset(out_std)
