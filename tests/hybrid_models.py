"""Hypothesis strategies for any small model, one named model per mixer and option, and weights that make every part count."""

from itertools import pairwise

import torch
from hypothesis import strategies as st

from leanlm.model.config import (
    MLP,
    Attention,
    DiscreteMamba2,
    GatedMLP,
    Llama3Scaling,
    Mamba1,
    Mamba2,
    ModelConfig,
    Norm,
    Rope,
    Telescoping,
)
from leanlm.model.language_model import LanguageModel

FLAG = st.booleans()
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 16)
LONGEST = 150  # tokens: over two chunks of the SSD, over four of the selective scan

ONE_OF_EACH = {
    "attention": Attention(4, 4, 6),
    "attention with rope": Attention(4, 2, 6, rope=Rope(6)),
    "attention with partial rope": Attention(3, 1, 7, rope=Rope(4, 500.0)),
    "attention with Llama-3 rope": Attention(2, 2, 8, rope=Rope(8, scaling=SCALING), qkv_bias=True, out_bias=True),
    "attention with conv": Attention(4, 2, 5, d_conv=4, scale=0.3),
    "window of 1": Attention(2, 1, 6, window=1),
    "window of 2": Attention(2, 1, 6, window=2, rope=Rope(4)),
    "window of 7 with conv": Attention(4, 2, 6, window=7, rope=Rope(6), d_conv=3),
    "window longer than the text": Attention(2, 2, 6, window=999),
    "telescoping": Telescoping(4, 2, 6, 12, (3, 6, 9), rope=Rope(6)),
    "telescoping by scores": Telescoping(4, 2, 6, 9, (2, 5), "self_score", 4, entry_norm=False, mask_empty=True, softcap=5.0),
    "telescoping by norms, mixed heads": Telescoping(
        4, 2, 6, 10, (4, 5, 8), "l2", rope=Rope(4), head_mix=True, value_is_key=True, qkv_bias=True, out_bias=True
    ),
    "telescoping by means": Telescoping(3, 3, 5, 7, (2, 4), "mean", rope=Rope(4), scale=0.4),
    "telescoping by sums": Telescoping(2, 1, 5, 70, (30, 60), "sqrt2", mask_empty=True),
    "mamba1": Mamba1(30, 5, 4, 2),
    "mamba1 with biases, no conv memory": Mamba1(18, 3, 1, 3, bias=True, conv_bias=False),
    "mamba2": Mamba2(30, 6, 5),
    "mamba2 with groups": Mamba2(36, 6, 5, n_groups=3, norm_before_gate=True),
    "mamba2 per channel, dt limits": Mamba2(20, 5, 4, 2, d_per_channel=True, dt_min=0.05, dt_max=0.3, norm=False),
    "mamba2 with mlp": Mamba2(18, 3, 7, 2, 2, d_mlp=10, bias=True, conv_bias=False),
    "discrete": DiscreteMamba2(30, 5, 5, 6),
    "discrete, unequal heads": DiscreteMamba2(42, 6, 2, 5, conv_activation="silu"),
    "discrete with biases": DiscreteMamba2(21, 3, 1, 4, 2, bias=True, conv_bias=False),
}


def alone(mixer, **settings) -> ModelConfig:
    """Two layers of one mixer, and of nothing else that remembers."""
    return ModelConfig(24, 40, ((mixer,), (GatedMLP(20), mixer)), context_length=LONGEST, **settings)


