"""The Spectra study in small: FloatLM and TriLM twins at three sizes, and what TriLM's two changes of schedule are worth.

Every run is a folder of its own that a second call skips when finished and goes on with when not. Seeds vary weights and the
order of the data; a gap is the mean over seeds of the difference between twins, its error the standard error of that mean.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leanlm.study import experiment
from leanlm.study.experiment import Corpus, Tell, mean, write
from leanlm.study.spectra_charts import ablation_chart, gap_chart
from leanlm.train import recipe as recipes
from leanlm.train.recipe import Recipe

FLOAT, TERNARY = "floatlm", "trilm"
BOTH = "both changes"
ABLATIONS = ("lr change only", "weight decay change only", "neither")  # of the middle size


@dataclass(frozen=True)
class Budget:
    """Which twins are trained, how long, and with how many seeds; `twins` is what follows the families' names."""

    twins: str
    sizes: tuple[str, str, str]
    steps: int
    batch: int
    seeds: int
    compute: dict = dataclasses.field(default_factory=dict)


BUDGETS = {
    "smoke": Budget("-laptop", ("0.6m", "1.7m", "3.4m"), steps=12, batch=2, seeds=2),
    "evening": Budget("-laptop", ("0.6m", "1.7m", "3.4m"), steps=400, batch=16, seeds=2),  # 1.6M tokens a run
    "night": Budget("-laptop", ("0.6m", "1.7m", "3.4m"), steps=1000, batch=16, seeds=3),  # 4.1M tokens a run
    "gpu": Budget(
        "", ("99m", "190m", "390m"), steps=4000, batch=64, seeds=3, compute={"dtype": "bfloat16"}
    ),  # 0.52B tokens a run
}


@dataclass(frozen=True)
class Run:
    family: str
    size: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}-{self.variant.replace(' ', '-')}-seed{self.seed}"


def runs(budget: Budget) -> Iterator[Run]:
    """All runs, those of the first seed first, so that an interrupted study has something of everything."""
    for seed in range(1, budget.seeds + 1):
        for size in budget.sizes:
            yield Run(FLOAT, size, "as published", seed)
            yield Run(TERNARY, size, BOTH, seed)
        for variant in ABLATIONS:
            yield Run(TERNARY, budget.sizes[1], variant, seed)


def study(
    budget: Budget,
    folder: Path,
    data: Path | None = None,
    held: Path | None = None,
    report: Tell = lambda _: None,
) -> dict:
    """Do what is not done yet of the study in `folder`; returns its results and writes them as results.json, gap.svg and
    ablation.svg, after every run.

    `data` and `held` are folders of shards; without them the twins' own text is used. `report` is told what the runs tell. A
    stop by Ctrl-C raises KeyboardInterrupt once the run at work has saved.
    """
    recipe = recipes.read(recipes.path_of(FLOAT + budget.twins), (), budget.sizes[0])
    corpus = experiment.corpus(recipe, folder, data, held, report)
    planned = {run.name: (dataclasses.asdict(run), recipe_of(run, budget, corpus)) for run in runs(budget)}

    def after(results: list[dict]) -> None:
        summary = summarise(results, budget)
        write(folder, "results.json", json.dumps(summary, indent=2))
        write(folder, "gap.svg", gap_chart(summary))
        write(folder, "ablation.svg", ablation_chart(summary))

    experiment.run_all(planned, folder, report, after)
    return json.loads((folder / "results.json").read_text())


def recipe_of(run: Run, budget: Budget, corpus: Corpus) -> Recipe:
    """The twins' own recipe with the budget's steps, the shared corpus, and the schedule of the variant."""
    recipe = recipes.read(recipes.path_of(run.family + budget.twins), (), run.size)
    changes = tuple(c for c in recipe.schedule.changes if _has(run.variant, c))
    schedule = dataclasses.replace(
        recipe.schedule, steps=budget.steps, tokens=0, batch=budget.batch, warmup=max(1, budget.steps // 20), changes=changes
    )
    data = recipe.data.of_shards(*corpus)
    keep = dataclasses.replace(
        recipe.keep, checkpoint=max(20, budget.steps // 10), validate=max(20, budget.steps // 2), samples=()
    )
    compute = dataclasses.replace(recipe.compute, **budget.compute)
    parts = {"schedule": schedule, "data": data, "keep": keep, "compute": compute}
    return dataclasses.replace(recipe, name=run.name, seed=run.seed, **parts)


def _has(variant: str, change: recipes.Change) -> bool:
    if variant == "neither":
        return False
    return {"lr change only": change.weight_decay is None, "weight decay change only": change.lr is None}.get(variant, True)


def summarise(results: list[dict], budget: Budget) -> dict:
    """Mean and standard error over seeds: losses and gaps by size, losses by schedule; an error is None with one seed."""
    by = {(r["family"], r["size"], r["variant"], r["seed"]): r for r in results}
    sizes, schedules = [], []
    for size in budget.sizes:
        seeds = [
            s for s in range(1, budget.seeds + 1) if {(FLOAT, size, "as published", s), (TERNARY, size, BOTH, s)} <= by.keys()
        ]
        if not seeds:
            continue
        floats = [by[FLOAT, size, "as published", s] for s in seeds]
        ternary = [by[TERNARY, size, BOTH, s] for s in seeds]
        gaps = [t["loss"] - f["loss"] for t, f in zip(ternary, floats)]
        parameters = floats[0]["parameters"]
        losses = {"float": mean([f["loss"] for f in floats]), "ternary": mean([t["loss"] for t in ternary])}
        sizes.append({"size": size, "parameters": parameters, **losses, "gap": mean(gaps)})
    for variant in (BOTH, *ABLATIONS):
        losses = [r["loss"] for r in results if (r["family"], r["size"], r["variant"]) == (TERNARY, budget.sizes[1], variant)]
        if losses:
            schedules.append({"schedule": variant, **mean(losses)})
    return {"sizes": sizes, "schedules": schedules, "runs": results}
