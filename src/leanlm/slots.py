"""Which tokens every slot of a telescoping cache covers, in closed form; and the plan by which a text is read in parallel.

An entry covers a run of tokens: one of level L, numbered k, the tokens k 2^(L-1) - S(L-1) to (k + 1) 2^(L-1) - S(L-1) - 1 that
there are. Where it lies depends on the number of tokens read alone, never on what they are: the newest entry in slot 0, the
oldest last, the empty slots behind them.

C slots  M merge levels  t index of a token in its document  l its index in a call
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 64  # queries that look at the same rows


class Table(NamedTuple):
    """`size` slots, and `merges` f(1) .. f(M): into which slot two entries of a level are merged."""

    size: int
    merges: tuple[int, ...]

    @property
    def levels(self) -> int:
        """Of entries: 1 .. levels."""
        return len(self.merges) + 1

    @property
    def widths(self) -> list[int]:
        """How many slots hold entries of level 1, 2, ..."""
        return [b - a for a, b in zip((0, *self.merges), (*self.merges, self.size))]

    @property
    def covered(self) -> list[int]:
        """S(0), S(1), ...: the tokens that the entries up to a level cover."""
        return [0, *np.cumsum([width << level for level, width in enumerate(self.widths)]).tolist()]


NAMED = {
    "32": Table(32, (7, 13, 18, 22, 25, 27, 29)),
    "64": Table(64, (15, 28, 39, 48, 55, 60)),
    "128": Table(128, (26, 50, 71, 89, 104, 116, 124)),
    "128-even": Table(128, tuple(range(16, 113, 16))),
    "128-long": Table(128, tuple(range(16, 115, 14))),
    "256": Table(256, (64, 118, 162, 194, 214, 226, 236, 244, 250)),
    "512": Table(512, (64, 72, 80)),
}


def wrong(table: Table) -> str:
    """Why there can be no such table, as a sentence; empty where there can."""
    reason = _reason(*table)
    return f"{table.size} slots with merges {list(table.merges)} cannot be: {reason}" if reason else ""


def _reason(size: int, merges: tuple[int, ...]) -> str:
    if not merges:
        return "it has no slot where entries are merged"
    if merges[0] < 2:
        return f"the first merge is in slot {merges[0]}; two newer slots have to come before it"
    if list(merges) != sorted(set(merges)):
        return f"the slots {', '.join(map(str, merges))} do not rise"
    if merges[-1] >= size:
        return f"the last merge is in slot {merges[-1]}, beyond the {size} slots"
    return ""


def merge_slot(table: Table, t: int) -> int:
    """Into which slot two entries are merged as token t >= 1 comes in; `table.size` where the oldest is dropped instead."""
    level = (t & -t).bit_length()
    return table.merges[level - 1] if level < table.levels else table.size


class Entries(NamedTuple):
    """Entries, the newest first. At tokens `born` <= t < `died` an entry is in the cache; it covers `first` .. `last`."""

    level: np.ndarray
    number: np.ndarray
    first: np.ndarray
    last: np.ndarray
    born: np.ndarray
    died: np.ndarray

    def where(self, chosen: np.ndarray) -> "Entries":
        return Entries(*(field[chosen] for field in self))


def entries(table: Table, start: int, end: int) -> Entries:
    """All entries that are in the cache at some t in start .. end - 1."""
    found = [_of_level(table, level, start, end) for level in range(1, table.levels + 1)]
    joined = Entries(*map(np.concatenate, zip(*found)))
    return joined.where(np.argsort(-joined.first, kind="stable"))


def _of_level(table: Table, level: int, start: int, end: int) -> Entries:
    step, width, before = 1 << (level - 1), table.widths[level - 1], table.covered[level - 1]
    # The first ones that may still be there, with some to spare, to the last that is made.
    number = np.arange(max(0, start // step - width - 2), max(0, (end - 1) // step) + 1)
    first = number * step - before
    last = first + step - 1
    born = number if level == 1 else step // 2 + number * step
    merged = step + (number + width) // 2 * 2 * step  # the birth of the entry that it becomes part of
    died = merged if level < table.levels else (number + width) * step
    found = Entries(np.full_like(number, level), number, np.maximum(first, 0), last, born, died)
    return found.where((last >= 0) & (born < end) & (died > start))


def runs(table: Table, t: int) -> list[tuple[int, int] | None]:
    """The first and the last token of every slot after token t, None where it is empty."""
    held = entries(table, t, t + 1)
    full = list(zip(held.first.tolist(), held.last.tolist()))
    return full + [None] * (table.size - len(full))


class Plan(NamedTuple):
    """How L tokens are read at once. A bank of rows is made: the C slots held before, an empty row, the L tokens, then what is
    merged of them, level by level. Arrays are int64 with a leading axis: an entry for every text, or one for all.

    older, newer   of each level above the first: which rows are merged, counted in [slots, empty row, rows of the level before]
    rows           [., blocks, R] the rows of the bank that queries of a block see, filled up with the empty row
    born, died     [., blocks, R] a row is seen by the queries born <= l < died
    slots          [., C] the rows of the bank that are held afterwards
    """

    older: list[np.ndarray]
    newer: list[np.ndarray]
    rows: np.ndarray
    born: np.ndarray
    died: np.ndarray
    slots: np.ndarray


# Of a text in a call: tokens read of it before, and in the call. All documents but the first begin in the call.
Documents = tuple[tuple[int, int], ...]


def plan(table: Table, texts: tuple[Documents, ...]) -> Plan:
    """For texts of equally many tokens; a single one of `texts` stands for all of a batch."""
    found = [[entries(table, max(read - 1, 0), read + count) for read, count in documents] for documents in texts]
    counts = [max(_made(one, documents, level) for one, documents in zip(found, texts)) for level in _levels(table)]
    made = [_of_text(table, documents, one, counts) for documents, one in zip(texts, found)]
    columns = list(zip(*made))
    older, newer = ([_stacked(level, table.size) for level in zip(*side)] for side in columns[:2])
    rows, born, died = (_stacked(side, fill) for side, fill in zip(columns[2:5], (table.size, 0, 0)))
    return Plan(older, newer, rows, born, died, _stacked(columns[5], table.size))


def _levels(table: Table) -> range:
    """Of what is merged."""
    return range(2, table.levels + 1)


def _made(found: list[Entries], documents: Documents, level: int) -> int:
    """How many entries of a level a text makes in the call."""
    return sum(int(((one.level == level) & (one.born >= read)).sum()) for one, (read, _) in zip(found, documents))


def _stacked(parts: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Arrays that differ in the length of their last axis, filled up and stacked."""
    longest = max(part.shape[-1] for part in parts)
    widths = [(0, 0)] * (parts[0].ndim - 1)
    return np.stack([np.pad(part, [*widths, (0, longest - part.shape[-1])], constant_values=fill) for part in parts])


