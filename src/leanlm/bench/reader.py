"""How long many token shards take to open, and how many tokens a second one process reads from them.

    python -m leanlm.bench.reader [--shards 10000] [--shard-tokens 32768] [--seconds 3]

Shards of random ids in documents of 400 tokens on average are written to a temporary folder (0.7 GB as above) and opened once
to bring them into the system's cache. Opening is the median of five times in this process. Reading is one thread that makes
batches of 16 rows in training order, from one source and from a mixture of three, then two threads ahead of a consumer.
"""

import argparse
import hashlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from leanlm.data import manifest as manifests
from leanlm.data.batches import Mixture, Windows
from leanlm.data.feed import feed
from leanlm.data.manifest import DOCUMENTS, MANIFEST, Manifest, Shard
from leanlm.data.shards import Shards
from leanlm.data.writer import id_type, write_index

VOCABULARY, DOCUMENT, BATCH = 50_000, 400, 16


def make(folder: Path, shards: int, shard_tokens: int, seed: int = 0) -> Path:
    """A folder of shards; the ids of a shard are the same random ones, which no reader can know."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 2 * DOCUMENT, shard_tokens // DOCUMENT)
    ids = rng.integers(1, VOCABULARY, int(lengths.sum()), dtype=np.uint16)
    table = np.stack([np.cumsum(lengths) - lengths, 0 * lengths])
    data = ids.astype(id_type(VOCABULARY)).tobytes()
    digest = hashlib.sha256(data).hexdigest()
    listed = tuple(Shard(f"tokens-{n:05}-000.bin", len(ids), len(lengths), digest) for n in range(shards))
    for shard in listed:
        (folder / shard.file).write_bytes(data)
    write_index(folder / DOCUMENTS, [table] * shards)
    digest = manifests.sha256(folder / DOCUMENTS)
    made = Manifest(id_type(VOCABULARY).str, VOCABULARY, 0, None, None, digest, listed)
    (folder / MANIFEST).write_text(manifests.text(made))
    return folder


def opening(folder: Path, repeats: int = 5) -> float:
    """Seconds until the first batch, the median."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        Windows(Shards(folder), 2048, 0).batch(0, 1)
        took.append(time.perf_counter() - began)
    return round(statistics.median(took), 3)


def rate(batches: Iterator, seconds: float) -> int:
    """Tokens a second."""
    next(batches)
    began, tokens = time.perf_counter(), 0
    for batch in batches:
        tokens += batch.tokens.numel()
        if (spent := time.perf_counter() - began) > seconds:
            return round(tokens / spent)
    raise AssertionError("batches have no end")


def measure(folder: Path, seconds: float) -> Iterator[dict]:
    for length, count in itertools.product((512, 2048, 4096), (1, 3)):
        windows = [Windows(Shards(folder), length, seed) for seed in range(count)]
        mixture = Mixture(windows, [7, 2, 1][:count])
        figures = {"length": length, "sources": count}
        for workers in (0, 2):
            figures[f"tokens_per_second_{workers}_threads_ahead"] = rate(feed(mixture, 0, BATCH, workers=workers), seconds)
        yield figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--shard-tokens", type=int, default=1 << 15)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"writing {options.shards} shards", file=sys.stderr)
        made = make(Path(folder), options.shards, options.shard_tokens)
        found = {"shards": options.shards, "open_seconds": opening(made)}
        print(json.dumps({**found, "reading": list(measure(made, options.seconds))}, indent=2))


if __name__ == "__main__":
    main()
