"""The token loop: rows alone and in company, ends, limits, warnings and refusals."""

import warnings

import pytest
import torch
from hybrids import EOS, MIXERS, ByteTokenizer, hybrid, layer_lists, prompts, samplings
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.api import Model
from leanlm.errors import CheckFailed, UsageError
from leanlm.generate import engine
from leanlm.model.language_model import LanguageModel

SSM, FULL = MIXERS[1], MIXERS[4]


class Scripted(LanguageModel):
    """Says prescribed tokens, by row and step; counts its calls."""

    def script(self, rows):
        self.rows, self.calls = rows, 0
        return self

    def forward(self, tokens, state=None, segments=None, last_only=False):
        super().forward(tokens, state, segments, last_only)
        logits = torch.zeros(len(tokens), 1, self.config.padded_vocab_size)
        for row, said in enumerate(self.rows[: len(tokens)]):
            logits[row, 0, said[min(self.calls, len(said) - 1)]] = 9.0
        self.calls += 1
        return logits


def scripted(*rows, tokenizer=None, **config) -> Model:
    module = hybrid([SSM], **config)
    module.__class__ = Scripted
    return Model(module.script(rows), "mamba_ssm", tokenizer)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(layer_lists, st.lists(prompts, min_size=2, max_size=4), samplings, st.integers(0, 99))
def test_a_ragged_batch_says_what_its_rows_say_alone(layers, texts, sampling, seed):
    model = Model(hybrid(layers, seed), "mamba_ssm")
    together = model.generate(texts, max_new_tokens=6, seed=seed, **sampling)
    alone = [model.generate(text, max_new_tokens=6, seed=seed + row, **sampling) for row, text in enumerate(texts)]
    assert together == alone
    assert all(ids[: len(text)] == text for ids, text in zip(together, texts))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(layer_lists, prompts, st.integers(1, 12))
def test_generation_equals_reading_everything_again(layers, prompt, new):
    """Greedy ids by recomputing the whole text for every token; chunked prefill changes nothing."""
    module = hybrid(layers)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(module(torch.tensor([ids]))[0, -1, :257].argmax()))
            if ids[-1] == EOS:
                break
    chunk, engine.CHUNK = engine.CHUNK, 3
    try:
        assert Model(module, "mamba_ssm").generate(prompt, max_new_tokens=new, eos_ids=[EOS]) == ids
    finally:
        engine.CHUNK = chunk


def test_each_row_ends_at_its_own_end_token():
    model = scripted([5, EOS, 7], [5, 6, 7, 8], [EOS], eos_ids=(EOS,), pad_id=3)
    ids = model.generate(torch.tensor([[1, 2]] * 3), max_new_tokens=4)
    assert ids.tolist() == [[1, 2, 5, EOS, 3, 3], [1, 2, 5, 6, 7, 8], [1, 2, EOS, 3, 3, 3]]


def test_rows_are_padded_with_the_end_token_where_there_is_no_pad():
    model = scripted([EOS], [5, 6], eos_ids=(EOS,))
    assert model.generate(torch.tensor([[1], [1]]), max_new_tokens=2).tolist() == [[1, EOS, EOS], [1, 5, 6]]


def test_an_end_of_one_row_changes_no_other():
    model = Model(hybrid([MIXERS[0], FULL]), "mamba_ssm")
    texts = [[1, 2, 3], [9], [7, 7]]
    free = model.generate(texts, max_new_tokens=12, seed=3, temperature=1.2, eos_ids=())
    ended = model.generate(texts, max_new_tokens=12, seed=3, temperature=1.2, eos_ids=[free[1][4]])
    assert ended[1] == free[1][:5]
    assert ended[0] == free[0] and ended[2] == free[2]


def test_mamba_ssm_stops_together():
    model = scripted([EOS, 5, EOS, 6], [4, 4, EOS, 6], eos_ids=(EOS,))
    ids = model.generate(torch.tensor([[1], [1]]), max_new_tokens=9, compat="mamba_ssm")
    assert ids.tolist() == [[1, EOS, 5, EOS], [1, 4, 4, EOS]]
    assert model.generate([1, 2, 3], max_length=2, compat="mamba_ssm", eos_ids=())[:3] == [1, 2, 3]  # one token at least


