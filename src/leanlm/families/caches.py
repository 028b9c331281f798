"""A telescoping cache in a config.json: the table `telescoping`, which families with attention may hold, and its tensors."""

from collections.abc import Sequence

from leanlm.errors import CheckpointError
from leanlm.families.family import Rule, same
from leanlm.model.config import Attention, Telescoping
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


def telescoping(table: dict, attention: Attention, **rest) -> Telescoping:
    """What `attention` becomes with a table `telescoping`, whose `cache` is a published one by name; or it gives `slots` and
    `merges`. `rest` are other settings of the mixer's."""
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
    return Telescoping.of(attention, slots=slots, merges=tuple(merges), **settings, **rest)


def table(mixer: Telescoping) -> dict:
    """The inverse of `telescoping`."""
    name = next((name for name, known in NAMED.items() if known == mixer.table), None)
    cache = {"cache": name} if name else {"slots": mixer.slots, "merges": list(mixer.merges)}
    return {**cache, **{theirs: getattr(mixer, ours) for theirs, ours in KEYS.items()}}


def full_layers(mixers: Sequence[Attention | Telescoping]) -> list[int]:
    """Where attention sees all tokens."""
    return [i for i, mixer in enumerate(mixers) if isinstance(mixer, Attention)]


def own_rules(theirs: str, ours: str, mixer: Attention | Telescoping) -> list[Rule]:
    """The tensors that a mixer has beside those of attention, under our names; none where it is plain attention."""
    if isinstance(mixer, Attention):
        return []
    rules = [same(f"{theirs}.weight_proj.weight", f"{ours}.weight_proj.weight")] if mixer.rule == "learned" else []
    return [*rules, *(same(f"{theirs}.{norm}", f"{ours}.{norm}") for norm in ("norm_k", "norm_v") if mixer.entry_norm)]


def rows(mixer: Attention | Telescoping) -> dict[str, int]:
    """The projections to queries, keys and values, and their outputs."""
    q, kv = mixer.n_heads * mixer.head_dim, mixer.n_kv_heads * mixer.head_dim
    if isinstance(mixer, Attention):
        return {"q_proj": q, "k_proj": kv, "v_proj": kv}
    values = {} if mixer.value_is_key else {"v_proj": mixer.n_kv_heads * mixer.v_head_dim}
    return {"q_proj": q, "k_proj": kv, **values}
