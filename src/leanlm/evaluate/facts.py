"""Texts that tell something and ask for it later, for `recall`.

    copy     a passage of random tokens is begun again: how does it go on? The load is the tokens to go on with.
    needle   sentences that give things numbers, in a text about people: which number was this? The load is the sentences.
    pairs    random tokens, each followed by one of its own: which one followed this? The load is the pairs.

Copies and pairs are token ids and need no tokenizer.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from leanlm.api import Model
from leanlm.errors import UsageError
from leanlm.generate.vocabulary import Vocabulary

KINDS = COPY, NEEDLE, PAIRS = "copy", "needle", "pairs"
CANDIDATES = 8  # answers to choose from
CUE = 8  # tokens of a passage that are read again before the first that is asked for
LEAD = 16  # tokens of other text before anything is told
COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "golden", "silver", "purple")
THINGS = ("box", "door", "key", "lamp", "map", "book", "cup", "ring", "boat", "clock", "bell", "coat", "bridge", "table")
PEOPLE = ("farmer", "teacher", "sailor", "baker", "child", "doctor", "painter", "soldier", "widow", "judge")
DEEDS = ("walked to", "looked at", "waited for", "talked about", "came from", "remembered", "painted", "forgot")
PLACES = ("river", "forest", "old town", "market", "harbour", "church", "mountain", "garden", "station", "sea")

Ids = tuple[int, ...]


class Asked(NamedTuple):
    """Two texts of one length that end in the same question: `told` tells the answer, `untold` something else in its place.
    `wrong` are answers to other questions, first those that the texts told."""

    told: Ids
    untold: Ids
    answer: Ids
    wrong: tuple[Ids, ...] = ()


class Facts(NamedTuple):
    """The one asked for: `question` leads to `answer`, and where it is told `end` follows. `others` are told too, `wrong` are
    answers to choose from beside the right one. `filler` makes so many tokens that tell nothing."""

    question: Ids
    answer: Ids
    end: Ids
    others: Sequence[Ids]
    wrong: tuple[Ids, ...]
    filler: Callable[[int], Ids]


def ask(model: Model, kind: str, distance: int, load: int, rng: random.Random) -> Asked:
    """A question of this kind. Raises UsageError where the distance has no room for the fact and its question, or the
    vocabulary not enough tokens for the load."""
    made = {COPY: passage, NEEDLE: needles, PAIRS: pairs}[kind](model, load, rng)
    return laid_out(model.vocabulary, made, distance, rng)


def laid_out(vocabulary: Vocabulary, facts: Facts, distance: int, rng: random.Random) -> Asked:
    """The other facts stand before the one asked for, or, with even odds and where there is room, behind it."""
    fact = facts.question + facts.answer + facts.end
    room = distance - len(fact)
    if room < 0:
        raise UsageError(f"distance {distance}: what is told and asked for takes {len(fact)} tokens here")
    before, after = (), ()
    for other in rng.sample(facts.others, len(facts.others)):
        if rng.random() < 0.5 and len(after) + len(other) <= room:
            after += other
        else:
            before += other
    start = (vocabulary.bos_id,) if vocabulary.bos_id is not None else tuple(sorted(vocabulary.eos_ids)[:1])
    before = start + facts.filler(LEAD) + before
    after += facts.filler(room - len(after)) + facts.question
    return Asked(before + fact + after, before + facts.filler(len(fact)) + after, facts.answer, facts.wrong)


class Symbols:
    """Random token ids that mean nothing to a model; those that begin, end or fill a text are left out."""

    def __init__(self, vocabulary: Vocabulary, rng: random.Random):
        self.size, self.rng = vocabulary.size, rng
        self.taken = {i for i in (vocabulary.bos_id, vocabulary.pad_id, *vocabulary.eos_ids) if i is not None}

    def new(self, count: int) -> Ids:
        """Ids that all differ, also from those that were given before."""
        if 2 * (len(self.taken) + count) > self.size:  # enough are left to fill texts with
            raise UsageError(f"a vocabulary of {self.size} tokens is too small for this load")
        found: dict[int, None] = {}
        while len(found) < count:
            found |= dict.fromkeys(self.filler(1))
        self.taken.update(found)
        return tuple(found)

    def filler(self, count: int) -> Ids:
        """Ids that `new` has not given, some of them several times."""
        found = []
        while len(found) < count:
            if (token := self.rng.randrange(self.size)) not in self.taken:
                found.append(token)
        return tuple(found)


def passage(model: Model, load: int, rng: random.Random) -> Facts:
    symbols = Symbols(model.vocabulary, rng)
    return Facts(symbols.new(CUE), symbols.new(load), (), (), (), symbols.filler)


def pairs(model: Model, load: int, rng: random.Random) -> Facts:
    symbols = Symbols(model.vocabulary, rng)
    keys, values = symbols.new(load), symbols.new(max(load, CANDIDATES))
    others = list(zip(keys[1:], values[1:]))
    return Facts(keys[:1], values[:1], (), others, tuple((value,) for value in values[1:CANDIDATES]), symbols.filler)


def needles(model: Model, load: int, rng: random.Random) -> Facts:
    names = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    if load > len(names):
        raise UsageError(f"load {load}: there are at most {len(names)} needles")

    def encode(text: str) -> Ids:
        return tuple(model.tokenizer.encode(text, add_special=False))

    names, numbers, end = rng.sample(names, load), rng.sample(range(1000, 10000), max(load, CANDIDATES)), encode(".")
    others = [encode(sentence(name, number)) + end for name, number in zip(names[1:], numbers[1:])]
    choices = [encode(sentence(names[0], number)) for number in numbers[:CANDIDATES]]
    differ = next(i for i, tokens in enumerate(zip(*choices)) if len(set(tokens)) > 1)
    answer, *wrong = (choice[differ:] for choice in choices)
    return Facts(choices[0][:differ], answer, end, others, tuple(wrong), lambda count: haystack(encode, count, rng))


def sentence(name: str, number: int) -> str:
    return f" The number of the {name} is {number}"


def haystack(encode: Callable[[str], Ids], count: int, rng: random.Random) -> Ids:
    """So many tokens of sentences without numbers; the last one is whole."""
    found: Ids = ()
    while len(found) < count:
        told = (f" The {rng.choice(PEOPLE)} {rng.choice(DEEDS)} the {rng.choice(PLACES)}." for _ in range(count // 5 + 1))
        found += encode("".join(told))
    return found[len(found) - count :]
