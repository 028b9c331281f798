"""Tar shards of token ids as OpenLM reads them (TRI's Mamba-7B) into token shards. Loads no torch.

A sample is a row of ids that was packed from documents, each ended by the end-of-text token, and cut at the row's end; -1
fills it up. Rows were shuffled, so what was cut cannot be joined again: every piece is a document, and only those that were
whole end with an end-of-text token.
"""

import ast
import gzip
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from leanlm.data import corpus
from leanlm.data import job as jobs
from leanlm.data.corpus import Piece
from leanlm.data.job import Job
from leanlm.errors import CheckpointError

ENDING = (".tar",)
PAD = -1
MANIFEST = "manifest.jsonl"


def plan(paths: Sequence[Path], size: int, **settings) -> Job:
    """The import of files and folders in parts of about `size` bytes."""
    files = [path.resolve() for path in corpus.find(paths, ENDING)]
    weights = [path.stat().st_size for path in files]
    pieces = ((Piece(str(path)), weight) for path, weight in zip(files, weights))
    return Job("openlm", jobs.parts_of(pieces, size), {"sizes": weights}, **settings)


def documents(job: Job, folder: Path, pieces: list[Piece], count: Callable[[str], None]) -> Iterator[tuple[np.ndarray, int]]:
    """The tokens of every piece of a document; the bytes of its text are not known, 0."""
    for piece in pieces:
        for name, ids in _all_samples(Path(piece.path)):
            ids = ids[ids != PAD]
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < job.vocab_size:
                raise CheckpointError(f"{piece.path}: {name} holds ids beyond a vocabulary of {job.vocab_size}")
            for document in np.split(ids, np.flatnonzero(ids == job.end_of_text) + 1):
                if len(document) - int(document[-1:].tolist() == [job.end_of_text]) < job.min_tokens:
                    if len(document):
                        count("short")
                else:
                    yield document, 0


def _all_samples(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The samples of a file; raises CheckpointError where they are not as many as the manifest.jsonl beside it states (a tar
    file that was cut short between two members looks whole)."""
    seen = 0
    for sample in _samples(path):
        seen += 1
        yield sample
    stated = _stated(path.parent / MANIFEST).get(path.stem, seen)
    if seen != stated:
        raise CheckpointError(f"{path}: {seen} samples, {stated} stated in {MANIFEST}; download it again")


@lru_cache(1)
def _stated(manifest: Path) -> dict[str, int]:
    """Shard -> how many samples a manifest says it has; empty where there is none."""
    try:
        records = [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()]
        return {Path(str(r["shard"])).name.removesuffix(".tar"): r.get("num_sequences", r.get("num_chunks")) for r in records}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest}: damaged ({error}); mend or remove it") from None


def _samples(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(member, ids) of a tar file's json, json.gz and txt members, in their order."""
    with corpus.reading(path), tarfile.open(path) as tar:
        for member in tar:
            if not member.isfile() or not member.name.endswith((".json", ".json.gz", ".txt")):
                continue
            data = tar.extractfile(member).read()
            try:
                text = (gzip.decompress(data) if member.name.endswith(".gz") else data).decode()
                ids = ast.literal_eval(text) if member.name.endswith(".txt") else json.loads(text)
                yield member.name, np.array(ids, np.int64).reshape(-1)
            except (ValueError, SyntaxError, OSError, TypeError, OverflowError) as error:
                raise CheckpointError(f"{path}: {member.name} holds no list of ids ({error})") from None