def _of_text(table: Table, documents: Documents, found: list[Entries], counts: list[int]) -> tuple:
    """The fields of `Plan` for one text; `counts` are the rows that the bank has for each level above the first."""
    size, length = table.size, sum(count for _, count in documents)
    bases = dict(zip(range(1, table.levels + 1), np.cumsum([size + 1, length, *counts]).tolist()))  # where levels begin
    used = dict.fromkeys(bases, 0)
    pairs: tuple[dict[int, list], dict[int, list]] = ({n: [] for n in _levels(table)}, {n: [] for n in _levels(table)})
    seen, at, slots = [], 0, np.empty(0, np.int64)
    for (read, count), one in zip(documents, found):
        if not count:
            continue
        held = one.born < read
        local = np.cumsum(held) - 1  # of those held: the slot; of others: the place in [slots, empty row, rows of their level]
        row = local.copy()
        for level in bases:
            new = np.flatnonzero(~held & (one.level == level))[::-1]  # by number
            within = used[level] + np.arange(len(new))
            local[new], row[new] = size + 1 + within, bases[level] + within
            used[level] += len(new)
            for side in (0, 1) if level > 1 else ():
                numbers = 2 * one.number[new] - table.widths[level - 2] + side
                pairs[side][level].append(_located(one, local, level - 1, numbers, size))
        seen.append((row, np.maximum(one.born - read, 0) + at, np.minimum(one.died - read, count) + at))
        slots = row[one.died >= read + count]
        at += count
    older, newer = ([np.concatenate(side[level]) for level in _levels(table)] for side in pairs)
    slots = np.pad(slots, (0, size - len(slots)), constant_values=size)
    return older, newer, *_blocks(*map(np.concatenate, zip(*seen)), length, size), slots


def _located(one: Entries, local: np.ndarray, level: int, numbers: np.ndarray, empty: int) -> np.ndarray:
    """The places of the entries of a level with these numbers; `empty` for those that cover no token."""
    order = np.flatnonzero(one.level == level)[::-1]
    known = one.number[order]
    if not len(known):
        return np.full_like(numbers, empty)
    at = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    return np.where(known[at] == numbers, local[order][at], empty)


def _blocks(row: np.ndarray, born: np.ndarray, died: np.ndarray, length: int, empty: int) -> list[np.ndarray]:
    """[blocks, R] each: the rows that the queries of a block see, from which query on, and up to which."""
    chosen = [(born < start + BLOCK) & (died > start) for start in range(0, length, BLOCK)]
    return [_stacked([field[some] for some in chosen], fill) for field, fill in ((row, empty), (born, 0), (died, 0))]
