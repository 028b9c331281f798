"""leanlm distill RECIPE: make a student of a teacher, stage by stage, or go on with it."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from leanlm.cli import sizes
from leanlm.cli.train import Settings


@dataclass(frozen=True)
class Command:
    """Distil a teacher into a student with other mixers. Ctrl-C saves a checkpoint first; the same command goes on."""

    recipe: tyro.conf.Positional[str]
    """A recipe file, or a name from `leanlm recipe list`, with a [distill] section."""
    size: str = ""
    """Which of the recipe's sizes, where it has some."""
    teacher: str = ""
    """Another teacher than the recipe's, for all stages: a folder, a name or a hub id. A llamba student takes its shape."""
    stages: tuple[str, ...] = ()
    """Which of the recipe's stages; all of them where none are named. Each goes on from those before it that are done."""
    out: Path | None = None
    """Folder of the distillation; runs/NAME where none is given."""
    set: Settings = ()
    """Change a setting of the recipe; may be given several times."""
    json: bool = False
    """Print the report as JSON."""


def run(command: Command) -> None:
    from leanlm.cli.progress import Line
    from leanlm.distill import sequence, stages
    from leanlm.train import processes, recipe

    settings = recipe.read(recipe.path_of(command.recipe), command.set, command.size)
    folder = command.out or Path("runs") / settings.name
    if command.teacher:
        settings = stages.taught_by(settings, command.teacher, folder)
    leader = processes.find().leader
    if leader:
        print(f"{settings.name} in {folder}", file=sys.stderr)
    found = sequence.distil(settings, folder, Line(), command.stages)
    if found is None or not leader:
        return
    print(json.dumps(found, indent=2) if command.json else "\n".join(lines(found, folder)))


def lines(found: dict, folder: Path) -> list[str]:
    """The report as a person reads it."""
    told = [line for stage in found["stages"] for line in stage_lines(stage, found["layers"])]
    if "loss" in found["student"]:
        told.append(held_out(found))
    if found["memory"]:
        teacher, student = found["memory"]["teacher"], found["memory"]["student"]
        more = f", {sizes.size(student['a_token'])} a further token" if student["a_token"] else ", however long the text"
        told.append(
            f"memory of a text, 16 bits: student {sizes.size(student['bytes'])}{more}; teacher {sizes.size(teacher['bytes'])} "
            f"at {found['memory']['length']} tokens, {sizes.size(teacher['a_token'])} a further token"
        )
    return [*told, f"{sizes.count(found['tokens'])} tokens in all; the student is in {folder / 'model'}"]


def stage_lines(stage: dict, layers: list[int] | None) -> list[str]:
    if "loss" not in stage:
        return [f"{stage['name']}: {sizes.count(stage['tokens'])} tokens; its log is not there any more"]
    first, last = stage["loss"]
    bits = f", held-out {stage['bits_per_byte']:.3f} bits/byte" if "bits_per_byte" in stage else ""
    told = [f"{stage['name']}: loss {first:.3f} to {last:.3f}, {sizes.count(stage['tokens'])} tokens{bits}"]
    for layer, (first, last) in zip(layers or [], stage.get("layers", [])):
        told.append(f"  layer {layer:>2}  {first:.3f} to {last:.3f}")
    return told


def held_out(found: dict) -> str:
    said = f"held-out text: student {quality(found['student'])}"
    if not found["teacher"]:
        return f"{said}; the teacher is not there any more"
    return f"{said}, teacher {quality(found['teacher'])}: {found['kept']:.1%} of its quality kept"


def quality(measured: dict) -> str:
    """ "1.234 bits/byte", or nats where the bytes of the text are not known."""
    bits = measured["bits_per_byte"]
    return f"{measured['loss']:.3f} nats/token" if bits is None else f"{bits:.3f} bits/byte"
