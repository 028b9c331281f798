"""Distillation from a teacher's folder to a student's: it learns, is published, stops and goes on, enters stages again."""

import gc
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

import leanlm
import tiny_distillations
from leanlm.checkpoint import distributed
from leanlm.distill import lesson, sequence, stages
from leanlm.distill.teacher import Teacher
from leanlm.errors import CheckpointError, NotFound, UsageError
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed, TernaryWeight
from leanlm.train import checkpoints
from leanlm.train import recipe as recipes
from leanlm.train.loop import train
from leanlm.train.processes import ALONE
from tiny_distillations import student

ALL = ("1-matrices", "2-states", "3-logits")


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights, to the bit."""
    first, second = (distributed.tensors(checkpoints.complete(folder)[-1]) for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def done(teacher, tmp_path_factory):
    """A whole distillation: its folder and what it reported."""
    folder = tmp_path_factory.mktemp("done")
    return folder / "run", sequence.distil(student(folder, teacher), folder / "run")


def test_what_comes_of_it(done):
    folder, found = done
    assert json.loads((folder / "report.json").read_text()) == found
    assert [stage["name"] for stage in found["stages"]] == ["matrices", "states", "logits"] and found["layers"] == [0, 1]
    assert [len(stage.get("layers", ())) for stage in found["stages"]] == [2, 2, 0]
    for stage in found["stages"]:
        assert stage["tokens"] == 6 * 4 * 24 and stage["loss"][1] < stage["loss"][0]
        if "layers" in stage:
            assert sum(first for first, _ in stage["layers"]) == pytest.approx(stage["loss"][0], rel=1e-5)
    assert found["tokens"] == 3 * 6 * 4 * 24 and 0 < found["kept"] < 1.5
    assert found["memory"]["student"]["a_token"] == 0 < found["memory"]["teacher"]["a_token"]


def test_the_student_is_a_published_llamba(done):
    folder, _ = done
    model = leanlm.load(folder / "model")
    assert model.family == "llamba" and model.config.bounded and isinstance(model.generate("def ", max_new_tokens=3), str)
    raw = json.loads((folder / "model" / "config.json").read_text())
    assert raw["ssm_cfg"]["n_v_heads"] == 4 and raw["model_type"] == "llamba"
    state = model.new_state(1)
    assert state.nbytes == model.new_state(1, capacity=999).nbytes


def test_nothing_is_done_twice(done, monkeypatch):
    folder, found = done
    monkeypatch.setattr(sequence, "train", lambda *_: pytest.fail("what is done was done again"))
    recipe = student(folder.parent, Path(found["teacher"]["name"]))
    assert sequence.distil(recipe, folder) == found


@pytest.mark.parametrize(("stage", "step"), [(stage, step) for stage in range(3) for step in (2, 6)])
def test_stopped_in_any_stage_it_ends_with_the_same_bits(done, teacher, tmp_path, stage, step):
    seen = 0

    def stop(told):
        nonlocal seen
        if told.loss is not None:
            seen += 1
            if seen == 6 * stage + step:
                os.kill(os.getpid(), signal.SIGINT)

    recipe = student(tmp_path, teacher)
    with pytest.raises(KeyboardInterrupt):
        sequence.distil(recipe, tmp_path / "run", stop)
    assert not (tmp_path / "run" / "model").exists()
    sequence.distil(recipe, tmp_path / "run")
    assert all(same(done[0] / name, tmp_path / "run" / name) for name in ALL)


def test_a_stage_is_entered_again(done, teacher, tmp_path):
    """The last with more steps; an earlier one when those after it are gone, which began from its former end."""
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    more = student(done[0].parent, teacher, "distill.stages.logits.schedule={steps=8}")
    assert sequence.distil(more, folder)["tokens"] == (6 + 6 + 8) * 4 * 24
    earlier = student(done[0].parent, teacher, "distill.stages.states.schedule={steps=8}")
    before = checkpoints.complete(folder / "2-states")
    with pytest.raises(UsageError, match="3-logits: began without what 2-states comes to"):
        sequence.distil(earlier, folder)
    assert checkpoints.complete(folder / "2-states") == before
    shutil.rmtree(folder / "3-logits")
    sequence.distil(earlier, folder)


def test_what_is_done_belongs_to_its_recipe(done, teacher, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    other = student(done[0].parent, teacher, "distill.stages.logits.optimiser={lr=1e-5}")
    with pytest.raises(UsageError, match=r"holds a run with another optimiser\.lr"):
        sequence.distil(other, folder)
    (folder / "2-states" / "step-00000006" / checkpoints.MANIFEST).write_text("{}")  # another run of as many steps
    with pytest.raises(UsageError, match="3-logits: began from another end of 2-states"):
        sequence.distil(student(done[0].parent, teacher), folder)


def test_a_stage_alone(teacher, tmp_path):
    recipe, folder = student(tmp_path, teacher), tmp_path / "run"
    found = sequence.distil(recipe, folder, only=("states",))
    assert [stage["name"] for stage in found["stages"]] == ["states"]
    assert sorted(path.name for path in folder.glob("?-*")) == ["2-states"]
    with pytest.raises(UsageError, match="no stage 'state'; it has matrices, states, logits"):
        sequence.distil(recipe, folder, only=("state",))
    with pytest.raises(UsageError, match="2-states: began without what 1-matrices comes to; remove this folder"):
        sequence.distil(recipe, folder)


def test_stages_one_by_one_are_all_at_once(done, teacher, tmp_path):
    """And the last one asked for in a folder where all are done is left alone, as is what came of them."""
    recipe, folder = student(done[0].parent, teacher), tmp_path / "run"
    for number, name in enumerate(("matrices", "states", "logits"), 1):
        assert len(sequence.distil(recipe, folder, only=(name,))["stages"]) == number
    assert all(same(done[0] / name, folder / name) for name in ALL)
    found = sequence.distil(recipe, folder, only=("matrices",))
    assert [stage["name"] for stage in found["stages"]] == ["matrices", "states", "logits"]
    assert sorted(path.name for path in folder.glob("?-*")) == list(ALL)


def test_a_stage_does_not_pass_over_one_that_is_half_done(teacher, tmp_path):
    recipe = student(tmp_path, teacher)
    with pytest.raises(KeyboardInterrupt):
        sequence.distil(recipe, tmp_path / "run", StopAt(3))
    with pytest.raises(UsageError, match="1-matrices: is not done, and logits would begin without it"):
        sequence.distil(recipe, tmp_path / "run", only=("logits",))


def updates(folder: Path) -> set[float]:
    """How often AdamW has changed the weights, as a run's newest checkpoint remembers it of each."""
    reader = distributed.Reader(checkpoints.complete(folder)[-1])
    stored = reader.read_metadata().state_dict_metadata
    found = {name: torch.empty(()) for name in stored if name.startswith("optimiser.") and name.endswith(".step")}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return {float(count) for count in found.values()}


