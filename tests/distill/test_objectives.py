"""The losses of the stages: hand-computed cases, zeros where nothing is left to learn, and what receives a gradient."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from hybrid_models import build, text
from leanlm.data.batches import IGNORED, Batch
from leanlm.distill import objectives
from leanlm.distill.objectives import KeptLogits, Logits, Matrices, States
from leanlm.errors import UsageError
from leanlm.model.config import Attention, DiscreteMamba2, GatedMLP, Mamba2, ModelConfig, Rope, Telescoping

ATTENTION, MLP = Attention(4, 2, 6, rope=Rope(6)), GatedMLP(20)
SCAN = DiscreteMamba2(24, 4, 4, 6)
TEACHER = ModelConfig(24, 40, ((ATTENTION, MLP), (ATTENTION, MLP)))
STUDENTS = {
    "discrete": (SCAN, SCAN),
    "discrete in one layer": (ATTENTION, SCAN),
    "mamba2": (Mamba2(48, 6, 5),) * 2,
    "fewer heads": (DiscreteMamba2(24, 3, 3, 6),) * 2,
}


def models(name: str = "discrete"):
    layers = tuple((mixer, MLP) for mixer in STUDENTS[name])
    return build(dataclasses.replace(TEACHER, layers=layers), 1), build(TEACHER, 2).requires_grad_(False)


def batch(packed: bool = False) -> Batch:
    tokens = text(TEACHER, 2, 17)
    marks = torch.arange(17).ge(9).long().expand(2, -1) if packed else None
    return Batch(tokens[:, :-1], tokens[:, 1:].clone(), None if marks is None else marks[:, :-1])


def called(objective, given: Batch) -> Tensor:
    return objective(given.tokens, given.targets, given.segments)


def test_matrix_distance_by_hand():
    """Frobenius norms 5 and 0 in the first row, 13 and 1 in the second: means over heads 2.5 and 7."""
    found, wanted = torch.zeros(2, 2, 2, 2), torch.zeros(2, 2, 2, 2)
    found[0, 0] = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    wanted[1, 0] = torch.tensor([[5.0, 0.0], [12.0, 0.0]])
    found[1, 1, 1, 1], wanted[1, 1, 1, 1] = 3.0, 2.0
    assert objectives.matrix_distance(found, wanted).item() == 2.5 + 7


def test_heads_that_are_not_as_many_are_paired():
    """Three of the student's with heads 0, 1 and 2 of four; six of the student's with 0, 0, 1, 2, 2, 3."""
    wanted = torch.arange(4.0).view(1, 4, 1, 1)
    for pairs in ([0, 1, 2], [0, 0, 1, 2, 2, 3]):
        assert objectives.matrix_distance(torch.tensor(pairs).view(1, -1, 1, 1).float(), wanted) == 0


def test_state_distance_by_hand():
    found = torch.tensor([[[3.0, 4.0], [1.0, 1.0]]])
    wanted = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    assert objectives.state_distance(found, wanted).item() == 5 + 2


def test_soft_cross_entropy_by_hand():
    """Student 1/4, 3/4; teacher 1/2, 1/2: ln 4 / 2 + ln (4/3) / 2."""
    logits, wanted = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.5, 0.5]])
    expected = math.log(4) / 2 + math.log(4 / 3) / 2
    torch.testing.assert_close(objectives.soft_cross_entropy(logits, wanted), torch.tensor([expected]))


def test_kept_cross_entropy_by_hand():
    """Student 1/8, 1/8, 1/4, 1/2; of the teacher the last token's 3/4 is known: the others are one event of 1/4 against 1/2."""
    logits = torch.tensor([[1 / 8, 1 / 8, 1 / 4, 1 / 2]]).log()
    found = objectives.kept_cross_entropy(logits, torch.tensor([[3]]), torch.tensor([[0.75]]).log())
    torch.testing.assert_close(found, torch.tensor([0.75 * math.log(2) + 0.25 * math.log(2)]))


