"""The loop on a tiny recipe: it learns, it resumes exactly, and nothing is lost when it stops or fails."""

import os
import re
import resource
import shutil
import signal
import time
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import forked
import leanlm
import tiny_runs
from leanlm.data.batches import IGNORED, Batch
from leanlm.data.feed import feed
from leanlm.errors import CheckFailed, CheckpointError, LeanLMError, UsageError
from leanlm.model.config import from_dict
from leanlm.train import checkpoints, log, loop, start
from leanlm.train import optimiser as optimisers
from leanlm.train import origin as origins
from leanlm.train import recipe as recipes
from leanlm.train.checkpoints import Progress
from leanlm.train.loop import train
from leanlm.train.loss import Objective
from leanlm.train.processes import ALONE
from leanlm.train.schedule import Rates


def changed(recipe, section, **values):
    return replace(recipe, **{section: replace(getattr(recipe, section), **values)})


def names(folder):
    return [path.name for path in checkpoints.complete(folder)]


def stop_at(step, number=signal.SIGINT):
    """A listener that sends this process a signal after a step."""

    def report(told):
        if told.loss is not None and told.step == step:
            os.kill(os.getpid(), number)

    return report


def same_end(one, other, steps, weights):
    """Whether two runs gave the same losses in every step, and the same weights at the end, to the bit."""
    first, second = steps(one), steps(other)
    assert first.keys() == second.keys()
    assert [r["loss"] for r in first.values()] == [r["loss"] for r in second.values()]
    first, second = weights(one / "model"), weights(other / "model")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    return True


def test_it_learns_and_publishes(recipe, tmp_path, steps):
    reports = []
    model = leanlm.load(train(recipe, tmp_path / "run", reports.append))
    losses = [r.loss for r in reports if r.loss]
    assert losses[-1] < losses[0] - 0.5
    assert model.family == "rene" and model.config.eos_ids == (0,)
    assert any(r.bits_per_byte for r in reports)
    assert isinstance(model.generate("def ", max_new_tokens=3), str)
    assert list(steps(tmp_path / "run")) == list(range(1, 13))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 5, 7, 12])
