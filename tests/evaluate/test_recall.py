"""Recall of models whose memory is known: one that finds whatever it has read in its window, and ones that know nothing."""

import dataclasses
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from hybrid_models import build
from leanlm import runtime
from leanlm.api import Model
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import UsageError
from leanlm.evaluate import facts, recall
from leanlm.model.config import MLP, Attention, Mamba2, ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State

VOCAB, ROOM = 112, 600
SURE = 20.0  # the logit of what follows for certain


class Finder(LanguageModel):
    """Goes on as the text went on after the longest stretch like its end, where that lies in the last `window` tokens; knows
    nothing otherwise."""

    def __init__(self, window: int):
        super().__init__(ModelConfig(4, VOCAB, ((MLP(4),),), context_length=ROOM, eos_ids=(0,)))
        self.window = window

    def new_state(self, batch, capacity=None, dtype=None, cache_dtype=None):
        return State([{"read": torch.zeros(batch, ROOM, dtype=torch.int64)}], torch.zeros(batch, dtype=torch.int64))

    def forward(self, tokens, state=None, segments=None, last_only=False):
        logits = torch.zeros(*tokens.shape, VOCAB)
        for row, text in enumerate(tokens.tolist()):
            read = state.memories[0]["read"][row]
            for column, token in enumerate(text):
                at = int(state.position[row]) + column
                read[at] = token
                if (found := self.follower(read[: at + 1].tolist())) is not None:
                    logits[row, column, found] = SURE
        state.position += tokens.shape[1]
        return logits[:, -1:] if last_only else logits

    def follower(self, text):
        best, found = 0, None
        for end in range(max(0, len(text) - 1 - self.window), len(text) - 1):
            length = 0
            while length <= end and text[end - length] == text[-1 - length]:
                length += 1
            if length > best:
                best, found = length, text[end + 1]
        return found


def finder(window: int) -> Model:
    return Model(Finder(window), "oracle", Tokenizer(tiny_models.tokenizer()))


def small(*mixers) -> Model:
    return Model(build(ModelConfig(16, 64, tuple((mixer,) for mixer in mixers), context_length=400)), "none")


@pytest.mark.parametrize("load", [1, 5])
@pytest.mark.parametrize("kind", facts.KINDS)
def test_all_is_remembered_in_the_window_and_nothing_behind_it(kind, load):
    distance = 70
    for window, told in ((distance, True), (distance - 5, False)):  # 5: nor any later token of the answer
        (point,) = recall.curve(finder(window), kind, [distance], [load], items=4)
        assert (point.kind, point.distance, point.load, point.items) == (kind, distance, load, 4)
        if told:
            sure = SURE - math.log(math.exp(SURE) + VOCAB - 1) + math.log(VOCAB)  # nats of a token that was any before
            assert point.accuracy == 1 and point.stderr == 0
            assert point.nats >= sure - 1e-3 if kind == "needle" else point.nats == pytest.approx(sure, abs=1e-3)
        elif kind == "needle":  # it goes on by what stands in the window, other needles or digits of the choices themselves
            assert point.accuracy < 1 and (load > 1 or point.nats == pytest.approx(0, abs=1e-3))
        else:
            assert point.accuracy == (0 if kind == "copy" else point.chance)
            assert point.nats == pytest.approx(0, abs=1e-3)


BLIND = finder(1)


def spelt(ids) -> str:
    return "," + "".join(f"{i}," for i in ids)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(facts.KINDS), st.integers(1, 9), st.integers(0, 200), st.integers(0, 2**20))
def test_the_answer_was_told_at_its_distance_and_only_there(kind, load, further, seed):
    distance = 60 + further
    told, untold, answer, wrong = facts.ask(BLIND, kind, distance, load, random.Random(seed))
    assert told[len(told) - distance :][: len(answer)] == answer and len(told) == len(untold) > distance
    length = next(n for n in range(distance) if told[-1 - n] != told[len(told) - distance - 1 - n])  # of the question
    assert length >= (facts.CUE if kind == "copy" else 1)
    fact = told[len(told) - distance - length :][: length + len(answer)]
    assert spelt(fact) in spelt(told) and spelt(fact) not in spelt(untold)
    assert len({answer, *wrong}) == 1 + len(wrong) == (1 if kind == "copy" else facts.CANDIDATES)
    if kind != "copy":  # the wrong answers were told too
        assert sum(spelt(one) in spelt(told) for one in wrong) >= min(load, facts.CANDIDATES) - 1
    assert 0 not in told[1:]  # which ends texts


def test_knowing_nothing_is_chance():
    """Within five standard errors, for models of random weights."""
    for point in recall.curve(small(Mamba2(32, 8, 8), Attention(2, 2, 8, window=20)), "pairs", [40], [1, 4], items=60):
        assert abs(point.accuracy - point.chance) <= 5 * max(point.stderr, 0.04)
        assert point.chance == 1 / facts.CANDIDATES


def test_points_are_those_of_their_seed_whatever_else_is_measured():
    model, done = small(Mamba2(32, 8, 8)), []
    several = recall.curve(model, "copy", [20, 30], [1, 2], items=3, progress=done.append)
    assert [(p.distance, p.load) for p in several] == [(20, 1), (20, 2), (30, 1), (30, 2)] and done == list(range(1, 13))
    assert recall.curve(model, "copy", [30], [2], items=3) == several[-1:]
    assert recall.curve(model, "copy", [30], [2], items=3, seed=1) != several[-1:]
    (single,) = recall.curve(model, "copy", [30], [2], items=1)
    assert single.stderr is None and set(dataclasses.asdict(single)) == {f.name for f in dataclasses.fields(recall.Point)}


def test_token_by_token_is_the_same_in_float32_and_rounds_more_often_in_int8():
    model = small(Mamba2(32, 8, 8), Mamba2(32, 8, 8))
    run = recall.stepwise(runtime.of(model.module))
    for dtype, alike in ((None, True), ("int8", False)):
        model.keep_states(dtype)
        (whole,), (steps,) = (recall.curve(model, "pairs", [40], [2], items=3, run=r) for r in (None, run))
        assert (abs(whole.nats - steps.nats) <= 1e-5 * (1 + abs(whole.nats))) == alike
        assert whole.nats == pytest.approx(steps.nats, abs=0.3)


def test_refusals():
    model = small(Mamba2(32, 8, 8))
    for kind, settings_, message in (
        ("copies", {}, "recall of 'copies': choose copy, needle, pairs"),
        ("needle", {}, "no tokenizer: give --tokenizer"),
        ("pairs", {"distances": [0]}, "distance 0: must be at least 1"),
        ("pairs", {"loads": [0]}, "load 0: must be at least 1"),
        ("pairs", {"items": 0}, "items 0: must be at least 1"),
        ("copy", {"distances": [8]}, "distance 8: what is told and asked for takes 9 tokens"),
        ("pairs", {"loads": [30]}, "a vocabulary of 64 tokens is too small"),
    ):
        with pytest.raises(UsageError, match=message):
            recall.curve(model, kind, **{"distances": [40], "items": 1, **settings_})
    with pytest.raises(UsageError, match="load 999: there are at most 140 needles"):
        recall.curve(finder(9), "needle", [60], [999])
