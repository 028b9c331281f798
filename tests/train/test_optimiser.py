"""Who decays, and the step on clipped gradients that a loss scale made too large."""

import math

import pytest
import torch
from torch import nn

from leanlm.model import config
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.train import optimiser as optimisers
from leanlm.train.recipe import Optimiser
from leanlm.train.schedule import Rates

EVERY_MIXER = (
    config.Attention(n_heads=2, n_kv_heads=1, head_dim=4, qkv_bias=True, out_bias=True, d_conv=3),
    config.MLP(8, bias=True),
    config.GatedMLP(8),
    config.Mamba1(d_inner=8, d_state=4, dt_rank=2, bias=True),
    config.Mamba2(d_inner=8, head_dim=4, d_state=4, d_per_channel=True),
    config.DiscreteMamba2(d_inner=8, n_v_heads=2, n_qk_heads=2, d_state=4),
)


def test_only_matrices_and_convolutions_decay():
    cfg = ModelConfig(d_model=8, vocab_size=9, layers=tuple((m,) for m in EVERY_MIXER), tied=False, norm=config.Norm("layer"))
    with torch.device("meta"):
        module = LanguageModel(cfg)
    decayed, free = optimisers.build(module, Optimiser(lr=1.0)).param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names) and free["weight_decay"] == 0
    kept = {names[id(p)].rpartition(".")[2] for p in free["params"]}
    assert kept == {"A_log", "D", "dt_bias", "z_bias", "norm_weight", "bias", "weight"}
    assert {names[id(p)].split(".")[-2] for p in free["params"] if names[id(p)].endswith(".weight")} == {"norm"}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("clip", [0.0, 0.5, 1e9])
def test_the_step_is_torchs_own_on_clipped_gradients(scale, clip):
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(6, 5)

    ours, theirs = made(), made()
    optimiser = optimisers.build(ours, Optimiser(lr=0.1, weight_decay=0.2))
    groups = [{"params": [theirs.weight], "weight_decay": 0.05}, {"params": [theirs.bias], "weight_decay": 0.0}]
    other = torch.optim.AdamW(groups, lr=0.3, betas=(0.9, 0.95))
    for seed in range(3):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        (ours(x).square().sum() * scale).backward()
        theirs(x).square().sum().backward()
        wanted = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf)
        other.step()
        other.zero_grad()
        assert optimisers.apply(optimiser, Rates(0.3, 0.05), clip, scale) == pytest.approx(wanted.item(), rel=1e-5)
        torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()), rtol=1e-5, atol=1e-7)


def test_a_gradient_that_is_not_finite_moves_nothing():
    layer = nn.Linear(3, 2)
    optimiser = optimisers.build(layer, Optimiser(lr=0.1))
    before = {name: p.clone() for name, p in layer.named_parameters()}
    layer(torch.ones(1, 3)).sum().backward()
    layer.weight.grad[0, 0] = math.inf
    assert not math.isfinite(optimisers.apply(optimiser, Rates(0.1, 0.1), 1.0, 2.0))
    assert layer.weight.grad is None and all(torch.equal(before[name], p) for name, p in layer.named_parameters())
    assert not any(state["step"] for state in optimiser.state.values())
