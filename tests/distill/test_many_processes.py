"""A distillation over several processes: the same losses as on one."""

import json
from pathlib import Path

import pytest

import forked
from leanlm.distill import sequence
from leanlm.train import recipe as recipes
from tiny_distillations import student_file

STAGES = ("1-matrices", "2-states", "3-logits", "4-kept")
KEPT = "distill.stages.kept={compare='logits', distill={top_k=8}, schedule={steps=40}}"


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for stage in STAGES for line in (folder / stage / "log.jsonl").read_text().splitlines()]
    return [value for record in records if "loss" in record for value in (record["loss"], *record.get("parts", ()))]


@pytest.mark.slow
def test_two_processes_do_what_one_does(teacher, tmp_path):
    """Both models sharded, layer by layer: also where the loss is that of matrices, which no forward pass of a layer gives, and
    where the teacher's logits are kept in an odd number of files."""
    path = student_file(tmp_path, teacher)
    sequence.distil(recipes.read(path, (KEPT,)), tmp_path / "one")
    assert len(list((tmp_path / "one").glob("4-kept/kept-logits/rows-*"))) % 2
    settings = ("--set", "compute.strategy=fsdp", "--set", KEPT)
    done = forked.run(2, "distill", path, "--out", tmp_path / "two", *settings)
    assert done.codes == [0, 0], done.err[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
