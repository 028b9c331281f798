"""A distillation from its first stage to its report, in one folder.

teachers.json     their configs by name       tokenizer.json  of the first
1-matrices/ ...   the stages, a run each      corpus/         token shards, where the recipe reads text
report.json       what became of it           model/          the student in its published format
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
from leanlm.distill import outcome, stages
from leanlm.distill import teacher as teachers
from leanlm.distill.lesson import Corpus, Lesson, check_beginning
from leanlm.distill.stages import Stage
from leanlm.distill.teacher import Teacher
from leanlm.errors import LeanLMError, NotFound, UsageError
from leanlm.families import catalog
from leanlm.train import checkpoints, run, start
from leanlm.train import origin as origins
from leanlm.train.loop import train
from leanlm.train.processes import joined
from leanlm.train.recipe import Recipe
from leanlm.train.report import Report
from leanlm.train.start import Note

Tell = Callable[[Report], None]


def distil(recipe: Recipe, folder: Path, report: Tell = lambda _: None, only: tuple[str, ...] = ()) -> dict | None:
    """Take the recipe's student through its stages in `folder`, or `only` through these, going on where it stopped; returns
    what report.json then says of all that are done, or None where a stage's time was up.

    A stage begins where the last one before it that is done ended, the first with the teacher; those that are done are left
    alone. Raises UsageError, before anything is trained, where what lies in the folder was made by another recipe or began
    otherwise, or a stage cannot learn of its teacher; NotFound where a teacher is not there.
    Every process that torchrun or srun started calls this. Ctrl-C is heard as `train` hears it.
    """
    planned, teacher, done = stages.of(recipe, only), None, []
    with joined() as processes:
        report = report if processes.leader else lambda _: None

        def note(text: str) -> None:
            report(Report(0, recipe.steps, note=text))

        asked = [stage for stage in planned if not only or stage.name in only]
        processes.first(lambda: _check(planned, asked, folder))
        corpus = processes.first(lambda: _corpus(planned, recipe, folder, note))
        for stage in planned:
            where, settings = folder / stage.folder, stage.recipe
            if not stages.finished(stage, where):
                if stage not in asked:
                    continue
                note(f"stage {stage.number} of {len(planned)}: {stage.name}")
                if teacher is None or (teacher.name, teacher.compute) != (settings.distill.teacher, settings.compute):
                    teacher = Teacher(settings.distill.teacher, settings.compute, processes)
                before = folder / done[-1].folder if done else None
                if train(settings, where, report, Lesson(teacher, before, folder, corpus, note).task, processes) is None:
                    return None
            done.append(stage)
        if teacher is not None:
            teacher.release()
        device = processes.device
        return processes.first(lambda: _concluded(done, folder, corpus, device) if processes.leader else outcome.read(folder))


def _check(planned: list[Stage], asked: list[Stage], folder: Path) -> None:
    """Raises UsageError where what lies in the folder is not what the recipe's stages would make in turn: nothing is trained
    before it has to be thrown away."""
    before, undone = None, None
    for stage in planned:
        stages.check(stage, teachers.config_of(stage.recipe.distill.teacher, folder))
        where = folder / stage.folder
        begun = bool(checkpoints.complete(where))
        if (where / run.RECIPE).is_file():
            run.check_same(stage.recipe, where)
        if begun and undone:
            raise UsageError(f"{where}: began without what {undone} comes to; remove this folder to train {undone}")
        if begun and (stage in asked or stages.finished(stage, where)):
            check_beginning(before, where)
        if stages.finished(stage, where):
            before = where
        elif stage in asked:
            undone = where.name
        elif begun:
            later = [other.name for other in asked if other.number > stage.number]
            if later:
                raise UsageError(
                    f"{where}: is not done, and {later[0]} would begin without it; finish it, or remove this folder"
                )


def _corpus(planned: list[Stage], recipe: Recipe, folder: Path, note: Note) -> Corpus | None:
    """The shards of the recipe's own text, where it reads some; teachers' configs and the tokenizer are put by."""
    tokenizer = _tokenizer(planned, folder)
    if not recipe.data.source:
        return None
    if tokenizer is None:
        raise UsageError(f"{recipe.distill.teacher}: has no tokenizer to read data.source with; tokenise the data before")
    origin = dataclasses.replace(origins.fresh(recipe), tokenizer=tokenizer)
    return Corpus(recipe.data.source, *start.shards(recipe, folder / "corpus", origin, note))


def _tokenizer(planned: list[Stage], folder: Path) -> Tokenizer | None:
    """The first stage's teacher's."""
    names = [stage.recipe.distill.teacher for stage in planned]
    if not (folder / MAIN).is_file():
        try:
            found = tokenizers.find(locate.resolve(names[0]), catalog.resolve(names[0]))
        except NotFound:
            if names[0] not in teachers.known(folder):
                raise
            found = None  # it had none
        if found is not None:
            found.save(folder)
    teachers.remember(names, folder)
    return Tokenizer.from_folder(folder) if (folder / MAIN).is_file() else None


def _concluded(done: list[Stage], folder: Path, corpus: Corpus | None, device: torch.device) -> dict:
    """The student put in its place, and the report on it."""
    _linked(folder / done[-1].folder / "model", folder / "model")
    data = done[-1].recipe.data
    return outcome.write(done, folder, corpus.read_by(data) if corpus else data, device)


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
