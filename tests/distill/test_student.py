"""Students made of teachers: what is transferred, how new mixers begin, what is refused."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from hybrid_models import build, text
from leanlm import families
from leanlm.distill import student
from leanlm.errors import UsageError
from leanlm.model.config import Attention, DiscreteMamba2, GatedMLP, Mamba2, ModelConfig, Norm, Rope, Telescoping
from leanlm.model.language_model import LanguageModel

ATTENTION, MLP = Attention(4, 2, 6, rope=Rope(6)), GatedMLP(20)
SCAN = DiscreteMamba2(24, 4, 4, 6)
TEACHER = ModelConfig(24, 40, ((ATTENTION, MLP),) * 3)


def with_mixers(*mixers, **changes) -> ModelConfig:
    return dataclasses.replace(TEACHER, layers=tuple((mixer, MLP) for mixer in mixers), **changes)


def begun(config: ModelConfig, teacher: LanguageModel | None = None, init: str = "published", seed: int = 0) -> LanguageModel:
    with torch.device("meta"):
        module = LanguageModel(config)
    student.begin(teacher or build(TEACHER), module, init, seed)
    return module


def test_all_but_the_new_mixers_is_the_teachers():
    teacher, module = build(TEACHER), begun(with_mixers(SCAN, ATTENTION, SCAN))
    held, shared = teacher.weights(), 0
    for name, weight in module.named_parameters():
        if not name.startswith(("layers.0.0.mixer", "layers.2.0.mixer")):
            assert torch.equal(weight, held[name]), name
            shared += 1
    assert shared == 1 + 1 + 3 * 5 + 4
    assert not torch.equal(module.layers[0][0].mixer.out_proj.weight, teacher.layers[0][0].mixer.out_proj.weight)


def test_the_same_seed_makes_the_same_student():
    one, same, other = (begun(with_mixers(SCAN, SCAN, SCAN), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one.layers[0][0].mixer.in_proj.weight, other.layers[0][0].mixer.in_proj.weight)


def test_the_published_start():
    """silu(z_bias) = 1 with nothing from z, the last tap alone, D = 1: the mixer is out_proj(T x) of its own projections."""
    mixer = begun(with_mixers(SCAN, SCAN, SCAN)).layers[1][0].mixer
    torch.testing.assert_close(F.silu(mixer.z_bias), torch.ones(24))
    assert not mixer.in_proj.weight[72:96].any()
    assert torch.equal(mixer.conv.weight[..., -1], torch.ones(72, 1)) and not mixer.conv.weight[..., :-1].any()
    assert not mixer.conv.bias.any() and torch.equal(mixer.D, torch.ones(4))
    x = torch.randn(2, 9, 24)
    values = F.linear(x, mixer.in_proj.weight[:24]).unflatten(-1, (4, 6))
    mixed = (mixer.matrix(x) @ values.transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x), F.linear(mixed, mixer.out_proj.weight), rtol=0, atol=1e-5)


@torch.no_grad()
def test_new_matrices_have_the_published_spread():
    """That of torch's linear layers, 1/sqrt(3 inputs); of the output also divided by the root of the number of layers."""
    mixers = [begun(with_mixers(SCAN, SCAN, SCAN), seed=seed).layers[0][0].mixer for seed in range(20)]
    rows = torch.cat([torch.cat([m.in_proj.weight[:72], m.in_proj.weight[96:]]) for m in mixers])
    output = torch.cat([m.out_proj.weight for m in mixers])
    assert float(rows.std()) == pytest.approx((3 * 24) ** -0.5, rel=0.02)
    assert float(output.std()) == pytest.approx((3 * 24 * 3) ** -0.5, rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize("scan", [SCAN, Mamba2(24, 6, 6, n_groups=4)], ids=["discrete", "mamba2"])
def test_projections_from_attention(scan):
    """x, B and C of head h are the values, keys and queries of query head h, without positions; two heads share a key head."""
    teacher = build(TEACHER)
    mixer = begun(with_mixers(scan, scan, scan), teacher, "attention").layers[0][0].mixer
    attention = teacher.layers[0][0].mixer
    x = torch.randn(2, 5, 24)
    q, k, v = (p(x).unflatten(-1, (-1, 6)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    start = 0 if isinstance(scan, DiscreteMamba2) else 24
    rows = mixer.in_proj.weight[start : start + 72]
    found = [F.linear(x, part).unflatten(-1, (4, 6)) for part in rows.split(24)]
    for h in range(4):
        for part, wanted in zip(found, (v[:, :, h // 2], k[:, :, h // 2], q[:, :, h])):
            torch.testing.assert_close(part[:, :, h], wanted)
    assert torch.equal(mixer.out_proj.weight, attention.out_proj.weight)


def test_key_heads_are_repeated_whole():
    weight = torch.arange(6.0)[:, None]  # two heads of three rows
    assert student.expanded(weight, 3, 2)[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_projections_that_do_not_fit_are_refused():
    narrow = dataclasses.replace(SCAN, d_state=5)
    with pytest.raises(UsageError, match="layer 0 would need d_state = 6 and has 5"):
        begun(with_mixers(narrow, narrow, narrow), init="attention")
    assert begun(with_mixers(narrow, narrow, narrow))


def test_a_telescoping_student_computes_what_the_teacher_did_until_something_is_merged():
    cache = Telescoping.of(ATTENTION, slots=12, merges=(4, 8), merge="learned", entry_norm=False, mask_empty=True)
    teacher, tokens = build(TEACHER), text(TEACHER, 2, 30)
    module = begun(with_mixers(cache, ATTENTION, cache), teacher)
    torch.testing.assert_close(module(tokens)[:, :5], teacher(tokens)[:, :5], rtol=0, atol=2e-5)


def test_vocabularies_may_be_padded_differently():
    teacher = build(TEACHER)
    module = begun(with_mixers(SCAN, SCAN, SCAN, padded_vocab_size=48), teacher)
    assert torch.equal(module.embedding.weight[:40], teacher.embedding.weight) and not module.embedding.weight[40:].any()


def test_weights_that_the_teacher_lacks_are_named():
    with pytest.raises(UsageError, match=r"layers.0.0.norm.bias: the teacher has no such weight"):
        begun(with_mixers(SCAN, SCAN, SCAN, norm=Norm("layer"), final_norm=Norm()))


def test_heads_tied_and_untied():
    module = begun(with_mixers(SCAN, SCAN, SCAN, tied=False))
    assert torch.equal(module.head.weight, module.embedding.weight)
    untied = dataclasses.replace(TEACHER, tied=False)
    with pytest.raises(UsageError, match="make both tied or untied"):
        begun(with_mixers(SCAN, SCAN, SCAN), build(untied))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (ModelConfig(30, 40, ((SCAN, MLP),) * 3), "d_model = 24, the student 30"),
        (ModelConfig(24, 41, ((SCAN, MLP),) * 3), "vocab_size = 40, the student 41"),
        (with_mixers(SCAN, SCAN), "3 layers, the student 2"),
        (ModelConfig(24, 40, ((SCAN, GatedMLP(21)),) * 3), "layer 0: the student's gated_mlp"),
        (with_mixers(ATTENTION, ATTENTION, dataclasses.replace(ATTENTION, window=3)), "layer 2: attention is replaced by"),
        (TEACHER, "nothing to distil"),
    ],
)
def test_a_student_of_another_shape_is_refused(changed, says):
    with pytest.raises(UsageError, match=says):
        student.replaced(TEACHER, changed)


def test_what_differs_is_said():
    fewer = DiscreteMamba2(24, 3, 3, 6)
    said = student.notes(TEACHER, with_mixers(fewer, fewer, fewer, norm=Norm(eps=1e-3)))
    assert "4 heads in the teacher, 3 in the student" in said[0] and "norms differ" in said[1]
    assert student.notes(TEACHER, with_mixers(SCAN, SCAN, SCAN)) == []


def test_a_student_derived_from_its_teacher_is_a_llamba():
    llamba = families.get("llamba")
    like = llamba.to_config({
        "model_type": "llamba", "d_model": 16, "n_layer": 1, "vocab_size": 9, "mlp_cfg": {"intermediate_size": 8},
        "ssm_cfg": {"n_v_heads": 2, "d_state": 7},
    })  # fmt: skip
    teacher = dataclasses.replace(TEACHER, tied=False, final_norm=Norm(eps=1e-6), eos_ids=(3,))
    made = student.derived(teacher, like)
    assert student.replaced(teacher, made) == [0, 1, 2] and not made.tied and made.final_norm.eps == 1e-6
    assert made.layers[0][0] == dataclasses.replace(like.layers[0][0], d_inner=24, n_v_heads=4, n_qk_heads=4)
    assert llamba.to_config(llamba.from_config(made)) == made
    with pytest.raises(UsageError, match="5 heads of attention do not divide its 24"):
        student.derived(dataclasses.replace(teacher, layers=((Attention(5, 5, 6), MLP),)), like)
