"""From a module to a checkpoint folder in its family's published layout."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from leanlm.checkpoint import aligned, codecs
from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import CONFIG, INDEX, PICKLE, PICKLE_INDEX, SINGLE, read_json
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import CheckpointError, LeanLMError, UsageError
from leanlm.families import Family, names
from leanlm.model import ternary
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed


def save_module(
    folder: str | Path,
    module: LanguageModel,
    family: Family,
    raw: dict | None = None,
    tokenizer: Tokenizer | None = None,
    weights: Literal["safetensors", "pytorch"] | None = None,
    container: str | None = None,
) -> None:
    """Write config.json, the weights and the tokenizer's files; latent ternary weights are packed.

    `raw`, the config.json the model came with, is kept where it still describes the model. `weights` (default: what the
    family's original reads) "pytorch" writes pytorch_model.bin with a tied head repeated. `container` is the format of
    packed matrices (default: that of `raw`, or else the first of `codecs` that holds them exactly). All files are written
    aside and then take their names together; weights of other forms, which they supersede, are removed last. The folder may
    be the one the module was loaded from. Raises LeanLMError where it cannot be written, UsageError where `container` cannot
    hold a packed matrix exactly.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give the folder to save into")
    module = ternary.packed(module)
    held = published(module, family)
    packed = any(isinstance(weight, Packed) for weight in held.values())
    weights = weights or ("pytorch" if family.pickled and not packed else "safetensors")
    if weights == "pytorch":
        held |= repeated_head(module, family)
    tensors, quantization = encoded(module, family, held, raw, container)
    target = SINGLE if weights == "safetensors" else PICKLE
    superseded = _weight_files(folder) - {target}
    with replacing(folder) as aside:
        if weights == "safetensors":
            aligned.write(aside(target), tensors, {"format": "pt"})
        else:
            torch.save(tensors, aside(target))
        text = json.dumps(settings(module, family, raw, held, quantization), indent=2)
        aside(CONFIG).write_text(text + "\n", encoding="utf-8")
        for name, content in (tokenizer.files if tokenizer else {}).items():
            aside(name).write_bytes(content)
    for name in superseded:
        (folder / name).unlink(missing_ok=True)


def published(module: LanguageModel, family: Family) -> dict[str, Tensor | Packed]:
    """The model's weights under the family's names, sharing memory where they can."""
    ours = {name: weight if isinstance(weight, Packed) else weight.detach() for name, weight in module.weights().items()}
    return names.to_theirs(family.rules(module.config), ours)


def repeated_head(module: LanguageModel, family: Family) -> dict[str, Tensor]:
    """A tied head under its published name."""
    rules = family.rules(module.config)
    return {rule.theirs: module.embedding.weight.detach() for rule in rules if rule.optional}


def encoded(
    module: LanguageModel, family: Family, held: Mapping[str, Tensor | Packed], raw: dict | None, container: str | None
) -> tuple[dict[str, Tensor], dict | None]:
    """The tensors to store, and the quantization_config that says how (None where nothing is packed).

    Raises UsageError where `container` cannot hold a packed matrix exactly.
    """
    tensors = {name: weight.contiguous() for name, weight in held.items() if isinstance(weight, Tensor)}
    packed = {name: weight for name, weight in held.items() if isinstance(weight, Packed)}
    if not packed:
        return tensors, None
    codec = _codec(packed, raw, container)
    for name, weight in packed.items():
        tensors |= {part: tensor.contiguous() for part, tensor in codec.write(name, weight).items()}
    matrices = module.matrices().keys()
    plain = [rule.theirs for rule in family.rules(module.config) if rule.theirs in held and rule.ours[0] in matrices]
    return tensors, codec.settings(packed, [name for name in plain if name not in packed])


def settings(module: LanguageModel, family: Family, raw: dict | None, held: Collection[str], quantization: dict | None) -> dict:
    """config.json: the one given while it says what the model is, otherwise made from the model's config."""
    if raw is None or not _describes(raw, family, module, held):
        raw = family.from_config(module.config)
    dtype = str(module.dtype).removeprefix("torch.")
    raw = {key: dtype if key in ("torch_dtype", "dtype") else value for key, value in raw.items()}
    raw.pop("quantization_config", None)
    return raw if quantization is None else {**raw, "quantization_config": quantization}


def _describes(raw: dict, family: Family, module: LanguageModel, held: Collection[str]) -> bool:
    try:
        return family.to_config(raw, frozenset(held)) == module.config
    except (LeanLMError, TypeError, ValueError, KeyError, AttributeError):
        return False


def _codec(packed: Mapping[str, Packed], raw: dict | None, container: str | None) -> codecs.Codec:
    """The wanted container; without one that of `raw` while it holds everything, then the first that does."""
    own = codecs.of(raw or {})
    if container is None and own and not any(own.refusal(name, weight) for name, weight in packed.items()):
        return own
    return codecs.choose(packed, container)


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
