"""GPTQ through whole models: what is changed, on which inputs, and that every mixer still keeps its contract of state."""

import copy

import pytest
import torch

from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm.errors import CheckFailed, CheckpointError, LeanLMError, UsageError
from leanlm.model.config import MLP, Attention, GatedMLP, Mamba1, Mamba2, ModelConfig
from leanlm.model.format import Grouped
from leanlm.model.packed import Packed
from leanlm.quantize import calibrate as calibration
from leanlm.quantize import gptq, rtn
from leanlm.quantize.calibrate import calibrate, samples

INT4 = Grouped(4)


def plan_of(module, format=INT4):
    """Every linear layer inside the mixers but dt_proj."""
    return {n: format for n in module.matrices() if n.startswith("layers") and not n.endswith("dt_proj.weight")}


@torch.no_grad()
def check_cut(module, tokens, sizes):
    state = module.new_state(len(tokens))
    whole = module(tokens)
    cut = torch.cat([module(piece, state) for piece in tokens.split(sizes, 1)], 1)
    assert (cut - whole).abs().max() <= 3e-5 * max(1, whole.abs().max())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_mixer_is_calibrated_in_place_and_keeps_its_contract_of_state(name):
    module = build(alone(ONE_OF_EACH[name]))
    before = {name: weight.detach().clone() for name, weight in module.weights().items()}
    plan = plan_of(module)
    results = calibrate(module, text(module.config, 6, 20), plan)
    assert results.keys() == plan.keys()
    for name, weight in module.weights().items():
        if name in plan:
            assert isinstance(weight, Packed) and weight.format == plan[name] and weight.dtype == torch.float32
            assert 0 < results[name].weight_error < 0.1 and 0 < results[name].output_error < 0.05
        else:
            assert torch.equal(weight, before[name]), name
    check_cut(module, text(module.config, 2, 40, 1), [1, 17, 2, 20])


def test_only_what_is_planned_changes_each_in_its_own_format():
    module = build(alone(Attention(4, 2, 6)))
    plan = {"layers.1.0.mixer.up_proj.weight": Grouped(3, 8), "layers.1.1.mixer.q_proj.weight": Grouped(6, 0, False)}
    calibrate(module, text(module.config, 4, 20), plan)
    assert {n: m.format for n, m in module.matrices().items() if m.format} == plan


HYBRID = ((Mamba1(24, 4, 4, 2), GatedMLP(16)), (Mamba2(16, 8, 6, d_mlp=8), MLP(16), Attention(2, 1, 8, d_conv=3)))


def hybrid(dtype=torch.float32, seed=0, **settings):
    return build(ModelConfig(24, 40, HYBRID, context_length=64, **settings), seed, dtype)


def inputs_of(module, tokens):
    """What every matrix is given when the whole model reads `tokens`: [tokens, n]."""
    found, hooks = {}, []
    for name, matrix in module.matrices().items():
        hooks.append(
            matrix.register_forward_pre_hook(lambda m, given, name=name: found.update({name: given[0].flatten(0, -2)}))
        )
    module(tokens)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
@pytest.mark.parametrize("act_order", [False, True])
def test_each_matrix_is_fitted_to_what_the_matrices_before_it_now_make_of_the_text(act_order, monkeypatch):
    """By brute force: for one stage after the other, run the whole model, quantised as far as it is, and look."""
    module, format = hybrid(torch.float64), Grouped(4, 8)
    tokens, slow = text(module.config, 6, 20), copy.deepcopy(module)
    monkeypatch.setattr(calibration, "TOKENS", 40)
    results = calibrate(module, tokens, plan_of(module, format), act_order=act_order)
    for name in plan_of(slow):
        x = inputs_of(slow, tokens)[name]
        matrix, hessian = slow.matrices()[name], 2 / len(x) * x.T @ x
        done = gptq.quantize(matrix.weight, hessian, format, act_order=act_order)
        assert module.weights()[name].equal(done.weight), name
        energy = gptq.objective(matrix.weight, hessian)
        assert results[name].output_error == pytest.approx(done.objective / energy, rel=1e-6)
        change = matrix.weight - done.weight.dequantize()
        assert results[name].weight_error == pytest.approx((change.norm() / matrix.weight.norm()).item() ** 2, rel=1e-6)
        matrix.hold(done.weight)


def test_stages_are_the_matrices_that_share_an_input():
    short = []
    for sublayer in hybrid().sublayers():
        ours = [f"mixer.{name}.weight" for name, _ in sublayer.mixer.named_children() if name.endswith("_proj")]
        stages = calibration._stages(sublayer, torch.randn(1, 5, 24), dict.fromkeys(n for n in ours if "dt" not in n), "")
        short.append([[name.split(".")[1] for name in stage] for stage in stages])
    assert short == [
        [["in_proj"], ["x_proj"], ["out_proj"]],
        [["gate_proj", "up_proj"], ["down_proj"]],
        [["in_proj"], ["out_proj"]],
        [["in_proj"], ["out_proj"]],
        [["q_proj", "k_proj", "v_proj"], ["out_proj"]],
    ]


