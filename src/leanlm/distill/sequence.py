"""A distillation from its first stage to its report, in one folder.

tokenizer.json    the teacher's               corpus/      token shards, where the recipe reads text
1-matrices/ ...   the stages, a run each      report.json  what became of it
model/            the student in its published format
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from leanlm.checkpoint import locate
from leanlm.checkpoint import tokenizer as tokenizers
from leanlm.checkpoint.tokenizer import MAIN, Tokenizer
from leanlm.distill import outcome, stages, student
from leanlm.distill.lesson import Corpus, Lesson, Teacher, same_beginning
from leanlm.distill.stages import Stage
from leanlm.errors import LeanLMError, UsageError
from leanlm.families import catalog
from leanlm.train import checkpoints, run, start
from leanlm.train import origin as origins
from leanlm.train.loop import train
from leanlm.train.processes import joined
from leanlm.train.recipe import Recipe
from leanlm.train.report import Report

Tell = Callable[[Report], None]


def distil(recipe: Recipe, folder: Path, report: Tell = lambda _: None) -> dict | None:
    """Take the recipe's student through its stages in `folder`, going on where it stopped; returns what report.json then says,
    or None where a stage's time was up. Stages that are done are left alone. Raises UsageError where they were done with
    another recipe, or the one before them has been trained on since.

    Every process that torchrun or srun started calls this. Ctrl-C is heard as `train` hears it.
    """
    planned = stages.of(recipe)
    with joined() as processes:
        report = report if processes.leader else lambda _: None
        corpus = processes.first(lambda: _corpus(planned, recipe, folder, report))
        teacher, before = None, None
        for stage in planned:
            where, settings = folder / stage.folder, stage.recipe
            if teacher is None or teacher.name != settings.distill.teacher:
                teacher = Teacher(settings.distill.teacher, getattr(torch, settings.compute.dtype), processes.device)
            if stages.finished(stage, where):
                run.check_same(settings, where)
                if before is not None:
                    same_beginning(checkpoints.complete(before)[-1], where)
            else:
                report(Report(0, settings.steps, note=f"stage {stage.number} of {len(planned)}: {stage.name}"))
                task = Lesson(teacher, before, folder, corpus).task
                if train(settings, where, report, task, processes) is None:
                    return None
            before = where
        teacher.release()
        device = processes.device
        return processes.first(
            lambda: _concluded(planned, folder, corpus, device) if processes.leader else outcome.read(folder)
        )


def _corpus(planned: list[Stage], recipe: Recipe, folder: Path, report: Tell) -> Corpus | None:
    """The shards of the recipe's own text, where it reads some; the teacher's tokenizer is put by. Raises UsageError, with
    nothing written, where the student cannot be made of the first stage's teacher."""
    tokenizer = _tokenizer(planned[0].recipe, folder)
    if not recipe.data.source:
        return None
    if tokenizer is None:
        raise UsageError(f"{recipe.distill.teacher}: has no tokenizer to read data.source with; tokenise the data before")
    origin = dataclasses.replace(origins.fresh(recipe), tokenizer=tokenizer)
    shards = start.shards(recipe, folder / "corpus", origin, lambda text: report(Report(0, recipe.steps, note=text)))
    return Corpus(recipe.data.source, *shards)


def _tokenizer(recipe: Recipe, folder: Path) -> Tokenizer | None:
    if (folder / MAIN).is_file():
        return Tokenizer.from_folder(folder)
    teacher = recipe.distill.teacher
    student.replaced(stages.config_of(teacher), origins.fresh(recipe).module.config)
    found = tokenizers.find(locate.resolve(teacher), catalog.resolve(teacher))
    if found is not None:
        found.save(folder)
    return found


def _concluded(planned: list[Stage], folder: Path, corpus: Corpus | None, device: torch.device) -> dict:
    """The student put in its place, and the report on it."""
    _linked(folder / planned[-1].folder / "model", folder / "model")
    data = planned[-1].recipe.data
    return outcome.write(planned, folder, corpus.read_by(data) if corpus else data, device)


def _linked(source: Path, target: Path) -> None:
    """A second name for a folder's files, or a copy where the disk has no such thing."""

    def link(file: str, new: str) -> None:
        try:
            os.link(file, new)
        except OSError:
            shutil.copy2(file, new)

    aside = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside, copy_function=link)
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise LeanLMError(f"{target}: cannot write ({error}); the model is in {source}") from None
