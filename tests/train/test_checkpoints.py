"""Checkpoints: everything comes back, damage is told with the way out, what cannot be written costs nothing."""

import json

import pytest
import torch
from torch import nn

from leanlm.errors import CheckpointError, LeanLMError
from leanlm.train import checkpoints
from leanlm.train import optimiser as optimisers
from leanlm.train.checkpoints import MANIFEST, PROGRESS, Progress, Saver, complete, restore, tensors
from leanlm.train.precision import LossScale
from leanlm.train.processes import ALONE
from leanlm.train.recipe import Keep, Optimiser
from leanlm.train.schedule import Rates


def trained(seed=0, steps=2):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    optimiser = optimisers.build(module, Optimiser(lr=0.1))
    for _ in range(steps):
        module(torch.randn(4, 7)).square().sum().backward()
        optimisers.apply(optimiser, Rates(0.1, 0.1), 1.0, 1.0)
    return module, optimiser


def saved(folder, *steps, keep=None):
    keep = keep or Keep(last=9)
    for step in steps:
        module, optimiser = trained(steps=step)
        with Saver(folder, ALONE, keep) as saver:
            saver.save(module, optimiser, Progress(step, 10 * step, 0.1, "data", LossScale(8.0, 3, 1)))
            saver.finish()
    return module, optimiser


def test_everything_comes_back(tmp_path):
    module, optimiser = saved(tmp_path, 3)
    other, fresh = trained(seed=1, steps=1)
    assert restore(tmp_path / "step-00000003", other, fresh, ALONE) == Progress(3, 30, 0.1, "data", LossScale(8.0, 3, 1))
    wanted, got = tensors(module, optimiser), tensors(other, fresh)
    assert wanted.keys() == got.keys() and len(wanted) == 4 * 4
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_what_is_written_is_the_state_when_it_was_asked_for(tmp_path):
    module, optimiser = trained()
    before = {name: tensor.clone() for name, tensor in tensors(module, optimiser).items()}
    with Saver(tmp_path, ALONE, Keep()) as saver:
        saver.save(module, optimiser, Progress(1))
        with torch.no_grad():
            for tensor in tensors(module, optimiser).values():
                tensor.fill_(-1)
    restore(tmp_path / "step-00000001", module, optimiser, ALONE)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(module, optimiser).items())


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    (tmp_path / "step-00000001.partial").mkdir()
    saved(tmp_path, 1, 2, 3, 4, 5, 10, keep=Keep(last=2, milestones=2))
    assert [path.name for path in complete(tmp_path)] == [f"step-{n:08}" for n in (2, 4, 5, 10)]


def shorten(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", PROGRESS, MANIFEST])
@pytest.mark.parametrize("harm", [flip, shorten, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_damage_is_told_with_the_way_out(tmp_path, name, harm):
    saved(tmp_path, 2, 4, 6)
    harm(tmp_path / "step-00000006" / name)
    flip(tmp_path / "step-00000004" / "__0_0.distcp")
    module, optimiser = trained()
    with pytest.raises(CheckpointError, match=r"step-00000006: damaged.*remove it to go on from step-00000002") as told:
        restore(tmp_path / "step-00000006", module, optimiser, ALONE)
    assert "\n" not in str(told.value)


def test_where_nothing_is_whole_it_is_said(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "step-00000002" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"only half there.*remove it to start again"):
        restore(tmp_path / "step-00000002", *trained(), ALONE)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    saved(tmp_path, 2)
    module = nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 3))
    with pytest.raises(CheckpointError, match="does not fit this run"):
        restore(tmp_path / "step-00000002", module, optimisers.build(module, Optimiser(lr=0.1)), ALONE)


@pytest.mark.parametrize("broken", ["save", "rename"])
def test_what_cannot_be_written_leaves_the_older_ones(tmp_path, monkeypatch, broken):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    saved(tmp_path, 2)
    if broken == "save":
        monkeypatch.setattr(torch, "save", full)
    else:
        monkeypatch.setattr(checkpoints, "_commit", full)
    module, optimiser = trained()
    with Saver(tmp_path, ALONE, Keep(last=1)) as saver:
        saver.save(module, optimiser, Progress(4))
        with pytest.raises(LeanLMError, match=r"step-00000004: cannot write \(No space left on device\); older") as told:
            saver.finish()
        assert not saver.failed and "\n" not in str(told.value)
        monkeypatch.undo()
        saver.save(module, optimiser, Progress(5))
    assert [path.name for path in complete(tmp_path)] == ["step-00000005"]
    assert not list(tmp_path.glob("*.partial"))


def test_progress_is_readable(tmp_path):
    saved(tmp_path, 2)
    assert json.loads((tmp_path / "step-00000002" / PROGRESS).read_text())["scale"]["skipped"] == 1
