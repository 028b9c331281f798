"""leanlm state info FILE | fork FILE NEW: look into a saved session or state, or copy it, without its model."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from leanlm.cli import sizes
from leanlm.errors import UsageError

ENDINGS = {"eos": "end token", "stop": "stop string", "length": "length"}


@dataclass(frozen=True)
class Command:
    """Tell what a session or state file holds, or fork it: the copy goes its own way from there."""

    action: tyro.conf.Positional[Literal["info", "fork"]]
    """What to do."""
    file: tyro.conf.Positional[Path]
    """A file written by generate --session, chat, or Model.save_state."""
    new: tyro.conf.Positional[Path | None] = None
    """Where the fork goes."""
    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    from leanlm.checkpoint import state_file

    if command.action == "fork" and command.new is None:
        raise UsageError(f"state fork {command.file}: name the new file too")
    if command.action == "info" and command.new is not None:
        raise UsageError(f"state info takes one file; {command.new} is a second one")
    found = about(state_file.describe(command.file))
    if command.action == "info":
        print(json.dumps(found, indent=2) if command.json else text(found))
    else:
        fork(command.file, command.new)
        print(command.new)


def about(described: dict) -> dict:
    """The findings in one flat table; conversation entries are None for a state that is no session."""
    extra = described.pop("extra")
    session = bool(extra.get("session"))
    return {
        **described,
        "kind": "session" if session else "state",
        "tokens": extra.get("tokens") if session else None,
        "turns": len(extra.get("turns", ())) if session else None,
        "finish": extra.get("finish") if session else None,
        "text": extra.get("text"),
    }


def text(found: dict) -> str:
    lines = [
        ("kind", found["kind"]),
        ("model", f"{found['summary']}, {found['dtype']}"),
        ("read", ", ".join(map(str, found["position"])) + " tokens"),
        ("file", sizes.size(found["nbytes"])),
    ]
    if found["capacity"]:
        lines.append(("capacity", f"{found['capacity']} tokens of full attention"))
    if found["kind"] == "session":
        lines.append(("turns", f"{found['turns']} of {found['tokens']} tokens together"))
        lines.append(("ended by", ENDINGS.get(found["finish"], "nothing yet")))
    if found["text"]:
        lines.append(("text", shortened(found["text"])))
    return "\n".join(f"{name:10}{value}" for name, value in lines)


def shortened(conversation: str, length: int = 200) -> str:
    """The end of the text, on one line."""
    line = conversation.replace("\n", "\\n")
    return line if len(line) <= length else "... " + line[-length:]


def fork(file: Path, new: Path) -> None:
    """Copy, written aside and renamed; raises UsageError where `new` exists."""
    from leanlm.checkpoint.aside import replacing

    if new.exists():
        raise UsageError(f"{new}: exists already; a fork does not replace anything")
    with replacing(new.parent) as aside:
        shutil.copyfile(file, aside(new.name))
