"""Notices a loss that leaps."""

import math
from dataclasses import dataclass

MEMORY = 0.98  # of the running mean and variance, about the last 50 steps
YOUNG = 50  # steps before which nothing is said
FAR = 6.0  # standard deviations that are a leap
NEAR = 2.0  # and that are back again
LEAST = 0.1  # nats; smaller leaps are not worth a word


@dataclass
class Spikes:
    """Told the loss of every step, says so once when it leaps above what it was, and once when it is back."""

    mean: float = 0.0
    variance: float = 0.0
    steps: int = 0
    since: int | None = None

    def __call__(self, step: int, loss: float) -> str:
        """A line for the person who runs it, or nothing."""
        deviation = math.sqrt(self.variance)
        usual = f"{self.mean:.2f} +- {deviation:.2f}"
        if self.since is None and self.steps >= YOUNG and loss - self.mean > max(FAR * deviation, LEAST):
            self.since = step
            return f"step {step}: the loss leapt to {loss:.2f} from {usual}; if it stays: lower optimiser.lr or optimiser.clip"
        if self.since is not None:
            if loss - self.mean > max(NEAR * deviation, LEAST):
                return ""
            began, self.since = self.since, None
            return f"step {step}: the loss is back at {loss:.2f}, {step - began} steps after its leap"
        self._learn(loss)
        return ""

    def _learn(self, loss: float) -> None:
        """Leaps are not learned from."""
        self.steps += 1
        keep = min(MEMORY, 1 - 1 / self.steps)
        apart = loss - self.mean
        self.mean += (1 - keep) * apart
        self.variance = keep * (self.variance + (1 - keep) * apart * apart)
