"""The progress line of a run: redrawn in place on a terminal, one line every so many steps elsewhere. On stderr."""

import shutil
import sys

from leanlm.cli.sizes import count, size

SMOOTH = 0.98  # of the running mean of a step's seconds, about the last 50
EVERY = 20  # steps between two lines where nobody watches


class Line:
    """Called with every `leanlm.train.loop.Report`."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.validated = ""
        self.seconds: float | None = None

    def __call__(self, report) -> None:
        if report.validation is not None:
            self.validated = validation(report)
        if report.note:
            self.print(report.note + (f"  {self.validated}" if report.validation is not None else ""), keep=True)
        if report.loss is None:
            return
        if report.step == 1:  # of a run after others
            self.validated, self.seconds = self.validated if report.validation is not None else "", None
        took = report.tokens / report.tokens_per_second
        self.seconds = took if self.seconds is None else SMOOTH * self.seconds + (1 - SMOOTH) * took
        keep = report.validation is not None or report.step == report.steps
        if self.terminal or keep or report.step % EVERY == 0:
            self.print("  ".join(self.parts(report)), keep)

    def parts(self, report) -> list[str]:
        """The line's figures, those that a run does not have left out."""
        left = (report.steps - report.step) * self.seconds
        waited = None if report.waited is None else report.waited * report.tokens_per_second / report.tokens
        found = [
            f"step {report.step}/{report.steps}",
            f"loss {report.loss:.3f}",
            self.validated,
            f"lr {report.lr:.2e}",
            "" if report.grad_norm is None else f"grad {report.grad_norm:.2f}",
            f"{count(report.tokens_per_second)} tokens/s",
            "" if report.utilisation is None else f"MFU {report.utilisation:.0%}",
            "" if report.memory is None else size(report.memory),
            "" if waited is None else f"data {waited:.0%}",
            f"{report.skipped} skipped" if report.skipped else "",
            f"{clock(left)} left",
        ]
        return [part for part in found if part]

    def print(self, text: str, keep: bool) -> None:
        if self.terminal:
            shown = text if keep else text[: shutil.get_terminal_size().columns - 1]  # a longer one could not be redrawn
            print(f"\r\033[K{shown}", end="\n" if keep else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def validation(report) -> str:
    """ "held-out 2.31 nats, 1.330 bits/byte"."""
    bits = "" if report.bits_per_byte is None else f", {report.bits_per_byte:.3f} bits/byte"
    return f"held-out {report.validation:.3f} nats{bits}"


def clock(seconds: float) -> str:
    """ "1:02:03", with days in front where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02}:{seconds:02}"
