"""A leap of the loss is told once, and its end; noise and ordinary progress are not."""

import random

from leanlm.train.spikes import YOUNG, Spikes


def said(losses) -> list[str]:
    spikes = Spikes()
    return [text for step, loss in enumerate(losses, 1) if (text := spikes(step, loss))]


def noisy(steps: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [8 * step**-0.2 + draw.gauss(0, 0.05) for step in range(1, steps + 1)]


def test_ordinary_runs_are_silent():
    assert not any(said(noisy(2000, seed)) for seed in range(5))


def test_a_leap_is_told_once_and_its_end():
    losses = noisy(400)
    losses[300:320] = [loss + 3 for loss in losses[300:320]]
    first, last = said(losses)
    assert first.startswith("step 301: the loss leapt") and "optimiser.lr" in first
    assert last.startswith("step 321: the loss is back") and "20 steps after" in last


def test_the_first_steps_are_not_judged():
    assert not said([9.0] * (YOUNG - 1) + [12.0])
