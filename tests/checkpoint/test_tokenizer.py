"""Tokenizers: agreement with transformers, special tokens, round trips, chat templates, damage."""

import json
import shutil

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import CheckpointError, LeanLMError, NotFound, UsageError

MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "hé & <b>\n'q'"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "bye"},
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return Tokenizer.from_folder(tokenizer_folder)


transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def judge(tokenizer_folder):
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(tokenizer_folder))


@pytest.fixture
def folder(tokenizer_folder, tmp_path):
    return shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")


def settings(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_ids_and_roles(tokenizer, judge):
    assert tokenizer.vocab_size == len(judge)
    assert (tokenizer.bos_id, tokenizer.pad_id) == (1, 0)
    assert tokenizer.eos_ids == (3, 2)  # generation_config.json's list, which has the tokenizer's own in it


@pytest.mark.parametrize("text", ["the cat sat", " a\n\tb", "日本 🙂 é", "<s>the</s>", "a<|end|>b", ""])
def test_same_ids_as_transformers(tokenizer, judge, text):
    ids = tokenizer.encode(text)
    assert ids == judge.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids) == judge.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(ids, skip_special=False) == text


@given(st.text())
def test_byte_level_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_the_post_processor_alone_adds_tokens(folder):
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.enable_truncation(2)
    core.enable_padding(length=50)
    core.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    plain = tokenizer.encode("the cat sat on the mat", add_special=False)
    assert len(plain) > 2
    assert tokenizer.encode("the cat sat on the mat") == [1, *plain]


def test_a_token_with_a_role_is_special(folder):
    """A token that only tokenizer_config.json calls special is cut off the text like the others."""
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.add_tokens(["<stop>"])
    core.save(str(folder / "tokenizer.json"))
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<stop>"]
    stop = raw["model"]["vocab"]["<stop>"] = core.get_vocab_size() - 1
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    settings(folder, eos_token="<stop>")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == stop + 1
    assert tokenizer.encode("a<stop>")[-1] == stop and tokenizer.decode([stop]) == ""


def test_ids_that_do_not_exist_give_nothing(tokenizer):
    assert tokenizer.decode([5, 10_000, 6]) == tokenizer.decode([5, 6])


def test_text_that_is_no_text(tokenizer):
    with pytest.raises(UsageError, match="no Unicode"):
        tokenizer.encode("a\udcff")


@pytest.mark.parametrize("prompt", [True, False])
def test_chat_as_transformers_renders_it(tokenizer, judge, prompt):
    ours = tokenizer.apply_chat(MESSAGES, add_generation_prompt=prompt)
    assert ours == judge.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
    assert ours.startswith("<s>") and ours.endswith("<|assistant|>") == prompt


RICH = (
    "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{% set ns.n = ns.n + 1 %}{{ m | tojson }}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{%- if loop.last %}{% break %}{% endif -%}{%- endfor -%}"
    "{{ ns.n }}{{ strftime_now('%Y') | length }}{{ tools | default('no tools') }}{{ bos_token }}"
)


def test_the_whole_language_of_templates(folder, tokenizer_folder):
    settings(folder, chat_template=RICH)
    judge = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    theirs = judge.apply_chat_template(MESSAGES, tokenize=False, tools=None)
    assert Tokenizer.from_folder(folder).apply_chat(MESSAGES, tools=None) == theirs


def test_where_a_template_may_stand(folder):
    settings(folder, chat_template=[{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}])
    assert Tokenizer.from_folder(folder).apply_chat([]) == "D"
    (folder / "chat_template.jinja").write_text("J {{ eos_token }}")
    assert Tokenizer.from_folder(folder).apply_chat([]) == "J </s>"


def test_templates_that_refuse_or_reach_out(folder, tokenizer):
    with pytest.raises(UsageError, match="refuses this conversation: no role robot"):
        tokenizer.apply_chat([{"role": "robot", "content": "x"}])
    for source in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ 1 / 0 }}"):
        (folder / "chat_template.jinja").write_text(source)
        with pytest.raises(UsageError, match="refuses this conversation"):
            Tokenizer.from_folder(folder).apply_chat([])
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match="chat template, line 1"):
        Tokenizer.from_folder(folder).apply_chat([])


def test_no_template(folder):
    settings(folder, chat_template=None)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.chat_template is None
    with pytest.raises(UsageError, match="no chat template"):
        tokenizer.apply_chat(MESSAGES)


def test_saved_as_read(tokenizer, tokenizer_folder, tmp_path):
    tokenizer.save(tmp_path / "out")
    read = {path.name: path.read_bytes() for path in tokenizer_folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == read
    assert Tokenizer.from_folder(tmp_path / "out").eos_ids == tokenizer.eos_ids


def test_from_one_file_or_from_a_fresh_tokenizer(folder, tokenizer, tmp_path):
    assert Tokenizer.from_file(folder / "tokenizer.json").eos_ids == tokenizer.eos_ids
    assert Tokenizer.from_file(folder).bos_id == 1
    shutil.copy(folder / "tokenizer.json", tmp_path / "other.json")
    alone = Tokenizer.from_file(tmp_path / "other.json")
    assert alone.eos_ids == () and alone.bos_id is None
    fresh = Tokenizer(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
    fresh.save(tmp_path / "fresh")
    assert Tokenizer.from_folder(tmp_path / "fresh").encode("the cat") == tokenizer.encode("the cat")


@pytest.mark.parametrize("damage", ["missing", "empty", "not JSON", "not a tokenizer", "settings not JSON", "settings a list"])
def test_damage(folder, damage):
    file, text = {
        "missing": ("tokenizer.json", None),
        "empty": ("tokenizer.json", ""),
        "not JSON": ("tokenizer.json", "{"),
        "not a tokenizer": ("tokenizer.json", '{"model": {"type": "Abacus"}}'),
        "settings not JSON": ("tokenizer_config.json", "{'a'}"),
        "settings a list": ("special_tokens_map.json", "[]"),
    }[damage]
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(NotFound if text is None else CheckpointError, match=file) as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)


def test_no_such_place(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / "nowhere.json", tmp_path / "tokenizer.json"):
        with pytest.raises(LeanLMError):
            Tokenizer.from_file(path)
