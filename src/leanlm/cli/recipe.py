"""leanlm recipe list | show NAME | cp NAME FILE: the recipes that come with the package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

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


def run(command: Command) -> None:
    from leanlm.checkpoint.aside import replacing
    from leanlm.train import recipe

    if command.action == "list":
        print("\n".join(recipe.shipped()))
        return
    if not command.name:
        raise UsageError(f"recipe {command.action}: name one of {', '.join(recipe.shipped())}")
    path = recipe.path_of(command.name)
    if command.action == "show":
        print(path.read_text(encoding="utf-8"), end="")
        return
    target = command.file / path.name if command.file.is_dir() else command.file
    for source, copy in ((path, target), *((p, target.with_name(p.name)) for p in path.parent.glob(f"{path.stem}-*.txt"))):
        if copy.exists():
            raise UsageError(f"{copy}: exists already; name another file")
        with replacing(copy.parent) as aside:
            aside(copy.name).write_bytes(source.read_bytes())
    print(target)
