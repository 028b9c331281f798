"""A stage as a task of the training loop: whom it learns from, what it begins with, what it reads and minimises."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from leanlm.checkpoint import distributed, locate
from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import read_json
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.tokenizer import MAIN, Tokenizer
from leanlm.data.manifest import sha256
from leanlm.distill import kept_logits, student
from leanlm.distill.kept_logits import Kept
from leanlm.distill.objectives import KeptLogits, Logits, Matrices, States
from leanlm.errors import UsageError
from leanlm.model.language_model import LanguageModel
from leanlm.train import checkpoints, start
from leanlm.train import origin as origins
from leanlm.train.loss import Objective
from leanlm.train.origin import Origin
from leanlm.train.recipe import Data, Recipe
from leanlm.train.start import Material, Note
from leanlm.train.task import Task

BEGUN = "begun.json"


class Teacher:
    """A model to learn from by folder, name or hub id, read when it is first asked for, never trained."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device):
        self.name, self.dtype, self.device = name, dtype, device

    @cached_property
    def module(self) -> LanguageModel:
        """Raises NotFound and CheckpointError as loading does."""
        return load_module(locate.resolve(self.name), self.dtype, self.device).module.requires_grad_(False)

    def release(self) -> None:
        """Let its memory go; it is read again when it is asked for again."""
        self.__dict__.pop("module", None)


@dataclass(frozen=True)
class Corpus:
    """Shards of the text `source`, which all stages read: to learn from, and held-out ones, if there are any."""

    source: str
    learned: Path
    held: Path

    def read_by(self, data: Data) -> Data:
        """These settings, with the shards in the place of their text where it is this one."""
        if data.source != self.source:
            return data
        held = str(self.held) if self.held.is_dir() else ""
        return replace(data, source="", held_out=(), sources={str(self.learned): 1.0}, held=held)


@dataclass(frozen=True)
class Lesson:
    """A stage's `origin`, `material` and `objective`. `before` is the finished run of the stage before it, None for the first;
    `folder` that of the distillation, where the teacher's tokenizer lies."""

    teacher: Teacher
    before: Path | None
    folder: Path
    corpus: Corpus | None = None

    @property
    def task(self) -> Task:
        return Task(self.origin, self.material, self.objective)

    def origin(self, recipe: Recipe, folder: Path) -> Origin:
        """The student as the stage before left it, or made of the teacher; without memory where the run has a checkpoint."""
        origin = origins.fresh(recipe)
        tokenizer = Tokenizer.from_folder(self.folder) if (self.folder / MAIN).is_file() else None
        notes: list[str] = []
        if self.before is not None:
            checkpoint = checkpoints.complete(self.before)[-1]
            same_beginning(checkpoint, folder)
            if not checkpoints.complete(folder):
                weights = distributed.tensors(checkpoint)
                origin.module.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
        elif not checkpoints.complete(folder):
            teacher = self.teacher.module
            student.begin(teacher, origin.module, recipe.distill.init, recipe.seed)
            notes = student.notes(teacher.config, origin.module.config)
        return replace(origin, tokenizer=tokenizer, notes=tuple(notes))

    def material(self, recipe: Recipe, folder: Path, origin: Origin, note: Note) -> Material:
        """What the recipe reads; with `top_k`, also what the teacher makes of it, which it is now asked for."""
        data, distill = recipe.data if self.corpus is None else self.corpus.read_by(recipe.data), recipe.distill
        found = start.material(replace(recipe, data=data), folder, origin, note)
        if not _kept(recipe):
            return found
        kept = Kept(found.rows, Path(distill.cache) if distill.cache else folder / "kept-logits")
        about = {"teacher": distill.teacher, "top_k": distill.top_k, "rows": found.rows.fingerprint}
        kept_logits.check(kept.folder, about)
        count = recipe.steps * recipe.schedule.batch
        kept_logits.fill(kept.folder, found.rows, count, distill.top_k, lambda: self.teacher.module, note)
        self.teacher.release()
        return replace(found, rows=kept)

    def objective(self, origin: Origin, recipe: Recipe, device: torch.device) -> Objective:
        distill = recipe.distill
        if _kept(recipe):
            return KeptLogits(origin.module, distill.temperature)
        teacher = self.teacher.module
        if distill.compare == "matrices":
            return Matrices(origin.module, teacher)
        if distill.compare == "states":
            return States(origin.module, teacher, distill.freeze_mlp)
        _check_vocabulary(teacher, origin.module, distill.teacher)
        return Logits(origin.module, teacher, distill.temperature)


def _kept(recipe: Recipe) -> bool:
    return recipe.distill.compare == "logits" and recipe.distill.top_k > 0


def _check_vocabulary(teacher: LanguageModel, module: LanguageModel, name: str) -> None:
    theirs, ours = teacher.config.vocab_size, module.config.vocab_size
    if theirs != ours:
        raise UsageError(f"{name}: has {theirs} tokens, the student {ours}; logits are compared token by token")


def same_beginning(checkpoint: Path, folder: Path) -> None:
    """Write down where a stage began; raises UsageError where the stage before it has been trained on since."""
    now = {"stage": checkpoint.parent.name, "checkpoint": checkpoint.name}
    now["sha256"] = sha256(checkpoint / checkpoints.MANIFEST)
    if (folder / BEGUN).is_file():
        if read_json(folder / BEGUN) != now:
            raise UsageError(f"{folder}: began from another end of {now['stage']}; remove this folder to begin the stage again")
        return
    with replacing(folder) as aside:
        aside(BEGUN).write_text(json.dumps(now) + "\n", encoding="utf-8")
