"""A run's log: a JSON line for every report."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from leanlm.checkpoint.aside import replacing
from leanlm.errors import LeanLMError
from leanlm.train.report import Report

LOG = "log.jsonl"


def add(folder: Path, report: Report) -> None:
    """Append what a report says."""
    record = {name: value for name, value in asdict(report).items() if value not in (None, "")}
    try:
        with (folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise LeanLMError(f"{folder / LOG}: cannot write ({error.strerror}); checkpoints are as they were") from None


def records(folder: Path) -> Iterator[dict]:
    """What the log of the run in `folder` says, in order; a line that a killed process left half-written says nothing."""
    path = folder / LOG
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def forget_after(folder: Path, step: int) -> None:
    """Take out of the log what it says of steps after `step`, which are to be done again, and what is half-written."""
    path = folder / LOG
    kept = "".join(json.dumps(record) + "\n" for record in records(folder) if record["step"] <= step)
    if path.is_file() and path.read_text(encoding="utf-8") != kept:
        with replacing(folder) as aside:
            aside(LOG).write_text(kept, encoding="utf-8")
