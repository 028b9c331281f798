"""From a module to a checkpoint folder in its family's published layout."""

import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import CONFIG, INDEX, PICKLE, PICKLE_INDEX, SINGLE, read_json
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import CheckpointError, LeanLMError, UsageError
from leanlm.families import Family, names
from leanlm.model.language_model import LanguageModel


def save_module(
    folder: str | Path,
    module: LanguageModel,
    family: Family,
    raw: dict | None = None,
    tokenizer: Tokenizer | None = None,
    weights: Literal["safetensors", "pytorch"] | None = None,
) -> None:
    """Write config.json, the weights and the tokenizer's files.

    `raw`, the config.json the model came with, is kept where it still describes the model. `weights` (default: what the
    family's original reads) "pytorch" writes pytorch_model.bin with a tied head repeated. All files are written aside and
    then take their names together; weights of other forms, which they supersede, are removed last. The folder may be the
    one the module was loaded from. Raises LeanLMError where it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give the folder to save into")
    weights = weights or ("pytorch" if family.pickled else "safetensors")
    tensors = published(module, family, repeat_head=weights == "pytorch")
    target = SINGLE if weights == "safetensors" else PICKLE
    superseded = _weight_files(folder) - {target}
    with replacing(folder) as aside:
        if weights == "safetensors":
            save_file(tensors, aside(target), metadata={"format": "pt"})
        else:
            torch.save(tensors, aside(target))
        text = json.dumps(settings(module, family, raw, tensors), indent=2)
        aside(CONFIG).write_text(text + "\n", encoding="utf-8")
        for name, content in (tokenizer.files if tokenizer else {}).items():
            aside(name).write_bytes(content)
    for name in superseded:
        (folder / name).unlink(missing_ok=True)


def published(module: LanguageModel, family: Family, repeat_head: bool = False) -> dict[str, Tensor]:
    """The model's tensors under the family's names, sharing memory where they can."""
    rules = family.rules(module.config)
    ours = {name: parameter.detach() for name, parameter in module.named_parameters()}
    theirs = names.to_theirs(rules, ours)
    if repeat_head:
        theirs |= {rule.theirs: ours[rule.ours[0]] for rule in rules if rule.optional}
    return {name: tensor.contiguous() for name, tensor in theirs.items()}


def settings(module: LanguageModel, family: Family, raw: dict | None, tensors: dict[str, Tensor]) -> dict:
    """config.json: the one given while it says what the model is, otherwise made from the model's config."""
    if raw is None or not _describes(raw, family, module, tensors):
        raw = family.from_config(module.config)
    dtype = str(module.dtype).removeprefix("torch.")
    return {key: dtype if key in ("torch_dtype", "dtype") else value for key, value in raw.items()}


def _describes(raw: dict, family: Family, module: LanguageModel, tensors: dict[str, Tensor]) -> bool:
    try:
        return family.to_config(raw, frozenset(tensors)) == module.config
    except (LeanLMError, TypeError, ValueError, KeyError, AttributeError):
        return False


def _weight_files(folder: Path) -> set[str]:
    """Files of standard names that hold weights in the folder now, shards included."""
    found = {name for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX) if (folder / name).exists()}
    for index in found & {INDEX, PICKLE_INDEX}:
        try:
            shards = read_json(folder / index).get("weight_map", {}).values()
        except (CheckpointError, AttributeError):
            continue
        found |= {shard for shard in map(str, shards) if Path(shard).name == shard}
    return found