def test_a_stage_that_goes_on_with_the_same_loss_keeps_the_optimisers_memory(teacher, tmp_path):
    """And not with another loss, by which other weights may have learned."""
    again = "distill.stages={first={compare='logits'}, second={compare='logits'}}"
    steps = ("schedule.shape=constant", "schedule.warmup=0", "optimiser.weight_decay=0.0")
    sequence.distil(student(tmp_path, teacher, again, *steps), tmp_path / "run")
    assert updates(tmp_path / "run" / "1-first") == {6.0} and updates(tmp_path / "run" / "2-second") == {12.0}
    changed = "distill.stages={first={compare='states'}, second={compare='logits'}}"
    sequence.distil(student(tmp_path, teacher, changed, *steps), tmp_path / "other")
    assert updates(tmp_path / "other" / "2-second") == {6.0}


def test_memory_is_one_teacher_and_one_student(teacher, tmp_path):
    """Counted in every step: models that have memory."""
    counted, others = set(), []

    def models():
        return [m for m in gc.get_objects() if type(m) is LanguageModel and not m.embedding.weight.is_meta]

    def count(told):
        if told.loss is not None:
            bounded = [m.config.bounded for m in models() if not any(m is other for other in others)]
            counted.add((bounded.count(False), bounded.count(True)))

    gc.collect()
    others += models()  # of other tests
    sequence.distil(student(tmp_path, teacher, "keep.validate=99"), tmp_path / "run", count)
    assert counted == {(1, 1)}


