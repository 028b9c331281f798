"""What a run tells: utilisation, samples, charts, leaps; and advice where memory runs out."""

import dataclasses
import json

import pytest
import torch

import tiny_runs
from leanlm.errors import LeanLMError
from leanlm.model import flops
from leanlm.runtime import device_memory
from leanlm.train import hardware, loop
from leanlm.train.loop import train


def test_a_run_tells_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "here", lambda: hardware.Device("test", 1e9, 2e9, 1e9, gpu=False))
    recipe, reports = tiny_runs.recipe(tmp_path, 'keep.samples=["def ", "return "]'), []
    model = train(recipe, tmp_path / "run", reports.append)
    steps = [r for r in reports if r.loss is not None]
    from leanlm.api import load

    per_token = flops.training(load(model).config, 24)
    for report in steps:
        assert report.utilisation == pytest.approx(report.tokens_per_second * per_token / 2e9)
        assert report.memory is None or report.memory > 1e7
    samples = [r.note for r in reports if r.note.startswith("sample: ")]
    assert len(samples) == 4 and samples[0].startswith("sample: 'def ")
    for name in ("loss.svg", "schedule.svg", "log.jsonl", "recipe.toml", "tokenizer.json"):
        assert (tmp_path / "run" / name).is_file()
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in logged if "loss" in r] == list(range(1, 13)) and "utilisation" in logged[0]


def test_samples_do_not_change_the_run(tmp_path):
    told = []
    for name, settings in (("plain", ()), ("sampled", ('keep.samples=["def "]',))):
        reports = []
        train(tiny_runs.recipe(tmp_path, *settings), tmp_path / name, reports.append)
        told.append([r.loss for r in reports if r.loss is not None])
    assert told[0] == told[1]


def test_samples_of_ternary_weights(tmp_path):
    reports = []
    train(tiny_runs.recipe(tmp_path, 'keep.samples=["def "]', "model.weights=ternary"), tmp_path / "run", reports.append)
    assert any(r.note.startswith("sample: ") for r in reports)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_memory_that_runs_out_names_a_knob(error, tmp_path, monkeypatch):
    def full(*_):
        raise error

    monkeypatch.setattr(loop, "step", full)
    with pytest.raises(LeanLMError, match=r"4 windows of 24 tokens a pass.*--set "):
        train(tiny_runs.recipe(tmp_path), tmp_path / "run")


def test_other_errors_are_not_taken_for_it(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    assert not device_memory.ran_out(RuntimeError("shapes do not match"))
    monkeypatch.setattr(loop, "step", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        train(tiny_runs.recipe(tmp_path), tmp_path / "run")


def test_a_leap_of_the_loss_is_told(tmp_path, monkeypatch):
    recipe, reports, step = tiny_runs.recipe(tmp_path, "schedule.steps=70", "keep.validate=100"), [], loop.step

    def leaping(*given):
        done = step(*given)
        return dataclasses.replace(done, loss=done.loss + 9) if given[6].step == 65 else done

    monkeypatch.setattr(loop, "step", leaping)
    train(recipe, tmp_path / "run", reports.append)
    assert next(r.note for r in reports if "leapt" in r.note or "is back" in r.note).startswith("step 66: the loss leapt")
