"""leanlm train RECIPE: run a recipe, go on with the run its folder holds, or tell beforehand what it will take."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from leanlm.errors import NotFound, UsageError

Settings = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="SECTION.KEY=VALUE")]


@dataclass(frozen=True)
class Command:
    """Train a recipe. Ctrl-C saves a checkpoint first; the same command goes on from it."""

    recipe: tyro.conf.Positional[str]
    """A recipe file, or a name from `leanlm recipe list`."""
    size: str = ""
    """Which of the recipe's sizes, where it has some."""
    out: Path | None = None
    """Folder of the run; runs/NAME where none is given."""
    set: Settings = ()
    """Change a setting of the recipe; may be given several times."""
    plan: bool = False
    """Train nothing; tell memory, arithmetic, speed and days."""
    on: str = "here"
    """For --plan: the device; v100, a100, h100, h200, b200, or here."""
    processes: int = 1
    """For --plan: how many processes, one device each."""
    per_node: int = 8
    """For --plan: processes of a machine."""
    mfu: float | None = None
    """For --plan: the share of the device's peak to assume, recomputed blocks counted."""
    find_lr: bool = False
    """Train nothing; try rising learning rates on the fresh model for a few steps and name one to begin with."""
    json: bool = False
    """Print JSON, for --plan and --find-lr."""


def run(command: Command) -> None:
    from leanlm.train import recipe

    settings = recipe.read(recipe.path_of(command.recipe), command.set, command.size)
    if settings.distill is not None and not command.plan:
        raise UsageError(f"{settings.name}: learns from a teacher; use leanlm distill {command.recipe}")
    if command.plan and command.find_lr:
        raise UsageError("--plan and --find-lr: one at a time")
    if command.plan:
        plan(command, settings)
        return
    folder = command.out or Path("runs") / settings.name
    if command.find_lr:
        find_lr(command, settings, folder)
        return
    from leanlm.cli.progress import Line
    from leanlm.train import processes
    from leanlm.train.loop import train

    leader = processes.find().leader
    if leader:
        print(f"{settings.name} in {folder}", file=sys.stderr)
    if (finished := train(settings, folder, Line())) is not None and leader:
        print(finished)


def plan(command: Command, settings) -> None:
    from leanlm.cli import plans
    from leanlm.train import hardware
    from leanlm.train.plan import UTILISATION, Cluster, make

    for flag, value in (("--processes", command.processes), ("--per-node", command.per_node)):
        if value < 1:
            raise UsageError(f"{flag} {value}: it must be at least 1")
    if command.mfu is not None and not 0 < command.mfu <= 1:
        raise UsageError(f"--mfu {command.mfu:g}: a share of the peak, from 0 to 1")
    cluster = Cluster(hardware.named(command.on), command.processes, min(command.per_node, command.processes))
    made = [make(run, cluster, command.mfu or UTILISATION, teacher) for run, teacher in runs(settings)]
    if command.json:
        told = [plans.as_dict(each) for each in made]
        print(json.dumps(told if settings.distill else told[0], indent=2))
    else:
        print("\n\n".join(map(plans.as_text, made)))
    for warning in dict.fromkeys(warning for each in made for warning in each.warnings):
        print(f"warning: {warning}", file=sys.stderr)


def runs(settings) -> Iterator[tuple]:
    """The recipe; of a distillation every stage, with its teacher's config, or None where it is not on this machine."""
    if settings.distill is None:
        yield settings, None
        return
    from leanlm.distill import stages, teacher

    for stage in stages.of(settings):
        name = stage.recipe.distill.teacher
        try:
            config = teacher.config_of(name, offline=True)
        except NotFound:
            print(f"warning: {name} is not on this machine: the plan of {stage.name} is without it", file=sys.stderr)
            yield stage.recipe, None
        else:
            stages.check(stage, config)
            yield stage.recipe, config


def find_lr(command: Command, settings, folder: Path) -> None:
    from leanlm.cli.progress import Line
    from leanlm.train.lr_finder import find

    found = find(settings, folder, Line())
    if command.json:
        print(json.dumps({"lr": found.lr, "rates": found.rates, "losses": found.losses, "chart": str(found.chart)}, indent=2))
        return
    print(f"--set optimiser.lr={found.lr:.1e}  (the recipe has {settings.optimiser.lr:.1e}; curve in {found.chart})")
