"""IBM's Foundation-Model-Stack Llama (the Avengers' baseline): fused q|k|v and gate|up, rotary channels in pairs."""

from collections.abc import Callable, Collection

from leanlm.families import caches
from leanlm.families.family import (
    Family,
    Rule,
    head_rules,
    linear_rules,
    need,
    norm_rules,
    only,
    ratio,
    round_up,
    same,
    stacked_rules,
    token_settings,
    tokens,
)
from leanlm.model.config import Attention, GatedMLP, ModelConfig, Norm, Rope


def matches(raw: dict) -> bool:
    return "emb_dim" in raw and "telescoping" not in raw and bool({"nheads", "nlayers", "src_vocab_size"} & raw.keys())


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width, heads = need(raw, "emb_dim", "fms llama"), need(raw, "nheads", "fms llama")
    allowed = (caches.KEY, caches.FULL) if caches.KEY in raw else ()  # read by the family of telescoping Llamas
    caches.refuse_misplaced(raw, f'it goes with a table "{caches.KEY}"', *allowed)
    only(raw, "activation_fn", ("swish", "silu"), "swish", "fms llama")
    only(raw, "ntk_scaling", (False, None), False, "fms llama")
    only(raw, "fused_weights", (True,), True, "fms llama")
    hidden = int(raw.get("hidden_grow_factor", 8 / 3) * width)
    pad = raw.get("pad_id")
    attention = Attention(
        n_heads=heads,
        n_kv_heads=raw.get("kvheads") or heads,
        head_dim=width // heads,
        rope=Rope(width // heads, float(raw.get("rope_theta", 10000.0))),
        qkv_bias=raw.get("attn_bias", False),
        out_bias=raw.get("attn_bias", False),
    )
    layer = (attention, GatedMLP(round_up(hidden, raw.get("multiple_of", 256)), raw.get("mlp_bias", False)))
    return ModelConfig(
        d_model=width,
        vocab_size=need(raw, "src_vocab_size", "fms llama"),
        layers=(layer,) * need(raw, "nlayers", "fms llama"),
        norm=Norm("rms", raw.get("norm_eps", 1e-5), round_first=True),
        tied=raw.get("tie_heads", False),
        **{**tokens(raw), "context_length": raw.get("max_expected_seq_len", 4096), "pad_id": pad if pad != -1 else None},
    )


def write(config: ModelConfig) -> dict:
    attention, mlp = config.layers[0]
    ids = token_settings(config, nulls=False)
    return {
        "src_vocab_size": config.padded_vocab_size,
        "emb_dim": config.d_model,
        "nheads": attention.n_heads,
        "kvheads": attention.n_kv_heads,
        "nlayers": len(config.layers),
        "norm_eps": config.norm.eps,
        "hidden_grow_factor": ratio(mlp.d_ff, config.d_model),
        "multiple_of": 1,
        "activation_fn": "swish",
        "attn_bias": attention.qkv_bias,
        "mlp_bias": mlp.bias,
        "rope_theta": attention.rope.theta,
        "tie_heads": config.tied,
        "max_expected_seq_len": config.context_length,
        "pad_id": -1 if config.pad_id is None else config.pad_id,
        **{key: ids[key] for key in ("bos_token_id", "eos_token_id") if key in ids},
    }


def rules(config: ModelConfig, telescoping: Callable[..., list[Rule]] | None = None):
    """`telescoping` gives the rules of attention of that kind."""
    table = [same("shared.emb.weight", "embedding.weight")]
    for i, (attention, mlp) in enumerate(config.layers):
        theirs = f"layers.{i}"
        table += norm_rules(f"{theirs}.ln", f"layers.{i}.0.norm", config.norm)
        own = full_rules if isinstance(attention, Attention) else telescoping
        table += own(f"{theirs}.attn", f"layers.{i}.0.mixer", attention)
        table += norm_rules(f"{theirs}.ff_ln", f"layers.{i}.1.norm", config.norm)
        ours = f"layers.{i}.1.mixer"
        gated = {"gate_proj": mlp.d_ff, "up_proj": mlp.d_ff}
        table += stacked_rules(f"{theirs}.ff_sub_layer.wg1_fused", ours, gated, mlp.bias)
        table += linear_rules(f"{theirs}.ff_sub_layer.w2", f"{ours}.down_proj", mlp.bias)
    return [*table, *norm_rules("dec_norm", "norm", config.final_norm), *head_rules(config, "shared.head")]


def full_rules(theirs: str, ours: str, attention: Attention) -> list[Rule]:
    width, kv = attention.head_dim, attention.n_kv_heads * attention.head_dim
    qkv = {"q_proj": attention.n_heads * width, "k_proj": kv, "v_proj": kv}
    return [
        *stacked_rules(f"{theirs}.in_proj.qkv_fused", ours, qkv, attention.qkv_bias, (width, width, 0)),
        *linear_rules(f"{theirs}.dense", f"{ours}.out_proj", attention.out_bias),
    ]


FAMILY = Family("fms_llama", matches, read, write, rules, prefixes=("_orig_mod.", "module."))
