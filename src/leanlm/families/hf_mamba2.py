"""Hugging Face `mamba2`."""

from collections.abc import Collection

from leanlm.families.family import (
    Family,
    check_heads,
    head_rules,
    limits,
    mamba2_rules,
    need,
    norm_rules,
    only,
    ratio,
    same,
    token_settings,
    tokens,
)
from leanlm.model.config import Mamba2, ModelConfig, Norm


def matches(raw: dict) -> bool:
    return raw.get("model_type") == "mamba2"


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width = need(raw, "hidden_size", "mamba2")
    only(raw, "hidden_act", ("silu", "swish"), "silu", "mamba2")
    eps = raw.get("layer_norm_epsilon", 1e-5)
    low, high = limits(raw, "time_step_limit")
    inner = int(raw.get("expand", 2) * width)
    head_dim = raw.get("head_dim", 64)
    check_heads(raw.get("num_heads"), head_dim, inner, "num_heads")
    mixer = Mamba2(
        d_inner=inner,
        head_dim=head_dim,
        d_state=raw.get("state_size", 128),
        n_groups=raw.get("n_groups", 8),
        d_conv=raw.get("conv_kernel", 4),
        chunk=raw.get("chunk_size", 256),
        norm_eps=eps,
        dt_min=low,
        dt_max=high,
        bias=raw.get("use_bias", False),
        conv_bias=raw.get("use_conv_bias", True),
    )
    return ModelConfig(
        d_model=width,
        vocab_size=need(raw, "vocab_size", "mamba2"),
        layers=((mixer,),) * need(raw, "num_hidden_layers", "mamba2"),
        norm=Norm("rms", eps, round_first=True),
        residual_in_fp32=raw.get("residual_in_fp32", True),
        tied=raw.get("tie_word_embeddings", False),
        **tokens(raw),
    )


def write(config: ModelConfig) -> dict:
    mixer = config.layers[0][0]
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.layers),
        "vocab_size": config.padded_vocab_size,
        "expand": ratio(mixer.d_inner, config.d_model),
        "num_heads": mixer.n_heads,
        "head_dim": mixer.head_dim,
        "state_size": mixer.d_state,
        "n_groups": mixer.n_groups,
        "conv_kernel": mixer.d_conv,
        "chunk_size": mixer.chunk,
        "time_step_limit": [mixer.dt_min, float("inf") if mixer.dt_max is None else mixer.dt_max],
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm.eps,
        "norm_before_gate": False,
        "rms_norm": True,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tied,
        **token_settings(config),
    }


def rules(config: ModelConfig):
    table = [same("backbone.embeddings.weight", "embedding.weight")]
    for i, (mixer,) in enumerate(config.layers):
        table += norm_rules(f"backbone.layers.{i}.norm", f"layers.{i}.0.norm", config.norm)
        table += mamba2_rules(f"backbone.layers.{i}.mixer", f"layers.{i}.0.mixer", mixer)
    return [*table, *norm_rules("backbone.norm_f", "norm", config.final_norm), *head_rules(config)]


FAMILY = Family("hf_mamba2", matches, read, write, rules)
