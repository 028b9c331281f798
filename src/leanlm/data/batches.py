"""Batches in an order that one counter describes, so that a run resumes exactly, whatever the number of processes.

The documents of a source are one stream of tokens, cut into windows of fixed length; in epoch e of the source its windows
come in the order of a permutation keyed by seed, source and e. Sources take turns by their weights. Row p of the run is
therefore a function of p alone, and the counter p is all that a checkpoint must hold.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leanlm.data.order import Interleaving, permuted
from leanlm.data.shards import Shards, check_same_vocabulary
from leanlm.errors import CheckpointError, UsageError

IGNORED = -100  # a target that is none, as torch's cross-entropy has it


@dataclass(frozen=True)
class Batch:
    """tokens and targets [B, L] int64; segments [B, L] document marks, None where no document begins inside a row.

    A target is the token after its input, or `IGNORED`. Its input belongs to the same document: the first token of a document
    is predicted from an end-of-text token alone, and where documents have a begin-of-text token, that is not predicted at all.
    `extra` [B, ...] is what else is known of every row, for objectives that ask for it.
    """

    tokens: Tensor
    targets: Tensor
    segments: Tensor | None
    extra: tuple[Tensor, ...] = ()


class Windows:
    """The windows of one source in training order. Window w predicts the tokens w L .. w L + L of the stream; the last one is
    filled up with ignored targets. So every token is predicted exactly once an epoch (but begin-of-text tokens)."""

    def __init__(self, shards: Shards, length: int, seed: int):
        self.shards, self.length, self.seed = shards, length, seed
        if shards.tokens < length:
            raise UsageError(f"{shards.folder}: {shards.tokens} tokens are too few for one window of {length}")
        self.count = -(-shards.tokens // length)

    def order(self, ordinals: np.ndarray) -> np.ndarray:
        """The windows that come as number `ordinals` of the source, int64."""
        epochs, places = np.divmod(ordinals, self.count)
        windows = np.empty(len(ordinals), np.int64)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            windows[at] = permuted(places[at], self.count, f"{self.seed}/{self.shards.fingerprint}/{epoch}")
        return windows

    def fill(self, ordinals: np.ndarray, rows: np.ndarray, tokens: np.ndarray, targets: np.ndarray, marks: np.ndarray) -> None:
        """Write the windows of number `ordinals` into these rows of a batch; marks are 1 where a document begins."""
        made = self.shards.manifest
        late = int(made.begin_of_text is not None)  # a begin-of-text token is the first input of its document
        for window, row in zip(self.order(ordinals), rows):
            start = int(window) * self.length
            length = min(self.length, self.shards.tokens - start)
            before = min(start, 1)
            stream = self.shards.read(start - before, length + before)
            if int(stream.max()) >= made.vocab_size:
                raise CheckpointError(f"{self.shards.shard_at(start)}: holds ids beyond its vocabulary; run leanlm data verify")
            begins = self.shards.beginnings(start, length)
            targets[row, :length] = stream[before:]
            targets[row, length:] = IGNORED
            tokens[row, 1 - before : length] = stream[: length - 1 + before]
            tokens[row, length:] = made.end_of_text
            tokens[row, begins] = made.end_of_text
            if late:
                targets[row, begins] = IGNORED
                begins = begins[begins < self.length - 1] + 1
            marks[row, begins] = 1

    def batch(self, position: int, size: int) -> Batch:
        """Windows number position .. position + size of the run."""
        return Mixture([self]).batch(position, size)


class Mixture:
    """Sources that take turns by weight, each at its own pace through its own epochs.

    After any number of rows every source gave its share of them, rounded up or down. `begin` says how many windows of each
    source earlier phases of training consumed (their `counts`), so that a changed mixture goes on where they stopped.
    """

    def __init__(self, sources: Sequence[Windows], weights: Sequence[float] | None = None, begin: Sequence[int] | None = None):
        weights = (1,) * len(sources) if weights is None else weights
        begin = (0,) * len(sources) if begin is None else begin
        if not len(sources) == len(weights) == len(begin):
            raise UsageError(f"{len(sources)} sources with {len(weights)} weights and {len(begin)} beginnings")
        self.turns = Interleaving(weights)
        self.sources = tuple(sources)
        if len({source.length for source in sources}) > 1:
            raise UsageError("the sources of a mixture must have windows of one length")
        check_same_vocabulary([source.shards for source in sources])
        self._begin = np.asarray(begin, np.int64)

    @classmethod
    def open(
        cls,
        folders: Mapping[str | Path, float],
        length: int,
        seed: int,
        damaged: Literal["refuse", "skip"] = "refuse",
        begin: Sequence[int] | None = None,
    ) -> "Mixture":
        """Folders of shards -> weights, in windows of `length`; `damaged` as for `Shards`."""
        sources = [Windows(Shards(folder, damaged), length, seed) for folder in folders]
        return cls(sources, list(folders.values()), begin)

    def batch(self, position: int, size: int) -> Batch:
        """Rows number position .. position + size of the run."""
        length = self.sources[0].length
        tokens, targets = np.empty((2, size, length), np.int64)
        marks = np.zeros((size, length), np.int64)
        source, ordinal = self.turns(np.arange(position, position + size))
        ordinal += self._begin[source]
        for number in np.unique(source):
            rows = np.flatnonzero(source == number)
            self.sources[number].fill(ordinal[rows], rows, tokens, targets, marks)
        segments = torch.from_numpy(marks.cumsum(1)) if marks[:, 1:].any() else None
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), segments)

    @property
    def vocab_size(self) -> int:
        """Every id is below it."""
        return max(source.shards.manifest.vocab_size for source in self.sources)

    def check_tokenizer(self, sha256: str, vocab_size: int) -> None:
        """`Shards.check_tokenizer` of every source."""
        for source in self.sources:
            source.shards.check_tokenizer(sha256, vocab_size)

    def counts(self, position: int) -> tuple[int, ...]:
        """How many windows each source has given before row `position`, those of earlier phases included."""
        return tuple(int(n) for n in self.turns.counts(position) + self._begin)

    def epochs(self, position: int) -> tuple[float, ...]:
        """How often each source has been gone through before row `position`."""
        return tuple(given / source.count for given, source in zip(self.counts(position), self.sources))

    @property
    def fingerprint(self) -> str:
        """Two mixtures with the same fingerprint give the same rows at every position."""
        kept = [(s.shards.fingerprint, s.length, s.seed, str(share)) for s, share in zip(self.sources, self.turns.shares)]
        return hashlib.sha256(repr((kept, self._begin.tolist())).encode()).hexdigest()
