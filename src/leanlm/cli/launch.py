"""leanlm launch RECIPE: the command that trains it on many processes, printed or written, never run."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

from leanlm.cli.train import Settings
from leanlm.errors import UsageError


@dataclass(frozen=True)
class Command:
    """Print the torchrun command (with --slurm: a batch script) that trains a recipe on many processes."""

    recipe: tyro.conf.Positional[str]
    """A recipe file, or a name from `leanlm recipe list`."""
    size: str = ""
    """Which of the recipe's sizes, where it has some."""
    out: Path | None = None
    """Folder of the run, on a disk that all nodes share; runs/NAME where none is given."""
    set: Settings = ()
    """Change a setting of the recipe; may be given several times."""
    nodes: int = 1
    """Machines."""
    gpus: int = 8
    """Processes of a machine, a GPU each (without GPUs: processes)."""
    slurm: bool = False
    """A script for sbatch, which queues again when its time is over, and goes on."""
    time: str = "24:00:00"
    """For --slurm: the wall-clock limit."""
    partition: str = ""
    """For --slurm: the partition."""
    write: Path | None = None
    """Write it to this file instead of printing it."""


def run(command: Command) -> None:
    from leanlm.train import launch, recipe

    settings = recipe.read(recipe.path_of(command.recipe), command.set, command.size)
    processes = command.nodes * command.gpus
    verb = "distill" if settings.distill else "train"
    job = launch.Job(settings.name, (verb, *_words(command)), command.nodes, command.gpus, command.time, command.partition)
    if settings.schedule.batch % processes:
        raise UsageError(
            f"{settings.name}: {settings.schedule.batch} windows cannot be divided among {processes} processes; "
            f"--set schedule.batch={max(1, round(settings.schedule.batch / processes)) * processes}"
        )
    text = launch.sbatch(job) if command.slurm else launch.torchrun(job) + "\n"
    if command.write is None:
        print(text, end="")
        return
    if command.write.exists():
        raise UsageError(f"{command.write}: exists already; name another file")
    from leanlm.checkpoint.aside import replacing

    with replacing(command.write.parent) as aside:
        aside(command.write.name).write_text(text, encoding="utf-8")
    how = f"sbatch {shlex.quote(str(command.write))}" if command.slurm else f"sh {shlex.quote(str(command.write))}"
    print(how)


def _words(command: Command) -> tuple[str, ...]:
    """What follows the verb."""
    words = [command.recipe]
    words += ["--size", command.size] if command.size else []
    words += ["--out", str(command.out)] if command.out else []
    for setting in command.set:
        words += ["--set", setting]
    return tuple(words)
