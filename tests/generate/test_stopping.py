"""Pieces of text: joined they are the text up to the first stop string, however characters fall into tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.errors import UsageError
from leanlm.generate.stopping import BROKEN, Decoder, TextStream, stop_strings

TEXTS = st.text("ab \n€é🙂", max_size=24)
STOPS = st.lists(st.text("ab€🙂", min_size=1, max_size=4), max_size=3)


class Cut:
    """A tokenizer made by cutting one text's bytes anywhere: token i is the i-th part."""

    def __init__(self, data: bytes, cuts: set[int]):
        ends = sorted({c for c in cuts if 0 < c < len(data)} | {len(data)})
        self.parts = [data[a:b] for a, b in zip([0, *ends], ends) if a < b]

    def decode(self, ids):
        return b"".join(self.parts[i] for i in ids).decode(errors="replace")


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sets(st.integers(1, 80)), STOPS, st.integers(0, 30))
def test_stop_strings_over_any_cuts(text, cuts, stops, prompt_length):
    """Oracle: whole characters of growing byte prefixes, searched from the start each time. Every piece stays true."""
    cut = Cut(text.encode(), cuts)
    before = list(range(min(prompt_length, len(cut.parts))))
    if BROKEN in cut.decode(before):
        before = []
    skipped = len(cut.decode(before))
    stream, told, wanted = TextStream(cut.decode, before, stops), "", None
    for token in range(len(before), len(cut.parts)):
        piece = stream.push(token)
        told += piece
        so_far = cut.decode(range(token + 1)).rstrip(BROKEN)[skipped:]
        found = [so_far.find(stop) for stop in stops if stop in so_far]
        assert BROKEN not in piece
        if found:
            wanted = so_far[: min(found)]
            break
        assert so_far.startswith(told)
        held = so_far[len(told) :]
        assert not held or any(stop.startswith(held) for stop in stops)
        assert not any(told.endswith(stop[:n]) for stop in stops for n in range(1, len(stop)) if not held)
    assert stream.stopped == (wanted is not None)
    told += stream.flush()
    assert told == (text[skipped:] if wanted is None else wanted)


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.sets(st.integers(1, 80)), STOPS, st.integers(0, 60))
def test_a_stream_taken_up_again_says_the_rest(text, cuts, stops, at):
    cut = Cut(text.encode(), cuts)
    whole, first = TextStream(cut.decode, (), stops), TextStream(cut.decode, (), stops)
    pieces, told = [], ""
    for token in range(len(cut.parts)):
        pieces.append(whole.push(token))
        if whole.stopped:
            break
    tokens = list(range(len(pieces)))
    at = min(at, len(tokens))
    for token in tokens[:at]:
        told += first.push(token)
    second = TextStream(cut.decode, (), stops, tokens[:at], first.told)
    if not first.stopped:
        for token in tokens[at:]:
            told += second.push(token)
    assert told == "".join(pieces)


def test_bytes_that_are_no_character_appear_when_it_is_certain():
    cut = Cut(b"a\xffb\xe2\x82", set(range(9)))
    decoder = Decoder(cut.decode)
    assert [decoder.push(i) for i in range(5)] == ["a", "", BROKEN + "b", "", ""]
    assert decoder.flush() == BROKEN
    assert decoder.flush() == ""


class Sentence:
    """As SentencePiece decodes: the first token loses its space, and a broken run of bytes is broken altogether."""

    words = ("▁one", "▁two", b"\xe2", b"\x82", b"\xac", "!")

    def decode(self, ids):
        text, run = "", b""
        for item in [*(self.words[i] for i in ids), ""]:
            if isinstance(item, bytes):
                run += item
                continue
            try:
                text += run.decode()
            except UnicodeDecodeError:
                text += BROKEN * len(run)
            text, run = text + item.replace("▁", " "), b""
        return text.removeprefix(" ")


def test_the_space_after_the_prompt_is_kept():
    stream = TextStream(Sentence().decode, before=[0])
    assert [stream.push(i) for i in (1, 1, 5)] == [" two", " two", "!"]


@pytest.mark.parametrize("tokens, wanted", [([2, 3, 4, 2, 3, 4], "€€"), ([2, 3, 4, 2, 5, 1], "€" + BROKEN + "! two")])
def test_runs_of_bytes_that_break_later_take_nothing_back(tokens, wanted):
    stream = TextStream(Sentence().decode, before=[0])
    assert "".join(map(stream.push, tokens)) + stream.flush() == wanted


def test_stop_strings_are_checked():
    assert stop_strings(None) == ()
    assert stop_strings("ab") == ("ab",)
    for bad in ("", ["a", ""], [3]):
        with pytest.raises(UsageError, match="stop"):
            stop_strings(bad)
