"""Every format's translations invert each other, and agree with independent statements of the formats."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanlm import families
from leanlm.errors import CheckpointError
from leanlm.families.names import to_ours, to_theirs
from leanlm.model.config import Attention, DiscreteMamba2, GatedMLP, Llama3Scaling, Mamba1, Mamba2, ModelConfig, Norm, Rope
from leanlm.model.language_model import LanguageModel
from random_configs import CONFIGS, fms_llamas

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def published(name: str) -> st.SearchStrategy:
    return CONFIGS[name].map(lambda config: (families.get(name), config))


def random_parameters(config: ModelConfig) -> dict[str, torch.Tensor]:
    return {name: 0.3 * torch.randn_like(p) for name, p in LanguageModel(config).named_parameters()}


def test_every_family_is_tried():
    assert CONFIGS.keys() == families.FAMILIES.keys()


@pytest.mark.parametrize("name", CONFIGS)
@few
@given(data=st.data())
def test_configs(name, data):
    family, config = data.draw(published(name))
    raw = json.loads(json.dumps(family.from_config(config)))
    assert family.to_config(raw) == config
    assert families.find(raw) is family


@pytest.mark.parametrize("name", CONFIGS)
@few
@given(data=st.data())
def test_tensors(name, data):
    family, config = data.draw(published(name))
    rules, ours = family.rules(config), random_parameters(config)
    theirs = to_theirs(rules, ours)
    again = to_ours(rules, theirs)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    twice = to_theirs(rules, again)
    assert theirs.keys() == twice.keys() == {rule.theirs for rule in rules if not rule.optional}
    assert all(torch.equal(theirs[name], twice[name]) for name in theirs)


def test_what_a_format_cannot_say_is_refused():
    mixer = Mamba2(8, 4, 4, norm_before_gate=True)
    config = ModelConfig(4, 10, ((mixer,),), norm=Norm(round_first=True))
    with pytest.raises(CheckpointError, match="hf_mamba2 format cannot hold this model: it would lose layers"):
        families.get("hf_mamba2").from_config(config)
    with pytest.raises(CheckpointError, match="hf_llama format cannot hold this model"):
        families.get("hf_llama").from_config(config)


def test_a_tied_head_in_the_file_changes_nothing():
    """state-spaces files repeat it."""
    family = families.get("mamba_ssm")
    config = family.to_config({"d_model": 4, "n_layer": 1, "vocab_size": 5, "ssm_cfg": {}})
    rules, ours = family.rules(config), random_parameters(config)
    theirs = {**to_theirs(rules, ours), "lm_head.weight": torch.zeros(8, 4)}
    assert theirs.keys() == {rule.theirs for rule in rules}
    assert torch.equal(to_ours(rules, theirs)["embedding.weight"], ours["embedding.weight"])
    del theirs["backbone.embedding.weight"]
    assert not to_ours(rules, theirs)["embedding.weight"].any()


def test_a_stacked_tensor_of_other_height():
    rules = families.get("fms_llama").rules(ModelConfig(4, 5, ((Attention(1, 1, 4, rope=Rope(4)), GatedMLP(4)),)))
    with pytest.raises(CheckpointError, match=r"qkv_fused.weight' has 11 rows and should have 12"):
        to_ours(rules, {"layers.0.attn.in_proj.qkv_fused.weight": torch.zeros(11, 4)})


ROUND_FIRST = Norm(eps=1e-6, round_first=True)
MAMBA2 = Mamba2(16, 4, 8, n_groups=2, norm_eps=1e-6, dt_max=0.1)
ROTARY = Attention(4, 2, 6, rope=Rope(6, 500000.0, Llama3Scaling(8.0, 1.0, 4.0, 64)), qkv_bias=True, out_bias=True)
PARTIAL = Attention(2, 1, 4, rope=Rope(2))
TRANSFORMERS = {
    "Mamba": ModelConfig(8, 11, ((Mamba1(16, 4, dt_rank=2, bias=True),),) * 2, norm=ROUND_FIRST, context_length=64),
    "Mamba2": ModelConfig(8, 11, ((MAMBA2,),) * 2, norm=ROUND_FIRST, tied=False, context_length=64),
    "Bamba": ModelConfig(8, 11, ((MAMBA2, GatedMLP(12)), (PARTIAL, GatedMLP(12))), norm=ROUND_FIRST, context_length=64),
    "Llama": ModelConfig(
        8, 11, ((ROTARY, GatedMLP(12, True)),) * 2, norm=ROUND_FIRST, tied=False, context_length=64, eos_ids=(3, 4)
    ),
}


@pytest.mark.slow  # importing transformers
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_against_transformers(kind):
    """transformers reads our config.json, has exactly our tensors, and gives our logits."""
    transformers = pytest.importorskip("transformers")
    config = TRANSFORMERS[kind]
    family = families.get(f"hf_{kind.lower()}")
    theirs = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config").from_dict(family.from_config(config))
    ).eval()
    assert family.to_config(theirs.config.to_dict()) == config
    ours = LanguageModel(config)
    names = {name for name in theirs.state_dict() if not (config.tied and name == "lm_head.weight")}
    assert names == {rule.theirs for rule in family.rules(config) if not rule.optional}
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        ours.load_state_dict(to_ours(family.rules(config), theirs.state_dict()))
        tokens = torch.randint(0, 11, (2, 19))
        torch.testing.assert_close(ours(tokens), theirs(tokens, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def fms_forward(raw: dict, tensors: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The Foundation-Model-Stack Llama written down from its description: rotary turns neighbouring channels as complex
    numbers, q|k|v and gate|up are fused."""

    def norm(x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + raw["norm_eps"]) * tensors[name]

    def linear(x, name):
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def turn(heads):
        L, _, width = heads.shape
        angles = torch.arange(L)[:, None] * raw["rope_theta"] ** (-torch.arange(0, width, 2) / width)
        turned = torch.view_as_complex(heads.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(-2)

    heads, shared = raw["nheads"], raw["kvheads"]
    width = raw["emb_dim"] // heads
    x = tensors["shared.emb.weight"][tokens]  # [L, D]
    for i in range(raw["nlayers"]):
        layer = f"layers.{i}"
        qkv = linear(norm(x, f"{layer}.ln.weight"), f"{layer}.attn.in_proj.qkv_fused")
        q, k, v = (part.unflatten(-1, (-1, width)) for part in qkv.split([heads * width, shared * width, shared * width], -1))
        q, k, v = turn(q), *(part.repeat_interleave(heads // shared, 1) for part in (turn(k), v))
        scores = torch.einsum("lhd,mhd->hlm", q, k) / math.sqrt(width)
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        x = x + linear(torch.einsum("hlm,mhd->lhd", scores, v).flatten(1), f"{layer}.attn.dense")
        gate, up = linear(norm(x, f"{layer}.ff_ln.weight"), f"{layer}.ff_sub_layer.wg1_fused").chunk(2, -1)
        x = x + linear(F.silu(gate) * up, f"{layer}.ff_sub_layer.w2")
    x = norm(x, "dec_norm.weight")
    return F.linear(x, tensors["shared.emb.weight" if raw["tie_heads"] else "shared.head.weight"])


@settings(max_examples=20, deadline=None)
@given(fms_llamas())
def test_fms_llama_numerics(config):
    family = families.get("fms_llama")
    ours = random_parameters(config)
    module = LanguageModel(config)
    module.load_state_dict(ours)
    tokens = torch.randint(0, config.vocab_size, (7,))
    expected = fms_forward(family.from_config(config), to_theirs(family.rules(config), ours), tokens)
    with torch.no_grad():
        torch.testing.assert_close(module(tokens[None])[0], expected, rtol=1e-4, atol=1e-4)


def test_a_llamba_that_keeps_attention_in_some_layers():
    """Our own extension; a Llamba without attention is written as before."""
    llamba, mlp = families.get("llamba"), GatedMLP(20)
    kept = Attention(4, 2, 6, rope=Rope(6, 500.0, Llama3Scaling(8.0, 1.0, 4.0, 64)))
    scan = DiscreteMamba2(24, 4, 4, 6)
    config = ModelConfig(24, 40, ((kept, mlp), (scan, mlp), (kept, mlp)), norm=Norm(round_first=True))
    raw = json.loads(json.dumps(llamba.from_config(config)))
    assert llamba.to_config(raw) == config and raw["attn_layer_idx"] == [0, 2]
    ours = random_parameters(config)
    theirs = to_theirs(llamba.rules(config), ours)
    again = to_ours(llamba.rules(config), theirs)
    assert all(torch.equal(again[name], ours[name]) for name in ours) and "backbone.layers.0.mixer.q_proj.weight" in theirs
    assert "attn_layer_idx" not in llamba.from_config(ModelConfig(24, 40, ((scan, mlp),), norm=config.norm))
    with pytest.raises(CheckpointError, match="attn_layer_idx names layer 3"):
        llamba.to_config(raw | {"attn_layer_idx": [3]})
