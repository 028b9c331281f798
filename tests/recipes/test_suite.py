"""The recipes that come with the package: every one can be run, is the model it says, and has a twin for a laptop."""

import sysconfig
from pathlib import Path

import pytest
import torch

from leanlm import families
from leanlm.families import catalog
from leanlm.model import cost
from leanlm.model.language_model import LanguageModel
from leanlm.train import recipe, schedule
from leanlm.train.recipe import Recipe

SPECTRA = ("99m", "190m", "390m", "560m", "830m", "1.1b", "1.5b", "2.4b", "3.9b")
SUITE = {  # recipe, size -> name in the catalogue
    ("rene", ""): "rene",
    ("mamba-7b", ""): "mamba-7b",
    ("avengers-llama3-1.8b", ""): "avengers-llama3-1.8b",
    ("avengers-tele64", ""): "avengers-tele64",
    ("avengers-tele128", ""): "avengers-tele128",
    ("avengers-mamba2-2.9b", ""): "avengers-mamba-2.9b",
    ("avengers-mamba2-9.8b", ""): "bamba-9b",
    **{("llamba", size): f"llamba-{size}" for size in ("1b", "3b")},
    ("llamba", "8b"): "llamba-8b-untied",
    **{("floatlm", size): f"floatlm-{size}" for size in SPECTRA},
    **{("trilm", size): f"trilm-{size}" for size in SPECTRA},
}
ALL = [(name, size) for name in recipe.shipped() for size in recipe.sizes(recipe.path_of(name)) or ("",)]
# Spectra, table 3: peak learning rates of FloatLM, and of TriLM before and after the middle.
PEAKS = {
    "99m": (4.0e-4, 2.4e-3, 1.5e-3), "190m": (4.0e-4, 2.4e-3, 1.5e-3), "390m": (3.0e-4, 1.8e-3, 1.2e-3),
    "560m": (2.8e-4, 1.6e-3, 1.1e-3), "830m": (2.5e-4, 1.5e-3, 1.0e-3), "1.1b": (2.2e-4, 1.3e-3, 9.0e-4),
    "1.5b": (2.0e-4, 1.2e-3, 8.0e-4), "2.4b": (2.0e-4, 1.2e-3, 8.0e-4), "3.9b": (1.5e-4, 1.2e-3, 8.0e-4),
}  # fmt: skip


def read(name: str, size: str = "") -> Recipe:
    return recipe.read(recipe.path_of(name), (), size)


def config_of(read: Recipe):
    return families.get(read.model.family).to_config(read.model.config)


@pytest.mark.parametrize(("name", "size"), ALL, ids="-".join)
def test_every_recipe_makes_a_model(name, size):
    made = read(name, size)
    config = config_of(made)
    with torch.device("meta"):
        module = LanguageModel(config)
    assert sum(p.numel() for p in module.parameters()) == cost.parameters(config)
    assert made.steps > made.schedule.warmup
    assert all(schedule.rates(step, made).lr > 0 for step in (0, made.steps // 2, made.steps - 1))


@pytest.mark.parametrize(("name", "size"), SUITE, ids="-".join)
def test_the_suite_has_the_published_shapes(name, size):
    known, config = catalog.resolve(SUITE[name, size]), config_of(read(name, size))
    assert cost.parameters(config) == known.parameters
    for field in ("d_model", "vocab_size", "padded_vocab_size", "tied", "layers"):
        ours, theirs = getattr(config, field), getattr(known.model, field)
        if SUITE[name, size] == "bamba-9b" and field == "layers":  # the same mixers, told in another format
            assert [[m.kind for m in layer] for layer in ours] == [[m.kind for m in layer] for layer in theirs]
        else:
            assert ours == theirs


@pytest.mark.parametrize("size", SPECTRA)
def test_spectras_schedules(size):
    floats, ternary = read("floatlm", size), read("trilm", size)
    before, at = ternary.optimiser.lr, ternary.schedule.changes
    assert (floats.optimiser.lr, before, at[0].lr) == PEAKS[size]
    assert (at[0].at, round(at[1].at, 2), at[1].weight_decay) == (0.5, 0.67, 0.0)
    assert ternary.model.weights == "ternary" and floats.model.weights == "float"
    shards = catalog.resolve(f"trilm-{size}").format.regions
    assert ternary.model.shards == shards and ternary.model.config["vocab_size"] % (128 * shards) == 0
    tokens = [r.steps * r.schedule.batch * r.data.length for r in (floats, ternary)]
    assert tokens == pytest.approx([300e9, 300e9], rel=1e-4)


def test_published_figures_of_the_others():
    avengers, mamba = read("avengers-llama3-1.8b"), read("mamba-7b")
    assert avengers.steps * avengers.schedule.batch * avengers.data.length == pytest.approx(100e9, rel=0.05)
    assert mamba.schedule.batch * mamba.data.length == pytest.approx(2e6, rel=0.05)
    last = schedule.rates(mamba.steps, mamba).lr
    assert last == pytest.approx(1e-5, rel=1e-3) and mamba.optimiser.z_loss == 1e-4
    bamba = read("avengers-mamba2-9.8b")
    assert bamba.schedule.batch * bamba.data.length == 1_572_864
    assert schedule.rates(bamba.steps, bamba).lr == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize("name", sorted({name for name, _ in SUITE}))
def test_every_model_of_the_suite_has_a_twin_for_a_laptop(name):
    path = recipe.path_of(f"{name}-laptop")
    library = Path(sysconfig.get_path("stdlib"))
    for size in recipe.sizes(path) or ("",):
        small, large = read(path.stem, size), read(name, next(iter(recipe.sizes(recipe.path_of(name))), ""))
        assert small.model.family == large.model.family and small.model.weights == large.model.weights
        assert small.schedule.shape == large.schedule.shape
        assert {m.kind for m in config_of(small).sublayers} == {m.kind for m in config_of(large).sublayers}
        assert cost.parameters(config_of(small)) < 5e6
        assert all((library / held).is_file() for held in small.data.held_out)


@pytest.mark.parametrize("name", sorted({name for name, _ in SUITE}))
def test_what_the_sources_do_not_give_is_marked(name):
    assert "# ours" in recipe.path_of(name).read_text()
