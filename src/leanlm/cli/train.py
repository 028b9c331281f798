"""leanlm train RECIPE: run a recipe, or go on with the run its folder holds."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Command:
    """Train a recipe. Ctrl-C saves a checkpoint first; the same command goes on from it."""

    recipe: tyro.conf.Positional[str]
    """A recipe file, or a name from `leanlm recipe list`."""
    out: Path | None = None
    """Folder of the run; runs/NAME where none is given."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="SECTION.KEY=VALUE")] = ()
    """Change a setting of the recipe; may be given several times."""


def run(command: Command) -> None:
    from leanlm.train import recipe

    settings = recipe.read(recipe.path_of(command.recipe), command.set)
    folder = command.out or Path("runs") / settings.name
    print(f"{settings.name} in {folder}", file=sys.stderr)

    from leanlm.train.loop import train

    print(train(settings, folder, Line()))


class Line:
    """The progress line: redrawn in place on a terminal, one line every 20 steps elsewhere."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.validated = ""
        self.mean: float | None = None

    def __call__(self, report) -> None:
        if report.bits_per_byte is not None:
            self.validated = f"  held-out {report.bits_per_byte:.3f} bits/byte"
        if report.note:
            self.print(f"{report.note}{self.validated if report.bits_per_byte is not None else ''}", keep=True)
        if report.loss is None:
            return
        left = (report.steps - report.step) * self.seconds(report)
        text = (
            f"step {report.step}/{report.steps}  loss {report.loss:.3f}{self.validated}  lr {report.lr:.2e}"
            f"  grad {report.grad_norm:.2f}  {report.tokens_per_second:,.0f} tokens/s  {clock(left)} left"
        )
        keep = report.bits_per_byte is not None or report.step == report.steps
        if self.terminal or keep or report.step % 20 == 0:
            self.print(text, keep)

    def seconds(self, report) -> float:
        """Seconds per step, averaged over about the last 50."""
        took = report.tokens / report.tokens_per_second
        self.mean = took if self.mean is None else 0.98 * self.mean + 0.02 * took
        return self.mean

    def print(self, text: str, keep: bool) -> None:
        if self.terminal:
            print(f"\r\033[K{text}", end="\n" if keep else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