@torch.no_grad()
def test_outputs_are_closer_than_with_round_to_nearest():
    """On texts of the same kind that were not calibrated on."""
    format, distances = Grouped(4, 8), torch.zeros(2)
    for seed in range(4):
        module = hybrid(seed=seed)
        tokens, unseen, nearest = text(module.config, 24, 40), text(module.config, 8, 40, 1), copy.deepcopy(module)
        wanted = module(unseen)
        calibrate(module, tokens, plan_of(module, format))
        for name in plan_of(nearest):
            nearest.matrices()[name].hold(rtn.quantize(nearest.matrices()[name].weight, format))
        distances += torch.stack([(m(unseen) - wanted).norm() for m in (module, nearest)])
    assert distances[0] < 0.95 * distances[1]


@pytest.mark.parametrize("residual_in_fp32", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_stay_what_they_are(dtype, residual_in_fp32):
    module = hybrid(dtype, residual_in_fp32=residual_in_fp32)
    kept = {n: w.detach().clone() for n, w in module.weights().items() if n not in plan_of(module)}
    wide = copy.deepcopy(module).float()
    tokens = text(module.config, 6, 20)
    found, exact = calibrate(module, tokens, plan_of(module)), calibrate(wide, tokens, plan_of(module))
    for name, weight in module.weights().items():
        assert weight.dtype == dtype and (name in found or torch.equal(weight, kept[name])), name
    for name, result in found.items():  # other roundings of the stream, else the same
        assert result.output_error == pytest.approx(exact[name].output_error, rel=0.3)
    logits = module(tokens)
    assert logits.dtype == dtype and (logits.float() - wide(tokens)).norm() <= 0.1 * wide(tokens).norm()


def test_progress_is_told_every_matrix_in_the_order_of_work():
    module, seen = hybrid(), []
    results = calibrate(module, text(module.config, 4, 20), plan_of(module), progress=seen.append)
    assert seen == list(results.values()) and [r.name for r in seen] == list(plan_of(module))
    assert all(r.seconds > 0 and r.damping == 0.01 for r in seen)


def test_refusals_come_before_anything_is_changed():
    module = hybrid()
    tokens, first = text(module.config, 4, 20), "layers.0.0.mixer.in_proj.weight"

    def refused(error, match, plan, tokens=tokens):
        with pytest.raises(error, match=match) as caught:
            calibrate(module, tokens, {first: Grouped(4), **plan})
        assert "\n" not in str(caught.value)
        assert module.matrices()[first].format is None

    refused(UsageError, r"^embedding\.weight: no matrix of a layer", {"embedding.weight": Grouped(8)})
    refused(UsageError, r"^layers\.9\.0\.mixer\.in_proj\.weight: no matrix", {"layers.9.0.mixer.in_proj.weight": Grouped(8)})
    refused(
        UsageError, r"^layers\.0\.0\.mixer\.dt_proj\.weight: what it is mult", {"layers.0.0.mixer.dt_proj.weight": Grouped(8)}
    )
    refused(UsageError, r"^layers\.0\.1\.mixer\.up_proj\.weight: 24 in", {"layers.0.1.mixer.up_proj.weight": Grouped(4, 16)})
    refused(UsageError, "token 40 .*knows ids 0 to 39", {}, torch.full((2, 8), 40))
    with torch.no_grad():
        module.matrices()["layers.1.1.mixer.in_proj.weight"].weight[3, 3] = float("inf")
    refused(
        CheckpointError, r"^layers\.1\.1\.mixer\.in_proj\.weight: holds NaN", {"layers.1.1.mixer.in_proj.weight": Grouped(4)}
    )


def test_packed_matrices_and_streams_that_overflow_are_refused():
    module = hybrid()
    tokens, name = text(module.config, 4, 20), "layers.0.1.mixer.up_proj.weight"
    with torch.no_grad():
        module.layers[0][0].norm.weight[0] = float("nan")
    with pytest.raises(CheckFailed, match=r"^layers\.0\.1\.mixer\.up_proj\.weight: its inputs are NaN"):
        calibrate(module, tokens, {name: Grouped(4)})
    calibrate(hybrid(), tokens, {name: Grouped(4)})
    module.matrices()[name].hold(rtn.quantize(module.matrices()[name].weight, Grouped(4)))
    with pytest.raises(UsageError, match="is int4-channel already"):
        calibrate(module, tokens, {name: Grouped(4)})


def test_samples_are_windows_of_the_documents_without_overlap():
    documents = [[1, 2, 3], [4], list(range(5, 30))]
    joined = [1, 2, 3, 0, 4, 0, *range(5, 30), 0]  # 32 tokens
    drawn = samples(documents, 0, 8, 4, seed=3)
    assert drawn.shape == (8, 4) and drawn.dtype == torch.int64
    assert sorted(drawn.tolist()) == sorted(joined[i : i + 4] for i in range(0, 32, 4))
    assert torch.equal(drawn, samples(documents, 0, 8, 4, seed=3))
    assert not torch.equal(drawn, samples(documents, 0, 8, 4, seed=4))
    assert samples(documents, 0, 2, 5).shape == (2, 5)


@pytest.mark.parametrize("documents", [[], [[1, 2]], [list(range(15))] * 2])
def test_text_that_is_too_short_is_refused_with_what_is_needed(documents):
    have = sum(len(d) + 1 for d in documents)
    with pytest.raises(LeanLMError, match=rf"^calibration text has {have} tokens; 3 samples of 11 need 33: .*--samples"):
        samples(documents, 0, 3, 11)
    with pytest.raises(UsageError, match="at least one"):
        samples(documents, 0, 0, 11)
