"""Conversations: what is learned of them, whole ones in windows, one counter, and lines that are none."""

import gzip
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import chat
from leanlm.data.batches import IGNORED
from leanlm.data.chat import Chats, Conversation
from leanlm.errors import CheckpointError, UsageError
from tiny_models import add_tokenizer

ASKED = {"role": "user", "content": "where is the cat?"}
TOLD = {"role": "assistant", "content": "on the mat"}
THANKS = {"role": "user", "content": "and the hat?"}
MORE = {"role": "assistant", "content": "é, gone"}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return Tokenizer.from_folder(tokenizer_folder)


def lines(path, *records):
    text = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def learned(conversation, tokenizer):
    """The text of the tokens that are learned, a bar where others lie between."""
    parts, before = [], False
    for id, is_learned in zip(conversation.ids, conversation.learned):
        if is_learned and not before:
            parts.append([])
        if is_learned:
            parts[-1].append(int(id))
        before = is_learned
    return [tokenizer.decode(part, skip_special=False) for part in parts]


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.jsonl.gz"])
def test_answers_and_their_ends_are_learned_and_nothing_else(tokenizer, tmp_path, name):
    records = {"messages": [ASKED, TOLD, THANKS, MORE]}, "", {"prompt": "where is the cat?", "response": "on the mat"}
    told, short = chat.read(lines(tmp_path / name, *records), tokenizer)
    assert learned(told, tokenizer) == ["on the mat</s>\n", "é, gone</s>\n"]
    assert learned(short, tokenizer) == ["on the mat</s>\n"]
    text = tokenizer.apply_chat([ASKED, TOLD, THANKS, MORE], add_generation_prompt=False)
    assert told.ids.tolist() == tokenizer.encode(text, add_special=False)


def test_the_prompt_is_what_generation_reads(tokenizer, tmp_path):
    """The tokens before the first answer are those that a session is given."""
    (told,) = chat.read(lines(tmp_path / "c.jsonl", {"messages": [ASKED, TOLD]}), tokenizer)
    asked = tokenizer.encode(tokenizer.apply_chat([ASKED]), add_special=False)
    assert told.ids[: len(asked)].tolist() == asked and not told.learned[: len(asked)].any() and told.learned[len(asked)]


def test_a_template_that_never_ends_an_answer_is_given_an_end(tmp_path):
    tokenizer = Tokenizer.from_folder(add_tokenizer(tmp_path / "t", chat=True))
    (told,) = chat.read(lines(tmp_path / "c.jsonl", {"messages": [ASKED, TOLD]}), tokenizer)
    assert learned(told, tokenizer) == [" on the mat\n<|endoftext|>"] or learned(told, tokenizer) == [
        "on the mat\n<|endoftext|>"
    ]
    assert told.ids[-1] == tokenizer.eos_id and told.learned[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: is a list"),
        ({"text": "x"}, "line 2: neither 'messages'.*found: text"),
        ({"messages": []}, "line 2: neither"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "line 2: message 2 has no text as its 'content'"),
        ({"messages": [ASKED, {"role": "assistant", "content": [{"text": "x"}]}]}, "line 2: message 2 has no text"),
        ({"messages": [ASKED]}, "line 2: no message of the role 'assistant'"),
        ({"messages": [{"role": "robot", "content": "x"}, TOLD]}, "line 2: the chat template refuses.*no role robot"),
        ({"prompt": "x", "response": 3}, "line 2: message 2 has no text"),
    ],
)
def test_lines_that_are_no_conversation_are_named(tokenizer, tmp_path, line, message):
    with pytest.raises(UsageError, match=message):
        list(chat.read(lines(tmp_path / "c.jsonl", {"messages": [ASKED, TOLD]}, line), tokenizer))


def test_files_and_tokenizers_that_cannot_be_used(tokenizer, tmp_path):
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(CheckpointError, match="damaged"):
        list(chat.read(tmp_path / "bad.jsonl.gz", tokenizer))
    bare = Tokenizer.from_folder(add_tokenizer(tmp_path / "t"))
    with pytest.raises(UsageError, match="line 1: this tokenizer has no chat template"):
        list(chat.read(lines(tmp_path / "c.jsonl", {"messages": [ASKED, TOLD]}), bare))


def test_a_template_that_rewrites_answers_is_refused(tokenizer_folder, tmp_path):
    settings = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m.content if loop.last else 'gone' }}{{ eos_token }}{% endfor %}"
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="line 1: the chat template writes message 2 in another way"):
        list(chat.read(lines(tmp_path / "c.jsonl", {"messages": [ASKED, TOLD, THANKS]}), Tokenizer.from_folder(tmp_path)))


def conversation(first, size, prompt):
    ids = torch.arange(first, first + size).numpy()
    return Conversation(ids, torch.arange(size).numpy() >= prompt)


@st.composite
def many(draw):
    """Conversations in which no token occurs twice; every one has an answer."""
    sizes = draw(st.lists(st.integers(2, 12), min_size=1, max_size=25))
    made, first = [], 1
    for size in sizes:
        made.append(conversation(first, size, draw(st.integers(0, size - 1))))
        first += size
    return made


@settings(max_examples=60, deadline=None, derandomize=True)
@given(many(), st.integers(11, 20), st.integers(0, 99), st.data())
def test_an_epoch_has_every_conversation_once_however_it_is_cut_into_batches(conversations, length, seed, data):
    chats = Chats(conversations, length, 0, seed)
    for epoch in range(2):
        begin, end = epoch * chats.count, (epoch + 1) * chats.count
        cut = data.draw(st.integers(begin, end))
        whole = chats.batch(begin, end - begin)
        parts = [chats.batch(begin, cut - begin), chats.batch(cut, end - cut)]
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        seen = whole.targets[whole.targets != IGNORED].tolist()
        assert sorted(seen) == [int(i) for c in conversations for i in c.ids[1:][c.learned[1:]]]
        inputs = {int(i) for c in conversations for i in c.ids[:-1]}
        assert inputs <= set(whole.tokens.flatten().tolist())
        if whole.segments is not None:
            check_segments(whole, conversations)


def check_segments(batch, conversations):
    """Tokens share a mark where they share a conversation; only the filling at the end has the mark of the last."""
    owner = {int(i): number for number, c in enumerate(conversations) for i in c.ids}
    for row, marks in zip(batch.tokens.tolist(), batch.segments.tolist()):
        pairs = {(mark, owner[token]) for token, mark in zip(row, marks) if token}
        assert len(pairs) == len({mark for mark, _ in pairs}) == len({own for _, own in pairs})


def test_windows_are_full_and_epochs_differ():
    chats = Chats([conversation(1 + 10 * i, 6, 3) for i in range(40)], 10, 0, 0)
    assert chats.count == 20
    assert not torch.equal(chats.batch(0, 20).tokens, chats.batch(20, 20).tokens)
    assert chats.fingerprint != Chats(chats.conversations, 10, 0, 1).fingerprint


def test_what_is_too_long_is_cut_and_told():
    made = [conversation(1, 30, 4), conversation(40, 30, 25), conversation(80, 5, 2)]
    chats = Chats(made, 10, 0, 0)
    assert chats.notes == ("2 conversations are cut after 10 tokens", "1 have no answer in them")
    seen = chats.batch(0, chats.count).targets
    assert sorted(seen[seen != IGNORED].tolist()) == [*range(5, 12), *range(82, 85)]
    with pytest.raises(UsageError, match="none of 1 conversations"):
        Chats(made[1:2], 10, 0, 0)
