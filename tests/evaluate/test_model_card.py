"""Model cards: what the hub's own reader finds in them again, and that nothing else in them changes."""

import logging

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.errors import CheckpointError, LeanLMError, NotFound, UsageError
from leanlm.evaluate import card

RESULTS = {
    "results": {
        "arc_easy": {
            "alias": "arc_easy",
            "acc,none": 0.625,
            "acc_stderr,none": 0.0125,
            "acc_norm,none": 0.575,
            "acc_norm_stderr,none": "N/A",
        },
        "triviaqa": {"alias": "triviaqa", "exact_match,remove_whitespace": 0.25, "exact_match_stderr,remove_whitespace": 0.003},
        "mmlu": {"alias": "mmlu", "acc,none": 0.331, "acc_stderr,none": 0.004},
        "mmlu_stem": {"alias": " - stem", "acc,none": 0.3, "acc_stderr,none": 0.008},
        "mmlu_anatomy": {"alias": "  - anatomy", "acc,none": 0.4, "acc_stderr,none": 0.04},
        "tag_alone": {"alias": "tag"},
        "in_a_tag": {"alias": " - in", "acc,none": 0.5},
    },
    "group_subtasks": {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_anatomy"], "tag_alone": ["in_a_tag"]},
    "configs": {"arc_easy": {"dataset_path": "allenai/ai2_arc", "dataset_name": "ARC-Easy", "test_split": "test"}},
    "n-shot": {"mmlu_anatomy": 5, "arc_easy": 0, "triviaqa": 0},  # not of groups of groups
}

CARD = """---
license: apache-2.0   # as its authors say
language: ['en']
date: 2024-03-01
thumbnail:
model-index:
- name: mamba-7b
  results:
  - task:
      type: text-generation
    dataset:
      type: ai2_arc
      name: ARC-E
    metrics:
    - name: accuracy
      type: accuracy
      value: 77.5
      verified: false
  - task:
      type: text-generation
    dataset:
      type: ai2_arc
      name: ARC-C
    metrics:
    - name: accuracy
      type: accuracy
      value: 46.7
      verified: false

# The rest.
tags:
- mamba
---
# Mamba-7B

model-index: no head
---
äöü\t
"""


@pytest.fixture
def readme(tmp_path):
    """readme(text) is a card that says so."""

    def write(text: str):
        path = tmp_path / "README.md"
        path.write_bytes(text.encode())
        return path

    return write


def index(path) -> dict:
    """The index as the hub's reader gives it: its name, and (dataset, shots, metric) to value."""
    data = ModelCard.load(path).data
    values = {
        (one.dataset_name, (one.dataset_args or {}).get("num_few_shot"), one.metric_name): one.metric_value
        for one in data.eval_results
    }
    return {**values, "name": data.model_name}


OURS = {
    ("arc_easy", 0, "acc"): 0.625,
    ("arc_easy", 0, "acc_stderr"): 0.0125,
    ("arc_easy", 0, "acc_norm"): 0.575,
    ("triviaqa", 0, "exact_match, remove_whitespace"): 0.25,
    ("triviaqa", 0, "exact_match_stderr, remove_whitespace"): 0.003,
    ("mmlu", 5, "acc"): 0.331,
    ("mmlu", 5, "acc_stderr"): 0.004,
    ("mmlu_stem", 5, "acc"): 0.3,
    ("mmlu_stem", 5, "acc_stderr"): 0.008,
    ("in_a_tag", None, "acc"): 0.5,
}


def test_a_new_card(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        card.write(RESULTS, "mine", tmp_path / "made" / "README.md")
    assert not caplog.records
    assert index(tmp_path / "made" / "README.md") == {**OURS, "name": "mine"}
    one = ModelCard.load(tmp_path / "made" / "README.md").data.eval_results[0]
    where = (one.task_type, one.dataset_type, one.dataset_config, one.dataset_split)
    assert where == ("text-generation", "allenai/ai2_arc", "ARC-Easy", "test")
    assert one.source_url.endswith("lm-evaluation-harness")
    assert (tmp_path / "made" / "README.md").read_text().endswith("---\n# mine\n")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["README.md"]


def test_all_else_stays(readme):
    path = readme(CARD)
    card.write(RESULTS, "mine", path)
    before, _, behind = CARD.partition("model-index:\n")
    text = path.read_text()
    assert text.startswith(before) and text.endswith(behind[behind.index("\n\n# The rest.") :])
    old = yaml.safe_load(CARD.split("---\n")[1])["model-index"][0]["results"]
    (entry,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert entry["name"] == "mamba-7b" and entry["results"][:2] == old
    assert {key: value for key, value in index(path).items() if key in OURS} == OURS


def test_the_same_measurements_are_replaced_and_others_kept(readme):
    path = readme(CARD)
    card.write(RESULTS, "mine", path)
    again = {
        "results": {"arc_easy": {"acc,none": 0.75}, "mmlu": {"acc,none": 0.25}, "boolq": {"acc,none": 0.5}},
        "configs": RESULTS["configs"],
        "n-shot": {"mmlu": 0, "arc_easy": 0},
    }
    first = index(path)
    card.write(again, "mine", path)
    changed = {("arc_easy", 0, "acc"): 0.75, ("mmlu", 0, "acc"): 0.25, ("boolq", None, "acc"): 0.5}
    assert index(path) == {**first, **changed}
    text = path.read_bytes()
    card.write(again, "mine", path)
    assert path.read_bytes() == text


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("text", ["", "# A card without a head\n\nText\n", "---\nlicense: mit\n---\nText", "---\n\n---\n"])
def test_cards_without_an_index(readme, text, end):
    text = text.replace("\n", end)
    path = readme(text)
    card.write(RESULTS, "mine", path)
    assert index(path) == {**OURS, "name": "mine"}
    written = path.read_bytes().decode()
    assert written.endswith(text.split(f"---{end}")[-1]) and ("license: mit" in written) == ("license: mit" in text)
    assert written.replace("\r\n", "").count("\n") == (0 if end == "\r\n" and text else written.count("\n"))


@settings(max_examples=15, deadline=None)
@given(
    keys=st.dictionaries(st.sampled_from(["license", "tags", "widget", "z"]), st.text("ab:#'\n é", max_size=8)),
    at=st.integers(0, 4),
    body=st.text("a-#\n: é", max_size=20),
)
def test_any_head_and_body_are_kept(tmp_path_factory, keys, at, body):
    items = list(keys.items())
    items.insert(min(at, len(items)), ("model-index", [{"name": "old", "results": []}]))
    head = yaml.safe_dump(dict(items), sort_keys=False, allow_unicode=True)
    path = tmp_path_factory.mktemp("card") / "README.md"
    path.write_text(f"---\n{head}---\n{body}")
    card.write(RESULTS, "mine", path)
    written = path.read_text()
    assert written.endswith(f"---\n{body}") and index(path) == {**OURS, "name": "old"}
    data = yaml.safe_load(written.removesuffix(f"---\n{body}").removeprefix("---\n"))
    assert {key: value for key, value in data.items() if key != "model-index"} == keys
    assert list(data) == [key for key, _ in items]


def test_some_of_a_tasks_questions_are_another_measurement(readme):
    path = readme(CARD)
    card.write(RESULTS, "mine", path)
    card.write({**RESULTS, "config": {"limit": 10}}, "mine", path)
    shown = [one.dataset_args for one in ModelCard.load(path).data.eval_results if one.metric_name == "acc_norm"]
    assert shown == [{"num_few_shot": 0}, {"num_few_shot": 0, "limit": 10}]


def test_a_card_of_several_models(readme):
    path = readme("---\nmodel-index:\n- name: a\n  results: []\n- name: b\n  results: []\n---\n")
    card.write({"results": {"x": {"acc,none": 1.0}}}, "b", path)
    a, b = yaml.safe_load(path.read_text().split("---\n")[1])["model-index"]
    assert a == {"name": "a", "results": []} and b["results"][0]["metrics"][0]["value"] == 1.0


@pytest.mark.parametrize(
    "text, said",
    [
        ("---\nlicense: [\n---\nText\n", "cannot be understood"),
        ("---\nlicense: mit\n", "has no end"),
        ("---\n- a list\n---\n", "cannot be understood"),
        ("---\nmodel-index: 3\n---\n", "cannot be understood"),
        ("---\nmodel-index:\n- name: a\n---\n", "cannot be understood"),
        ("---\nmodel-index:\n- name: a\n  results:\n  - task: {}\n---\n", "cannot be understood"),
        ('---\n"model-index":\n- name: a\n  results: []\n---\n', "not written line by line"),
        ("---\n{license: mit}\n---\n", "not written line by line"),
        ("---\nmodel-index: [{name: a,\nresults: []}]\n---\n", "not written line by line"),
    ],
)
def test_a_damaged_head_is_one_line_and_the_card_untouched(readme, text, said):
    path = readme(text)
    with pytest.raises(CheckpointError, match=said) as caught:
        card.write(RESULTS, "mine", path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert path.read_text() == text and [one.name for one in path.parent.iterdir()] == ["README.md"]


def test_what_cannot_be_read_or_written(readme, tmp_path):
    (tmp_path / "latin").mkdir()
    latin = tmp_path / "latin" / "README.md"
    latin.write_bytes(b"# caf\xe9\n")
    with pytest.raises(CheckpointError, match="no UTF-8"):
        card.write(RESULTS, "mine", latin)
    with pytest.raises(NotFound, match="cannot read this model card"):
        card.write(RESULTS, "mine", tmp_path)
    with pytest.raises(UsageError, match="no results"):
        card.write({"results": {}}, "mine", tmp_path / "README.md")
    (tmp_path / "file").write_text("")
    with pytest.raises(LeanLMError, match="cannot"):
        card.write(RESULTS, "mine", tmp_path / "file" / "README.md")
    assert not (tmp_path / "README.md").exists()
