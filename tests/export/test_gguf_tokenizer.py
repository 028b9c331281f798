"""Tokenizers in GGUF files: llama.cpp cuts texts as ours do, or the file has no tokens and the reason is told."""

import dataclasses
import json
from importlib import resources

import pytest
import tokenizers
from exported_models import CONFIGS, model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers

from leanlm.checkpoint.tokenizer import MAIN, SETTINGS, Tokenizer
from leanlm.export import gguf, gguf_tokenizer
from leanlm.export.check import SAMPLE
from leanlm.export.gguf_container import GGUF
from tiny_models import CHAT

pytest.importorskip("gguf")
ROWS = 4099  # three more than the built-in tokenizer has tokens
CFG = dataclasses.replace(CONFIGS["mamba"], vocab_size=4096, padded_vocab_size=ROWS)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


SPLITTING = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": split(gguf_tokenizer.MODERN % "{1,3}"),
    "qwen2": split(gguf_tokenizer.MODERN % ""),
    "starcoder": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
}


def trained(name: str, **options) -> tokenizers.Tokenizer:
    """A byte-level BPE over the sample text, splitting as `name` does."""
    core = tokenizers.Tokenizer(models.BPE(ignore_merges=name == "llama-bpe", **options))
    core.pre_tokenizer = SPLITTING[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([SAMPLE, "it's 1234567 DON'T we'll\r\n\r\n  x = [1, 22, 333]\n"] * 3, trainer)
    return core


def with_roles(core: tokenizers.Tokenizer, **settings) -> Tokenizer:
    text = json.dumps({"bos_token": "<s>", "eos_token": "</s>", **settings})
    return Tokenizer(core, {SETTINGS: text.encode()})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """loaded(tokenizer) is llama.cpp's vocabulary of a file with it."""
    llama_cpp = pytest.importorskip("llama_cpp")

    def load(tokenizer: Tokenizer):
        path = tmp_path_factory.mktemp("gguf") / "m.gguf"
        assert not [note for note in gguf.export(path, model(CFG), tokenizer).notes if "no tokenizer" in note]
        return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    return load


def cut(llama, text: str) -> list[int]:
    return llama.tokenize(text.encode(), add_bos=True, special=True)


@pytest.fixture(scope="module")
def builtin(loaded):
    tokenizer = Tokenizer.from_folder(resources.files("leanlm") / "builtin/float")
    return tokenizer, loaded(tokenizer)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.text("a'sS \n\t1é.½", max_size=40))
def test_llama_cpp_cuts_any_text_as_the_builtin_tokenizer(builtin, text):
    ours, theirs = builtin
    assert cut(theirs, text) == ours.encode(text) or not text


def test_the_builtin_tokenizer_in_full(builtin):
    ours, theirs = builtin
    for text in (SAMPLE, f"{SAMPLE}<|endoftext|>{SAMPLE}"):
        assert cut(theirs, text) == ours.encode(text)
    assert theirs.token_eos() == ours.eos_ids[0] == 0


@pytest.mark.parametrize("name", SPLITTING)
def test_llama_cpp_cuts_the_sample_by_every_split_it_knows(name, loaded):
    tokenizer = with_roles(trained(name))
    assert gguf_tokenizer.pre_tokenizer(json.loads(tokenizer.files[MAIN])) == name
    for text in (SAMPLE, "it's 1234567 DON'T\r\n\r\n x", "  \n\n  a1b22c333"):
        assert cut(loaded(tokenizer), text) == tokenizer.encode(text), text


def test_added_tokens_and_a_beginning_of_text(loaded):
    """As GPT-NeoX has runs of spaces, and Llama-3 a token in front of every text."""
    core = trained("gpt-2")
    core.add_tokens(["    ", "  "])
    core.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", core.token_to_id("<s>"))])
    tokenizer = with_roles(core)
    theirs = loaded(tokenizer)
    assert theirs.token_bos() == tokenizer.bos_id and theirs.token_eos() == tokenizer.eos_ids[0]
    for text in ("a" + " " * 11 + "b</s>  c", SAMPLE):
        assert cut(theirs, text) == tokenizer.encode(text)


def test_rows_without_a_token_are_filled_up(tmp_path):
    tokenizer = with_roles(trained("gpt-2"), chat_template=CHAT)
    keys = GGUF(gguf.export(tmp_path / "m.gguf", model(CFG), tokenizer).path).keys
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    used = tokenizer.vocab_size
    assert len(tokens) == len(types) == ROWS and len(set(tokens)) == ROWS
    assert set(types[used:]) == {gguf_tokenizer.UNUSED} and types[:2] == [gguf_tokenizer.CONTROL] * 2
    assert keys["tokenizer.chat_template"] == CHAT


def no_normal_form(core):
    core.normalizer = normalizers.Lowercase()


def no_split(core):
    core.pre_tokenizer = BYTES


def unknown_split(core):
    core.pre_tokenizer = split(r"\p{L}+|\s+")


def prefix_space(core):
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def whole_words(core):
    core.model.ignore_merges = True


REASONS = {
    no_normal_form: "Lowercase",
    no_split: "pre-tokenisation",
    unknown_split: "pre-tokenisation",
    prefix_space: "pre-tokenisation",
    whole_words: "ignore_merges",
}


@pytest.mark.parametrize("change", REASONS, ids=lambda change: change.__name__)
def test_a_tokenizer_without_a_match_leaves_the_file_without_tokens(change, tmp_path):
    core = trained("gpt-2")
    change(core)
    written = gguf.export(tmp_path / "m.gguf", model(CFG), with_roles(core))
    assert len(written.notes) == 1 and REASONS[change] in written.notes[0] and "no tokenizer" in written.notes[0]
    assert GGUF(written.path).keys["tokenizer.ggml.model"] == "no_vocab"


def test_other_kinds_and_too_many_tokens_are_told():
    words = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a")))
    assert "WordLevel" in gguf_tokenizer.vocabulary(words, CFG).absent
    few = dataclasses.replace(CFG, vocab_size=300, padded_vocab_size=300)
    assert "and the embedding 300 rows" in gguf_tokenizer.vocabulary(with_roles(trained("gpt-2")), few).absent
    assert gguf_tokenizer.vocabulary(None, CFG).absent == "the model has no tokenizer"


def test_what_differs_in_rare_texts_is_told():
    core = trained("gpt-2")
    core.normalizer = normalizers.NFC()
    core.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    notes = gguf_tokenizer.vocabulary(Tokenizer(core), CFG).notes
    assert any("form C" in note for note in notes) and any("spaces" in note for note in notes)
    assert any("token 11" in note for note in notes)
