"""A run's folder: all that an exact resume needs. Only the leading process writes here, checkpoints apart.

recipe.toml       the recipe as run            log.jsonl     one line per report
tokenizer.json    the run's own tokenizer      data/, held/  token shards, where the run made them
origin.json       the checkpoint gone on from, without weights
step-00000200/    a checkpoint                 model/        the finished model in its published format
"""

import dataclasses
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from leanlm.errors import LeanLMError, UsageError
from leanlm.train import checkpoints
from leanlm.train import recipe as recipes
from leanlm.train.origin import Origin
from leanlm.train.recipe import Recipe
from leanlm.train.report import Report

RECIPE, LOG = "recipe.toml", "log.jsonl"


def enter(recipe: Recipe, folder: Path) -> list[str]:
    """Make the folder, or see that it holds this very run; returns what is to be told of what lies there. Checkpoints that were
    never completed are removed.

    Steps, the windows of a forward pass, the machine, what is kept, and the name may differ. Raises UsageError otherwise.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LeanLMError(f"{folder}: cannot make this folder ({error.strerror})") from None
    if (folder / RECIPE).is_file():
        past = recipes.read(folder / RECIPE)
        now = recipe.schedule
        schedule = dataclasses.replace(past.schedule, steps=now.steps, tokens=now.tokens, micro=now.micro)
        past = dataclasses.replace(past, schedule=schedule)
        for field in ("model", "data", "optimiser", "schedule", "seed"):
            if getattr(past, field) != getattr(recipe, field):
                raise UsageError(f"{folder}: holds a run with another [{field}]; name another folder, or the same recipe")
    notes = []
    for path in sorted(folder.glob("step-*.partial")):
        shutil.rmtree(path, ignore_errors=True)
        notes.append(f"{path.name} was never completed; removed")
    if (folder / RECIPE).is_file() and not checkpoints.complete(folder):
        notes.append("no checkpoint of this run is left: it begins again")
    return notes


def accept(recipe: Recipe, folder: Path, origin: Origin) -> None:
    """Store the recipe, and what it goes on from: it can run, and the folder is its own from now on."""
    try:
        origin.keep(folder)
        recipes.write(recipe, folder / RECIPE)
    except OSError as error:
        raise LeanLMError(f"{folder / RECIPE}: cannot write ({error.strerror})") from None


def log(folder: Path, report: Report) -> None:
    """Append what a report says as one JSON line to the run's log."""
    record = {name: value for name, value in asdict(report).items() if value not in (None, "")}
    try:
        with (folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise LeanLMError(f"{folder / LOG}: cannot write ({error.strerror}); checkpoints are as they were") from None
