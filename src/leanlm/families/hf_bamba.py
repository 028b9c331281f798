"""Hugging Face `bamba`: IBM's Mamba-2 and attention hybrid with a gated MLP in every layer."""

from collections.abc import Collection

from leanlm.families.family import (
    Family,
    check_heads,
    head_rules,
    layers_at,
    limits,
    linear_rules,
    mamba2_rules,
    need,
    norm_rules,
    only,
    ratio,
    same,
    token_settings,
    tokens,
)
from leanlm.families.hf_llama import PROJECTIONS, rope_config, rope_settings
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Norm


def matches(raw: dict) -> bool:
    return raw.get("model_type") == "bamba"


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width, heads = need(raw, "hidden_size", "bamba"), need(raw, "num_attention_heads", "bamba")
    only(raw, "hidden_act", ("silu", "swish"), "silu", "bamba")
    eps = raw.get("rms_norm_eps", 1e-5)
    inner = int(raw.get("mamba_expand", 2) * width)
    mamba_heads, head_dim = raw.get("mamba_n_heads", 128), raw.get("mamba_d_head", "auto")
    if head_dim != "auto":
        check_heads(mamba_heads, head_dim, inner, "mamba_n_heads")
    low, high = limits(raw, "time_step_limit")
    mamba = Mamba2(
        d_inner=inner,
        head_dim=inner // mamba_heads if head_dim == "auto" else head_dim,
        d_state=raw.get("mamba_d_state", 256),
        n_groups=raw.get("mamba_n_groups", 1),
        d_conv=raw.get("mamba_d_conv", 4),
        chunk=raw.get("mamba_chunk_size", 256),
        norm_eps=eps,
        dt_min=low,
        dt_max=high,
        bias=raw.get("mamba_proj_bias", False),
        conv_bias=raw.get("mamba_conv_bias", True),
    )
    attention_width = raw.get("head_dim") or width // heads
    bias = raw.get("attention_bias", False)
    share = (raw.get("rope_parameters") or {}).get("partial_rotary_factor", raw.get("partial_rotary_factor", 0.5))
    rope = rope_config(raw, attention_width, "bamba", share)
    attention = Attention(
        n_heads=heads,
        n_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=attention_width,
        rope=rope if rope.dim else None,
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = GatedMLP(need(raw, "intermediate_size", "bamba"), raw.get("mlp_bias", False))
    n_layers = need(raw, "num_hidden_layers", "bamba")
    at = layers_at(raw, "attn_layer_indices", n_layers)
    return ModelConfig(
        d_model=width,
        vocab_size=need(raw, "vocab_size", "bamba"),
        layers=tuple((attention if i in at else mamba, mlp) for i in range(n_layers)),
        norm=Norm("rms", eps, round_first=True),
        tied=raw.get("tie_word_embeddings", False),
        **tokens(raw, 262144),
    )


def write(config: ModelConfig) -> dict:
    firsts = [layer[0] for layer in config.layers]
    at = [i for i, m in enumerate(firsts) if isinstance(m, Attention)]
    attention = firsts[at[0]] if at else Attention(1, 1, config.d_model)
    mamba = next((m for m in firsts if isinstance(m, Mamba2)), None)
    mlp = config.layers[0][1]
    raw = {
        "architectures": ["BambaForCausalLM"],
        "model_type": "bamba",
        "hidden_size": config.d_model,
        "intermediate_size": mlp.d_ff,
        "num_hidden_layers": len(config.layers),
        "attn_layer_indices": at,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        **_rotary_settings(attention),
        "vocab_size": config.padded_vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm.eps,
        "attention_bias": attention.qkv_bias,
        "mlp_bias": mlp.bias,
        "tie_word_embeddings": config.tied,
        **token_settings(config),
    }
    return {**raw, **_mamba_settings(mamba, config.d_model)} if mamba else raw


def _mamba_settings(mixer: Mamba2, width: int) -> dict:
    return {
        "mamba_expand": ratio(mixer.d_inner, width),
        "mamba_n_heads": mixer.n_heads,
        "mamba_d_head": mixer.head_dim,
        "mamba_d_state": mixer.d_state,
        "mamba_n_groups": mixer.n_groups,
        "mamba_d_conv": mixer.d_conv,
        "mamba_chunk_size": mixer.chunk,
        "mamba_proj_bias": mixer.bias,
        "mamba_conv_bias": mixer.conv_bias,
        "time_step_limit": [mixer.dt_min, float("inf") if mixer.dt_max is None else mixer.dt_max],
    }


def _rotary_settings(attention: Attention) -> dict:
    """transformers 4 reads the share that is rotated at the top, transformers 5 inside rope_parameters alone."""
    if not attention.rope:
        return {"partial_rotary_factor": 0.0}
    old = {"partial_rotary_factor": ratio(attention.rope.dim, attention.head_dim), **rope_settings(attention.rope)}
    scaling = old.pop("rope_scaling")
    return {**old, "rope_parameters": {"rope_type": "default", **old, **(scaling or {})}}


def rules(config: ModelConfig):
    table = [same("model.embed_tokens.weight", "embedding.weight")]
    for i, (mixer, mlp) in enumerate(config.layers):
        theirs, ours = f"model.layers.{i}", f"layers.{i}.0"
        table += norm_rules(f"{theirs}.input_layernorm", f"{ours}.norm", config.norm)
        if isinstance(mixer, Mamba2):
            table += mamba2_rules(f"{theirs}.mamba", f"{ours}.mixer", mixer)
        else:
            for name, our in PROJECTIONS.items():
                table += linear_rules(f"{theirs}.self_attn.{name}", f"{ours}.mixer.{our}", mixer.qkv_bias)
        table += norm_rules(f"{theirs}.pre_ff_layernorm", f"layers.{i}.1.norm", config.norm)
        for name in ("gate_proj", "up_proj", "down_proj"):
            table += linear_rules(f"{theirs}.feed_forward.{name}", f"layers.{i}.1.mixer.{name}", mlp.bias)
    return [*table, *norm_rules("model.final_layernorm", "norm", config.final_norm), *head_rules(config)]


FAMILY = Family("hf_bamba", matches, read, write, rules)
