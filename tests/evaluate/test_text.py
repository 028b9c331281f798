"""Bits per byte of documents: by hand, by position, in windows, and gone on with after an interrupt."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_models import build
from leanlm import runtime
from leanlm.api import Model, load
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import CheckFailed, UsageError
from leanlm.evaluate import text
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Rope
from tiny_models import add_tokenizer

DOCUMENTS = ["the sky is blue\n" * 12, "a", "", "naïve café, 天 and more\n" * 9]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(add_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(tokenizer):
    config = ModelConfig(16, tokenizer.vocab_size, ((Mamba2(32, 8, 8), GatedMLP(24)),) * 2, eos_ids=tokenizer.eos_ids)
    return Model(build(config), "mamba_ssm", tokenizer)


def nats(model: Model, ids: list[int]) -> torch.Tensor:
    tokens = torch.tensor([text.end_of_text(model), *ids])
    with torch.no_grad():
        return F.cross_entropy(model.module(tokens[None, :-1])[0].float(), tokens[1:], reduction="none")


def test_totals_and_positions_by_hand(model, monkeypatch):
    monkeypatch.setattr(text, "FIRST", 4)
    found = text.evaluate(model, DOCUMENTS)
    each = [nats(model, model.tokenizer.encode(document, add_special=False)) for document in DOCUMENTS if document]
    total, size = sum(part.sum().item() for part in each), sum(len(document.encode()) for document in DOCUMENTS)
    assert (found["documents"], found["tokens"], found["bytes"]) == (3, sum(map(len, each)), size)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / found["tokens"]), rel=1e-5)
    spans = found["by_position"]
    assert [(span["from"], span["to"]) for span in spans[:3]] == [(0, 4), (4, 8), (8, 16)]
    assert [span["tokens"] for span in spans] == [sum(len(p[s["from"] : s["to"]]) for p in each) for s in spans]


def test_windows_know_nothing_of_each_other(model, tokenizer):
    ids = tokenizer.encode(DOCUMENTS[0], add_special=False)
    found = text.evaluate(model, DOCUMENTS[:1], window=10)
    windows = [nats(model, ids[at : at + 10]).sum().item() for at in range(0, len(ids), 10)]
    assert found["nats_per_token"] == pytest.approx(sum(windows) / len(ids), rel=1e-5)
    assert found["by_position"][-1]["to"] == text.FIRST


def test_full_attention_is_read_in_windows_of_its_context(tokenizer):
    layer = (Attention(2, 2, 8, rope=Rope(8)), GatedMLP(24))
    config = ModelConfig(16, tokenizer.vocab_size, (layer,), context_length=20, eos_ids=tokenizer.eos_ids)
    model = Model(build(config), "hf_llama", tokenizer)
    assert text.evaluate(model, DOCUMENTS) == text.evaluate(model, DOCUMENTS, window=20)


def test_an_interrupted_evaluation_comes_to_the_same(model, tmp_path):
    whole = text.evaluate(model, DOCUMENTS, store=tmp_path / "whole.jsonl")

    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text.evaluate(model, DOCUMENTS, store=tmp_path / "cut.jsonl", progress=stop)
    told = []
    assert text.evaluate(model, DOCUMENTS, store=tmp_path / "cut.jsonl", progress=told.append) == whole and told[0] == 2
    with pytest.raises(CheckFailed, match="other texts or another model"):
        text.evaluate(model, DOCUMENTS[:2], store=tmp_path / "cut.jsonl")
    other = Model(build(model.config, seed=1), "mamba_ssm", model.tokenizer)
    with pytest.raises(CheckFailed, match="other texts or another model"):
        text.evaluate(other, DOCUMENTS, store=tmp_path / "cut.jsonl")


def test_the_same_text_scores_the_same_whatever_was_read_before():
    model = load("builtin-float")
    document = "import os\n\n\ndef walk(top):\n    return os.walk(top)\n" * 40
    alone = text.evaluate(model, [document])
    runtime.of(model.module)(torch.zeros(300, 2, dtype=torch.int64), model.module.new_state(300))
    assert text.evaluate(model, [document]) == alone


def test_what_cannot_be_read(model):
    with pytest.raises(UsageError, match="no text"):
        text.evaluate(model, [""])
    with pytest.raises(UsageError, match="no tokenizer"):
        text.evaluate(Model(model.module, "mamba_ssm"), DOCUMENTS)


@pytest.fixture(scope="module")
def published():
    return load("builtin-float").tokenizer


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_bytes_of_tokens_add_up(published, document):
    ids, sizes = published.measured(document)
    assert ids == published.encode(document, add_special=False) and len(sizes) == len(ids)
    assert min(sizes, default=0) >= 0 and sum(sizes) == (len(document.encode()) if ids else 0)
