"""Mixers and rotary positions against independent forms: matrices, complex numbers, transformers, arithmetic by hand."""

import numpy as np
import pytest
import torch

from hybrid_models import alone, build
from leanlm import ops
from leanlm.model import rotary
from leanlm.model.config import Attention, DiscreteMamba2, Llama3Scaling, Mamba1, Mamba2, Norm, Rope
from leanlm.model.language_model import MIXERS

WIDTH, LENGTH = 24, 11


def mixer_and_input(cfg, length=LENGTH):
    """A mixer with random weights, its parameters as float64 arrays, and an input [length, WIDTH] for it."""
    mixer = build(alone(cfg)).layers[0][0].mixer
    weights = {name: p.detach().double().numpy() for name, p in mixer.named_parameters()}
    return mixer, weights, np.random.default_rng(0).normal(size=(length, WIDTH))


def run(mixer, x):
    with torch.no_grad():
        return mixer(torch.tensor(x, dtype=torch.float32)[None])[0].double().numpy()


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def convolved(x, weight, bias):
    """Causal convolution of x [L, C] channel by channel through np.convolve, whose kernel runs the other way."""
    channels = [np.convolve(x[:, c], weight[c, 0, ::-1])[: len(x)] for c in range(x.shape[1])]
    return np.stack(channels, 1) + bias


