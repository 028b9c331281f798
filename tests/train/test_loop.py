"""The loop on a tiny recipe: it learns, it resumes exactly, and nothing is lost when it stops or fails."""

import dataclasses
import json
import os
import signal

import pytest
import torch

import leanlm
from leanlm.errors import CheckFailed, CheckpointError, LeanLMError, UsageError
from leanlm.train import loop, run
from leanlm.train import recipe as recipes
from leanlm.train.loop import train

RECIPE = """
name = "tiny"
[model]
family = "rene"
[model.config]
d_model = 32
n_layer = 3
vocab_size = 300
eos_token_id = 0
mlp_layer_idx = [1]
attn_layer_idx = [2]
ssm_cfg = { d_state = 8, headdim = 16 }
mlp_cfg = { expand = 2, bias = false }
attn_cfg = { num_heads = 2, head_dim = 16, sliding_window_length = 8 }
[data]
source = "SOURCE"
held_out = ["held.py"]
vocab_size = 300
length = 24
[optimiser]
lr = 1e-2
[schedule]
steps = 12
batch = 4
warmup = 2
[keep]
checkpoint = 5
validate = 6
"""


@pytest.fixture
def recipe(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for i in range(6):
        (text / f"f{i}.py").write_text("".join(f"def f{i}_{j}(x):\n    return x + {i * j}\n" for j in range(25)))
    (text / "held.py").write_text("def g(x):\n    return x + 3\n" * 5)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace("SOURCE", str(text)))
    return recipes.read(path)


def weights(folder):
    return dict(leanlm.load(folder).module.named_parameters())


def test_it_learns_and_publishes(recipe, tmp_path):
    reports = []
    model = leanlm.load(train(recipe, tmp_path / "run", reports.append))
    losses = [r.loss for r in reports if r.loss]
    assert losses[-1] < losses[0] - 0.5
    assert model.family == "rene" and model.config.eos_ids == (0,)
    assert any(r.bits_per_byte for r in reports)
    assert isinstance(model.generate("def ", max_new_tokens=3), str)
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in logged[:12]] == list(range(1, 13))


@pytest.mark.parametrize("stop_after", [1, 5, 7])
def test_a_stopped_run_resumes_to_the_same_bits(recipe, tmp_path, stop_after):
    whole = weights(train(recipe, tmp_path / "whole"))

    def stop(report):
        if report.loss and report.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", stop)
    resumed = weights(train(recipe, tmp_path / "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_killed_run_goes_on_from_its_last_checkpoint(recipe, tmp_path):
    whole = weights(train(recipe, tmp_path / "whole"))

    def die(report):
        if report.step == 8:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(recipe, tmp_path / "cut", die)
    partial = tmp_path / "cut" / "step-00000009.partial"
    partial.mkdir()  # a half-written checkpoint is never looked at
    assert [p.name for p in run.checkpoints(tmp_path / "cut")] == ["step-00000005"]
    resumed = weights(train(recipe, tmp_path / "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_damaged_checkpoint_is_refused_and_the_older_one_offered(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    newest = run.checkpoints(tmp_path / "run")[-1]
    (newest / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="step-00000010"):
        train(recipe, tmp_path / "run")


def test_a_failing_save_leaves_the_older_checkpoints(recipe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def later(report):
        if report.step == 7:
            monkeypatch.setattr(run.torch, "save", full)

    with pytest.raises(LeanLMError, match="No space"):
        train(recipe, tmp_path / "run", later)
    assert [p.name for p in run.checkpoints(tmp_path / "run")] == ["step-00000005"]
    assert not list((tmp_path / "run").glob("*.partial"))


def test_another_recipe_does_not_continue_a_run(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    for other in (
        dataclasses.replace(recipe, seed=7),
        dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, batch=2)),
    ):
        with pytest.raises(UsageError, match="another"):
            train(other, tmp_path / "run")


def test_a_recipe_that_cannot_run_leaves_the_folder_to_the_corrected_one(recipe, tmp_path):
    wrong = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, length=10**7))
    with pytest.raises(UsageError, match="too few"):
        train(wrong, tmp_path / "run")
    assert train(recipe, tmp_path / "run").is_dir()


def test_text_held_out_by_a_refused_recipe_is_forgotten(recipe, tmp_path):
    with pytest.raises(UsageError, match="too few"):
        train(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, length=10**7)), tmp_path / "run")
    reports = []
    train(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, held_out=())), tmp_path / "run", reports.append)
    assert all(report.bits_per_byte is None for report in reports)


def test_held_out_names_that_match_nothing_are_refused(recipe, tmp_path):
    wrong = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, held_out=("nope.py",)))
    with pytest.raises(UsageError, match="nope"):
        train(wrong, tmp_path / "run")


def test_a_non_finite_loss_stops_before_the_weights_are_touched(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "next_token_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(CheckFailed, match=r"windows 0 \.\. 3"):
        train(recipe, tmp_path / "run")
    assert not run.checkpoints(tmp_path / "run")
