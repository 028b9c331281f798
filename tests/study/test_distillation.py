"""The distillation study: equal tokens in every arm, what arms differ in, its table, and that it runs and goes on."""

import dataclasses
from pathlib import Path

import pytest

from leanlm.distill import stages
from leanlm.study import distillation, experiment
from leanlm.study.distillation import ARMS, BUDGETS
from leanlm.train import origin, recipe, start
from tiny_runs import recipe as tiny_recipe

CORPUS = Path("data"), Path("held")


def tokens(made) -> int:
    return made.steps * made.schedule.batch * made.data.length


@pytest.mark.parametrize("name", BUDGETS)
def test_arms_have_equal_tokens(name):
    budget = BUDGETS[name]
    assert budget.seeds >= 2 and len(set(distillation.runs(budget))) == budget.seeds * len(ARMS)
    made = {arm: distillation.recipe_of(arm, 2, budget, CORPUS, Path("t")) for arm in ARMS}
    first = made["three stages"]
    assert all((r.model, r.data, r.seed) == (first.model, first.data, 2) for r in made.values())
    for arm, one in made.items():
        spent = [stage.tokens for stage in stages.of(one)] if one.distill else [tokens(one)]
        assert sum(spent) == tokens(one) == tokens(first) and min(spent) > 0 and len(spent) == max(1, len(ARMS[arm]))
        if one.distill:
            assert stages.of(one)[-1].recipe.optimiser.lr == 1.5e-3 and one.optimiser.lr == 3e-3
    if name != "smoke":
        shipped = stages.of(recipe.read(recipe.path_of("llamba-laptop")))
        shares = [[s.tokens / sum(t.tokens for t in some) for s in some] for some in (stages.of(first), shipped)]
        assert shares[0] == pytest.approx(shares[1], abs=0.01)


def test_from_scratch_is_trained_as_the_teacher_was():
    budget = BUDGETS["evening"]
    scratch, taught = (
        distillation.recipe_of("from scratch", 1, budget, CORPUS, Path("t")),
        distillation.teacher_recipe(budget, CORPUS),
    )
    assert scratch.distill is None and scratch.optimiser == taught.optimiser
    assert (scratch.schedule.shape, scratch.schedule.final) == (taught.schedule.shape, taught.schedule.final)


def test_rows_are_means_over_seeds():
    results = [{"arm": "teacher", "seed": 1, "bits_per_byte": 2.0, "tokens": 5}]
    results += [{"arm": arm, "seed": seed, "bits_per_byte": 2.0 + seed / 2, "tokens": 9} for seed in (1, 2) for arm in ARMS]
    found = distillation.summarise(results)
    assert found["teacher"] == 2.0 and [row["arm"] for row in found["arms"]] == list(ARMS)
    assert found["arms"][0]["bits_per_byte"] == {"mean": 2.75, "error": pytest.approx(0.25), "seeds": 2}
    assert found["arms"][0]["kept"]["mean"] == pytest.approx((2 / 2.5 + 2 / 3) / 2)
    assert distillation.summarise(results[:2])["arms"][0]["bits_per_byte"]["error"] is None


def test_it_runs_and_goes_on(tmp_path, monkeypatch):
    budget = dataclasses.replace(BUDGETS["smoke"], seeds=1)
    made = tiny_recipe(tmp_path / "text")
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, vocab_size=300, length=256))
    start.material(made, tmp_path / "text", origin.fresh(made), lambda _: None)
    corpus = tmp_path / "text" / "data", tmp_path / "text" / "held"
    found = distillation.study(budget, tmp_path / "study", *corpus)
    assert [row["arm"] for row in found["arms"]] == list(ARMS) and len(found["runs"]) == 1 + len(ARMS)
    assert (tmp_path / "study" / "three-stages-seed1" / "report.json").is_file()
    monkeypatch.setattr(experiment, "result", lambda *_: pytest.fail("what is done was done again"))
    assert distillation.study(budget, tmp_path / "study", *corpus) == found
