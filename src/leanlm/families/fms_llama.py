"""IBM's Foundation-Model-Stack Llama (the Avengers' baseline): fused q|k|v and gate|up, rotary channels in pairs."""

from leanlm.families.family import Family, Rule, eos, linear_rules, need, norm_rules, only, round_up, same
from leanlm.model.config import Attention, GatedMLP, ModelConfig, Norm, Rope


def matches(raw: dict) -> bool:
    return {"emb_dim", "nheads", "nlayers", "src_vocab_size"} <= raw.keys()


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width, heads = need(raw, "emb_dim", "fms llama"), need(raw, "nheads", "fms llama")
    only(raw, "activation_fn", ("swish", "silu"), "swish", "fms llama")
    hidden = int(raw.get("hidden_grow_factor", 8 / 3) * width)
    attention = Attention(
        n_heads=heads,
        n_kv_heads=raw.get("kvheads") or heads,
        head_dim=width // heads,
        rope=Rope(width // heads, float(raw.get("rope_theta", raw.get("rope_base", 10000.0)))),
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
        context_length=raw.get("max_expected_seq_len", 4096),
        bos_id=raw.get("bos_token_id"),
        eos_ids=eos(raw),
        pad_id=raw.get("pad_id") if (raw.get("pad_id") or -1) >= 0 else None,
    )


def write(config: ModelConfig) -> dict:
    attention, mlp = config.layers[0]
    return {
        "src_vocab_size": config.padded_vocab_size,
        "emb_dim": config.d_model,
        "nheads": attention.n_heads,
        "kvheads": attention.n_kv_heads,
        "nlayers": len(config.layers),
        "norm_eps": config.norm.eps,
        "hidden_grow_factor": (mlp.d_ff + 0.5) / config.d_model,
        "multiple_of": 1,
        "activation_fn": "swish",
        "attn_bias": attention.qkv_bias,
        "mlp_bias": mlp.bias,
        "rope_theta": attention.rope.theta,
        "tie_heads": config.tied,
        "max_expected_seq_len": config.context_length,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids) or None,
        "pad_id": -1 if config.pad_id is None else config.pad_id,
    }


def rules(config: ModelConfig):
    table = [same("shared.emb.weight", "embedding.weight")]
    for i, (attention, mlp) in enumerate(config.layers):
        theirs, ours = f"layers.{i}", f"layers.{i}.0"
        width = attention.head_dim
        rows = (attention.n_heads * width, attention.n_kv_heads * width, attention.n_kv_heads * width)
        table += norm_rules(f"{theirs}.ln", f"{ours}.norm", config.norm)
        for kind in ("weight", "bias") if attention.qkv_bias else ("weight",):
            parts = tuple(f"{ours}.mixer.{name}.{kind}" for name in ("q_proj", "k_proj", "v_proj"))
            table.append(Rule(f"{theirs}.attn.in_proj.qkv_fused.{kind}", parts, rows, (width, width, 0)))
        table += linear_rules(f"{theirs}.attn.dense", f"{ours}.mixer.out_proj", attention.out_bias)
        table += norm_rules(f"{theirs}.ff_ln", f"layers.{i}.1.norm", config.norm)
        for kind in ("weight", "bias") if mlp.bias else ("weight",):
            parts = tuple(f"layers.{i}.1.mixer.{name}.{kind}" for name in ("gate_proj", "up_proj"))
            table.append(Rule(f"{theirs}.ff_sub_layer.wg1_fused.{kind}", parts, (mlp.d_ff, mlp.d_ff)))
        table += linear_rules(f"{theirs}.ff_sub_layer.w2", f"layers.{i}.1.mixer.down_proj", mlp.bias)
    head = [same("shared.head.weight", "embedding.weight", optional=True)]
    head = head if config.tied else linear_rules("shared.head", "head", False)
    return [*table, *norm_rules("dec_norm", "norm", config.final_norm), *head]


FAMILY = Family("fms_llama", matches, read, write, rules, prefixes=("_orig_mod.",))
