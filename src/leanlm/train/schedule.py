"""Learning rate and weight decay of every step, as functions of its number. Loads no torch."""

import math
from dataclasses import dataclass

from leanlm.train.recipe import Recipe, Schedule


@dataclass(frozen=True)
class Rates:
    """What a step is taken with."""

    lr: float
    weight_decay: float


def rates(step: int, recipe: Recipe) -> Rates:
    """The rates of step 0, 1, ...: lr is the peak that holds at this step times `factor`, so that a change of the peak moves
    what remains of the schedule with it (Spectra, arXiv 2407.12327, section 3.3)."""
    peak, decay = recipe.optimiser.lr, recipe.optimiser.weight_decay
    for change in recipe.schedule.changes:
        if step >= change.at * recipe.steps:
            peak = peak if change.lr is None else change.lr
            decay = decay if change.weight_decay is None else change.weight_decay
    return Rates(peak * factor(step, recipe.steps, recipe.schedule), decay)


def factor(step: int, steps: int, schedule: Schedule) -> float:
    """The share of the peak learning rate at a step: up to 1 over the warm-up, then down to `schedule.final`.

    Parabolic warm-up is 1 - (1 - x)^2, as fms-fsdp has it; the cooldown 1 - sqrt(x) of "wsd" is that of Haegele et al. 2024
    (arXiv 2405.18392).
    """
    if step < schedule.warmup:
        risen = (step + 1) / schedule.warmup
        return risen if schedule.warmup_shape == "linear" else 1 - (1 - risen) ** 2
    done = (step - schedule.warmup) / max(1, steps - schedule.warmup)
    cooling = schedule.cooldown * steps
    cooled = min(1.0, max(0.0, step - (steps - cooling)) / cooling) if cooling else 0.0
    left = {
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "constant": 1 - cooled,
        "wsd": 1 - math.sqrt(cooled),
    }[schedule.shape]
    return schedule.final + (1 - schedule.final) * left
