"""The loss of a step: in parts as at once, blind to masked targets, against its formula written out."""

import pytest
import torch
from torch import nn

from leanlm.data.batches import IGNORED
from leanlm.model.config import MLP, ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.train import loss
from leanlm.train.loss import Objective


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request):
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(d_model=8, vocab_size=11, layers=((MLP(16),),), tied=request.param)).double()
    model.reset(0.5)
    return model


@pytest.fixture
def batch():
    tokens, targets = torch.randint(11, (2, 3, 7), generator=torch.Generator().manual_seed(1))
    targets[0, 2:] = IGNORED
    return tokens, targets


def gradients(model: nn.Module) -> dict:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def test_the_formula(model, batch):
    tokens, targets = batch
    total, nats = Objective(model, z_loss=0.3)(tokens, targets)
    wanted = wanted_z = 0.0
    for row, row_targets in zip(model(tokens), targets):
        for logits, target in zip(row, row_targets.tolist()):
            if target != IGNORED:
                log_sum = logits.exp().sum().log()
                wanted, wanted_z = wanted + log_sum - logits[target], wanted_z + log_sum**2
    torch.testing.assert_close(nats, wanted)
    torch.testing.assert_close(total, wanted + 0.3 * wanted_z)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_parts_give_the_gradient_of_the_whole(model, batch, monkeypatch, z_loss):
    tokens, targets = batch
    objective = Objective(model, z_loss)
    whole = objective(tokens, targets)
    whole[0].backward()
    wanted = gradients(model)
    monkeypatch.setattr(loss, "PART", 44)  # four rows of logits at a time
    parts = objective(tokens, targets)
    parts[0].backward()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradients(model), wanted)


def test_tokens_of_masked_positions_are_not_learnt_from(model, batch):
    if model.head is None:
        pytest.skip("rows of a tied embedding are learnt from as rows of the head")
    tokens, targets = batch
    tokens[tokens == 9] = 4
    tokens[0, 2:] = 9  # every position that is masked: the model looks at one token at a time
    Objective(model, 0.3)(tokens, targets)[0].backward()
    assert not model.embedding.weight.grad[9].any() and model.embedding.weight.grad[4].any()


def test_without_targets_it_is_the_model(model, batch):
    tokens, _ = batch
    torch.testing.assert_close(Objective(model)(tokens), model(tokens))
