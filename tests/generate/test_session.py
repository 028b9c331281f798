"""Sessions: cut, saved, forked and rewound ones are, bit for bit, those that were not."""

import pytest
import torch
from hybrids import EOS, MIXERS, ByteTokenizer, hybrid, layer_lists, prompts, samplings, speaker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanlm import Session
from leanlm.errors import CheckpointError, NotFound, UsageError
from leanlm.generate import session as sessions

FEW = {"max_examples": 8, "deadline": None, "derandomize": True}
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], **FEW)
SSM, FULL = MIXERS[1], MIXERS[4]


def same(a: Session, b: Session) -> None:
    """Equal in all that may influence what comes."""
    assert a.tokens == b.tokens and torch.equal(a.random, b.random)
    mine, theirs = a.state.tensors(), b.state.tensors()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        other = theirs[name]
        room = min(tensor.shape[1], other.shape[1]) if name.endswith((".k", ".v")) else None
        assert torch.equal(tensor[:, :room], other[:, :room]) if room else torch.equal(tensor, other), name
    assert [(t.start, t.read, t.text, t.told) for t in a.turns] == [(t.start, t.read, t.text, t.told) for t in b.turns]


@QUICK
@given(
    layer_lists, st.lists(prompts, min_size=1, max_size=2), samplings, st.lists(st.integers(0, 6), max_size=3), st.booleans()
)
def test_resuming_at_any_cut_equals_never_stopping(tmp_path, layers, turns, sampling, cuts, to_file):
    model = speaker(hybrid(layers))
    whole, cut = Session(model, seed=4), Session(model, seed=4)
    for turn in turns:
        wanted = whole.generate(turn, 6, **sampling)
        steps = [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 6])]
        found = []
        for number, step in enumerate(steps):
            found += cut.generate(None if number else turn, step, **sampling)
            if to_file:
                cut.save(tmp_path / "session")
                cut = Session.load(model, tmp_path / "session")
            else:
                cut = cut.fork()
        assert found == wanted
    same(whole, cut)


@QUICK
@given(layer_lists, st.lists(prompts, min_size=1, max_size=4), samplings, st.integers(0, 3), st.sampled_from([1, 8]))
def test_what_was_rewound_was_never_said(layers, turns, sampling, back, kept):
    """Also beyond the turns whose snapshots are kept."""
    model = speaker(hybrid(layers))
    back = min(back, len(turns) - 1)
    regretful, innocent = Session(model, seed=1), Session(model, seed=1)
    before, sessions.SNAPSHOTS = sessions.SNAPSHOTS, kept
    try:
        for turn in turns:
            regretful.generate(turn, 3, **sampling)
        for turn in turns[:back]:
            innocent.generate(turn, 3, **sampling)
        regretful.rewind(back)
        same(regretful, innocent)
        assert regretful.generate([3, 1, 4], 3, **sampling) == innocent.generate([3, 1, 4], 3, **sampling)
        same(regretful, innocent)
    finally:
        sessions.SNAPSHOTS = before


@QUICK
@given(layer_lists, prompts, st.integers(1, 6))
def test_a_fork_is_independent(layers, prompt, new):
    one = Session(speaker(hybrid(layers)), seed=2)
    one.generate(prompt, new, temperature=1.0)
    other = one.fork()
    same(one, other)
    one.generate([1, 2], 3, temperature=1.0)
    assert other.tokens == one.tokens[: len(prompt) + new] or EOS in other.tokens
    other.generate([1, 2], 3, temperature=1.0)
    same(one, other)


def test_a_session_says_what_generate_says():
    from leanlm.api import Model

    model = Model(hybrid([SSM, FULL]), "mamba_ssm", ByteTokenizer())
    for options in ({}, {"temperature": 0.9, "repetition_penalty": 1.2}):
        ids = [1, 2, 3]
        assert Session(model, seed=7).generate(ids, 15, **options) == model.generate(ids, 15, seed=7, **options)


