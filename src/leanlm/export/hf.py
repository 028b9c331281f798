"""A model as a Hugging Face folder that stock transformers loads, whatever family it came in."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from leanlm import families
from leanlm.checkpoint.load import SENSITIVE
from leanlm.checkpoint.save import save_module
from leanlm.checkpoint.tokenizer import SETTINGS, Tokenizer
from leanlm.errors import CheckpointError, UsageError
from leanlm.families import Family
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import UNKNOWN_CONTEXT, LanguageModel
from leanlm.model.packed import Packed

FAMILIES = ("hf_llama", "hf_mamba", "hf_mamba2", "hf_bamba")  # what transformers has


class Written(NamedTuple):
    """What an export made: the family it is in now, the dtype of its floats, and the container of packed matrices, if any.
    `exact`: nothing was narrowed to a dtype that was asked for."""

    path: Path
    family: str
    dtype: torch.dtype
    container: str | None
    exact: bool


def export(
    folder: str | Path,
    module: LanguageModel,
    tokenizer: Tokenizer | None = None,
    raw: dict | None = None,
    dtype: torch.dtype | None = None,
    container: str | None = None,
    own: Family | None = None,
) -> Written:
    """Write the model as the Hugging Face family that is the same function.

    Packed matrices become floats, exactly; with `container` ("gptq", "compressed-tensors") they stay packed. `dtype` None is
    the model's own, or float32 where that cannot hold the values of packed matrices. `raw` is the config.json the model came
    with, kept where it is of that family. Where transformers has no such model it is written in the family `own`; without
    one raises UsageError, as for a `container` and nothing packed.
    """
    packed = container is not None
    if packed and not any(isinstance(weight, Packed) for weight in module.weights().values()):
        raise UsageError(f"{container} holds packed weights, and this model has none; quantise it first (leanlm quantize)")
    try:
        family, raw = equivalent(module.config, raw)
    except UsageError:
        if own is None:
            raise
        family, raw = own, raw or own.from_config(module.config)
    chosen = dtype or (module.dtype if packed else _exact_dtype(module))
    key = "dtype" if "dtype" in raw else "torch_dtype"
    copy = _in(module, family.to_config(raw), chosen, packed, narrow=dtype is not None)
    save_module(folder, copy, family, {**raw, key: ""}, _with_class(tokenizer), "safetensors", container)
    return Written(Path(folder), family.name, chosen, container, dtype is None)


def equivalent(cfg: ModelConfig, raw: dict | None = None) -> tuple[Family, dict]:
    """The Hugging Face family of this model and its config.json; raises UsageError where there is none."""
    kinds = dict.fromkeys(mixer.kind.replace("_", " ") for mixer in cfg.sublayers)
    for name in FAMILIES if "telescoping" not in kinds else ():
        family = families.get(name)
        if raw is not None and family.matches(raw):
            return family, raw
        for variant in _variants(cfg):
            try:
                return family, family.from_config(variant)
            except CheckpointError:
                continue
    names = ", ".join(name.removeprefix("hf_") for name in FAMILIES)
    raise UsageError(f"stock transformers has no model like this one ({', '.join(kinds)}): it is none of {names}")


def _variants(cfg: ModelConfig) -> Iterator[ModelConfig]:
    """The config itself, then with what shows only below float32 as Hugging Face's models have it: where the norms round,
    and whether the stream is kept in float32. Models without a context length get the one that leanlm makes room for."""
    cfg = dataclasses.replace(cfg, context_length=cfg.context_length or UNKNOWN_CONTEXT) if not cfg.bounded else cfg
    yield cfg
    rounded = {name: dataclasses.replace(getattr(cfg, name), round_first=True) for name in ("norm", "final_norm")}
    for residual in (cfg.residual_in_fp32, not cfg.residual_in_fp32):
        yield dataclasses.replace(cfg, **rounded, residual_in_fp32=residual)


def _exact_dtype(module: LanguageModel) -> torch.dtype:
    """The model's dtype where it holds every packed matrix's values, else float32."""
    for weight in module.weights().values():
        if isinstance(weight, Packed):
            values = weight.dequantize(torch.float32)
            if not torch.equal(values.to(module.dtype).float(), values):
                return torch.float32
    return module.dtype


def _in(module: LanguageModel, cfg: ModelConfig, dtype: torch.dtype, packed: bool, narrow: bool) -> LanguageModel:
    """The same weights under another config, sharing memory where they can: packed matrices as they are where `packed`, else
    as floats in `dtype`; other floats in it too, but not in less than they have unless `narrow` (scans' never)."""
    with torch.device("meta"):
        copy = LanguageModel(cfg)
    weights: dict[str, Tensor | Packed] = {}
    for name, weight in module.weights().items():
        if not isinstance(weight, Packed):
            keeps = not narrow or name.rpartition(".")[2] in SENSITIVE
            weights[name] = weight.detach().to(torch.promote_types(weight.dtype, dtype) if keeps else dtype)
        else:
            weights[name] = weight if packed else weight.dequantize(torch.float32).to(dtype)
    copy.take(weights)
    return copy.eval()


def _with_class(tokenizer: Tokenizer | None) -> Tokenizer | None:
    """Without a class of its own transformers takes that of the model's family, which may cut texts in another way."""
    if tokenizer is None:
        return None
    settings = json.loads(tokenizer.files.get(SETTINGS, b"{}"))
    if "tokenizer_class" in settings:
        return tokenizer
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return Tokenizer(tokenizer.core, {**tokenizer.files, SETTINGS: text.encode()})
