"""Llama with a telescoping cache, in all or some layers, as IBM's Avengers have it: the names of Foundation Model Stack.

The originals keep the cache's settings in their code. Here they stand in config.json, beside the keys of Llama: a table
`telescoping`, and `full_attention_layers`, the layers without it.
"""

from collections.abc import Collection

from leanlm.families import caches, fms_llama
from leanlm.families.family import Family, Rule, same, stacked_rules
from leanlm.model.config import Attention, ModelConfig, Rope, Telescoping


def matches(raw: dict) -> bool:
    return caches.KEY in raw and "emb_dim" in raw


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    llama = fms_llama.read(raw, names)
    attention, mlp = llama.layers[0]
    width = raw.get("emb_kq") or attention.head_dim
    same_values = isinstance(raw[caches.KEY], dict) and raw[caches.KEY].get("value_is_key")
    v_width = raw.get("emb_v") or (width if same_values else attention.head_dim)
    rope = Rope(width, attention.rope.theta)
    mixer = caches.telescoping(raw, attention, head_dim=width, v_head_dim=v_width, rope=rope)
    layers = tuple((kind, mlp) for kind in caches.mixers(raw, attention, mixer, len(llama.layers)))
    return ModelConfig(**{**vars(llama), "layers": layers})


def write(config: ModelConfig) -> dict:
    mixers = [layer[0] for layer in config.layers]
    mixer = next(m for m in mixers if isinstance(m, Telescoping))
    width, biases = config.d_model // mixer.n_heads, {"qkv_bias": mixer.qkv_bias, "out_bias": mixer.out_bias}
    attention = Attention(mixer.n_heads, mixer.n_kv_heads, width, rope=Rope(width, mixer.rope.theta), **biases)
    plain = ModelConfig(**{**vars(config), "layers": ((attention, config.layers[0][1]),) * len(mixers)})
    widths = {"emb_kq": mixer.head_dim, "emb_v": mixer.v_head_dim}
    return {
        **fms_llama.write(plain),
        **{key: value for key, value in widths.items() if value != width},
        caches.KEY: caches.table(mixer),
        caches.FULL: caches.full_layers(mixers),
    }


def attention_rules(theirs: str, ours: str, mixer: Telescoping) -> list[Rule]:
    """Of a layer's attention, rotary channels in pairs."""
    d, parts = mixer.head_dim, caches.rows(mixer)
    pairs = (d, d) if mixer.value_is_key else (d, d, 0)  # values that are keys have the keys' order of channels
    rules = [
        *stacked_rules(f"{theirs}.in_proj.qkv_fused", ours, parts, mixer.qkv_bias, pairs),
        same(f"{theirs}.dense.weight", f"{ours}.out_proj.weight", columns=d if mixer.value_is_key else 0),
        *([same(f"{theirs}.dense.bias", f"{ours}.out_proj.bias")] if mixer.out_bias else []),
    ]
    if mixer.merge == "learned":
        rules.append(same(f"{theirs}.w.weight", f"{ours}.weight_proj.weight"))
    if mixer.entry_norm:
        rules.append(same(f"{theirs}.ln_k.weight", f"{ours}.norm_k", interleaved=(d,)))
        rules.append(same(f"{theirs}.ln_v.weight", f"{ours}.norm_v", interleaved=(d,) if mixer.value_is_key else ()))
    return rules


def rules(config: ModelConfig):
    return fms_llama.rules(config, telescoping=attention_rules)


FAMILY = Family("telescoping", matches, read, write, rules, prefixes=fms_llama.FAMILY.prefixes)
