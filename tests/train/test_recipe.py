"""Recipes: strict, overridable, and stored as they were run."""

import pytest
import torch

from leanlm import families
from leanlm.errors import NotFound, UsageError
from leanlm.model.language_model import LanguageModel
from leanlm.train import optimiser, recipe


@pytest.mark.parametrize("name", recipe.shipped())
def test_shipped_recipes_survive_being_stored(name, tmp_path):
    read = recipe.read(recipe.path_of(name))
    recipe.write(read, tmp_path / "copy.toml")
    assert recipe.read(tmp_path / "copy.toml") == read


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.setps=3", "did you mean 'steps'"),
        ("schedule.steps=many", "schedule.steps: expected int"),
        ("schedule.steps=0", "at least 1"),
        ("schedule.shape=square", "none of .linear."),
        ("schedule", "section.key=value"),
        ("name.x=1", "not a section"),
        ("data.vocab_size=10", "need 257"),
        ("optimiser.lr=-1.0", "above 0"),
        ("optimiser.betas=[0.9]", "two numbers"),
        ("schedule.warmup=-5", "0 or more"),
        ("seed=99999999999999999999", r"2\^63"),
        ("threads=-1", "0 "),
        ('name="a\\nb"', "fit for a folder"),
    ],
)
def test_mistakes_name_the_path(override, message):
    with pytest.raises(UsageError, match=message):
        recipe.read(recipe.path_of("builtin"), (override,))


def test_overrides():
    read = recipe.read(recipe.path_of("builtin"), ("schedule.steps=7", "optimiser.lr=1e-4", "name=other"))
    assert (read.schedule.steps, read.optimiser.lr, read.name) == (7, 1e-4, "other")


def test_unknown_recipes_and_broken_files(tmp_path):
    with pytest.raises(NotFound, match="builtin"):
        recipe.path_of("bultin")
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(UsageError, match="not TOML"):
        recipe.read(tmp_path / "x.toml")


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
def test_schedule(shape):
    schedule = recipe.Schedule(steps=100, batch=1, warmup=10, shape=shape, final=0.1)
    rates = [optimiser.learning_rate(s, 1.0, schedule) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(1.0 if shape == "constant" else 0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_only_matrices_decay():
    read = recipe.read(recipe.path_of("builtin"))
    with torch.device("meta"):
        module = LanguageModel(families.get("rene").to_config(read.model.config))
    decayed, free = optimiser.build(module, read.optimiser).param_groups
    names = {id(p): n for n, p in module.named_parameters()}
    kept = {names[id(p)].rpartition(".")[2] for p in free["params"]}
    assert kept == {"A_log", "D", "dt_bias", "norm_weight", "bias", "weight"}
    assert all(p.ndim >= 2 for p in decayed["params"]) and free["weight_decay"] == 0
