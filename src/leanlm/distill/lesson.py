"""A stage as a task of the training loop: whom it learns from, what it begins with, what it reads and minimises."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from leanlm.checkpoint import distributed
from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import read_json
from leanlm.checkpoint.tokenizer import MAIN, Tokenizer
from leanlm.data.manifest import sha256
from leanlm.distill import student
from leanlm.distill.kept_logits import Kept
from leanlm.distill.objectives import KeptLogits, Logits, Matrices, States
from leanlm.distill.teacher import Teacher
from leanlm.errors import UsageError
from leanlm.train import checkpoints, run, start
from leanlm.train import origin as origins
from leanlm.train import recipe as recipes
from leanlm.train.loss import Objective
from leanlm.train.origin import Origin
from leanlm.train.processes import Processes
from leanlm.train.recipe import Data, Recipe
from leanlm.train.start import Material, Note
from leanlm.train.task import Task

BEGUN = "begun.json"


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
        return data.of_shards(self.learned, self.held if self.held.is_dir() else "")


@dataclass(frozen=True)
class Lesson:
    """A stage's `origin`, `material` and `objective`. `before` is the finished run of the stage before it, None where it begins
    with the teacher; `folder` that of the distillation, where the teacher's tokenizer lies."""

    teacher: Teacher
    before: Path | None
    folder: Path
    corpus: Corpus | None
    note: Note

    @property
    def task(self) -> Task:
        return Task(self.origin, self.material, self.objective)

    def origin(self, recipe: Recipe, folder: Path) -> Origin:
        """The student as the stage before left it, or made of the teacher; without memory where the run has a checkpoint. A
        stage that compares what the one before compared also goes on with its optimiser."""
        origin = origins.fresh(recipe)
        tokenizer = Tokenizer.from_folder(self.folder) if (self.folder / MAIN).is_file() else None
        origin = replace(origin, tokenizer=tokenizer)
        if checkpoints.complete(folder):
            return origin
        with replacing(folder) as aside:
            aside(BEGUN).write_text(json.dumps(beginning(self.before)) + "\n", encoding="utf-8")
        if self.before is None:
            teacher = self.teacher.read()
            student.begin(teacher, origin.module, recipe.distill.init, recipe.seed)
            return replace(origin, notes=tuple(student.notes(teacher.config, origin.module.config)))
        checkpoint = checkpoints.complete(self.before)[-1]
        if _learns_as(recipe, self.before):
            return replace(origin, memory=checkpoint)
        weights = distributed.tensors(checkpoint)
        origin.module.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
        return origin

    def material(self, recipe: Recipe, folder: Path, origin: Origin, note: Note) -> Material:
        """What the recipe reads; with `top_k`, also where what the teacher makes of it is kept."""
        data, distill = recipe.data if self.corpus is None else self.corpus.read_by(recipe.data), recipe.distill
        found = start.material(replace(recipe, data=data), folder, origin, note)
        if not _kept(recipe):
            return found
        cache = Path(distill.cache) / found.rows.fingerprint[:16] if distill.cache else folder / "kept-logits"
        kept = Kept(found.rows, cache)
        kept.claim(distill.teacher, distill.top_k)
        return replace(found, rows=kept)

    def objective(self, origin: Origin, material: Material, recipe: Recipe, processes: Processes) -> Objective:
        distill = recipe.distill
        if _kept(recipe):
            count = recipe.steps * recipe.schedule.batch
            material.rows.fill(self.teacher, count, distill.top_k, processes, self.note)
            self.teacher.release()
            return KeptLogits(origin.module, distill.temperature)
        teacher = self.teacher.module
        if distill.compare == "matrices":
            return Matrices(origin.module, teacher)
        if distill.compare == "states":
            return States(origin.module, teacher, distill.freeze_mlp)
        return Logits(origin.module, teacher, distill.temperature)


def _kept(recipe: Recipe) -> bool:
    return recipe.distill.compare == "logits" and recipe.distill.top_k > 0


def _learns_as(recipe: Recipe, before: Path) -> bool:
    """Whether the stage before it had the same weights learn for the same loss."""
    now, then = recipe.distill, recipes.read(before / run.RECIPE).distill
    return (now.compare, now.freeze_mlp) == (then.compare, then.freeze_mlp)


def beginning(before: Path | None) -> dict:
    """What a stage begins with: the run `before` it, as far as it has come, or the teacher."""
    if before is None:
        return {"stage": "the teacher"}
    checkpoint = checkpoints.complete(before)[-1]
    return {"stage": before.name, "checkpoint": checkpoint.name, "sha256": sha256(checkpoint / checkpoints.MANIFEST)}


def check_beginning(before: Path | None, folder: Path) -> None:
    """Raises UsageError where the run in `folder` has begun otherwise, or the stage before it has been trained on since."""
    if not (folder / BEGUN).is_file():
        return
    now, then = beginning(before), read_json(folder / BEGUN)
    if then != now:
        what = f"another end of {now['stage']}" if then["stage"] == now["stage"] else f"{then['stage']}, not {now['stage']}"
        raise UsageError(f"{folder}: began from {what}; remove this folder to begin the stage again")
