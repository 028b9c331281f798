"""Llama with a telescoping cache, in all or some layers, as IBM's Avengers have it: the names of Foundation Model Stack.

The originals keep the cache's settings in their code. Here they stand in config.json, beside the keys of Llama: a table
`telescoping`, and `full_attention_layers`, the layers without it.
"""

from collections.abc import Collection

from leanlm.errors import CheckpointError
from leanlm.families import fms_llama
from leanlm.families.family import Family, Rule, layers_at, same, stacked_rules
from leanlm.model.config import Attention, ModelConfig, Rope, Telescoping
from leanlm.slots import NAMED

KEYS = {  # of the table -> fields of our config
    "merge": "rule",
    "entry_norm": "entry_norm",
    "entry_norm_eps": "entry_norm_eps",
    "mask_empty": "mask_empty",
    "softcap": "softcap",
    "head_mix": "head_mix",
    "value_is_key": "value_is_key",
}


def matches(raw: dict) -> bool:
    return "telescoping" in raw and "emb_dim" in raw


def telescoping(table: dict, n_heads: int, n_kv_heads: int, head_dim: int, **rest) -> Telescoping:
    """The mixer of a `telescoping` table: `cache` is one of the published tables by name, or `slots` and `merges` are given."""
    if not isinstance(table, dict):
        raise CheckpointError(f"config.json: telescoping = {table!r} is no table of settings")
    known = {"cache", "slots", "merges", *KEYS}
    if unknown := table.keys() - known:
        raise CheckpointError(f"config.json: telescoping.{min(unknown)} is unknown; there are {', '.join(sorted(known))}")
    if "cache" in table:
        name = str(table["cache"])
        if name not in NAMED or {"slots", "merges"} & table.keys():
            raise CheckpointError(
                f"config.json: telescoping.cache = {name!r}; choose from {', '.join(NAMED)}, or give slots and merges instead"
            )
        slots, merges = NAMED[name]
    else:
        slots, merges = table.get("slots"), table.get("merges")
        if slots is None or merges is None:
            raise CheckpointError("config.json: telescoping needs a cache, or slots and merges")
    settings = {ours: table[theirs] for theirs, ours in KEYS.items() if theirs in table}
    return Telescoping(n_heads, n_kv_heads, head_dim, slots, tuple(merges), **settings, **rest)


def table(mixer: Telescoping) -> dict:
    """The inverse of `telescoping`."""
    name = next((name for name, known in NAMED.items() if known == mixer.table), None)
    cache = {"cache": name} if name else {"slots": mixer.slots, "merges": list(mixer.merges)}
    return {**cache, **{theirs: getattr(mixer, ours) for theirs, ours in KEYS.items()}}


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    llama = fms_llama.read(raw, names)
    attention, mlp = llama.layers[0]
    mixer = telescoping(
        raw["telescoping"],
        attention.n_heads,
        attention.n_kv_heads,
        raw.get("emb_kq") or attention.head_dim,
        v_head_dim=raw.get("emb_v") or attention.head_dim,
        rope=Rope(raw.get("emb_kq") or attention.head_dim, attention.rope.theta),
        qkv_bias=attention.qkv_bias,
        out_bias=attention.out_bias,
    )
    full = layers_at(raw, "full_attention_layers", len(llama.layers))
    layers = tuple((attention if i in full else mixer, mlp) for i in range(len(llama.layers)))
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
        "telescoping": table(mixer),
        "full_attention_layers": [i for i, m in enumerate(mixers) if isinstance(m, Attention)],
    }


def attention_rules(theirs: str, ours: str, mixer: Telescoping) -> list[Rule]:
    """Of a layer's attention, rotary channels in pairs."""
    d, shared = mixer.head_dim, mixer.n_kv_heads
    parts = {"q_proj": mixer.n_heads * d, "k_proj": shared * d, "v_proj": shared * mixer.v_head_dim}
    pairs = (d, d, 0)
    if mixer.value_is_key:  # values have the keys' order of channels
        del parts["v_proj"]
        pairs = (d, d)
    rules = [
        *stacked_rules(f"{theirs}.in_proj.qkv_fused", ours, parts, mixer.qkv_bias, pairs),
        same(f"{theirs}.dense.weight", f"{ours}.out_proj.weight", columns=d if mixer.value_is_key else 0),
        *([same(f"{theirs}.dense.bias", f"{ours}.out_proj.bias")] if mixer.out_bias else []),
    ]
    if mixer.rule == "learned":
        rules.append(same(f"{theirs}.w.weight", f"{ours}.weight_proj.weight"))
    if mixer.entry_norm:
        rules.append(same(f"{theirs}.ln_k.weight", f"{ours}.norm_k", interleaved=(d,)))
        rules.append(same(f"{theirs}.ln_v.weight", f"{ours}.norm_v", interleaved=(d,) if mixer.value_is_key else ()))
    return rules


def rules(config: ModelConfig):
    return fms_llama.rules(config, telescoping=attention_rules)


FAMILY = Family("telescoping", matches, read, write, rules, prefixes=fms_llama.FAMILY.prefixes)
