"""Cartesia's Rene (cartesia_pytorch): one Mamba-2, MLP or sliding-window attention per layer, no positions, norm eps 1e-5."""

from collections.abc import Collection

from leanlm.families import caches
from leanlm.families.family import (
    Family,
    head_rules,
    layers_at,
    linear_rules,
    mamba2_rules,
    need,
    norm_rules,
    only,
    padding,
    ratio,
    same,
    token_settings,
    tokens,
)
from leanlm.families.mamba_ssm import attention_rules, mamba2_config, mamba2_settings, padded
from leanlm.model.config import MLP, Attention, Mamba2, ModelConfig, Norm, Telescoping

EPS = 1e-5


def matches(raw: dict) -> bool:
    return raw.get("model_type") == "rene"


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width, n_layer = need(raw, "d_model", "rene"), need(raw, "n_layer", "rene")
    caches.refuse_misplaced(raw, caches.IN_ATTENTION)
    attention, mlp = layers_at(raw, "attn_layer_idx", n_layer), layers_at(raw, "mlp_layer_idx", n_layer)
    kinds = {**{i: _mlp(raw, width) for i in mlp}, **{i: _attention(raw, width) for i in attention}}
    mamba = mamba2_config(raw.get("ssm_cfg") or {}, width, "rene")
    tied = raw.get("tie_word_embeddings")
    return ModelConfig(
        d_model=width,
        vocab_size=need(raw, "vocab_size", "rene"),
        padded_vocab_size=padded(raw, 16),
        layers=tuple((kinds.get(i, mamba),) for i in range(n_layer)),
        norm=Norm("rms" if raw.get("rms_norm", True) else "layer", EPS),
        tied="lm_head.weight" not in names if tied is None else tied,
        **tokens(raw),
    )


def _mlp(raw: dict, width: int) -> MLP:
    cfg = raw.get("mlp_cfg") or {}
    return MLP(d_ff=int(cfg.get("expand", 3) * width), bias=cfg.get("bias", True))


def _attention(raw: dict, width: int) -> Attention | Telescoping:
    """A table `telescoping`, in place of a window, is ours."""
    cfg = raw.get("attn_cfg") or {}
    caches.refuse_misplaced(cfg, caches.IN_ATTENTION, caches.KEY)
    only(cfg, "causal", (True,), True, "rene attention")
    heads = need(cfg, "num_heads", "rene attention")
    bias = cfg.get("qkv_proj_bias", True)
    attention = Attention(
        n_heads=heads,
        n_kv_heads=cfg.get("num_heads_kv") or heads,
        head_dim=cfg.get("head_dim") or width // heads,
        window=cfg.get("sliding_window_length"),
        scale=cfg.get("softmax_scale"),
        qkv_bias=bias,
        out_bias=cfg.get("out_proj_bias", True),
    )
    if caches.KEY not in cfg:
        return attention
    only(cfg, "sliding_window_length", (None,), None, "rene attention with a telescoping cache")
    return caches.telescoping(cfg, attention, "attn_cfg.")


def write(config: ModelConfig) -> dict:
    mixers = dict(enumerate(config.sublayers))
    attention = {i: m for i, m in mixers.items() if isinstance(m, Attention | Telescoping)}
    mlps = {i: m for i, m in mixers.items() if isinstance(m, MLP)}
    mamba = [m for m in mixers.values() if isinstance(m, Mamba2)]
    raw = {
        "architectures": ["ReneLMHeadModel"],
        "model_type": "rene",
        "d_model": config.d_model,
        "n_layer": len(config.layers),
        "vocab_size": config.vocab_size,
        "pad_vocab_size_multiple": padding(config),
        "rms_norm": config.norm.kind == "rms",
        "residual_in_fp32": True,
        "tie_word_embeddings": config.tied,
        "attn_layer_idx": list(attention),
        "mlp_layer_idx": list(mlps),
        "ssm_cfg": mamba2_settings(mamba[0], config.d_model) if mamba else {},
        "attn_cfg": _attention_settings(next(iter(attention.values()))) if attention else {},
        "mlp_cfg": {},
        **token_settings(config),
    }
    if mlps:
        first = next(iter(mlps.values()))
        raw["mlp_cfg"] = {"expand": ratio(first.d_ff, config.d_model), "bias": first.bias}
    return raw


def _attention_settings(mixer: Attention | Telescoping) -> dict:
    cache = {caches.KEY: caches.table(mixer)} if isinstance(mixer, Telescoping) else {}
    return {
        "causal": True,
        "num_heads": mixer.n_heads,
        "num_heads_kv": mixer.n_kv_heads,
        "head_dim": mixer.head_dim,
        "sliding_window_length": getattr(mixer, "window", None),
        "softmax_scale": mixer.scale,
        "qkv_proj_bias": mixer.qkv_bias,
        "out_proj_bias": mixer.out_bias,
        **cache,
    }


def rules(config: ModelConfig):
    table = [same("backbone.embedding.weight", "embedding.weight")]
    for i, mixer in enumerate(config.sublayers):
        theirs, ours = f"backbone.layers.{i}", f"layers.{i}.0"
        table += norm_rules(f"{theirs}.norm", f"{ours}.norm", config.norm)
        theirs, ours = f"{theirs}.mixer", f"{ours}.mixer"
        if isinstance(mixer, Mamba2):
            table += mamba2_rules(theirs, ours, mixer)
        elif isinstance(mixer, MLP):
            table += linear_rules(f"{theirs}.in_proj", f"{ours}.in_proj", mixer.bias)
            table += linear_rules(f"{theirs}.out_proj", f"{ours}.out_proj", mixer.bias)
        else:
            table += attention_rules(theirs, ours, mixer)
    return [*table, *norm_rules("backbone.norm_f", "norm", config.final_norm), *head_rules(config)]


FAMILY = Family("rene", matches, read, write, rules)
