"""What the stages of a distillation are worth, in small: a Llamba made of a Llama in three stages, in the last one alone, and
trained from scratch, on equally many tokens.

There is one teacher; seeds vary the student's new weights and the order of the text. From scratch the student is trained as the
teacher was: with its rate and schedule.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leanlm.distill.sequence import distil
from leanlm.study import experiment
from leanlm.study.experiment import Corpus, Tell, mean, write
from leanlm.train import recipe as recipes
from leanlm.train.loop import train
from leanlm.train.recipe import Recipe

TEACHER, STUDENT = "llamba-laptop-teacher", "llamba-laptop"
ARMS = {"three stages": ("matrices", "states", "logits"), "logits alone": ("logits",), "from scratch": ()}


@dataclass(frozen=True)
class Budget:
    """Steps of the teacher, and of every student over all its stages, `batch` windows each; seeds of the students."""

    teacher: int
    steps: int
    batch: int
    seeds: int


BUDGETS = {
    "smoke": Budget(teacher=8, steps=8, batch=2, seeds=2),
    "evening": Budget(teacher=1500, steps=800, batch=16, seeds=2),  # 6.1M tokens, and 3.3M a student
    "night": Budget(teacher=4000, steps=2400, batch=16, seeds=2),  # 16.4M tokens, and 9.8M a student
}


def runs(budget: Budget) -> Iterator[tuple[str, int]]:
    """(arm, seed) of the students, those of the first seed first."""
    for seed in range(1, budget.seeds + 1):
        for arm in ARMS:
            yield arm, seed


def study(
    budget: Budget, folder: Path, data: Path | None = None, held: Path | None = None, report: Tell = lambda _: None
) -> dict:
    """Do what is not done yet of the study in `folder`; returns the teacher, a row for every arm and all runs, and writes them
    as results.json after every run. `data`, `held` and `report` as for the Spectra study. What the stages of a run came to is
    in its own report.json."""
    corpus = experiment.corpus(recipes.read(recipes.path_of(STUDENT)), folder, data, held, report)
    planned = {"teacher": ({"arm": "teacher", "seed": 1}, teacher_recipe(budget, corpus))}
    for arm, seed in runs(budget):
        recipe = recipe_of(arm, seed, budget, corpus, folder / "teacher" / "model")
        planned[recipe.name] = ({"arm": arm, "seed": seed}, recipe)

    def after(results: list[dict]) -> None:
        write(folder, "results.json", json.dumps(summarise(results), indent=2))

    experiment.run_all(planned, folder, report, after, lambda r, *rest: (distil if r.distill else train)(r, *rest))
    return json.loads((folder / "results.json").read_text())


def teacher_recipe(budget: Budget, corpus: Corpus) -> Recipe:
    return _on(corpus, recipes.read(recipes.path_of(TEACHER)), budget.teacher, budget.batch)


def recipe_of(arm: str, seed: int, budget: Budget, corpus: Corpus, teacher: Path) -> Recipe:
    """The student's recipe with the stages of an arm, in which they share the budget's steps as they share its own."""
    recipe = recipes.read(recipes.path_of(STUDENT))
    own = recipe.distill.stages
    stages = {name: own[name]["schedule"]["steps"] for name in ARMS[arm]}
    total, left = sum(stages.values()), budget.steps
    recipe = dataclasses.replace(_on(corpus, recipe, budget.steps, budget.batch), name=f"{arm.replace(' ', '-')}-seed{seed}")
    recipe = dataclasses.replace(recipe, seed=seed)
    if not stages:
        like = teacher_recipe(budget, corpus)
        schedule = dataclasses.replace(like.schedule, steps=budget.steps, warmup=_warmup(budget.steps))
        return dataclasses.replace(recipe, distill=None, optimiser=like.optimiser, schedule=schedule)
    tables = {}
    for name, share in stages.items():
        steps = left if name == list(stages)[-1] else budget.steps * share // total
        settings = {section: values for section, values in own[name].items() if section != "keep"}
        tables[name] = settings | {"schedule": {"steps": steps, "warmup": _warmup(steps)}}
        left -= steps
    return dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, teacher=str(teacher), stages=tables))


def _on(corpus: Corpus, recipe: Recipe, steps: int, batch: int) -> Recipe:
    """The recipe with so many steps on the shared corpus."""
    schedule = dataclasses.replace(recipe.schedule, steps=steps, tokens=0, batch=batch, warmup=_warmup(steps))
    data = recipe.data.of_shards(*corpus)
    often = max(20, steps // 10)
    keep = dataclasses.replace(recipe.keep, checkpoint=often, validate=2 * often, samples=())
    return dataclasses.replace(recipe, schedule=schedule, data=data, keep=keep)


def _warmup(steps: int) -> int:
    return max(1, steps // 20)


def summarise(results: list[dict]) -> dict:
    """The teacher's bits per byte; of every arm the mean over seeds, and the share of the teacher's quality kept: its bits per
    byte over the student's."""
    teacher = next(r for r in results if r["arm"] == "teacher")
    rows = []
    for arm in ARMS:
        found = [r for r in results if r["arm"] == arm]
        if found:
            rows.append({
                "arm": arm,
                "tokens": found[0]["tokens"],
                "bits_per_byte": mean([r["bits_per_byte"] for r in found]),
                "kept": mean([teacher["bits_per_byte"] / r["bits_per_byte"] for r in found]),
            })  # fmt: skip
    return {"teacher": teacher["bits_per_byte"], "arms": rows, "runs": results}