def test_padding_of_the_vocabulary_is_never_produced():
    module = hybrid([SSM])
    with torch.no_grad():
        module.head.weight[257:] *= 100
    for sampling in ({}, {"temperature": 2.0}):
        assert max(Model(module, "mamba_ssm").generate([1], 60, seed=0, **sampling)) < 257
    assert max(Model(module, "mamba_ssm", SmallTokenizer()).generate([1], 60, temperature=2.0, seed=0)) < 100


class SmallTokenizer(ByteTokenizer):
    vocab_size, eos_ids, bos_id = 100, (), None


def test_seeds():
    model = Model(hybrid([SSM]), "mamba_ssm")
    runs = [model.generate([1, 2], 20, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    torch.manual_seed(5)
    first = model.generate([1, 2], 20, temperature=1.0)
    assert model.generate([1, 2], 20, temperature=1.0) != first
    torch.manual_seed(5)
    assert model.generate([1, 2], 20, temperature=1.0) == first


@pytest.mark.parametrize("where", ["prompt", "decode"])
def test_logits_that_are_not_finite_name_step_and_row(where):
    model = scripted([5], [6])
    honest, bad_call = model.module.forward, 0 if where == "prompt" else 2

    def forward(*args, **kwargs):
        logits = honest(*args, **kwargs)
        if model.module.calls > bad_call:
            logits[1, 0, 3] = float("nan")
        return logits

    model.module.forward = forward
    with pytest.raises(CheckFailed, match=f"new token {bad_call + 1} of row 1") as refused:
        model.generate([[1], [2]], 5)
    assert "\n" not in str(refused.value) and refused.value.code == 5


def test_not_finite_padding_does_not_matter():
    module = hybrid([SSM])
    with torch.no_grad():
        module.head.weight[260] = float("nan")
    assert len(Model(module, "mamba_ssm").generate([1], 3, eos_ids=())) == 4


@pytest.mark.parametrize("layers", [[SSM], [FULL]])
def test_going_past_the_context_warns_once_and_goes_on(layers):
    model = Model(hybrid(layers, context_length=8), "mamba_ssm")
    with pytest.warns(UserWarning, match="8 tokens of context") as caught:
        assert len(model.generate([1] * 6, 9, eos_ids=())) == 15
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate([1] * 4, 4)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_length": 3}, "max_length"),
        ({"max_length": 9, "max_new_tokens": 3}, "one of the two"),
        ({"temperature": -1}, "temperature"),
        ({"stop": "x"}, "tokenizer"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": 3}, "max_tokens"),
    ],
)
def test_settings_that_cannot_be_meant(given, words):
    with pytest.raises(UsageError, match=words) as refused:
        Model(hybrid([SSM]), "mamba_ssm").generate([1, 2, 3], **given)
    assert "\n" not in str(refused.value)


def test_max_length_counts_the_prompt_of_each_row():
    texts = Model(hybrid([SSM, FULL]), "mamba_ssm").generate([[1], [1, 2, 3], [4, 4]], max_length=6, eos_ids=())
    assert [len(ids) for ids in texts] == [6, 6, 6]


def test_no_new_tokens_is_the_prompt_again():
    model = Model(hybrid([SSM]), "mamba_ssm")
    assert model.generate([1, 2], 0) == [1, 2]
    assert model.generate(torch.tensor([[1, 2]]), 0).tolist() == [[1, 2]]


def test_generation_tells_times_and_bytes():
    generation = Model(hybrid([SSM]), "mamba_ssm").generation([1, 2], max_new_tokens=5, eos_ids=())
    assert [len(piece) for piece in generation] == [1] * 5
    assert generation.prompt_seconds > 0 and generation.decode_seconds > 0 and generation.state_bytes > 0
    assert generation.rows[0].finish == "length"
