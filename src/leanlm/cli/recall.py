"""leanlm recall MODEL...: what models still know after so many tokens, and of so many things."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import tyro

from leanlm.cli import options
from leanlm.cli.bench import progress


@dataclass(frozen=True)
class Command:
    """Tell models something and ask for it later: accuracy, beside what guessing gives, and the nats by which having been told
    makes the right answer likelier.

    copy: a passage of random tokens is begun again; accuracy is the share of tokens that are the likeliest, the load how many
    are asked for. needle: sentences that give things numbers, in a text about people. pairs: random tokens, each followed by
    one of its own. Of these, accuracy is how often the right one of eight answers is the likeliest, the load how many were
    told."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders, names from `leanlm list`, hub ids; each may have a format: builtin-float@int4; --model where none is given."""
    kind: tuple[Literal["copy", "needle", "pairs"], ...] = ("copy", "needle", "pairs")
    """What is measured."""
    distances: tuple[int, ...] = (64, 256, 1024)
    """Tokens from where an answer is told to where it is asked for."""
    loads: tuple[int, ...] = (1, 8)
    """How much is told."""
    items: int = 32
    """Questions at every distance and load."""
    seed: int = 0
    """Of the texts."""
    stepwise: bool = False
    """Read one token after the other, as generating does, so that a state in few bits is rounded after each; slow."""
    json: bool = False
    """Print JSON."""
    source: options.Source = field(default_factory=options.Source)


def run(command: Command) -> None:
    found = []
    for name in command.models or (command.source.model,):
        points = list(measured(command, name))
        found.append({"model": name, "state_dtype": command.source.state_dtype, "points": points})
        if not command.json:
            show(name, points)
    if command.json:
        print(json.dumps(found, indent=2))


def measured(command: Command, name: str) -> Iterator[dict]:
    """The points of one model, kind by kind."""
    from leanlm import runtime
    from leanlm.evaluate import recall
    from leanlm.study import comparison

    plain, held = comparison.parse(name)
    model = options.load(dataclasses.replace(command.source, model=plain, format=held or command.source.format))
    asked = command.distances, command.loads, command.items
    for kind in command.kind:
        recall.check(model, kind, *asked)
    run = recall.stepwise(runtime.of(model.module)) if command.stepwise else None
    total = len(command.distances) * len(command.loads) * command.items
    try:
        for kind in dict.fromkeys(command.kind):
            points = recall.curve(
                model, kind, *asked, command.seed, lambda done, kind=kind: progress(f"{name}: {kind} {done}/{total}"), run
            )
            yield from map(dataclasses.asdict, points)
    finally:
        progress("")


def show(name: str, points: list[dict]) -> None:
    from leanlm.cli import tables

    table = tables.figures("kind", "distance", "load", "accuracy", "chance", "nats")
    for point in points:
        error = "" if point["stderr"] is None else f" ± {point['stderr']:.3f}"
        numbers = f"{point['accuracy']:.3f}{error}", f"{point['chance']:.3g}", f"{point['nats']:+.3f}"
        table.add_row(point["kind"], f"{point['distance']}", f"{point['load']}", *numbers)
    tables.console().print(name, table, sep="\n", markup=False)
