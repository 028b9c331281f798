"""A telescoping cache in a config.json: the table `telescoping`, which families with attention may hold, and its tensors."""

import difflib
from collections.abc import Mapping, Sequence

from leanlm.errors import CheckpointError
from leanlm.families.family import Rule, layers_at, same
from leanlm.model.config import Attention, Telescoping
from leanlm.slots import NAMED

KEY, FULL = "telescoping", "full_attention_layers"
IN_ATTENTION = "a hybrid has one table, attn_cfg.telescoping, for all its attention"
SETTINGS = ("merge", "entry_norm", "entry_norm_eps", "mask_empty", "softcap", "head_mix", "value_is_key")  # named as ours


def telescoping(raw: Mapping, attention: Attention, path: str = "", **rest) -> Telescoping:
    """What `attention` becomes with raw["telescoping"], a table: `cache` is a published one by name, or it has `slots` and
    `merges`. `path` is where `raw` lies in config.json, `rest` are other settings of the mixer's."""
    path, table = f"config.json: {path}{KEY}", raw[KEY]
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} = {table!r} is no table of settings")
    known = {"cache", "slots", "merges", *SETTINGS}
    if unknown := table.keys() - known:
        raise CheckpointError(f"{path}.{min(unknown)} is unknown; there are {', '.join(sorted(known))}")
    settings = {key: table[key] for key in table if key != "cache"}
    if "cache" in table:
        name = str(table["cache"])
        if name not in NAMED or {"slots", "merges"} & table.keys():
            raise CheckpointError(f"{path}.cache = {name!r}; choose from {', '.join(NAMED)}, or give slots and merges instead")
        settings |= {"slots": NAMED[name].size, "merges": NAMED[name].merges}
    elif not {"slots", "merges"} <= table.keys():
        raise CheckpointError(f"{path} needs a cache, or slots and merges")
    return Telescoping.of(attention, path, **settings, **rest)


def table(mixer: Telescoping) -> dict:
    """The inverse of `telescoping`."""
    name = next((name for name, known in NAMED.items() if known == mixer.table), None)
    cache = {"cache": name} if name else {"slots": mixer.slots, "merges": list(mixer.merges)}
    return {**cache, **{key: getattr(mixer, key) for key in SETTINGS}}


def refuse_misplaced(raw: Mapping, where: str, *allowed: str) -> None:
    """Raises CheckpointError for a key that is, or nearly is, one of a cache's and stands where nothing would read it, because
    the model would be another one without a word. `where` says what would be right."""
    for key in raw.keys() - set(allowed):
        if near := difflib.get_close_matches(key, (KEY, FULL), 1, cutoff=0.8):
            hint = f"did you mean {near[0]!r}?" if near[0] in allowed else where
            raise CheckpointError(f"config.json: {key!r} would have no effect here; {hint}")


def mixers(raw: Mapping, attention: Attention, mixer: Telescoping, n_layers: int) -> list[Attention | Telescoping]:
    """Of every layer, as raw["full_attention_layers"] says."""
    full = layers_at(raw, FULL, n_layers)
    if len(full) == n_layers:
        raise CheckpointError(f"config.json: {FULL} names every layer; without a cache it is a plain Llama")
    return [attention if i in full else mixer for i in range(n_layers)]


def full_layers(mixers: Sequence[Attention | Telescoping]) -> list[int]:
    """Where attention sees all tokens."""
    return [i for i, mixer in enumerate(mixers) if isinstance(mixer, Attention)]


def own_rules(theirs: str, ours: str, mixer: Attention | Telescoping) -> list[Rule]:
    """The tensors that a mixer has beside those of attention, under our names; none where it is plain attention."""
    if isinstance(mixer, Attention):
        return []
    rules = [same(f"{theirs}.weight_proj.weight", f"{ours}.weight_proj.weight")] if mixer.merge == "learned" else []
    return [*rules, *(same(f"{theirs}.{norm}", f"{ours}.{norm}") for norm in ("norm_k", "norm_v") if mixer.entry_norm)]


def rows(mixer: Attention | Telescoping) -> dict[str, int]:
    """The projections to queries, keys and values, and their outputs."""
    q, kv = mixer.n_heads * mixer.head_dim, mixer.n_kv_heads * mixer.head_dim
    if isinstance(mixer, Attention):
        return {"q_proj": q, "k_proj": kv, "v_proj": kv}
    values = {} if mixer.value_is_key else {"v_proj": mixer.n_kv_heads * mixer.v_head_dim}
    return {"q_proj": q, "k_proj": kv, **values}
