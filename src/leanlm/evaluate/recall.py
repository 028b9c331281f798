"""How far a model remembers: something is told, and asked for so many tokens later, among so many others (see `facts`).

Each question is asked once more of a text that does not tell the fact: what remains is what can be guessed.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from leanlm import runtime
from leanlm.api import Model
from leanlm.errors import UsageError
from leanlm.evaluate import facts, scoring
from leanlm.evaluate.facts import CANDIDATES, COPY, KINDS, NEEDLE, Asked
from leanlm.evaluate.items import mean
from leanlm.evaluate.scoring import Request


@dataclass(frozen=True)
class Point:
    """What was found at one distance and load. `distance` is the tokens from where an answer was told to where it is asked for.

    `accuracy`: of copy, the share of tokens that are the likeliest; otherwise the share of items whose right answer is likelier
    than every wrong one (a tie counts in part). `stderr` is the standard error of its mean over items (None for one item),
    `chance` what guessing gives. `nats`: how much likelier having been told makes the answer (of copy each token), on average.
    """

    kind: str
    distance: int
    load: int
    accuracy: float
    stderr: float | None
    chance: float
    nats: float
    items: int


def curve(
    model: Model,
    kind: str,
    distances: Sequence[int],
    loads: Sequence[int] = (1,),
    items: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    run: runtime.Run | None = None,
) -> list[Point]:
    """Recall at every distance and load. Items depend on the seed and on their own distance and load alone.

    `progress` is told how many items are done, of all points together. `run` computes the logits (default: what runs the module
    best, over pieces of a text; a state in few bits is rounded after each piece, with `stepwise` after each token, as when
    generating). Raises UsageError for a distance that has no room for what is told, a vocabulary too small, a model without the
    tokenizer that needles need.
    """
    check(model, kind, distances, loads, items)
    points, done = [], 0
    for distance, load in product(distances, loads):
        measured = []
        for number in range(items):
            rng = random.Random(f"{seed} {kind} {distance} {load} {number}")
            asked = facts.ask(model, kind, distance, load, rng)
            measured.append((copied if kind == COPY else chosen)(model, asked, run))
            done += 1
            progress(done)
        accuracy, nats = (mean(values) for values in zip(*measured))
        chance = 1 / (model.vocabulary.size if kind == COPY else CANDIDATES)
        points.append(Point(kind, distance, load, accuracy["value"], accuracy["stderr"], chance, nats["value"], items))
    return points


def check(model: Model, kind: str, distances: Sequence[int], loads: Sequence[int], items: int) -> None:
    """Raises UsageError for what cannot be meant."""
    if kind not in KINDS:
        raise UsageError(f"recall of {kind!r}: choose {', '.join(KINDS)}")
    if kind == NEEDLE and model.tokenizer is None:
        raise UsageError("a needle is text, and this model has no tokenizer: give --tokenizer, or measure copy and pairs alone")
    for what, number in (*(("distance", d) for d in distances), *(("load", n) for n in loads), ("items", items)):
        if number < 1:
            raise UsageError(f"{what} {number}: must be at least 1")


def stepwise(run: runtime.Run) -> runtime.Run:
    """`run` called for one token after the other."""

    def step(tokens: torch.Tensor, state, last_only: bool = False) -> torch.Tensor:
        logits = [run(token, state, last_only=last_only) for token in tokens.split(1, 1)]
        return logits[-1] if last_only else torch.cat(logits, 1)

    return step


def copied(model: Model, asked: Asked, run: runtime.Run | None) -> tuple[float, float]:
    """The share of the answer's tokens that were the likeliest, and the nats that being told gains for each."""
    answer = asked.answer
    requests = [Request((*asked.told, *answer[:i]), (token,)) for i, token in enumerate(answer)]
    *known, guessed = _scored(model, [*requests, Request(asked.untold, answer)], run)
    gained = sum(score.log_likelihood for score in known) - guessed.log_likelihood
    return sum(score.greedy for score in known) / len(answer), gained / len(answer)


def chosen(model: Model, asked: Asked, run: runtime.Run | None) -> tuple[float, float]:
    """Whether the answer was the likeliest (as a share where others are as likely), and the nats that being told gains."""
    requests = [Request(asked.told, answer) for answer in (asked.answer, *asked.wrong)]
    scores = _scored(model, [*requests, Request(asked.untold, asked.answer)], run)
    *known, guessed = (score.log_likelihood for score in scores)
    best = max(known)
    return (known[0] == best) / known.count(best), known[0] - guessed


def _scored(model: Model, requests: Sequence[Request], run: runtime.Run | None) -> list[scoring.Score]:
    found = dict(scoring.score(model.module, requests, run=run))
    return [found[number] for number in range(len(requests))]
