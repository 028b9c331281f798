"""Batches in an order that one counter describes, so that a run resumes exactly, whatever the number of processes.

The token stream is cut into windows of fixed length; in epoch e the windows come in the order of a permutation keyed by
(seed, e). Window number p of the run is therefore a function of p alone, and the counter p is all a checkpoint must hold.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from leanlm.data.shards import Shards
from leanlm.errors import UsageError

ROUNDS = 4


@dataclass(frozen=True)
class Batch:
    """tokens and targets [B, L] int64; segments [B, L] document marks, None where no document ends inside a row."""

    tokens: Tensor
    targets: Tensor
    segments: Tensor | None


class Windows:
    """The windows of a token stream in training order. Window w covers tokens w L .. w L + L and predicts the next ones;
    each token but the first and an incomplete last window is predicted exactly once per epoch."""

    def __init__(self, shards: Shards, length: int, seed: int):
        self.shards, self.length, self.seed = shards, length, seed
        self.count = (shards.tokens - 1) // length
        if self.count < 1:
            raise UsageError(f"{shards.folder}: {shards.tokens} tokens are too few for one window of {length}")

    def batch(self, position: int, size: int) -> Batch:
        """Windows number position .. position + size of the run."""
        rows, documents = [], []
        for p in range(position, position + size):
            epoch, place = divmod(p, self.count)
            start = permuted(place, self.count, f"{self.seed}/{epoch}") * self.length
            rows.append(torch.from_numpy(self.shards.read(start, self.length + 1)))
            documents.append(torch.from_numpy(self.shards.documents_of(start, self.length)))
        tokens, marks = torch.stack(rows), torch.stack(documents)
        whole = bool((marks == marks[:, :1]).all())
        return Batch(tokens[:, :-1], tokens[:, 1:], None if whole else marks)


def permuted(place: int, count: int, key: str) -> int:
    """Where a keyed permutation of range(count) sends `place`: a Feistel network over the next power of four, walked until
    it lands inside the range (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", cycle walking)."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for r in range(ROUNDS):
            digest = hashlib.blake2b(f"{key}/{r}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        place = left << half | right
        if place < count:
            return place
