"""Flags from dataclasses: tyro parses, its errors become one line."""

import contextlib
import io
import re
from typing import TypeVar

import tyro

from leanlm.errors import UsageError

Command = TypeVar("Command")
STYLE = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.DisallowNone,
    tyro.conf.PositionalMetavarFromFieldName,
)


def parse(command: type[Command], argv: list[str], program: str) -> Command:
    """`command` filled from argv; both --top-k and --top_k are understood. Raises UsageError; --help prints and exits."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(command, args=argv, prog=program, config=STYLE)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{plain(said.getvalue())} (see {program} --help)") from None


def plain(boxed: str) -> str:
    """The message of tyro's error box in one line: its first paragraph, and the nearest flag where it names one.

    On a UTF-8 stdout the title stands in the frame; elsewhere it is a paragraph of its own.
    """
    text = re.sub("\x1b\\[[0-9;]*m", "", boxed).strip()
    paragraphs = [[]]
    for line in text.splitlines():
        line = line.strip(" │")
        if re.match("[╭╰─]|-{5}", line):
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    paragraphs = [p for p in paragraphs if p][0 if text.startswith("╭") else 1 :]
    if not paragraphs:
        return "flags not understood"
    message = " ".join(paragraphs[0])
    meant = next((p[1] for p in paragraphs if p[0].startswith("Perhaps you meant") and len(p) > 1), None)
    return f"{message}; did you mean {meant.split()[0]}?" if meant else message
