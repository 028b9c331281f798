"""A learning rate to begin with: rising rates on a fresh model, a step each, until the loss runs away (Smith 2017,
arXiv 1506.01186, section 3.3)."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from leanlm.checkpoint.aside import replacing
from leanlm.data.feed import feed
from leanlm.errors import CheckFailed, UsageError
from leanlm.train import chart, loop, optimiser, parallel, start
from leanlm.train import origin as origins
from leanlm.train.checkpoints import Progress
from leanlm.train.loss import Objective
from leanlm.train.precision import LossScale
from leanlm.train.processes import Processes, joined
from leanlm.train.recipe import Recipe
from leanlm.train.report import Report
from leanlm.train.schedule import Rates

STEPS = 80
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTH = 0.8  # of the running mean of the loss
AWAY = 1.5  # times the least loss so far: it has run away
BACK = 10.0  # the rate of the least loss is on the brink; this much lower is safe


@dataclass(frozen=True)
class Found:
    """The rate to begin with, the rates tried and the smoothed losses after them, and where the curve is drawn."""

    lr: float
    rates: list[float]
    losses: list[float]
    chart: Path


def find(recipe: Recipe, folder: Path, report: Callable[[Report], None] = lambda _: None) -> Found:
    """Train the recipe's model, as it begins, on its first batches at rates from 1e-6 on. A run in `folder` is neither read
    nor touched; lr-finder.svg is drawn there. Raises UsageError where the loss never falls."""
    with joined() as processes:
        if processes.size > 1:
            raise UsageError("the learning-rate finder runs in one process; start it without torchrun")
        with tempfile.TemporaryDirectory(prefix="leanlm-") as own:
            tried = _tried(recipe, Path(own), report, processes)
    rates, losses = [rate for rate, _ in tried], [loss for _, loss in tried]
    best = losses.index(min(losses))
    if best == 0:
        raise UsageError(f"{recipe.name}: the loss falls at no rate from {LOWEST:g} on; look at the data and model.init_std")
    with replacing(folder) as aside:
        curve = chart.Series("loss, running mean", rates, losses)
        drawn = chart.svg("Learning-rate finder", [curve], "learning rate", "nats per token", log_x=True)
        aside("lr-finder.svg").write_text(drawn, encoding="utf-8")
    return Found(rates[best] / BACK, rates, losses, folder / "lr-finder.svg")


def _tried(recipe: Recipe, folder: Path, report: Callable[[Report], None], processes: Processes) -> list[tuple[float, float]]:
    """(rate, smoothed loss that the step at it began with), up to where the loss runs away."""
    origin = origins.of(recipe, folder)
    material = start.material(recipe, folder, origin, lambda text: report(Report(0, STEPS, note=text)))
    material.check_fits(recipe, origin.module)
    aim = Objective(origin.module, recipe.optimiser.z_loss)
    objective = parallel.spread(aim, origin.parts(recipe), recipe.compute, processes)
    adam = optimiser.build(origin.module, recipe.optimiser)
    batches = feed(material.rows, 0, recipe.schedule.batch)
    progress, tried, mean = Progress(scale=LossScale.first(recipe.compute)), [], None
    for number in range(STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
        batch, targets = loop.fetch(batches, aim, processes)
        try:
            done = loop.step(
                objective, adam, batch, targets, Rates(rate, recipe.optimiser.weight_decay), recipe, progress, processes
            )
        except CheckFailed:
            break
        mean = done.loss if mean is None else SMOOTH * mean + (1 - SMOOTH) * done.loss
        tried.append((rate, mean))
        report(Report(number + 1, STEPS, note=f"lr {rate:.1e}: loss {done.loss:.3f}"))
        if mean > AWAY * min(loss for _, loss in tried):
            break
    return tried
