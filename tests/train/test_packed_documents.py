"""Packed documents train to the gradients that they give alone, for every mixer, from shards to the loss."""

import pytest
import torch

from data.made_shards import make
from hybrid_models import ONE_OF_EACH, alone, build
from leanlm.data.batches import IGNORED, Batch, Mixture, Windows
from leanlm.model import ternary
from leanlm.train.loss import Objective

LENGTHS = (9, 1, 17, 4)  # tokens of text; the model knows 40


def gradients(module, batches):
    """Of the summed loss over batches of any shapes; and that sum."""
    module.zero_grad()
    objective, total = Objective(module, z_loss=0.01), 0.0
    for batch in batches:
        loss = objective(batch.tokens, batch.targets, batch.segments)[0]
        loss.backward()
        total += loss.item()
    return total, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def apart(shards):
    """Every document in a batch of its own: an end-of-text token, then its text and its end are predicted."""
    for number in range(shards.documents):
        ids = torch.from_numpy(shards.document(number).astype("int64"))[None]
        yield Batch(torch.cat([torch.zeros(1, 1, dtype=torch.int64), ids[:, :-1]], 1), ids, None)


@pytest.mark.parametrize("weights", ["float", "ternary"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_packed_documents_train_as_alone(name, weights, tmp_path):
    module = build(alone(ONE_OF_EACH[name])).train()
    if weights == "ternary":
        ternary.mark(module)
    shards = make(tmp_path, LENGTHS, shard_tokens=100)
    packed = Mixture([Windows(shards, shards.tokens, 0)]).batch(0, 1)
    assert packed.segments is not None and (packed.targets != IGNORED).all()
    total, found = gradients(module, [packed])
    wanted_total, wanted = gradients(module, apart(shards))
    assert total == pytest.approx(wanted_total, rel=1e-5)
    for parameter, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        assert (found[parameter] - gradient).abs().max() <= 1e-4 * scale, parameter