def test_with_kept_logits_the_teacher_may_be_gone(teacher, tmp_path):
    mine = tmp_path / "teacher"
    shutil.copytree(teacher, mine)
    recipe = student(tmp_path, mine, "distill.top_k=8")
    whole = sequence.distil(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        sequence.distil(recipe, tmp_path / "run", StopAt(6 + 6 + 3))
    shutil.rmtree(mine)
    found = sequence.distil(stages.taught_by(recipe, str(mine), tmp_path / "run"), tmp_path / "run")
    assert same(tmp_path / "whole" / "3-logits", tmp_path / "run" / "3-logits")
    assert found["teacher"] is None and found["student"] == whole["student"]


class StopAt:
    """Interrupts after so many steps."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self, told) -> None:
        self.left -= told.loss is not None
        if self.left == 0 and told.loss is not None:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_ternary_student_packs_without_loss(teacher, tmp_path):
    sequence.distil(student(tmp_path, teacher, "model.weights=ternary"), tmp_path / "run")
    model = leanlm.load(tmp_path / "run" / "model")
    packed = {name: w for name, w in model.module.weights().items() if isinstance(w, Packed)}
    assert len(packed) == 2 * 5 and all(isinstance(w, TernaryWeight) for w in packed.values())
    latents = distributed.tensors(checkpoints.complete(tmp_path / "run" / "3-logits")[-1])
    for name, weight in packed.items():
        scale = (latents[name].abs().mean() + 1e-5).half().float()
        wanted = (latents[name] / scale).clamp(-1, 1).round() * scale
        assert torch.equal(weight.dequantize(torch.float32), wanted), name


def test_an_absent_teacher_is_named(tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        sequence.distil(student(tmp_path, tmp_path / "nowhere"), tmp_path / "run")


def test_a_later_teacher_is_looked_for_before_anything_runs(teacher, tmp_path):
    later = "distill.stages.logits={distill={teacher='./nowhere'}}"
    with pytest.raises(NotFound, match="nowhere"):
        sequence.distil(student(tmp_path, teacher, later), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_vocabulary_is_refused(teacher, tmp_path):
    """With kept logits too."""
    text = tiny_distillations.TEACHER.replace("vocab_size = 300", "vocab_size = 310")
    path = tiny_distillations.recipe_file(tmp_path, text, "other")
    path.write_text(path.read_text().replace("vocab_size = 300", "vocab_size = 310"))
    other = train(recipes.read(path, ("schedule.steps=1",)), tmp_path / "other")
    for top_k in (0, 4):
        later = f"distill.stages.logits={{distill={{teacher='{other}', top_k={top_k}}}}}"
        with pytest.raises(UsageError, match="has 310 tokens, the student 300"):
            sequence.distil(student(tmp_path, teacher, later), tmp_path / "run")


def test_a_refused_recipe_leaves_the_folder_as_it_was(done, teacher, tmp_path):
    """Another teacher's tokenizer and config stay outside; logits too many to be kept can be made fewer."""
    folder, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(done[0], folder)
    shutil.copytree(teacher, other)
    (other / "tokenizer_config.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    with pytest.raises(UsageError, match=r"holds a run with another distill\.teacher"):
        sequence.distil(student(done[0].parent, other), folder)
    assert {path: path.read_bytes() for path in folder.glob("*.json")} == before
    with pytest.raises(UsageError, match="5000 of the teacher's 300 tokens; keep fewer"):
        sequence.distil(student(tmp_path, teacher, "distill.top_k=5000"), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_what_lies_in_the_folder_is_checked_before_anything_is_trained(teacher, tmp_path):
    recipe, folder = student(tmp_path, teacher), tmp_path / "run"
    sequence.distil(recipe, folder, only=("matrices", "logits"))
    with pytest.raises(UsageError, match="3-logits: began without what 2-states comes to"):
        sequence.distil(recipe, folder)
    assert not (folder / "2-states").exists()


def test_a_stage_that_never_took_a_step_has_not_begun(teacher, tmp_path, monkeypatch):
    recipe, folder = student(tmp_path, teacher), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="no text today"):
        patch.setattr(lesson.Lesson, "material", lambda *_: (_ for _ in ()).throw(UsageError("no text today")))
        sequence.distil(recipe, folder, only=("states",))
    assert (folder / "2-states" / "begun.json").is_file()
    found = sequence.distil(recipe, folder)
    assert len(found["stages"]) == 3 and "1-matrices" in (folder / "2-states" / "begun.json").read_text()


def test_a_corpus_is_what_was_made(done, teacher, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    (shard,) = (folder / "corpus" / "data").glob("*.bin")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=shard.name):
        sequence.distil(student(done[0].parent, teacher), folder)


def test_a_log_that_is_gone_is_not_missed(done, teacher, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    (folder / "2-states" / "log.jsonl").unlink()
    found = sequence.distil(student(done[0].parent, teacher), folder)
    assert ["loss" in stage for stage in found["stages"]] == [True, False, True]


def test_attention_kept_in_a_layer(teacher, tmp_path):
    heads = "model.config.attn_cfg={num_heads=4, num_heads_kv=2, head_dim=8}"
    recipe = student(tmp_path, teacher, "model.config.attn_layer_idx=[1]", heads)
    found = sequence.distil(recipe, tmp_path / "run")
    model = leanlm.load(tmp_path / "run" / "model")
    assert (
        found["layers"] == [0] and not model.config.bounded and [len(s.get("layers", ())) for s in found["stages"]] == [1, 1, 0]
    )
    kept = distributed.tensors(checkpoints.complete(tmp_path / "run" / "2-states")[-1])
    weights = leanlm.load(teacher).module.state_dict()
    assert all(torch.equal(kept[name], weights[name]) for name in kept if name.startswith("layers.1."))


OTHERS = {
    "mamba2": """
name = "student"
[model]
family = "mamba_ssm"
[model.config]
d_model = 32
n_layer = 2
vocab_size = 300
d_intermediate = 128
pad_vocab_size_multiple = 1
ssm_cfg = { layer = "Mamba2", d_state = 8, headdim = 8, expand = 1, ngroups = 4 }
tie_embeddings = true
[distill]
teacher = "TEACHER"
[distill.stages.matrices]
[distill.stages.states]
[distill.stages.logits]
""",
    "telescoping": """
name = "student"
[model]
family = "hf_llama"
[model.config]
model_type = "telescoping_llama"
hidden_size = 32
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 300
rms_norm_eps = 1e-5
max_position_embeddings = 24
tie_word_embeddings = true
full_attention_layers = [0]
telescoping = { slots = 8, merges = [2, 4, 6], merge = "self_score", entry_norm = false, mask_empty = true }
[distill]
teacher = "TEACHER"
[distill.stages.states]
[distill.stages.logits]
""",
}


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory):
    """A teacher with MLPs of 128, to which mamba_ssm rounds them."""
    folder = tmp_path_factory.mktemp("wide")
    text = tiny_distillations.TEACHER.replace("intermediate_size = 48", "intermediate_size = 128")
    made = recipes.read(tiny_distillations.recipe_file(folder, text, "teacher"), ("schedule.steps=4",))
    return train(made, folder / "teacher")


@pytest.mark.parametrize("kind", OTHERS)
def test_other_students(kind, wide_teacher, tmp_path):
    path = tiny_distillations.recipe_file(tmp_path, OTHERS[kind].replace("TEACHER", str(wide_teacher)), "student")
    found = sequence.distil(recipes.read(path), tmp_path / "run")
    model = leanlm.load(tmp_path / "run" / "model")
    assert model.config.layers[1][0].kind == kind and found["layers"] == ([1] if kind == "telescoping" else [0, 1])
    if kind == "mamba2":  # a telescoping student begins as good as done
        assert all(stage["loss"][1] < stage["loss"][0] for stage in found["stages"][:2])
    assert isinstance(model.generate("def ", max_new_tokens=2), str)


@pytest.mark.parametrize("weights", ["float", "ternary"])
def test_a_stage_begins_with_the_weights_the_one_before_ended_with(teacher, tmp_path, weights):
    """The latents, where these are ternary."""
    recipe = student(tmp_path, teacher, f"model.weights={weights}")
    sequence.distil(recipe, tmp_path / "run", only=("matrices",))
    nobody = Teacher("nowhere", recipe.compute, ALONE)
    taken = lesson.Lesson(nobody, tmp_path / "run" / "1-matrices", tmp_path / "run", None, print)
    module = taken.origin(stages.of(recipe)[1].recipe, tmp_path / "next").module
    ended = distributed.tensors(checkpoints.complete(tmp_path / "run" / "1-matrices")[-1])
    assert {name: weight.shape for name, weight in module.named_parameters()} == {n: t.shape for n, t in ended.items()}
    assert all(torch.equal(weight, ended[name]) for name, weight in module.named_parameters())


def test_16_bits_in_pieces_with_recomputed_layers(done, teacher, tmp_path):
    """The first losses of the stages are those of float32 in one piece, to what 16 bits hold."""
    settings = ("compute.dtype=bfloat16", "compute.checkpoint_blocks=0.5", "schedule.micro=3")
    found = sequence.distil(student(tmp_path, teacher, *settings), tmp_path / "run")
    first = found["stages"][0]["loss"][0]
    assert first == pytest.approx(done[1]["stages"][0]["loss"][0], rel=0.02)
    assert all(stage["loss"][1] < stage["loss"][0] for stage in found["stages"][:2])
