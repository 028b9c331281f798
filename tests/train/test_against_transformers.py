"""One optimiser step equals the same step done with transformers and torch's AdamW on the same weights and tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanlm import families
from leanlm.checkpoint.save import save_module
from leanlm.families import names
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Norm, Rope
from leanlm.model.language_model import LanguageModel
from leanlm.train import optimiser as optimisers
from leanlm.train.recipe import Optimiser

transformers = pytest.importorskip("transformers")

NORM = Norm("rms", 1e-5, round_first=True)
LLAMA = ModelConfig(32, 90, ((Attention(4, 2, 8, rope=Rope(8)), GatedMLP(48)),) * 2, norm=NORM, context_length=64)
MAMBA2 = ModelConfig(32, 90, ((Mamba2(64, 16, 8, n_groups=2, chunk=16),),) * 2, norm=NORM, residual_in_fp32=True)
CASES = {"hf_llama": LLAMA, "hf_mamba2": MAMBA2}
SETTINGS = Optimiser(lr=1e-3, clip=1.0, weight_decay=0.1)


def fresh(config):
    torch.manual_seed(0)
    module = LanguageModel(config)
    module.reset(0.1)
    return module.train()


def decays(name: str) -> bool:
    """What published recipes decay: matrices and convolutions, by their names in transformers."""
    return any(part in name for part in ("proj", "embed", "lm_head", "conv1d.weight"))


def their_step(model: nn.Module, tokens: torch.Tensor) -> tuple[float, float]:
    groups = [
        {"params": [p for n, p in model.named_parameters() if decays(n) and p.ndim > 1], "weight_decay": SETTINGS.weight_decay},
        {"params": [p for n, p in model.named_parameters() if not (decays(n) and p.ndim > 1)], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, SETTINGS.lr, SETTINGS.betas, SETTINGS.eps)
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.clip)
    optimiser.step()
    return loss.item(), norm.item()


def our_step(module: LanguageModel, tokens: torch.Tensor) -> tuple[float, float]:
    optimiser = optimisers.build(module, SETTINGS)
    loss = F.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), SETTINGS.clip)
    optimiser.step()
    return loss.item(), norm.item()


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_the_step_of_transformers(name, tmp_path):
    module, family = fresh(CASES[name]), families.get(name)
    save_module(tmp_path, module, family)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).train()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    tokens = torch.randint(90, (4, 41), generator=torch.Generator().manual_seed(0))
    ours, theirs = our_step(module, tokens), their_step(model, tokens)
    assert ours == pytest.approx(theirs, rel=1e-5)
    found = names.to_theirs(family.rules(module.config), {n: p.detach() for n, p in module.named_parameters()})
    parameters = dict(model.named_parameters())
    assert found.keys() == parameters.keys()
    for published, weight in found.items():
        assert (weight - parameters[published]).abs().max() <= 1e-5, published
    assert all((p - before[n]).abs().max() > 5e-4 for n, p in module.named_parameters())  # every one has moved
