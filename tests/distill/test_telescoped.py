"""Attention given a telescoping cache: what stays the same, what changes, and that it can be saved, loaded and trained."""

import dataclasses

import pytest
import torch

from hybrid_models import build
from leanlm.api import Model, load
from leanlm.distill.telescoping import telescoped
from leanlm.errors import CheckpointError, UsageError
from leanlm.model.config import MLP, Attention, GatedMLP, Llama3Scaling, Mamba2, ModelConfig, Norm, Rope, Telescoping
from leanlm.quantize.convert import to_format
from leanlm.slots import NAMED, Table

TABLE = Table(12, (4, 8))
ROPE = Rope(8, 500.0, Llama3Scaling(8.0, 1.0, 4.0, 16))
SCAN = Mamba2(64, 8, 8)
LLAMA = {"norm": Norm(round_first=True), "context_length": 99}
MODELS = {
    "hf_llama": ModelConfig(32, 40, ((Attention(4, 2, 8, rope=ROPE), GatedMLP(48)),) * 3, **LLAMA),
    "fms_llama": ModelConfig(32, 40, ((Attention(4, 2, 8, rope=Rope(8)), GatedMLP(48)),) * 3, **LLAMA),
    "rene": ModelConfig(32, 40, ((SCAN,), (MLP(48),), (Attention(4, 4, 8, window=50),)), padded_vocab_size=48),
    "mamba_ssm": ModelConfig(32, 40, ((SCAN,), (Attention(4, 4, 8, rope=Rope(4)),)), residual_in_fp32=True),
}


def original(family: str) -> Model:
    return Model(build(MODELS[family]), family)


def text(length: int) -> torch.Tensor:
    return torch.randint(40, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("rule", ["l2", "self_score", "learned"])
def test_until_something_is_merged_it_computes_what_it_did(family, rule):
    model = original(family)
    made = telescoped(model, TABLE, rule)
    tokens = text(30)
    before, after = model(tokens), made(tokens)
    # As token 5 comes in, slot 4 takes what slots 3 and 4 hold: tokens 0 and 1.
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=2e-5)
    assert (after[:, 8:] - before[:, 8:]).abs().max() > 1e-3


@pytest.mark.parametrize("family", MODELS)
def test_it_is_saved_and_loaded(family, tmp_path):
    made = telescoped(original(family), NAMED["32"], "learned")
    made.save(tmp_path)
    again = load(tmp_path)
    assert again.config.layers == made.config.layers and again.config.bounded
    assert torch.equal(again(text(40)), made(text(40)))


def test_weights_are_shared_and_those_of_its_own_learn():
    model = original("hf_llama")
    made = telescoped(model, TABLE, "learned")
    weights = made.module.weights()
    assert all(weights[name].data_ptr() == weight.data_ptr() for name, weight in model.module.weights().items())
    made(text(30)).square().sum().backward()
    assert all(layer[0].mixer.weight_proj.weight.grad.abs().max() > 0 for layer in made.module.layers)


def test_layers_that_stay_full():
    made = telescoped(original("hf_llama"), TABLE, "l2", [0, 2])
    assert [type(layer[0]) for layer in made.config.layers] == [Attention, Telescoping, Attention]
    with pytest.raises(UsageError, match="layer 1 has no attention that could be kept; these have: 2"):
        telescoped(original("rene"), TABLE, "l2", [1])
    with pytest.raises(UsageError, match="no layer of attention"):
        telescoped(original("rene"), TABLE, "l2", [2])
    with pytest.raises(UsageError, match="3 have one already"):
        telescoped(telescoped(original("hf_llama"), TABLE), TABLE)


def test_few_bits_stay_few_bits():
    model = original("hf_llama")
    to_format(model.module, "int8-channel")
    made = telescoped(model, TABLE)
    assert made.module.layers[0][0].mixer.q_proj.weight is model.module.layers[0][0].mixer.q_proj.weight


def test_attention_with_a_convolution_is_refused():
    model = original("mamba_ssm")
    config = dataclasses.replace(model.config, layers=((SCAN,), (Attention(4, 4, 8, d_conv=4),)))
    with pytest.raises(CheckpointError, match="none for attention with a convolution"):
        telescoped(Model(build(config, 0), "mamba_ssm"), TABLE)
