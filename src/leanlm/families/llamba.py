"""Cartesia's Llamba: Discrete Mamba-2 and a gated MLP per layer; block norms have eps 1e-5 whatever the config says.

Attention in the layers that `attn_layer_idx` lists, as `attn_cfg` says, is ours: the originals have none.
"""

from collections.abc import Collection

from leanlm.families.family import (
    Family,
    Rule,
    head_rules,
    layers_at,
    linear_rules,
    need,
    norm_rules,
    only,
    padding,
    ratio,
    round_up,
    same,
    token_settings,
    tokens,
)
from leanlm.families.hf_llama import PROJECTIONS, rope_config, rope_settings
from leanlm.model.config import Attention, DiscreteMamba2, GatedMLP, ModelConfig, Norm

BLOCK_EPS = 1e-5
PARTS = (("input_layernorm", "mixer"), ("post_attention_layernorm", "mlp"))


def matches(raw: dict) -> bool:
    return raw.get("model_type") == "llamba"


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width = need(raw, "d_model", "llamba")
    ssm, mlp = need(raw, "ssm_cfg", "llamba"), need(raw, "mlp_cfg", "llamba")
    only(mlp, "act_fn", ("silu", "swish"), "silu", "llamba")
    heads = need(ssm, "n_v_heads", "llamba ssm_cfg")
    mixer = DiscreteMamba2(
        d_inner=int(ssm.get("expand", 1) * width),
        n_v_heads=heads,
        n_qk_heads=ssm.get("n_qk_heads") or heads,
        d_state=ssm.get("d_state", 64),
        d_conv=ssm.get("d_conv", 4),
        chunk=ssm.get("chunk_size", 128),
        conv_activation=only(ssm, "activation", ("identity", "silu"), "identity", "llamba"),
        bias=ssm.get("bias", False),
        conv_bias=ssm.get("conv_bias", True),
    )
    gated = GatedMLP(need(mlp, "intermediate_size", "llamba mlp_cfg"), mlp.get("bias", False))
    n_layer = need(raw, "n_layer", "llamba")
    attention_at = layers_at(raw, "attn_layer_idx", n_layer)
    attention = attention_config(raw.get("attn_cfg") or {}, width) if attention_at else None
    tied = raw.get("tie_embeddings")
    return ModelConfig(
        d_model=width,
        vocab_size=need(raw, "vocab_size", "llamba"),
        padded_vocab_size=round_up(raw["vocab_size"], raw.get("pad_vocab_size_multiple") or 1),
        layers=tuple((attention if i in attention_at else mixer, gated) for i in range(n_layer)),
        norm=Norm("rms", BLOCK_EPS, round_first=True),
        final_norm=Norm("rms", raw.get("norm_epsilon", 1e-5), round_first=True),
        tied="lm_head.weight" not in names if tied is None else tied,
        head_bias=raw.get("lm_head_bias", False),
        **tokens(raw),
    )


def attention_config(cfg: dict, width: int) -> Attention:
    heads = need(cfg, "num_heads", "llamba attn_cfg")
    head_dim = cfg.get("head_dim") or width // heads
    return Attention(heads, cfg.get("num_heads_kv") or heads, head_dim, rope=rope_config(cfg, head_dim, "llamba attn_cfg"))


def attention_settings(mixer: Attention) -> dict:
    heads = {"num_heads": mixer.n_heads, "num_heads_kv": mixer.n_kv_heads, "head_dim": mixer.head_dim}
    return heads | rope_settings(mixer.rope)


def write(config: ModelConfig) -> dict:
    mixers = [layer[0] for layer in config.layers]
    mixer, mlp = next(m for m in mixers if isinstance(m, DiscreteMamba2)), config.layers[0][1]
    kept = [i for i, m in enumerate(mixers) if isinstance(m, Attention)]
    attention = {"attn_layer_idx": kept, "attn_cfg": attention_settings(mixers[kept[0]])} if kept else {}
    return {
        "model_type": "llamba",
        "vocab_size": config.vocab_size,
        "tie_embeddings": config.tied,
        "pad_vocab_size_multiple": padding(config),
        "lm_head_bias": config.head_bias,
        "d_model": config.d_model,
        "n_layer": len(config.layers),
        "resid_dropout": 0.0,
        "norm_epsilon": config.final_norm.eps,
        "mlp_cfg": {"intermediate_size": mlp.d_ff, "bias": mlp.bias, "act_fn": "silu"},
        "ssm_cfg": {
            "d_state": mixer.d_state,
            "n_v_heads": mixer.n_v_heads,
            "n_qk_heads": mixer.n_qk_heads,
            "expand": ratio(mixer.d_inner, config.d_model),
            "d_conv": mixer.d_conv,
            "chunk_size": mixer.chunk,
            "activation": mixer.conv_activation,
            "bias": mixer.bias,
            "conv_bias": mixer.conv_bias,
        },
        **attention,
        **token_settings(config, nulls=False),
    }


def rules(config: ModelConfig):
    table = [same("backbone.embedding.weight", "embedding.weight")]
    for i, (mixer, mlp) in enumerate(config.layers):
        theirs = f"backbone.layers.{i}"
        for j, (norm, _) in enumerate(PARTS):
            table += norm_rules(f"{theirs}.{norm}", f"layers.{i}.{j}.norm", config.norm)
        ours = f"layers.{i}.0.mixer"
        table += attention_rules(theirs, ours) if isinstance(mixer, Attention) else scan_rules(theirs, ours, mixer)
        for name in ("gate_proj", "up_proj", "down_proj"):
            table += linear_rules(f"{theirs}.mlp.{name}", f"layers.{i}.1.mixer.{name}", mlp.bias)
    return [*table, *norm_rules("backbone.final_layernorm", "norm", config.final_norm), *head_rules(config)]


def scan_rules(theirs: str, ours: str, mixer: DiscreteMamba2) -> list[Rule]:
    return [
        *linear_rules(f"{theirs}.mixer.in_proj", f"{ours}.in_proj", mixer.bias),
        *linear_rules(f"{theirs}.mixer.conv1d", f"{ours}.conv", mixer.conv_bias),
        *([] if mixer.bias else [same(f"{theirs}.mixer.z_bias", f"{ours}.z_bias")]),
        same(f"{theirs}.mixer.D", f"{ours}.D"),
        *linear_rules(f"{theirs}.mixer.out_proj", f"{ours}.out_proj", mixer.bias),
    ]


def attention_rules(theirs: str, ours: str) -> list[Rule]:
    return [same(f"{theirs}.mixer.{name}.weight", f"{ours}.{name}.weight") for name in PROJECTIONS.values()]


FAMILY = Family("llamba", matches, read, write, rules)
