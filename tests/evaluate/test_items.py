"""Local tasks: what is read, what is refused, scores by hand, and that an interrupted evaluation comes to the same."""

import json
import re

import pytest

from hybrid_models import build
from leanlm.api import Model, load
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import CheckFailed, UsageError
from leanlm.evaluate import items
from leanlm.evaluate.items import CHOICE, CLOZE, MATCH, Item
from leanlm.model.config import GatedMLP, Mamba2, ModelConfig
from tiny_models import add_tokenizer

LINES = [
    {"context": "the sky is", "choices": [" blue", " made of cheese", " a"], "answer": 0},
    {"context": "to be or not to", "continuation": " be"},
    {"context": "Q: 2 + 2\nA:", "answer": ["4", "four"], "until": ["\n"], "max_new_tokens": 5},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = Tokenizer.from_folder(add_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    config = ModelConfig(16, made.vocab_size, ((Mamba2(32, 8, 8), GatedMLP(24)),) * 2, eos_ids=made.eos_ids)
    return Model(build(config), "mamba_ssm", made)


def file(path, lines=LINES):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_items_are_read(tmp_path):
    choice, cloze, match = items.read(file(tmp_path / "a.jsonl"))
    assert choice == Item(CHOICE, "the sky is", (" blue", " made of cheese", " a"), 0)
    assert cloze == Item(CLOZE, "to be or not to", (" be",))
    assert match == Item(MATCH, "Q: 2 + 2\nA:", answer=("4", "four"), until=("\n",), max_new_tokens=5)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: Expecting"),
        ([1], "an item is an object, not list"),
        ({"context": "a", "choices": [], "answer": 0}, "'choices' needs texts"),
        ({"context": "a", "choices": ["b"], "answer": 1}, "answer 1 is none of 1 choices"),
        ({"context": "a", "choices": ["b"]}, "an item of multiple choice needs 'answer'"),
        ({"context": "a", "choices": "b", "answer": 0}, "'choices' has the wrong type, str"),
        ({"context": "a", "choices": ["b"], "answer": True}, "'answer' has the wrong type, bool"),
        ({"context": "a", "continuation": ""}, "'continuation' needs texts"),
        ({"context": "a", "answer": []}, "'answer' needs texts"),
        ({"context": "a", "answer": "b", "untill": []}, "'untill' is unknown to an item of exact match"),
        ({"context": "a", "answer": "b", "until": [1]}, "'until' needs texts"),
        ({"context": "a", "answer": "b", "max_new_tokens": 0}, "'max_new_tokens' is 0: must be at least 1"),
    ],
)
def test_what_is_no_item_is_named(tmp_path, line, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        items.read(file(tmp_path / "a.jsonl", [LINES[0], line]))


def test_empty_files_and_others(tmp_path):
    with pytest.raises(UsageError, match="holds no items"):
        items.read(file(tmp_path / "a.jsonl", []))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8"):
        items.read(tmp_path / "b.jsonl")


def test_scores_by_hand():
    asked = [
        Item(CHOICE, "", ("ab", "  abcd"), 1),
        Item(CHOICE, "", ("a", "b"), 0),
        Item(CLOZE, "", ("x",)),
        Item(MATCH, "", answer=(" 4",)),
    ]
    results = [
        {"likelihoods": [-2.0, -3.0], "greedy": [False, False]},  # per character the second is likelier
        {"likelihoods": [-1.0, -2.0], "greedy": [True, False]},
        {"likelihoods": [-2.0], "greedy": [True]},
        {"text": " 4 "},
    ]
    found = items.summarise(asked, results)
    assert found[CHOICE] == {"items": 2, "acc": {"value": 0.5, "stderr": 0.5}, "acc_norm": {"value": 1.0, "stderr": 0.0}}
    assert found[CLOZE]["perplexity"] == {"value": pytest.approx(7.389, abs=1e-3), "stderr": None}
    assert found[MATCH]["exact_match"]["value"] == 1.0


@pytest.fixture(scope="module")
def published():
    return load("builtin-float")


@pytest.mark.parametrize(
    ("context", "choices"), [("impor", ("t", " zzz")), ("import o", ("s", " zzz")), ("", ("a", "b")), ("x = ", ("1", "22"))]
)
def test_choices_are_cut_at_one_place_and_are_never_empty(published, context, choices):
    found = items.requests(published, context, choices)
    start = published.tokenizer.eos_id
    for request, choice in zip(found, choices):
        whole = [*request.context, *request.continuation]
        assert request.context and request.continuation
        assert whole[whole[0] == start :] == published.tokenizer.encode(context + choice)
    assert len({request.context for request in found}) == 1


def test_an_interrupted_evaluation_comes_to_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(items, "BLOCK", 2)
    asked = items.read(file(tmp_path / "a.jsonl", [*LINES, *LINES, *LINES[:1]]))
    whole = items.evaluate(model, asked, tmp_path / "whole.jsonl")
    seen = []

    def stop(done: int) -> None:
        seen.append(done)
        if done == 4:
            raise KeyboardInterrupt

    store = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        items.evaluate(model, asked, store, stop)
    store.write_text(store.read_text() + '{"likelihoods": [-1.0')  # what a killed process leaves
    done = []
    assert items.evaluate(model, asked, store, done.append) == whole and done[0] == 4
    assert store.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert items.evaluate(model, asked, store) == whole
    with pytest.raises(CheckFailed, match="other texts or another model"):
        items.evaluate(model, asked[:3], store)
    store.write_text("{}\n")
    with pytest.raises(CheckFailed, match="is damaged"):
        items.evaluate(model, asked, store)