def test_text_held_back_at_a_cut_comes_with_the_rest(tmp_path):
    """Half characters and half stop strings wait; joined over all cuts the text is that of one call."""
    model = speaker(hybrid([SSM, MIXERS[3]], seed=11), ByteTokenizer())
    full = Session(model, seed=3)
    answer = full.generate("tell me", 60, temperature=3.0)
    stop = next(answer[i : i + 3] for i in range(15, 60) if "\ufffd" not in answer[i : i + 3])
    wanted = (whole := Session(model, seed=3)).generate("tell me", 60, temperature=3.0, stop=stop)
    assert wanted != answer and answer.startswith(wanted)
    cut = Session(model, seed=3)
    found = cut.generate("tell me", 1, temperature=3.0, stop=stop)
    while not cut.finish or cut.finish == "length":
        cut.save(tmp_path / "s")
        cut = Session.load(model, tmp_path / "s")
        found += cut.generate(max_new_tokens=1, temperature=3.0, stop=stop)
    assert found == wanted
    same(whole, cut)


@pytest.mark.parametrize("when", [1, 2, 5])
def test_an_interrupt_within_a_step_leaves_the_session_as_after_the_step_before(when):
    """The state is half changed by then: it must be made whole again."""
    module = hybrid([SSM, FULL, SSM])
    calm, nervous = (Session(speaker(module), seed=1) for _ in range(2))
    for session in (calm, nervous):
        session.generate([1, 2, 3], 2, temperature=1.0)
    calls, inner = 0, module.layers[1][0].mixer

    def interrupt(*_):
        nonlocal calls
        calls += 1
        if calls == when:
            raise KeyboardInterrupt

    hook = inner.register_forward_hook(interrupt)
    pieces = []
    with pytest.raises(KeyboardInterrupt):
        nervous.generate([4, 5], 8, temperature=1.0, stream=pieces.append)
    hook.remove()
    wanted = calm.generate([4, 5], 8, temperature=1.0)
    assert [4, 5] + [i for piece in pieces for i in piece] == wanted[: 2 + len(pieces)]
    assert [i for piece in pieces for i in piece] + nervous.generate(None, 8 - len(pieces), temperature=1.0) == wanted[2:]
    same(calm, nervous)


def test_streams_left_early_leave_a_whole_session():
    model = speaker(hybrid([SSM, FULL]))
    calm, hasty = Session(model, seed=1), Session(model, seed=1)
    wanted = calm.generate([1], 9)
    stream = hasty.generate([1], 9, stream=True)
    first = [next(stream), next(stream)]
    stream.close()
    assert [i for piece in first for i in piece] + hasty.generate(None, 7) == wanted[1:]
    same(calm, hasty)


@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_full_attention_gets_room_as_it_needs_it(monkeypatch, cache_dtype):
    module = hybrid([FULL, MIXERS[5]])
    module.cache_dtype = cache_dtype
    wanted = Session(speaker(module)).generate([1, 2], 40)
    monkeypatch.setattr(sessions, "ROOM", 4)
    session = Session(speaker(module))
    found = session.generate([1, 2], 7)
    while len(found) < len(wanted):
        found += session.generate(None, 5)
    assert found[: len(wanted)] == wanted


def test_refusals(tmp_path):
    model, file = speaker(hybrid([SSM])), tmp_path / "session"
    session = Session(model)
    with pytest.raises(UsageError, match="empty"):
        session.generate([], 3)
    with pytest.raises(UsageError, match="token 999"):
        session.generate([999], 3)
    with pytest.raises(UsageError, match="tokenizer"):
        session.generate("text", 3)
    assert not session.turns and not session.tokens
    session.generate([1], 3)
    with pytest.raises(UsageError, match="turn 3"):
        session.rewind(3)
    with pytest.raises(NotFound):
        Session.load(model, file)
    session.save(file)
    with pytest.raises(CheckpointError, match="another model"):
        Session.load(speaker(hybrid([SSM], seed=1)), file)
    with pytest.raises(CheckpointError, match="another model"):
        Session.load(speaker(hybrid([MIXERS[0]])), file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError):
        Session.load(model, file)


def test_a_state_is_no_session(tmp_path):
    from leanlm.api import Model

    model = Model(hybrid([SSM]), "mamba_ssm")
    model.save_state(model.new_state(1), tmp_path / "state")
    with pytest.raises(CheckpointError, match="no session"):
        Session.load(model, tmp_path / "state")


def test_bos_only_begins_the_first_turn():
    session = Session(speaker(hybrid([SSM]), Bos()))
    session.generate("ab", 1)
    session.generate("cd", 1)
    prompts = [session.tokens[turn.start : turn.read] for turn in session.turns]
    assert prompts == [[EOS, *b"ab"], [*b"cd"]]


class Bos(ByteTokenizer):
    def encode(self, text, add_special=True):
        return [EOS] * add_special + super().encode(text)