def test_kept_cross_entropy_of_all_but_one_is_the_whole():
    generator = torch.Generator().manual_seed(1)
    logits, log_p = torch.randn(2, 5, 9, generator=generator).log_softmax(-1)
    best = log_p.topk(8)
    found = objectives.kept_cross_entropy(logits, best.indices, best.values)
    torch.testing.assert_close(found, objectives.soft_cross_entropy(logits, log_p.exp()))


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "two documents"])
@pytest.mark.parametrize("name", STUDENTS)
@torch.no_grad()
def test_stage_1_is_the_mean_over_rows_and_heads(name, packed):
    model, teacher = models(name)
    objective, given = Matrices(model, teacher), batch(packed)
    found = called(objective, given) / objective.count(given)
    x, each = teacher.embedding(given.tokens), []
    for i, (ours, theirs) in enumerate(zip(model.layers, teacher.layers)):
        if i in objective.changed:
            segments = None if given.segments is None else given.segments - given.segments[:, :1]
            T, A = ours[0].mixer.matrix(ours[0].norm(x), segments), theirs[0].mixer.matrix(theirs[0].norm(x), segments)
            H = T.shape[1]
            norms = [[torch.linalg.matrix_norm(T[b, h] - A[b, h * 4 // H]) for h in range(H)] for b in range(2)]
            each.append(torch.tensor(norms).mean())
        for sublayer in theirs:
            x = sublayer(x, None, given.segments)
    torch.testing.assert_close(found[2:], torch.stack(each))
    torch.testing.assert_close(found[:2], torch.stack(each).sum().expand(2))


def test_stage_1_is_zero_where_the_matrices_are_equal(monkeypatch):
    model, teacher = models()
    same = [sublayer[0].mixer.matrix for sublayer in teacher.layers]
    for ours, matrix in zip(model.layers, same):
        monkeypatch.setattr(ours[0].mixer, "matrix", matrix)
        ours[0].norm.weight.data.copy_(teacher.layers[0][0].norm.weight)
    teacher.layers[1][0].norm.weight.data.copy_(teacher.layers[0][0].norm.weight)
    assert called(Matrices(model, teacher), batch()).abs().max() == 0


@pytest.mark.parametrize(("name", "shut"), [("discrete", ("out_proj", "z_bias")), ("mamba2", ("out_proj", "norm_weight"))])
def test_stage_1_teaches_what_the_matrix_is_made_of(name, shut):
    model, teacher = models(name)
    called(Matrices(model, teacher), batch())[0].backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    mixers = {name for name, _ in model.named_parameters() if ".0.mixer." in name}
    assert learned == {name for name in mixers if name.split(".mixer.")[1].split(".")[0] not in shut}
    if name == "discrete":
        rows = model.layers[0][0].mixer.in_proj.weight.grad.abs().sum(1)
        assert not rows[:24].any() and not rows[72:96].any() and (rows[24:72] > 0).all() and (rows[96:] > 0).all()


@pytest.mark.parametrize("name", STUDENTS)
def test_stage_2_compares_with_the_stream_before_the_final_norm(name):
    model, teacher = models(name)
    objective, given = States(model, teacher), batch()
    found = called(objective, given) / objective.count(given)
    streams, each = list(teacher.streams(given.tokens)), []
    for i in objective.changed:
        y = streams[i]
        for sublayer in model.layers[i]:
            y = sublayer(y)
        each.append((y - streams[i + 1]).norm(dim=-1).mean())
    assert len(streams) == len(model.layers) + 2 and not torch.allclose(streams[-2], streams[-1])
    torch.testing.assert_close(found[2:], torch.stack(each))
    torch.testing.assert_close(found[0], torch.stack(each).sum())


def test_stage_2_with_frozen_mlps_compares_mixers():
    model, teacher = models()
    objective, given = States(model, teacher, freeze_mlp=True), batch()
    loss = called(objective, given)
    x = teacher.embedding(given.tokens)
    ours, theirs = model.layers[0][0], teacher.layers[0][0]
    wanted = (ours.mixer(ours.norm(x)) - theirs.mixer(theirs.norm(x))).norm(dim=-1).sum()
    torch.testing.assert_close(loss[2], wanted)
    loss[0].backward()
    assert {n for n, w in model.named_parameters() if w.grad is not None} == {
        n for n, _ in model.named_parameters() if ".0.mixer." in n
    }


def test_stage_2_teaches_the_layers_with_a_new_mixer():
    model, teacher = models("discrete in one layer")
    called(States(model, teacher), batch())[0].backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if name.startswith("layers.1.")}


def test_stage_2_is_zero_for_the_teacher_itself():
    model, teacher = models("discrete in one layer")
    objective = States(model, teacher)
    assert objective.changed == [1]
    objective.changed = [0]  # the layer that is kept
    model.layers[0].load_state_dict(teacher.layers[0].state_dict())
    assert called(objective, batch())[0] == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_stage_3_is_the_mean_over_targets(temperature, monkeypatch):
    model, teacher = models()
    given = batch()
    given.targets[0, :5] = IGNORED
    objective = Logits(model, teacher, temperature)
    found = called(objective, given) / objective.count(given)
    p, log_q = teacher(given.tokens).softmax(-1), (model(given.tokens) / temperature).log_softmax(-1)
    each = -(p * log_q).sum(-1)[given.targets != IGNORED]
    assert objective.count(given) == len(each)
    torch.testing.assert_close(found, each.mean().expand(2))
    monkeypatch.setattr("leanlm.train.loss.PART", 40 * 7)  # seven tokens at a time
    torch.testing.assert_close(called(objective, given) / objective.count(given), found)


def test_stage_3_from_kept_logits_nears_the_teachers():
    model, teacher = models()
    given = batch()
    best = teacher(given.tokens).log_softmax(-1).topk(39)
    kept = KeptLogits(model)(given.tokens, given.targets, None, best.indices.int(), best.values.half())
    torch.testing.assert_close(kept, called(Logits(model, teacher), given), rtol=1e-4, atol=0)


def test_the_teacher_is_no_part_of_the_module():
    model, teacher = models()
    for objective in (Matrices(model, teacher), States(model, teacher), Logits(model, teacher)):
        assert set(objective.state_dict()) == {f"model.{name}" for name in model.state_dict()}
        torch.testing.assert_close(objective(batch().tokens), model(batch().tokens))


def test_a_telescoping_cache_has_no_matrix_to_align():
    cache = Telescoping.of(ATTENTION, slots=9, merges=(2, 5), merge="self_score")
    model = build(dataclasses.replace(TEACHER, layers=((cache, MLP),) * 2))
    with pytest.raises(UsageError, match="begin with states"):
        Matrices(model, build(TEACHER))


def test_a_scan_with_a_skip_per_channel_is_no_matrix():
    scan = Mamba2(24, 6, 6, d_per_channel=True)
    with pytest.raises(UsageError, match="no matrix per head"):
        Matrices(build(dataclasses.replace(TEACHER, layers=((scan, MLP),) * 2)), build(TEACHER))
