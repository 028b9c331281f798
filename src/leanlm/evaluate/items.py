"""Tasks in local files, without the harness: one JSON object a line, of three kinds, told apart by their keys.

    {"context": "The sky is", "choices": [" blue", " made of cheese"], "answer": 0}      multiple choice
    {"context": "To be or not to", "continuation": " be"}                                cloze
    {"context": "Q: 2 + 2\\nA:", "answer": ["4", "four"], "until": ["\\n"]}                 exact match of what is generated

Scores are those of the lm-evaluation-harness: `acc` of the likeliest choice, `acc_norm` of the likeliest per character (without
the space before it), for cloze `acc` of greedy tokens and `perplexity` of whole continuations, `exact_match` of what is
generated before a stop string, blanks around it left out.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from leanlm.api import Model
from leanlm.errors import NotFound, UsageError
from leanlm.evaluate import scoring
from leanlm.evaluate.scoring import Request
from leanlm.evaluate.store import Store, fingerprint

BLOCK = 64  # items whose results are stored together
NEW_TOKENS = 64  # of an exact match, where the item gives no limit
CHOICE, CLOZE, MATCH = "multiple choice", "cloze", "exact match"
KEYS = {
    CHOICE: {"context": str, "choices": list, "answer": int},
    CLOZE: {"context": str, "continuation": str},
    MATCH: {"context": str, "answer": (str, list), "until": list, "max_new_tokens": int},
}
OPTIONAL = {"until", "max_new_tokens"}


@dataclass(frozen=True)
class Item:
    """`continuations` are the choices, or one text; `answer` is which choice is right, or the texts that are."""

    kind: str
    context: str
    continuations: tuple[str, ...] = ()
    answer: int | tuple[str, ...] = 0
    until: tuple[str, ...] = ("\n",)
    max_new_tokens: int = NEW_TOKENS


def read(path: str | Path) -> list[Item]:
    """The items of a file. Raises NotFound, or UsageError naming the line that is none, or an empty file."""
    found = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise NotFound(f"{path}: cannot be read ({error.strerror}); give a file of JSON lines") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(item(json.loads(line)))
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from None
    if not found:
        raise UsageError(f"{path}: holds no items")
    return found


def item(raw) -> Item:
    """One item of its JSON; raises ValueError with what is wrong."""
    if not isinstance(raw, dict):
        raise ValueError(f"an item is an object, not {type(raw).__name__}")
    kind = CHOICE if "choices" in raw else CLOZE if "continuation" in raw else MATCH
    known = KEYS[kind]
    if unknown := sorted(raw.keys() - known.keys()):
        raise ValueError(f"{unknown[0]!r} is unknown to an item of {kind} (there are {', '.join(known)})")
    for key, type_ in known.items():
        if key not in raw and key not in OPTIONAL:
            raise ValueError(f"an item of {kind} needs {key!r}")
        if key in raw and (not isinstance(raw[key], type_) or isinstance(raw[key], bool)):
            raise ValueError(f"{key!r} has the wrong type, {type(raw[key]).__name__}")
    given = {"until": tuple(raw["until"])} if "until" in raw else {}
    given |= {"max_new_tokens": raw["max_new_tokens"]} if "max_new_tokens" in raw else {}
    if kind == CHOICE:
        _check_texts("choices", raw["choices"])
        if not 0 <= raw["answer"] < len(raw["choices"]):
            raise ValueError(f"answer {raw['answer']} is none of {len(raw['choices'])} choices")
        return Item(kind, raw["context"], tuple(raw["choices"]), raw["answer"])
    if kind == CLOZE:
        _check_texts("continuation", [raw["continuation"]])
        return Item(kind, raw["context"], (raw["continuation"],))
    if not all(isinstance(text, str) and text for text in raw.get("until", ())):
        raise ValueError("'until' needs texts that are not empty")
    if raw.get("max_new_tokens", 1) < 1:
        raise ValueError(f"'max_new_tokens' is {raw['max_new_tokens']}: must be at least 1")
    answers = raw["answer"] if isinstance(raw["answer"], list) else [raw["answer"]]
    _check_texts("answer", answers)
    return Item(kind, raw["context"], answer=tuple(answers), **given)


def _check_texts(key: str, texts: list) -> None:
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{key!r} needs texts that are not empty")


def evaluate(
    model: Model, items: Sequence[Item], store: Path | None = None, progress: Callable[[int], None] = lambda done: None
) -> dict[str, dict]:
    """Scores of every kind that there is: {kind: {"items": n, metric: {"value": v, "stderr": e}}}.

    Results are kept in the file `store` a block at a time, and a second call goes on behind them; `progress` is told how many
    items are done. Raises UsageError for a model without tokenizer, and what `Store` raises.
    """
    if model.tokenizer is None:
        raise UsageError("items are texts, and this model has no tokenizer: give --tokenizer")
    stored = Store(store, fingerprint(model, repr(items)), len(items), BLOCK)
    while (done := len(stored.results)) < len(items):
        progress(done)
        stored.add(_results(model, items[done : done + BLOCK]))
    progress(len(items))
    return summarise(items, stored.results)


def _results(model: Model, items: Sequence[Item]) -> list[dict]:
    asked = [(n, request) for n, one in enumerate(items) for request in requests(model, one.context, one.continuations)]
    scores = dict(scoring.score(model.module, [request for _, request in asked]))
    found: list[dict] = [{} for _ in items]
    for number, (n, _) in enumerate(asked):
        found[n].setdefault("likelihoods", []).append(scores[number].log_likelihood)
        found[n].setdefault("greedy", []).append(scores[number].greedy)
    for result, one in zip(found, items):
        if one.kind == MATCH:
            settings = {"max_new_tokens": one.max_new_tokens, "stop": list(one.until) or None}
            result["text"] = model.generate(one.context, **settings)
    return found


def requests(model: Model, context: str, continuations: Sequence[str]) -> list[Request]:
    """Tokens of the context with each of its continuations, cut as in the text as a whole, all at the same place: behind the
    context, without the spaces that end it, or before it where a continuation is part of one token with what is before it."""
    bare = context.rstrip()
    start = next(i for i in (model.tokenizer.bos_id, model.tokenizer.eos_id, *model.config.eos_ids, 0) if i is not None)
    before, *wholes = (model.tokenizer.encode(text) if text else [] for text in (bare, *(context + c for c in continuations)))
    cut = min((min(scoring.common(before, whole), len(whole) - 1) for whole in wholes), default=1)
    if cut < 1 or (cut == 1 and before == [start]):  # nothing before what is asked for
        wholes = [whole if whole[:1] == [start] else [start, *whole] for whole in wholes]
        cut = 1
    return [Request(tuple(whole[:cut]), tuple(whole[cut:])) for whole in wholes]


def summarise(items: Sequence[Item], results: Sequence[dict]) -> dict[str, dict]:
    found = {}
    for kind in (CHOICE, CLOZE, MATCH):
        chosen = [(one, result) for one, result in zip(items, results) if one.kind == kind]
        if chosen:
            found[kind] = {"items": len(chosen), **dict(METRICS[kind](chosen))}
    return found


def _of_choices(chosen) -> Iterator[tuple[str, dict]]:
    plain, by_length = [], []
    for one, result in chosen:
        likelihoods = result["likelihoods"]
        lengths = [max(1, len(text.lstrip())) for text in one.continuations]
        plain.append(_argmax(likelihoods) == one.answer)
        by_length.append(_argmax([value / length for value, length in zip(likelihoods, lengths)]) == one.answer)
    yield "acc", mean(plain)
    yield "acc_norm", mean(by_length)


def _of_cloze(chosen) -> Iterator[tuple[str, dict]]:
    yield "acc", mean([result["greedy"][0] for _, result in chosen])
    nats = mean([-result["likelihoods"][0] for _, result in chosen])
    value = math.exp(min(nats["value"], 700))
    yield "perplexity", {"value": value, "stderr": None if nats["stderr"] is None else value * nats["stderr"]}


def _of_matches(chosen) -> Iterator[tuple[str, dict]]:
    yield "exact_match", mean([result["text"].strip() in [text.strip() for text in one.answer] for one, result in chosen])


METRICS = {CHOICE: _of_choices, CLOZE: _of_cloze, MATCH: _of_matches}


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def mean(values: Sequence[float]) -> dict:
    """With the standard error of the mean, None of a single value."""
    error = statistics.stdev(map(float, values)) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "stderr": error}
