"""Mamba-1: selective scan with a state vector per channel (Gu & Dao 2023, arXiv 2312.00752, section 3).

B batch  L tokens  I inner channels  N state width  R rank of dt
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlm import ops
from leanlm.model import config
from leanlm.model.conv import CausalConv
from leanlm.model.linear import Linear
from leanlm.model.packed import matmul
from leanlm.model.state import Memory, blank, recall, remember


class Mamba1(nn.Module):
    """Memory: `conv` [B, I, taps - 1] in the model's dtype and `ssm` [B, I, N]."""

    def __init__(self, width: int, cfg: config.Mamba1):
        super().__init__()
        self.config = cfg
        inner = cfg.d_inner
        self.in_proj = Linear(width, 2 * inner, cfg.bias)
        self.conv = CausalConv(inner, cfg.d_conv, cfg.conv_bias, "silu")
        self.x_proj = Linear(inner, cfg.dt_rank + 2 * cfg.d_state)
        self.dt_proj = Linear(cfg.dt_rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(inner, cfg.d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = Linear(inner, width, cfg.bias)

    def forward(self, x: Tensor, state: Memory | None = None, segments: Tensor | None = None) -> Tensor:
        x, z = self.in_proj(x).chunk(2, -1)  # [B, L, I] each
        x = self.conv(x, state, segments)
        dt, B, C = self.x_proj(x).split([self.config.dt_rank, self.config.d_state, self.config.d_state], -1)
        dt = F.softplus(matmul(dt, self.dt_proj.weight).float() + self.dt_proj.bias.float())
        A = -torch.exp(self.A_log.float())
        y, final = ops.selective_scan(x.float(), dt, A, B, C, recall(state, "ssm"), segments)
        if state:
            remember(state, "ssm", final)
        y = (y + self.D.float() * x.float()) * F.silu(z.float())
        return self.out_proj(y.to(x.dtype))

    def new_state(self, batch: int, capacity: int | None = None, device=None, dtype=None) -> Memory:
        """Empty memory; the scan's state in float32 unless `dtype`, a float's or int8, says otherwise."""
        device = device or self.A_log.device
        shape = (batch, self.config.d_inner, self.config.d_state)
        return {
            "conv": self.conv.new_tail(batch, device, self.in_proj.weight.dtype),
            **blank("ssm", shape, device, dtype or torch.float32),
        }

    def reset(self, std: float, out_std: float) -> None:
        """A = -(1 .. N) and dt log-uniform in 0.001 .. 0.1 (section 3.6 of the paper and its published code)."""
        self.in_proj.reset(std)
        self.conv.reset()
        self.x_proj.reset(std)
        bound = self.config.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        reset_dt_bias(self.dt_proj.bias)
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, self.config.d_state + 1).log().expand_as(self.A_log))
        nn.init.ones_(self.D)
        self.out_proj.reset(out_std)


@torch.no_grad()
def reset_dt_bias(bias: Tensor) -> None:
    """In place: the bias whose softplus is log-uniform in 0.001 .. 0.1."""
    dt = torch.exp(torch.rand_like(bias) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))
