"""Hugging Face `mamba`: Mamba-1, TRI's Mamba-7B among them."""

from collections.abc import Collection

from leanlm.families.family import (
    Family,
    head_rules,
    mamba1_rules,
    need,
    norm_rules,
    only,
    ratio,
    same,
    token_settings,
    tokens,
)
from leanlm.model.config import Mamba1, ModelConfig, Norm


def matches(raw: dict) -> bool:
    return raw.get("model_type") == "mamba"


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width = need(raw, "hidden_size", "mamba")
    only(raw, "hidden_act", ("silu", "swish"), "silu", "mamba")
    rank = raw.get("time_step_rank", "auto")
    mixer = Mamba1(
        d_inner=raw.get("intermediate_size") or int(raw.get("expand", 2) * width),
        d_state=raw.get("state_size", 16),
        d_conv=raw.get("conv_kernel", 4),
        dt_rank=-(-width // 16) if rank == "auto" else rank,
        bias=raw.get("use_bias", False),
        conv_bias=raw.get("use_conv_bias", True),
    )
    return ModelConfig(
        d_model=width,
        vocab_size=need(raw, "vocab_size", "mamba"),
        layers=((mixer,),) * need(raw, "num_hidden_layers", "mamba"),
        norm=Norm("rms", raw.get("layer_norm_epsilon", 1e-5), round_first=True),
        residual_in_fp32=raw.get("residual_in_fp32", True),
        tied=raw.get("tie_word_embeddings", True),
        **tokens(raw),
    )


def write(config: ModelConfig) -> dict:
    mixer = config.layers[0][0]
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": config.d_model,
        "intermediate_size": mixer.d_inner,
        "num_hidden_layers": len(config.layers),
        "vocab_size": config.padded_vocab_size,
        "state_size": mixer.d_state,
        "conv_kernel": mixer.d_conv,
        "expand": ratio(mixer.d_inner, config.d_model),
        "time_step_rank": mixer.dt_rank,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm.eps,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tied,
        **token_settings(config),
    }


def rules(config: ModelConfig):
    table = [same("backbone.embeddings.weight", "embedding.weight")]
    for i, (mixer,) in enumerate(config.layers):
        table += norm_rules(f"backbone.layers.{i}.norm", f"layers.{i}.0.norm", config.norm)
        table += mamba1_rules(f"backbone.layers.{i}.mixer", f"layers.{i}.0.mixer", mixer)
    return [*table, *norm_rules("backbone.norm_f", "norm", config.final_norm), *head_rules(config)]


FAMILY = Family("hf_mamba", matches, read, write, rules)
