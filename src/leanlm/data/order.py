"""Orders that are functions of a position alone: a keyed permutation of windows, and the turns of weighted sources.

Loads no torch."""

import hashlib
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from leanlm.errors import UsageError

ROUNDS = 4  # even, so that both halves end with the ranges they began with
PERIOD = 1 << 16  # turns after which an interleaving repeats, at most


def permuted(places: np.ndarray, count: int, key: str) -> np.ndarray:
    """Where a keyed permutation of range(count) sends each of `places`, int64.

    A Feistel network over the smallest grid a x b of about equal sides that holds range(count), walked until it lands inside
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains": generalised Feistel with cycle walking).
    """
    a = math.isqrt(count - 1) + 1
    b = -(-count // a)
    digest = hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8")
    result = np.array(places, np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        right, left = np.divmod(result[walking], np.uint64(a))
        for number, round_key in enumerate(keys):
            left, right = right, (left + scrambled(right ^ round_key)) % np.uint64(b if number % 2 else a)
        result[walking] = right * np.uint64(a) + left
        walking = walking[result[walking] >= count]
    return result.astype(np.int64)


def scrambled(x: np.ndarray) -> np.ndarray:
    """64 bits to 62 well-mixed ones: the finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(2)


class Interleaving:
    """Turns among sources: after n turns source i had n w_i of them, rounded up or down, for every n and every i.

    Weights are taken as the decimal fractions they are written as. Where their common denominator is above `PERIOD` they are
    rounded to multiples of 1 / PERIOD; `shares` are the exact ones.

    The turns of one period are scheduled earliest deadline first: turn j of source i lies in the slots from floor(j / w_i) to
    ceil((j + 1) / w_i), which always succeeds (Baruah, Cohen, Plaxton & Varvel 1996, "Proportionate progress").
    """

    def __init__(self, weights: Sequence[float]):
        parts = _whole(weights)
        self.period = sum(parts)
        self.shares = tuple(Fraction(part, self.period) for part in parts)
        self._parts = np.array(parts, np.int64)
        self._turns = np.array(_turns(parts), np.int64)
        self._ranks = np.empty(self.period, np.int64)
        for source, part in enumerate(parts):
            self._ranks[self._turns == source] = np.arange(part)

    def __call__(self, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many turns it had before), int64 both, for each of `turns`."""
        cycle, place = np.divmod(turns, self.period)
        source = self._turns[place]
        return source, cycle * self._parts[source] + self._ranks[place]

    def counts(self, turn: int) -> tuple[int, ...]:
        """How many turns each source had before `turn`."""
        cycle, place = divmod(turn, self.period)
        had = np.bincount(self._turns[:place], minlength=len(self._parts))
        return tuple(int(n) for n in cycle * self._parts + had)


def _whole(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers without a common factor, of sum `PERIOD` at most."""
    exact = []
    for weight in weights:
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight > 0):
            raise UsageError(f"weight {weight} of a source: it must be a number above 0")
        exact.append(Fraction(str(weight)))
    if not exact:
        raise UsageError("a mixture needs at least one source")
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= PERIOD:
        return [int(share * period) for share in shares]
    parts = [int(share * PERIOD) for share in shares]
    lost = sorted(range(len(parts)), key=lambda i: parts[i] - shares[i] * PERIOD)
    for i in lost[: PERIOD - sum(parts)]:
        parts[i] += 1
    if 0 in parts:
        smallest = weights[parts.index(0)]
        raise UsageError(f"weight {smallest} of a source is less than 1 / {PERIOD} of all weights; leave the source out")
    common = math.gcd(*parts)
    return [part // common for part in parts]


def _turns(parts: Sequence[int]) -> list[int]:
    """The source of each slot of a period."""
    period = sum(parts)
    waiting = [(0, source) for source in range(len(parts))]  # (slot it may first have, source)
    ready: list[tuple[int, int]] = []  # (slot before which it must be, source)
    had = [0] * len(parts)
    turns = []
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            source = heapq.heappop(waiting)[1]
            heapq.heappush(ready, (-(-(had[source] + 1) * period // parts[source]), source))
        source = heapq.heappop(ready)[1]
        turns.append(source)
        had[source] += 1
        heapq.heappush(waiting, (had[source] * period // parts[source], source))
    return turns