def test_a_stopped_run_resumes_to_the_same_bits(recipe, tmp_path, steps, weights, at, number):
    train(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", stop_at(at, number))
    assert names(tmp_path / "cut")[-1] == f"step-{at:08}"
    train(recipe, tmp_path / "cut")
    assert same_end(tmp_path / "whole", tmp_path / "cut", steps, weights)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(recipe_file, recipe, tmp_path, steps, weights):
    once = ["--set", "threads=1"]
    often = ["train", recipe_file, "--out", tmp_path / "cut", *once, "--set", "keep.checkpoint=1"]
    for least in (1, 4, 8):
        running = forked.start(*often)
        while running.is_alive() and not any(int(name[5:]) >= least for name in names(tmp_path / "cut")):
            time.sleep(0.01)
        running.kill()
        running.join()
    assert forked.run(1, *often).codes == [0]
    assert forked.run(1, "train", recipe_file, "--out", tmp_path / "whole", *once).codes == [0]
    assert same_end(tmp_path / "whole", tmp_path / "cut", steps, weights)


HALF = "step-00000007.partial"
BEFORE = "going on from step-00000005"


@pytest.mark.parametrize(
    ("stopped", "harm", "says"),
    [
        (7, shutil.rmtree, {BEFORE}),
        (7, lambda newest: newest.rename(newest.with_name(HALF)), {f"{HALF} was never completed; removed", BEFORE}),
        (2, shutil.rmtree, {"no checkpoint of this run is left: it begins again"}),
    ],
    ids=["newest gone", "half written", "none left"],
)
def test_without_its_newest_checkpoint_a_run_comes_to_the_same_end(recipe, tmp_path, steps, weights, stopped, harm, says):
    train(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", stop_at(stopped))
    harm(tmp_path / "cut" / f"step-{stopped:08}")
    notes = []
    train(recipe, tmp_path / "cut", lambda told: notes.append(told.note))
    assert says <= set(notes)
    assert same_end(tmp_path / "whole", tmp_path / "cut", steps, weights)
    told = [record["step"] for record in log.records(tmp_path / "cut") if "loss" in record]
    assert told == list(range(1, recipe.steps + 1))


def test_a_run_stops_when_its_time_is_up(recipe, tmp_path, steps, weights):
    train(recipe, tmp_path / "whole")
    reports = []
    assert train(changed(recipe, "keep", hours=1e-9), tmp_path / "cut", reports.append) is None
    assert names(tmp_path / "cut") == ["step-00000001"] and "goes on" in reports[-1].note
    train(recipe, tmp_path / "cut")
    assert same_end(tmp_path / "whole", tmp_path / "cut", steps, weights)


def test_a_stop_is_heard_while_validating(recipe, tmp_path, monkeypatch):
    asked = []

    def slow(module, documents, start_id, run=None):
        asked.append(os.kill(os.getpid(), signal.SIGTERM))
        return leanlm.evaluate.loss.Loss(1.0, 1, 1)

    (tmp_path / "text" / "f0.py").rename(tmp_path / "text" / "held2.py")
    recipe = changed(changed(recipe, "data", held_out=("held.py", "held2.py")), "keep", validate=3)
    monkeypatch.setattr("leanlm.evaluate.loss.measure", slow)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run")
    assert len(asked) == 1 and names(tmp_path / "run") == ["step-00000003"]


def test_a_second_interrupt_does_not_wait(recipe, tmp_path):
    def twice(told):
        if told.loss is not None and told.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", twice)
    assert not names(tmp_path / "run")


@pytest.mark.slow
def test_a_full_disk_costs_one_line(recipe_file, tmp_path):
    """Files may not grow beyond a size, which the log and small files keep to and a checkpoint does not."""
    command = ["train", recipe_file, "--out", tmp_path / "run"]
    assert forked.run(1, *command, "--set", "schedule.steps=5").codes == [0]
    done = forked.run(1, *command, file_bytes=100_000)
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert done.codes == [1] and len(errors) == 1 and "Traceback" not in done.err
    reason = r"(File too large|torch could not write all of it; is the disk full\?)"
    assert re.search(rf"step-000000\d\d: cannot write \({reason}\); older checkpoints are as they were", errors[0])
    assert names(tmp_path / "run") == ["step-00000005"] and not checkpoints.damage(tmp_path / "run" / "step-00000005")
    assert not list((tmp_path / "run").glob("*.partial"))
    assert forked.run(1, *command).codes == [0]


def test_another_recipe_does_not_continue_a_run(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    for other in (
        replace(recipe, seed=7),
        changed(recipe, "schedule", batch=2),
        changed(recipe, "optimiser", z_loss=0.1),
    ):
        with pytest.raises(UsageError, match="another"):
            train(other, tmp_path / "run")


def test_a_recipe_that_cannot_run_leaves_the_folder_to_the_corrected_one(recipe, tmp_path):
    wrong = changed(recipe, "data", length=10**7)
    with pytest.raises(UsageError, match="too few"):
        train(wrong, tmp_path / "run")
    assert train(recipe, tmp_path / "run").is_dir()


def test_text_held_out_by_a_refused_recipe_is_forgotten(recipe, tmp_path):
    with pytest.raises(UsageError, match="too few"):
        train(changed(recipe, "data", length=10**7), tmp_path / "run")
    reports = []
    train(changed(recipe, "data", held_out=()), tmp_path / "run", reports.append)
    assert all(report.bits_per_byte is None for report in reports)


def test_held_out_names_that_match_nothing_are_refused(recipe, tmp_path):
    wrong = changed(recipe, "data", held_out=("nope.py",))
    with pytest.raises(UsageError, match="nope"):
        train(wrong, tmp_path / "run")


def test_another_order_of_data_does_not_continue_a_run(recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", stop_at(3))
    shutil.rmtree(tmp_path / "run" / "data")
    (tmp_path / "text" / "f1.py").unlink()
    with pytest.raises(CheckpointError, match="other token shards"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_before_the_weights_are_touched(recipe, tmp_path, monkeypatch, value):
    taken = []
    monkeypatch.setattr(Objective, "_summed", lambda self, x, targets: (x.sum() * value).expand(2) * 1.0)
    monkeypatch.setattr(optimisers, "apply", lambda *_: taken.append(1))
    with pytest.raises(CheckFailed, match=r"step 0: the loss of windows 0 \.\. 3 is"):
        train(recipe, tmp_path / "run")
    assert not names(tmp_path / "run") and not taken


def test_float16_skips_the_steps_that_overflow_and_counts_them(recipe, tmp_path, monkeypatch):
    """The gradient overflows at every scale above 4,096: the first steps are spent on finding that."""
    real = optimisers.apply

    def overflowing(optimiser, rates, clip, scale):
        if scale > 4096:
            for group in optimiser.param_groups:
                group["params"][0].grad.fill_(float("inf"))
        return real(optimiser, rates, clip, scale)

    monkeypatch.setattr(optimisers, "apply", overflowing)
    reports = []
    train(changed(recipe, "compute", dtype="float16"), tmp_path / "run", reports.append)
    taken = [r for r in reports if r.loss is not None]
    assert [r.skipped for r in taken] == [1, 2, 3, 4, *[4] * 8]
    assert taken[-1].loss < taken[0].loss - 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_learn_as_thirty_two_do(recipe, tmp_path, dtype):
    ends = {}
    for name in ("float32", dtype):
        reports = []
        train(changed(recipe, "compute", dtype=name), tmp_path / name, reports.append)
        ends[name] = [r.loss for r in reports if r.loss is not None][-1]
    assert ends[dtype] == pytest.approx(ends["float32"], abs=0.05) and ends[dtype] != ends["float32"]


def test_masters_and_scans_stay_in_float32_under_bfloat16(recipe, tmp_path, monkeypatch):
    from leanlm.ops import eager

    seen = set()
    real = eager.ssd

    def watched(x, log_decay, B, C, *rest):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        seen.add((x.dtype, log_decay.dtype, product.dtype))
        return real(x, log_decay, B, C, *rest)

    monkeypatch.setattr(eager, "ssd", watched)
    from leanlm.ops import dispatch

    dispatch.choose.cache_clear()
    try:
        train(changed(recipe, "compute", dtype="bfloat16"), tmp_path / "run")
    finally:
        dispatch.choose.cache_clear()
    assert seen == {(torch.float32, torch.float32, torch.float32)}


def trained_step(recipe, batch, micro=0, **compute):
    """The weights after one step from the recipe's start."""
    recipe = changed(recipe, "schedule", micro=micro, batch=len(batch.tokens))
    origin = origins.fresh(recipe)
    for _ in origin.parts(recipe):
        pass
    module = origin.module
    objective = Objective(module, recipe.optimiser.z_loss)
    loop.parallel.prepare_layers(module, replace(recipe.compute, **compute))
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    optimiser.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    targets = int((batch.targets != IGNORED).sum())
    done = loop.step(objective, optimiser, batch, targets, Rates(1.0, 0.0), recipe, Progress(), ALONE)
    return dict(module.named_parameters()), done


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(2, 6), micro=st.integers(1, 5), seed=st.integers(0, 99), z_loss=st.sampled_from([0.0, 0.1]))
def test_accumulated_gradients_are_those_of_the_whole_batch(rows, micro, seed, z_loss):
    """However many targets of a row are masked: all of them in the first row."""
    recipe = from_dict(recipes.Recipe, tomllib.loads(tiny_runs.TOML), "tiny")
    recipe = changed(recipe, "optimiser", z_loss=z_loss, clip=0.0)
    random = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(300, (2, rows, 24), generator=random)
    targets[torch.rand(rows, 24, generator=random) < 0.7] = IGNORED
    targets[0], targets[-1, -1] = IGNORED, 7
    batch = Batch(tokens, targets, None)
    whole, _ = trained_step(recipe, batch)
    parts, _ = trained_step(recipe, batch, micro=min(micro, rows))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compute", [{"checkpoint_blocks": 0.5}, {"checkpoint_blocks": 1.0}])
def test_recomputed_activations_change_nothing(recipe, tmp_path, compute):
    material = start.material(recipe, tmp_path, origins.fresh(recipe), lambda _: None)
    batch = next(feed(material.rows, 0, 4))
    plain, _ = trained_step(recipe, batch)
    again, _ = trained_step(recipe, batch, **compute)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_two_runs_in_one_folder(recipe_file, recipe, tmp_path):
    """The second is refused, and does the first no harm."""
    refused = []

    def second(told):
        if told.step == 3 and told.loss is not None:
            refused.append(forked.run(1, "train", recipe_file, "--out", tmp_path / "run"))

    train(recipe, tmp_path / "run", second)
    assert refused[0].codes == [2] and f"a run is at work here (process {os.getpid()} on" in refused[0].err
    assert (tmp_path / "run" / "model").is_dir()


def test_what_the_disk_refuses_at_a_start_leaves_the_recipe(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "recipe.toml").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(LeanLMError, match="cannot write"):
            train(changed(recipe, "schedule", steps=14), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "run" / "recipe.toml").read_bytes() == before


def test_a_broken_recipe_of_a_run_is_named(recipe, tmp_path):
    train(changed(recipe, "schedule", steps=2), tmp_path / "run")
    (tmp_path / "run" / "recipe.toml").write_text("")
    with pytest.raises(UsageError, match=r"run/recipe\.toml: .*bring this file back"):
        train(recipe, tmp_path / "run")


def test_fewer_steps_than_were_taken_are_refused(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    with pytest.raises(UsageError, match="at step 12 already, beyond the 7"):
        train(changed(recipe, "schedule", steps=7), tmp_path / "run")


def test_held_out_text_of_unknown_size(recipe, tmp_path, steps):
    """As imports leave it: the loss is told, bits per byte are not."""
    train(changed(recipe, "schedule", steps=1), tmp_path / "first")
    held = tmp_path / "first" / "held"
    table = np.load(held / "documents.npy")
    table[1] = 0
    np.save(held / "documents.npy", table)
    told = []
    data = replace(recipe.data, source="", held_out=(), sources={str(tmp_path / "first" / "data"): 1.0}, held=str(held))
    train(replace(recipe, data=data), tmp_path / "run", told.append)
    assert [r.validation is not None and r.bits_per_byte is None for r in told if r.step in (6, 12) and r.loss is not None]
    assert told[-1].validation > 0 and told[-1].bits_per_byte is None
