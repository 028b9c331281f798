"""The Avengers study: what differs between its runs, and its table."""

import dataclasses
from pathlib import Path

import pytest

from hybrid_models import build
from leanlm import families
from leanlm.data.shards import Shards
from leanlm.evaluate import loss
from leanlm.model.config import Attention, ModelConfig, Rope
from leanlm.study import avengers, experiment
from leanlm.study.avengers import BUDGETS, MODELS
from leanlm.train import origin, start
from tiny_runs import recipe

CORPUS = Path("data"), Path("held")


@pytest.mark.parametrize("name", BUDGETS)
def test_runs_have_equal_tokens_and_differ_in_what_attention_sees(name):
    budget = BUDGETS[name]
    assert budget.seeds >= 2 and len(set(avengers.runs(budget))) == budget.seeds * len(MODELS)
    made = {model: avengers.recipe_of(model, 2, budget, CORPUS) for model in MODELS}
    first = made["llama3"]
    assert all(
        (r.schedule, r.data, r.optimiser, r.seed) == (first.schedule, first.data, first.optimiser, 2) for r in made.values()
    )
    configs = {model: families.get(r.model.family).to_config(r.model.config) for model, r in made.items()}
    assert {config.context_length for config in configs.values()} == {budget.length}
    assert [configs[f"tele{slots}"].layers[0][0].slots for slots in (64, 128)] == [64, 128]
    for slots in (64, 128):
        theirs = dict(made[f"tele{slots}"].model.config)
        assert theirs.pop("telescoping") == {"cache": str(slots)}
        assert theirs == first.model.config


def test_rows_are_means_over_seeds():
    results = [
        {"model": model, "seed": seed, "parameters": 7, "tokens": 9, "bits_per_byte": 2.0 + seed / 10, "loss": 1.0}
        for model in MODELS
        for seed in (1, 2)
    ]
    rows = avengers.summarise(results, BUDGETS["evening"])
    assert [row["model"] for row in rows] == list(MODELS)
    assert rows[0]["bits_per_byte"]["mean"] == pytest.approx(2.15) and rows[0]["bits_per_byte"]["error"] == pytest.approx(0.05)
    state = {row["model"]: row["state_bytes"] for row in rows}
    assert state["tele64"] < state["tele128"] < state["llama3"]


def test_held_out_windows_begin_from_nothing(tmp_path):
    """The loss of windows is that of the same windows given as documents."""
    made = recipe(tmp_path)
    start.material(made, tmp_path, origin.fresh(made), lambda _: None)
    held = Shards(tmp_path / "held")
    module = build(ModelConfig(16, made.data.vocab_size, ((Attention(2, 2, 8, rope=Rope(8)),),)))
    found = loss.in_windows(module, held, 7)
    texts = [held.document(n)[:-1].tolist() for n in range(len(held.bytes))]
    whole = loss.measure(module, [(t, 1) for t in texts], 0)
    windows = [(t[i : i + 7], 0) for t in texts for i in range(0, len(t), 7)]
    assert found.tokens == whole.tokens == sum(len(w) for w, _ in windows) and found.bytes == held.bytes.sum()
    assert found.nats == pytest.approx(loss.measure(module, windows, int(held.document(0)[-1])).nats)
    assert found.nats != pytest.approx(whole.nats, rel=1e-4)


def test_it_runs_and_goes_on(tmp_path, monkeypatch):
    budget = dataclasses.replace(BUDGETS["smoke"], steps=2, seeds=1)
    made = recipe(tmp_path / "text")
    data = dataclasses.replace(made.data, vocab_size=300, length=256)
    made = dataclasses.replace(made, data=data)
    start.material(made, tmp_path / "text", origin.fresh(made), lambda _: None)
    corpus = tmp_path / "text" / "data", tmp_path / "text" / "held"
    rows = avengers.study(budget, tmp_path / "study", *corpus)
    assert [row["model"] for row in rows] == list(MODELS) and rows[0]["bits_per_byte"]["error"] is None
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("what is done was done again"))
    assert avengers.study(budget, tmp_path / "study", *corpus) == rows
