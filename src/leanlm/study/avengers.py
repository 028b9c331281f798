"""The Avengers' three answers to the growing cache, in small: Llama-3, a Mamba-2 hybrid, telescoping Llamas (64, 128 slots).

All are trained on equally many tokens, 1,024 of a text: more than 64 slots reach. Seeds vary weights and the order of the text.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leanlm import families
from leanlm.model import cost
from leanlm.study import experiment
from leanlm.study.experiment import Corpus, Tell, mean, write
from leanlm.train import recipe as recipes
from leanlm.train.recipe import Recipe

MODELS = {  # recipes; the setting that tells how long a text the model is made for
    "llama3": ("avengers-llama3-1.8b-laptop", "max_expected_seq_len"),
    "mamba2": ("avengers-mamba2-2.9b-laptop", "max_position_embeddings"),
    "tele128": ("avengers-tele128-laptop", "max_expected_seq_len"),
    "tele64": ("avengers-tele64-laptop", "max_expected_seq_len"),
}


@dataclass(frozen=True)
class Budget:
    """Steps of `batch` windows of `length` tokens, and seeds."""

    steps: int
    batch: int
    length: int
    seeds: int


BUDGETS = {
    "smoke": Budget(steps=6, batch=1, length=256, seeds=2),
    "evening": Budget(steps=500, batch=4, length=1024, seeds=2),  # 2.0M tokens a run
    "night": Budget(steps=1500, batch=4, length=1024, seeds=3),  # 6.1M tokens a run
}


def runs(budget: Budget) -> Iterator[tuple[str, int]]:
    """(model, seed), those of the first seed first."""
    for seed in range(1, budget.seeds + 1):
        for model in MODELS:
            yield model, seed


def study(
    budget: Budget, folder: Path, data: Path | None = None, held: Path | None = None, report: Tell = lambda _: None
) -> list[dict]:
    """Do what is not done yet of the study in `folder`; returns a row for every model and writes them as results.json after
    every run. `data`, `held` and `report` as for the Spectra study."""
    corpus = experiment.corpus(recipes.read(recipes.path_of(MODELS["llama3"][0])), folder, data, held, report)
    planned = {
        f"{model}-seed{seed}": ({"model": model, "seed": seed}, recipe_of(model, seed, budget, corpus))
        for model, seed in runs(budget)
    }
    experiment.run_all(
        planned, folder, report, lambda results: write(folder, "results.json", json.dumps(summarise(results, budget), indent=2))
    )
    return json.loads((folder / "results.json").read_text())


def recipe_of(model: str, seed: int, budget: Budget, corpus: Corpus) -> Recipe:
    """The twin's own recipe with the budget's steps and windows, on the shared corpus."""
    name, context = MODELS[model]
    recipe = recipes.read(recipes.path_of(name), [f"model.config.{context}={budget.length}"])
    schedule = dataclasses.replace(
        recipe.schedule, steps=budget.steps, tokens=0, batch=budget.batch, warmup=max(1, budget.steps // 10)
    )
    data = dataclasses.replace(recipe.data.of_shards(*corpus), length=budget.length)
    often = max(20, budget.steps // 5)
    keep = dataclasses.replace(recipe.keep, checkpoint=often, validate=often, samples=())
    return dataclasses.replace(recipe, name=f"{model}-seed{seed}", seed=seed, schedule=schedule, data=data, keep=keep)


def summarise(results: list[dict], budget: Budget) -> list[dict]:
    """A row for every model: parameters, bytes of the state after `length` tokens in float32, mean bits per byte and loss."""
    rows = []
    for model, (name, _) in MODELS.items():
        found = [r for r in results if r["model"] == model]
        if found:
            recipe = recipes.read(recipes.path_of(name))
            config = families.get(recipe.model.family).to_config(recipe.model.config)
            rows.append({
                "model": model,
                "parameters": found[0]["parameters"],
                "tokens": found[0]["tokens"],
                "state_bytes": cost.state_bytes(config, budget.length, dtype_bytes=4),
                "bits_per_byte": mean([r["bits_per_byte"] for r in found]),
                "loss": mean([r["loss"] for r in found]),
            })  # fmt: skip
    return rows
