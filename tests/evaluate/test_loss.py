"""Loss over documents against the formula."""

import math

import torch
import torch.nn.functional as F

from leanlm.evaluate import loss
from leanlm.model.config import Mamba2, ModelConfig
from leanlm.model.language_model import LanguageModel


def test_loss_of_chunks_is_the_loss_of_the_whole(monkeypatch):
    torch.manual_seed(0)
    module = LanguageModel(ModelConfig(d_model=16, vocab_size=20, layers=((Mamba2(32, 8, d_state=4),),)))
    module.reset(0.3)
    documents = [(list(range(1, 18)), 40), ([3], 2)]
    nats = 0.0
    for ids, _ in documents:
        logits = module(torch.tensor([[0, *ids[:-1]]]))
        nats += F.cross_entropy(logits[0], torch.tensor(ids), reduction="sum").item()
    monkeypatch.setattr(loss, "CHUNK", 5)
    measured = loss.measure(module, documents, start_id=0)
    assert measured.tokens == 18 and measured.bytes == 42
    assert math.isclose(measured.nats, nats, rel_tol=1e-5)
    assert math.isclose(measured.bits_per_byte, nats / math.log(2) / 42, rel_tol=1e-5)
    assert math.isclose(measured.per_token, nats / 18, rel_tol=1e-5)
