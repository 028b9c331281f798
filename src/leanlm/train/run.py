"""A run's folder: all that an exact resume needs. Only the leading process writes here, checkpoints apart.

recipe.toml       the recipe as run            log.jsonl     one line per report
tokenizer.json    the run's own tokenizer      data/, held/  token shards, where the run made them
origin.json       the checkpoint gone on from, without weights
step-00000200/    a checkpoint                 model/        the finished model in its published format
"""

import dataclasses
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from leanlm.checkpoint.aside import replacing
from leanlm.errors import LeanLMError, UsageError
from leanlm.train import checkpoints
from leanlm.train import recipe as recipes
from leanlm.train.origin import Origin
from leanlm.train.recipe import Recipe

RECIPE, LOCK = "recipe.toml", ".lock"


class Hold:
    """Keeps others out of a run's folder, in a `with` block, once it is taken. Where the system has no locks of files, it does
    not."""

    def __init__(self, folder: Path):
        self.path, self.file = folder / LOCK, None

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.file is not None:
            self.file.close()

    def take(self) -> None:
        """Raises UsageError where another process has it, LeanLMError where the folder cannot be written to."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            self.file = self.path.open("ab+", buffering=0)
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            who = self.file.read().decode().strip()
            raise UsageError(f"{self.path.parent}: a run is at work here ({who}); stop it first") from None
        except OSError as error:
            raise LeanLMError(f"{self.path}: cannot write ({error.strerror})") from None
        with suppress(OSError):  # on a full disk nobody is told who it is
            self.file.truncate(0)
            self.file.write(f"process {os.getpid()} on {platform.node()}".encode())


def enter(recipe: Recipe, folder: Path, hold: Hold) -> list[str]:
    """Make the folder, or see that it holds this very run, and take hold of it; returns what is to be told of what lies there.
    Checkpoints that were never completed are removed.

    Steps, the windows of a forward pass, the machine, what is kept, and the name may differ. Raises UsageError otherwise, or
    where another process is at work in the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LeanLMError(f"{folder}: cannot make this folder ({error.strerror})") from None
    hold.take()
    if (folder / RECIPE).is_file():
        check_same(recipe, folder)
    notes = []
    if recipe.schedule.warmup >= recipe.steps:
        notes.append(
            f"{recipe.steps} steps end within the warm-up of {recipe.schedule.warmup}: the rate never reaches its peak"
        )
    for path in sorted(folder.glob("step-*.partial")):
        shutil.rmtree(path, ignore_errors=True)
        notes.append(f"{path.name} was never completed; removed")
    if (folder / RECIPE).is_file() and not checkpoints.complete(folder):
        notes.append("no checkpoint of this run is left: it begins again")
    return notes


def check_same(recipe: Recipe, folder: Path) -> None:
    """Raises UsageError where the folder's run is another one, naming what differs."""
    try:
        past = recipes.read(folder / RECIPE)
    except UsageError as error:
        raise UsageError(f"{folder / RECIPE}: {error}; bring this file back, or name another folder") from None
    now = recipe.schedule
    schedule = dataclasses.replace(past.schedule, steps=now.steps, tokens=now.tokens, micro=now.micro)
    then, now = asdict(dataclasses.replace(past, schedule=schedule)), asdict(recipe)
    for section in ("model", "data", "optimiser", "schedule", "distill", "seed"):
        if then[section] != now[section]:
            tables = isinstance(then[section], dict) and isinstance(now[section], dict)
            keys = [key for key in now[section] if then[section][key] != now[section][key]] if tables else []
            what = f"{section}.{keys[0].rstrip('_')}" if keys else section
            raise UsageError(f"{folder}: holds a run with another {what}; name another folder, or the same recipe")


def accept(recipe: Recipe, folder: Path, origin: Origin) -> None:
    """Store the recipe, and what it goes on from: it can run, and the folder is its own from now on."""
    text, path = recipes.text(recipe), folder / RECIPE
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with replacing(folder) as aside:
        origin.keep(folder, aside)
        aside(RECIPE).write_text(text, encoding="utf-8")
