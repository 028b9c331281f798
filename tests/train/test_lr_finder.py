"""The learning-rate finder finds a rate that trains, and leaves the run alone."""

import pytest

import tiny_runs
from leanlm.errors import UsageError
from leanlm.train import loop, lr_finder
from leanlm.train.loop import train


def test_the_rate_found_trains(tmp_path):
    recipe = tiny_runs.recipe(tmp_path)
    found = lr_finder.find(recipe, tmp_path / "run")
    assert found.rates == sorted(found.rates) and len(found.rates) == len(found.losses) > 20
    assert 1e-4 < found.lr < 1e-1
    assert found.chart.read_text().startswith("<svg")
    assert not list((tmp_path / "run").glob("step-*"))
    reports = []
    train(tiny_runs.recipe(tmp_path, f"optimiser.lr={found.lr}"), tmp_path / "run", reports.append)
    losses = [r.loss for r in reports if r.loss is not None]
    assert losses[-1] < losses[0]


def test_it_stops_where_the_loss_runs_away(tmp_path):
    found = lr_finder.find(tiny_runs.recipe(tmp_path, "optimiser.clip=0.0"), tmp_path / "run")
    *losses, last = found.losses
    assert len(found.losses) < lr_finder.STEPS and last > lr_finder.AWAY * min(losses)
    assert all(loss <= lr_finder.AWAY * min(losses[: i + 1]) for i, loss in enumerate(losses))


def test_a_loss_that_never_falls_is_told(tmp_path, monkeypatch):
    made = iter(range(1000))
    step = loop.step

    def worse(*given):
        done = step(*given)
        return type(done)(5.0 + next(made), done.norm, done.scale)

    monkeypatch.setattr(loop, "step", worse)
    with pytest.raises(UsageError, match="falls at no rate"):
        lr_finder.find(tiny_runs.recipe(tmp_path), tmp_path / "run")
