"""The miniature Spectra study: what is compared with what, and that an interrupted study comes to the same results."""

import dataclasses
import json

import numpy as np
import pytest

import tiny_runs
from leanlm.errors import UsageError
from leanlm.study import experiment, spectra, spectra_charts
from leanlm.study.spectra import BOTH, BUDGETS, FLOAT, TERNARY, Budget, Run
from leanlm.train import origin, start

TINY = Budget("-laptop", ("0.6m", "1.7m", "3.4m"), steps=2, batch=1, seeds=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of the twins' vocabulary and held-out ones, a few kilobytes each."""
    folder = tmp_path_factory.mktemp("corpus")
    recipe = tiny_runs.recipe(folder)
    data = dataclasses.replace(recipe.data, vocab_size=300, length=256)
    recipe = dataclasses.replace(recipe, data=data)
    start.material(recipe, folder, origin.fresh(recipe), lambda _: None)
    return folder / "data", folder / "held"


@pytest.mark.parametrize("name", BUDGETS)
def test_twins_differ_in_their_weights_and_schedules_alone(name, shards):
    budget = BUDGETS[name]
    assert len({run.name for run in spectra.runs(budget)}) == budget.seeds * 9
    for size in budget.sizes:
        one, other = (spectra.recipe_of(Run(f, size, v, 2), budget, shards) for f, v in ((FLOAT, ""), (TERNARY, BOTH)))
        assert one.model.config == other.model.config and one.data == other.data and one.seed == other.seed
        assert (one.steps, one.schedule.batch) == (other.steps, other.schedule.batch)
        assert (one.model.weights, other.model.weights) == ("float", "ternary")


def test_schedules_of_the_ablation(shards):
    def changes(variant):
        found = spectra.recipe_of(Run(TERNARY, "1.7m", variant, 1), TINY, shards).schedule.changes
        return [(c.lr is not None, c.weight_decay is not None) for c in found]

    lr, decay = (True, False), (False, True)
    assert changes(BOTH) == [lr, decay]
    assert [changes(v) for v in spectra.ABLATIONS] == [[lr], [decay], []]


@pytest.mark.slow
def test_an_interrupted_study_comes_to_the_same(shards, tmp_path, monkeypatch):
    whole = spectra.study(TINY, tmp_path / "whole", *shards)
    done, train = [], experiment.train

    def interrupted(recipe, folder, report):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(recipe.name)
        return train(recipe, folder, report)

    monkeypatch.setattr(experiment, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spectra.study(TINY, tmp_path / "cut", *shards)
    monkeypatch.setattr(experiment, "train", lambda recipe, *rest: done.append(recipe.name) or train(recipe, *rest))
    assert spectra.study(TINY, tmp_path / "cut", *shards) == whole
    assert len(done) == len(set(done)) == 9
    assert json.loads((tmp_path / "cut" / "results.json").read_text()) == whole
    assert len(whole["sizes"]) == 3 and len(whole["schedules"]) == 4 and len(whole["runs"]) == 9
    assert (tmp_path / "cut" / "gap.svg").read_text().count("<circle") == 3


def test_gaps_are_of_twins_and_errors_of_means():
    draw = np.random.default_rng(0)
    results = []
    for seed in (1, 2, 3):
        common = draw.normal()  # what a seed does to both twins cancels
        for size in TINY.sizes:
            for family, variant, loss in ((FLOAT, "as published", 2.0), (TERNARY, BOTH, 2.5 + 0.01 * seed)):
                run = {"family": family, "size": size, "variant": variant, "seed": seed}
                results.append({**run, "loss": loss + common, "parameters": 1000})
    summary = spectra.summarise(results, dataclasses.replace(TINY, seeds=3))
    gap = summary["sizes"][0]["gap"]
    assert gap["mean"] == pytest.approx(0.52) and gap["error"] == pytest.approx(0.01 / 3**0.5) and gap["seeds"] == 3
    assert summary["sizes"][0]["float"]["error"] > 0.1


def test_published_losses():
    """Evaluated at the sizes that the paper's table of losses names."""
    for parameters, ternary, float_ in ((99.7e6, 3.30, 2.99), (1.149e9, 2.58, 2.37), (3.989e9, 2.35, 2.18)):
        assert spectra_charts.published_loss("ternary", parameters) == pytest.approx(ternary, abs=0.02)
        assert spectra_charts.published_loss("float", parameters) == pytest.approx(float_, abs=0.02)


def test_data_and_held_go_together(shards, tmp_path):
    with pytest.raises(UsageError, match="go together"):
        spectra.study(TINY, tmp_path, shards[0])
    with pytest.raises(UsageError, match="shards of yours"):
        spectra.study(BUDGETS["gpu"], tmp_path)
