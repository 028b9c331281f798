"""What a run trains: a fresh model, or any loadable checkpoint as a float32 module, with its format and its tokenizer."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from leanlm import families
from leanlm.checkpoint import locate
from leanlm.checkpoint import tokenizer as tokenizers
from leanlm.checkpoint.folder import read_json
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.tokenizer import MAIN, Tokenizer
from leanlm.errors import UsageError
from leanlm.families import Family, catalog
from leanlm.model import ternary
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed
from leanlm.train import checkpoints
from leanlm.train.recipe import Model, Recipe

KEPT = "origin.json"


@dataclass(frozen=True)
class Origin:
    """`module` before its first step, without memory where it is fresh. `raw` and `tokenizer` are the checkpoint's config.json
    and tokenizer, `notes` what became of its packed and ternary weights. `memory` is another run's checkpoint whose weights and
    optimiser it begins with."""

    module: LanguageModel
    family: Family
    raw: dict | None = None
    tokenizer: Tokenizer | None = None
    notes: tuple[str, ...] = ()
    memory: Path | None = None

    def parts(self, recipe: Recipe) -> Iterator[nn.Module]:
        """The parts of the model, each when its float32 weights are there, on the CPU; a seed means the same fresh weights."""
        if self.module.embedding.weight.is_meta:
            torch.manual_seed(recipe.seed)
            return self.module.reset_parts(recipe.model.init_std)
        return self.module.parts()

    def keep(self, folder: Path, aside: Callable[[str], Path]) -> None:
        """Write what a resumed run needs to know of a checkpoint: its formats and tokenizer, not its weights."""
        if self.raw is not None:
            told = {"family": self.family.name, "config": self.module.config.to_dict(), "raw": self.raw}
            aside(KEPT).write_text(json.dumps(told) + "\n", encoding="utf-8")
            if self.tokenizer is not None:
                self.tokenizer.save(folder)


def of(recipe: Recipe, folder: Path) -> Origin:
    """What the recipe's [model] says; where the run has a checkpoint of its own, the one it began with may be gone."""
    if not recipe.model.from_:
        return fresh(recipe)
    resumed = (folder / KEPT).is_file() and checkpoints.complete(folder)
    return kept(recipe.model, folder) if resumed else pretrained(recipe.model)


def fresh(recipe: Recipe) -> Origin:
    """The recipe's model, yet without weights."""
    family = families.get(recipe.model.family)
    config = family.to_fresh_config(recipe.model.config, "model.config")
    if recipe.data.source and config.vocab_size != recipe.data.vocab_size:
        raise UsageError(
            f"{recipe.name}: the model has {config.vocab_size} tokens and data.vocab_size is {recipe.data.vocab_size}; "
            "make them equal"
        )
    with torch.device("meta"):
        module = LanguageModel(config)
    if recipe.model.weights == "ternary":
        ternary.mark(module, recipe.model.shards)
    return Origin(module, family)


def kept(model: Model, folder: Path) -> Origin:
    """The checkpoint that a run began with, without its weights, as `Origin.keep` wrote it down."""
    told = read_json(folder / KEPT)
    with torch.device("meta"):
        module = LanguageModel(ModelConfig.from_dict(told["config"]))
    if model.weights == "ternary":
        ternary.mark(module, model.shards)
    tokenizer = Tokenizer.from_folder(folder) if (folder / MAIN).is_file() else None
    return Origin(module, families.get(told["family"]), told["raw"], tokenizer)


def pretrained(model: Model, offline: bool = False) -> Origin:
    """The checkpoint that `model.from_` names, all its parameters float32, in training mode.

    Weights of few bits become floats of just their values. Where `model.weights` is "ternary" the matrices of the layers
    become latents: of ternary ones those that round to just the values and scales stored, so that the first loss is the
    checkpoint's own. Raises NotFound and CheckpointError as loading does, UsageError and CheckFailed as `ternary.adopt`.
    """
    folder = locate.resolve(model.from_, offline=offline)
    loaded = load_module(folder, torch.float32)
    module, notes = loaded.module, []
    packed = sum(isinstance(weight, Packed) for weight in module.weights().values())
    if model.weights == "ternary":
        ternary.mark(module, model.shards)
        held = ternary.adopt(module)
        notes.append(f"{held} of {len(ternary.latent(module))} matrices are ternary already and go on from their values")
    elif packed:
        notes.append(f'{packed} packed matrices are trained as floats (model.weights = "ternary" keeps ternary ones)')
    for matrix in module.matrices().values():
        if isinstance(matrix.weight, Packed):
            matrix.hold(matrix.dequantize())
    tokenizer = tokenizers.find(folder, catalog.resolve(model.from_), offline)
    return Origin(module.float().train(), loaded.family, loaded.raw, tokenizer, tuple(notes))
