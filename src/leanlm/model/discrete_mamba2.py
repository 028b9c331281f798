"""Discrete Mamba-2, Llamba's mixer: Mamba-2 without a time step (Bick et al. 2025; Phi-Mamba, arXiv 2408.10189).

B batch  L tokens  I inner channels = H value heads x P head width  G qk heads  N state width
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlm import ops
from leanlm.model import config
from leanlm.model.conv import CausalConv
from leanlm.model.linear import Linear
from leanlm.model.state import Memory, blank, recall, remember
from leanlm.ops import matrices

OPEN_GATE = 1.278464542761  # silu(OPEN_GATE) = 1


class DiscreteMamba2(nn.Module):
    """S[t] = sigmoid(-a[t]) S[t-1] + x[t] B[t]^T, y[t] = S[t] C[t] + D x[t], out = out_proj(y silu(z + z_bias)).

    Memory: `conv` [B, I + 2 G N, taps - 1] in the model's dtype and `ssm` [B, H, P, N].
    Rows of in_proj: x (I), B and C (G N each), gate z (I), a (H).
    """

    def __init__(self, width: int, cfg: config.DiscreteMamba2):
        super().__init__()
        self.config = cfg
        shared = cfg.n_qk_heads * cfg.d_state
        self.parts = [cfg.d_inner + 2 * shared, cfg.d_inner, cfg.n_v_heads]
        self.in_proj = Linear(width, sum(self.parts), cfg.bias)
        self.conv = CausalConv(self.parts[0], cfg.d_conv, cfg.conv_bias, cfg.conv_activation)
        self.z_bias = None if cfg.bias else nn.Parameter(torch.empty(cfg.d_inner))
        self.D = nn.Parameter(torch.empty(cfg.n_v_heads))
        self.out_proj = Linear(cfg.d_inner, width, cfg.bias)

    def forward(self, x: Tensor, state: Memory | None = None, segments: Tensor | None = None) -> Tensor:
        x, B, C, z, a = self.project(x, state, segments)
        y, final = ops.ssd(x, -F.softplus(a.float()), B, C, recall(state, "ssm"), segments)
        if state:
            remember(state, "ssm", final)
        return self.finish(y + self.D.float()[:, None] * x, z)

    def project(
        self, x: Tensor, state: Memory | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What is mixed, x [B, L, H, P] in float32; B and C [B, L, G, N], z [B, L, I] and a [B, L, H]."""
        cfg = self.config
        xBC, z, a = self.in_proj(x).split(self.parts, -1)
        x, B, C = self.conv(xBC, state, segments).split([cfg.d_inner, *[cfg.n_qk_heads * cfg.d_state] * 2], -1)
        B, C = B.unflatten(-1, (cfg.n_qk_heads, -1)), C.unflatten(-1, (cfg.n_qk_heads, -1))
        return x.float().unflatten(-1, (cfg.n_v_heads, cfg.head_dim)), B, C, z, a

    def matrix(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        """[B, H, L, L] float32: what multiplies the projected x of a text read from an empty state, D on its diagonal."""
        _, B, C, _, a = self.project(x, None, segments)
        mixing = matrices.ssd(-F.softplus(a.float()), B, C, segments)
        return mixing + torch.diag_embed(self.D.float()[:, None].expand(-1, x.shape[1]))

    def finish(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate and projection of what was mixed, y [B, L, H, P]."""
        gate = z if self.z_bias is None else z + self.z_bias
        return self.out_proj(y.flatten(2).to(z.dtype) * F.silu(gate))

    def new_state(self, batch: int, capacity: int | None = None, device=None, dtype=None) -> Memory:
        """Empty memory; the scan's state in float32 unless `dtype`, a float's or int8, says otherwise."""
        device = device or self.D.device
        shape = (batch, self.config.n_v_heads, self.config.head_dim, self.config.d_state)
        return {
            "conv": self.conv.new_tail(batch, device, self.in_proj.weight.dtype),
            **blank("ssm", shape, device, dtype or torch.float32),
        }

    @torch.no_grad()
    def reset(self, std: float, out_std: float) -> None:
        """Gate open and convolution the identity, so that the mixer starts as a plain linear map (Llamba's own start)."""
        self.in_proj.reset(std)
        self.in_proj.weight[self.parts[0] : -self.parts[2]] = 0
        if self.z_bias is not None:
            self.z_bias.fill_(OPEN_GATE)
        self.conv.reset()
        self.conv.weight.zero_()
        self.conv.weight[..., -1] = 1
        nn.init.ones_(self.D)
        self.out_proj.reset(out_std)
