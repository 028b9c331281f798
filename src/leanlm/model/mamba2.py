"""Mamba-2: state-space duality with one decay per head (Dao & Gu 2024, arXiv 2405.21060, section 7).

B batch  L tokens  I inner channels = H heads x P head width  G groups  N state width  M channels of the extra gated part
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlm import ops
from leanlm.model import config
from leanlm.model.conv import CausalConv
from leanlm.model.linear import Linear
from leanlm.model.mamba1 import reset_dt_bias
from leanlm.model.state import Memory, blank, recall, remember
from leanlm.ops import matrices


class Mamba2(nn.Module):
    """Memory: `conv` [B, I + 2 G N, taps - 1] in the model's dtype and `ssm` [B, H, P, N].

    Rows of in_proj: gate and value of the extra part (M each), gate z (I), x (I), B and C (G N each), dt (H).
    """

    def __init__(self, width: int, cfg: config.Mamba2):
        super().__init__()
        self.config = cfg
        inner, shared = cfg.d_inner, cfg.n_groups * cfg.d_state
        self.parts = [cfg.d_mlp, cfg.d_mlp, inner, inner + 2 * shared, cfg.n_heads]
        self.in_proj = Linear(width, sum(self.parts), cfg.bias)
        self.conv = CausalConv(inner + 2 * shared, cfg.d_conv, cfg.conv_bias, "silu")
        self.dt_bias = nn.Parameter(torch.empty(cfg.n_heads))
        self.A_log = nn.Parameter(torch.empty(cfg.n_heads))
        self.D = nn.Parameter(torch.empty(inner if cfg.d_per_channel else cfg.n_heads))
        self.norm_weight = nn.Parameter(torch.empty(inner)) if cfg.norm else None
        self.out_proj = Linear(inner + cfg.d_mlp, width, cfg.bias)

    def forward(self, x: Tensor, state: Memory | None = None, segments: Tensor | None = None) -> Tensor:
        x, B, C, dt, gates = self.project(x, state, segments)
        y, final = ops.ssd(x * dt[..., None], self._log_decay(dt), B, C, recall(state, "ssm"), segments)
        if state:
            remember(state, "ssm", final)
        return self.finish(y + self.D.float().view(self.config.n_heads, -1) * x, gates)

    def project(
        self, x: Tensor, state: Memory | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """What is mixed, x [B, L, H, P] in float32; B and C [B, L, G, N], dt [B, L, H]; gate and value of the extra part, z."""
        cfg = self.config
        mlp_gate, mlp_value, z, xBC, dt = self.in_proj(x).split(self.parts, -1)
        x, B, C = self.conv(xBC, state, segments).split([cfg.d_inner, *[cfg.n_groups * cfg.d_state] * 2], -1)
        B, C = B.unflatten(-1, (cfg.n_groups, -1)), C.unflatten(-1, (cfg.n_groups, -1))
        dt = F.softplus(dt.float() + self.dt_bias.float()).clamp(cfg.dt_min, cfg.dt_max)
        return x.float().unflatten(-1, (cfg.n_heads, cfg.head_dim)), B, C, dt, (mlp_gate, mlp_value, z)

    def matrix(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        """[B, H, L, L] float32: what multiplies the projected x of a text read from an empty state, D on its diagonal."""
        _, B, C, dt, _ = self.project(x, None, segments)
        mixing = matrices.ssd(self._log_decay(dt), B, C, segments) * dt.transpose(1, 2)[:, :, None]
        return mixing + torch.diag_embed(self.D.float()[:, None].expand(-1, x.shape[1]))

    def finish(self, y: Tensor, gates: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Gate, norm and projection of what was mixed, y [B, L, H, P]."""
        cfg, (mlp_gate, mlp_value, z) = self.config, gates
        y = y.flatten(2).to(z.dtype)  # [B, L, I]
        if self.norm_weight is not None:
            y = ops.gated_norm(y, z, self.norm_weight, cfg.norm_eps, cfg.n_groups, cfg.norm_before_gate)
        else:
            y = y * F.silu(z)
        if cfg.d_mlp:
            y = torch.cat([F.silu(mlp_gate) * mlp_value, y], -1)
        return self.out_proj(y)

    def _log_decay(self, dt: Tensor) -> Tensor:
        return dt * -torch.exp(self.A_log.float())

    def new_state(self, batch: int, capacity: int | None = None, device=None, dtype=None) -> Memory:
        """Empty memory; the scan's state in float32 unless `dtype`, a float's or int8, says otherwise."""
        device = device or self.A_log.device
        shape = (batch, self.config.n_heads, self.config.head_dim, self.config.d_state)
        return {
            "conv": self.conv.new_tail(batch, device, self.in_proj.weight.dtype),
            **blank("ssm", shape, device, dtype or torch.float32),
        }

    def reset(self, std: float, out_std: float) -> None:
        """A uniform in -16 .. -1 and dt log-uniform in 0.001 .. 0.1, as the published code initialises them."""
        self.in_proj.reset(std)
        self.conv.reset()
        reset_dt_bias(self.dt_bias)
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
        nn.init.ones_(self.D)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)
        self.out_proj.reset(out_std)