def rms(x, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


@pytest.mark.parametrize("implementation", ["eager", "reference"])
def test_ssd_is_a_product_with_its_matrix(implementation, monkeypatch):
    """Dao & Gu 2024, section 6: y = (L o C B^T) x with L[t, s] the decays between s and t."""
    monkeypatch.setenv("LEANLM_IMPL", implementation)
    torch.manual_seed(0)
    length, heads, groups = 150, 6, 2
    x, decay = torch.randn(1, length, heads, 5).double(), -torch.rand(1, length, heads).double()
    B, C = torch.randn(2, 1, length, groups, 7).double()
    y, _ = ops.ssd(x, decay, B, C)
    since = np.cumsum(decay[0].numpy(), 0)  # [L, H]
    for head in range(heads):
        group = head // (heads // groups)
        between = np.tril(np.exp(np.minimum(since[:, None, head] - since[None, :, head], 0)))
        matrix = between * (C[0, :, group] @ B[0, :, group].T).numpy()
        np.testing.assert_allclose(y[0, :, head], matrix @ x[0, :, head].numpy(), atol=1e-10)


def test_mamba1_by_hand():
    cfg = Mamba1(20, 3, 4, 2, bias=True)
    mixer, w, u = mixer_and_input(cfg)
    projected = u @ w["in_proj.weight"].T + w["in_proj.bias"]
    x, z = projected[:, :20], projected[:, 20:]
    x = silu(convolved(x, w["conv.weight"], w["conv.bias"]))
    dtBC = x @ w["x_proj.weight"].T
    dt = softplus(dtBC[:, :2] @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    A, h, y = -np.exp(w["A_log"]), np.zeros((20, 3)), []
    for t in range(LENGTH):
        for channel in range(20):
            for n in range(3):
                kept = np.exp(dt[t, channel] * A[channel, n]) * h[channel, n]
                h[channel, n] = kept + dt[t, channel] * dtBC[t, 2 + n] * x[t, channel]
        y.append(h @ dtBC[t, 5:] + w["D"] * x[t])
    wanted = (np.array(y) * silu(z)) @ w["out_proj.weight"].T + w["out_proj.bias"]
    np.testing.assert_allclose(run(mixer, u), wanted, atol=2e-5)


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("d_mlp", [0, 4])
def test_mamba2_by_hand(norm_before_gate, d_mlp):
    cfg = Mamba2(
        18, 3, 5, 2, 3, d_mlp, norm_before_gate=norm_before_gate, norm_eps=0.1, dt_min=0.3, dt_max=0.9, d_per_channel=True
    )
    mixer, w, u = mixer_and_input(cfg)
    parts = np.split(u @ w["in_proj.weight"].T, np.cumsum([d_mlp, d_mlp, 18, 38]), 1)
    mlp_gate, mlp_value, z, xBC, dt = parts
    xBC = silu(convolved(xBC, w["conv.weight"], w["conv.bias"]))
    x, B, C = xBC[:, :18].reshape(-1, 6, 3), xBC[:, 18:28].reshape(-1, 2, 5), xBC[:, 28:].reshape(-1, 2, 5)
    dt = np.clip(softplus(dt + w["dt_bias"]), 0.3, 0.9)
    S, y = np.zeros((6, 3, 5)), np.zeros((LENGTH, 6, 3))
    for t in range(LENGTH):
        for head in range(6):
            group = head // 3
            S[head] = np.exp(-dt[t, head] * np.exp(w["A_log"][head])) * S[head]
            S[head] += dt[t, head] * np.outer(x[t, head], B[t, group])
            y[t, head] = S[head] @ C[t, group] + w["D"].reshape(6, 3)[head] * x[t, head]
    y = y.reshape(LENGTH, 18)
    shape = (LENGTH, 2, 9)  # the norm is taken over each group's channels
    if norm_before_gate:
        y = rms(y.reshape(shape), 0.1).reshape(LENGTH, 18) * w["norm_weight"] * silu(z)
    else:
        y = rms((y * silu(z)).reshape(shape), 0.1).reshape(LENGTH, 18) * w["norm_weight"]
    wanted = np.concatenate([silu(mlp_gate) * mlp_value, y], 1) @ w["out_proj.weight"].T
    np.testing.assert_allclose(run(mixer, u), wanted, atol=2e-5)


@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_discrete_mamba2_by_hand(activation):
    mixer, w, u = mixer_and_input(DiscreteMamba2(28, 4, 2, 3, 3, conv_activation=activation))
    xBC, z, a = np.split(u @ w["in_proj.weight"].T, [40, 68], 1)
    xBC = convolved(xBC, w["conv.weight"], w["conv.bias"])
    xBC = silu(xBC) if activation == "silu" else xBC
    x, B, C = xBC[:, :28].reshape(-1, 4, 7), xBC[:, 28:34].reshape(-1, 2, 3), xBC[:, 34:].reshape(-1, 2, 3)
    S, y = np.zeros((4, 7, 3)), np.zeros((LENGTH, 4, 7))
    for t in range(LENGTH):
        for head in range(4):
            S[head] = S[head] / (1 + np.exp(a[t, head])) + np.outer(x[t, head], B[t, head // 2])
            y[t, head] = S[head] @ C[t, head // 2] + w["D"][head] * x[t, head]
    wanted = (y.reshape(LENGTH, 28) * silu(z + w["z_bias"])) @ w["out_proj.weight"].T
    np.testing.assert_allclose(run(mixer, u), wanted, atol=2e-5)


@pytest.mark.parametrize("length", [1, 6, 7, 8, 15])
@pytest.mark.parametrize("window", [None, 7])
def test_attention_by_hand(window, length):
    """At, below and above the window; two query heads read each key/value head; rotation as complex numbers."""
    cfg = Attention(4, 2, 6, window, Rope(4, 100.0), scale=0.4, d_conv=3, qkv_bias=True, out_bias=True)
    mixer, w, u = mixer_and_input(cfg, length)
    qkv = [u @ w[f"{p}_proj.weight"].T + w[f"{p}_proj.bias"] for p in "qkv"]
    qkv = convolved(np.concatenate(qkv, 1), w["conv.weight"], w["conv.bias"])
    q, k, v = (part.reshape(length, -1, 6) for part in np.split(qkv, [24, 36], 1))
    turn = np.exp(1j * np.outer(np.arange(length), 100.0 ** -np.array([0.0, 0.5])))[:, None]
    for heads in (q, k):  # channel i and channel i + 2 are the real and imaginary parts
        turned = (heads[..., :2] + 1j * heads[..., 2:4]) * turn
        heads[..., :2], heads[..., 2:4] = turned.real, turned.imag
    y = np.zeros((length, 4, 6))
    for t in range(length):
        begin = 0 if window is None else max(0, t - window + 1)
        for head in range(4):
            scores = np.exp([0.4 * q[t, head] @ k[s, head // 2] for s in range(begin, t + 1)])
            y[t, head] = scores @ v[begin : t + 1, head // 2] / scores.sum()
    wanted = y.reshape(length, 24) @ w["out_proj.weight"].T + w["out_proj.bias"]
    np.testing.assert_allclose(run(mixer, u), wanted, atol=2e-5)


def test_a_window_forgets_exactly_what_lies_outside_it():
    mixer, _, u = mixer_and_input(Attention(2, 2, 8, window=5), 12)
    before = run(mixer, u)
    u[3] += 1.0
    changed = np.abs(run(mixer, u) - before).max(1) > 1e-6
    assert changed.tolist() == [3 <= t < 8 for t in range(12)]


@pytest.mark.parametrize("context", [64, 512, 8192])
def test_llama3_frequencies_are_those_of_transformers(context):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": context}
    theirs = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        max_position_embeddings=8 * context,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **scaling},
    )
    wanted, attention_scale = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    found = rotary.frequencies(Rope(64, 500000.0, Llama3Scaling(8.0, 1.0, 4.0, context)), torch.device("cpu"))
    assert attention_scale == 1.0
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_rotation_depends_on_distance_alone():
    torch.manual_seed(0)
    rope, (q, k) = Rope(8, 100.0), torch.randn(2, 1, 1, 1, 8)

    def score(i, j):
        turned = [ops.rotate(x, *rotary.angles(rope, torch.tensor([[p]]))) for x, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100))
    assert (score(9, 4) - score(9, 5)).abs() > 1e-3


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_by_hand(kind):
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(5, WIDTH))
    norm = build(alone(Mamba1(8), norm=Norm(kind, 0.2))).norm
    weight = norm.weight.detach().double().numpy()
    wanted = rms(x, 0.2) * weight
    if kind == "layer":
        centred = x - x.mean(1, keepdims=True)
        wanted = centred / np.sqrt(x.var(1, keepdims=True) + 0.2) * weight + norm.bias.detach().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(norm(torch.tensor(x, dtype=torch.float32)), wanted, atol=2e-5)


def test_round_first_rounds_before_the_weight():
    x = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    weight = (1 + torch.rand(33, generator=torch.Generator().manual_seed(1))).to(torch.bfloat16)
    exact = torch.nn.functional.rms_norm(x, (33,), None, 1e-5)
    assert torch.equal(ops.rms_norm(x, weight, 1e-5, True), exact.to(torch.bfloat16) * weight)
    assert torch.equal(ops.rms_norm(x, weight, 1e-5, False), (exact * weight.float()).to(torch.bfloat16))
    assert not torch.equal(ops.rms_norm(x, weight, 1e-5, True), ops.rms_norm(x, weight, 1e-5, False))


def test_a_float32_stream_keeps_what_bfloat16_would_round_away():
    """The embedding and every block's sum stay exact in float32 where the config says so."""
    streams = {}
    for fp32 in (False, True):
        model = build(alone(Mamba2(16, 4, 3), residual_in_fp32=fp32), dtype=torch.bfloat16)
        with torch.no_grad():
            streams[fp32] = list(model.streams(torch.arange(8)[None]))
    assert [s.dtype for s in streams[True]] == [torch.float32] * 3 + [torch.bfloat16]
    assert {s.dtype for s in streams[False]} == {torch.bfloat16}
    summed = streams[True][1]
    assert not torch.equal(summed, summed.to(torch.bfloat16).float())


def test_every_mixer_of_the_configs_has_a_module():
    from leanlm.model import config

    assert set(MIXERS) == set(config.MIXERS.values())
