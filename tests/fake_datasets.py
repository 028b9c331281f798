"""The data sets of the printed evaluation commands in small: a made-up row each, some times over."""

from functools import cache
from pathlib import Path

import datasets
import lm_eval.tasks
from lm_eval.tasks._index import TaskIndex

LETTERS = {"label": ["A", "B", "C", "D"], "text": ["water", "stone", "bread", "light"]}
ROWS = {
    ("aps/super_glue", "copa"): {
        "premise": "The grass was wet.",
        "choice1": "It rained.",
        "choice2": "The sun shone.",
        "question": "cause",
        "label": 0,
    },
    ("aps/super_glue", "boolq"): {"passage": "Rain is water that falls.", "question": "is rain water", "label": 1},
    ("Rowan/hellaswag", None): {
        "activity_label": "Baking bread",
        "ctx_a": "A woman mixes flour and water.",
        "ctx_b": "she",
        "endings": ["kneads the dough.", "flies away.", "reads [title] a map.", "sings."],
        "label": "0",
    },
    ("baber/piqa", None): {"goal": "Open a jar", "sol1": "turn the lid", "sol2": "eat the lid", "label": 0},
    ("allenai/ai2_arc", "ARC-Easy"): {"question": "What do plants need?", "choices": LETTERS, "answerKey": "A"},
    ("allenai/ai2_arc", "ARC-Challenge"): {"question": "What is bread made of?", "choices": LETTERS, "answerKey": "C"},
    ("allenai/winogrande", "winogrande_xl"): {
        "sentence": "The cup did not fit in the bag because the _ was too big.",
        "option1": "cup",
        "option2": "bag",
        "answer": "1",
    },
    ("allenai/openbookqa", "main"): {"question_stem": "Lamps give", "choices": LETTERS, "answerKey": "D"},
    ("EleutherAI/lambada_openai", "default"): {"text": "She looked for the key and at last she found the key"},
    ("allenai/sciq", None): {
        "support": "Water boils when it is hot.",
        "question": "What boils?",
        "distractor1": "stone",
        "distractor2": "light",
        "distractor3": "bread",
        "correct_answer": "water",
    },
    ("EleutherAI/logiqa", "logiqa"): {
        "context": "All cups are red.",
        "question": "What colour is this cup?",
        "options": ["red", "blue", "green", "white"],
        "label": "a",
    },
    ("mandarjoshi/trivia_qa", "rc.nocontext"): {
        "question": "What falls when it rains",
        "answer": {"aliases": ["water", "rain"], "value": "water"},
    },
    ("jannalu/crows_pairs_multilingual", "english"): {"sent_more": "He was late.", "sent_less": "She was late."},
    ("lighteval/siqa", None): {
        "context": "Ann gave Tom her umbrella.",
        "question": "What will Tom do?",
        "answerA": "stay dry",
        "answerB": "get wet",
        "answerC": "sing",
        "label": "1",
    },
    ("truthfulqa/truthful_qa", "multiple_choice"): {
        "question": "Can stones fly?",
        "mc1_targets": {"choices": ["No", "Yes"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["No", "Yes"], "labels": [1, 0]},
    },
}
SUBJECT = {"question": "What is wet?", "choices": LETTERS["text"], "answer": 0}  # of MMLU
SPLITS = {"train": 6, "validation": 1, "test": 1, "dev": 6}  # rows of each: five examples and one, or a question


OWN_TASKS = Path(lm_eval.tasks.__file__).parent
read_tasks = TaskIndex.build
read_once = cache(read_tasks)


def patch(monkeypatch) -> None:
    """The harness reads these data sets."""
    remember_tasks(monkeypatch)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def remember_tasks(monkeypatch) -> None:
    """The harness reads its own folder of tasks once, which takes longer than most tests."""

    def index(paths):
        found = {}
        for path in paths:
            found |= read_once((path,)) if path == OWN_TASKS else read_tasks((path,))
        return found

    monkeypatch.setattr(TaskIndex, "build", staticmethod(index))


def load_dataset(path: str, name: str | None = None, **_) -> datasets.DatasetDict:
    """In place of `datasets.load_dataset`; raises KeyError for a data set that is not here."""
    row = SUBJECT if path == "cais/mmlu" else ROWS[path, name]
    return datasets.DatasetDict({split: datasets.Dataset.from_list([row] * count) for split, count in SPLITS.items()})
