"""The golden cases of telescoping: layers, whole models and schedules of the original code, and our modules of them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from golden_cases import OWN
from leanlm import env
from leanlm.families import FAMILIES, names
from leanlm.families.telescoping import attention_rules
from leanlm.model.config import Rope, Telescoping
from leanlm.model.language_model import LanguageModel
from leanlm.model.telescoping import Telescoping as Mixer

RULES = {"learned": "learned", "qk_self_score": "self_score", "l2_norm": "l2"}
PLAIN = {"mean": "mean", "sqrt2": "sqrt2"}  # of cases without weights


def cases(kind: str) -> list[Path]:
    """The JSON files of a kind, LEANLM_GOLDEN's before the subset here."""
    found: dict[str, Path] = {}
    for root in filter(None, (env.GOLDEN.get(), OWN)):
        for path in sorted((Path(root) / "telescoping").glob(f"{kind}_*.json")):
            found.setdefault(path.stem, path)
    return list(found.values())


def table(meta: dict) -> dict:
    """`slots` and `merges`."""
    return {"slots": meta["cache_size"], "merges": tuple(meta["fmap"][level] for level in sorted(meta["fmap"], key=int))}


def settings(meta: dict) -> dict:
    """Of the mixer's config, but for heads and widths."""
    return {
        **table(meta),
        "merge": RULES.get(meta["weighting"]) or PLAIN[meta["merge"]],
        "entry_norm": meta.get("kv_norm", meta.get("kv_norm_eps") is not None),
        "mask_empty": meta["mask_empty"],
        "softcap": meta.get("softcap"),
        "head_mix": bool(meta.get("headmix")),
        "value_is_key": bool(meta.get("v_is_k")),
    }


def layer(path: Path) -> tuple[Mixer, dict[str, torch.Tensor], dict]:
    """The layer of a case, with its tensors and what is said of it."""
    meta, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    width, bias = meta["head_dim_k"], "param.dense.bias" in tensors
    config = Telescoping(
        meta["nheads"],
        meta["kvheads"],
        width,
        v_head_dim=meta["head_dim_v"],
        rope=Rope(width, meta["rope_theta"]),
        qkv_bias=bias,
        out_bias=bias,
        **settings(meta),
    )
    mixer = Mixer(meta["emb_dim"], config)
    theirs = {name.removeprefix("param."): tensor for name, tensor in tensors.items() if name.startswith("param.")}
    mixer.load_state_dict(ours(config, theirs))
    return mixer, tensors, meta


def ours(config: Telescoping, theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights or gradients of a layer under our names."""
    rules = attention_rules("x", "y", config)
    found = names.to_ours(rules, {f"x.{name}": tensor for name, tensor in theirs.items()})
    return {name.removeprefix("y."): tensor for name, tensor in found.items()}


def model(path: Path) -> tuple[LanguageModel, dict[str, torch.Tensor], list]:
    """The model of a case as its family reads it, its tensors, and the rules of its names."""
    meta, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    kinds = settings(meta)
    raw = {
        **meta["config"],
        "norm_eps": meta["norm_eps"],
        "rope_theta": meta["rope_theta"],
        "telescoping": {
            "slots": kinds["slots"],
            "merges": list(kinds["merges"]),
            **{key: kinds[key] for key in ("merge", "entry_norm", "mask_empty", "softcap")},
        },
        "full_attention_layers": [i for i, kind in enumerate(meta["layer_kinds"]) if kind == "full"],
    }
    family = FAMILIES["telescoping"]
    config = family.to_config(raw)
    module, rules = LanguageModel(config), family.rules(config)
    theirs = {name.removeprefix("param."): tensor for name, tensor in tensors.items() if name.startswith("param.")}
    weights = names.to_ours(rules, theirs)
    module.load_state_dict(weights)
    assert sum(len(rule.ours) for rule in rules if rule.theirs in theirs) == len(weights)
    return module.eval(), tensors, rules
