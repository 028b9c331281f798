"""Scores of many requests beside each text read alone, whatever they share and however they are batched."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_models import ONE_OF_EACH, build
from leanlm.evaluate import scoring
from leanlm.evaluate.scoring import Request, Score
from leanlm.model.config import MLP, Attention, Mamba2, ModelConfig, Rope

CONFIG = ModelConfig(
    12, 19, ((Mamba2(24, 6, 5),), (Attention(2, 1, 6, window=9),), (MLP(24),), (Attention(2, 2, 6, rope=Rope(6)),))
)
TOKENS = st.integers(0, 18)


def alone(module, request: Request) -> Score:
    """One text, read whole by the module itself."""
    text = torch.tensor([[*request.context, *request.continuation]])
    logits = module(text[:, :-1])[0, len(request.context) - 1 :, : module.config.padded_vocab_size].log_softmax(-1)
    targets = torch.tensor(request.continuation)
    return Score(logits.gather(1, targets[:, None]).sum().item(), bool((logits.argmax(1) == targets).all()))


@st.composite
def trees(draw):
    """Requests that share beginnings of all lengths, some twice, in any order."""
    stems = draw(st.lists(st.lists(TOKENS, max_size=50), min_size=1, max_size=3))
    found = []
    for stem in stems:
        for _ in range(draw(st.integers(1, 3))):
            context = (*stem, *draw(st.lists(TOKENS, min_size=1, max_size=30)))
            for _ in range(draw(st.integers(1, 3))):
                found.append(Request(context, tuple(draw(st.lists(TOKENS, min_size=1, max_size=12)))))
    found += draw(st.lists(st.sampled_from(found), max_size=2))
    return draw(st.permutations(found))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees(), st.none() | st.integers(1, 5), st.sampled_from([512, 7]))
@torch.no_grad()
def test_scores_are_those_of_each_text_alone(requests, rows, chunk):
    module = build(CONFIG)
    before, scoring.CHUNK = scoring.CHUNK, chunk
    try:
        found = dict(scoring.score(module, requests, rows))
    finally:
        scoring.CHUNK = before
    assert sorted(found) == list(range(len(requests)))
    for number, request in enumerate(requests):
        wanted = alone(module, request)
        assert found[number].log_likelihood == pytest.approx(wanted.log_likelihood, abs=2e-4)
        assert found[number].greedy == wanted.greedy


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@torch.no_grad()
def test_every_mixer(kind):
    module = build(dataclasses.replace(CONFIG, layers=((ONE_OF_EACH[kind],), (MLP(8),))))
    generator = torch.Generator().manual_seed(0)
    stem = torch.randint(19, (40,), generator=generator).tolist()
    requests = [Request((*stem, i), (i + 1, *stem[:i])) for i in range(5)]
    for number, found in scoring.score(module, requests):
        assert found.log_likelihood == pytest.approx(alone(module, requests[number]).log_likelihood, abs=2e-4)


def test_what_is_shared_is_read_once():
    module = build(CONFIG)
    read = []

    def run(tokens, state, last_only=False):
        read.append(tokens.numel())
        return module(tokens, state, last_only=last_only)

    stem = list(range(18)) * 20
    examples = [Request((*stem, *range(q, 18), *range(q)), (choice, choice)) for q in range(4) for choice in range(4)]
    assert len(dict(scoring.score(module, examples, run=run))) == 16
    each = sum(len(request.inputs) for request in examples)
    assert sum(read) < len(stem) + 4 * 40 + 16 * 3 < each / 10


def test_continuations_without_tokens_and_texts_without_context():
    module = build(CONFIG)
    assert dict(scoring.score(module, [Request((1,), ())])) == {0: Score(0.0, True)}
    with pytest.raises(ValueError, match="request 0 has no context"):
        list(scoring.score(module, [Request((), (1,))]))
