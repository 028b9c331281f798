"""The native mixers between a module's own projections give what the module gives, with its memory continued.

B texts  L tokens  I inner channels  H heads  P head width  G groups  N state width
"""

import pytest
import torch
import torch.nn.functional as F

from leanlm.model import attention, config, discrete_mamba2, mamba1, mamba2, rotary

WIDTH = 24


def made(module, seed: int):
    """The module with values in every parameter."""
    torch.manual_seed(seed)
    module.reset(0.2, 0.2)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def conv(library, module, x, tail):
    B, L, C = x.shape
    silu = module.activation == "silu"
    library.conv(x, C, B, L, C, module.weight.shape[-1], module.weight[:, 0].t().contiguous(), module.bias, tail, 0, silu)


def native_mamba1(library, module, x, memory):
    cfg, (B, L, _) = module.config, x.shape
    inner, N = cfg.d_inner, cfg.d_state
    x, z = (part.contiguous() for part in module.in_proj(x).chunk(2, -1))
    conv(library, module.conv, x, memory["conv"])
    dt, Bm, Cm = (t.contiguous() for t in module.x_proj(x).split([cfg.dt_rank, N, N], -1))
    a, y = F.linear(dt, module.dt_proj.weight), torch.empty_like(x)
    A = -module.A_log.exp()
    library.scan(
        x, inner, a, inner, Bm, N, Cm, N, z, inner, y, inner, B, L, inner, N, A, module.dt_proj.bias, module.D, memory["ssm"], 0
    )
    return module.out_proj(y)


def native_mamba2(library, module, x, memory):
    cfg, (B, L, _) = module.config, x.shape
    inner, H, P, G, N = cfg.d_inner, cfg.n_heads, cfg.head_dim, cfg.n_groups, cfg.d_state
    gate, value, z, xBC, a = (t.contiguous() for t in module.in_proj(x).split(module.parts, -1))
    conv(library, module.conv, xBC, memory["conv"])
    y = torch.empty(B, L, cfg.d_mlp + inner)
    library.activate(2, gate, cfg.d_mlp, value, cfg.d_mlp, None, y, y.shape[-1], B * L, cfg.d_mlp)
    own = y[..., cfg.d_mlp :]
    width = xBC.shape[-1]
    library.ssd(
        xBC, width, xBC[..., inner:], width, xBC[..., inner + G * N :], width, a, H, own, y.shape[-1], B, L, H, P, G, N, 0,
        -module.A_log.exp(), module.dt_bias, cfg.dt_min, float("inf") if cfg.dt_max is None else cfg.dt_max, module.D,
        cfg.d_per_channel, memory["ssm"], 0,
    )  # fmt: skip
    if cfg.norm:
        library.gated_norm(own, y.shape[-1], z, inner, B * L, inner, module.norm_weight, cfg.norm_eps, G, cfg.norm_before_gate)
    else:
        library.activate(3, own, y.shape[-1], z, inner, None, own, y.shape[-1], B * L, inner)
    return module.out_proj(y)


def native_discrete_mamba2(library, module, x, memory):
    cfg, (B, L, _) = module.config, x.shape
    inner, H, G, N = cfg.d_inner, cfg.n_v_heads, cfg.n_qk_heads, cfg.d_state
    xBC, z, a = (t.contiguous() for t in module.in_proj(x).split(module.parts, -1))
    conv(library, module.conv, xBC, memory["conv"])
    y, width = torch.empty(B, L, inner), xBC.shape[-1]
    library.ssd(
        xBC, width, xBC[..., inner:], width, xBC[..., inner + G * N :], width, a, H, y, inner, B, L, H, inner // H, G, N, 1,
        None, None, 0.0, 0.0, module.D, False, memory["ssm"], 0,
    )  # fmt: skip
    library.activate(3, y, inner, z, inner, module.z_bias, y, inner, B * L, inner)
    return module.out_proj(y)


def native_attention(library, module, x, memory):
    cfg, (B, L, _) = module.config, x.shape
    H, Hkv, P = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    q, k, v = module.q_proj(x), module.k_proj(x), module.v_proj(x)
    freq = rotary.frequencies(cfg.rope, x.device)
    for t, heads in ((q, H), (k, Hkv)):
        library.rotate(t, heads * P, B, L, heads, P, cfg.rope.dim, freq, memory["position"], None)
    y = torch.empty(B, L, H * P)
    library.attend(
        q, H * P, k, Hkv * P, v, Hkv * P, y, H * P, B, L, H, Hkv, P, memory["k"].shape[1], cfg.window or 0, module.scale,
        memory["position"], memory["start"], memory["k"], memory["v"], 0, None, None,
    )  # fmt: skip
    memory["position"] += L
    return module.out_proj(y)


CASES = {
    "mamba1": (mamba1.Mamba1, config.Mamba1(40, d_state=5, dt_rank=3), native_mamba1),
    "mamba2": (mamba2.Mamba2, config.Mamba2(48, 8, d_state=10, n_groups=2, d_mlp=7, dt_max=0.1), native_mamba2),
    "mamba2 gated": (mamba2.Mamba2, config.Mamba2(48, 8, d_state=10, norm=False, d_per_channel=True), native_mamba2),
    "mamba2 before": (mamba2.Mamba2, config.Mamba2(48, 8, d_state=10, norm_before_gate=True), native_mamba2),
    "discrete": (discrete_mamba2.DiscreteMamba2, config.DiscreteMamba2(48, 6, 3, d_state=10), native_discrete_mamba2),
    "discrete silu": (
        discrete_mamba2.DiscreteMamba2,
        config.DiscreteMamba2(48, 6, 6, d_state=10, conv_activation="silu", bias=True),
        native_discrete_mamba2,
    ),
    "attention": (attention.Attention, config.Attention(6, 2, 10, rope=config.Rope(6)), native_attention),
    "window": (attention.Attention, config.Attention(4, 4, 8, window=9, rope=config.Rope(8)), native_attention),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_native_mixers_are_the_modules(library, name):
    module_class, cfg, native = CASES[name]
    module = made(module_class(WIDTH, cfg), seed=len(name))
    ours, theirs = (module.new_state(2, 128) for _ in range(2))
    for L in (70, 1, 1, 3, 20):
        x = torch.randn(2, L, WIDTH)
        actual, expected = native(library, module, x, ours), module(x, theirs)
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
        for key, value in theirs.items():
            assert (ours[key] - value).abs().max() <= 1e-5 * value.abs().max(), key
