"""What studies have in common: one text for all runs, runs skipped when done and gone on with when not, means with errors."""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from leanlm.api import load
from leanlm.checkpoint.aside import replacing
from leanlm.data.shards import Shards
from leanlm.errors import UsageError
from leanlm.evaluate import loss
from leanlm.model import cost, flops
from leanlm.train import origin, start
from leanlm.train.loop import train
from leanlm.train.recipe import Recipe
from leanlm.train.report import Report

Tell = Callable[[Report], None]
Corpus = tuple[Path, Path]  # shards to learn from and held-out ones
Planned = Mapping[str, tuple[dict, Recipe]]  # a run's name -> what tells it from others, its recipe


def corpus(recipe: Recipe, folder: Path, data: Path | None, held: Path | None, report: Tell) -> Corpus:
    """The folders given, or shards made in `folder` of the text that `recipe` reads. Raises UsageError where there is none."""
    if (data is None) != (held is None):
        raise UsageError("--data and --held go together: folders of shards to learn from, and of held-out ones")
    if data is not None:
        return data, held
    if not recipe.data.source:
        raise UsageError("this budget trains on shards of yours: --data FOLDER --held FOLDER")
    fresh = origin.fresh(recipe)
    return start.shards(recipe, folder / "corpus", fresh, lambda text: report(Report(0, recipe.steps, note=text)))


def run_all(
    planned: Planned, folder: Path, report: Tell, after: Callable[[list[dict]], None], run: Callable | None = None
) -> None:
    """Train all that is planned and store the results; `after` every run, finished now or before, is told those there are.
    `run`, called as `train`, is what makes the model in the run's folder. Ctrl-C raises KeyboardInterrupt once the run at work
    has saved."""
    results = []
    for number, (name, (labels, recipe)) in enumerate(planned.items(), 1):
        where = folder / name
        if not (where / "result.json").is_file():
            report(Report(0, recipe.steps, note=f"{number} of {len(planned)}: {name}"))
            found = labels | result(recipe, where, report, run or train)
            write(where, "result.json", json.dumps(found, indent=2))
        results.append(json.loads((where / "result.json").read_text()))
        after(results)


def result(recipe: Recipe, where: Path, report: Tell, run: Callable) -> dict:
    """Train, or go on; what the finished model, as written, makes of all held-out text."""
    run(recipe, where, report)
    model = load(where / "model")
    held = loss.in_windows(model.module, Shards(recipe.data.held), recipe.data.length)
    tokens = recipe.steps * recipe.schedule.batch * recipe.data.length
    return {
        "parameters": cost.parameters(model.config),
        "tokens": tokens,
        "flops": flops.training(model.config, recipe.data.length) * tokens,
        "loss": held.per_token,
        "bits_per_byte": held.bits_per_byte,
    }


def mean(values: list[float]) -> dict:
    """With its standard error, None for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "error": error, "seeds": len(values)}


def write(folder: Path, name: str, text: str) -> None:
    with replacing(folder) as aside:
        aside(name).write_text(text, encoding="utf-8")
