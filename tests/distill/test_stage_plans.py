"""Plans of distillations: every stage with its teacher; what comparing matrices takes, against torch's own allocator."""

import json

import pytest
import torch

from allocator import allocated
from hybrid_models import build
from leanlm.cli.main import main
from leanlm.distill import stages
from leanlm.distill.objectives import Matrices
from leanlm.distill.teacher import config_of
from leanlm.model.config import Attention, DiscreteMamba2, GatedMLP, ModelConfig
from leanlm.train import footprint, hardware, plan
from leanlm.train.plan import Cluster
from leanlm.train.recipe import Compute
from tiny_distillations import student, student_file

WINDOWS, LENGTH = 4, 192


def model(*mixers) -> ModelConfig:
    return ModelConfig(128, 512, tuple((mixer, GatedMLP(256)) for mixer in mixers))


def test_matrices_take_what_the_allocator_gives(tmp_path):
    theirs, ours = model(*[Attention(4, 4, 32)] * 3), model(*[DiscreteMamba2(128, 4, 4, 32)] * 3)
    objective = Matrices(build(ours), build(theirs).requires_grad_(False))
    tokens = torch.randint(0, 512, (WINDOWS, LENGTH))

    def work():
        objective(tokens, tokens)[0].backward()

    work()  # gradients are there from now on
    before, most = allocated(work, tmp_path / "trace.json")
    told = footprint.of_matrices([ours.layers[0][0]], ours, WINDOWS, LENGTH, "float32")
    assert told == pytest.approx(most - before, rel=0.25)


def test_a_stage_holds_its_teacher(teacher, tmp_path):
    cluster, config = Cluster(hardware.named("h100"), 4, 4), config_of(str(teacher))
    first, _, last = stages.of(student(tmp_path, teacher, "compute.dtype=bfloat16", "data.length=2048"))
    alone, taught = (plan.make(last.recipe, cluster, teacher=each) for each in (None, config))
    parts = footprint.of_teacher(config, Compute(dtype="bfloat16"), 4)
    assert taught.footprint.total - alone.footprint.total == taught.footprint.teacher == parts
    assert 2 * 300 * 32 < parts < 2 * 300 * 32 + 2 * 40_000 / 4 and taught.seconds > alone.seconds
    aligned = plan.make(first.recipe, cluster, teacher=config)
    assert aligned.footprint.passing > 2 * 4 * 4 * 2048 * 2048  # of one window


def test_kept_logits_do_without_the_teacher(teacher, tmp_path):
    """In memory; it has read every token once all the same."""
    cluster, config = Cluster(hardware.named("h100"), 4, 4), config_of(str(teacher))
    stage = stages.of(student(tmp_path, teacher, "distill.top_k=8"))[2]
    made = plan.make(stage.recipe, cluster, teacher=config)
    assert made.footprint.teacher == 0 < made.teaching


def test_what_cannot_be_distilled_has_no_plan(teacher, tmp_path, capsys):
    path = student_file(tmp_path, teacher)
    assert main(["train", str(path), "--plan", "--set", "distill.top_k=300"]) == 2
    assert "keep fewer" in capsys.readouterr().err


def test_every_stage_has_a_plan(teacher, tmp_path, capsys):
    """Without its teacher where this machine does not have it; nothing is downloaded."""
    path = student_file(tmp_path, teacher)
    other = ("--set", "distill.stages.logits.distill.teacher=somebody/a-large-llama")
    assert main(["train", str(path), "--plan", "--on", "h100", "--json", *other]) == 0
    told = capsys.readouterr()
    plans = json.loads(told.out)
    assert [each["recipe"] for each in plans] == ["student-matrices", "student-states", "student-logits"]
    assert [each["bytes"]["teacher"] > 0 for each in plans] == [True, True, False]
    assert "somebody/a-large-llama is not on this machine: the plan of logits is without it" in told.err
    assert main(["train", str(path), "--plan", "--on", "h100"]) == 0
    assert capsys.readouterr().out.count("\n  teacher ") == 3
