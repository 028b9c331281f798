"""leanlm recipe list | show NAME | cp NAME FILE: the recipes that come with the package."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from leanlm.cli import sizes
from leanlm.errors import UsageError


@dataclass(frozen=True)
class Command:
    """List the recipes that come with the package, print one, or copy one out to change it."""

    action: tyro.conf.Positional[Literal["list", "show", "cp"]]
    """What to do."""
    name: tyro.conf.Positional[str] = ""
    """A recipe, for show and cp."""
    file: tyro.conf.Positional[Path] = Path()
    """Where cp puts the copy: a new file, or a folder."""
    json: bool = False
    """Print JSON, for list."""


def run(command: Command) -> None:
    from leanlm.train import recipe

    if command.action == "list":
        show_list(command.json)
        return
    if not command.name:
        raise UsageError(f"recipe {command.action}: name one of {', '.join(recipe.shipped())}")
    path = recipe.path_of(command.name)
    if command.action == "show":
        print(path.read_text(encoding="utf-8"), end="")
        return
    print(copy(path, command.file / path.name if command.file.is_dir() else command.file))


def show_list(as_json: bool) -> None:
    from leanlm.train import recipe

    rows = [row(recipe.path_of(name)) for name in recipe.shipped()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from leanlm.cli import tables

    table = Table("name", "parameters", "tokens", "--size", box=None, pad_edge=False)
    for one in rows:
        least, *_, most = (*one["parameters"], one["parameters"][-1])
        parameters = sizes.count(least) if least == most else f"{sizes.count(least)} to {sizes.count(most)}"
        table.add_row(one["name"], parameters, sizes.count(one["tokens"]), ", ".join(one["sizes"]))
    tables.console().print(table)


def row(path: Path) -> dict:
    """A recipe's name, its sizes and their parameters, the tokens of a run."""
    from leanlm import families
    from leanlm.model import cost
    from leanlm.train import recipe

    found = recipe.sizes(path)
    read = [recipe.read(path, (), size) for size in found or ("",)]
    configs = [families.get(r.model.family).to_config(r.model.config) for r in read]
    return {
        "name": path.stem,
        "sizes": list(found),
        "parameters": [cost.parameters(config) for config in configs],
        "tokens": read[0].steps * read[0].schedule.batch * read[0].data.length,
    }


def copy(path: Path, target: Path) -> Path:
    """Copy a recipe and the lists beside it; returns the copy. Raises UsageError where one would overwrite a file."""
    from leanlm.checkpoint.aside import replacing

    for source, made in ((path, target), *((p, target.with_name(p.name)) for p in path.parent.glob(f"{path.stem}-*.txt"))):
        if made.exists():
            raise UsageError(f"{made}: exists already; name another file")
        with replacing(made.parent) as aside:
            aside(made.name).write_bytes(source.read_bytes())
    return target
