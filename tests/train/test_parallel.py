"""Many processes on the CPU: they train as one does, hand runs on to each other, and stop together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import forked
from leanlm.checkpoint.load import load_module
from leanlm.errors import UsageError
from leanlm.model.packed import TernaryWeight
from leanlm.train import checkpoints, parallel
from leanlm.train import recipe as recipes
from leanlm.train.loop import train
from leanlm.train.processes import Processes
from leanlm.train.recipe import Compute

CONSTANT = ("schedule.shape=constant", "schedule.warmup=0", "optimiser.lr=3e-3", "keep.validate=3", "keep.checkpoint=1")


def command(recipe: Path, folder: Path, *overrides: str) -> list[str]:
    sets = [word for override in overrides for word in ("--set", override)]
    return ["train", str(recipe), "--out", str(folder), *sets]


def agree(ours: dict, theirs: dict) -> None:
    """Same losses, gradients and validations in the same steps, to 1e-5 relative (a gradient's norm: 1e-4)."""
    for step, record in ours.items():
        for name, bound in (("loss", 1e-5), ("grad_norm", 1e-4), ("bits_per_byte", 1e-4)):
            assert (name in record) == (name in theirs[step])
            if name in record:
                assert record[name] == pytest.approx(theirs[step][name], rel=bound), (step, name)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(recipe_file, tmp_path, steps, weights):
    """2 sharded processes, then 1; or then 4 in two sharded copies, and 2 copies after them."""
    train(recipes.read(recipe_file, (*CONSTANT, "schedule.steps=9")), tmp_path / "alone")
    wanted = steps(tmp_path / "alone")

    def go_on(folder, processes, last, *overrides):
        words = command(recipe_file, tmp_path / folder, *CONSTANT, f"schedule.steps={last}", *overrides)
        done = forked.run(processes, *words)
        assert done.codes == [0] * processes, done.err[-3000:]
        got = steps(tmp_path / folder)
        assert list(got) == list(range(1, last + 1))
        agree(got, wanted)

    go_on("two", 2, 3, "compute.strategy=fsdp")
    shutil.copytree(tmp_path / "two", tmp_path / "four")
    go_on("two", 1, 9)
    go_on("four", 4, 6, "compute.strategy=hsdp", "compute.shard=2", "schedule.micro=1", "compute.checkpoint_blocks=0.5")
    go_on("four", 2, 9, "compute.strategy=ddp", "schedule.micro=1")
    for folder in ("two", "four"):
        end, alone = weights(tmp_path / folder / "model"), weights(tmp_path / "alone" / "model")
        for name in alone:
            torch.testing.assert_close(end[name], alone[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_one_process_that_is_asked_to_stop_stops_all(recipe_file, tmp_path, steps):
    """Started by torchrun itself."""
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "leanlm"]
    words = command(recipe_file, folder, "schedule.steps=100000", "keep.checkpoint=100000", "keep.validate=100000")
    running = subprocess.Popen([*torchrun, *words], stderr=subprocess.PIPE, text=True)
    try:
        while running.poll() is None and not (folder / "log.jsonl").exists():
            time.sleep(0.05)
        workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGTERM)
        _, told = running.communicate(timeout=120)
    finally:
        running.kill()
    assert told.count("interrupted") == 2, told[-3000:]
    kept = checkpoints.complete(folder)
    assert len(kept) == 1 and not checkpoints.damage(kept[0])
    assert int(kept[0].name[5:]) == max(steps(folder))


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_refused(recipe_file, tmp_path):
    done = forked.run(3, *command(recipe_file, tmp_path / "run"))
    assert done.codes == [2, 2, 2]
    assert "error: schedule.batch: 4 windows cannot be divided among 3 processes" in done.err


def test_layers_computed_again_are_those_of_fms_fsdp():
    def pattern(fraction, layers):
        return "".join("A" if again else "." for again in parallel.recomputed(layers, fraction))

    assert pattern(1 / 4, 12) == ".A...A...A.."
    assert pattern(1 / 3, 12) == ".A..A..A..A."
    assert pattern(1 / 2, 6) == "A.A.A."
    assert pattern(2 / 3, 9) == "A.AA.AA.A"
    assert [sum(parallel.recomputed(32, f)) for f in (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 0)] == [8, 11, 16, 21, 32, 0]


def test_strategies():
    four = Processes(rank=0, size=4, per_machine=2)
    assert parallel.strategy(Compute(), Processes()) == "alone"
    assert parallel.strategy(Compute(strategy="fsdp"), Processes()) == "alone"
    assert parallel.strategy(Compute(), four) == "ddp"
    assert parallel.strategy(Compute(strategy="hsdp"), four) == "hsdp"
    with pytest.raises(UsageError, match="4 processes do not divide into groups of 3"):
        parallel.strategy(Compute(strategy="hsdp", shard=3), four)


@pytest.mark.slow
def test_compiled_blocks_train_alike(recipe_file, tmp_path, steps):
    train(recipes.read(recipe_file, (*CONSTANT, "schedule.steps=3")), tmp_path / "plain")
    train(recipes.read(recipe_file, (*CONSTANT, "schedule.steps=3", "compute.compile=true")), tmp_path / "compiled")
    agree(steps(tmp_path / "compiled"), steps(tmp_path / "plain"))


@pytest.mark.slow
def test_sharded_latents_are_gathered_and_packed(recipe_file, tmp_path, steps):
    """Losses may part a little: a latent that rounds the other way makes a difference that floats do not know."""
    settings = (*CONSTANT, "schedule.steps=4", "model.weights=ternary")
    train(recipes.read(recipe_file, settings), tmp_path / "alone")
    done = forked.run(2, *command(recipe_file, tmp_path / "two", *settings, "compute.strategy=fsdp"))
    assert done.codes == [0, 0], done.err[-3000:]
    wanted = steps(tmp_path / "alone")
    for step, record in steps(tmp_path / "two").items():
        assert record["loss"] == pytest.approx(wanted[step]["loss"], rel=1e-3 if step > 1 else 1e-5)
    alone, two = (load_module(tmp_path / name / "model").module.weights() for name in ("alone", "two"))
    for name, weight in alone.items():
        assert type(two[name]) is type(weight), name
        if isinstance(weight, TernaryWeight):
            assert (two[name].unpacked() == weight.unpacked()).float().mean() > 0.99