@st.composite
def attentions(draw):
    groups, head_dim = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    rope = Rope(2 * draw(st.integers(1, head_dim // 2)), 1e4, draw(st.none() | st.just(SCALING))) if draw(FLAG) else None
    return Attention(
        groups * draw(st.integers(1, 3)),
        groups,
        head_dim,
        window=draw(st.none() | st.integers(1, 20) | st.integers(60, 70)),
        rope=rope,
        scale=draw(st.none() | st.just(0.4)),
        d_conv=draw(st.sampled_from((0, 0, 1, 2, 4))),
        qkv_bias=draw(FLAG),
        out_bias=draw(FLAG),
    )


@st.composite
def telescopes(draw):
    groups, head_dim, slots = draw(st.integers(1, 3)), draw(st.integers(4, 9)), draw(st.integers(3, 30))
    merges = sorted(draw(st.sets(st.integers(2, slots - 1), min_size=1, max_size=5)))
    alike = draw(FLAG)
    return Telescoping(
        groups * draw(st.integers(1, 3)),
        groups,
        head_dim,
        slots,
        tuple(merges),
        draw(st.sampled_from(("learned", "self_score", "l2", "mean", "sqrt2"))),
        head_dim if alike else draw(st.integers(4, 9)),
        entry_norm=draw(FLAG),
        mask_empty=draw(FLAG),
        softcap=draw(st.none() | st.just(4.0)),
        head_mix=draw(FLAG),
        value_is_key=alike and draw(FLAG),
        rope=Rope(2 * draw(st.integers(1, head_dim // 2))) if draw(FLAG) else None,
        scale=draw(st.none() | st.just(0.4)),
        qkv_bias=draw(FLAG),
        out_bias=draw(FLAG),
    )


@st.composite
def mamba1s(draw):
    inner, state, taps, rank = (draw(st.integers(1, most)) for most in (40, 6, 5, 4))
    return Mamba1(inner, state, taps, rank, bias=draw(FLAG), conv_bias=draw(FLAG))


@st.composite
def mamba2s(draw):
    groups, head_dim, low = draw(st.integers(1, 3)), draw(st.integers(3, 9)), draw(st.sampled_from((0.0, 0.01)))
    return Mamba2(
        groups * draw(st.integers(1, 3)) * head_dim,
        head_dim,
        draw(st.integers(1, 9)),
        groups,
        draw(st.integers(1, 5)),
        d_mlp=draw(st.sampled_from((0, 6))),
        norm=draw(FLAG),
        norm_before_gate=draw(FLAG),
        dt_min=low,
        dt_max=draw(st.sampled_from((None, 0.2))),
        d_per_channel=draw(FLAG),
        bias=draw(FLAG),
        conv_bias=draw(FLAG),
    )


@st.composite
def discretes(draw):
    qk = draw(st.integers(1, 3))
    heads = qk * draw(st.integers(1, 3))
    sizes = heads * draw(st.integers(1, 7)), heads, qk, draw(st.integers(1, 7)), draw(st.integers(1, 5))
    activation = draw(st.sampled_from(("identity", "silu")))
    return DiscreteMamba2(*sizes, conv_activation=activation, bias=draw(FLAG), conv_bias=draw(FLAG))


MLPS = st.builds(MLP, st.integers(1, 30), st.sampled_from(("gelu", "silu")), FLAG) | st.builds(
    GatedMLP, st.integers(1, 30), FLAG
)
MIXERS = attentions() | telescopes() | mamba1s() | mamba2s() | discretes() | MLPS
NORMS = st.builds(Norm, st.sampled_from(("rms", "layer")), st.sampled_from((1e-6, 1e-2)), FLAG)


@st.composite
def hybrids(draw) -> ModelConfig:
    vocab, tied = draw(st.integers(2, 40)), draw(FLAG)
    layer = st.lists(MIXERS, min_size=1, max_size=3).map(tuple)
    return ModelConfig(
        draw(st.integers(6, 40)),
        vocab,
        draw(st.lists(layer, min_size=1, max_size=3).map(tuple)),
        padded_vocab_size=vocab + draw(st.integers(0, 5)),
        norm=draw(NORMS),
        final_norm=draw(st.none() | NORMS),
        residual_in_fp32=draw(FLAG),
        tied=tied,
        head_bias=not tied and draw(FLAG),
        context_length=LONGEST,
    )


@torch.no_grad()
def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model in which every parameter is random, so that forgetting any of them shows."""
    model = LanguageModel(config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        noise = torch.randn(weight.shape, generator=generator)
        if leaf == "A_log":
            weight.copy_(noise)
        elif leaf in ("D", "norm_weight", "norm_k", "norm_v") or name.endswith("norm.weight"):
            weight.copy_(1 + 0.3 * noise)
        elif weight.ndim > 1:
            weight.copy_(noise * weight.shape[-1] ** -0.5)
        else:
            weight.copy_(0.3 * noise)
    return model.to(dtype).eval()


def text(config: ModelConfig, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@st.composite
def cut_texts(draw, longest: int = LONGEST) -> tuple[int, list[int]]:
    """A length, and the sizes of pieces that make it up: some single tokens, some long."""
    length = draw(st.integers(1, longest))
    points = draw(st.lists(st.integers(1, max(1, length - 1)), max_size=6, unique=True)) if length > 1 else []
    ends = [0, *sorted(points), length]
    return length, [b - a for a, b in pairwise(ends)]
