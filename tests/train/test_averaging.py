"""The mean of a run's checkpoints."""

import pytest
import torch

import leanlm
import tiny_runs
from leanlm.checkpoint import distributed
from leanlm.errors import CheckpointError, NotFound, UsageError
from leanlm.train import checkpoints
from leanlm.train.averaging import average
from leanlm.train.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny_runs.recipe(folder, "keep.last=3"), folder / "run")
    return folder / "run"


def test_it_is_the_mean(run, tmp_path):
    used = average(run, 2, tmp_path / "mean")
    assert [path.name for path in used] == ["step-00000010", "step-00000012"]
    tenth, twelfth = map(distributed.tensors, used)
    module = leanlm.load(tmp_path / "mean").module
    for name, weight in module.named_parameters():
        torch.testing.assert_close(weight, (tenth[name] + twelfth[name]) / 2, rtol=1e-6, atol=1e-7)


def test_it_generates_with_the_runs_tokenizer(run, tmp_path):
    average(run, 3, tmp_path / "mean")
    assert isinstance(leanlm.load(tmp_path / "mean").generate("def ", max_new_tokens=3), str)


@pytest.mark.parametrize(("last", "error", "says"), [(1, UsageError, "at least 2"), (4, NotFound, "keep.last=4")])
def test_too_few(run, tmp_path, last, error, says):
    with pytest.raises(error, match=says):
        average(run, last, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_no_run_and_no_new_folder(run, tmp_path):
    with pytest.raises(NotFound, match="no run's folder"):
        average(tmp_path, 2, tmp_path / "mean")
    with pytest.raises(UsageError, match="exists already"):
        average(run, 2, run)


def test_ternary_latents_are_averaged_and_then_rounded(tmp_path):
    train(tiny_runs.recipe(tmp_path, "model.weights=ternary"), tmp_path / "run")
    average(tmp_path / "run", 2, tmp_path / "mean")
    inside = leanlm.load(tmp_path / "mean").module.layers[0][0].mixer.in_proj.dequantize()
    assert len(inside.abs().unique()) == 2


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(tiny_runs.recipe(tmp_path), tmp_path / "run")
    newest = checkpoints.complete(tmp_path / "run")[-1]
    shard = next(newest.glob("*.distcp"))
    held = bytearray(shard.read_bytes())
    held[len(held) // 2] ^= 1
    shard.write_bytes(held)
    with pytest.raises(CheckpointError, match=newest.name):
        average(tmp_path / "run", 2, tmp_path / "mean")
