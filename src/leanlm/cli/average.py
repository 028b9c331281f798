"""leanlm average RUN: a model of the mean of a run's newest checkpoints."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Command:
    """Make a model of the mean of a run's newest checkpoints: often better than the last while the learning rate is high."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    last: int | None = None
    """How many checkpoints; all that there are where none is given (the recipe's keep.last says how many are kept)."""
    out: Path | None = None
    """Folder of the model; RUN/average where none is given."""


def run(command: Command) -> None:
    from leanlm.train.averaging import average

    out = command.out or command.run / "average"
    used = average(command.run, command.last, out)
    print(f"the mean of {', '.join(path.name for path in used)}", file=sys.stderr)
    print(out)
