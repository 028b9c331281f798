"""Hugging Face `llama`: Llama-3, and the FloatLM and TriLM sizes of the Spectra suite.

With a telescoping cache in some layers it is a model of our own, `telescoping_llama`, that other readers refuse.
"""

from collections.abc import Collection

from leanlm.errors import CheckpointError
from leanlm.families import caches
from leanlm.families.family import (
    Family,
    head_rules,
    linear_rules,
    need,
    norm_rules,
    only,
    same,
    token_settings,
    tokens,
)
from leanlm.model.config import Attention, GatedMLP, Llama3Scaling, ModelConfig, Norm, Rope, Telescoping

PLAIN, TELESCOPING = "llama", "telescoping_llama"
ARCHITECTURES = {PLAIN: "LlamaForCausalLM", TELESCOPING: "TelescopingLlamaForCausalLM"}
PROJECTIONS = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}


def matches(raw: dict) -> bool:
    return raw.get("model_type") in (PLAIN, TELESCOPING)


def rope_config(raw: dict, head_dim: int, family: str, share: float = 1.0) -> Rope:
    """Rotary settings from the keys of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters).

    `share` is the part of a head that is rotated: a family that has it reads it, and transformers' Llama ignores the key."""
    settings = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(settings.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise CheckpointError(f"config.json: rope type {kind!r} is not supported for {family} (only default, llama3)")
    scaling = None
    if kind == "llama3":
        scaling = Llama3Scaling(
            factor=float(need(settings, "factor", family)),
            low_freq_factor=float(need(settings, "low_freq_factor", family)),
            high_freq_factor=float(need(settings, "high_freq_factor", family)),
            original_context=need(settings, "original_max_position_embeddings", family),
        )
    return Rope(int(head_dim * share), theta, scaling)


def rope_settings(rope: Rope) -> dict:
    """rope_theta and rope_scaling, which both transformers 4 and 5 read."""
    scaling = None
    if rope.scaling:
        scaling = {
            "rope_type": "llama3",
            "factor": rope.scaling.factor,
            "low_freq_factor": rope.scaling.low_freq_factor,
            "high_freq_factor": rope.scaling.high_freq_factor,
            "original_max_position_embeddings": rope.scaling.original_context,
        }
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width, heads = need(raw, "hidden_size", "llama"), need(raw, "num_attention_heads", "llama")
    only(raw, "hidden_act", ("silu", "swish"), "silu", "llama")
    kind = raw["model_type"]
    only(raw, "architectures", ([ARCHITECTURES[kind]], None), None, kind)
    head_dim = raw.get("head_dim") or width // heads
    bias = raw.get("attention_bias", False)
    attention = Attention(
        n_heads=heads,
        n_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rope=rope_config(raw, head_dim, "llama"),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = GatedMLP(need(raw, "intermediate_size", kind), raw.get("mlp_bias", False))
    mixers = [attention] * need(raw, "num_hidden_layers", kind)
    if kind == TELESCOPING:
        need(raw, caches.KEY, kind)
        caches.refuse_misplaced(raw, "", caches.KEY, caches.FULL)
        mixers = caches.mixers(raw, attention, caches.telescoping(raw, attention), len(mixers))
    else:
        caches.refuse_misplaced(
            raw, f'with such a cache "model_type" is "{TELESCOPING}", for which no "architectures" are needed'
        )
    return ModelConfig(
        d_model=width,
        vocab_size=need(raw, "vocab_size", "llama"),
        layers=tuple((mixer, mlp) for mixer in mixers),
        norm=Norm("rms", raw.get("rms_norm_eps", 1e-6), round_first=True),
        tied=raw.get("tie_word_embeddings", False),
        **tokens(raw, 2048),
    )


def write(config: ModelConfig) -> dict:
    attention, mlp = config.layers[0]
    mixers = [layer[0] for layer in config.layers]
    cache = next((caches.table(mixer) for mixer in mixers if isinstance(mixer, Telescoping)), None)
    kind = TELESCOPING if cache else PLAIN
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": config.d_model,
        "intermediate_size": mlp.d_ff,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "vocab_size": config.padded_vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm.eps,
        "attention_bias": attention.qkv_bias,
        "mlp_bias": mlp.bias,
        "tie_word_embeddings": config.tied,
        **rope_settings(attention.rope),
        **token_settings(config),
        **({caches.KEY: cache, caches.FULL: caches.full_layers(mixers)} if cache else {}),
    }


def rules(config: ModelConfig):
    table = [same("model.embed_tokens.weight", "embedding.weight")]
    for i, (attention, mlp) in enumerate(config.layers):
        theirs = f"model.layers.{i}"
        table += norm_rules(f"{theirs}.input_layernorm", f"layers.{i}.0.norm", config.norm)
        own = {"out_proj", *caches.rows(attention)}
        for name, our in ((name, our) for name, our in PROJECTIONS.items() if our in own):
            bias = attention.out_bias if our == "out_proj" else attention.qkv_bias
            table += linear_rules(f"{theirs}.self_attn.{name}", f"layers.{i}.0.mixer.{our}", bias)
        table += caches.own_rules(f"{theirs}.self_attn", f"layers.{i}.0.mixer", attention)
        table += norm_rules(f"{theirs}.post_attention_layernorm", f"layers.{i}.1.norm", config.norm)
        for name in ("gate_proj", "up_proj", "down_proj"):
            table += linear_rules(f"{theirs}.mlp.{name}", f"layers.{i}.1.mixer.{name}", mlp.bias)
    return [*table, *norm_rules("model.norm", "norm", config.final_norm), *head_rules(config)]


FAMILY = Family("hf_llama", matches, read, write, rules)
